"""What the trainings of a cross-validation took, for an estimate of the rest.

A file of JSON, by training: its seconds, over all starts, whether it has ended,
and, while it runs, since when. What a killed training took is known up to the
last line of its metrics. Nothing depends on the file but the estimate and, see
`fold_budget`, how much of a time budget is left.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json, write_atomically
from medseg_jax.runtime.progress import format_seconds

FILE = 'times.json'

# Seconds by training, and whether it has ended.
Times = dict[str, tuple[float, bool]]


def read(path: pathlib.Path) -> Times:
  """Returns what the file says; nothing where it is missing or no such file."""
  try:
    found = read_json(path, 'seconds by training')
    return {
      str(title): (
        float(seconds) + _untold(path, title, *since),
        bool(ended),
      )
      for title, (seconds, ended, *since) in found.items()
    }
  except (InputError, AttributeError, TypeError, ValueError):
    return {}


def _untold(path: pathlib.Path, title: str, since: float = 0.0) -> float:
  """Returns what a training took after `since` that no process could tell."""
  if not since:
    return 0.0
  try:
    last = (path.parents[1] / title / 'metrics.jsonl').stat().st_mtime
  except OSError:
    return 0.0
  return max(last - float(since), 0.0)


@contextlib.contextmanager
def measured(path: pathlib.Path, title: str) -> Iterator[None]:
  """Adds what the block takes, however it ends, to the time of a training."""
  begin = time.monotonic()
  before = 0.0
  if multihost.is_primary():
    before, ended = read(path).get(title, (0.0, False))
    _set(path, title, before, ended, time.time())
  try:
    yield
  finally:
    if multihost.is_primary():
      ended = read(path).get(title, (0.0, False))[1]
      _set(path, title, before + time.monotonic() - begin, ended)


def add(path: pathlib.Path, title: str, seconds: float) -> None:
  """Adds to the time of what is no training, such as opening the data."""
  _set(path, title, read(path).get(title, (0.0, False))[0] + seconds, False)


def finish(path: pathlib.Path, title: str) -> None:
  """Notes that a training has ended; its masks are perhaps still to be made."""
  _set(path, title, read(path).get(title, (0.0, False))[0], True)


def _set(
  path: pathlib.Path, title: str, seconds: float, ended: bool, *since: float
) -> None:
  with contextlib.suppress(OSError, InputError):
    now = {title: (round(seconds, 1), ended, *(round(s, 1) for s in since))}
    try:  # as it stands there: of others nothing is to be added up
      times = dict(read_json(path, 'seconds by training'))
    except (InputError, TypeError, ValueError):
      times = {}
    write_atomically(path, (json.dumps(times | now, indent=1) + '\n').encode())


def seconds_left(
  times: Mapping[str, tuple[float, bool]],
  now: str,
  left: Sequence[str],
  planned: Mapping[str, float],
) -> float | None:
  """Returns how long the trainings that are left take; None if unknown.

  Each as long as those of its configuration that have ended took on average, or
  where there is none as planned, or as all that have.

  Args:
    times: see `read`.
    now: the training that goes on, whose time so far is taken off.
    left: the trainings that are left, CONFIGURATION/FOLD each.
    planned: seconds of a training, by configuration.
  """
  ended = {title: seconds for title, (seconds, done) in times.items() if done}
  total = 0.0
  for title in left:
    if title in ended:
      continue
    configuration = title.rpartition('/')[0]
    alike = (
      [
        seconds
        for other, seconds in ended.items()
        if other.rpartition('/')[0] == configuration
      ]
      or [planned[key] for key in (configuration,) if key in planned]
      or list(ended.values())
    )
    if not alike:
      return None
    each = sum(alike) / len(alike)
    total += each
    if title == now and title in times:
      total -= min(times[title][0], each)
  return total


class Remaining:
  """What is left of a cross-validation at any moment of one training.

  Args:
    times: see `read`, of before the training went on.
    now: the training.
    left: see `seconds_left`.
    planned: likewise.
    budget: seconds for all; 0 for no limit.
  """

  def __init__(
    self,
    times: Mapping[str, tuple[float, bool]],
    now: str,
    left: Sequence[str],
    *,
    planned: Mapping[str, float],
    budget: float = 0.0,
  ):
    self._times = dict(times)
    self._now, self._left, self._planned = now, left, planned
    self._budget = budget
    self._begin = time.monotonic()

  def words(self) -> str:
    """Returns ', about 3 h 2 min left' and the like; '' where nothing is known.

    Cheap: for every line of progress.
    """
    since = time.monotonic() - self._begin
    seconds, ended = self._times.get(self._now, (0.0, False))
    times = self._times | {self._now: (seconds + since, ended)}
    text = ''
    left = seconds_left(times, self._now, self._left, self._planned)
    if left is not None:
      text = f', about {format_seconds(left)} left'
    if self._budget:
      rest = self._budget - sum(seconds for seconds, _ in times.values())
      if rest >= 0:
        text += f', {format_seconds(rest)} of the budget'
      else:
        text += f', {format_seconds(-rest)} over the budget'
    return text
