"""Warnings of several processes, of which one tells them all, each once.

Each process reads cases of its own, so it alone meets what is odd about them.
Processes above 0 print nothing: they keep their warnings, and process 0 tells
them when they are gathered (see `multihost.gather`). Without other processes
every warning is logged where it comes up.
"""

import collections
from collections.abc import Iterable

from absl import logging


class _Process:
  """What this process knows of the warnings of its run."""

  told: set[str] | None = None  # by this process for all; None: it is alone
  kept: collections.deque[str] | None = None  # for another one to tell


def warn(line: str) -> None:
  """Logs a warning; of several processes one does so, and once. Any thread."""
  if _Process.kept is not None:
    _Process.kept.append(line)
  elif _Process.told is None or line not in _Process.told:
    note(line)
    logging.warning('%s', line)


def note(line: str) -> None:
  """Notes what the user was told elsewhere, for `warn` not to repeat it."""
  if _Process.told is not None:
    _Process.told.add(line)


def be_one_of_several(*, tells: bool) -> None:
  """Says whether this process of several tells the warnings, or keeps them."""
  _Process.told, _Process.kept = set(), None
  if not tells:
    _Process.kept = collections.deque()


def take() -> list[str]:
  """Returns what was kept since the last time, for the process that tells."""
  lines = []
  while _Process.kept:  # a thread may add some meanwhile
    lines.append(_Process.kept.popleft())
  return lines


def tell(lines: Iterable[str]) -> None:
  """Logs what another process has kept."""
  for line in lines:
    warn(line)
