"""What the trainings of a cross-validation took, for an estimate of the rest.

A file of JSON, by training: its seconds, over all starts, and whether it has
ended. Nothing depends on it but the estimate.
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
      str(title): (float(seconds), bool(ended))
      for title, (seconds, ended) in found.items()
    }
  except (InputError, AttributeError, TypeError, ValueError):
    return {}


@contextlib.contextmanager
def measured(path: pathlib.Path, title: str) -> Iterator[None]:
  """Adds what the block takes, however it ends, to the time of a training."""
  begin = time.monotonic()
  try:
    yield
  finally:
    if multihost.is_primary():
      seconds, ended = read(path).get(title, (0.0, False))
      _set(path, title, seconds + time.monotonic() - begin, ended)


def finish(path: pathlib.Path, title: str) -> None:
  """Notes that a training has ended."""
  _set(path, title, read(path).get(title, (0.0, False))[0], True)


def _set(path: pathlib.Path, title: str, seconds: float, ended: bool) -> None:
  with contextlib.suppress(OSError, InputError):
    times = read(path) | {title: (round(seconds, 1), ended)}
    write_atomically(path, (json.dumps(times, indent=1) + '\n').encode())


def estimate(
  times: Mapping[str, tuple[float, bool]], now: str, left: Sequence[str]
) -> str:
  """Returns how long the trainings that are left take, in words; '' if unknown.

  Each as long as those of its configuration that have ended took on average, or
  where there is none as all that have.

  Args:
    times: see `read`.
    now: the training that goes on, whose time so far is taken off.
    left: the trainings that are left, CONFIGURATION/FOLD each.
  """
  ended = {title: seconds for title, (seconds, done) in times.items() if done}
  if not ended:
    return ''
  total = 0.0
  for title in left:
    if title in ended:
      continue
    alike = [
      seconds
      for other, seconds in ended.items()
      if other.rpartition('/')[0] == title.rpartition('/')[0]
    ] or list(ended.values())
    total += sum(alike) / len(alike)
    if title == now and title in times:
      total -= min(times[title][0], sum(alike) / len(alike))
  return format_seconds(total)
