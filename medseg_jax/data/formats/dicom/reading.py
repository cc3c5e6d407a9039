"""DICOM files to series, and a series to its voxels."""

import functools
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medseg_jax.data.formats.dicom.frames import (
  Damaged,
  Frame,
  NoSlice,
  frames_of,
)
from medseg_jax.data.formats.dicom.series import Series, check_even, series_of
from medseg_jax.data.formats.nifti import Volume
from medseg_jax.data.formats.nifti_geometry import (
  Grid,
  from_file_order,
  grid_of,
  to_file_order,
)
from medseg_jax.runtime.errors import InputError

AIR = -1024.0  # HU, in the place of what a CT has not measured
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LFS = b'version https://git-lfs'


class SetAside(NamedTuple):
  """A file that is no slice.

  Attributes:
    path: of it.
    reason: why not.
    damaged: whether it should have been one.
  """

  path: pathlib.Path
  reason: str
  damaged: bool


class Found(NamedTuple):
  """What some files hold.

  Attributes:
    series: the volumes.
    set_aside: the files that are part of none.
  """

  series: tuple[Series, ...]
  set_aside: tuple[SetAside, ...]


def read_files(paths: Sequence[pathlib.Path]) -> Found:
  """Returns the series that files form, from their headers.

  Names of files, and their order, say nothing.
  """
  frames: list[Frame] = []
  set_aside = []
  for path in paths:
    header, reason, damaged = _read_header(path)
    if header is None:
      set_aside.append(SetAside(path, reason, damaged))
      continue
    try:
      frames += frames_of(path, header)
    except NoSlice as error:
      damaged = isinstance(error, Damaged)
      set_aside.append(SetAside(path, str(error), damaged))
  return Found(tuple(series_of(frames, _stored)), tuple(set_aside))


def _read_header(path: pathlib.Path) -> tuple[Dataset | None, str, bool]:
  """Returns the data set, or None and why not, and whether that is damage."""
  try:
    with open(path, 'rb') as file:
      begin = file.read(132)
    if begin.startswith(_LFS):
      return None, 'a pointer of git-lfs, whose content was not fetched', True
    if begin[128:] != b'DICM':
      return None, 'no DICOM file', False
    header = pydicom.dcmread(path, stop_before_pixels=True)
  except Exception as error:  # pydicom raises all kinds on damaged files
    text = getattr(error, 'strerror', None) or ' '.join(str(error).split())
    return None, f'cannot be read ({text or type(error).__name__})', True
  if 'DirectoryRecordSequence' in header:
    return None, 'a list of files (DICOMDIR)', False
  return header, '', False


def read_volume(series: Series) -> Volume:
  """Returns the voxels of a series, `[z, y, x, 1]`, and where they lie.

  The stored values are rescaled slice by slice; whole numbers stay whole. What
  a CT has not measured becomes air, elsewhere it gets the least value.

  Raises:
    InputError: slices are missing, or a file cannot be read; a CT that does not
      say what its values are in Hounsfield units.
  """
  check_even(series)
  grid = grid_of_series(series)
  slices = [_values(frame) for frame in series.frames]
  planes = np.stack([values for values, _ in slices])
  nothing = np.stack([empty for _, empty in slices])
  where = series.first.path.parent
  if nothing.all() or planes.min() == planes.max():
    raise InputError(f'{where}: one intensity everywhere, nothing to see')
  if nothing.any():
    air = str(series.first.header.get('Modality', '')) == 'CT'
    planes[nothing] = AIR if air else planes[~nothing].min()
  if planes.dtype.kind in 'iu':
    whole = [np.int16, np.int32, np.float32]  # the first that holds them
    limits = [np.iinfo(kind) for kind in whole[:2]]
    fits = [k.min <= planes.min() and planes.max() <= k.max for k in limits]
    planes = planes.astype(whole[fits.index(True) if any(fits) else 2])
  else:
    planes = planes.astype(np.float32)
  array = planes.transpose(2, 1, 0)[..., None]
  return Volume(np.ascontiguousarray(from_file_order(array, grid)), grid)


def to_native(array: np.ndarray, series: Series) -> np.ndarray:
  """Returns `[z, y, x]`, as `read_volume` gives it, as `[n, rows, columns]`."""
  return to_file_order(array, grid_of_series(series)).transpose(2, 1, 0)


def from_native(mask: np.ndarray, series: Series) -> np.ndarray:
  """Returns `[n, rows, columns]` as `read_volume` has it, `[z, y, x]`."""
  grid = grid_of_series(series)
  array = from_file_order(mask.transpose(2, 1, 0)[..., None], grid)
  return np.ascontiguousarray(array[..., 0])


def grid_of_series(series: Series) -> Grid:
  """Returns where the voxels of `read_volume` lie.

  The spacing of slices that are shifted against each other is the distance of
  their planes: the product of all three is a voxel's volume.
  """
  rows, columns = series.first.shape
  affine = _TO_RAS @ series.affine
  grid = grid_of(affine, (columns, rows, len(series.frames)))
  volume = abs(np.linalg.det(affine[:3, :3]))
  between = volume / math.prod(series.first.pixel_spacing)
  return grid._replace(
    spacing=tuple(
      float(between) if axis == 2 else size
      for axis, size in zip(grid.axes, grid.spacing, strict=True)
    )
  )


def _values(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
  """Returns a slice's values, HU of a CT, and where it has none.

  Both `[rows, columns]`.
  """
  stored, header = _stored(frame), frame.header
  modality = str(header.get('Modality', ''))
  if frame.rescale is None and modality == 'CT':
    raise InputError(
      f'{frame.path}: a CT without RescaleSlope and RescaleIntercept, so what '
      'its values are in Hounsfield units cannot be told'
    )
  slope, intercept = frame.rescale or (1.0, 0.0)
  if not np.isfinite([slope, intercept]).all():
    raise InputError(
      f'{frame.path}: RescaleSlope {slope:g}, RescaleIntercept {intercept:g}; '
      'allowed are numbers'
    )
  if slope == 1 and float(intercept).is_integer():
    values = stored.astype(np.int64) + int(intercept)
  else:
    values = (stored * slope + intercept).astype(np.float32)
  nothing = np.zeros(stored.shape, bool)
  if (padding := header.get('PixelPaddingValue')) is not None:
    limit = header.get('PixelPaddingRangeLimit', padding)
    # Often written as unsigned where the pixels are signed: the same bits.
    low, high = sorted(
      int(np.asarray(int(x) % 2**32, np.uint32).astype(stored.dtype))
      for x in (padding, limit)
    )
    nothing = (stored >= low) & (stored <= high)
  return values, nothing


def _stored(frame: Frame) -> np.ndarray:
  """Returns the values of a slice as they are stored."""
  array = _pixels(frame.path, _time_of_change(frame.path))
  return array[frame.number] if array.ndim == 3 else array


def _time_of_change(path: pathlib.Path) -> int:
  try:
    return path.stat().st_mtime_ns
  except OSError:
    return 0


@functools.lru_cache(maxsize=1)  # the frames of one file come one by one
def _pixels(path: pathlib.Path, changed: int) -> np.ndarray:
  del changed
  try:
    return pydicom.dcmread(path).pixel_array
  except Exception as error:  # of whatever decoder
    text = ' '.join(str(error).split())[:200]
    raise InputError(
      f'{path}: its pixels cannot be read ({type(error).__name__}: {text})'
    ) from error
