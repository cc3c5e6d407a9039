"""What formats share whose header is text: its lines, the file that it names.

Their world is Left, Posterior, Superior, and voxels may lie in another file.
"""

import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from medseg_jax.data.formats.nifti_stream import truncated
from medseg_jax.runtime.errors import InputError, quote

# Left, Posterior, Superior against Right, Anterior, Superior.
_SIGNS = np.array([[-1.0], [-1.0], [1.0], [1.0]])
_LONGEST = 2**20  # bytes of a header; extra fields make some of them long


def read_line(path: pathlib.Path, stream: BinaryIO) -> str | None:
  """Returns the next line of a header, without its end; None at the end.

  Raises:
    InputError: no header is so long.
  """
  line = stream.readline(_LONGEST)
  if stream.tell() > _LONGEST or len(line) == _LONGEST:
    raise InputError(
      f'{path}: a damaged header, longer than {_LONGEST} bytes; allowed are '
      'complete files'
    )
  # Names of files have any bytes.
  return line.decode('utf-8', 'surrogateescape').rstrip() if line else None


def mistaken(
  path: pathlib.Path, stream: BinaryIO, kind: str, suffixes: Iterable[str]
) -> InputError:
  """Returns the error of a file that is of another kind than its name says."""
  stream.seek(0)
  return InputError(
    f'{path}: no {kind}, it begins with {stream.read(8)!r}; allowed are '
    f'{" and ".join(suffixes)}'
  )


def damaged(path: pathlib.Path, kind: str, reason: str) -> InputError:
  """Returns the error of a header that makes no sense."""
  return InputError(
    f'{path}: a damaged header of {kind} ({reason}); allowed are complete files'
  )


def begin_of_last(place: pathlib.Path, size: int) -> int:
  """Returns where the last `size` bytes of a file begin.

  Raises:
    InputError: it has fewer.
  """
  there = place.stat().st_size
  if there < size:
    raise truncated(place, there, size)
  return there - size


def beside(path: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file that a header names.

  Raises:
    InputError: no file can be called so, or they are several.
  """
  if name.split()[0:1] == ['LIST'] or '%' in name:
    raise InputError(
      f'{path}: voxels in several files ({quote(name, 60)}); allowed is one '
      'file of voxels'
    )
  if not name or '\0' in name:
    raise InputError(
      f'{path}: names {quote(name)} as the file of its voxels; allowed is the '
      'name of one beside it'
    )
  return path.parent / name


def check_there(path: pathlib.Path, place: pathlib.Path) -> None:
  """Checks that the file that a header names is there.

  Raises:
    InputError: it is not.
  """
  if not place.is_file():
    raise InputError(
      f'{path}: its voxels are to lie in {place}, which is no file; allowed is '
      'a header with the file that it names'
    )


def check_unit(path: pathlib.Path, units: Iterable[str]) -> None:
  """Checks that the sizes of a header are mm, which other programs assume.

  Raises:
    InputError: they are not.
  """
  for unit in units:
    if unit.strip().lower() not in (
      *('mm', 'millimeter', 'millimeters', 'millimetre', 'millimetres'),
      *('', '?', '???', 'unknown', 'none'),
    ):
      raise InputError(f'{path}: sizes in {quote(unit)}; allowed is mm')


def affine_of(directions: np.ndarray, origin: np.ndarray) -> np.ndarray:
  """Returns `[4, 4]` to Right, Anterior, Superior.

  Args:
    directions: `[3, 3]`, a row of mm to L, P, S for each axis of the file.
    origin: the first voxel, in the same world.
  """
  affine = np.eye(4)
  affine[:3, :3] = directions.T
  affine[:3, 3] = origin
  return turned(affine)


def turned(affine: np.ndarray) -> np.ndarray:
  """Returns `[4, 4]` to the other of the two worlds."""
  return _SIGNS * affine + 0.0  # no -0.0


def digits(values: Iterable[float], between: str = ' ') -> str:
  """Returns numbers as text that reads as the very same numbers."""
  return between.join(repr(float(value) + 0.0) for value in values)
