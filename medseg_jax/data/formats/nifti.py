"""NIfTI files to arrays in one axis order, and back on a file's own grid.

Arrays are (z, y, x), see `nifti_header`. A file is only flipped and permuted
for that, never resampled.
"""

import contextlib
import gzip
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np

from medseg_jax.data.formats.nifti_header import (
  SUFFIXES,
  File,
  Grid,
  file_dims,
  file_view,
  new_header,
  open_file,
  parse,
  rows,
  times,
  truncated,
)
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import replacing

# Two grids are the same where no voxel is further off than this, in voxels.
TOLERANCE = 1e-3
# No scanner measures more; beyond it are overflows, which ruin every mean.
_LARGEST = 1e30
# Labels saved with a scale of 255 levels come back as 1.004, say.
_WHOLE = 0.01
_DEFLATE_MOST = 1032  # times that deflate can shrink anything
_LEVEL = 4  # of compression; more takes long and saves little


class Volume(NamedTuple):
  """A volume and where it lies.

  Attributes:
    array: image `[z, y, x, C]` or label `[z, y, x]`.
    spacing: size of a voxel along z, y, x in mm.
    affine: `[4, 4]` float64, voxel index (z, y, x) to world in mm.
  """

  array: np.ndarray
  spacing: tuple[float, float, float]
  affine: np.ndarray


def read_image(path: str | os.PathLike) -> Volume:
  """Returns the image `[z, y, x, C]` of a file of one or several channels.

  Channels are the fourth axis of the file, or the fifth of a vector image.
  Integers keep their dtype where the file does not scale them; everything
  else becomes float32.

  Raises:
    InputError: no complete NIfTI file of real numbers, a single slice, no
      usable geometry, or values that are not finite or beyond 1e30.
  """
  path = pathlib.Path(path)
  with open_file(path) as stream:
    file = parse(path, stream)
    keep = file.dtype.kind in 'iu' and file.scale is None
    dtype = file.dtype.newbyteorder('=') if keep else np.dtype(np.float32)

    def convert(plane):
      with np.errstate(over='ignore'):  # what overflows is reported below
        return _scaled(plane, file).astype(dtype)

    array = _read_voxels(path, stream, file, dtype, convert)
  if dtype.kind == 'f':
    _check_finite(path, array)
  return Volume(array, file.grid.spacing, file.grid.affine)


def read_channels(paths: Sequence[str | os.PathLike]) -> Volume:
  """Returns the image whose channels are files of their own, in this order.

  The grid is that of the first file; the others must lie in the same space.

  Raises:
    InputError: as `read_image` and `align`; several channels in one of several
      files; nothing to see, one intensity in all channels.
  """
  first = read_image(paths[0])
  image = first if len(paths) == 1 else _stack(paths, first)
  flat = np.ravel(image.array[:1, :1, :1])
  if all((plane == flat).all() for plane in image.array):
    raise InputError(
      f'{paths[0]}: a constant image, {flat[0]:g} everywhere; allowed are '
      'images with at least two intensities'
    )
  return image


def _stack(paths: Sequence[str | os.PathLike], first: Volume) -> Volume:
  arrays = []
  for path in paths:
    volume = read_image(path) if arrays else first
    if volume.array.shape[-1] > 1:
      raise InputError(
        f'{path}: {volume.array.shape[-1]} channels; allowed is one channel in '
        f'each of the {len(paths)} files of a case'
      )
    arrays.append(
      align(
        volume.array, volume.affine, first.array.shape[:3], first.affine,
        what=str(path), where=str(paths[0]),
      )
    )  # fmt: skip
  dtypes = {array.dtype for array in arrays}
  dtype = dtypes.pop() if len(dtypes) == 1 else np.float32
  return first._replace(array=np.concatenate(arrays, axis=-1, dtype=dtype))


def read_label(path: str | os.PathLike) -> Volume:
  """Returns the label ids `[z, y, x]` in the smallest integer type that fits.

  Raises:
    InputError: as `read_image`; several channels, or values that are no whole
      numbers of at most 31 bits.
  """
  path = pathlib.Path(path)
  with open_file(path) as stream:
    file = parse(path, stream)
    if file.grid.channels > 1:
      raise InputError(
        f'{path}: a label with {file.grid.channels} channels, shape '
        f'{times(file_dims(file.header))} in the file; allowed are 3 axes, one '
        'id for each voxel'
      )
    whole = file.dtype.kind in 'iu' and file.scale is None
    small = whole and file.dtype.itemsize < 4
    dtype = file.dtype.newbyteorder('=') if small else np.dtype(np.int32)

    def convert(plane):
      return plane if small else _to_ids(path, _scaled(plane, file))

    array = _read_voxels(path, stream, file, dtype, convert)[..., 0]
  low, high = array.min(), array.max()
  smallest = next(
    dtype
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
  )
  array = array.astype(smallest, copy=False)
  return Volume(array, file.grid.spacing, file.grid.affine)


def read_header(path: str | os.PathLike) -> Grid:
  """Returns the geometry of a file without reading its voxels.

  Raises:
    InputError: as `read_image`, as far as the header tells.
  """
  path = pathlib.Path(path)
  with open_file(path) as stream:
    return parse(path, stream).grid


def align(
  array: np.ndarray,
  affine: np.ndarray,
  to_shape: Sequence[int],
  to_affine: np.ndarray,
  *,
  what: str,
  where: str,
) -> np.ndarray:
  """Returns `array` flipped and permuted onto another grid of the same space.

  Args:
    array: `[z, y, x]` or `[z, y, x, C]`.
    affine: of `array`.
    to_shape: `z, y, x` of the grid wanted.
    to_affine: of the grid wanted.
    what: the file of `array`, for the message.
    where: the file with the grid wanted, for the message.

  Raises:
    InputError: a corner voxel lies more than 0.001 voxels off.
  """
  between = np.linalg.inv(to_affine) @ affine
  orientation = nib.io_orientation(between)
  if np.isnan(orientation).any():
    raise ValueError('affines must not be singular')
  order = np.argsort(orientation[:, 0])
  steps = orientation[order, 1].astype(int)
  # Corners of the two grids that belong together: index 0 or the last one.
  ends = np.array(list(itertools.product((0, 1), repeat=3)))
  corners = ends * (np.array(array.shape[:3]) - 1)
  to_ends = np.where(steps > 0, ends[:, order], 1 - ends[:, order])
  to_corners = to_ends * (np.array(to_shape) - 1)
  voxels = np.abs(_apply(between, corners) - to_corners).max()
  shape = tuple(array.shape[i] for i in order)
  if shape != tuple(to_shape) or not voxels <= TOLERANCE:
    gap = _apply(affine, corners) - _apply(to_affine, to_corners)
    raise InputError(
      f'{what}: its grid ({_describe(array.shape[:3], affine)}) is not the '
      f'grid of {where} ({_describe(to_shape, to_affine)}): they differ by up '
      f'to {np.linalg.norm(gap, axis=-1).max():.4g} mm, {voxels:.4g} voxels; '
      f'allowed is {TOLERANCE:g} voxels, flipped or permuted axes included'
    )
  array = array.transpose(*order, *range(3, array.ndim))
  return np.ascontiguousarray(array[tuple(slice(None, None, s) for s in steps)])


def write_label(
  path: str | os.PathLike, label: np.ndarray, like: str | os.PathLike
) -> None:
  """Writes label ids on the grid of the file `like`, in its axes and units.

  Unscaled, in the smallest unsigned type that fits. The file appears complete
  or not at all.

  Args:
    path: file to write or replace, `.nii` or `.nii.gz`.
    label: `[z, y, x]` integers of at least 0.
    like: a NIfTI file; the label is on the grid that its reading gives.

  Raises:
    InputError: `like` cannot be read.
  """
  label = np.asarray(label)
  if label.ndim != 3 or label.dtype.kind not in 'iub' or label.min() < 0:
    raise ValueError(
      f'need a label [z, y, x] of integers of at least 0, got {label.dtype} '
      f'{label.shape}'
    )
  dtype = np.min_scalar_type(int(label.max()))
  _write(pathlib.Path(path), label[..., None], dtype, 3, like)


def write_volume(
  path: str | os.PathLike, array: np.ndarray, like: str | os.PathLike
) -> None:
  """Writes `[z, y, x, K]` as a float32 file of 4 axes; see `write_label`."""
  if np.ndim(array) != 4:
    raise ValueError(f'need an array [z, y, x, K], got {np.shape(array)}')
  _write(pathlib.Path(path), np.asarray(array), np.dtype(np.float32), 4, like)


def stem(path: str | os.PathLike) -> str:
  """Returns the file's name without `.nii` or `.nii.gz`."""
  name = pathlib.Path(path).name
  for suffix in SUFFIXES:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)]
  return name


def _read_voxels(
  path: pathlib.Path,
  stream: BinaryIO,
  file: File,
  dtype: np.dtype,
  convert: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Returns `[z, y, x, C]`, read plane by plane: nothing is held twice."""
  shape = (*file.grid.shape, file.grid.channels)
  wanted = file.offset + file.dtype.itemsize * int(np.prod(shape, dtype=object))
  there = path.stat().st_size
  if isinstance(stream, gzip.GzipFile):
    there *= _DEFLATE_MOST
  if there < wanted:  # before memory is taken for what a bad header claims
    raise truncated(path, there, wanted)
  array = np.empty(shape, dtype)
  view = file_view(array, file)
  plane_bytes = view[:, :, 0, 0].size * file.dtype.itemsize
  stream.seek(file.offset)
  for channel in range(view.shape[3]):
    for k in range(view.shape[2]):
      block = stream.read(plane_bytes)
      if len(block) < plane_bytes:
        raise truncated(path, stream.tell(), wanted)
      plane = np.frombuffer(block, file.dtype).reshape(view.shape[1::-1]).T
      view[:, :, k, channel] = convert(plane)
  while stream.read(2**20):  # only at its end gzip compares its checksum
    pass
  return array


def _scaled(plane: np.ndarray, file: File) -> np.ndarray:
  if file.scale is None:
    return plane
  slope, inter = file.scale
  return plane.astype(np.float64) * slope + inter


def _to_ids(path: pathlib.Path, plane: np.ndarray) -> np.ndarray:
  """Returns the label ids as int32."""
  ids = np.rint(plane)
  with np.errstate(invalid='ignore'):  # inf - inf
    good = np.abs(plane - ids) <= _WHOLE  # False for NaN
  good &= (ids >= -(2**31)) & (ids < 2**31)
  if not good.all():
    raise InputError(
      f'{path}: the label holds {plane[~good][0]:g}; allowed are whole numbers '
      'of at most 31 bits'
    )
  return ids.astype(np.int32)


def _check_finite(path: pathlib.Path, array: np.ndarray) -> None:
  count, example = 0, 0.0
  for plane in array:
    if not -_LARGEST <= plane.min() <= plane.max() <= _LARGEST:  # also NaN
      bad = plane[~(np.abs(plane) <= _LARGEST)]
      count, example = count + bad.size, bad[0]
  if count:
    raise InputError(
      f'{path}: {count} voxels are not finite or beyond {_LARGEST:g}, such as '
      f'{example:g}; allowed are finite intensities'
    )


def _write(
  path: pathlib.Path, array: np.ndarray, dtype: np.dtype, rank: int, like
) -> None:
  """Writes `[z, y, x, K]` with `rank` axes and the geometry of `like`."""
  like = pathlib.Path(like)
  with open_file(like) as stream:
    file = parse(like, stream)
  if not path.name.lower().endswith(SUFFIXES) or (
    array.shape[:3] != file.grid.shape
  ):
    raise ValueError(
      f'need a .nii or .nii.gz file and an array on the grid {file.grid.shape} '
      f'of {like}, got {path.name} and {array.shape[:3]}'
    )
  view = file_view(array, file)
  dtype = dtype.newbyteorder('<')
  header = new_header(file.header, view.shape[:rank], dtype)
  with replacing(path) as temporary, contextlib.ExitStack() as stack:
    stream = stack.enter_context(open(temporary, 'wb'))
    if path.name.lower().endswith('.gz'):  # no name and time: same bytes
      stream = stack.enter_context(
        gzip.GzipFile('', 'wb', _LEVEL, fileobj=stream, mtime=0)
      )
    stream.write(header.binaryblock + b'\0\0\0\0')  # no extensions
    for channel in range(view.shape[3]):
      for k in range(view.shape[2]):
        stream.write(view[:, :, k, channel].astype(dtype).tobytes('F'))


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
  return points @ affine[:3, :3].T + affine[:3, 3]


def _describe(shape: Sequence[int], affine: np.ndarray) -> str:
  """Returns shape, spacing, origin and direction in one line."""
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  origin = ' '.join(f'{value:.6g}' for value in affine[:3, 3])
  return (
    f'shape {times(shape)}, spacing '
    f'{"x".join(f"{value:.6g}" for value in spacing)} mm, z y x, origin '
    f'{origin}, direction {rows(affine[:3, :3] / spacing + 0.0)}'
  )
