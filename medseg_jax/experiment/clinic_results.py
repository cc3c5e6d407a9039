"""Files for the clinic made of a mask: DICOM objects, surfaces, a report."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.data.sources import dicom_series
from medseg_jax.experiment import calibrated, clinic_formats
from medseg_jax.experiment.clinic_formats import (
  MEASUREMENTS,
  MESH,
  NUMBERS,
  PAGE,
  RTSTRUCT,
  SCENE,
  SEG,
  SLICE,
  TABLE,
  library,
)
from medseg_jax.experiment.prediction_record import Maker
from medseg_jax.experiment.prediction_targets import Job, Target
from medseg_jax.inference.own_grid import Prediction
from medseg_jax.losses import uses_sigmoid


class ClinicResults:
  """What is made of one case; what several files share is made once.

  Args:
    job: of the case.
    prediction: on the case's own grid.
    config: of the model, resolved.
    maker: of the mask.
    about: what else the report is to say of the case.
  """

  def __init__(
    self,
    job: Job,
    prediction: Prediction,
    *,
    config: ConfigDict,
    maker: Maker,
    about: Mapping[str, Any],
  ):
    self._job = job
    self._case = prediction.case
    self._label = prediction.label
    self._probs = prediction.probs
    self._config = config
    self._model = f'medseg_jax {maker.weights[:12]}'
    self._calibration = maker.calibration
    self._about = about
    self._found: dict[Any, Any] = {}  # what is measured already
    self._clinic = library(sorted({target.kind for target in job.targets}))

  def write(self, target: Target, path: pathlib.Path) -> None:
    """Writes one file.

    Args:
      target: one of the job's.
      path: where.
    """
    clinic = self._clinic
    if target.kind in (SEG, RTSTRUCT, MEASUREMENTS):
      self._write_object(target.kind, path)
    elif target.kind == SLICE:
      source = self._job.images[target.index]
      clinic.repair.write(path, source, self._own_series, self._names)
    elif target.kind == MESH:
      surface = self._surfaces[self._config.data.classes[target.index]]
      clinic.mesh_files.write_stl(path, surface)
    elif target.kind == SCENE:
      colours = [meaning.colour for meaning in self._meanings]
      clinic.mesh_files.write_ply(path, self._surfaces, colours)
    elif target.kind == NUMBERS:
      text = json.dumps(self._report, indent=2, ensure_ascii=False)
      path.write_text(f'{text}\n', 'utf-8')
    elif target.kind == TABLE:
      text = clinic.numbers.to_csv(self._report, self._channels)
      path.write_text(text, 'utf-8')
    elif target.kind == PAGE:
      path.write_text(self._page(), 'utf-8')
    else:
      raise ValueError(f'{target.kind} is no kind of file for the clinic')

  def _write_object(self, kind: str, path: pathlib.Path) -> None:
    """Writes a DICOM object, which refers to the slices of the series."""
    clinic, own = self._clinic, self._config.get('clinic', {})
    mask = clinic.to_native(self._label, self._series)
    of: dict[str, Any] = {
      'meanings': self._meanings,
      'model': self._model,
      'version': medseg_jax.__version__,
    }
    labelmap = own.get('labelmap', False)
    if kind == SEG:
      clinic.segmentation.write(
        path, mask, self._series, labelmap=labelmap, **of
      )
    elif kind == RTSTRUCT:
      clinic.structure_set.write(
        path,
        mask,
        self._series,
        targets=tuple(own.get('targets', ())),
        keyhole=own.get('keyhole', False),
        **of,
      )
    else:
      structures = [
        self._measured(meaning, (i + 1,))
        for i, meaning in enumerate(self._meanings)
      ]
      clinic.structured_report.write(
        path, structures, mask, self._series, labelmap=labelmap, **of
      )

  @functools.cached_property
  def _own_series(self) -> Any:
    """The series as it is read."""
    return dicom_series.only(self._job.images)

  @functools.cached_property
  def _names(self) -> Any:
    """Of a copy of the series."""
    return self._clinic.repair.names_of(self._own_series)

  @functools.cached_property
  def _series(self) -> Any:
    """The series that DICOM objects refer to, which may be the copy."""
    if any(target.kind == SLICE for target in self._job.targets):
      return self._clinic.repair.renamed(self._own_series, self._names)
    return self._own_series

  @functools.cached_property
  def _meanings(self) -> Any:
    """What the classes but the background are."""
    return clinic_formats.meanings(self._config)[0]

  @functools.cached_property
  def _surfaces(self) -> dict[str, Any]:
    """The surface of each class but the background."""
    config = self._config
    probs = None if uses_sigmoid(config.loss) else self._probs
    names = config.data.classes[1:]
    found = self._clinic.mesh.surfaces_of_classes(
      self._label, len(names), self._case.affine, probs=probs
    )
    return dict(zip(names, found, strict=True))

  @functools.cached_property
  def _structures(self) -> list[tuple[Any, tuple[int, ...]]]:
    return clinic_formats.structures(self._config)

  def _page(self) -> str:
    meanings = [meaning for meaning, _ in self._structures]
    viewer = self._clinic.viewer.data_of(
      self._label,
      self._case.image,
      self._case.affine,
      classes=self._config.data.classes[1:],
      colours=[meaning.colour for meaning in self._meanings],
      members=[of for _, of in self._structures],
    )
    return self._clinic.page.write_page(
      self._report,
      viewer,
      colours={meaning.name: meaning.colour for meaning in meanings},
    )

  def _measured(self, meaning: Any, of: tuple[int, ...]) -> Any:
    """Returns what is told of some classes, with the model's interval."""
    if (found := self._found.get((meaning, of))) is not None:
      return found
    measured = self._clinic.measurements.measure(
      self._label,
      self._case.image,
      self._case.affine,
      indices=of,
      lesions=meaning.lesion,
    )
    interval: tuple[float, ...] = ()
    if of in [own for known, own in self._structures if known == meaning]:
      interval = self._calibration.interval(
        meaning.name,
        measured.volume,
        calibrated.unit_of(self._config.data.source),
      )
    found = self._clinic.numbers.Structure(meaning, measured, interval)
    self._found[meaning, of] = found
    return found

  @property
  def _channels(self) -> tuple[str, ...]:
    return tuple(f'channel_{i}' for i in range(self._case.image.shape[-1]))

  @functools.cached_property
  def _report(self) -> dict[str, Any]:
    """The numbers of the report."""
    about = {
      'model': {'name': self._model, 'version': medseg_jax.__version__},
      'image': {
        'shape': list(self._label.shape),
        'spacing_mm': [float(f'{x:.6g}') for x in self._case.spacing],
        'channels': list(self._channels),
      },
      **self._about,
    }
    clinic = self._config.get('clinic', {})
    of_series = dicom_series.is_dicom(self._job.images[0])
    if of_series and clinic.get('name_patient', False):
      about['patient'] = self._clinic.identity.patient(self._series)
    return self._clinic.numbers.to_json(
      self._job.shown,
      [self._measured(meaning, of) for meaning, of in self._structures],
      channels=self._channels,
      coverage=self._calibration.coverage,
      about=about,
    )
