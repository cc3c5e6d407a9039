"""DICOM files to series, and a series to its voxels."""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from medseg_jax.data.formats.dicom.frames import (
  Damaged,
  Frame,
  NoSlice,
  frames_of,
)
from medseg_jax.data.formats.dicom.opening import open_file
from medseg_jax.data.formats.dicom.series import Series, check_even, series_of
from medseg_jax.data.formats.first_bytes import is_dicom
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
  found = series_of(frames, _stored)
  several = _files_of_several(found)
  for path, names in several.items():
    reason = (
      f'{len(names)} volumes in one file, {"; ".join(names)}; allowed is one '
      'in a file: write each into its own'
    )
    set_aside.append(SetAside(path, reason, True))
  series = tuple(each for each in found if each.first.path not in several)
  return Found(series, tuple(set_aside))


def _files_of_several(
  series: Sequence[Series],
) -> dict[pathlib.Path, list[str]]:
  """Returns multi-frame files with several volumes, and the names of these."""
  names: dict[pathlib.Path, list[str]] = {}
  for each in series:
    if len(each.frames) > 1:
      for path in {frame.path for frame in each.frames}:
        names.setdefault(path, []).append(each.name)
  return {path: own for path, own in names.items() if len(own) > 1}


def _read_header(path: pathlib.Path) -> tuple[Dataset | None, str, bool]:
  """Returns the data set, or None and why not, and whether that is damage."""
  try:
    with open(path, 'rb') as file:
      begin = file.read(len(_LFS))
    if begin == _LFS:
      return None, 'a pointer of git-lfs, whose content was not fetched', True
    if not is_dicom(path):
      return None, 'no DICOM file', False
    header = open_file(path, pixels=False)
  except Exception as error:  # pydicom raises all kinds on damaged files
    text = getattr(error, 'strerror', None) or ' '.join(str(error).split())
    return None, f'cannot be read ({text or type(error).__name__})', True
  if 'DirectoryRecordSequence' in header:
    return None, 'a list of files (DICOMDIR)', False
  return header, '', False


def read_volume(
  series: Series, *, allow_gaps: bool = False, assume_hounsfield: bool = False
) -> Volume:
  """Returns the voxels of a series, `[z, y, x, 1]`, and where they lie.

  The stored values are rescaled slice by slice; whole numbers stay whole. What
  a CT has not measured becomes air, elsewhere 0, no signal, or less where there
  are values below 0.

  Args:
    series: any.
    allow_gaps: whether slices that are missing are interpolated linearly.
    assume_hounsfield: whether the stored values of a CT that does not say what
      they are in Hounsfield units are taken as that.

  Raises:
    InputError: slices are missing, or a file cannot be read; a CT that does not
      say what its values are in Hounsfield units.
  """
  check_even(series, allow_gaps=allow_gaps)
  grid = grid_of_series(series)
  slices = [_values(frame, assume_hounsfield) for frame in series.frames]
  planes = np.stack([values for values, _ in slices])
  nothing = np.stack([empty for _, empty in slices])
  where = series.first.path.parent
  if nothing.all() or planes.min() == planes.max():
    raise InputError(f'{where}: one intensity everywhere, nothing to see')
  if nothing.any():
    air = str(series.first.header.get('Modality', '')) == 'CT'
    planes[nothing] = AIR if air else min(planes[~nothing].min(), 0)
  if planes.dtype.kind in 'iu':
    whole = [np.int16, np.int32, np.float32]  # the first that holds them
    limits = [np.iinfo(kind) for kind in whole[:2]]
    fits = [k.min <= planes.min() and planes.max() <= k.max for k in limits]
    planes = planes.astype(whole[fits.index(True) if any(fits) else 2])
  else:
    planes = planes.astype(np.float32)
  planes = _filled(planes, series.places)
  array = planes.transpose(2, 1, 0)[..., None]
  return Volume(np.ascontiguousarray(from_file_order(array, grid)), grid)


def _filled(planes: np.ndarray, places: Sequence[int]) -> np.ndarray:
  """Returns the planes, and between them those that are missing, linearly."""
  if len(places) == places[-1] + 1:
    return planes
  whole = np.empty((places[-1] + 1, *planes.shape[1:]), planes.dtype)
  for i, (low, high) in enumerate(zip(places, places[1:], strict=False)):
    for place in range(low, high):
      share = (place - low) / (high - low)
      between = (1 - share) * planes[i] + share * planes[i + 1]
      whole[place] = np.rint(between) if planes.dtype.kind == 'i' else between
  whole[-1] = planes[-1]
  return whole


def to_native(array: np.ndarray, series: Series) -> np.ndarray:
  """Returns `[z, y, x]`, as `read_volume` gives it, as `[n, rows, columns]`.

  Without slices that are filled in.
  """
  whole = to_file_order(array, grid_of_series(series)).transpose(2, 1, 0)
  if len(whole) == len(series.frames):
    return whole
  return whole[list(series.places)]


def from_native(
  mask: np.ndarray, series: Series, *, missing: int = 0
) -> np.ndarray:
  """Returns `[n, rows, columns]` as `read_volume` has it, `[z, y, x]`.

  Args:
    mask: of any type.
    series: of `n` slices.
    missing: value of slices that are filled in.
  """
  grid = grid_of_series(series)
  whole = np.full((series.places[-1] + 1, *mask.shape[1:]), missing, mask.dtype)
  whole[list(series.places)] = mask
  array = from_file_order(whole.transpose(2, 1, 0)[..., None], grid)
  return np.ascontiguousarray(array[..., 0])


def measured(series: Series) -> np.ndarray | None:
  """Returns which planes of `read_volume` are slices, None where all are.

  Bool, of three axes, of which two have the size 1.
  """
  if not series.missing:
    return None
  found = from_native(
    np.ones((len(series.frames), *series.first.shape), bool), series
  )
  [axis] = [i for i, own in enumerate(grid_of_series(series).axes) if own == 2]
  return found.all(tuple({0, 1, 2} - {axis}), keepdims=True)


def grid_of_series(series: Series) -> Grid:
  """Returns where the voxels of `read_volume` lie."""
  rows, columns = series.first.shape
  affine = _TO_RAS @ series.affine
  return grid_of(affine, (columns, rows, series.places[-1] + 1))


def lacks_rescale(frame: Frame) -> bool:
  """Returns whether a slice is of a CT and does not tell its values in HU."""
  return frame.rescale is None and frame.header.get('Modality') == 'CT'


def _values(
  frame: Frame, assume_hounsfield: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a slice's values, HU of a CT, and where it has none.

  Both `[rows, columns]`.
  """
  stored, header = _stored(frame), frame.header
  if lacks_rescale(frame) and not assume_hounsfield:
    raise InputError(
      f'{frame.path}: a CT without RescaleSlope and RescaleIntercept, so what '
      'its values are in Hounsfield units cannot be told; where they are that '
      'as they are stored, --config.data.assume_hounsfield=true takes them so'
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
    return open_file(path).pixel_array
  except Exception as error:  # of whatever decoder
    text = ' '.join(str(error).split())[:200]
    raise InputError(
      f'{path}: its pixels cannot be read ({type(error).__name__}: {text})'
    ) from error
