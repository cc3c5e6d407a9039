"""Files of a prediction, each written whole under a hidden name first."""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data.formats import images, nifti
from medseg_jax.data.sources import dicom_series
from medseg_jax.experiment import calibrated, sampled_voxels, usual_cases
from medseg_jax.experiment.clinic_formats import CLINIC, SLICE
from medseg_jax.experiment.clinic_results import ClinicResults
from medseg_jax.experiment.prediction_record import Maker, Record
from medseg_jax.experiment.prediction_targets import (
  APART,
  ENTROPY,
  PROBS,
  SAMPLE,
  Job,
  Target,
)
from medseg_jax.inference.own_grid import Prediction
from medseg_jax.report.unlike_training import Training, facts_of, far_from
from medseg_jax.runtime.files import flush_names


def write(
  job: Job,
  prediction: Prediction,
  *,
  config: ConfigDict,
  image_hash: str,
  record: Record,
  maker: Maker,
  training: Training | None = None,
) -> None:
  """Writes a mask, whole, and what the job asks for besides.

  Args:
    job: says where.
    prediction: of the image, on its own grid.
    config: of the model, resolved.
    image_hash: of the image's files.
    record: of the folder, which is told first.
    maker: what the mask was made with.
    training: what the cases of the training were like. Where this one is far
      from them the record says so, and so do files for the clinic.
  """
  label_values = config.data.label_values
  clinic, case = None, prediction.case
  far = training and far_from(
    facts_of(case.image, prediction.label, case.spacing), training
  )
  told = {usual_cases.FAR: far} if far else {}
  for target in reversed(job.targets):  # the mask last: with it all is there
    kind, path = target.kind, target.path
    more = {}
    if path == job.target:
      more = _size_of(prediction, label_values) | told
    with recorded(
      target, job, image_hash=image_hash, record=record, maker=maker, **more
    ) as unfinished:
      if kind == PROBS:
        nifti.write_volume(unfinished, prediction.probs, _grid_of(job))
      elif kind == ENTROPY:
        _write_map(unfinished, prediction.entropy, job)
      elif kind == APART:
        _write_map(unfinished, prediction.disagreement, job)
      elif kind == SAMPLE:
        sampled_voxels.write(unfinished, prediction.sample)
      elif kind in CLINIC:
        clinic = clinic or ClinicResults(
          job, prediction, config=config, maker=maker, about=told
        )
        clinic.write(target, unfinished)
      elif path.name.lower().endswith('.png'):
        images.write_mask(unfinished, prediction.label, tuple(label_values))
      else:
        values = np.asarray(label_values, np.int16)[prediction.label]
        nifti.write_label(unfinished, values, _grid_of(job))


@contextlib.contextmanager
def recorded(
  target: Target,
  job: Job,
  *,
  image_hash: str,
  record: Record,
  maker: Maker,
  **more: Any,
) -> Iterator[pathlib.Path]:
  """Yields a hidden name; what the block writes there becomes the target.

  The record is told first, `more` among the rest; see `write`.
  """
  path = target.path
  unfinished = _unfinished(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield unfinished
    name, own = record.name_of(path), maker.of(target.kind)
    sources = job.images
    if target.kind == SLICE:  # all in the line of each would be their square
      sources = (sources[target.index],)
    record.add(unfinished, name, sources, image_hash, own, **more)
    unfinished.replace(path)
    flush_names(path.parent)
  finally:
    unfinished.unlink(missing_ok=True)


def _grid_of(job: Job) -> pathlib.Path | nifti.Grid:
  """Returns what says where a job's volume lies."""
  if dicom_series.is_dicom(job.images[0]):
    return dicom_series.grid_of(job.images)
  return job.images[0]


def _write_map(path: pathlib.Path, values: np.ndarray, job: Job) -> None:
  """Writes numbers from 0 to 1: as they are in volumes, in PNG times 255."""
  if path.name.endswith('.png'):
    grey = np.rint(255 * values.astype(np.float32).clip(0, 1)).astype(int)
    images.write_mask(path, grey, tuple(range(256)))
  else:
    nifti.write_volume(path, values, _grid_of(job))


def _size_of(
  prediction: Prediction, label_values: Sequence[int]
) -> dict[str, Any]:
  """Returns what the record says of the volumes of a mask's classes."""
  counts = calibrated.class_counts(prediction.label, len(label_values))
  spacing = prediction.case.spacing
  unit = calibrated.ML if len(spacing) == 3 else calibrated.PIXELS
  size = calibrated.voxel_size(spacing, unit)
  return {'voxels': counts.tolist(), 'voxel_size': size}


def remove_unfinished(jobs: Sequence[Job]) -> None:
  """Removes what a killed prediction left of these jobs' masks."""
  targets = [target.path for job in jobs for target in job.targets]
  names = {_unfinished(path).name for path in targets}
  for folder in {path.parent for path in targets}:
    for path in folder.glob('.*unfinished-*'):
      name = path.name
      if name.endswith('.tmp'):  # .NAME.PROCESS.tmp
        name = name[1:].rsplit('.', 2)[0]
      if name in names and path.is_file():
        path.unlink()


def _unfinished(target: pathlib.Path) -> pathlib.Path:
  """Returns the hidden name under which a mask is written.

  Of a length that any file system takes, and the same in each process.
  """
  key = hashlib.sha256(target.name.encode('utf-8', 'surrogateescape'))
  suffix = target.name[len(nifti.stem(target)) :] or target.suffix
  return target.with_name(f'.unfinished-{key.hexdigest()[:12]}{suffix}')
