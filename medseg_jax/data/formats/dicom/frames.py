"""What one slice says of itself, whether it has a file of its own or not.

Patient coordinates are DICOM's: millimetres towards left, posterior, superior.
Attributes: DICOM PS3.3, sections C.7.6.2 (image plane), C.11.1 (rescale) and
C.7.6.16 (multi-frame functional groups).
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset

# Of frames at one place, what tells them apart, by the attribute's keyword.
PHASES = (
  'TemporalPositionIdentifier',
  'EchoTime',
  'DiffusionBValue',
  'TriggerTime',
  'AcquisitionNumber',
)
# Functional groups that phases are told in, of an enhanced image.
_PHASE_GROUPS = {
  'TemporalPositionIdentifier': (
    'FrameContentSequence',
    'TemporalPositionIndex',
  ),
  'EchoTime': ('MREchoSequence', 'EffectiveEchoTime'),
  'DiffusionBValue': ('MRDiffusionSequence', 'DiffusionBValue'),
  'AcquisitionNumber': (
    'FrameContentSequence',
    'FrameAcquisitionNumber',
  ),
}


class NoSlice(ValueError):
  """Why a file, or a frame of it, is no slice of a volume."""


class Damaged(NoSlice):
  """Why a file that should hold a slice does not."""


class Frame(NamedTuple):
  """One slice as it is stored.

  Attributes:
    path: of its file.
    number: in the file, from 0; 0 where the file holds one.
    position: `[3]` float64 mm, the centre of its first pixel.
    row_direction: `[3]` float64, in which the column index grows.
    column_direction: `[3]` float64, in which the row index grows.
    pixel_spacing: mm from one row to the next, and one column to the next.
    shape: rows and columns.
    rescale: slope and intercept, or None where the file has none.
    phase: of each of `PHASES` what the file says, None where nothing.
    study: its UID, '' where the file has none.
    series: likewise.
    instance: SOPInstanceUID, likewise.
    header: the file's data set without its pixels.
  """

  path: pathlib.Path
  number: int
  position: np.ndarray
  row_direction: np.ndarray
  column_direction: np.ndarray
  pixel_spacing: tuple[float, float]
  shape: tuple[int, int]
  rescale: tuple[float, float] | None
  phase: tuple[Any, ...]
  study: str
  series: str
  instance: str
  header: Dataset


def frames_of(path: pathlib.Path, header: Dataset) -> list[Frame]:
  """Returns the slices of a file.

  Args:
    path: of the file.
    header: its data set, which needs no pixels.

  Raises:
    NoSlice: it holds none; Damaged, where it should.
  """
  kind = getattr(header.get('SOPClassUID'), 'name', '')
  if 'Rows' not in header or 'Columns' not in header:
    if not kind or kind.endswith('Image Storage'):
      raise Damaged('cut off: neither its size nor its pixels are there')
    raise NoSlice(f'no image ({kind})')
  try:
    return _slices(path, header)
  except (TypeError, ValueError, AttributeError, IndexError) as error:
    if isinstance(error, NoSlice):
      raise
    text = ' '.join(str(error).split())[:100]
    raise Damaged(f'its attributes make no sense ({text})') from error


def _slices(path: pathlib.Path, header: Dataset) -> list[Frame]:
  colour = str(header.get('PhotometricInterpretation', ''))
  if int(header.get('SamplesPerPixel', 1)) != 1 or 'PALETTE' in colour:
    raise NoSlice(
      f'a colour image ({colour or "RGB"}); allowed are grey ones, as scanners '
      'measure'
    )
  if header.get('Modality') == 'SEG' or 'SegmentSequence' in header:
    raise NoSlice('a segmentation, no image')
  if 'LOCALIZER' in [str(part) for part in header.get('ImageType', ())]:
    raise NoSlice('a localizer')
  number = int(header.get('NumberOfFrames', 1) or 1)
  groups = header.get('PerFrameFunctionalGroupsSequence')
  if groups is None:
    if number > 1:
      raise NoSlice(
        f'{number} frames without a position each, as of a film; allowed are '
        'slices, or an enhanced multi-frame image'
      )
    return [_frame(path, 0, header, header, header, header)]
  if len(groups) != number:
    raise NoSlice(
      f'{number} frames, but {len(groups)} descriptions of frames: damaged'
    )
  shared = (header.get('SharedFunctionalGroupsSequence') or [Dataset()])[0]
  return [
    _enhanced(path, i, header, own, shared) for i, own in enumerate(groups)
  ]


def _enhanced(
  path: pathlib.Path,
  number: int,
  header: Dataset,
  own: Dataset,
  shared: Dataset,
) -> Frame:
  def group(name: str) -> Dataset:
    found = own.get(name) or shared.get(name)
    return found[0] if found else Dataset()

  frame = _frame(
    path,
    number,
    header,
    group('PlanePositionSequence'),
    group('PlaneOrientationSequence'),
    group('PixelMeasuresSequence'),
    group('PixelValueTransformationSequence'),
  )
  phase = tuple(
    _plain(group(_PHASE_GROUPS[name][0]).get(_PHASE_GROUPS[name][1]))
    if name in _PHASE_GROUPS
    else None
    for name in PHASES
  )
  return frame._replace(phase=phase)


def _frame(
  path: pathlib.Path,
  number: int,
  header: Dataset,
  place: Dataset,
  orientation: Dataset,
  measures: Dataset,
  values: Dataset | None = None,
) -> Frame:
  values = header if values is None else values
  position = _numbers(place, 'ImagePositionPatient', 3)
  directions = _numbers(orientation, 'ImageOrientationPatient', 6)
  spacing = _numbers(measures, 'PixelSpacing', 2)
  row, column = directions[:3], directions[3:]
  lengths = np.linalg.norm(row), np.linalg.norm(column)
  if not np.allclose(lengths, 1, atol=1e-3) or abs(row @ column) > 1e-3:
    raise NoSlice('its ImageOrientationPatient is no pair of right angles')
  if (spacing <= 0).any():
    raise NoSlice(f'its PixelSpacing is {spacing.tolist()}')
  rescale = None
  if values.get('RescaleSlope') is not None:
    slope = float(values.RescaleSlope)
    rescale = (slope, float(values.get('RescaleIntercept') or 0))
  return Frame(
    path=path,
    number=number,
    position=position,
    row_direction=row / lengths[0],
    column_direction=column / lengths[1],
    pixel_spacing=(float(spacing[0]), float(spacing[1])),
    shape=(int(header.Rows), int(header.Columns)),
    rescale=rescale,
    phase=tuple(_plain(header.get(name)) for name in PHASES),
    study=str(header.get('StudyInstanceUID', '')),
    series=str(header.get('SeriesInstanceUID', '')),
    instance=str(header.get('SOPInstanceUID', '')),
    header=header,
  )


def _numbers(dataset: Dataset, keyword: str, count: int) -> np.ndarray:
  try:
    found = np.array([float(x) for x in dataset.get(keyword) or ()])
  except (TypeError, ValueError) as error:
    raise NoSlice(f'its {keyword} is no numbers') from error
  if len(found) != count or not np.isfinite(found).all():
    raise NoSlice(f'no {keyword}, so where it lies cannot be told')
  return found


def _plain(value: Any) -> Any:
  """Returns a value that can be compared and printed, None for nothing."""
  if value is None or value == '':
    return None
  try:
    return float(value)
  except (TypeError, ValueError):
    return str(value)
