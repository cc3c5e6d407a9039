"""Finds out that this process stands still: what no error ever tells.

A place that a long phase passes again and again calls `stop_signal.check`, so
that it can be stopped there: that is progress. Compiling passes none, says
nothing of how far it has come and may take long, so it is taken for progress.
"""

import sys
import threading
import time
from collections.abc import Callable

from medseg_jax.runtime import stop_signal

# Looks, not a clock, tell how long it was: a process that was suspended has
# looked as seldom as it has worked.
_LOOKS = 20
_COMPILER = 'jax._src.compiler'


def watch(seconds: float, still: Callable[[], None]) -> threading.Thread:
  """Returns a thread that calls `still` after `seconds` without progress.

  Once, in that thread.

  Args:
    seconds: to be patient for.
    still: must not wait for what the main thread may hold.
  """
  thread = threading.Thread(
    target=_watch, args=(seconds, still), name='watchdog', daemon=True
  )
  thread.start()
  return thread


def _watch(seconds: float, still: Callable[[], None]) -> None:
  seen, looks = stop_signal.num_checks(), 0
  while looks < _LOOKS:
    time.sleep(seconds / _LOOKS)
    now = stop_signal.num_checks()
    looks = 0 if now != seen or _compiles() else looks + 1
    seen = now
  still()


def _compiles() -> bool:
  """Returns whether the main thread waits for XLA's compiler."""
  main = threading.main_thread().ident
  frame = sys._current_frames().get(main)
  while frame is not None:
    if frame.f_globals.get('__name__') == _COMPILER:
      return True
    frame = frame.f_back
  return False
