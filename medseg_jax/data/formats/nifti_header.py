"""The header of a NIfTI file: which grid its voxels lie on, and in what order.

Inside the program the axes of a volume are (z, y, x): z runs to Superior, y to
Posterior and x to Left, as closely as the file's own axes allow. Affines take
voxel indices in this order to mm in the world of NIfTI, which is Right,
Anterior, Superior.
"""

import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np

from medseg_jax.runtime.errors import InputError

SUFFIXES = ('.nii.gz', '.nii')
_MM = {1: 1e3, 2: 1.0, 3: 1e-3}  # the codes for m, mm and um
# World axis and direction of z, y, x: Superior, Posterior, Left.
_WORLD_AXES, _DIRECTIONS = (2, 1, 0), (1, -1, -1)
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


class Grid(NamedTuple):
  """The geometry of a file: shape (z, y, x), and the rest as in `Volume`."""

  shape: tuple[int, int, int]
  channels: int
  spacing: tuple[float, float, float]
  affine: np.ndarray


class File(NamedTuple):
  """What a header says.

  Attributes:
    header: as stored.
    grid: its geometry, in the order of axes inside the program.
    axes: `axes[i]` is the file's axis behind axis i of the grid.
    steps: `steps[i]` is -1 where the two run against each other, else 1.
    dtype: of the voxels in the file.
    scale: slope and intercept that take them to their values, or None.
    offset: byte of the first voxel.
  """

  header: nib.Nifti1Header
  grid: Grid
  axes: tuple[int, ...]
  steps: tuple[int, ...]
  dtype: np.dtype
  scale: tuple[float, float] | None
  offset: int


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields the file's bytes, inflated; what fails inside is an InputError."""
  try:
    with open(path, 'rb') as raw:
      begin = raw.read(64)
      raw.seek(0)
      if not begin:
        raise InputError(f'{path}: an empty file; a NIfTI file is needed')
      if begin.startswith(b'version https://git-lfs'):
        raise InputError(
          f'{path}: a Git LFS pointer in place of the file; `git lfs pull` '
          'fetches the file itself'
        )
      if begin.startswith(b'\x1f\x8b'):  # whatever the name says
        with gzip.GzipFile(fileobj=raw) as stream:
          yield stream
      else:
        yield raw
  except FileNotFoundError as error:
    raise InputError(f'{path}: no such file; a NIfTI file is needed') from error
  except EOFError as error:
    raise InputError(
      f'{path}: truncated (its gzip stream has no end); allowed are complete '
      'files'
    ) from error
  except (OSError, zlib.error) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    raise InputError(
      f'{path}: cannot be read ({reason}); allowed are complete NIfTI files'
    ) from error


def parse(path: pathlib.Path, stream: BinaryIO) -> File:
  """Returns the header at the start of `stream`, checked.

  Raises:
    InputError: no NIfTI file in one piece of real numbers, a single slice, too
      many axes, or no usable geometry.
  """
  header = _header(path, stream)
  dtype = _dtype(path, header)
  dims = file_dims(header)
  while len(dims) > 3 and dims[-1] == 1:
    dims = dims[:-1]
  if len(dims) == 5 and dims[3] == 1:  # a vector image: no time axis
    dims = (*dims[:3], dims[4])
  if len(dims) > 4 or min(dims, default=0) < 1:
    raise InputError(
      f'{path}: shape {times(dims)} in the file; allowed are 3 axes, and a '
      'fourth for channels'
    )
  if len(dims) < 3 or min(dims[:3]) == 1:
    raise InputError(
      f'{path}: a single slice, shape {times(dims)} in the file; allowed are '
      'volumes of at least 2 slices; 2-D images belong to data.source=folder'
    )
  affine = _affine(path, header)
  orientation = nib.io_orientation(affine)
  axes = tuple(orientation[:, 0].tolist().index(i) for i in _WORLD_AXES)
  steps = tuple(
    int(orientation[axis, 1]) * direction
    for axis, direction in zip(axes, _DIRECTIONS, strict=True)
  )
  to_file = np.zeros((4, 4))
  to_file[3, 3] = 1
  for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
    to_file[axis, i] = step
    to_file[axis, 3] = dims[axis] - 1 if step < 0 else 0
  affine = affine @ to_file
  grid = Grid(
    shape=tuple(dims[axis] for axis in axes),
    channels=dims[3] if len(dims) > 3 else 1,
    spacing=tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist()),
    affine=affine + 0.0,  # no -0.0
  )
  return File(
    header=header,
    grid=grid,
    axes=axes,
    steps=steps,
    dtype=dtype,
    scale=_scale(path, header),
    offset=max(int(header['vox_offset']), header.single_vox_offset),
  )


def _header(path: pathlib.Path, stream: BinaryIO) -> nib.Nifti1Header:
  """Returns the header as stored; nibabel alone would mend it silently."""
  block = stream.read(540)
  sizes = {int.from_bytes(block[:4], order) for order in ('little', 'big')}
  size = next((n for n in _HEADERS if n in sizes), 348)
  magic = block[344:347] if size == 348 else block[4:7]
  if magic in (b'ni1', b'ni2') or path.suffix.lower() in ('.hdr', '.img'):
    raise InputError(
      f'{path}: of a pair of files, .hdr and .img; allowed is NIfTI in one '
      'file, .nii or .nii.gz'
    )
  if size not in sizes or (magic not in (b'n+1', b'n+2') and len(block) > 346):
    raise InputError(
      f'{path}: no NIfTI file, it begins with {block[:8]!r}; allowed are '
      f'{" and ".join(SUFFIXES)}'
    )
  if len(block) < size:
    raise truncated(path, len(block), size)
  header = _HEADERS[size](block[:size], check=False)
  if not 1 <= header['dim'][0] <= 7 or not np.isfinite(header['vox_offset']):
    raise InputError(
      f'{path}: a damaged header ({header["dim"][0]} axes, voxels from byte '
      f'{header["vox_offset"]}); allowed are complete NIfTI files'
    )
  return header


def _affine(path: pathlib.Path, header: nib.Nifti1Header) -> np.ndarray:
  """Returns the affine of the file's axes in mm: sform, else qform, else zooms.

  A zoom of 0 is an error also beside a good sform: other programs take the
  zooms, and masks are written with this header.
  """
  zooms = header['pixdim'][1:4]
  if not (np.isfinite(zooms) & (zooms > 0)).all():
    raise InputError(
      f'{path}: spacing {times(zooms)} (pixdim); allowed are sizes above 0 mm'
    )
  mended = header.copy()
  if mended['pixdim'][0] not in (-1, 1):
    mended['pixdim'][0] = 1  # as the standard says for 0
  affine = np.full((4, 4), np.nan)
  with contextlib.suppress(ValueError):  # the quaternion is no rotation
    affine = mended.get_best_affine().astype(np.float64)
  lengths = np.linalg.norm(affine[:3, :3], axis=0)
  good = np.isfinite(affine).all() and lengths.min() > 0
  if not good or np.abs(np.linalg.det(affine[:3, :3] / lengths)) < 0.01:
    source = 'sform' if header['sform_code'] else 'qform'
    raise InputError(
      f'{path}: no usable geometry, its {source} is {rows(affine[:3])}; '
      'allowed are three axes that span a space, with sizes above 0 mm'
    )
  affine[:3] *= _MM.get(int(header['xyzt_units']) & 7, 1.0)
  return affine


def _dtype(path: pathlib.Path, header: nib.Nifti1Header) -> np.dtype:
  code = int(header['datatype'])
  kind = 'unknown'
  if code in nib.nifti1.data_type_codes.label:
    kind = nib.nifti1.data_type_codes.label[code]
    dtype = header.get_data_dtype()
    if dtype.kind in 'iuf':
      return dtype
  raise InputError(
    f'{path}: voxels of the type {kind} (NIfTI code {code}); allowed are '
    'integers and real numbers'
  )


def _scale(
  path: pathlib.Path, header: nib.Nifti1Header
) -> tuple[float, float] | None:
  slope, inter = float(header['scl_slope']), float(header['scl_inter'])
  if not np.isfinite(slope) or slope == 0 or (slope, inter) == (1, 0):
    return None
  if not np.isfinite(inter):
    raise InputError(
      f'{path}: scl_inter {inter} beside scl_slope {slope:g}; allowed are '
      'finite numbers'
    )
  return slope, inter


def file_dims(header: nib.Nifti1Header) -> tuple[int, ...]:
  """Returns the shape in the file, all axes."""
  return tuple(int(n) for n in header['dim'][1 : header['dim'][0] + 1])


def file_view(array: np.ndarray, file: File) -> np.ndarray:
  """Returns `array [z, y, x, C]` seen along the axes of the file."""
  array = array[tuple(slice(None, None, step) for step in file.steps)]
  return array.transpose(*np.argsort(file.axes), 3)


def new_header(
  like: nib.Nifti1Header, shape: tuple[int, ...], dtype: np.dtype
) -> nib.Nifti1Header:
  """Returns a header of `like`'s geometry, bit for bit, and nothing else."""
  header = type(like)(endianness='<')
  for name in (
    'pixdim', 'dim_info', 'xyzt_units', 'qform_code', 'sform_code',
    'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'qoffset_y',
    'qoffset_z', 'srow_x', 'srow_y', 'srow_z',
  ):  # fmt: skip
    header[name] = like[name]
  header.set_data_dtype(dtype)
  header.set_data_shape(shape)
  header['pixdim'][4:] = 1  # not of space
  header['scl_slope'], header['scl_inter'] = 1, 0
  header['vox_offset'] = header.single_vox_offset
  return header


def truncated(path: pathlib.Path, there: int, wanted: int) -> InputError:
  """Returns the error of a file with `there` bytes of `wanted`."""
  return InputError(
    f'{path}: truncated, {there} bytes of {wanted}; allowed are complete files'
  )


def times(numbers: Iterable[float]) -> str:
  """Returns, say, 512x512x80."""
  return 'x'.join(f'{number:g}' for number in numbers)


def rows(matrix: np.ndarray) -> str:
  """Returns a matrix in one line."""
  lines = (' '.join(f'{value:.6g}' for value in row) for row in matrix)
  return '[' + '; '.join(lines) + ']'
