"""MetaImage: .mha, or .mhd with the voxels in a file beside it.

It is read as ITK does. What is a comment to ITK is one here: the name of the
orientation, the centre of rotation, and a function of the intensities.
"""

import contextlib
import math
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from medseg_jax.data.formats.header_lines import (
  affine_of,
  begin_of_last,
  beside,
  check_there,
  check_unit,
  damaged,
  digits,
  mistaken,
  read_line,
  turned,
)
from medseg_jax.data.formats.nifti_geometry import Grid, file_shape, read_affine
from medseg_jax.data.formats.nifti_header import File, volume_dims
from medseg_jax.data.formats.nifti_stream import inflated, open_plain
from medseg_jax.runtime.errors import InputError, quote, shorten

SUFFIXES = ('.mha', '.mhd')
_TYPES = {
  'MET_CHAR': 'i1', 'MET_UCHAR': 'u1', 'MET_SHORT': 'i2', 'MET_USHORT': 'u2',
  'MET_INT': 'i4', 'MET_UINT': 'u4', 'MET_LONG': 'i4', 'MET_ULONG': 'u4',
  'MET_LONG_LONG': 'i8', 'MET_ULONG_LONG': 'u8', 'MET_FLOAT': 'f4',
  'MET_DOUBLE': 'f8',
}  # fmt: skip
_DATA = 'ElementDataFile'  # the last line of a header
# Names of the same, the first one that is there counts.
_MATRIX = ('TransformMatrix', 'Rotation', 'Orientation')
_ORIGIN = ('Offset', 'Position', 'Origin')
_SPACING = ('ElementSpacing', 'ElementSize')
_BIG = ('BinaryDataByteOrderMSB', 'ElementByteOrderMSB')


def find_voxels(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that holds the voxels, which may be this one.

  Raises:
    InputError: no MetaImage header, or several files.
  """
  with open_plain(path) as stream:
    return _place(path, _read_fields(path, stream))


@contextlib.contextmanager
def open_voxels(path: pathlib.Path) -> Iterator[tuple[BinaryIO, File]]:
  """Yields the bytes that hold the voxels, and what the header says.

  Raises:
    InputError: as `volume_formats.open_volume`.
  """
  with contextlib.ExitStack() as stack:
    stream = stack.enter_context(open_plain(path))
    fields = _read_fields(path, stream)
    place = _place(path, fields)
    file = _parse(path, fields)._replace(place=place, offset=stream.tell())
    if place != path:
      check_there(path, place)
      stream = stack.enter_context(open_plain(place))
      file = file._replace(offset=0)
    skip = int(_numbers(path, fields, ('HeaderSize',), 1, (0,))[0])
    packed = _is_true(fields, ('CompressedData',))
    size = file.dtype.itemsize * file.grid.channels * math.prod(file.grid.shape)
    if skip == -1 and not packed:  # the data are the end of the file
      file = file._replace(offset=begin_of_last(place, size))
    elif 0 <= skip < 2**40 and (place != path or skip == 0):
      file = file._replace(offset=file.offset + skip)
    else:
      raise _damaged(path, f'HeaderSize is {skip}')
    if packed:
      stream.seek(file.offset)
      stream, file = inflated(stream), file._replace(offset=0)
    yield stream, file


def new_header(grid: Grid, dtype: np.dtype, packed: int = 0) -> bytes:
  """Returns the header of a zlib-compressed volume of three axes.

  It has the same length for any number of bytes.

  Args:
    grid: of the volume.
    dtype: of the voxels, little-endian.
    packed: bytes that the voxels are compressed to, without which ITK does not
      read them.
  """
  affine = turned(grid.readings[0])
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  types = {code: name for name, code in reversed(_TYPES.items())}
  lines = (
    'ObjectType = Image',
    'NDims = 3',
    'BinaryData = True',
    'BinaryDataByteOrderMSB = False',
    'CompressedData = True',
    f'CompressedDataSize = {packed:<16d}',
    f'TransformMatrix = {digits((affine[:3, :3] / spacing).T.ravel())}',
    f'Offset = {digits(affine[:3, 3])}',
    'CenterOfRotation = 0 0 0',
    f'ElementSpacing = {digits(spacing)}',
    f'DimSize = {" ".join(map(str, file_shape(grid)))}',
    f'ElementType = {types[dtype.str[1:]]}',
    f'{_DATA} = LOCAL',
  )
  return ('\n'.join(lines) + '\n').encode()


def _read_fields(path: pathlib.Path, stream: BinaryIO) -> dict[str, str]:
  """Returns the fields as text; what follows is the first byte of the data."""
  fields: dict[str, str] = {}
  while _DATA not in fields:
    line = read_line(path, stream)
    parts = re.split('[=:]', line or '', maxsplit=1)
    name = parts[0].strip()
    if not fields and (len(parts) < 2 or not re.fullmatch('[A-Za-z]+', name)):
      raise mistaken(path, stream, 'MetaImage', SUFFIXES)
    if line is None:
      raise _damaged(path, f'it has no {_DATA}')
    if line and (len(parts) < 2 or not name.isprintable()):
      raise _damaged(path, f'{shorten(line, 60)!r}')
    if line:
      fields[name] = parts[1].strip()
  return fields


def _place(path: pathlib.Path, fields: dict[str, str]) -> pathlib.Path:
  name = fields[_DATA]
  return path if name.lower() == 'local' else beside(path, name)


def _parse(path: pathlib.Path, fields: dict[str, str]) -> File:
  """Returns what the header says; where the voxels begin is still to add."""
  if fields.get('ObjectType', 'Image').lower() != 'image':
    raise InputError(
      f'{path}: of the type {quote(fields["ObjectType"])}; allowed is Image'
    )
  rank = int(_numbers(path, fields, ('NDims',), 1)[0])
  if not 1 <= rank <= 8:
    raise _damaged(path, f'NDims is {rank}')
  dims = tuple(int(n) for n in _numbers(path, fields, ('DimSize',), rank))
  inside = int(_numbers(path, fields, ('ElementNumberOfChannels',), 1, (1,))[0])
  if inside != 1 and rank > 2:
    dims = (*dims, inside)
  shape, channels = volume_dims(path, dims)
  check_unit(path, [fields.get('DistanceUnits', '')])
  if 'BinaryData' in fields and not _is_true(fields, ('BinaryData',)):
    raise InputError(f'{path}: voxels as text; allowed is BinaryData = True')
  matrix = _numbers(path, fields, _MATRIX, rank**2, np.eye(rank).ravel())
  directions = np.reshape(matrix, (rank, rank))[:3, :3]
  spacing = _numbers(path, fields, _SPACING, rank, np.ones(rank))[:3]
  origin = _numbers(path, fields, _ORIGIN, rank, np.zeros(rank))[:3]
  grid = read_affine(
    path,
    affine_of(directions * spacing[:, None], origin),
    shape,
    channels,
    name='TransformMatrix, ElementSpacing and Offset',
    placed=any(name in fields for name in (*_MATRIX, *_ORIGIN)),
  )
  return File(grid, _dtype(path, fields), path, interleaved=inside != 1)


def _dtype(path: pathlib.Path, fields: dict[str, str]) -> np.dtype:
  name = fields.get('ElementType', '')
  code = _TYPES.get(name.removesuffix('_ARRAY'))
  if code is None:
    raise InputError(
      f'{path}: voxels of the type {quote(name)}; allowed are '
      f'{", ".join(_TYPES)}'
    )
  return np.dtype(code).newbyteorder('>' if _is_true(fields, _BIG) else '<')


def _is_true(fields: dict[str, str], names: tuple[str, ...]) -> bool:
  value = next((fields[name] for name in names if name in fields), '')
  return value[:1] in ('T', 't', '1')


def _numbers(
  path: pathlib.Path,
  fields: dict[str, str],
  names: tuple[str, ...],
  count: int,
  default=None,
) -> np.ndarray:
  """Returns the numbers of the first field of these names that is there."""
  name = next((name for name in names if name in fields), None)
  if name is None and default is not None:
    return np.asarray(default, float)
  try:
    values = np.array(fields.get(name, '').split(), float)
  except ValueError:
    values = np.empty(0)
  if len(values) != count or not np.isfinite(values).all():
    raise _damaged(
      path,
      f'{name or names[0]} is {quote(fields.get(name, ""), 60)}, not '
      f'{count} numbers',
    )
  return values


def _damaged(path: pathlib.Path, reason: str) -> InputError:
  return damaged(path, 'a MetaImage', reason)
