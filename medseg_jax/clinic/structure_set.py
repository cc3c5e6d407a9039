"""Masks as DICOM RT Structure Sets (PS3.3, section A.19), and back."""

import os
from collections.abc import Collection, Sequence

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
  targets: Collection[str] = (),
  keyhole: bool = False,
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
    targets: names of the classes that are gross tumour volumes (GTV), not
      organs.
    keyhole: whether holes are part of the contour around them, see `contours`.

  Raises:
    InputError: the series says not who it is of.
  """
  identity.check(series)
  header = identity.complete(series.first.header)
  form = f'RTSTRUCT {sorted(targets)} {keyhole}'
  result = identity.result_of(mask, series, meanings, form)
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
  dataset.SOPClassUID = RTStructureSetStorage
  dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  dataset.Modality = 'RTSTRUCT'
  dataset.SeriesInstanceUID = identity.uid(series, model, version, 'RTSTRUCT')
  dataset.SeriesNumber = None
  dataset.OperatorsName = None
  dataset.StructureSetLabel = 'AUTOMATIC'
  dataset.InstanceNumber = 1
  dataset.ApprovalStatus = 'UNAPPROVED'
  dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
  dataset.PositionReferenceIndicator = header.get('PositionReferenceIndicator')
  dataset.ReferencedFrameOfReferenceSequence = [_reference(series)]
  identity.describe(
    dataset, series, what='Structures', model=model, version=version
  )
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
    drawn = [
      _contour(points, frame)
      for frame, plane in zip(series.frames, mask == i, strict=True)
      for points in contours.of_slice(plane, keyhole=keyhole)
    ]
    kind = 'GTV' if meaning.name in targets else 'ORGAN'
    _add(dataset, i, meaning.colour, name, label, kind, drawn)
  with replacing(path) as temporary:
    dataset.save_as(temporary, enforce_file_format=True)


def _add(
  dataset: Dataset,
  number: int,
  colour: tuple[int, int, int],
  name: str,
  label: str,
  kind: str,
  drawn_contours: list[Dataset],
) -> None:
  region = Dataset()
  region.ROINumber = number
  region.ReferencedFrameOfReferenceUID = dataset.FrameOfReferenceUID
  region.ROIName = name
  region.ROIGenerationAlgorithm = 'AUTOMATIC'
  dataset.StructureSetROISequence.append(region)
  drawn = Dataset()
  drawn.ROIDisplayColor = list(colour)
  drawn.ReferencedROINumber = number
  if drawn_contours:  # a sequence that is there has an item
    drawn.ContourSequence = drawn_contours
  dataset.ROIContourSequence.append(drawn)
  observed = Dataset()
  observed.ObservationNumber = number
  observed.ReferencedROINumber = number
  observed.ROIObservationLabel = label
  observed.RTROIInterpretedType = kind
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
