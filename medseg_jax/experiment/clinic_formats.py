"""The formats of `--formats`, and which files each of them is."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.data.sources import dicom_series
from medseg_jax.runtime.errors import InputError

NIFTI, SEG, RTSTRUCT = 'nifti', 'seg', 'rtstruct'
SLICE = 'slice'  # of the copy of a series, see `clinic.repair`
MESH, REPORT = 'mesh', 'report'
FORMATS = (NIFTI, SEG, RTSTRUCT, MESH, REPORT)
# Kinds of files: the surfaces of all classes, and what a report is made of.
SCENE, PAGE, NUMBERS, TABLE = 'scene', 'page', 'numbers', 'table'
MEASUREMENTS = 'measurements'
# Names of the files of each format, by kind; surfaces of single classes have
# those of the classes.
FILES: Mapping[str, Mapping[str, str]] = {
  SEG: {SEG: 'seg.dcm'},
  RTSTRUCT: {RTSTRUCT: 'rtstruct.dcm'},
  MESH: {SCENE: 'surfaces.ply'},
  REPORT: {
    PAGE: 'report.html',
    NUMBERS: 'report.json',
    TABLE: 'measurements.csv',
  },
}
# All kinds that `clinic_results` writes.
CLINIC = (MESH, MEASUREMENTS, SLICE)
CLINIC += tuple(kind for files in FILES.values() for kind in files)
_MOST_CLASSES = 256  # that a page can tell apart
# What refers to the slices of a series.
OF_SERIES = (SEG, RTSTRUCT, MEASUREMENTS)


def parse(text: str) -> tuple[str, ...]:
  """Returns the formats that `--formats` names, each once.

  Raises:
    InputError: it names another one, or none.
  """
  words = [word.strip() for word in text.split(',')]
  if wrong := [word for word in words if word not in FORMATS]:
    raise InputError(
      f'--formats has {wrong[0]!r}; allowed are {", ".join(FORMATS)}, with '
      'commas between them'
    )
  return tuple(dict.fromkeys(words))


def check(paths: Sequence[pathlib.Path], formats: Sequence[str]) -> None:
  """Raises InputError where files are not such that formats could be written.

  Args:
    paths: the files of an image.
    formats: that are asked for.
  """
  wanted = [name for name in formats if name in OF_SERIES]
  if wanted and not dicom_series.is_dicom(paths[0]):
    allowed = [name for name in FORMATS if name not in OF_SERIES]
    raise InputError(
      f'--formats has {wanted[0]}, which refers to the slices of a DICOM '
      f'series, and {paths[0]} is none; allowed are {", ".join(allowed)}'
    )
  if set(formats) != {NIFTI}:
    library(formats)


def missing(
  paths: Sequence[pathlib.Path],
  formats: Sequence[str],
  *,
  repaired: bool = False,
) -> str:
  """Returns why no DICOM object can refer to a series, '' where one can.

  Args:
    paths: see `check`, which comes first.
    formats: likewise.
    repaired: whether it is to refer to a copy, see `clinic.repair`.
  """
  if not set(formats) & set(OF_SERIES):
    return ''
  clinic = library(formats)
  try:
    of = clinic.repair if repaired else clinic.identity
    of.check(dicom_series.only(paths))
  except InputError as error:
    return str(error)
  return ''


def check_config(config: ConfigDict, formats: Sequence[str]) -> None:
  """Raises InputError where what the config says of classes makes no sense.

  Args:
    config: of the model, resolved.
    formats: that are asked for.
  """
  if set(formats) == {NIFTI}:
    return
  library(formats)
  meanings(config)
  if REPORT in formats and len(config.data.classes) > _MOST_CLASSES:
    raise InputError(
      f'--formats has {REPORT}, but the model has '
      f'{len(config.data.classes) - 1} classes; allowed are up to '
      f'{_MOST_CLASSES - 1}'
    )


def meanings(config: ConfigDict) -> tuple[Any, Any]:
  """Returns what the classes are, and the regions, which may be the same.

  Both without the background.

  Args:
    config: of the model, resolved.

  Raises:
    InputError: `config.clinic` names others.
  """
  codes = library((SEG,)).codes
  data, clinic = config.data, config.get('clinic', ConfigDict())
  for name in clinic.get('targets', ()):
    if name not in data.classes[1:]:
      raise InputError(
        f'config.clinic.targets has {name!r}; allowed are '
        f'{", ".join(data.classes[1:])}'
      )
  regions = [name for name, _ in data.regions] or [*data.classes[1:]]
  table, lesions = clinic.get('codes', ()), clinic.get('lesions', ())
  return (
    codes.meanings(tuple(data.classes), table, lesions, regions),
    codes.meanings(('', *regions), table, lesions, data.classes[1:]),
  )


def structures(config: ConfigDict) -> list[tuple[Any, tuple[int, ...]]]:
  """Returns what is measured, and of which classes it is: classes or regions.

  Args:
    config: of the model, resolved.
  """
  data = config.data
  if data.regions:
    members = [tuple(of) for _, of in data.regions]
  else:
    members = [(i + 1,) for i in range(len(data.classes) - 1)]
  return [*zip(meanings(config)[1], members, strict=True)]


def library(formats: Sequence[str]) -> Any:
  """Returns what writes them, which needs an extra.

  Raises:
    InputError: that is not installed.
  """
  try:
    from medseg_jax.clinic import everything
  except ImportError as error:
    asked = ','.join(name for name in formats if name != NIFTI)
    raise InputError(
      f"--formats={asked} needs {error.name}: pip install 'medseg_jax[clinic]'"
    ) from error
  return everything
