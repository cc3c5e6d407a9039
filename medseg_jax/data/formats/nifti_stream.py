"""The bytes of a volume, inflated, and no more of them than it can hold."""

import contextlib
import gzip
import io
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medseg_jax.runtime import host_memory
from medseg_jax.runtime.errors import InputError

_DEFLATE_MOST = 1032  # times that deflate can shrink anything
_SMALL = 2**28  # bytes; less is not worth a look at the memory
# More than this behind the voxels is not read to its end for a checksum.
_MOST_BEHIND = 2**20


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields the file's bytes, inflated; what fails inside is an InputError."""
  with open_plain(path) as raw:
    begin = raw.read(2)
    raw.seek(0)
    if begin == b'\x1f\x8b':  # whatever the name says
      with gzip.GzipFile(fileobj=raw) as stream:
        yield stream
    else:
      yield raw


@contextlib.contextmanager
def open_plain(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields the file's bytes as they are; what fails inside is an InputError."""
  try:
    with open(path, 'rb') as raw:
      begin = raw.read(64)
      raw.seek(0)
      if not begin:
        raise InputError(f'{path}: an empty file; a volume is needed')
      if begin.startswith(b'version https://git-lfs'):
        raise InputError(
          f'{path}: a Git LFS pointer in place of the file; `git lfs pull` '
          'fetches the file itself'
        )
      yield raw
  except FileNotFoundError as error:
    raise InputError(f'{path}: no such file; a volume is needed') from error
  except EOFError as error:
    raise InputError(
      f'{path}: truncated (its compressed data end too early); allowed are '
      'complete files'
    ) from error
  except (OSError, zlib.error) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
      f'{path}: cannot be read ({reason}); allowed are complete files'
    ) from error


class _Inflated(io.RawIOBase):
  """What the rest of a file, a zlib or a gzip stream, inflates to."""

  def __init__(self, file: BinaryIO) -> None:
    self._file = file
    self._zlib = zlib.decompressobj(47)  # of either kind

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._zlib.eof:
      block = self._zlib.unconsumed_tail or self._file.read(2**16)
      found = self._zlib.decompress(block, len(buffer))
      if found:
        buffer[: len(found)] = found
        return len(found)
      if not block and not self._zlib.eof:
        raise EOFError
    return 0


def inflated(file: BinaryIO) -> BinaryIO:
  """Returns a stream of what the rest of a file inflates to."""
  return io.BufferedReader(_Inflated(file), 2**16)


class Deflating:
  """Writes into a file what it is given, as one zlib stream.

  Attributes:
    size: bytes that were written.

  Args:
    file: is not closed.
    level: of compression.
  """

  def __init__(self, file: BinaryIO, level: int) -> None:
    self.size = 0
    self._file = file
    self._zlib = zlib.compressobj(level)

  def write(self, block: bytes) -> None:
    self.size += self._file.write(self._zlib.compress(block))

  def close(self) -> None:
    self.size += self._file.write(self._zlib.flush())


def check_room(path: pathlib.Path, stream: BinaryIO, wanted: int) -> None:
  """Checks that a file can hold `wanted` bytes, before memory is taken for it.

  Raises:
    InputError: it cannot.
  """
  there = path.stat().st_size
  if not isinstance(getattr(stream, 'raw', None), io.FileIO):  # inflated
    there *= _DEFLATE_MOST
  if there < wanted:
    raise truncated(path, there, wanted)


def check_memory(path: pathlib.Path, wanted: int) -> None:
  """Checks that there is memory for a large volume.

  Raises:
    InputError: there is not; the system would end the program.
  """
  if wanted < _SMALL:
    return
  available = host_memory.available()
  if wanted > available:
    raise InputError(
      f'{path}: takes {wanted / 1e9:.3g} GB of memory, and '
      f'{available / 1e9:.3g} GB are available; allowed is what fits'
    )


def read_end(stream: BinaryIO) -> None:
  """Reads what little is behind the voxels.

  Only at its end gzip compares its checksum.
  """
  left = _MOST_BEHIND
  while left > 0 and (block := stream.read(left)):
    left -= len(block)


def truncated(path: pathlib.Path, there: int, wanted: int) -> InputError:
  """Returns the error of a file with `there` bytes of `wanted`."""
  return InputError(
    f'{path}: truncated, {there} bytes of {wanted}; allowed are complete files'
  )
