"""Who a series is of, and names for what is made of it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medseg_jax.clinic.codes import Meaning
from medseg_jax.data.formats.dicom.series import Series
from medseg_jax.runtime.errors import InputError

# Of type 1: what refers to a series names them.
_NEEDED = ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID')
_OF_EACH = ('SOPInstanceUID', 'SOPClassUID')
MANUFACTURER = 'medseg_jax'
UTF_8 = 'ISO_IR 192'  # names of classes may have any letters
# Of the patient and the study, of type 2 or 3: as they are, or empty.
PATIENT = ('PatientName', 'PatientID', 'PatientBirthDate', 'PatientSex')
STUDY = (
  *('StudyDate', 'StudyTime', 'AccessionNumber', 'ReferringPhysicianName'),
  *('StudyID', 'StudyDescription'),
)


def check(series: Series) -> None:
  """Raises InputError where nothing could refer to a series.

  One line names all that it lacks.
  """
  header = series.first.header
  missing = [name for name in _NEEDED if not header.get(name)]
  missing += [
    name
    for name in _OF_EACH
    if not all(frame.header.get(name) for frame in series.frames)
  ]
  if missing:
    raise InputError(
      f'{series.first.path.parent}: the series has no {", ".join(missing)}, so '
      'no DICOM object can refer to it, but to a copy of it that '
      '--config.clinic.repair_identity=true writes'
    )


def uid(series: Series, *of: str) -> str:
  """Returns a UID that is the same whenever it is of the same.

  Args:
    series: what is made belongs to.
    of: what else it is of: the model, the result, what it names.
  """
  slices = [f'{frame.instance} {frame.number}' for frame in series.frames]
  words = [series.first.series, series.phase, *slices, *of]
  digest = hashlib.sha256('\n'.join(words).encode()).hexdigest()
  return generate_uid(entropy_srcs=[series.first.series, digest])


def tracked(
  series: Series,
  *,
  model: str,
  version: str,
  result: str,
  name: str,
  lesion: int = 0,
) -> str:
  """Returns the UID by which other objects know what was found again.

  Args:
    series: where it was found.
    model: that found it.
    version: of the model or the program.
    result: see `result_of`.
    name: of the class.
    lesion: its number, 0 for the whole class.
  """
  return uid(series, model, version, result, name, f'{lesion}', 'tracking')


def result_of(
  mask: np.ndarray, series: Series, meanings: Sequence[Meaning], form: str
) -> str:
  """Returns a text that differs where what is written of a mask differs.

  Raises:
    ValueError: the mask is not one of these slices.
  """
  shape = (len(series.frames), *series.first.shape)
  if mask.shape != shape:
    raise ValueError(f'a mask {mask.shape} for slices {shape}')
  plain = np.ascontiguousarray(mask, '<i4')
  digest = hashlib.sha256(plain.tobytes()).hexdigest()
  return f'{form} {digest} {[tuple(meaning) for meaning in meanings]}'


def patient(series: Series) -> dict[str, str]:
  """Returns who a series is of, as a report for people says it."""
  header = series.first.header
  told = {
    'name': 'PatientName',
    'id': 'PatientID',
    'birth_date': 'PatientBirthDate',
    'study_date': 'StudyDate',
  }
  return {
    key: str(header.get(name)) for key, name in told.items() if header.get(name)
  }


def unique(names: Sequence[str], longest: int) -> list[str]:
  """Returns names as DICOM can have them, each another one.

  Args:
    names: any; a backslash would be two values.
    longest: characters that they may have.
  """
  found: list[str] = []
  for name in (name.replace('\\', '/') for name in names):
    short, i = name[:longest], 2
    while short in found:
      short, i = f'{name[: longest - 4]}_{i}', i + 1
    found.append(short)
  return found


def complete(header: Dataset) -> Dataset:
  """Returns a header with what DICOM wants of patient and study, empty."""
  whole = Dataset()
  whole.update(header)
  for name in (*PATIENT, *STUDY):
    if name not in whole:
      setattr(whole, name, None)
  return whole


def describe(
  dataset: Dataset, series: Series, *, what: str, model: str, version: str
) -> None:
  """Says of an object what it is, what made it, and when.

  Args:
    dataset: of the object.
    series: that it is of.
    what: it is.
    model: its name.
    version: of the model or the program.
  """
  dataset.SpecificCharacterSet = UTF_8
  dataset.SeriesDescription = f'{what} by {model}'[:64]
  dataset.Manufacturer = MANUFACTURER
  dataset.ManufacturerModelName = model[:64]
  dataset.SoftwareVersions = version[:64]
  _date(dataset, series)


def _date(dataset: Dataset, series: Series) -> None:
  """Gives it the date of its images: the same result is the same file."""
  header = series.first.header
  day = header.get('ContentDate') or header.get('StudyDate') or '19700101'
  time = header.get('ContentTime') or header.get('StudyTime') or '000000'
  for element in dataset.iterall():
    if element.keyword == 'ContributionDateTime':
      element.value = f'{day}{time}'
    elif element.keyword in ('ContentDate', 'InstanceCreationDate'):
      element.value = day
    elif element.keyword in ('ContentTime', 'InstanceCreationTime'):
      element.value = time
  dataset.SeriesDate, dataset.SeriesTime = day, time
