"""Measurements as a DICOM Structured Report (template 1500), by highdicom."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from medseg_jax.clinic import identity, segmentation
from medseg_jax.clinic.codes import Meaning
from medseg_jax.clinic.measurements import Measured
from medseg_jax.clinic.numbers import MOST_LESIONS, WARNING, Structure
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.runtime.files import replacing

_VOLUME = Code('118565006', 'SCT', 'Volume')
_LONG = Code('103339001', 'SCT', 'Long axis')
_SHORT = Code('103340004', 'SCT', 'Short axis')
_MEAN = Code('373098007', 'SCT', 'Mean')
_SD = Code('386136009', 'SCT', 'Standard Deviation')
_QUANTITY = Code('246205007', 'SCT', 'Quantity')
_ML, _MM = Code('ml', 'UCUM', 'ml'), Code('mm', 'UCUM', 'mm')
_LESIONS = Code('{lesions}', 'UCUM', 'lesions')
# Of each modality: what was done, what its values are, and their unit.
_PROCEDURES = {
  'CT': Code('25045-6', 'LN', 'CT unspecified body region'),
  'MR': Code('25056-3', 'LN', 'MRI unspecified body region'),
  'PT': Code('44136-0', 'LN', 'PET unspecified body region'),
  'NM': Code('49118-3', 'LN', 'NM unspecified body region'),
}
_OTHER_PROCEDURE = Code('363679005', 'SCT', 'Imaging procedure')
_INTENSITIES = {
  'CT': (
    Code('112031', 'DCM', 'Attenuation Coefficient'),
    Code("[hnsf'U]", 'UCUM', 'Hounsfield unit'),
  ),
  'MR': (
    Code('110852', 'DCM', 'MR signal intensity'),
    Code('1', 'UCUM', 'no units'),
  ),
}
_REFERS = ('StudyInstanceUID', 'SeriesInstanceUID')


def write(
  path: str | os.PathLike,
  structures: Sequence[Structure],
  mask: np.ndarray,
  series: Series,
  *,
  meanings: Sequence[Meaning],
  model: str,
  version: str,
  labelmap: bool = False,
) -> None:
  """Writes a report that refers to the segments of the same mask's file.

  Each class is a group of measurements, and each lesion one of its own, with
  the ends of its diameters in the patient; of very many the largest. What is
  tracked of a class has the names that its segment has, and each lesion its
  own: a segment has but one, and segments that overlap are shown by few.

  Args:
    path: of the file, which appears complete or not at all.
    structures: of each class but the background, in their order.
    mask: `[n, rows, columns]` class indices, see `segmentation.write`.
    series: of the `n` slices.
    meanings: of the classes but the background.
    model: its name.
    version: of the model or the program.
    labelmap: whether the segments are in a label map.

  Raises:
    InputError: the series says not who it is of.
  """
  identity.check(series)
  of = segmentation.identity_of(
    mask,
    series,
    meanings=meanings,
    model=model,
    version=version,
    labelmap=labelmap,
  )
  labels = identity.unique([meaning.name for meaning in meanings], 64)
  groups: list[Any] = []
  for i, structure in enumerate(structures):
    segment = hd.sr.ReferencedSegment(
      sop_class_uid=of.kind,
      sop_instance_uid=of.instance,
      segment_number=i + 1,
      source_series=hd.sr.SourceSeriesForSegmentation(series.first.series),
    )
    groups += _groups(
      structure,
      segment,
      series,
      label=labels[i],
      model=model,
      version=version,
      result=of.result,
    )
  # Intervals may change where the mask does not.
  told = repr([(s.measured.volume, *s.interval) for s in structures])
  header = identity.complete(series.first.header)
  modality = str(header.get('Modality', ''))
  device = hd.sr.ObserverContext(
    observer_type=hd.sr.CodedConcept('121007', 'DCM', 'Device'),
    observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
      uid=identity.uid(series, model, version, 'device'),
      name=model[:64],
      manufacturer_name=identity.MANUFACTURER,
      model_name=model[:64],
    ),
  )
  content = hd.sr.MeasurementReport(
    observation_context=hd.sr.ObservationContext(
      observer_device_context=device
    ),
    procedure_reported=_PROCEDURES.get(modality, _OTHER_PROCEDURE),
    imaging_measurements=groups,
    title=Code('126000', 'DCM', 'Imaging Measurement Report'),
  )
  segments = Dataset()
  for name in _REFERS:
    setattr(segments, name, header.get(name))
  segments.SOPClassUID, segments.SOPInstanceUID = of.kind, of.instance
  segments.SeriesInstanceUID = of.series
  evidence = list({f.instance: f.header for f in series.frames}.values())
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # on the values that the scanner wrote
    dataset = hd.sr.Comprehensive3DSR(
      evidence=[header, *evidence[1:], segments],
      content=content[0],
      series_instance_uid=identity.uid(series, model, version, 'SR'),
      series_number=segmentation.series_number(series) + 2,
      sop_instance_uid=identity.uid(
        series, model, version, of.result, told, 'SR'
      ),
      instance_number=1,
      manufacturer=identity.MANUFACTURER,
      is_complete=True,
      is_verified=False,
    )
  identity.describe(
    dataset, series, what='Measurements', model=model, version=version
  )
  dataset.CompletionFlagDescription = WARNING[:64]
  with replacing(path) as temporary:
    dataset.save_as(temporary, enforce_file_format=True)


def _groups(
  structure: Structure,
  segment: hd.sr.ReferencedSegment,
  series: Series,
  *,
  label: str,
  model: str,
  version: str,
  result: str,
) -> Iterator[Any]:
  """Yields the measurements of a class and of each of its lesions.

  Those of a class are of its segment (template 1411). A lesion has no segment
  of its own: the ends of its diameters tell where it is (template 1501).
  """
  meaning, whole, interval = structure
  algorithm = hd.sr.AlgorithmIdentification(model[:64], version[:64])

  def about(found: list[hd.sr.Measurement], lesion: int = 0) -> dict[str, Any]:
    uid = identity.tracked(
      series,
      model=model,
      version=version,
      result=result,
      name=meaning.name,
      lesion=lesion,
    )
    return {
      'tracking_identifier': hd.sr.TrackingIdentifier(
        uid=uid, identifier=f'{label[:56]} {lesion}' if lesion else label
      ),
      'finding_category': Code(meaning.category[0], 'SCT', meaning.category[1]),
      'finding_type': Code(meaning.kind[0], 'SCT', meaning.kind[1]),
      'algorithm_id': algorithm,
      'measurements': found,
    }

  found = [*_measurements(whole, series, interval=interval)]
  if meaning.lesion:
    number = float(len(whole.lesions))
    found.append(hd.sr.Measurement(_QUANTITY, number, _LESIONS))
  yield hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
    referenced_segment=segment, **about(found)
  )
  for i, lesion in enumerate(whole.lesions[:MOST_LESIONS], start=1):
    own = [*_measurements(lesion, series, with_ends=True)]
    yield hd.sr.MeasurementsAndQualitativeEvaluations(**about(own, i))


def _measurements(
  measured: Measured,
  series: Series,
  *,
  interval: Sequence[float] = (),
  with_ends: bool = False,
) -> Iterator[hd.sr.Measurement]:
  properties = None
  volume = _short(measured.volume)
  if interval and interval[0] <= volume <= interval[1] < math.inf:
    properties = hd.sr.MeasurementProperties(
      upper_measurement_uncertainty=_short(interval[1] - volume),
      lower_measurement_uncertainty=_short(volume - interval[0]),
    )
  yield hd.sr.Measurement(_VOLUME, volume, _ML, properties=properties)
  if measured.diameters is not None:
    place = str(series.first.header.FrameOfReferenceUID)
    for name, length, ends in (
      (_LONG, measured.diameters.longest, measured.ends[:2]),
      (_SHORT, measured.diameters.perpendicular, measured.ends[2:]),
    ):
      lines = None
      if with_ends:
        lines = [
          hd.sr.CoordinatesForMeasurement3D(
            graphic_type='POLYLINE',
            graphic_data=np.array(ends),
            frame_of_reference_uid=place,
          )
        ]
      yield hd.sr.Measurement(
        name, _short(length), _MM, referenced_coordinates=lines
      )
  modality = str(series.first.header.get('Modality', ''))
  if measured.intensity and modality in _INTENSITIES:
    name, unit = _INTENSITIES[modality]
    of = measured.intensity[0]
    for value, derivation in ((of.mean, _MEAN), (of.sd, _SD)):
      yield hd.sr.Measurement(name, _short(value), unit, derivation=derivation)


def _short(value: float) -> float:
  """Returns it with six digits, as the other files of a report have it."""
  return float(f'{value:.6g}')
