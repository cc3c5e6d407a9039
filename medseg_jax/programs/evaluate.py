"""Evaluates a trained model over whole images: `--mode=evaluate`."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES, Case, Source
from medseg_jax.experiment import (
  build,
  cascade,
  copied_cases,
  early_stop,
  html_report,
  scored_cases,
  sources,
  trained_model,
)
from medseg_jax.experiment.failures import Failures
from medseg_jax.inference.cases import predict_cases, predict_each
from medseg_jax.metrics import case_scores
from medseg_jax.report import summary as report
from medseg_jax.report.html.case_views import CaseViews
from medseg_jax.report.kept_masks import KeptMasks
from medseg_jax.report.panels import panel, save_png
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import counted
from medseg_jax.runtime.progress import Progress

UNDEFINED = -1.0  # a mean Dice, worse than any


class Scored(NamedTuple):
  """What the cases of a split scored.

  Attributes:
    source: the cases that were scored: all but those that failed.
    records: one for each of them, as `report.summarize` takes them.
    own: which of them this process has scored, ascending.
    masks: what was predicted, of some of these.
    failures: the cases that could not be scored.
    views: what the report's page shows of the cases.
    seconds: that it took.
  """

  source: Source
  records: list[dict]
  masks: KeptMasks
  own: list[int]
  failures: Failures
  views: CaseViews
  seconds: float


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

  A case that cannot be read costs none of the others: it is named in the report
  and at the end.

  Args:
    config: resolved, as training left it.
    workdir: of the training; with `model` only where the report goes.
    split: 'train', 'val' or 'test'; '' for the held-out split.
    checkpoint: 'best' or 'latest'; '' for the model that training ended with.
    model: a model folder or its zip, in place of the workdir's.
    mesh: what the tiles are spread over, which need not be the training's;
      None for all devices of this process.

  Raises:
    InputError: nothing can be scored; after all the others, that a case was
      not.
  """
  mesh = mesh or sharding.local_mesh()
  cases = multihost.primary_first(
    lambda: scored_cases.choose(config, workdir, split=split, model=model)
  )
  print(build.describe_network(config, mesh), flush=True)
  trained = trained_model.load_predictor(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  if cases.validated and trained.which == 'best':
    print(
      'note      the best weights were chosen on such cases: the numbers '
      'are too good for new images'
    )
  stopped = None
  if cases.validated:
    stopped = early_stop.of_workdir(workdir, model)
  summary, failures = report_split(
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
    settings=trained.settings,
    stopped=stopped,
    model=model,
  )
  failures.tell(len(cases.source), 'case', 'scored')
  return summary


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
  settings: dict[str, Any] | None = None,
  stopped: Mapping[str, Any] | None = None,
  model: pathlib.Path | None = None,
  trained: bool = False,
) -> tuple[dict, Failures]:
  """Evaluates, writes summary, cases, page and panels, prints the table.

  Returns the summary, and the cases that are not in its numbers.

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
    settings: see `score_cases`; None for those that the config tells.
    stopped: of a training that the val split ended, see `early_stop.describe`.
    model: the model folder or zip that is evaluated, in place of the workdir's.
    trained: whether this ends a training; then the page lies in the workdir,
      too.
  """
  folder = folder or split
  if settings is None:
    settings = trained_model.prediction_settings(config, mesh)
    settings |= cascade.stored(source)
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
  summary = summarize(scored, config, split=split, step=step)
  place = workdir / 'evaluation' / folder
  if not records:  # no reason to give up the scores of a better day
    print(f'warning   no case could be scored; {place} is left as it is')
    return summary, scored.failures
  summary['checkpoint'] = checkpoint
  if stopped:
    summary['stopped_early'] = dict(stopped)
  summary['data'] = scored_cases.evaluated(config)
  summary['copies'] = copied_cases.scored_twice(source.names, digests, folder)
  multihost.from_primary(lambda: report.write_report(place, summary, records))
  chosen = report.rank_cases(records)
  names = ('best', 'median', 'worst') if len(chosen) == 3 else ('best', 'worst')
  paths = [workdir / 'panels' / f'{folder}_{name}.png' for name in names]
  own = {
    i: path for i, path in zip(chosen, paths, strict=False) if i in scored.own
  }
  reason = ''
  try:
    pictures = panels(predict_fn, list(own), scored, **settings)
    for path, picture in zip(own.values(), pictures, strict=True):
      save_png(path, picture)
  except Exception as error:  # the scores, and the model, do not need them
    reason = ' '.join(str(error).split()) or type(error).__name__
  if reason := next(filter(None, multihost.gather(reason)), ''):
    print(f'warning   pictures in {workdir}/panels are missing ({reason})')
    chosen = []
  pages = [at / html_report.NAME for at in (place, workdir)]
  pages = html_report.write_all(
    pages if trained else pages[:1],
    scored.views,
    lambda: html_report.of_evaluation(
      config,
      workdir,
      summary=summary,
      records=records,
      views=scored.views.found,
      model=model,
      seconds=scored.seconds,
    ),
  )
  cases = counted(len(records), 'case')
  print(f'\n{folder}: {cases}, {checkpoint} weights, step {step}')
  print(report.table(summary))
  if stopped:
    print(early_stop.note(stopped, split))
  if failed := scored.failures.found:
    print(
      f'warning   {len(failed)} of {counted(len(source), "case")} could not be '
      'scored and are in none of these numbers'
    )
  written = [place / 'summary.json', place / 'cases.csv', *pages]
  print('report    ' + ', '.join(map(str, written)))
  if chosen:
    print('pictures  ' + ', '.join(map(str, paths[: len(chosen)])), flush=True)
  return summary, scored.failures


def summarize(
  scored: Scored, config: ConfigDict, *, split: str, step: int
) -> dict:
  """Returns the summary of the classes or regions that were scored."""
  names = case_scores.scored_names(config.data.classes, config.data.regions)
  failed = {failure.name: failure.reason for failure in scored.failures.found}
  return report.summarize(
    scored.records, names, split=split, step=step, failed=failed
  )


def panels(
  predict_fn: Callable[[jax.Array], jax.Array],
  indices: Sequence[int],
  scored: Scored,
  **settings: Any,
) -> Iterator[np.ndarray]:
  """Yields the panel of each record at `indices`, uint8 `[h, w, 3]`.

  Of those that this process has scored. Predicts anew what was not kept.
  """
  source = scored.source
  kept = {index: number for number, index in enumerate(scored.own)}
  gone = [index for index in indices if kept[index] not in scored.masks]
  predicted = predict_cases(
    predict_fn, (source[index] for index in gone), **settings
  )
  for index in indices:
    if index in gone:
      case, pred, *_ = next(predicted)
    else:
      case, pred = source[index], scored.masks.get(kept[index])
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

  A case that fails, while it is read or predicted, costs none of the others.
  Counts are taken case by case on the case's own grid, so that neither the
  number of devices nor a last partial batch can change a digit. Each process
  scores whole cases of its own, and all get the records of all.

  Args:
    predict_fn: see `inference.cases.predict_cases`.
    source: cases with labels.
    config: resolved.
    settings: see `trained_model.Predictor`.
    thorough: for a report: its pictures, and of volumes also the distances
      between surfaces, and lesions where the config asks for them.
    keep: of so many of the first cases, for `panels`, the masks.
    desc: what the work is, for its progress; '' for none.
  """
  begin = time.perf_counter()
  own = multihost.share(range(len(source)), lambda: sources.sizes(source))
  records: dict[int, dict] = {}
  masks, failures = KeptMasks(keep), Failures()
  views = CaseViews(len(source))

  def fail(index: int, error: Exception) -> None:
    failures.add(error, case=source.names[index])

  progress = contextlib.nullcontext()
  if desc:
    progress = Progress(len(own), unit='case', desc=desc)
    settings = {**settings, 'watch': progress.within}
  with progress as counted_cases:
    predicted = predict_each(
      predict_fn, own, read=source.__getitem__, failed=fail, **settings
    )
    for index, (case, pred, *_) in predicted:
      records[index] = score_mask(pred, case, config, thorough=thorough)
      masks.keep(len(records) - 1, pred)
      if thorough:
        views.add(case.name, case.image, case.label, pred, case.spacing)
      if counted_cases is not None:
        counted_cases.advance()
      del case, pred  # before the next one: they may be gigabytes
    if counted_cases is not None:
      counted_cases.failed(len(failures.found))
  scored = _together(source, records, masks, failures, views)
  return scored._replace(seconds=time.perf_counter() - begin)


def score_mask(
  pred: np.ndarray, case: Case, config: ConfigDict, *, thorough: bool = True
) -> dict:
  """Returns the record of a case, as `report.summarize` takes it.

  Args:
    pred: class indices, on the case's own grid.
    case: with its label.
    config: resolved.
    thorough: see `score_cases`.
  """
  data = config.data
  scoring = dict(classes=tuple(data.classes), regions=tuple(data.regions))
  if thorough and data.source in VOLUMES:
    scoring['surface_tolerance'] = config.evaluation.surface_tolerance
    scoring['lesions'] = config.evaluation.lesions
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
  return record


def _together(
  source: Source,
  own: dict[int, dict],
  masks: KeptMasks,
  failures: Failures,
  views: CaseViews,
) -> Scored:
  """Returns what all processes have scored, in the order of the source."""
  records = dict(own)
  for others in multihost.gather(own):
    records |= others
  scored = sorted(records)
  place = {name: i for i, name in enumerate(source.names)}
  found = [f for others in multihost.gather(failures.found) for f in others]
  failures.found = sorted(found, key=lambda failure: place[failure.name])
  for others in multihost.gather(views.found):
    views.found |= others
  if failures.found:
    source = source.subset([records[i]['case'] for i in scored])
  return Scored(
    source=source,
    records=[records[i] for i in scored],
    masks=masks,
    own=[number for number, i in enumerate(scored) if i in own],
    failures=failures,
    views=views,
    seconds=0.0,
  )


def mean_dice(summary: dict) -> float:
  """Returns the mean foreground Dice; UNDEFINED without any foreground."""
  value = summary['mean']['dice']
  return UNDEFINED if value is None else value
