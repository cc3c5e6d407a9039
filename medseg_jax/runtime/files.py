"""Where files lie, how they are read, written whole, and told apart."""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

from medseg_jax.runtime.errors import (
  FileError,
  InputError,
  doing,
  explain,
  quote,
  shorten,
)

_MAX_NAME = 255  # bytes, on all the usual file systems
_MAX_DEPTH = 64
# NUL, and half characters but for those that stand for a byte of a file's name.
_NO_TEXT = re.compile('[\0\ud800-\udc7f\udd00-\udfff]')
_TOO_DEEP = f'nested deeper than {_MAX_DEPTH} levels'

# What says so, for messages.
WHERE_CACHES_LIE = (
  'config.data.cache_dir or the environment variable XDG_CACHE_HOME'
)
# What is remembered of the content of files, below the user's cache folder: a
# line a file, two hashes of 32 digits. A longer one begins anew.
REMEMBERED = 'content_hashes.txt'
MOST_REMEMBERED = 100_000_000  # bytes: a million and a half of files
_LINE = re.compile(rb'^([0-9a-f]{32}) ([0-9a-f]{32})$', re.MULTILINE)
# A file that was written so short a while ago may change once more and keep
# its time stamps, which tick: every 4 ms on many disks, every 2 s on some.
UNSETTLED_NS = 2_500_000_000
_remembering = threading.Lock()


def user_cache_folder() -> pathlib.Path:
  """Returns the user's cache folder for this program.

  Raises:
    InputError: nothing says where it is.
  """
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return expand_home(base, or_set=WHERE_CACHES_LIE) / 'medseg_jax'


def expand_home(path: str | os.PathLike, *, or_set: str) -> pathlib.Path:
  """Returns the path with the user's home folder in the place of `~`.

  Args:
    path: may begin with `~` or `~user`.
    or_set: what may be set to a folder in its place, for the message.

  Raises:
    InputError: there is no home folder.
  """
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:
    raise InputError(
      f'{path}: there is no such home folder (is the environment variable HOME '
      f'set?); set {or_set} to a whole path'
    ) from error


def check_writable(folder: str | os.PathLike) -> None:
  """Makes sure that a folder can be written, or made where it is missing.

  For programs that write late: makes nothing itself.

  Raises:
    InputError: it cannot, as far as one can see.
  """
  folder = pathlib.Path(folder)
  there = _nearest(folder)
  if not there.is_dir():
    raise InputError(
      f'{folder}: {"this" if there == folder else there} is a file; allowed is '
      'a folder, which is made where it is missing'
    )
  if not os.access(there, os.W_OK | os.X_OK):
    number = errno.EACCES
    with contextlib.suppress(OSError):
      if os.statvfs(there).f_flag & os.ST_RDONLY:
        number = errno.EROFS
    error = OSError(number, os.strerror(number), there)
    raise FileError(explain(error, 'write', folder), number)


def _nearest(path: pathlib.Path) -> pathlib.Path:
  """Returns the nearest of a path and its parents that is there."""
  with doing('use', path):
    for there in (path, *path.parents):
      try:
        there.stat()
        return there
      except NotADirectoryError:
        continue  # a file further up
      except FileNotFoundError:
        if there.is_symlink():
          raise  # to nothing
  return pathlib.Path()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a name beside `path`; what the block writes there becomes `path`.

  A file or a folder, made where its folder is missing. It appears, or is
  replaced, whole and on the disk: a block that fails, a kill or a machine that
  loses its power leaves what was there before. A folder is replaced only where
  it is empty.

  Raises:
    FileError: the system refuses; the line names `path`.
  """
  path = pathlib.Path(path)
  temporary = _beside(path)
  with doing('write', path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield temporary
      flush(temporary)
      os.replace(temporary, path)
      flush_names(path.parent)
    finally:
      if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
      else:
        with contextlib.suppress(OSError):
          temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
  """Writes `content` to `path`, whole (see `replacing`)."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def flush(path: str | os.PathLike) -> None:
  """Returns when a file, or a folder with all in it, is on the disk.

  What is renamed into place has to be there first. Otherwise a machine that
  loses its power can leave a file of the right name and size, full of zeros.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    for inner in path.iterdir():
      flush(inner)
    flush_names(path)
  elif not path.is_symlink():
    _sync(path)


def flush_names(folder: str | os.PathLike) -> None:
  """Returns when the names in a folder are on the disk, where that can be.

  Some file systems cannot flush a folder, and do not need to.
  """
  with contextlib.suppress(OSError):
    _sync(folder)


def _sync(path: str | os.PathLike) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
      raise  # but not where the file system has no such thing
  finally:
    os.close(handle)


def _beside(path: pathlib.Path) -> pathlib.Path:
  """Returns a hidden name of this process for what is to become `path`."""
  ending = f'.{os.getpid()}.tmp'
  # A name that just fits leaves no room for more.
  start = os.fsencode(path.name)[: _MAX_NAME - len(ending) - 1]
  return path.with_name(f'.{os.fsdecode(start)}{ending}')


def read_json(path: str | os.PathLike, form: str) -> Any:
  """Returns what a JSON file in UTF-8 holds; a byte order mark is read over.

  Args:
    path: the file.
    form: what it must hold, for messages, e.g. 'a list of names'.

  Raises:
    InputError: it is missing, cannot be read, or is not JSON (see
      `parse_json`).
  """
  path = pathlib.Path(path)
  try:
    if path.exists() and not (path.is_file() or path.is_dir()):
      raise InputError(f'{path}: no plain file; allowed is a JSON file: {form}')
    content = path.read_bytes()
  except (OSError, ValueError) as error:  # ValueError: a NUL in the name
    if isinstance(error, InputError):
      raise
    raise InputError(
      f'{path}: cannot be read ({getattr(error, "strerror", error)}); allowed '
      f'is a JSON file: {form}'
    ) from error
  try:
    return parse_json(content)
  except ValueError as error:
    raise InputError(
      f'{path}: not JSON ({error}); allowed is {form}'
    ) from error


def parse_json(content: bytes) -> Any:
  """Returns what JSON in UTF-8 holds, of a size that later work can bear.

  Raises:
    ValueError: it is not JSON; it nests deeper than anything of use; a number
      is not finite or beyond 64 bits; a text has characters that no file has
      in its name, and no terminal shows. The message is short, and one line.
  """
  try:
    value = json.loads(
      content.decode('utf-8-sig'),
      parse_int=_whole_number,
      parse_float=_number,
      parse_constant=_number,
    )
  except RecursionError:
    raise ValueError(_TOO_DEEP) from None
  except UnicodeDecodeError as error:
    raise ValueError(f'no UTF-8 at byte {error.start}') from None
  level = [value]
  for _ in range(_MAX_DEPTH):
    inner = []
    for item in level:
      if isinstance(item, dict):
        inner += [*item, *item.values()]
      elif isinstance(item, list):
        inner += item
      elif isinstance(item, str):
        _check_text(item)
    if not inner:
      return value
    level = inner
  raise ValueError(_TOO_DEEP)


def _whole_number(text: str) -> int:
  if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
    raise ValueError(f'the number {shorten(text, 30)} is beyond 64 bits')
  return int(text)


def _number(text: str) -> float:
  number = float(text)
  if not math.isfinite(number):
    raise ValueError(f'the number {shorten(text, 30)} is not finite')
  return number


def _check_text(text: str) -> None:
  if _NO_TEXT.search(text):
    raise ValueError(f'{quote(text)} has characters that are no text')


def content_hash(path: str | os.PathLike) -> str:
  """Returns a hash of the bytes of a file, 32 hexadecimal digits.

  Each content is read once, also over runs: its hash is remembered with path,
  inode, size and both time stamps of the file. A program can set the time of
  modification to what it was, but not the time at which that was done (ctime),
  so a file that was replaced or written to is read again whatever it looks
  like. Where nothing can be written to the user's cache folder the hashes are
  remembered until the process ends. Of use in several threads.

  Raises:
    InputError: it is no longer there, cannot be read, or is no file.
  """
  path = os.path.abspath(path)
  try:
    before = os.stat(path)
    if not stat.S_ISREG(before.st_mode):
      raise InputError(f'{path}: not a file; only files have a content to read')
    key = _status_key(path, before)
    known = _known_hashes(_remembered())
    if key in known:
      return known[key]
    began = time.time_ns()
    with open(path, 'rb') as file:
      # A third slower than SHA-256 on processors with instructions for that,
      # and several times as fast on all others.
      digest = hashlib.file_digest(
        file, functools.partial(hashlib.blake2b, digest_size=16)
      ).hexdigest()
      after = os.fstat(file.fileno())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(
      f'{path}: no longer there; the files of a data set must stay'
    ) from error
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read ({error.strerror or error}); the content of '
      'every file of a data set is needed'
    ) from error
  changed = max(after.st_ctime_ns, after.st_mtime_ns)
  if _status_key(path, after) == key and began - changed > UNSETTLED_NS:
    _remember(key, digest)
  return digest


def _status_key(path: str, status: os.stat_result) -> str:
  """Returns what a content is remembered under."""
  facts = (
    os.fsencode(path),
    status.st_ino,
    status.st_size,
    status.st_mtime_ns,
    status.st_ctime_ns,
  )
  return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _remembered() -> pathlib.Path | None:
  """Returns the file that remembers contents; None where none can be."""
  try:
    return user_cache_folder() / REMEMBERED
  except InputError:  # there is no home folder
    return None


@functools.cache
def _known_hashes(path: pathlib.Path | None) -> dict[str, str]:
  """Returns what earlier runs remembered, for this one to add to.

  A line that a killed run or two that wrote at once spoiled counts as none.
  """
  if path is None:
    return {}
  try:
    if path.stat().st_size > MOST_REMEMBERED:
      path.unlink()
    text = path.read_bytes()
  except OSError:
    return {}
  return {key.decode(): found.decode() for key, found in _LINE.findall(text)}


def _remember(key: str, digest: str) -> None:
  path = _remembered()
  with _remembering:
    _known_hashes(path)[key] = digest
    if path is None:
      return
    # Not to be able to write it is no error: then it is read again next time.
    with contextlib.suppress(OSError):
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(path, 'ab', buffering=0) as file:
        file.write(f'{key} {digest}\n'.encode())


def files_key(
  paths: Iterable[pathlib.Path], root: pathlib.Path, facts: Iterable[Any] = ()
) -> str:
  """Returns a hash of files, by path below `root` and content, and of facts.

  Size and time alone would not do: tools that copy, unpack and synchronise set
  the time to what it was elsewhere, and masks of one shape have one size. The
  content costs a reading of files that are new or changed (`content_hash`),
  which are about to be read anyway, and keeps the hashes of a data set that is
  moved or copied, whatever becomes of its times.

  Args:
    paths: the files.
    root: the folder of their data set.
    facts: whatever else changes what is made of the files, of plain types.

  Raises:
    InputError: a file is no longer there, or cannot be read.
  """
  lines = list(facts)
  lines += [(os.path.relpath(path, root), content_hash(path)) for path in paths]
  text = repr(lines).encode('utf-8', 'surrogateescape')
  return hashlib.sha256(text).hexdigest()
