"""A copy of a series that has names of its own, where the series has none.

Exports made anonymous may lack what other objects refer to. The copy is a
series of its own, all of whose images have new names: two images of one name
that differ are what archives lose one of. Pixels stay as they are stored.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
  UID,
  CTImageStorage,
  MRImageStorage,
  PositronEmissionTomographyImageStorage,
  generate_uid,
)

from medseg_jax.clinic import identity
from medseg_jax.data.formats.dicom.frames import Frame
from medseg_jax.data.formats.dicom.opening import open_file
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.runtime.errors import InputError

_CLASSES = {
  'CT': CTImageStorage,
  'MR': MRImageStorage,
  'PT': PositronEmissionTomographyImageStorage,
}
# Of type 2: what may be unknown, but not absent.
_OF_ALL = (
  *('SeriesNumber', 'InstanceNumber', 'Manufacturer'),
  *('PositionReferenceIndicator', 'Laterality'),
)
_OF_CLASS: Mapping[str, tuple[str, ...]] = {
  CTImageStorage: (
    *('SliceThickness', 'PatientPosition', 'KVP', 'AcquisitionNumber'),
  ),
  MRImageStorage: (
    *('SliceThickness', 'PatientPosition', 'ScanOptions', 'EchoTime'),
    *('MRAcquisitionType', 'RepetitionTime', 'EchoTrainLength'),
  ),
}


class Names(NamedTuple):
  """What a copy is called.

  Attributes:
    study: UID, the series' own where it has one.
    series: UID.
    place: UID of the frame of reference, the series' own where it has one.
    instances: UID of each file.
  """

  study: str
  series: str
  place: str
  instances: Mapping[pathlib.Path, str]


def check(series: Series) -> None:
  """Raises InputError where a series cannot be repaired."""
  for frame in series.frames:
    _class_of(frame)


def names_of(series: Series) -> Names:
  """Returns what a copy is called, the same of the same files."""
  files = dict.fromkeys(frame.path for frame in series.frames)
  digests = {}
  for path in files:
    with open(path, 'rb') as file:
      digests[path] = hashlib.file_digest(file, 'sha256').hexdigest()
  whole = ' '.join(digests.values())

  def new(*of: str) -> str:
    return generate_uid(entropy_srcs=[whole, *of])

  place = series.first.header.get('FrameOfReferenceUID')
  return Names(
    series.first.study or new('study'),
    new('series'),
    str(place or new('frame of reference')),
    {path: new('image', digest) for path, digest in digests.items()},
  )


def renamed(series: Series, names: Names) -> Series:
  """Returns a series as its copy is read, but for where the files lie.

  Args:
    series: one that `check` lets pass.
    names: see `names_of`.
  """
  headers: dict[pathlib.Path, Dataset] = {}
  frames = []
  for frame in series.frames:
    if frame.path not in headers:
      header = Dataset()
      header.update(frame.header)
      _complete(header, _class_of(frame), frame.path, names)
      headers[frame.path] = header
    frames.append(
      frame._replace(
        study=names.study,
        series=names.series,
        instance=names.instances[frame.path],
        header=headers[frame.path],
      )
    )
  return series._replace(frames=tuple(frames))


def write(
  path: str | os.PathLike, source: pathlib.Path, series: Series, names: Names
) -> None:
  """Writes the copy of one file.

  Args:
    path: of the copy, which is overwritten.
    source: one of the series' files.
    series: any.
    names: see `names_of`.
  """
  [frame, *_] = [f for f in series.frames if f.path == source]
  dataset = open_file(source)
  kind = _class_of(frame)
  _complete(dataset, kind, source, names)
  dataset.file_meta.MediaStorageSOPClassUID = UID(kind)
  dataset.file_meta.MediaStorageSOPInstanceUID = UID(names.instances[source])
  dataset.save_as(path, enforce_file_format=True)


def _complete(
  dataset: Dataset, kind: str, source: pathlib.Path, names: Names
) -> None:
  found: dict[str, Any] = {
    'SOPClassUID': kind,
    'SOPInstanceUID': names.instances[source],
    'StudyInstanceUID': names.study,
    'SeriesInstanceUID': names.series,
    'FrameOfReferenceUID': names.place,
  }
  unknown = (*identity.PATIENT, *identity.STUDY, *_OF_ALL)
  for name in (*unknown, *_OF_CLASS.get(kind, ())):
    if name not in dataset:
      found[name] = None
  for name, value in found.items():
    setattr(dataset, name, value)


def _class_of(frame: Frame) -> str:
  """Returns the SOPClassUID of a frame's file.

  Raises:
    InputError: nothing tells it.
  """
  header = frame.header
  meta = getattr(header, 'file_meta', FileMetaDataset())
  modality = str(header.get('Modality', ''))
  kind = header.get('SOPClassUID') or meta.get('MediaStorageSOPClassUID')
  if not kind and not header.get('NumberOfFrames'):
    kind = _CLASSES.get(modality)
  if not kind:
    raise InputError(
      f'{frame.path}: no SOPClassUID, and its Modality {modality!r} does not '
      'tell it, so config.clinic.repair_identity cannot repair it; allowed are '
      f'slices of {", ".join(_CLASSES)}'
    )
  return str(kind)
