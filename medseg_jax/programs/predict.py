"""Segments new images with a trained model: `--mode=predict`."""

import errno
import os
import pathlib
import time
from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.case import Case
from medseg_jax.data.formats.images import name_some, one_line
from medseg_jax.experiment import (
  build,
  fetched_series,
  prediction_files,
  prediction_jobs,
  sending,
  sources,
  trained_model,
  usual_cases,
  volume_table,
)
from medseg_jax.experiment.failures import Failures
from medseg_jax.experiment.prediction_jobs import PICTURES, Job, Work
from medseg_jax.experiment.prediction_record import (
  Maker,
  Record,
  hash_files,
  maker_of,
)
from medseg_jax.inference.cases import Prediction, predict_each
from medseg_jax.pacs.address import Node, Web
from medseg_jax.report.panels import panel, save_png
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import check_writable
from medseg_jax.runtime.progress import Progress, format_seconds

NUM_PANELS = 3  # pictures of the first cases, to look at
_MOST_UNUSED, _LONGEST = 20, 500  # lines and letters of what is left out
# What the system refuses for one mask, it refuses for all that follow.
_NO_PLACE = (
  errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
)  # fmt: skip


def run(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  input_path: pathlib.Path | Web,
  output_dir: pathlib.Path,
  checkpoint: str = '',
  model: pathlib.Path | None = None,
  overwrite: bool = False,
  series: str = '',
  formats: Sequence[str] = ('nifti',),
  send: Node | Web | None = None,
  mesh: Mesh | None = None,
  started: float | None = None,
) -> tuple[Work, Maker]:
  """Writes a mask for every image of `input_path`, on the image's own grid.

  A mask has its image's stem and holds the label values of the training masks:
  a PNG, or for volumes one with the image's geometry. Masks that are there
  already and were made of the same images by the same weights and settings are
  kept, as `predictions.jsonl` beside them tells; so a prediction that was
  killed goes on. `volumes.csv` has the volumes of their classes.

  Args:
    config: resolved, as training left it.
    workdir: of the training. None with a `model`.
    input_path: a folder of images, or of volumes, or one of these files; of
      volumes also a folder with DICOM files in it, or below, or a series of an
      archive, see `fetched_series`.
    output_dir: made where it does not exist; its folder `panels` gets pictures
      of the first masks. Of one file also the name of the mask.
    checkpoint: 'best' or 'latest'; '' for the model that training ended with.
    model: a model folder or its zip, in place of the workdir.
    overwrite: make all masks anew, whatever files are in their place.
    series: which of several DICOM series, see `dicom_series.find`.
    formats: of the masks of volumes, see `experiment.clinic_formats`.
    send: the archive that gets their DICOM objects, see `experiment.sending`.
    mesh: what the tiles are spread over, which need not be the training's;
      None for all devices of this process.
    started: `time.perf_counter()` when the program began.

  Returns:
    What there was to do, and what the masks are made with.

  Raises:
    InputError: nothing to read, nowhere to write, or something else is in a
      mask's place; after all the others, that an image was not segmented, or
      an object not sent.
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
  mesh = mesh or sharding.local_mesh()
  if send:
    multihost.from_primary(lambda: sending.probe(send, formats))
  if isinstance(input_path, Web):
    source, wanted = input_path, series
    input_path = multihost.from_primary(
      lambda: fetched_series.fetch(
        source, output_dir, series=wanted, config=config
      )
    )
    series = wanted if source.series else ''
    lap('fetch')
  work = multihost.from_primary(
    lambda: prediction_jobs.plan(
      config, input_path, output_dir, series, formats
    )
  )
  lap('look at the input')
  _tell_unused(input_path, work.unused)
  failed = Failures(work.failures)
  if not work.jobs:
    failed.tell(len(work.failures), 'image', 'segmented')
  # Before all that takes time.
  multihost.from_primary(lambda: check_writable(work.folder))
  sender = send and sending.Sender(send, work.folder)
  weights = trained_model.load_weights(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  if config.inference.disagreement and weights.num_members == 1:
    raise InputError(
      f'config.inference.disagreement is True, but {model or workdir} is a '
      'single model; allowed with an ensemble, such as --mode=crossval writes'
    )
  maker, made_of = maker_of(weights), (weights.step, weights.which)
  training = usual_cases.read(workdir, model)
  lap('weights')

  def look() -> tuple[Job, ...]:
    jobs = prediction_jobs.still_to_do(
      work.jobs, Record(work.folder), maker, overwrite=overwrite
    )
    prediction_files.remove_unfinished(jobs)
    return jobs

  jobs = multihost.from_primary(look)
  record = Record(work.folder)
  lap('look at the masks')
  if sender:  # what an earlier run could not
    there = [job for job in work.jobs if job not in jobs]
    multihost.from_primary(lambda: sender.send(there))
    lap('send')
  done = 0
  pictures = _Pictures(work.folder / PICTURES, tuple(config.data.classes))
  if jobs:
    multihost.from_primary(
      lambda: sources.tell(prediction_jobs.find_oddities(jobs, config.data))
    )
    for part in weights.parts:
      print(build.describe_network(part.config, mesh), flush=True)
    trained = trained_model.compile_predictor(
      weights, mesh, disagreement=config.inference.disagreement
    )
    del weights, part  # the devices have them
    lap('compile')
    own = multihost.share(
      jobs, lambda: [sources.num_bytes(job.images) for job in jobs]
    )
    hashes: dict[str, str] = {}

    def fail(job: Job, error: Exception) -> None:
      failed.add(error, case=job.name, file=job.images[0])

    def read(job: Job) -> Case:
      case = prediction_jobs.read(job, config.data)
      hashes[job.name] = hash_files(job.images)
      return case

    with Progress(len(own), unit='case', desc='predict') as progress:
      predicted = predict_each(
        trained.predict_fn,
        own,
        read=read,
        failed=fail,
        probabilities=config.inference.probabilities,
        uncertainty=config.inference.uncertainty,
        watch=progress.within,
        **trained.settings,
      )
      for job, prediction in predicted:
        lap('predict')
        try:
          prediction_files.write(
            job,
            prediction,
            config=config,
            image_hash=hashes.pop(job.name),
            record=record,
            maker=maker,
            training=training,
          )
          done += 1
        except Exception as error:
          if isinstance(error, OSError) and error.errno in _NO_PLACE:
            raise _no_place(error, job, done) from error
          fail(job, error)
        else:
          progress.advance()
          if multihost.count() == 1 or job in jobs[:NUM_PANELS]:
            pictures.add(prediction)
          if sender:
            lap('write')
            sender.send([job])
            lap('send')
        lap('write')
        progress.failed(len(failed.found) - len(work.failures))
        del job, prediction  # before the next one: it may be gigabytes
      progress.failed(len(failed.found) - len(work.failures))
  done = sum(multihost.gather(done))
  met = failed.found[len(work.failures) :]
  failed.found = [
    *work.failures,
    *(failure for found in multihost.gather(met) for failure in found),
  ]
  _tell(config, work, done, len(work.jobs) - len(jobs), made_of)
  pictures.tell()
  multihost.from_primary(
    lambda: sources.tell(
      usual_cases.unlike(work.jobs, Record(work.folder), maker.weights)
    )
  )
  line = multihost.from_primary(
    lambda: volume_table.write(work.folder, work.jobs, config, maker)
  )
  if line:
    print(line)
  print(
    'time      '
    + ', '.join(f'{k} {format_seconds(v)}' for k, v in took.items()),
    flush=True,
  )
  not_sent = sender and sender.tell()
  names = {job.name for job in work.jobs}
  total = len(names | {failure.name for failure in work.failures})
  # Some have a mask, but not all that was asked for.
  with_mask = failed.found == [*work.failures] and all(
    failure.name in names for failure in work.failures
  )
  failed.tell(
    total, 'image', 'written in all formats' if with_mask else 'segmented'
  )
  if not_sent:
    raise not_sent
  return work, maker


class _Pictures:
  """Pictures of the first masks. Nobody asked for them: they may fail."""

  def __init__(self, folder: pathlib.Path, classes: tuple[str, ...]):
    self._folder = folder
    self._classes = classes
    self._left = NUM_PANELS
    self._made = 0
    self._warning = ''

  def add(self, prediction: Prediction) -> None:
    if not self._left:
      return
    case = prediction.case
    try:
      picture = panel(
        case.image,
        None,
        prediction.label,
        self._classes,
        title=case.name,
        spacing=case.spacing,
      )
      save_png(self._folder / f'predict_{case.name}.png', picture)
    except Exception as error:
      self._warning = (
        f'no pictures in {self._folder} from {case.name} on '
        f'({_reason(error)}); the masks do not need them'
      )
      self._left = 0
      return
    self._left -= 1
    self._made += 1

  def tell(self) -> None:
    """Prints what came of them, in all processes."""
    made, warnings = zip(
      *multihost.gather((self._made, self._warning)), strict=True
    )
    sources.tell(filter(None, warnings))
    if any(made):
      print(f'pictures  {self._folder}/predict_*.png')


def _tell_unused(folder: pathlib.Path, unused: Sequence[str]) -> None:
  """Prints what is left out: names in one line, reasons in one each."""
  names = [text for text in unused if ': ' not in text]
  if names:
    print(f'not used  in {folder}: {name_some(names, _MOST_UNUSED)}')
  reasons = [text for text in unused if text not in names]
  for text in reasons[:_MOST_UNUSED]:
    print(f'not used  {one_line(text, _LONGEST)}')
  if (more := len(reasons) - _MOST_UNUSED) > 0:
    print(f'not used  {counted(more, "more file")} in {folder}')


def _no_place(error: OSError, job: Job, done: int) -> InputError:
  return InputError(
    f'{job.target}: cannot be written ({_reason(error)}); '
    f'{counted(done, "mask")} written before it; once this is mended the same '
    'command goes on'
  )


def _reason(error: Exception) -> str:
  """Returns why, without the hidden name under which a file is written."""
  if isinstance(error, OSError) and error.errno:
    return os.strerror(error.errno)
  return ' '.join(str(error).split()) or type(error).__name__


def _tell(
  config: ConfigDict, work: Work, done: int, kept: int, of: tuple[int, str]
) -> None:
  """Prints what was done."""
  step, which = of
  values = ', '.join(
    f'{value} {name}'
    for value, name in zip(
      config.data.label_values, config.data.classes, strict=True
    )
  )
  if kept:
    print(
      f'kept      {counted(kept, "mask")} of an earlier run with these weights '
      'and settings (--overwrite makes anew)'
    )
  print(
    f'{counted(done, "mask")} written to {work.folder} ({which} weights, step '
    f'{step}); values: {values}'
  )
