"""Masks that come as DICOM objects: segmentations and structure sets.

A segmentation (PS3.3, section A.51) has frames, each on a slice of its series;
a structure set (A.19) has contours, of which the pixels are taken whose centres
they enclose.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from medseg_jax.data.formats.dicom.opening import open_file
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.data.formats.first_bytes import is_dicom
from medseg_jax.runtime.errors import InputError

_SEGMENTATIONS = (
  '1.2.840.10008.5.1.4.1.1.66.4',
  '1.2.840.10008.5.1.4.1.1.66.7',  # label maps
)
_STRUCTURE_SET = '1.2.840.10008.5.1.4.1.1.481.3'
# How far a frame may lie off its slice: cosines of directions, and a share of
# pixels and of the gap between slices.
_SAME_DIRECTION, _SAME_SIZE, _SAME_PLACE = 1e-3, 1e-3, 0.1


class LabelObject(NamedTuple):
  """What a file says of its masks without their voxels.

  Attributes:
    path: of it.
    series: UIDs of the series that it refers to.
    names: of its segments or regions, by number.
    is_segmentation: whether it is one; else it is a structure set.
  """

  path: pathlib.Path
  series: tuple[str, ...]
  names: Mapping[int, str]
  is_segmentation: bool


def look(path: pathlib.Path) -> LabelObject | None:
  """Returns what a file holds, None where it is no mask.

  Raises:
    InputError: it is one, but damaged.
  """
  if not is_dicom(path):
    return None
  try:
    header = open_file(path, pixels=False)
  except Exception:  # of all kinds; it may be anything
    return None
  kind = str(header.get('SOPClassUID', ''))
  try:
    if kind in _SEGMENTATIONS:
      names = {
        int(segment.SegmentNumber): str(segment.SegmentLabel)
        for segment in header.SegmentSequence
        if str(segment.SegmentLabel).lower() != 'background'
      }
      referred = header.get('ReferencedSeriesSequence') or []
      series = tuple(str(each.SeriesInstanceUID) for each in referred)
      return LabelObject(path, series, names, True)
    if kind == _STRUCTURE_SET:
      names = {
        int(region.ROINumber): str(region.ROIName)
        for region in header.StructureSetROISequence
      }
      series = tuple(
        str(each.SeriesInstanceUID)
        for frame in header.get('ReferencedFrameOfReferenceSequence') or []
        for study in frame.get('RTReferencedStudySequence') or []
        for each in study.get('RTReferencedSeriesSequence') or []
      )
      return LabelObject(path, series, names, False)
  except (AttributeError, TypeError, ValueError) as error:
    text = ' '.join(str(error).split())[:100]
    raise InputError(f'{path}: its regions make no sense ({text})') from error
  return None


def read(
  of: LabelObject, series: Series, names: Sequence[str]
) -> tuple[np.ndarray, int]:
  """Returns a mask, and how many voxels are in more than one class.

  The mask is `[n, rows, columns]` int16 class indices; where classes overlap
  the last one wins.

  Args:
    of: the file.
    series: that it lies on, of `n` slices.
    names: of the classes but the background; one that the file lacks is empty.

  Raises:
    InputError: the file cannot be read, or does not lie on the slices.
  """
  numbers: dict[str, list[int]] = {}
  for number, name in of.names.items():
    numbers.setdefault(name, []).append(number)
  try:
    dataset = open_file(of.path)
    planes_of = _segments if of.is_segmentation else _regions
    planes = planes_of(of.path, dataset, series)
  except InputError:
    raise
  except Exception as error:  # pydicom and its decoders raise all kinds
    text = ' '.join(str(error).split())[:150]
    raise InputError(
      f'{of.path}: its masks cannot be read ({type(error).__name__}: {text})'
    ) from error
  mask = np.zeros((len(series.frames), *series.first.shape), np.int16)
  overlapping = 0
  for index, name in enumerate(names, start=1):
    for number in numbers.get(name, ()):
      for i, inside in planes.get(number, {}).items():
        overlapping += int(np.count_nonzero(mask[i][inside] % index))
        mask[i][inside] = index
  return mask, overlapping


def _segments(
  path: pathlib.Path, dataset: Dataset, series: Series
) -> dict[int, dict[int, np.ndarray]]:
  """Returns the pixels of each segment, on each slice that has some."""
  pixels = np.asarray(dataset.pixel_array)
  pixels = pixels[None] if pixels.ndim == 2 else pixels
  labelmap = 'LABELMAP' in str(dataset.get('SegmentationType', ''))
  # Of fractions those that are one half or more.
  half = float(dataset.get('MaximumFractionalValue') or 1) / 2
  shared = (dataset.get('SharedFunctionalGroupsSequence') or [Dataset()])[0]
  found: dict[int, dict[int, np.ndarray]] = {}
  for frame, own in zip(
    pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True
  ):

    def group(name: str, own: Dataset = own) -> Dataset:
      return (own.get(name) or shared.get(name))[0]

    position = group('PlanePositionSequence').ImagePositionPatient
    directions = group('PlaneOrientationSequence').ImageOrientationPatient
    spacing = group('PixelMeasuresSequence').PixelSpacing
    i = _slice_of(path, frame.shape, position, directions, spacing, series)
    if labelmap:
      masks = {int(k): frame == k for k in np.unique(frame) if k}
    else:
      identity = group('SegmentIdentificationSequence')
      masks = {int(identity.ReferencedSegmentNumber): frame >= half}
    for number, inside in masks.items():
      if inside.any():
        planes = found.setdefault(number, {})
        planes[i] = planes[i] | inside if i in planes else inside
  return found


def _slice_of(
  path: pathlib.Path,
  shape: tuple[int, ...],
  position: Sequence[float],
  directions: Sequence[float],
  spacing: Sequence[float],
  series: Series,
) -> int:
  """Returns the slice that a frame lies on.

  Raises:
    InputError: on none.
  """
  first = series.first
  own = np.asarray(directions, np.float64)
  theirs = np.concatenate([first.row_direction, first.column_direction])
  size = np.asarray(spacing, np.float64) / first.pixel_spacing
  places = np.array([frame.position for frame in series.frames])
  distances = np.linalg.norm(places - np.asarray(position, np.float64), axis=1)
  i = int(distances.argmin())
  gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
  if (
    tuple(shape) != first.shape
    or np.abs(own - theirs).max() > _SAME_DIRECTION
    or np.abs(size - 1).max() > _SAME_SIZE
    or distances[i] > _SAME_PLACE * np.median(gaps)
  ):
    raise InputError(
      f'{path}: a frame of {shape[0]}x{shape[1]} pixels that lies on no slice '
      f'of the series {series.name}; allowed are frames on its slices'
    )
  return i


def _regions(
  path: pathlib.Path, dataset: Dataset, series: Series
) -> dict[int, dict[int, np.ndarray]]:
  """Returns the pixels of each region, on each slice that has some.

  Contours lie on the slice that is nearest to them; of one slice and region
  they are combined by exclusive or.
  """
  first = series.first
  normal = np.cross(first.row_direction, first.column_direction)
  heights = np.array([normal @ frame.position for frame in series.frames])
  near = 0.5 * np.median(np.diff(heights))
  found: dict[int, dict[int, np.ndarray]] = {}
  for region in dataset.ROIContourSequence:
    by_slice: dict[int, list[np.ndarray]] = {}
    for contour in region.get('ContourSequence') or []:
      if str(contour.get('ContourGeometricType', '')) == 'POINT':
        continue  # a mark, which encloses nothing
      own = np.asarray(contour.ContourData, np.float64).reshape(-1, 3)
      i = int(np.abs(heights - normal @ own[0]).argmin())
      if np.abs(heights[i] - own @ normal).max() > near:
        raise InputError(
          f'{path}: a contour lies on no slice of the series {series.name}'
        )
      offset = own - series.frames[i].position
      points = np.stack(
        [
          offset @ first.column_direction / first.pixel_spacing[0],
          offset @ first.row_direction / first.pixel_spacing[1],
        ],
        -1,
      )
      by_slice.setdefault(i, []).append(points)
    found[int(region.ReferencedROINumber)] = {
      i: rasterise(drawn, first.shape) for i, drawn in by_slice.items()
    }
  return found


def rasterise(
  contours: Sequence[np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
  """Returns the pixels whose centres contours enclose, `[rows, columns]` bool.

  A pixel inside an even number of them is outside: a hole.

  Args:
    contours: each `[n, 2]` (row, column).
    shape: rows and columns.
  """
  inside = np.zeros(shape, bool)
  columns = np.arange(shape[1])
  for points in contours:
    following = np.roll(points, -1, axis=0)
    low = np.minimum(points[:, 0], following[:, 0])
    high = np.maximum(points[:, 0], following[:, 0])
    first = max(int(np.ceil(low.min())), 0)
    last = min(int(np.floor(high.max())), shape[0] - 1)
    for row in range(first, last + 1):
      # Half-open, so that a corner on the row's line counts once.
      cut = (low <= row) & (row < high)
      (y0, x0), (y1, x1) = points[cut].T, following[cut].T
      crossings = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
      # Each crossing turns all pixels to its right over.
      inside[row] ^= (np.sum(crossings[:, None] < columns, 0) % 2).astype(bool)
  return inside
