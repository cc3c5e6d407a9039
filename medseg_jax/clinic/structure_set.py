"""Masks as DICOM RT Structure Sets (PS3.3, section A.19), and back."""

import os
from collections.abc import Sequence

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import (
  PYDICOM_IMPLEMENTATION_UID,
  UID,
  ImplicitVRLittleEndian,
  RTStructureSetStorage,
)

from medseg_jax.clinic import contours, identity
from medseg_jax.clinic.codes import Meaning
from medseg_jax.clinic.segmentation import MANUFACTURER
from medseg_jax.data.formats.dicom.frames import Frame
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.runtime.files import replacing

_LABEL, _NAME = 16, 64  # characters of SH and LO
_DETACHED_STUDY = '1.2.840.10008.3.1.2.3.1'


def write(
  path: str | os.PathLike,
  mask: np.ndarray,
  series: Series,
  *,
  meanings: Sequence[Meaning],
  model: str,
  version: str,
) -> None:
  """Writes the contours of a mask; the same mask gives the same file.

  Every class has a region of interest, also where it is empty. Holes are
  further contours: readers combine those of one slice by exclusive or.

  Args:
    path: of the file, which appears complete or not at all.
    mask: `[n, rows, columns]` class indices, 0 the background.
    series: of the `n` slices.
    meanings: of the classes but the background.
    model: its name.
    version: of the model or the program.

  Raises:
    InputError: the series says not who it is of.
  """
  identity.check(series)
  header = identity.complete(series.first.header)
  result = identity.result_of(mask, series, meanings, 'RTSTRUCT')
  of = (model, version, result)
  meta = FileMetaDataset()
  meta.MediaStorageSOPClassUID = RTStructureSetStorage
  meta.MediaStorageSOPInstanceUID = UID(identity.uid(series, *of))
  # The explicit one has no room for a contour of 64 kB.
  meta.TransferSyntaxUID = ImplicitVRLittleEndian
  meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
  dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
  for name in (*identity.PATIENT, *identity.STUDY, 'StudyInstanceUID'):
    dataset[name] = header[name]
  dataset.SpecificCharacterSet = identity.UTF_8
  dataset.SOPClassUID = RTStructureSetStorage
  dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  dataset.Modality = 'RTSTRUCT'
  dataset.SeriesInstanceUID = identity.uid(series, model, version, 'RTSTRUCT')
  dataset.SeriesNumber = None
  dataset.SeriesDescription = f'Structures by {model}'[:_NAME]
  dataset.OperatorsName = None
  dataset.Manufacturer = MANUFACTURER
  dataset.ManufacturerModelName = model[:_NAME]
  dataset.SoftwareVersions = version[:_NAME]
  dataset.StructureSetLabel = 'AUTOMATIC'
  dataset.InstanceNumber = 1
  dataset.ApprovalStatus = 'UNAPPROVED'
  dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
  dataset.PositionReferenceIndicator = header.get('PositionReferenceIndicator')
  dataset.ReferencedFrameOfReferenceSequence = [_reference(series)]
  identity.date(dataset, series)
  dataset.StructureSetDate = dataset.SeriesDate
  dataset.StructureSetTime = dataset.SeriesTime
  dataset.StructureSetROISequence = []
  dataset.ROIContourSequence = []
  dataset.RTROIObservationsSequence = []
  names = [meaning.name for meaning in meanings]
  regions = zip(
    *(identity.unique(names, longest) for longest in (_NAME, _LABEL)),
    strict=True,
  )
  for i, (meaning, (name, label)) in enumerate(
    zip(meanings, regions, strict=True), start=1
  ):
    _add(dataset, i, meaning, name, label, mask == i, series)
  with replacing(path) as temporary:
    dataset.save_as(temporary, enforce_file_format=True)


def _add(
  dataset: Dataset,
  number: int,
  meaning: Meaning,
  name: str,
  label: str,
  mask: np.ndarray,
  series: Series,
) -> None:
  region = Dataset()
  region.ROINumber = number
  region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
  region.ROIName = name
  region.ROIGenerationAlgorithm = 'AUTOMATIC'
  dataset.StructureSetROISequence.append(region)
  drawn = Dataset()
  drawn.ROIDisplayColor = list(meaning.colour)
  drawn.ReferencedROINumber = number
  drawn.ContourSequence = [
    _contour(points, frame)
    for frame, plane in zip(series.frames, mask, strict=True)
    for points in contours.of_slice(plane)
  ]
  if not drawn.ContourSequence:
    del drawn.ContourSequence  # one that is there has an item
  dataset.ROIContourSequence.append(drawn)
  observed = Dataset()
  observed.ObservationNumber = number
  observed.ReferencedROINumber = number
  observed.ROIObservationLabel = label
  observed.RTROIInterpretedType = 'ORGAN'
  observed.ROIInterpreter = None
  dataset.RTROIObservationsSequence.append(observed)


def _contour(points: np.ndarray, frame: Frame) -> Dataset:
  """Returns a contour `[n, 2]` (row, column) in the patient's mm."""
  between_rows, between_columns = frame.pixel_spacing
  places = (
    frame.position
    + points[:, :1] * between_rows * frame.column_direction
    + points[:, 1:] * between_columns * frame.row_direction
  )
  contour = Dataset()
  image = Dataset()
  image.ReferencedSOPClassUID = frame.header.SOPClassUID
  image.ReferencedSOPInstanceUID = frame.instance
  if frame.header.get('NumberOfFrames'):
    image.ReferencedFrameNumber = frame.number + 1
  contour.ContourImageSequence = [image]
  contour.ContourGeometricType = 'CLOSED_PLANAR'
  contour.NumberOfContourPoints = len(points)
  # Decimal strings of 16 characters at most, as they are to lie in the file: of
  # millions of them pydicom would make objects first.
  text = '\\'.join([f'{x + 0.0:.4f}' for x in places.ravel().tolist()])
  content = text.encode() + b' ' * (len(text) % 2)
  tag = Tag('ContourData')
  contour[tag] = RawDataElement(
    tag, 'DS', len(content), content, 0, is_implicit_VR=True,
    is_little_endian=True,
  )  # fmt: skip
  contour.set_original_encoding(True, True, 'iso8859')  # only ASCII in it
  return contour


def _reference(series: Series) -> Dataset:
  """Returns the study, the series and the images that contours lie on."""
  images = []
  for instance, kind in dict.fromkeys(
    (frame.instance, str(frame.header.SOPClassUID)) for frame in series.frames
  ):
    image = Dataset()
    image.ReferencedSOPClassUID = kind
    image.ReferencedSOPInstanceUID = instance
    images.append(image)
  own = Dataset()
  own.SeriesInstanceUID = series.first.series
  own.ContourImageSequence = images
  study = Dataset()
  study.ReferencedSOPClassUID = _DETACHED_STUDY
  study.ReferencedSOPInstanceUID = series.first.study
  study.RTReferencedSeriesSequence = [own]
  frame_of_reference = Dataset()
  frame_of_reference.FrameOfReferenceUID = (
    series.first.header.FrameOfReferenceUID
  )
  frame_of_reference.RTReferencedStudySequence = [study]
  return frame_of_reference
