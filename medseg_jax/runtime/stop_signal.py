"""Stopping between two steps when the user or the scheduler asks for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class StopRequest:
  """Says whether a stop was asked for, and by which signal."""

  def __init__(self):
    self.signal: signal.Signals | None = None

  def __bool__(self) -> bool:
    return self.signal is not None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
  """Yields a StopRequest that SIGTERM and Ctrl-C turn true.

  The second Ctrl-C interrupts at once. Handlers can only be set in the main
  thread; in another one the request stays false.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield request
    return

  def ask(number, frame):
    if request.signal == signal.SIGINT == number:
      raise KeyboardInterrupt
    request.signal = signal.Signals(number)

  before = {
    number: signal.signal(number, ask)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield request
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
