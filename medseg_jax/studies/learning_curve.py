"""Dice against the number of training cases: `--mode=learning_curve`.

Each share of the training cases of one fold trains in a workdir of its own,
ROOT/learning_curve/N_cases, with the same plan and for as many steps, and is
scored on the same held-out cases. A smaller share is a part of every larger
one. A training that is done is not made again.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data import groups as grouping
from medseg_jax.data import splits
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.identity import is_blank
from medseg_jax.experiment import (
  fine_tuning,
  folds,
  held_out,
  opening,
  pretraining,
)
from medseg_jax.experiment.opening import Opened
from medseg_jax.metrics import case_scores
from medseg_jax.programs import train
from medseg_jax.report.panels import save_png
from medseg_jax.runtime import multihost, workdir_lock
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import write_atomically
from medseg_jax.studies import (
  all_folds,
  fold_runs,
  fold_times,
  learning_results,
)
from medseg_jax.studies.all_folds import SPLITS, Decided
from medseg_jax.studies.fold_runs import FoldRun

FOLDER = 'learning_curve'
_ORDER = 3  # what the seed serves here


def run(config: ConfigDict, root: pathlib.Path) -> dict[str, Any]:
  """Trains, scores, fits; returns what `learning_curve/summary.json` holds.

  Args:
    config: as the user has it.
    root: of `splits.json` and of volumes' `plan.json`, which are obeyed where
      they are there.

  Raises:
    InputError: the config or the data make no sense, there is nothing to
      compare, a case could not be scored, or another process is at work.
    Stopped: SIGTERM or Ctrl-C, after saving; the same command goes on.
  """
  pretraining.refuse_scores(config)
  if config.data.fold == 'all':
    raise InputError(
      "config.data.fold is 'all': nothing is held out then, and nothing can be "
      'compared; allowed is the number of a fold'
    )
  check_shares(config.learning_curve.shares)
  with contextlib.ExitStack() as held:

    def hold() -> None:
      held.enter_context(workdir_lock.hold(root))

    multihost.from_primary(hold)
    return _run(config, root)


def check_shares(shares: Sequence[float]) -> None:
  """Raises InputError unless there are numbers above 0, up to 1."""
  numbers = isinstance(shares, tuple | list) and all(
    isinstance(share, int | float) and 0 < share <= 1 for share in shares
  )
  if not numbers or not shares:
    raise InputError(
      f'config.learning_curve.shares is {shares}; allowed are numbers above 0, '
      'up to 1, such as (0.125, 0.25, 0.5, 1.0)'
    )


def _run(config: ConfigDict, root: pathlib.Path) -> dict[str, Any]:
  config = ConfigDict(config.to_dict())
  if config.data.own_splits:
    config.data.own_splits = False
    multihost.from_primary(lambda: all_folds.tell_own_splits(config))
  opened = opening.open_data(config, root)
  fold = multihost.from_primary(lambda: _divide(opened, root))
  source, digests = opened.sources['train'], opened.digests['train']
  multihost.from_primary(
    lambda: fine_tuning.check_unseen(
      opened.config,
      digests,
      why='a training of few cases is to have seen no others',
    )
  )
  # Epochs of few cases would be fewer steps.
  whole = opening.resolve_for(
    opened.config, source.subset(fold['train']), opened.plan
  )
  opened.config.update(num_steps=whole.num_steps, num_epochs=0)
  same_image = {n: v for n, v in digests.items() if not is_blank(v)}
  own = grouping.read_groups(opened.config.data.group, source.names)
  group_of = grouping.join(source.names, own, same_image)
  subsets = nested(
    fold['train'], group_of, config.learning_curve.shares, seed=config.seed
  )
  runs = []
  for names in subsets:
    workdir = root / FOLDER / f'{len(names)}_cases'
    part = _decided(opened, {'train': names, 'val': fold['val']})
    runs.append(_run_of(part, workdir))
    _lay_out(runs[-1], part)
  print(
    f'curve     {counted(len(runs), "training")}, of '
    f'{", ".join(str(len(names)) for names in subsets)} cases, scored on '
    f'{counted(len(fold["val"]), "held-out case")}',
    flush=True,
  )
  times = root / FOLDER / fold_times.FILE
  for i in range(len(runs)):
    with fold_times.measured(times, runs[i].title):
      _train(i, runs, times)
  numbers = [len(names) for names in subsets]

  def finish() -> dict[str, Any]:
    names = case_scores.scored_names(
      runs[0].resolved.data.classes, runs[0].resolved.data.regions
    )[1:]
    dice = np.array(
      [learning_results.read(e.workdir, fold['val'], names) for e in runs]
    )
    failed = [learning_results.failed(each.workdir) for each in runs]
    lost = sorted(set().union(*failed))
    dice = dice[:, [name not in lost for name in fold['val']]]
    result = learning_results.describe(numbers, dice, runs)
    result['failed'] = lost
    text = json.dumps(result, indent=2, allow_nan=False) + '\n'
    write_atomically(root / FOLDER / 'summary.json', text.encode())
    picture = learning_results.picture(result, dice)
    save_png(root / FOLDER / 'curve.png', picture)
    return result

  result = multihost.from_primary(finish)
  print(f'\n{learning_results.table(result)}')
  folder = root / FOLDER
  print(f'report    {folder}/summary.json\npicture   {folder}/curve.png')
  if failed := result['failed']:
    raise InputError(
      f'not scored: {counted(len(failed), "case")} ({name_some(failed, 10)}), '
      f'and in none of these numbers; why, '
      f'{learning_results.scores(runs[0].workdir)} tells'
    )
  return result


def _divide(opened: Opened, root: pathlib.Path) -> dict[str, list[str]]:
  """Returns the names of the fold's cases, under 'train' and 'val'."""
  by_split = folds.divide(
    opened.sources,
    opened.digests,
    opened.config,
    root,
    record=held_out.read(root),
  )
  return {split: list(by_split[split].names) for split in ('train', 'val')}


def nested(
  names: Sequence[str],
  group_of: Mapping[str, str],
  shares: Sequence[float],
  *,
  seed: int,
) -> list[list[str]]:
  """Returns the cases of each share, ascending, each in those that follow.

  A pure function of the names, the groups and the seed. Groups are drawn as a
  whole, until a share is reached.

  Args:
    names: of all training cases.
    group_of: the group of each case.
    shares: of the cases, 0 .. 1; where two of them are of as many cases they
      are one.
    seed: of the order that cases are drawn in.
  """
  units: dict[str, list[str]] = {}
  for name in sorted(names):
    units.setdefault(group_of[name], []).append(name)
  order = np.random.default_rng([seed, _ORDER]).permutation(len(units))
  drawn = [list(units.values())[i] for i in order]
  found: dict[int, list[str]] = {}
  for share in sorted(shares):
    wanted, chosen = max(1, round(share * len(names))), []
    for unit in drawn:
      if len(chosen) >= wanted:
        break
      chosen += unit
    found[len(chosen)] = sorted(chosen)
  return list(found.values())


def _decided(opened: Opened, fold: dict[str, list[str]]) -> Decided:
  """Returns one division as a cross-validation of one fold would have it."""
  config = ConfigDict(opened.config.to_dict())
  config.data.fold, config.data.num_folds = 0, 1
  return Decided(
    config,
    opened.sources['train'],
    opened.digests['train'],
    [fold],
    opened.plan,
    (FOLDER,),
  )


def _run_of(decided: Decided, workdir: pathlib.Path) -> FoldRun:
  source = decided.source.subset(decided.folds[0]['train'])
  resolved = opening.resolve_for(decided.config, source, decided.plan)
  return FoldRun(FOLDER, 0, workdir, decided.config, resolved)


def _lay_out(run: FoldRun, decided: Decided) -> None:
  def look() -> None:
    path = run.workdir / SPLITS
    if path.exists() and splits.read_splits(path) != decided.folds:
      raise InputError(
        f'{path}: not the cases that are drawn now; put config.seed, '
        'learning_curve.shares, data.group, data.fold and the data back as '
        f'they were, or move {run.workdir.parent} away to train anew'
      )
    try:
      all_folds.check_foreground(decided.folds, decided.source, path)
    except InputError as error:
      number = len(decided.folds[0]['train'])
      raise InputError(
        f'config.learning_curve.shares: no foreground in the '
        f'{counted(number, "case")} that config.seed draws; allowed are larger '
        'shares, or another seed'
      ) from error
    fold_runs.lay_out(run, decided)

  multihost.from_primary(look)


def _train(index: int, runs: Sequence[FoldRun], times: pathlib.Path) -> None:
  """Trains one share of the cases, unless that is done."""
  each = runs[index]

  def look() -> tuple[dict, bool]:
    if done := fold_runs.is_done(each):
      fold_runs.tell_recipe(each)
      done = learning_results.are_there(each.workdir)
    return fold_times.read(times), done

  taken, done = multihost.from_primary(look)
  if done:
    return
  titles = [other.title for other in runs[index:]]
  left = fold_times.Remaining(taken, each.title, titles, planned={})

  def title() -> str:
    return f'{each.title} ({index + 1} of {len(runs)}{left.words()})'

  print(f'\ntraining  {title()}', flush=True)
  try:
    train.run(each.config, each.workdir, title=title)
  except InputError:
    # A case that could not be scored is told at the end.
    if multihost.count() > 1 or not fold_runs.is_done(each):
      raise
  multihost.from_primary(lambda: fold_times.finish(times, each.title))
