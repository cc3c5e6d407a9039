"""Cases that were read for one purpose, handed on to the next."""

import threading
from collections.abc import Callable

from medseg_jax.data.case import Case
from medseg_jax.runtime import host_memory

SHARE = 0.25  # of the memory that is available when the first case is kept


class AlreadyRead:
  """Keeps cases, as far as memory allows, until they are taken, once.

  The survey, or the comparison of cases, reads every case of a new data set,
  and the preprocessing wants the same ones a moment later. Keys are those of
  `Source.case_key`, so that a file that was changed in between is read again.
  Of use in several threads.
  """

  def __init__(self):
    self._cases: dict[str, Case] = {}
    self._room: float | None = None
    self._lock = threading.Lock()

  def keep(self, key: str, case: Case) -> None:
    """Keeps the case, unless there is no room for it."""
    size = case.image.nbytes + (0 if case.label is None else case.label.nbytes)
    with self._lock:
      if self._room is None:
        self._room = SHARE * host_memory.available()
      if size <= self._room:
        self._room -= size
        self._cases[key] = case

  def take(self, key_fn: Callable[[], str]) -> Case | None:
    """Returns the case and forgets it; None where it was not kept.

    Args:
      key_fn: returns its key, which costs a reading of new files; asked only
        where cases are kept.
    """
    if not self._cases:
      return None
    key = key_fn()
    with self._lock:
      return self._cases.pop(key, None)

  def clear(self) -> None:
    """Forgets all cases that nobody took."""
    with self._lock:
      self._cases.clear()
