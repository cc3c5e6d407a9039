"""Masks of DICOM series as DICOM objects: `--formats=seg,rtstruct`."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.data.sources import dicom_series
from medseg_jax.runtime.errors import InputError

NIFTI, SEG, RTSTRUCT = 'nifti', 'seg', 'rtstruct'
FORMATS = (NIFTI, SEG, RTSTRUCT)


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
  wanted = [name for name in formats if name != NIFTI]
  if wanted and not dicom_series.is_dicom(paths[0]):
    raise InputError(
      f'--formats has {wanted[0]}, which refers to the slices of a DICOM '
      f'series, and {paths[0]} is none; allowed is {NIFTI}'
    )


def missing(paths: Sequence[pathlib.Path], formats: Sequence[str]) -> str:
  """Returns why no DICOM object can refer to a series, '' where one can.

  Arguments are those of `check`, which comes first.
  """
  if set(formats) == {NIFTI}:
    return ''
  clinic = _clinic()
  try:
    clinic.identity.check(dicom_series.only(paths))
  except InputError as error:
    return str(error)
  return ''


def write(
  kind: str,
  path: pathlib.Path,
  label: np.ndarray,
  paths: Sequence[pathlib.Path],
  *,
  config: ConfigDict,
  weights: str,
) -> None:
  """Writes a mask for the slices of its series.

  Args:
    kind: 'seg' or 'rtstruct'.
    path: of the file.
    label: `[z, y, x]` class indices.
    paths: the files of the series.
    config: of the model, resolved.
    weights: hash of the model's, which is its name.
  """
  clinic = _clinic()
  series = dicom_series.only(paths)
  module = clinic.segmentation if kind == SEG else clinic.structure_set
  table = config.get('clinic', ConfigDict()).get('codes', ())
  module.write(
    path,
    clinic.to_native(label, series),
    series,
    meanings=clinic.codes.meanings(tuple(config.data.classes), table),
    model=f'medseg_jax {weights[:12]}',
    version=medseg_jax.__version__,
  )


def _clinic() -> Any:
  """Returns the library, which needs an extra.

  Raises:
    InputError: that is not installed.
  """
  try:
    from medseg_jax.clinic import everything
  except ImportError as error:
    raise InputError(
      f'--formats=seg and rtstruct need {error.name}: pip install '
      "'medseg_jax[clinic]'"
    ) from error
  return everything
