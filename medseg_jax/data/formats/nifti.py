"""Volumes to arrays in one axis order, and back on a file's own grid.

Arrays are (z, y, x), see `nifti_geometry`. A file is only flipped and permuted
for that, never resampled. It is NIfTI, or of the formats that `volume_formats`
gives the same form.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from medseg_jax.data.formats.nifti_align import (
  TOLERANCE,
  align,
  gap_between,
)
from medseg_jax.data.formats.nifti_geometry import (
  Grid,
  file_shape,
  times,
  to_file_order,
)
from medseg_jax.data.formats.nifti_header import File, file_dims
from medseg_jax.data.formats.nifti_stream import (
  check_memory,
  check_room,
  read_end,
  truncated,
)
from medseg_jax.data.formats.volume_formats import (
  SUFFIXES,
  WRITTEN,
  begin_file,
  open_volume,
)
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import replacing

__all__ = (
  'TOLERANCE', 'Grid', 'Volume', 'align', 'gap_between', 'read_channels',
  'read_header', 'read_image', 'read_label', 'stem', 'write_label',
  'write_volume',
)  # fmt: skip

# No scanner measures more; beyond it are overflows, which ruin every mean.
_LARGEST = 1e30
# Labels saved with a scale of 255 levels come back as 1.004, say.
_WHOLE = 0.01


class Volume(NamedTuple):
  """A volume and where it lies.

  Attributes:
    array: image `[z, y, x, C]` or label `[z, y, x]`.
    grid: its geometry.
  """

  array: np.ndarray
  grid: Grid

  @property
  def spacing(self) -> tuple[float, float, float]:
    """The size of a voxel along z, y, x in mm."""
    return self.grid.spacing

  @property
  def affine(self) -> np.ndarray:
    """`[4, 4]` float64, voxel index (z, y, x) to world in mm."""
    return self.grid.affine


def read_image(path: str | os.PathLike) -> Volume:
  """Returns the image `[z, y, x, C]` of a file of one or several channels.

  Channels are the fourth axis of the file, the fifth of a vector image, or the
  components of each voxel.
  Integers keep their dtype where the file does not scale them; everything
  else becomes float32.

  Raises:
    InputError: no complete volume of real numbers, a single slice, no
      usable geometry, or values that are not finite or beyond 1e30.
  """
  path = pathlib.Path(path)
  with open_volume(path) as (stream, file):
    keep = file.dtype.kind in 'iu' and file.scale is None
    dtype = file.dtype.newbyteorder('=') if keep else np.dtype(np.float32)

    def convert(plane):
      with np.errstate(over='ignore'):  # what overflows is reported below
        return _scaled(plane, file).astype(dtype)

    array = _read_voxels(path, stream, file, dtype, convert)
  if dtype.kind == 'f':
    _check_finite(path, array)
  return Volume(array, file.grid)


def read_channels(
  paths: Sequence[str | os.PathLike], *, tolerance: float = TOLERANCE
) -> Volume:
  """Returns the image whose channels are files of their own, in this order.

  The grid is that of the first file; the others must lie in the same space.

  Args:
    paths: the files.
    tolerance: how far the voxels of the others may lie off, in voxels.

  Raises:
    InputError: as `read_image` and `align`; several channels in one of several
      files; nothing to see, one intensity in all channels.
  """
  first = read_image(paths[0])
  image = first if len(paths) == 1 else _stack(paths, first, tolerance)
  flat = np.ravel(image.array[:1, :1, :1])
  if all((plane == flat).all() for plane in image.array):
    raise InputError(
      f'{paths[0]}: a constant image, {flat[0]:g} everywhere; allowed are '
      'images with at least two intensities'
    )
  return image


def _stack(
  paths: Sequence[str | os.PathLike], first: Volume, tolerance: float
) -> Volume:
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
        volume.array,
        volume.grid,
        first.grid,
        what=str(path),
        where=str(paths[0]),
        tolerance=tolerance,
      )
    )
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
  with open_volume(path) as (stream, file):
    if file.grid.channels > 1:
      raise InputError(
        f'{path}: a label with {file.grid.channels} channels, shape '
        f'{times(_dims(file))} in the file, as of one mask for each '
        'class; allowed are 3 axes, one id for each voxel'
      )
    whole = file.dtype.kind in 'iu' and file.scale is None
    small = whole and file.dtype.itemsize < 4
    dtype = file.dtype.newbyteorder('=') if small else np.dtype(np.int32)

    wrong = _NoIds()

    def convert(plane):
      return plane if small else _to_ids(_scaled(plane, file), wrong)

    array = _read_voxels(path, stream, file, dtype, convert)[..., 0]
  if wrong.count:
    raise InputError(
      f'{path}: the label holds {", ".join(wrong.some)} in {wrong.count} of '
      f'{array.size} voxels; allowed are ids, whole numbers of at most 31 bits'
    )
  low, high = array.min(), array.max()
  smallest = next(
    dtype
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32)
    if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max
  )
  array = array.astype(smallest, copy=False)
  return Volume(array, file.grid)


def read_header(path: str | os.PathLike) -> Grid:
  """Returns the geometry of a file without reading its voxels.

  Raises:
    InputError: as `read_image`, as far as the header tells.
  """
  path = pathlib.Path(path)
  with open_volume(path) as (_, file):
    return file.grid


def write_label(
  path: str | os.PathLike, label: np.ndarray, like: str | os.PathLike | Grid
) -> None:
  """Writes label ids on the grid of the file `like`, in its axes and units.

  Unscaled, in the smallest unsigned type that fits. The file appears complete
  or not at all.

  Args:
    path: file to write or replace, of a suffix of `WRITTEN`.
    label: `[z, y, x]` integers of at least 0.
    like: a volume; the label is on the grid that its reading gives. Or a grid,
      of what is no such file.

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
  path: str | os.PathLike, array: np.ndarray, like: str | os.PathLike | Grid
) -> None:
  """Writes `[z, y, x]` as float32; see `write_label`.

  Of NIfTI also `[z, y, x, K]`.
  """
  array = np.asarray(array)
  if (rank := array.ndim) not in (3, 4):
    raise ValueError(f'need an array [z, y, x(, K)], got {array.shape}')
  array = array if rank == 4 else array[..., None]
  _write(pathlib.Path(path), array, np.dtype(np.float32), rank, like)


def stem(path: str | os.PathLike) -> str:
  """Returns a volume's name without its suffix, such as `.nii.gz`."""
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
  wanted = file.offset + file.dtype.itemsize * math.prod(shape)
  check_room(file.place, stream, wanted)
  check_memory(path, dtype.itemsize * math.prod(shape))
  array = np.empty(shape, dtype)
  view = to_file_order(array, file.grid)
  if file.offset:
    stream.seek(file.offset)
  left = wanted - file.offset
  for channel in [slice(None)] if file.interleaved else range(view.shape[3]):
    for k in range(view.shape[2]):
      plane = view[:, :, k, channel]
      block = stream.read(plane.size * file.dtype.itemsize)
      left -= len(block)
      if len(block) < plane.size * file.dtype.itemsize:
        raise truncated(file.place, wanted - left, wanted)
      sizes = plane.shape[1], plane.shape[0], *plane.shape[2:]
      values = np.frombuffer(block, file.dtype).reshape(sizes)
      plane[...] = convert(values.swapaxes(0, 1))
  read_end(stream)
  return array


def _dims(file: File) -> tuple[int, ...]:
  """Returns the shape in the file, all axes."""
  if file.header is not None:
    return file_dims(file.header)
  return (*file_shape(file.grid), file.grid.channels)


def _scaled(plane: np.ndarray, file: File) -> np.ndarray:
  if file.scale is None:
    return plane
  slope, inter = file.scale
  return plane.astype(np.float64) * slope + inter


@dataclasses.dataclass
class _NoIds:
  """Values of a label that are no ids: how many, and a few of them."""

  count: int = 0
  some: tuple[str, ...] = ()


def _to_ids(plane: np.ndarray, wrong: _NoIds) -> np.ndarray:
  """Returns the label ids as int32; what is none is added to `wrong`."""
  ids = np.rint(plane)
  with np.errstate(invalid='ignore'):  # inf - inf
    good = np.abs(plane - ids) <= _WHOLE  # False for NaN
  good &= (ids >= -(2**31)) & (ids < 2**31)
  if not good.all():
    bad = plane[~good]
    wrong.count += bad.size
    found = [f'{value:g}' for value in np.unique(bad[:100])]
    wrong.some = tuple(dict.fromkeys([*wrong.some, *found]))[:3]
    ids = np.where(good, ids, 0)
  return ids.astype(np.int32)


def _check_finite(path: pathlib.Path, array: np.ndarray) -> None:
  count, example = 0, 0.0
  for plane in array:
    if not -_LARGEST <= plane.min() <= plane.max() <= _LARGEST:  # also NaN
      bad = plane[~(np.abs(plane) <= _LARGEST)]
      count, example = count + bad.size, bad[0]
  if count:
    raise InputError(
      f'{path}: {counted(count, "voxel")} not finite or beyond {_LARGEST:g}, '
      f'such as {example:g}; allowed are finite intensities'
    )


def _write(
  path: pathlib.Path, array: np.ndarray, dtype: np.dtype, rank: int, like
) -> None:
  """Writes `[z, y, x, K]` with `rank` axes and the geometry of `like`."""
  if isinstance(like, Grid):
    grid, header = like, None
  else:
    with open_volume(pathlib.Path(like)) as (_, file):
      grid, header = file.grid, file.header
  if not path.name.lower().endswith(WRITTEN) or array.shape[:3] != grid.shape:
    raise ValueError(
      f'need a file {" ".join(WRITTEN)} and an array on the grid {grid.shape} '
      f'of {like}, got {path.name} and {array.shape[:3]}'
    )
  view = to_file_order(array, grid)
  dtype = dtype.newbyteorder('<')
  with replacing(path) as temporary, contextlib.ExitStack() as stack:
    raw = stack.enter_context(open(temporary, 'wb'))
    begun = begin_file(
      raw, path.name, grid, view.shape[:rank], dtype, like=header
    )
    stream = stack.enter_context(begun)
    for channel in range(view.shape[3]):
      for k in range(view.shape[2]):
        stream.write(view[:, :, k, channel].astype(dtype).tobytes('F'))
