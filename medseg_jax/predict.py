"""Segments new images with a trained model: `--mode=predict`."""

import itertools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data.case import Case
from medseg_jax.data.formats import images, nifti
from medseg_jax.data.sources.volume_files import list_cases
from medseg_jax.experiment import build, trained_model
from medseg_jax.inference.cases import match_channels, predict_cases
from medseg_jax.report.panels import panel, save_png
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.progress import Progress, format_seconds

NUM_PANELS = 3  # pictures of the first cases, to look at


class Job(NamedTuple):
  """One image to segment.

  Attributes:
    name: of the case.
    read: returns the image as a case without a label.
    write: `(path, class indices)`, on the image's own grid.
    write_probs: `(path, probabilities [*S, K])`, None where there is no
      format for them.
    target: the mask to write.
  """

  name: str
  read: Callable[[], Case]
  write: Callable[[pathlib.Path, np.ndarray], None]
  write_probs: Callable[[pathlib.Path, np.ndarray], None] | None
  target: pathlib.Path


def run(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  input_path: pathlib.Path,
  output_dir: pathlib.Path,
  checkpoint: str = '',
  model: pathlib.Path | None = None,
  started: float | None = None,
) -> None:
  """Writes a mask for every image of `input_path`, on the image's own grid.

  A mask has its image's stem and holds the label values of the training masks:
  a PNG, or for volumes a NIfTI with the image's geometry. Masks that are there
  already are never overwritten.

  Args:
    config: resolved, as training left it.
    workdir: of the training, whose folder `panels` gets pictures of the first
      masks. None with a `model`: then the pictures lie in `output_dir/panels`.
    input_path: a folder of images, or of NIfTI files, or one NIfTI file.
    output_dir: made where it does not exist.
    checkpoint: 'best' or 'latest'; '' for the model that training ended with.
    model: a model folder or its zip, in place of the workdir.
    started: `time.perf_counter()` when the program began.

  Raises:
    InputError: nothing to read, nowhere to write, or a mask is there already;
      after all the others, that a volume could not be read.
  """
  took = {}
  clock = time.perf_counter()

  def lap(name):
    nonlocal clock
    now = time.perf_counter()
    took[name] = took.get(name, 0.0) + now - clock
    clock = now

  if started is not None:
    took['start'] = clock - started
  if config.data.source == 'volumes':
    jobs = _volume_jobs(config, input_path, output_dir)
  else:
    jobs = _image_jobs(config, input_path, output_dir)
  lap('look at the input')
  output_dir.mkdir(parents=True, exist_ok=True)
  print(build.describe_network(config, build.mesh_of(config)), flush=True)
  trained = trained_model.load_predictor(
    config, workdir, model=model, checkpoint=checkpoint
  )
  took |= trained.seconds
  clock = time.perf_counter()
  settings = trained_model.prediction_settings(config, build.mesh_of(config))
  settings['probabilities'] = config.inference.probabilities
  classes = tuple(config.data.classes)
  pictures = (workdir or output_dir) / 'panels'
  failed = []

  def cases():
    for job in jobs:
      try:
        yield job.read()
      except InputError as error:
        # The others are good, and somebody may wait for them.
        failed.append(str(error))

  by_name = {job.name: job for job in jobs}
  predicted = predict_cases(trained.predict_fn, cases(), **settings)
  with Progress(len(jobs), unit='case', desc='predict') as progress:
    for count in itertools.count():
      case, pred, probs = next(predicted, (None, None, None))
      lap('predict')
      if case is None:
        break
      job = by_name[case.name]
      job.write(job.target, pred)
      if probs is not None:
        job.write_probs(_probs_path(job.target), probs)
      if count < NUM_PANELS:
        picture = panel(
          case.image,
          None,
          pred,
          classes,
          title=case.name,
          spacing=case.spacing,
        )
        save_png(pictures / f'predict_{case.name}.png', picture)
      lap('write')
      progress.advance()
      del case, pred, probs  # before the next one: they may be gigabytes
  values = ', '.join(
    f'{value} {name}'
    for value, name in zip(config.data.label_values, classes, strict=True)
  )
  print(
    f'{count} masks in {output_dir} ({trained.which} weights, step '
    f'{trained.step}); values: {values}'
  )
  print(f'pictures  {pictures}/predict_*.png')
  print(
    'time      '
    + ', '.join(f'{k} {format_seconds(v)}' for k, v in took.items()),
    flush=True,
  )
  if failed:
    raise InputError(
      f'{len(failed)} of {len(jobs)} images were not segmented; the first: '
      f'{failed[0]}'
    )


def _image_jobs(
  config: ConfigDict, folder: pathlib.Path, output_dir: pathlib.Path
) -> list[Job]:
  if config.inference.probabilities:
    raise InputError(
      'config.inference.probabilities is True; allowed is False for images, as '
      'PNG holds no probabilities'
    )
  label_values = tuple(config.data.label_values)
  jobs = []
  for path in images.list_images(folder):

    def read(path=path):
      image = images.read_image(path)
      return Case(path.stem, image, None, (1.0,) * (image.ndim - 1))

    def write(target, pred):
      images.write_mask(target, pred, label_values)

    target = output_dir / f'{path.stem}.png'
    _check_free(target)
    # Read once before anything is written: images are small, and a bad one
    # should not leave half of the work.
    match_channels(read(), config.data.channels)
    jobs.append(Job(path.stem, read, write, None, target))
  return jobs


def _volume_jobs(
  config: ConfigDict, path: pathlib.Path, output_dir: pathlib.Path
) -> list[Job]:
  label_values = np.asarray(config.data.label_values, np.int16)
  jobs = []
  for files in list_cases(path, config.data.channels):

    def read(files=files):
      volume = nifti.read_channels(files.images)
      return Case(files.name, volume.array, None, volume.spacing, volume.affine)

    def write(target, pred, like=files.images[0]):
      nifti.write_label(target, label_values[pred], like)

    def write_probs(target, probs, like=files.images[0]):
      nifti.write_volume(target, probs, like)

    target = output_dir / f'{files.name}.nii.gz'
    _check_free(target)
    if config.inference.probabilities:
      _check_free(_probs_path(target))
    jobs.append(Job(files.name, read, write, write_probs, target))
  return jobs


def _probs_path(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(f'{nifti.stem(target)}_probabilities.nii.gz')


def _check_free(target: pathlib.Path) -> None:
  if target.exists():
    raise InputError(
      f'{target} is there already and is not overwritten; name another '
      '--output or move it away'
    )
