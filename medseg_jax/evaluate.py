"""Evaluates a trained model over whole images: `--mode=evaluate`."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.case import Case, Source
from medseg_jax.experiment import (
  build,
  copied_cases,
  scored_cases,
  trained_model,
)
from medseg_jax.inference.cases import predict_cases
from medseg_jax.metrics import case_scores
from medseg_jax.report import summary as report
from medseg_jax.report.kept_masks import KeptMasks
from medseg_jax.report.panels import panel, save_png
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import counted
from medseg_jax.runtime.progress import Progress

UNDEFINED = -1.0  # a mean Dice, worse than any


class Scored(NamedTuple):
  """What the cases of a split scored.

  Attributes:
    records: one a case, as `report.summarize` takes them.
    masks: what was predicted, of some cases.
  """

  records: list[dict]
  masks: KeptMasks


def run(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  split: str = '',
  checkpoint: str = '',
  model: pathlib.Path | None = None,
  mesh: Mesh | None = None,
) -> dict:
  """Evaluates a trained model, writes the report, returns the summary.

  Args:
    config: resolved, as training left it.
    workdir: of the training; with `model` only where the report goes.
    split: 'train', 'val' or 'test'; '' for the held-out split.
    checkpoint: 'best' or 'latest'; '' for the model that training ended with.
    model: a model folder or its zip, in place of the workdir's.
    mesh: what the tiles are spread over, which need not be the training's;
      None for all devices of this process.
  """
  mesh = mesh or sharding.local_mesh()
  cases = scored_cases.choose(config, workdir, split=split, model=model)
  print(build.describe_network(config, mesh), flush=True)
  trained = trained_model.load_predictor(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  if cases.validated and trained.which == 'best':
    print(
      'note      the best weights were chosen on such cases: the numbers '
      'are too good for new images'
    )
  return report_split(
    trained.predict_fn,
    cases.source,
    config=config,
    mesh=mesh,
    workdir=workdir,
    split=cases.split,
    folder=cases.folder,
    digests=cases.digests,
    step=trained.step,
    checkpoint=trained.which,
  )


def report_split(
  predict_fn: Callable[[jax.Array], jax.Array],
  source: Source,
  *,
  config: ConfigDict,
  mesh: Mesh,
  workdir: pathlib.Path,
  split: str,
  digests: Mapping[str, str],
  step: int,
  checkpoint: str,
  folder: str = '',
  scored: Scored | None = None,
) -> dict:
  """Evaluates, writes summary, cases and panels, prints the table.

  Args:
    predict_fn: see `score_cases`.
    source: the cases.
    config: resolved.
    mesh: that `predict_fn` was compiled for.
    workdir: for the results, in `evaluation/` and `panels/`.
    split: what the cases are, for the summary.
    digests: of each case, by name.
    step: number of updates that made the weights.
    checkpoint: 'best' or 'latest', which weights.
    folder: names the results; '' for the split's name.
    scored: of these cases, thoroughly, where that was done already.
  """
  folder = folder or split
  settings = trained_model.prediction_settings(config, mesh)
  if scored is None:
    scored = score_cases(
      predict_fn,
      source,
      config=config,
      settings=settings,
      keep=len(source),
      desc=f'evaluate {split}',
    )
  records = scored.records
  summary = summarize(records, config, split=split, step=step)
  summary['checkpoint'] = checkpoint
  summary['data'] = scored_cases.evaluated(config)
  summary['copies'] = copied_cases.scored_twice(source.names, digests, folder)
  place = workdir / 'evaluation' / folder
  report.write_report(place, summary, records)
  chosen = report.rank_cases(records)
  names = ('best', 'median', 'worst') if len(chosen) == 3 else ('best', 'worst')
  pictures = panels(predict_fn, source, chosen, scored, **settings)
  paths = [workdir / 'panels' / f'{folder}_{name}.png' for name in names]
  try:
    for path, picture in zip(paths, pictures, strict=False):
      save_png(path, picture)
  except Exception as error:  # the scores, and the model, do not need them
    reason = ' '.join(str(error).split())
    print(f'warning   pictures in {workdir}/panels are missing ({reason})')
    chosen = []
  cases = counted(len(records), 'case')
  print(f'\n{folder}: {cases}, {checkpoint} weights, step {step}')
  print(report.table(summary))
  print(f'report    {place}/summary.json, {place}/cases.csv')
  if chosen:
    print('pictures  ' + ', '.join(map(str, paths[: len(chosen)])), flush=True)
  return summary


def summarize(
  records: Sequence[dict], config: ConfigDict, *, split: str, step: int
) -> dict:
  """Returns the summary of the classes or regions that were scored."""
  names = case_scores.scored_names(config.data.classes, config.data.regions)
  return report.summarize(records, names, split=split, step=step)


def read(
  source: Source, indices: Iterable[int], progress: Progress | None = None
) -> Iterator[Case]:
  """Yields the cases at `indices`, counted on `progress`."""
  for index in indices:
    yield source[index]
    if progress is not None:
      progress.advance()


def panels(
  predict_fn: Callable[[jax.Array], jax.Array],
  source: Source,
  indices: Sequence[int],
  scored: Scored,
  **settings: Any,
) -> Iterator[np.ndarray]:
  """Yields the panel of each case at `indices`, uint8 `[h, w, 3]`.

  Predicts anew what of them was not kept.
  """
  gone = [index for index in indices if index not in scored.masks]
  predicted = predict_cases(predict_fn, read(source, gone), **settings)
  for index in indices:
    if index in gone:
      case, pred, _ = next(predicted)
    else:
      case, pred = source[index], scored.masks.get(index)
    classes = scored.records[index]['classes']
    yield panel(
      case.image,
      case.label,
      pred,
      source.classes,
      title=case.name,
      dice={name: values['dice'] for name, values in classes.items()},
      spacing=case.spacing,
    )


def score_cases(
  predict_fn: Callable[[jax.Array], jax.Array],
  source: Source,
  *,
  config: ConfigDict,
  settings: dict[str, Any],
  thorough: bool = True,
  keep: int = 0,
  desc: str = '',
) -> Scored:
  """Returns what each case of `source` scored.

  Counts are taken case by case on the case's own grid, so that neither the
  number of devices nor a last partial batch can change a digit.

  Args:
    predict_fn: see `inference.cases.predict_cases`.
    source: cases with labels.
    config: resolved.
    settings: see `predictor.prediction_settings`.
    thorough: of volumes also the distances between surfaces, and lesions
      where the config asks for them.
    keep: of so many of the first cases, for `panels`, the masks.
    desc: what the work is, for its progress; '' for none.
  """
  data = config.data
  scoring = dict(classes=tuple(data.classes), regions=tuple(data.regions))
  if thorough and data.source == 'volumes':
    scoring['surface_tolerance'] = config.evaluation.surface_tolerance
    scoring['lesions'] = config.evaluation.lesions
  records, masks = [], KeptMasks(keep)
  progress = contextlib.nullcontext()
  if desc:
    progress = Progress(len(source), unit='case', desc=desc)
  with progress as counted:
    cases = read(source, range(len(source)), counted)
    predicted = predict_cases(predict_fn, cases, **settings)
    for index, (case, pred, _) in enumerate(predicted):
      score = functools.partial(
        case_scores.score_case,
        pred,
        case.label,
        spacing=case.spacing,
        **scoring,
      )
      record = {'case': case.name, **score()}
      if case.roi is not None:
        record['roi'] = score(where=case.roi)
      records.append(record)
      masks.keep(index, pred)
      del case, pred, score  # before the next one: they may be gigabytes
  return Scored(records, masks)


def mean_dice(summary: dict) -> float:
  """Returns the mean foreground Dice; UNDEFINED without any foreground."""
  value = summary['mean']['dice']
  return UNDEFINED if value is None else value
