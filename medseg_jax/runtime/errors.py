"""The exceptions that `main` turns into one line."""

import contextlib
import difflib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence

_LONGEST_NAME = 'names of 255 bytes at most in a folder'
_HELP = {
  errno.ENOSPC: 'free space on that disk, or name a folder on another one',
  errno.EDQUOT: "free space within the user's quota, or name another folder",
  errno.EFBIG: 'raise the limit on the size of files (ulimit -f), or name a '
  'folder on another disk',
  errno.EACCES: 'change the permissions, or name another folder',
  errno.EPERM: 'change the permissions, or name another folder',
  errno.EROFS: 'name a folder that can be written',
  errno.ENOENT: 'check the name',
  errno.EISDIR: 'a folder is where a file has to be; move it away, or name '
  'another file',
  errno.ENOTDIR: 'a file is where a folder has to be; move it away, or name '
  'another folder',
  errno.EEXIST: 'a file is in the way; move it away, or name another place',
  errno.ENOTEMPTY: 'what is there is in the way; move it away, or name another '
  'place',
  errno.ENAMETOOLONG: f'allowed are {_LONGEST_NAME}; take a shorter one',
  errno.ELOOP: 'links there lead in a circle; remove one',
  errno.EXDEV: 'both places have to be on one disk',
  errno.EMFILE: 'raise the number of open files (ulimit -n)',
  errno.ENFILE: 'the whole machine has too many files open; end other programs',
  errno.ENOMEM: 'end other programs, or take smaller pieces of work',
  errno.EIO: 'the disk or the network fails; look at what the system logs',
  errno.ESTALE: 'the network drive was taken away; mount it anew',
  errno.ETXTBSY: 'another program uses it',
  errno.EBUSY: 'another program uses it',
  errno.EPIPE: 'the program that reads this output has ended',
}
_SHORT = 60
_LONGEST_PATH = 500


class InputError(ValueError):
  """Bad input: its message is one line that says what, where, what is allowed.

  `main` prints the line and exits with status 1. Library functions raise plain
  `ValueError` or `TypeError` for misuse by a programmer instead.
  """


class InputErrors(InputError):
  """Several problems of one input; its message is about the first.

  Attributes:
    problems: a line for each.
  """

  def __init__(self, problems: Sequence[str]):
    more = len(problems) - 1
    super().__init__(
      problems[0]
      + f' ({counted(more, "more problem")}; --mode=plan lists all)'
      * (more > 0)
    )
    self.problems = tuple(problems)


class FileError(InputError, OSError):
  """The system refused to read or write a file; the message says what helps.

  An `OSError` too, with its number, for those who handle that.
  """

  def __init__(self, message: str, number: int | None = None):
    super().__init__(message)
    self.errno = number

  def __str__(self) -> str:
    return str(self.args[0])


class Stopped(KeyboardInterrupt):
  """A signal ended the run at a place where it can: between two steps, say.

  Like a Ctrl-C it is none of the errors that a program may go on after.

  Attributes:
    signal: its number.
  """

  def __init__(self, message: str, signal: int):
    super().__init__(message)
    self.signal = signal


@contextlib.contextmanager
def doing(
  what: str, path: str | os.PathLike, remedy: str = ''
) -> Iterator[None]:
  """Turns an OSError of the block into one line that names the file.

  Args:
    what: what is being done to it, such as 'write' or 'write the mask'.
    path: the file or folder, if the error itself names none.
    remedy: what helps, where that is known better here than from the kind of
      error.

  Raises:
    FileError: for each OSError but one that has a line already.
  """
  try:
    yield
  except InputError:
    raise
  except OSError as error:
    text = explain(error, what, path, remedy)
    raise FileError(text, error.errno) from error


def explain(
  error: OSError,
  what: str = '',
  path: str | os.PathLike | None = None,
  remedy: str = '',
) -> str:
  """Returns what the system refused in one line: which file, why, what helps.

  Args:
    error: of the system.
    what: what was being done, such as 'write the mask'; '' where nobody knows.
    path: of the file; None where nobody but perhaps the error knows.
    remedy: what helps; by default what helps against errors of this kind.
  """
  if isinstance(error, InputError):
    return str(error)
  named = None if isinstance(error.filename, int) else error.filename
  reason = error.strerror or str(error) or type(error).__name__
  place = path if path is not None else named
  text = f'{_short_path(place)}: ' if place is not None else ''
  text += f'cannot {what} ({reason}' if what else f'{reason}'
  if named is not None and place is not named and _other(named, place):
    text += f': {_short_path(named)}'
  text += ')' if what else ''
  remedy = remedy or _HELP.get(error.errno, '')
  return f'{text}; {remedy}' if remedy else text


def counted(count: int, noun: str, plural: str = '') -> str:
  """Returns '1 case' or '3 cases'; '2 patches' where that is the `plural`."""
  return f'{count} {noun if count == 1 else plural or f"{noun}s"}'


def suggest(word: object, known: Iterable[str], prefix: str = '') -> str:
  """Returns '; did you mean NAME?', or '' where no known name is alike.

  Args:
    word: what was written.
    known: the names that there are.
    prefix: goes before the name.
  """
  near = difflib.get_close_matches(str(word), [*known], n=1)
  return f'; did you mean {prefix}{near[0]}?' if near else ''


def quote(value: object, longest: int = _SHORT) -> str:
  """Returns `repr(value)`, shortened in the middle, for a message."""
  return shorten(repr(value), longest)


def quote_json(value: object, longest: int = 2 * _SHORT) -> str:
  """Returns a value as a JSON file has it, shortened, for a message."""
  return shorten(json.dumps(value, default=repr), longest)


def shorten(text: str, longest: int) -> str:
  """Returns `text` without its middle where it has too many characters."""
  if len(text) <= longest:
    return text
  head = (longest - 3) * 2 // 3
  return f'{text[:head]}...{text[head + 3 - longest :]}'


def _short_path(path: str | bytes | os.PathLike) -> str:
  return shorten(os.fsdecode(path), _LONGEST_PATH)


def _other(named: str | bytes, place: str | os.PathLike) -> bool:
  """Returns whether an error is of another file than what is being done.

  Not where that is the name under which the file is being written.
  """
  found, wanted = os.fsdecode(named), os.fsdecode(place)
  hidden = os.path.basename(found).startswith(
    f'.{os.path.basename(wanted)[:9]}'
  )
  beside = os.path.dirname(found) == os.path.dirname(wanted)
  return found != wanted and not (hidden and beside)
