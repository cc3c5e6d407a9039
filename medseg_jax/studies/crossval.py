"""Trains all folds and scores what each held out: `--mode=crossval`.

Each fold of each configuration is a workdir of its own below that of the
cross-validation, ROOT/CONFIGURATION/fold_K, and a fold that is done is not
trained again. `splits.json` and `plan.json` of ROOT are those of all folds.
"""

import contextlib
import functools
import gc
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import cascade, early_stop, ensemble, html_report
from medseg_jax.programs import train
from medseg_jax.runtime import multihost, sharding, workdir_lock
from medseg_jax.runtime.errors import InputError, counted, shorten
from medseg_jax.runtime.files import write_atomically
from medseg_jax.studies import (
  all_folds,
  calibrating,
  candidates,
  fold_budget,
  fold_runs,
  fold_times,
  held_out_masks,
  pooling,
)
from medseg_jax.studies.all_folds import Decided
from medseg_jax.studies.candidates import Candidate
from medseg_jax.studies.fold_runs import FoldRun
from medseg_jax.studies.held_out_masks import HeldOutMask
from medseg_jax.studies.pooling import pool

FOLDER = 'crossval'  # of the results


def run(config: ConfigDict, root: pathlib.Path) -> dict[str, Any]:
  """Trains, predicts, scores, chooses; returns what `summary.json` holds.

  Where the input or the model of a fold is wrong the others are trained all the
  same, and it is named at the end. A killed cross-validation goes on where it
  was, to the same masks.

  Args:
    config: as the user has it.
    root: the folder of it all.

  Raises:
    InputError: the config or the data make no sense, or another process is at
      work in `root`; after all else, that a fold failed, or that a case could
      not be scored.
    Stopped: SIGTERM or Ctrl-C, after saving.
  """
  with contextlib.ExitStack() as held:

    def hold() -> None:
      ensemble.check_place(root, crossval=True)
      held.enter_context(workdir_lock.hold(root))

    multihost.from_primary(hold)
    return _run(config, root)


def _run(config: ConfigDict, root: pathlib.Path) -> dict[str, Any]:
  begin, times = time.monotonic(), root / FOLDER / fold_times.FILE
  decided = all_folds.decide(config, root)
  runs = fold_runs.list_runs(decided, root)

  def lay_out() -> None:
    for each in runs:
      fold_runs.lay_out(each, decided)
    fold_runs.check_together(runs)
    fold_times.add(times, 'opening', time.monotonic() - begin)

  multihost.from_primary(lay_out)  # before hours are spent
  masks = complete_folds(runs, decided, times)
  found, pooled = [], {}
  for names in candidates.combinations(decided.configurations):
    name = candidates.name_of(names)
    if len(names) > 1:
      masks[name] = predict_together(names, runs, decided, root / FOLDER / name)
    own = [each for each in runs if each.configuration in names]
    pooled[name] = pool(
      masks[name],
      own[0].resolved,
      root / FOLDER / name,
      name=name,
      stopped=early_stop.of_folds({each.title: each.workdir for each in own}),
    )
    found.append(Candidate(name, names, pooled[name].summary['mean']['dice']))
  chosen = candidates.choose(found)
  summaries = {name: one.summary for name, one in pooled.items()}
  learnt = held_out_masks.learn_postprocessing(
    masks[chosen.name], runs[0].resolved
  )
  result = describe(found, chosen, summaries, decided)
  result['postprocessing'] = learnt
  picture = root / FOLDER / 'reliability.png'
  result['calibration'] = calibrating.learn(
    masks[chosen.name], runs[0].resolved, learnt['steps'], picture
  )
  if stopped := summaries[chosen.name].get('stopped_early'):
    result['calibration']['stopped_early'] = sorted(stopped)
  text = json.dumps(result, indent=2, allow_nan=False) + '\n'
  path = root / FOLDER / 'summary.json'
  multihost.from_primary(lambda: write_atomically(path, text.encode()))
  models = {
    name: [each.model for each in runs if each.configuration == name]
    for name in chosen.configurations
  }
  multihost.from_primary(
    lambda: ensemble.write(
      root / 'model',
      models,
      scores=summaries[chosen.name],
      postprocessing=learnt['steps'],
      calibration=result['calibration'],
    )
  )
  lines = held_out_masks.describe_postprocessing(learnt)
  lines += calibrating.describe(result['calibration'])
  page = pooling.write_page(
    root / FOLDER / html_report.NAME,
    pooled[chosen.name],
    runs[0].resolved,
    lines=lines,
    picture=picture,
  )
  print('\n'.join(['', table(result), *lines]))
  if picture.exists():
    print(f'pictures  {picture}')
  print(f'report    {", ".join(map(str, [path, *page]))}')
  print(f'model     {root}/model', flush=True)
  return result


def predict_together(
  names: Sequence[str],
  runs: Sequence[FoldRun],
  decided: Decided,
  folder: pathlib.Path,
) -> list[HeldOutMask]:
  """Returns the held-out masks of configurations that predict together.

  Each fold's models of all of them average their probabilities.

  Args:
    names: of the configurations.
    runs: all trainings, done.
    decided: what they share.
    folder: for the masks, in a folder for each fold.
  """
  masks = []
  for fold, cases in enumerate(decided.folds):
    source = decided.source.subset(cases['val'])
    own = held_out_masks.masks_of(folder / f'fold_{fold}', source, fold)
    models = {
      each.configuration: [each.model]
      for each in runs
      if each.fold == fold and each.configuration in names
    }
    failures = held_out_masks.predict(
      models, own, sharding.local_mesh(), title=f'{folder.name}/fold_{fold}'
    )
    failures.tell(len(own), 'case', 'segmented')
    masks += own
  return in_order(masks, decided.source)


def in_order(masks: Sequence[HeldOutMask], source: Source) -> list[HeldOutMask]:
  """Returns the masks in the order of the cases in `source`."""
  order = {name: i for i, name in enumerate(source.names)}
  return sorted(masks, key=lambda mask: order[mask.name])


def complete_folds(
  runs: list[FoldRun], decided: Decided, times: pathlib.Path
) -> dict[str, list[HeldOutMask]]:
  """Trains what is not done yet; returns the held-out masks, all made.

  Args:
    runs: all trainings; a time budget shortens them in place.
    decided: what they share.
    times: the file of what each took.

  Returns:
    By configuration the mask of each case, in the order of the data.

  Raises:
    InputError: one or several failed, or masks of them did; after all others.
  """
  masks: dict[str, list[HeldOutMask]] = {}
  reasons: list[str] = []
  failed: set[str] = set()  # configurations
  mesh = sharding.local_mesh()

  def tell_failed(run: FoldRun, reason: str) -> None:
    failed.add(run.configuration)
    where = '' if str(run.workdir) in reason else f'{run.workdir}: '
    reasons.append(f'{where}{reason}')
    print(f'failed    {reasons[-1]}', flush=True)

  for i in range(len(runs)):
    if runs[i].configuration == cascade.NAME and cascade.FIRST in failed:
      tell_failed(
        runs[i],
        f'needs a mask of each case by {cascade.FIRST}, of which a fold failed',
      )
      continue
    each = runs[i] = fold_budget.shorten(i, runs, decided, times)
    source = decided.source.subset(decided.folds[each.fold]['val'])
    masks.setdefault(each.configuration, []).extend(
      held_out_masks.masks_of(each.workdir, source, each.fold)
    )
    try:
      with fold_times.measured(times, each.title):
        if not multihost.from_primary(functools.partial(taken_up, each)):
          train_fold(each, runs, i, times)
        own = masks[each.configuration][-len(source) :]
        failures = held_out_masks.predict(
          {each.configuration: [each.model]}, own, mesh, title=each.title
        )
      failures.tell(len(own), 'case', 'segmented')
    except (InputError, MemoryError, jax.errors.JaxRuntimeError) as error:
      # Of several processes only one may have met with it, and what the system
      # refuses once it refuses again.
      if isinstance(error, OSError) or multihost.count() > 1:
        raise
      text = ' '.join(str(error).split())
      if not isinstance(error, InputError):  # of a device, or of the host
        text = f'{type(error).__name__}: {shorten(text, 200)}'
      tell_failed(each, text)
    gc.collect()  # of the fold's data and weights, before the next one's
  if reasons:
    raise InputError(
      f'{len(reasons)} of {counted(len(runs), "fold")} failed, so nothing is '
      f'pooled; the others are kept; the first: {reasons[0]}'
    )
  return {
    name: in_order(found, decided.source) for name, found in masks.items()
  }


def taken_up(each: FoldRun) -> bool:
  """Returns whether a fold is done; prints what of its recipe is another."""
  if done := fold_runs.is_done(each):
    fold_runs.tell_recipe(each)
  return done


def train_fold(
  each: FoldRun, runs: Sequence[FoldRun], index: int, times: pathlib.Path
) -> None:
  """Trains one fold, after a line on what is done and what is left.

  Args:
    each: it.
    runs: all trainings.
    index: which of them it is.
    times: the file of what each took.
  """
  left = fold_budget.remaining(index, runs, times)

  def title() -> str:
    return f'{each.title} ({index + 1} of {len(runs)}{left.words()})'

  print(
    f'\nfold      {each.title}: {index + 1} of {len(runs)}, '
    f'{counted(each.resolved.num_steps, "step")}{left.words()}',
    flush=True,
  )
  try:
    train.run(each.config, each.workdir, title=title)
  except InputError:
    # A case that could not be scored is told when it is pooled.
    if multihost.count() > 1 or not fold_runs.is_done(each):
      raise
  multihost.from_primary(lambda: fold_times.finish(times, each.title))


def describe(
  found: Sequence[Candidate],
  chosen: Candidate,
  summaries: dict[str, dict[str, Any]],
  decided: Decided,
) -> dict[str, Any]:
  """Returns the content of `crossval/summary.json`.

  Args:
    found: all candidates.
    chosen: of these.
    summaries: of each candidate, by name.
    decided: what all folds share.
  """
  return {
    'chosen': chosen.name,
    'rule': candidates.RULE,
    'num_folds': len(decided.folds),
    'num_cases': len(decided.source),
    'candidates': [
      {
        'name': each.name,
        'configurations': list(each.configurations),
        'dice': each.dice,
        'dice_ci95': summaries[each.name]['mean']['dice_ci95'],
      }
      for each in found
    ],
  }


def table(result: dict[str, Any]) -> str:
  """Returns the candidates as aligned columns for a terminal."""
  rows = [('candidate', 'dice', '95 % interval', '')]
  for each in result['candidates']:
    dice, interval = each['dice'], each['dice_ci95']
    rows.append(
      (
        each['name'],
        '-' if dice is None else f'{dice:.4f}',
        '-' if interval is None else '{:.3f}-{:.3f}'.format(*interval),
        'chosen' if each['name'] == result['chosen'] else '',
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i in (1, 2) else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )
