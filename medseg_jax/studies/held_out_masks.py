"""The masks of the cases that one training has held out, kept on the disk.

Each lies on its case's own grid in the folder `held_out` of the workdir, and
`predictions.jsonl` beside them tells which weights made it, so that a killed
prediction goes on, and what somebody has changed is not taken for the model's.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import postprocessing
from medseg_jax.data.case import Case, Source
from medseg_jax.data.formats import images, nifti
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment import (
  members,
  prediction_files,
  sampled_voxels,
  sources,
  trained_model,
)
from medseg_jax.experiment.failures import Failures
from medseg_jax.experiment.prediction_record import (
  Record,
  hash_files,
  maker_of,
)
from medseg_jax.experiment.prediction_targets import (
  MASK,
  SAMPLE,
  Job,
  Target,
)
from medseg_jax.inference.cases import predict_each
from medseg_jax.postprocessing import Pieces
from medseg_jax.runtime import multihost, stop_signal
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import check_writable
from medseg_jax.runtime.progress import Progress

FOLDER = 'held_out'


class HeldOutMask(NamedTuple):
  """A mask of one case, by a model that has not seen it.

  Attributes:
    name: of the case.
    fold: that held it out.
    path: of the mask, with label values, on the case's own grid.
    sample_path: of logits of some voxels, see `sampled_voxels`.
    source: holds the case.
    index: of the case in there.
  """

  name: str
  fold: int
  path: pathlib.Path
  sample_path: pathlib.Path
  source: Source
  index: int

  def read_case(self) -> Case:
    """Returns the case with its label, class indices `[*S]`."""
    return self.source[self.index]

  def read_mask(self) -> np.ndarray:
    """Returns the mask, class indices `[*S]`.

    Raises:
      InputError: it cannot be read, or has a value of no class.
    """
    if self.path.name.endswith('.png'):
      values, _ = images.decode_mask(self.path)
    else:
      values = nifti.read_label(self.path).array
    known = np.asarray(self.source.label_values)
    order = np.argsort(known)
    place = np.searchsorted(known[order], values).clip(max=len(known) - 1)
    classes = order[place].astype(np.int16)
    if (wrong := values[known[classes] != values]).size:
      raise InputError(
        f'{self.path}: holds {wrong.flat[0]}, the value of no class; remove '
        'it, and it is made anew'
      )
    return classes


def masks_of(
  workdir: pathlib.Path, source: Source, fold: int
) -> list[HeldOutMask]:
  """Returns the masks that there are, or are to be, of each case of `source`.

  Args:
    workdir: of the training.
    source: the cases that it has held out.
    fold: its number.
  """
  suffix = '.nii.gz' if isinstance(source, VolumeSource) else '.png'
  folder = workdir / FOLDER
  return [
    HeldOutMask(
      name,
      fold,
      folder / f'{name}{suffix}',
      folder / f'{name}_logits.npz',
      source,
      i,
    )
    for i, name in enumerate(source.names)
  ]


def learn_postprocessing(
  masks: Sequence[HeldOutMask], config: ConfigDict
) -> dict[str, Any]:
  """Returns which components to remove, and what that gains, as JSON holds it.

  With an estimate on cases that it was not learnt on, `nested`: on each fold
  with what was learnt on all the others.

  Args:
    masks: of each case one.
    config: resolved.
  """
  meaning = dict(
    classes=tuple(config.data.classes), regions=tuple(config.data.regions)
  )

  def learn() -> dict[str, Any]:
    by_fold: dict[int, list[Pieces]] = {}
    with Progress(len(masks), unit='case', desc='post-process') as progress:
      for mask in masks:
        stop_signal.check()
        pieces = postprocessing.count_pieces(
          mask.read_mask(),
          mask.read_case().label,
          num_classes=len(config.data.classes),
        )
        by_fold.setdefault(mask.fold, []).append(pieces)
        progress.advance()
    cases = [pieces for own in by_fold.values() for pieces in own]
    nested = postprocessing.nested_gain(by_fold.values(), **meaning)
    return {
      **postprocessing.learn(cases, **meaning)._asdict(),
      'nested': nested._asdict(),
    }

  return multihost.from_primary(learn)


def describe_postprocessing(learnt: Mapping[str, Any]) -> list[str]:
  """Returns lines for people on what `learn_postprocessing` returned."""
  found = {key: learnt[key] for key in postprocessing.Learnt._fields}
  lines = [
    f'components {line}'
    for line in postprocessing.describe(postprocessing.Learnt(**found))
  ]
  if (gain := learnt['nested']['gain']) is not None and learnt['steps']:
    lines.append(
      f'components on folds that it was not learnt on the mean Dice changes by '
      f'{gain:+.4f}'
    )
  return lines


def _images_of(source: Source, index: int) -> tuple[pathlib.Path, ...]:
  """Returns the files of a case's image; none of what TFDS or we make."""
  if (files := getattr(source, 'files', None)) is None:
    return ()
  case = files[index]
  return tuple(case.images) if hasattr(case, 'images') else (case.image,)


def predict(
  models: Mapping[str, Sequence[pathlib.Path]],
  masks: Sequence[HeldOutMask],
  mesh: Mesh,
  *,
  title: str,
) -> Failures:
  """Makes the masks that are not there yet; returns what cannot be segmented.

  Args:
    models: of each configuration, by name, model folders, as
      `members.load_together` takes them; none has seen the cases.
    masks: of one folder.
    mesh: of this process.
    title: of the work, for the progress.

  Raises:
    InputError: a model is damaged, or something else is in a mask's place.
  """
  folder = masks[0].path.parent
  jobs = {
    mask.name: Job(
      mask.name,
      _images_of(mask.source, mask.index),
      (Target(MASK, mask.path), Target(SAMPLE, mask.sample_path)),
    )
    for mask in masks
  }
  weights = members.load_together(models, mesh)
  maker = maker_of(weights)

  def look() -> list[str]:
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    left = [
      job
      for job in jobs.values()
      # All of them: something else in one's place is to be told.
      if any(
        [
          record.is_to_make(t.path, job.images, maker.of(t.kind))
          for t in job.targets
        ]
      )
    ]
    for job in left:  # of older weights; half replaced it would be nobody's
      for target in job.targets:
        target.path.unlink(missing_ok=True)
    prediction_files.remove_unfinished(left)
    return [job.name for job in left]

  left = set(multihost.from_primary(look))
  failures = Failures()
  if not left:
    return failures
  own = multihost.share(
    [mask for mask in masks if mask.name in left],
    lambda: [
      sources.num_bytes(jobs[mask.name].images)
      for mask in masks
      if mask.name in left
    ],
  )
  record = Record(folder)
  predictor = trained_model.compile_predictor(weights, mesh)

  def fail(mask: HeldOutMask, error: Exception) -> None:
    failures.add(error, case=mask.name)

  with Progress(
    len(masks), len(masks) - len(own), 'case', f'predict {title}'
  ) as progress:
    predicted = predict_each(
      predictor.predict_fn,
      own,
      read=HeldOutMask.read_case,
      failed=fail,
      points=functools.partial(
        sampled_voxels.draw, seed=weights.parts[0].config.seed
      ),
      watch=progress.within,
      **predictor.settings,
    )
    for mask, prediction in predicted:
      job = jobs[mask.name]
      prediction_files.write(
        job,
        prediction,
        config=weights.parts[0].config,
        image_hash=hash_files(job.images),
        record=record,
        maker=maker,
      )
      progress.advance()
      del mask, prediction  # before the next one: it may be gigabytes
    progress.failed(len(failures.found))
  failures.found = [
    failure for found in multihost.gather(failures.found) for failure in found
  ]
  return failures
