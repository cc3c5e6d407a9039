"""Compares two time points of one patient: `--mode=followup`."""

import datetime
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.data.case import VOLUMES
from medseg_jax.data.formats import nifti
from medseg_jax.data.sources import dicom_series
from medseg_jax.experiment import (
  calibrated,
  clinic_formats,
  prediction_files,
  prediction_jobs,
  sources,
)
from medseg_jax.experiment.clinic_formats import NIFTI, NUMBERS, PAGE, TABLE
from medseg_jax.experiment.prediction_record import Maker, Record, hash_files
from medseg_jax.experiment.prediction_targets import Job, Target
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import check_writable

_TIMES = ('earlier', 'later')
_FILES = {
  NUMBERS: 'followup.json',
  TABLE: 'followup.csv',
  PAGE: 'followup.html',
}
# Of a header, the date at which the image was made, as far as it tells.
_DATES = ('AcquisitionDate', 'StudyDate', 'SeriesDate')
# Axes that lie so far beside those of the image are not its own, mm.
_SAME_GRID = 1e-2


def run(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  inputs: tuple[pathlib.Path, pathlib.Path],
  output_dir: pathlib.Path,
  checkpoint: str = '',
  model: pathlib.Path | None = None,
  overwrite: bool = False,
  series: str = '',
  formats: Sequence[str] = (NIFTI,),
  mesh: Mesh | None = None,
) -> None:
  """Segments both time points, registers them and tells what has changed.

  `OUTPUT/earlier` and `OUTPUT/later` are as `predict` writes them,
  `followup.json`, `followup.csv` and `followup.html` beside them compare the
  two. What is there of the same images, weights and settings is kept.

  Args:
    config: resolved, as training left it.
    workdir: of the training. None with a `model`.
    inputs: earlier and later, each a DICOM series or one volume.
    output_dir: made where it does not exist.
    checkpoint: see `predict.run`; likewise the rest.
    model: a model folder or its zip.
    overwrite: make all anew.
    series: which DICOM series, of a time point that has several.
    formats: of the masks, of which there are always plain ones, too.
    mesh: what the tiles are spread over.

  Raises:
    InputError: a time point is not one volume, they are of two patients, or as
      `predict.run`.
  """
  _check(config)
  comparison = _library()
  formats = tuple(dict.fromkeys((NIFTI, *formats)))
  chosen = [
    _look(config, path, output_dir / time, series, formats)
    for path, time in zip(inputs, _TIMES, strict=True)
  ]
  days, warnings = _between([job for job, _ in chosen])
  check_writable(output_dir)
  jobs = []
  for path, time, (_, own_series) in zip(inputs, _TIMES, chosen, strict=True):
    print(f'{time:<9} {path}')
    work, maker = predict.run(
      config, workdir, input_path=path, output_dir=output_dir / time,
      checkpoint=checkpoint, model=model, overwrite=overwrite,
      series=own_series, formats=formats, mesh=mesh,
    )  # fmt: skip
    jobs += work.jobs
  section = config.clinic.followup
  maker = maker._replace(
    settings=maker.settings | {'clinic.followup': section.to_dict()}
  )
  own = Job(
    'followup',
    tuple(image for job in jobs for image in job.images),
    tuple(Target(kind, output_dir / name) for kind, name in _FILES.items()),
  )
  record = Record(output_dir)
  if not prediction_jobs.still_to_do(
    (own,), record, maker, overwrite=overwrite
  ):
    print(
      f'kept      {output_dir / _FILES[PAGE]} of an earlier run with these '
      'images, weights and settings (--overwrite makes anew)'
    )
    return
  image_hash = hash_files(own.images)
  points = [_read(job, config) for job in jobs]
  _warn_of_channels(points)
  found = comparison.compare(
    *points,
    structures=clinic_formats.structures(config),
    interval=lambda name, volume: maker.calibration.interval(
      name, volume, calibrated.unit_of(config.data.source)
    ),
    growth_percent=section.growth_percent,
    match_mm=section.match_mm,
    days=days,
    warnings=warnings,
    about=_about(jobs, maker, config),
  )
  _write(own, found, record, maker, image_hash)
  sources.tell(found.report['warnings'])
  _tell(found, output_dir)


def _check(config: ConfigDict) -> None:
  if config.data.source not in VOLUMES:
    raise InputError(
      '--mode=followup compares volumes, but the model is of 2-D images; '
      'allowed is a model of volumes'
    )
  for key, value in config.clinic.followup.items():
    if not value > 0:
      raise InputError(
        f'config.clinic.followup.{key} is {value:g}; allowed are numbers above '
        '0'
      )


def _library() -> Any:
  """Returns `clinic.followup.comparison`, which needs an extra.

  Raises:
    InputError: that is not installed.
  """
  try:
    from medseg_jax.clinic.followup import comparison
  except ImportError as error:
    raise InputError(
      f"--mode=followup needs {error.name}: pip install 'medseg_jax[followup]'"
    ) from error
  return comparison


def _look(
  config: ConfigDict,
  path: pathlib.Path,
  output: pathlib.Path,
  series: str,
  formats: Sequence[str],
) -> tuple[Job, str]:
  """Returns the one image of a time point, and the series to ask for.

  Raises:
    InputError: there is not exactly one.
  """
  try:
    work = prediction_jobs.plan(config, path, output, '', formats)
    series = ''
  except InputError:
    # Where there is nothing to choose, `--series` is of the other time point.
    if not series or not path.is_dir():
      raise
    work = prediction_jobs.plan(config, path, output, series, formats)
  if work.failures:
    raise InputError(work.failures[0].reason)
  if len(work.jobs) != 1:
    raise InputError(
      f'{path}: {counted(len(work.jobs), "image")}, '
      f'{" and ".join(job.name for job in work.jobs[:2])} among them; allowed '
      'is one for each time point'
    )
  return work.jobs[0], series


def _between(jobs: Sequence[Job]) -> tuple[int | None, list[str]]:
  """Returns the days between two images, and what is odd about them.

  Raises:
    InputError: they are of two patients.
  """
  if not all(dicom_series.is_dicom(job.images[0]) for job in jobs):
    return None, []
  first, second = (dicom_series.only(j.images).first.header for j in jobs)
  names = [_identity(header) for header in (first, second)]
  if all(names) and names[0] != names[1]:
    raise InputError(
      f'{jobs[0].images[0].parent} and {jobs[1].images[0].parent} are of two '
      f'patients, {names[0]} and {names[1]} (PatientID); allowed are two time '
      'points of one'
    )
  warnings = []
  kinds = [str(header.get('Modality', '')) for header in (first, second)]
  if kinds[0] != kinds[1]:
    warnings.append(f'the earlier image is {kinds[0]}, the later {kinds[1]}')
  dates = [_date(header) for header in (first, second)]
  if dates[0] is None or dates[1] is None:
    return None, warnings
  days = (dates[1] - dates[0]).days
  if days < 0:
    warnings.append(
      f'the image that is called the earlier was made {counted(-days, "day")} '
      'after the other'
    )
  return days, warnings


def _identity(header: Any) -> str:
  """Returns a patient's number, '' of what was made anonymous."""
  if str(header.get('PatientIdentityRemoved', '')) == 'YES':
    return ''
  return str(header.get('PatientID') or '').strip()


def _date(header: Any) -> datetime.date | None:
  for name in _DATES:
    text = str(header.get(name) or '')
    try:
      return datetime.datetime.strptime(text, '%Y%m%d').date()
    except ValueError:
      continue
  return None


def _read(job: Job, config: ConfigDict) -> Any:
  """Returns the time point of a job, whose mask is there."""
  from medseg_jax.clinic.followup.time_point import TimePoint

  case = prediction_jobs.read(job, config.data)
  mask = nifti.read_label(job.target)
  if mask.array.shape != case.image.shape[:3] or not np.allclose(
    mask.affine, case.affine, rtol=0, atol=_SAME_GRID
  ):
    raise InputError(
      f'{job.target}: does not lie on the grid of its image, '
      f'{job.images[0]}; --overwrite makes it anew'
    )
  values = np.asarray(config.data.label_values)
  order = np.argsort(values)
  label = order[np.searchsorted(values[order], mask.array)]
  return TimePoint(case.image, label.astype(np.int16), case.affine)


def _warn_of_channels(points: Sequence[Any]) -> None:
  if (number := points[0].image.shape[-1]) > 1:
    print(f'the first of {number} channels is registered')


def _about(
  jobs: Sequence[Job], maker: Maker, config: ConfigDict
) -> dict[str, Any]:
  about: dict[str, Any] = {
    'cases': {time: job.shown for time, job in zip(_TIMES, jobs, strict=True)},
    'model': {
      'name': f'medseg_jax {maker.weights[:12]}',
      'version': medseg_jax.__version__,
    },
  }
  later = jobs[1].images
  if config.clinic.name_patient and dicom_series.is_dicom(later[0]):
    identity = clinic_formats.library((PAGE,)).identity
    about['patient'] = identity.patient(dicom_series.only(later))
  return about


def _write(
  job: Job, found: Any, record: Record, maker: Maker, image_hash: str
) -> None:
  prediction_files.remove_unfinished((job,))
  numbers = json.dumps(found.report, indent=2, ensure_ascii=False)
  texts = {NUMBERS: f'{numbers}\n', TABLE: found.table, PAGE: found.page}
  for target in job.targets:
    with prediction_files.recorded(
      target, job, image_hash=image_hash, record=record, maker=maker
    ) as path:
      path.write_text(texts[target.kind], 'utf-8')


def _tell(found: Any, output_dir: pathlib.Path) -> None:
  """Prints what was found."""
  from medseg_jax.clinic.followup import report

  told = found.report
  registration, days = told['registration'], told['days']
  after = registration['after']
  print(
    f'register  rotation {registration["rotation_degrees"]:.1f} degrees, '
    f'normalised mutual information '
    f'{registration["before"]["normalised_mutual_information"]:.2f} before, '
    f'{after["normalised_mutual_information"]:.2f} after, '
    f'{after["overlap"]:.0%} of the smaller image in the other'
  )
  if days is not None:
    print(f'time      {counted(days, "day")} between the two')
  for line in report.to_lines(told):
    print(f'  {line}')
  if not any(one['lesion'] for one in told['structures']):
    print(
      'no class of the model is a lesion (config.clinic.lesions): structures '
      'are compared'
    )
  print(f'{told["warning"]} See {output_dir / _FILES[PAGE]}', flush=True)
