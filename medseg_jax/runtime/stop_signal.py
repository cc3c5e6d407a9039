"""Stopping where nothing is lost, when the user or the scheduler asks for it.

An exception out of a signal's handler comes up wherever Python happens to be:
in the middle of an import, where it leaves half a module, or in the collector
of garbage, which drops it. So the handlers here raise nothing. The first signal
sets a flag, and the program looks at it wherever it can end: see `check`.

Python runs handlers only between two of its own instructions. A thread that C
wakes at once answers in the meantime, and ends the process at the second signal
even where the program is busy compiling.
"""

import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

from medseg_jax.runtime.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal and a launcher may both pass one Ctrl-C on.
_SECONDS_OF_ONE = 0.5
_SECONDS_BETWEEN_LOOKS = 0.5


class StopRequest:
  """Says whether a stop was asked for, and by which signal."""

  def __init__(self):
    self.signal: signal.Signals | None = None

  def __bool__(self) -> bool:
    return self.signal is not None


class _Process:
  """What this process knows of signals."""

  request: StopRequest | None = None  # None: they are not noted
  answered_elsewhere = 0  # blocks that look at the request themselves
  checks = 0  # that the program made
  quiet = False  # another process of the run speaks for this one


def check() -> None:
  """Raises Stopped where a signal was noted, for places where a run may end.

  Not in a block of `stop_on_signal`, which ends in its own way. Cheap: call it
  with every case. From any thread. A program of several processes that does not
  call it for long is taken for one that hangs (see `watchdog`).
  """
  _Process.checks += 1  # threads may lose one: it is another number anyhow
  request = _Process.request
  if request and not _Process.answered_elsewhere:
    raise Stopped(f'stopped by {request.signal.name}', request.signal)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
  """Yields a StopRequest that SIGTERM and Ctrl-C turn true, or have turned.

  In the block `check` raises nothing: the block looks at the request. The
  second signal ends the process. Handlers can only be set in the main thread;
  in another one the request stays false unless they were set before.
  """
  with noted():
    _Process.answered_elsewhere += 1
    try:
      request = _Process.request
      yield StopRequest() if request is None else request
    finally:
      _Process.answered_elsewhere -= 1


@contextlib.contextmanager
def noted() -> Iterator[None]:
  """Notes SIGTERM and Ctrl-C in the block, in place of whatever they did."""
  undo = note()
  try:
    yield
  finally:
    undo()


def note() -> Callable[[], None]:
  """Notes SIGTERM and Ctrl-C from now on; returns what undoes it.

  Does nothing where they are noted already, and outside of the main thread.
  """
  if (
    _Process.request is not None
    or threading.current_thread() is not threading.main_thread()
  ):
    return lambda: None
  request = _Process.request = StopRequest()
  wakes, woken = os.pipe()[::-1]
  os.set_blocking(wakes, False)
  watcher = threading.Thread(
    target=_watch, args=(woken, request), name='signals', daemon=True
  )
  with held():  # a thread inherits what is blocked; the signals are not for it
    watcher.start()
  before_fd = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)

  def ask(number, frame):
    request.signal = request.signal or signal.Signals(number)

  before = {number: signal.signal(number, ask) for number in SIGNALS}
  # Whoever started this process may have held them until now.
  signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

  def undo():
    for number, handler in before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(before_fd)
    os.write(wakes, b'\0')
    watcher.join()
    os.close(wakes)
    _Process.request = None

  return undo


@contextlib.contextmanager
def held() -> Iterator[None]:
  """Holds signals back in the block; they come when it has ended.

  Also in a program that takes this one's place, until it notes them.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_completed(futures: Iterable[Future]) -> Iterator[Future]:
  """Yields each when it is done, as a signal need not wait for.

  Waiting is no progress, as `check` would be.

  Raises:
    Stopped: see `check`.
  """
  left = 0
  done: queue.SimpleQueue[Future] = queue.SimpleQueue()
  for future in futures:
    future.add_done_callback(done.put)
    left += 1
  while left:
    found = None
    with contextlib.suppress(queue.Empty):
      found = done.get(timeout=_SECONDS_BETWEEN_LOOKS)
    if asked():
      check()
    if found is not None:
      left -= 1
      yield found


def be_quiet() -> None:
  """Makes this process answer signals without a word."""
  _Process.quiet = True


def num_checks() -> int:
  """Returns a number that is another one after each `check`."""
  return _Process.checks


def ask() -> None:
  """Asks the program to stop as a SIGTERM would, where signals are noted."""
  request = _Process.request  # once: another thread may take it away
  if request is not None:
    request.signal = request.signal or signal.SIGTERM


def asked() -> bool:
  """Returns whether a signal was noted."""
  return bool(_Process.request)


def _watch(woken: int, request: StopRequest) -> None:
  """Answers signals as they come; ends the process at the second of a kind."""
  first: dict[int, float] = {}
  try:
    while numbers := os.read(woken, 64):
      for number in numbers:
        if not number:
          return
        if number not in SIGNALS:
          continue
        now = time.monotonic()
        if number not in first:
          first[number] = now
          request.signal = request.signal or signal.Signals(number)
          name = signal.Signals(number).name
          _say(
            f'{name}: stopping where nothing is lost; a second one ends at once'
          )
        elif now - first[number] >= _SECONDS_OF_ONE:
          _say('ended at once')
          # Nothing else is sure to end a process that is in the middle of C.
          os._exit(128 + number)
  finally:
    os.close(woken)


def _say(line: str) -> None:
  if _Process.quiet:
    return
  # Not print: the main thread may hold the stream, and be cut off with it.
  with contextlib.suppress(OSError):
    os.write(2, f'{line}\n'.encode())
