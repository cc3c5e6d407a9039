"""Cases that failed while all others were done, to be named at the end."""

import pathlib
import traceback
from collections.abc import Iterable

from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources.volume_files import Failure
from medseg_jax.runtime.errors import InputError, counted


class Failures:
  """What failed, and why.

  Keeps texts only: an error would hold on to the arrays that it was met with.
  """

  def __init__(self, found: Iterable[Failure] = ()):
    self.found = list(found)
    self._traceback = ''

  def add(
    self, error: Exception, *, case: str, file: pathlib.Path | None = None
  ) -> None:
    """Adds a case.

    Args:
      error: what was met with.
      case: its name.
      file: where it is read from, to begin the reason with; None where the
        name is all there is.
    """
    where = case if file is None else str(file)
    text = ' '.join(str(error).split())
    if isinstance(error, MemoryError):
      text = f'{where}: there is not enough memory for it {text}'.rstrip()
    elif isinstance(error, OSError) and not isinstance(error, InputError):
      text = f'{where}: {error.strerror or text}'
    elif not isinstance(error, InputError):
      text = f'{where}: {type(error).__name__}: {text}'
      self._traceback = self._traceback or traceback.format_exc()
    elif text.startswith((f'{case} ', f'{case}: ')):
      text = where + text.removeprefix(case)  # the file says more
    elif where not in text:
      text = f'{where}: {text}'
    name = case if file is None else file.name
    self.found.append(Failure(name, text))

  def tell(self, total: int, noun: str, done: str) -> None:
    """Raises InputError where there are any, after a line for each.

    Args:
      total: the number of cases, those that failed among them.
      noun: what they are.
      done: what was to be done with them, and of these was not.
    """
    if not self.found:
      return
    for failure in self.found:
      print(f'failed    {failure.reason}')
    first, names = self.found[0], [failure.name for failure in self.found]
    text = f'not {done}: {len(names)} of {counted(total, noun)}'
    text += (
      f' ({name_some(names, 10)}); the first: ' if len(names) > 1 else ': '
    )
    error = InputError(text + first.reason)
    if self._traceback:  # for --debug
      error.add_note(self._traceback)
    raise error
