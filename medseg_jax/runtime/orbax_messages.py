"""Keeps what goes wrong in Orbax's threads from being printed.

The failure itself is raised in the main thread and told there, once. What comes
up besides are its traces: log records, tasks that nobody waited for any more,
coroutines that the collector of garbage finds, answers to a closed event loop.
"""

import logging
import sys
import types
import warnings

_LOGGERS = ('absl', 'asyncio', 'root')


def silence() -> None:
  """Silences Orbax in this process, and leaves all else as it is."""
  for name in _LOGGERS:
    logger = logging.getLogger(None if name == 'root' else name)
    if _not_orbax not in logger.filters:
      logger.addFilter(_not_orbax)
  warnings.filterwarnings(
    'ignore', 'coroutine .* was never awaited', RuntimeWarning
  )
  if getattr(sys.unraisablehook, '__name__', '') != _unraisable.__name__:
    global _other_hook
    _other_hook, sys.unraisablehook = sys.unraisablehook, _unraisable


_other_hook = sys.unraisablehook


def _not_orbax(record: logging.LogRecord) -> bool:
  error = record.exc_info[1] if record.exc_info else None
  return 'orbax' not in record.pathname and not _is_of_orbax(error)


def _unraisable(unraisable) -> None:
  if not _is_of_orbax(unraisable.exc_value):
    _other_hook(unraisable)


def _is_of_orbax(error: BaseException | None) -> bool:
  """Returns whether Orbax, or TensorStore on its behalf, raised an error."""
  if error is None:
    return False
  if isinstance(error, RuntimeError) and str(error) == 'Event loop is closed':
    return True
  return 'tensorstore' in str(error).lower() or any(
    'orbax' in code.co_filename for code in _codes(error.__traceback__)
  )


def _codes(traceback: types.TracebackType | None):
  while traceback is not None:
    yield traceback.tb_frame.f_code
    traceback = traceback.tb_next
