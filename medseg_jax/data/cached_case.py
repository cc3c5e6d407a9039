"""The folder of one preprocessed case: written whole, and never believed.

`image.npy`, `label.npy`, where asked for `voxels.npy`, and `case.json`, which
says what they are. A folder is written under another name and then renamed, so
it is there whole or not at all. It is not flushed to the disk first, which
would take long for many small cases; instead each file has a checksum, so what
a crash of the machine, a bad disk or a person left there is noticed.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from medseg_jax.runtime.errors import InputError

ENTRY = 'case.json'
MOST_BYTES = 10_000_000  # of an entry; a thousandth is usual
# Writing a case takes seconds. What is older was left by a run that was killed.
PARTIAL = 'partial-'
PARTIAL_SECONDS = 3600.0
# What a file that is not as it was written leads to. Other errors (too many
# open files, no permission) say nothing of the file.
_DAMAGE = (
  errno.ENOENT,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EIO,
  errno.ESTALE,
)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class Damaged(Exception):
  """A file of a case is not what was written: has to be made anew."""


def write(
  place: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  facts: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes the folder of a case and returns its entry, as `read_entry` does.

  A whole case that is there already stays. Whoever has files of a damaged one
  mapped keeps them.

  Args:
    place: the folder.
    arrays: by kind; each becomes `KIND.npy`.
    facts: for the entry, of types that JSON gives back as they are.

  Raises:
    InputError: it cannot be written.
  """
  entry = {**facts, 'files': {}}
  with blame_disk(place), _new_folder(place) as partial:
    for kind, array in arrays.items():
      path = partial / f'{kind}.npy'
      np.save(path, array)
      entry['files'][path.name] = [path.stat().st_size, _checksum(path)]
    entry['check'] = _check_of(entry)
    (partial / ENTRY).write_text(json.dumps(entry))
  return entry


def read_entry(place: pathlib.Path) -> dict[str, Any] | None:
  """Returns the facts of a case and its files; None where there is no such.

  Nothing of it is believed unless its own checksum is right and all files have
  the size they were written with; what these hold is not looked at.
  """
  try:
    with open(place / ENTRY, 'rb') as file:
      entry = json.loads(file.read(MOST_BYTES))
    if entry['check'] != _check_of(entry):
      return None
    for name, (size, _) in entry['files'].items():
      if (place / name).stat().st_size != size:
        return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None
  return entry


def load(
  place: pathlib.Path, entry: Mapping[str, Any], kind: str, *, check: bool
) -> np.ndarray:
  """Returns an array of a case, memory-mapped.

  Args:
    place: its folder.
    entry: of the case.
    kind: of the array.
    check: whether to compare its checksum, which reads all of it.

  Raises:
    Damaged: the file is not what was written.
    InputError: it cannot be read, whatever it holds.
  """
  path = place / f'{kind}.npy'
  try:
    if check and _checksum(path) != entry['files'][path.name][1]:
      raise Damaged(f'another checksum of {path.name}')
    return np.load(path, mmap_mode='r')
  except (EOFError, ValueError) as error:
    raise Damaged(f'{path.name}: {error}') from error
  except OSError as error:
    reason = error.strerror or str(error)
    if error.errno in _DAMAGE:
      raise Damaged(f'{path.name}: {reason}') from error
    raise InputError(
      f'cannot read the cache {path}: {reason}; config.data.cache_dir may name '
      'another folder'
    ) from error


def remove_old_partials(folder: pathlib.Path) -> None:
  """Removes what killed runs left, but nothing that a live one may write."""
  for partial in folder.glob(f'{PARTIAL}*'):
    with contextlib.suppress(OSError):  # its run has just renamed it
      if time.time() - partial.stat().st_mtime > PARTIAL_SECONDS:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def blame_disk(place: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of the block into one line on the cache."""
  try:
    yield
  except OSError as error:
    # NumPy tells a full disk in words, without an error number.
    reason = error.strerror or f'the disk may be full ({error})'
    raise InputError(
      f'cannot write the cache {place}: {reason}; mend that, or set '
      'config.data.cache_dir to another folder'
    ) from error


def _checksum(path: pathlib.Path) -> int:
  """Returns the CRC-32 of a file: several GB a second, and no bit flips by."""
  return zlib.crc32(np.memmap(path, np.uint8, 'r'))


def _check_of(entry: Mapping[str, Any]) -> int:
  """Returns the CRC-32 of what an entry says, but for `check` itself."""
  facts = {key: value for key, value in entry.items() if key != 'check'}
  return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


@contextlib.contextmanager
def _new_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder that becomes `place` when the block has ended."""
  partial = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=place.parent))
  try:
    partial.chmod(0o755)  # mkdtemp hides it from others who share the cache
    yield partial
    while not _renamed(partial, place):
      if _is_whole(place):
        return  # another run was faster, and wrote the same
      _move_away(place)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _renamed(partial: pathlib.Path, place: pathlib.Path) -> bool:
  """Renames a folder; returns whether nothing was in the way."""
  try:
    os.replace(partial, place)
  except OSError as error:
    if error.errno not in _IN_THE_WAY:
      raise
    return False
  return True


def _move_away(place: pathlib.Path) -> None:
  """Removes what lies at `place`, at once for all who look there."""
  aside = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=place.parent))
  with contextlib.suppress(FileNotFoundError):  # another run has moved it away
    os.replace(place, aside / 'damaged')
  shutil.rmtree(aside, ignore_errors=True)


def _is_whole(place: pathlib.Path) -> bool:
  entry = read_entry(place)
  try:
    return entry is not None and all(
      _checksum(place / name) == check
      for name, (_, check) in entry['files'].items()
    )
  except (OSError, ValueError):
    return False
