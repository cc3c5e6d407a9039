"""Masks as DICOM Segmentation objects (PS3.3, section A.51), by highdicom."""

import os
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import highdicom as hd
import numpy as np
from pydicom.sr.coding import Code
from pydicom.uid import UID, SegmentationStorage

from medseg_jax.clinic import identity
from medseg_jax.clinic.codes import Meaning
from medseg_jax.data.formats.dicom.frames import Frame
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.runtime.files import replacing

_LABEL_MAP = UID('1.2.840.10008.5.1.4.1.1.66.7')  # pydicom 3.0 has no name


class Identity(NamedTuple):
  """Names of a segmentation.

  Attributes:
    series: UID.
    instance: UID.
    kind: of the object, its SOPClassUID.
    result: text that differs where what is written differs.
  """

  series: str
  instance: str
  kind: str
  result: str


def identity_of(
  mask: np.ndarray,
  series: Series,
  *,
  meanings: Sequence[Meaning],
  model: str,
  version: str,
  labelmap: bool = False,
) -> Identity:
  """Returns the names of what `write` writes; arguments are the same."""
  form = 'LABELMAP' if labelmap else 'BINARY'
  result = identity.result_of(mask, series, meanings, form)
  return Identity(
    identity.uid(series, model, version, 'SEG'),
    identity.uid(series, model, version, result, 'SEG'),
    _LABEL_MAP if labelmap else SegmentationStorage,
    result,
  )


def write(
  path: str | os.PathLike,
  mask: np.ndarray,
  series: Series,
  *,
  meanings: Sequence[Meaning],
  model: str,
  version: str,
  labelmap: bool = False,
) -> None:
  """Writes a mask for the slices that it lies on; the same gives the same.

  Segments are numbered from 1 in the order of the classes, empty ones included.

  Args:
    path: of the file, which appears complete or not at all.
    mask: `[n, rows, columns]` class indices, 0 the background.
    series: of the `n` slices.
    meanings: of the classes but the background.
    model: its name.
    version: of the model or the program.
    labelmap: whether to write a label map, which is smaller, but that not all
      viewers read, in place of a plane of bits for each segment.

  Raises:
    InputError: the series says not who it is of.
  """
  identity.check(series)
  form = 'LABELMAP' if labelmap else 'BINARY'
  own = identity_of(
    mask,
    series,
    meanings=meanings,
    model=model,
    version=version,
    labelmap=labelmap,
  )
  result = own.result
  labels = identity.unique([meaning.name for meaning in meanings], 64)
  algorithm = hd.AlgorithmIdentificationSequence(
    name=model[:64],
    version=version[:64],
    family=Code('123110', 'DCM', 'Artificial Intelligence'),
  )
  descriptions = []
  for i, meaning in enumerate(meanings):
    descriptions.append(
      hd.seg.SegmentDescription(
        segment_number=i + 1,
        segment_label=labels[i],
        segmented_property_category=Code(
          meaning.category[0], 'SCT', meaning.category[1]
        ),
        segmented_property_type=Code(meaning.kind[0], 'SCT', meaning.kind[1]),
        algorithm_type='AUTOMATIC',
        algorithm_identification=algorithm,
        tracking_uid=identity.tracked(
          series, model=model, version=version, result=result, name=meaning.name
        ),
        tracking_id=labels[i],
        display_color=hd.color.CIELabColor.from_rgb(*meaning.colour),
      )
    )
  # Of nothing one slice is written: highdicom would write all, empty.
  used = series.frames if mask.any() else series.frames[:1]
  mask = mask[: len(used)]
  headers = [identity.complete(frame.header) for frame in used]
  several = len({frame.path for frame in series.frames}) == 1
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # on the values that the scanner wrote
    dataset = hd.seg.Segmentation(
      source_images=headers[:1] if several else headers,
      pixel_array=mask.astype(np.uint8 if len(meanings) < 256 else np.uint16),
      segmentation_type=form,
      segment_descriptions=descriptions,
      series_instance_uid=own.series,
      series_number=series_number(series),
      sop_instance_uid=own.instance,
      instance_number=1,
      manufacturer=identity.MANUFACTURER,
      manufacturer_model_name=model[:64],
      software_versions=version[:64],
      device_serial_number=version[:64],
      content_label='SEGMENTATION',
      content_description=f'Segmentation by {model}'[:64],
      omit_empty_frames=bool(mask.any()),
      **_geometry(series, used),
    )
  identity.describe(
    dataset, series, what='Segmentation', model=model, version=version
  )
  dimensions = identity.uid(series, model, version, result, 'dimensions')
  for element in dataset.iterall():
    if element.keyword == 'DimensionOrganizationUID':
      element.value = dimensions
  with replacing(path) as temporary:
    dataset.save_as(temporary, enforce_file_format=True)


def _geometry(series: Series, used: Sequence[Frame]) -> dict:
  """Returns where some slices lie, which the series' own files say."""
  first = series.first
  positions = [
    hd.PlanePositionSequence(
      coordinate_system='PATIENT', image_position=frame.position.tolist()
    )
    for frame in used
  ]
  along = series.affine[:3, 2]
  normal = np.cross(first.row_direction, first.column_direction)
  gap = float(abs(normal @ along))
  return {
    'plane_positions': positions,
    'plane_orientation': hd.PlaneOrientationSequence(
      coordinate_system='PATIENT',
      image_orientation=[*first.row_direction, *first.column_direction],
    ),
    'pixel_measures': hd.PixelMeasuresSequence(
      pixel_spacing=first.pixel_spacing,
      slice_thickness=gap,
      spacing_between_slices=gap,
    ),
  }


def series_number(series: Series) -> int:
  """Returns a number that the study's own series hardly have."""
  return 9000 + int(series.first.header.get('SeriesNumber') or 0) % 900
