"""The header of a NIfTI file: what its voxels are, and whether it can be.

Of every other format the same is told, by `File`.
"""

import pathlib
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np

from medseg_jax.data.formats.nifti_geometry import (
  Grid,
  file_shape,
  read_grid,
  times,
)
from medseg_jax.data.formats.nifti_stream import truncated
from medseg_jax.runtime.errors import InputError

SUFFIXES = ('.nii.gz', '.nii')
# Headers have extensions, but none that is larger.
_LARGEST_OFFSET = 2**27
_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


class File(NamedTuple):
  """What a header says.

  Attributes:
    grid: its geometry.
    dtype: of the voxels in the file.
    place: the file that holds the voxels.
    header: of NIfTI as stored, else None.
    scale: slope and intercept that take them to their values, or None.
    offset: byte of the first voxel.
    interleaved: whether the channels of a voxel lie together, and not those of
      all voxels one after the other.
  """

  grid: Grid
  dtype: np.dtype
  place: pathlib.Path
  header: nib.Nifti1Header | None = None
  scale: tuple[float, float] | None = None
  offset: int = 0
  interleaved: bool = False


def parse(path: pathlib.Path, stream: BinaryIO) -> File:
  """Returns the header at the start of `stream`, checked.

  Raises:
    InputError: no NIfTI file in one piece of real numbers, a single slice, too
      many axes, or no usable geometry.
  """
  header = _header(path, stream)
  dtype = _dtype(path, header)
  shape, channels = volume_dims(path, file_dims(header))
  return File(
    header=header,
    grid=read_grid(path, header, shape, channels),
    dtype=dtype,
    scale=_scale(path, header),
    offset=max(int(header['vox_offset']), header.single_vox_offset),
    place=path,
  )


def volume_dims(
  path: pathlib.Path, dims: tuple[int, ...]
) -> tuple[tuple[int, ...], int]:
  """Returns the sizes of three axes, and the number of channels.

  Args:
    path: for messages.
    dims: the shape in the file, all axes, those of space first.

  Raises:
    InputError: a single slice, or too many axes.
  """
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
  return dims[:3], dims[3] if len(dims) > 3 else 1


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
  offset = header['vox_offset']
  if not 1 <= header['dim'][0] <= 7 or not abs(offset) <= _LARGEST_OFFSET:
    raise InputError(
      f'{path}: a damaged header ({header["dim"][0]} axes, voxels from byte '
      f'{offset:g}); allowed are complete NIfTI files'
    )
  return header


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


def header_of(grid: Grid) -> nib.Nifti1Header:
  """Returns a header that says where a grid lies, in the scanner's mm.

  The sform says it all. Axes that lean have no qform: it gets the code 0.
  """
  header = nib.Nifti1Header(endianness='<')
  affine = grid.readings[0]
  header.set_data_shape(file_shape(grid))
  header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
  header.set_xyzt_units('mm')
  header.set_sform(affine, code=1)
  axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
  upright = np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)
  header.set_qform(affine, code=1 if upright else 0, strip_shears=True)
  return header


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
