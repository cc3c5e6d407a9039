"""NRRD: .nrrd, or .nhdr with the voxels in a file beside it.

As ITK, and with it 3D Slicer, reads it. The fields are parsed by pynrrd, of the
extra `clinic`, which is imported where there is such a file.
"""

import contextlib
import gzip
import io
import math
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO

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
from medseg_jax.data.formats.nifti_stream import check_memory, open_plain
from medseg_jax.runtime.errors import InputError, quote, shorten

SUFFIXES = ('.nrrd', '.nhdr')
# Signs that take a space to Left, Posterior, Superior.
_SPACES = {
  'left-posterior-superior': (1, 1, 1), 'lps': (1, 1, 1),
  'right-anterior-superior': (-1, -1, 1), 'ras': (-1, -1, 1),
  'left-anterior-superior': (1, -1, 1), 'las': (1, -1, 1),
}  # fmt: skip
# Those that say nothing of the body; ITK takes them as Left, Posterior, ...
_BARE_SPACES = ('', 'scanner-xyz', '3d-right-handed', '3d-left-handed')
_GZIP, _ASCII = ('gzip', 'gz'), ('ascii', 'text', 'txt')
_TYPES = {
  'i1': ('signed char', 'int8', 'int8_t'),
  'u1': ('unsigned char', 'uchar', 'uint8', 'uint8_t'),
  'i2': (
    *('short', 'short int', 'signed short', 'signed short int'),
    *('int16', 'int16_t'),
  ),
  'u2': (
    *('unsigned short', 'ushort', 'unsigned short int', 'uint16', 'uint16_t'),
  ),
  'i4': ('int', 'signed int', 'int32', 'int32_t'),
  'u4': ('unsigned int', 'uint', 'uint32', 'uint32_t'),
  'i8': (
    *('long long', 'longlong', 'long long int', 'signed long long'),
    *('signed long long int', 'int64', 'int64_t'),
  ),
  'u8': (
    *('unsigned long long', 'ulonglong', 'unsigned long long int'),
    *('uint64', 'uint64_t'),
  ),
  'f4': ('float',),
  'f8': ('double',),
}
# All that is looked at; what else stands there may be damaged or repeated.
_FIELDS = (
  'type', 'dimension', 'sizes', 'encoding', 'endian', 'space',
  'space dimension', 'space directions', 'space origin', 'space units',
  'units', 'kinds', 'spacings', 'axis mins', 'centerings', 'line skip',
  'byte skip', 'data file',
)  # fmt: skip
_JOINED = {name.replace(' ', ''): name for name in _FIELDS}


def find_voxels(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that holds the voxels, which may be this one.

  Raises:
    InputError: no NRRD header, or several files.
  """
  with open_plain(path) as stream:
    return _place(path, _read_lines(path, stream))


@contextlib.contextmanager
def open_voxels(path: pathlib.Path) -> Iterator[tuple[BinaryIO, File]]:
  """Yields the bytes that hold the voxels, and what the header says.

  Raises:
    InputError: as `volume_formats.open_volume`.
  """
  with open_plain(path) as stream:
    lines = _read_lines(path, stream)
    place = _place(path, lines)
    file = _parse(path, _parse_fields(path, lines))._replace(place=place)
    encoding = lines['encoding'].lower()
    if place == path:
      with _decoded(stream, file, encoding, lines) as opened:
        yield opened
      return
  check_there(path, place)
  with (
    open_plain(place) as stream,
    _decoded(stream, file, encoding, lines) as opened,
  ):
    yield opened


def new_header(grid: Grid, dtype: np.dtype) -> bytes:
  """Returns the header of a gzip-compressed volume of three axes."""
  affine = turned(grid.readings[0])
  directions = ' '.join(f'({digits(v, ",")})' for v in affine[:3, :3].T)
  lines = (
    'NRRD0004',
    f'type: {_TYPES[dtype.str[1:]][0]}',
    'dimension: 3',
    'space: left-posterior-superior',
    f'sizes: {" ".join(map(str, file_shape(grid)))}',
    f'space directions: {directions}',
    'kinds: domain domain domain',
    'endian: little',
    'encoding: gzip',
    f'space origin: ({digits(affine[:3, 3], ",")})',
  )
  return ('\n'.join(lines) + '\n\n').encode()


def _read_lines(path: pathlib.Path, stream: BinaryIO) -> dict[str, str]:
  """Returns the fields as text; what follows is the first byte of the data."""
  first = read_line(path, stream) or ''
  if not first.startswith('NRRD000'):
    raise mistaken(path, stream, 'NRRD file', SUFFIXES)
  fields: dict[str, str] = {}
  while line := read_line(path, stream):  # up to an empty one
    name, colon, value = line.partition(':')
    name = _JOINED.get(name.strip().lower().replace(' ', ''), '')
    if line.startswith('#'):
      continue
    if not colon or name in fields:
      raise _damaged(path, f'{shorten(line, 60)!r}')
    if not name or value.startswith('='):  # says nothing of the voxels
      continue
    fields[name] = value.strip()
    if name == 'data file' and value.split()[0:1] == ['LIST']:
      break  # names follow
  for name in ('type', 'dimension', 'sizes', 'encoding'):
    if name not in fields and fields.get('data file') != 'LIST':
      raise _damaged(path, f'it has no {quote(name)}')
  return fields


def _place(path: pathlib.Path, lines: dict[str, str]) -> pathlib.Path:
  name = lines.get('data file')
  return path if name is None else beside(path, name)


def _parse_fields(path: pathlib.Path, lines: dict[str, str]) -> dict[str, Any]:
  """Returns the fields with their types."""
  try:
    import nrrd
  except ImportError as error:
    raise InputError(
      f"{path}: NRRD files need pynrrd: pip install 'medseg_jax[clinic]'"
    ) from error
  text = [f'{k}: {v}' for k, v in lines.items() if k != 'sizes']
  try:
    sizes = tuple(map(int, lines['sizes'].split()))  # whole ones of any size
    return nrrd.read_header(['NRRD0005', *text]) | {'sizes': sizes}
  except (
    *(ArithmeticError, LookupError, TypeError, ValueError),
    nrrd.NRRDError,
  ) as error:
    raise _damaged(path, shorten(str(error), 100)) from error


def _parse(path: pathlib.Path, fields: dict[str, Any]) -> File:
  """Returns what the header says; where the voxels begin is still to add."""
  sizes = fields['sizes']
  if len(sizes) != fields['dimension']:
    raise _damaged(path, f'{len(sizes)} sizes of {fields["dimension"]} axes')
  if len(sizes) < 3:
    volume_dims(path, sizes)  # says what is allowed
  directions = fields.get('space directions')
  spatial = _spatial_axes(path, fields, sizes)
  rest = tuple(n for i, n in enumerate(sizes) if i not in spatial)
  first, last = spatial[0], spatial[-1]
  if spatial != [*range(first, last + 1)] or 0 < first < len(rest):
    raise InputError(
      f'{path}: channels on both sides of the axes of space, or between them; '
      'allowed are three such axes, and one for channels before or behind them'
    )
  shape, channels = volume_dims(
    path, (*(sizes[axis] for axis in spatial), *rest)
  )
  oddities = []
  if directions is None:
    affine = _without_space(path, fields, spatial)
  else:
    affine, oddities = _in_space(path, fields, spatial)
  grid = read_affine(
    path,
    affine,
    shape,
    channels,
    name='space directions and origin' if directions is not None else 'spacing',
    placed=directions is not None,
    oddities=oddities,
  )
  return File(grid, _dtype(path, fields), path, interleaved=first > 0)


def _spatial_axes(
  path: pathlib.Path, fields: dict[str, Any], sizes: tuple[int, ...]
) -> list[int]:
  """Returns which three axes of the file are those of space."""
  axes = [*range(len(sizes))]
  directions, kinds = fields.get('space directions'), fields.get('kinds', ())
  if directions is not None:
    if np.shape(directions) != (len(sizes), 3):
      raise _damaged(
        path, 'its space directions are not three numbers for each axis'
      )
    axes = [axis for axis in axes if not np.isnan(directions[axis]).all()]
  elif len(kinds) == len(sizes):
    axes = [axis for axis in axes if kinds[axis].lower() in ('domain', 'space')]
  if len(axes) < 3:
    volume_dims(path, tuple(sizes[axis] for axis in axes))
  if len(axes) > 3 and directions is not None:
    raise _damaged(path, f'{len(axes)} axes of a space of three')
  return axes[:3]


def _in_space(
  path: pathlib.Path, fields: dict[str, Any], spatial: list[int]
) -> tuple[np.ndarray, list[str]]:
  """Returns the affine of a header that says where the voxels lie."""
  space = fields.get('space', '').lower()
  if space not in (*_SPACES, *_BARE_SPACES):
    names = [name for name in _SPACES if '-' in name]
    raise InputError(
      f'{path}: its space is {quote(space)}; allowed are {", ".join(names)}'
    )
  check_unit(path, fields.get('space units', ()))
  oddities = []
  if space not in _SPACES:
    called = f'called {space}' if space else 'without a name'
    oddities.append(
      f'{path}: its space is {called}; left-posterior-superior is taken'
    )
  signs = np.array(_SPACES.get(space, (1, 1, 1)), float)
  origin = fields.get('space origin')
  origin = np.zeros(3) if origin is None else np.asarray(origin, float)
  if origin.shape != (3,):
    raise _damaged(path, f'a space origin of {origin.size} numbers')
  rows = np.asarray(fields['space directions'], float)[spatial]
  return affine_of(rows * signs, origin * signs), oddities


def _without_space(
  path: pathlib.Path, fields: dict[str, Any], spatial: list[int]
) -> np.ndarray:
  """Returns the affine that ITK takes where there are sizes alone."""

  def of_axes(name, default):
    values = np.asarray(fields.get(name, ()), float)
    values = values if len(values) > spatial[-1] else np.full(16, np.nan)
    values = values[spatial]
    return np.where(np.isnan(values), default, values)

  units = fields.get('units', ())
  check_unit(path, [units[i] for i in spatial] if len(units) > 3 else units)
  spacing = of_axes('spacings', 1.0)
  origin = np.zeros(3)
  # The edge of the first voxel, which ITK takes where all sizes are there.
  if 'axis mins' in fields and np.isfinite(of_axes('spacings', np.nan)).all():
    centers = fields.get('centerings', ())
    node = [i < len(centers) and centers[i] == 'node' for i in spatial]
    origin = of_axes('axis mins', 0.0) + np.where(node, 0, spacing / 2)
  return affine_of(np.diag(spacing), origin)


def _dtype(path: pathlib.Path, fields: dict[str, Any]) -> np.dtype:
  name = fields['type'].lower()
  code = next((code for code, names in _TYPES.items() if name in names), None)
  if code is None:
    raise InputError(
      f'{path}: voxels of the type {quote(name)}; allowed are integers and '
      'real numbers'
    )
  dtype = np.dtype(code)
  if dtype.itemsize == 1 or fields['encoding'].lower() in _ASCII:
    return dtype
  orders = {'little': '<', 'big': '>'}
  endian = fields.get('endian', '').lower()
  if endian not in orders:
    raise _damaged(path, f'endian is {quote(endian)}, not little or big')
  return dtype.newbyteorder(orders[endian])


@contextlib.contextmanager
def _decoded(
  stream: BinaryIO, file: File, encoding: str, lines: dict[str, str]
) -> Iterator[tuple[BinaryIO, File]]:
  """Yields a file's data as bytes of the voxels.

  Args:
    stream: at the first byte of the data.
    file: what the header says.
    encoding: of the data.
    lines: the fields as text.
  """
  place = file.place
  skips = [lines.get(name, '0') for name in ('line skip', 'byte skip')]
  try:
    line_skip, byte_skip = map(int, skips)
  except ValueError:
    line_skip = byte_skip = -2
  count = math.prod(file.grid.shape) * file.grid.channels
  least = -1 if encoding == 'raw' else 0
  if not 0 <= line_skip < 2**20 or not least <= byte_skip < 2**40:
    raise _damaged(place, f'line skip {skips[0]}, byte skip {skips[1]}')
  for _ in range(line_skip):
    stream.readline()
  if encoding == 'raw':
    offset = stream.tell() + byte_skip
    if byte_skip == -1:  # whatever comes before
      offset = begin_of_last(place, file.dtype.itemsize * count)
    yield stream, file._replace(offset=offset)
  elif encoding in _GZIP:
    with gzip.GzipFile(fileobj=stream) as inflated:
      yield inflated, file._replace(offset=byte_skip)
  elif encoding in _ASCII:
    check_memory(place, 16 * count)
    stream.seek(byte_skip, io.SEEK_CUR)
    words = np.array(stream.read().split())
    try:
      values = words.astype(file.dtype)
    except (OverflowError, ValueError) as error:
      raise _damaged(place, shorten(str(error), 100)) from error
    yield io.BytesIO(values.tobytes()), file
  else:
    raise InputError(
      f'{place}: the encoding {quote(encoding)}; allowed are raw, gzip and '
      'ascii'
    )


def _damaged(path: pathlib.Path, reason: str) -> InputError:
  return damaged(path, 'an NRRD file', reason)
