"""Progress of long work: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable

import tqdm

from medseg_jax.runtime import stop_signal

_SECONDS_BETWEEN_LINES = 10.0
# What work is called; a function says it anew for each line.
Title = str | Callable[[], str]


class Progress:
  """Shows how far work has come, its statistics and the time left.

  On a terminal a bar on stderr. Elsewhere lines on stdout: one each time
  `stats` is called. Until the first of them, a sign of life every 10 s at
  most; work that never calls `stats` also gets a line at the end.

  Args:
    total: units of work in all.
    initial: units done before this process began, by a run that it continues.
    unit: name of a unit, 'step' or 'case', say.
    desc: what the work is, in front of every line; may be empty.
    effort: how much of the work so many units are, where some take longer than
      others; None where all take as long.
  """

  def __init__(
    self,
    total: int,
    initial: int = 0,
    unit: str = 'step',
    desc: Title = '',
    effort: Callable[[float], float] | None = None,
  ):
    self._total = total
    self._unit = unit
    self._desc = desc
    self._effort = effort or (lambda units: units)
    self._count = initial
    self._share = 0.0  # of the unit under way
    self._failed = 0
    self._begin = self._last_line = time.monotonic()
    # The first unit holds the compilation, so the pace is taken after it.
    self._pace_from: tuple[float, float] | None = None
    self._has_stats = False
    self._shown: list[str] = []  # behind the bar
    self._bar = None
    self._bar_format = f'{{desc}}{unit} {{n:.0f}}/{{total_fmt}} |{{bar}}| '
    if sys.stdout.isatty() and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        total=total,
        initial=initial,
        desc=self._prefix(),
        file=sys.stderr,
        dynamic_ncols=True,
        bar_format=self._bar_format,
      )

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, kind, *exc_info) -> None:
    # Work that was cut off ends without the line on what it took.
    self._has_stats |= kind is not None
    self.close()

  def advance(self, n: int = 1) -> None:
    """Counts `n` units done. Cheap: call it at every step.

    Raises:
      Stopped: a signal asks for it (see `stop_signal.check`).
    """
    self._move(n, 0.0)
    stop_signal.check()

  def within(self, share: float) -> None:
    """Tells what share of the unit under way is done. Cheap, too.

    Raises:
      Stopped: likewise.
    """
    self._move(0, share)
    stop_signal.check()

  def ends_at(self, total: int) -> None:
    """Sets how many units there are in all, where that has changed."""
    self._total = total
    if self._bar is not None:
      self._bar.total = total

  def failed(self, total: int) -> None:
    """Counts units that failed: they are over, too, and told apart.

    Args:
      total: how many there are by now.
    """
    new, self._failed = total - self._failed, total
    if new:
      self._shown = [f'{total} failed']
      self._move(new, 0.0)

  def _move(self, units: int, share: float) -> None:
    """Counts so many units, and the share of the next one anew."""
    before = self._count + self._share
    self._count, self._share = self._count + units, share
    self._show(self._count + share - before)

  def _show(self, n: float) -> None:
    now = time.monotonic()
    if self._pace_from is None:
      self._pace_from = (self._effort(self._count + self._share), now)
    if self._bar is not None:
      if callable(self._desc):
        self._bar.set_description_str(self._prefix(), refresh=False)
      words = ', '.join([*self._left(now), *self._shown])
      self._bar.bar_format = self._bar_format + words
      self._bar.update(n)
      return
    if not self._has_stats and now - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._print_line(self._position(), *self._left(now))

  def stats(self, **values: float) -> None:
    """Shows numbers, such as `loss=0.1234, images_per_s=85.1`."""
    self._has_stats = True
    shown = [
      f'{name.replace("_per_s", "/s").replace("_", " ")} {value:.4g}'
      for name, value in values.items()
    ]
    if self._bar is not None:
      self._shown = shown
      return
    self._print_line(self._position(), *shown, *self._left(time.monotonic()))

  def write(self, line: str) -> None:
    """Prints a line on stdout without breaking the bar."""
    if self._bar is not None:
      self._bar.write(line, file=sys.stdout)
    else:
      print(line, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
    elif not self._has_stats:
      took = format_seconds(time.monotonic() - self._begin)
      self._print_line(self._position(), f'took {took}')

  def _prefix(self) -> str:
    desc = self._desc() if callable(self._desc) else self._desc
    return f'{desc}: ' if desc else ''

  def _position(self) -> str:
    failed = f', {self._failed} failed' if self._failed else ''
    part = f', {self._share:.0%} of the next' if self._share else ''
    done = f'{self._unit} {self._count}/{self._total}{failed}{part}'
    return f'{self._prefix()}{done}'

  def _left(self, now: float) -> list[str]:
    """Returns the words on the time left; none before the pace is known."""
    done = self._effort(self._count + self._share)
    if self._pace_from is None or done <= self._pace_from[0]:
      return []
    first, since = self._pace_from
    pace = (now - since) / (done - first)
    remaining = max(self._effort(self._total) - done, 0)
    return [f'left {format_seconds(remaining * pace)}']

  def _print_line(self, *parts: str) -> None:
    self._last_line = time.monotonic()
    self.write('  '.join(parts))


def format_seconds(seconds: float) -> str:
  """Returns a duration in words, two units at most, such as '1 min 32 s'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60} s'
  minutes = round(seconds / 60)
  if minutes < 24 * 60:
    return f'{minutes // 60} h {minutes % 60} min'
  hours = round(seconds / 3600)
  return f'{hours // 24} d {hours % 24} h'
