"""Where files lie, how they are read, written whole, and told apart."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from medseg_jax.runtime.errors import InputError


def user_cache_folder() -> pathlib.Path:
  """Returns the user's cache folder for this program."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'medseg_jax'


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
  """Writes `content` to `path` and makes its folder where that is missing.

  The file appears, or is replaced, whole: a write that fails or is killed
  leaves what was there before.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_bytes(content)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike, form: str) -> Any:
  """Returns what a JSON file in UTF-8 holds; a byte order mark is read over.

  Args:
    path: the file.
    form: what it must hold, for messages, e.g. 'a list of names'.

  Raises:
    InputError: it is missing, cannot be read, or is not JSON.
  """
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text(encoding='utf-8-sig'))
  except OSError as error:
    raise InputError(
      f'{path}: cannot be read ({error.strerror}); allowed is a JSON file: '
      f'{form}'
    ) from error
  except ValueError as error:  # no JSON, or no text at all
    raise InputError(
      f'{path}: not JSON ({error}); allowed is {form}'
    ) from error


def stat_key(
  paths: Iterable[pathlib.Path], root: pathlib.Path, facts: Iterable[Any] = ()
) -> str:
  """Returns a hash of files, by path below `root`, size and time, and facts.

  The files are not read. A folder that moves and keeps the times of its files
  keeps its hashes.

  Args:
    paths: the files.
    root: the folder of their data set.
    facts: whatever else changes what is made of the files, of plain types.

  Raises:
    InputError: a file is no longer there.
  """
  lines = list(facts)
  for path in paths:
    try:
      stat = path.stat()
    except OSError as error:
      raise InputError(
        f'{path}: no longer there; the files of a data set must stay'
      ) from error
    lines.append((os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns))
  text = repr(lines).encode('utf-8', 'surrogateescape')
  return hashlib.sha256(text).hexdigest()
