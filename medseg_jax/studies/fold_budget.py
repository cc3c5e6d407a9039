"""Shortens the folds of a cross-validation to fit `crossval.time_budget`.

All folds of a configuration train for the same number of steps, or the pooled
score would be of several recipes. It is decided once, before the first of them
trains, from a pace that is measured with weights that are thrown away, and
written to `crossval/budget.json`, where a run that goes on finds it.
"""

import gc
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.experiment import config_files, model_folder
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import read_json, write_atomically
from medseg_jax.runtime.progress import format_seconds
from medseg_jax.studies import fold_times, pace, time_budget
from medseg_jax.studies.all_folds import Decided
from medseg_jax.studies.fold_runs import FoldRun
from medseg_jax.studies.time_budget import KEY, Left

FILE = 'budget.json'
# Share of the budget, and the most seconds, that steps are timed for.
_TIMED, _MOST_TIMED = 0.01, 60.0


def shorten(
  index: int, runs: Sequence[FoldRun], decided: Decided, times: pathlib.Path
) -> FoldRun:
  """Returns a training with the number of steps that the budget allows.

  Without a budget, and where it allows for all, as it is.

  Args:
    index: of the training.
    runs: all of them.
    decided: what they share.
    times: the file of what each took; `budget.json` lies beside it.

  Raises:
    InputError: the budget is too small, or `budget.json` is damaged.
  """
  run = runs[index]
  path = times.parent / FILE
  known = multihost.from_primary(lambda: _read(path))
  name, text = run.configuration, run.config.crossval.time_budget
  if not text:
    if name in known and known[name]['num_steps'] < run.resolved.num_steps:
      print(
        f'note      {run.title}: {path} says {known[name]["num_steps"]} '
        f'steps, but without {KEY} it trains for {run.resolved.num_steps}',
        flush=True,
      )
    return run
  own = [other for other in runs if other.configuration == name]
  begun = multihost.from_primary(lambda: _steps_of_begun(own))
  asked = f'{KEY} {text} and num_steps {_most_steps(own)}'
  decided_for = ''
  if name in known:
    before = known[name]
    decided_for = f'{KEY} {before["budget"]} and num_steps {before["of"]}'
  if decided_for and begun and decided_for != asked:
    if run is own[0]:
      print(
        f'note      asked for are {asked}, but {path} keeps what was decided '
        f'for {decided_for}, since folds of {name} have begun with it: '
        f'{counted(known[name]["num_steps"], "step")}; another --workdir '
        'trains anew',
        flush=True,
      )
  elif decided_for != asked:
    entry = _decide(index, runs, decided, begun, times)
    multihost.from_primary(lambda: _write(path, known | {name: entry}))
    known |= {name: entry}
  return with_steps(run, known[name]['num_steps'])


def with_steps(run: FoldRun, num_steps: int) -> FoldRun:
  """Returns a training that is no longer than `num_steps`."""
  if num_steps >= run.resolved.num_steps:
    return run
  config = ConfigDict(run.config.to_dict())
  resolved = ConfigDict(run.resolved.to_dict())
  for each in (config, resolved):
    each.num_steps, each.num_epochs = num_steps, 0
  return run._replace(config=config, resolved=resolved)


def remaining(
  index: int, runs: Sequence[FoldRun], times: pathlib.Path
) -> fold_times.Remaining:
  """Returns what tells, at any moment of a training, how much is left.

  Arguments are those of `shorten`.
  """
  taken, known = multihost.from_primary(
    lambda: (fold_times.read(times), _read(times.parent / FILE))
  )
  text = runs[index].config.crossval.time_budget
  return fold_times.Remaining(
    taken,
    runs[index].title,
    [each.title for each in runs[index:]],
    planned={
      name: entry['seconds_a_fold']
      for name, entry in known.items()
      if entry.get('seconds_a_fold')
    },
    budget=time_budget.parse(text) if text else 0.0,
  )


def _decide(
  index: int,
  runs: Sequence[FoldRun],
  decided: Decided,
  begun: int,
  times: pathlib.Path,
) -> dict[str, Any]:
  """Returns what `budget.json` says of a configuration, and prints it."""
  run = runs[index]
  name, text = run.configuration, run.config.crossval.time_budget
  own = [each for each in runs if each.configuration == name]
  most = _most_steps(own)
  if begun:
    print(
      f'budget    {name}: {counted(begun, "step")}, as folds that have begun '
      'have them',
      flush=True,
    )
    return {'budget': text, 'num_steps': begun, 'of': most}
  print(f'budget    {name}: measuring what {run.title} takes', flush=True)
  with fold_times.measured(times, f'pace/{name}'):
    measured = pace.measure(
      run.config,
      run.workdir,
      seconds=min(_TIMED * time_budget.parse(text), _MOST_TIMED),
    )
    gc.collect()  # room for the training
  spent, left = multihost.from_primary(
    lambda: (
      sum(seconds for seconds, _ in fold_times.read(times).values()),
      [each for each in runs[index:] if not _has_ended(each)],
    )
  )
  later = [each for each in left if each.configuration != name]
  numbers = [_share(len(decided.folds[each.fold]['val'])) for each in own]
  configurations = {each.configuration for each in runs}
  what = Left(
    numbers, sum(numbers), run.resolved.eval_every, most, len(configurations)
  )
  steps = time_budget.decide(
    text, name, measured, what, spent=spent, others=len(later)
  )
  fold = time_budget.seconds_of_fold(
    steps, max(numbers), measured, what.eval_every
  )
  total = time_budget.seconds_of_all(steps, measured, what)
  print(
    f'budget    {name}: {steps} of {most} steps a fold: {measured.step:.3g} s '
    f'a step, {measured.case:.3g} s to predict and score a case, '
    f'{measured.setup:.3g} s to begin; {counted(len(own), "fold")} in about '
    f'{format_seconds(total)}',
    flush=True,
  )
  return {
    'budget': text,
    'num_steps': steps,
    'of': most,
    'seconds_a_fold': round(fold, 1),
    'seconds_to_begin': measured.setup,
    'seconds_a_step': measured.step,
    'seconds_a_case': measured.case,
  }


def _most_steps(own: Sequence[FoldRun]) -> int:
  return max(each.resolved.num_steps for each in own)


def _share(cases: int) -> int:
  """Returns how many of a fold's cases one process predicts."""
  return -(-cases // multihost.count())


def _has_ended(run: FoldRun) -> bool:
  return (run.model / model_folder.DESCRIPTION).exists()


def _steps_of_begun(own: Sequence[FoldRun]) -> int:
  """Returns for how many steps the first that has begun trains; 0 for none."""
  for run in own:
    saved = (run.workdir / 'checkpoints').exists() or _has_ended(run)
    if saved and (run.workdir / 'config.json').exists():
      return config_files.read_config(run.workdir).num_steps
  return 0


def _read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns what was decided, by configuration.

  Raises:
    InputError: the file is damaged: another number would be another recipe.
  """
  if not path.exists():
    return {}
  form = 'the steps of each configuration, as a cross-validation writes them'
  found = read_json(path, form)
  if not isinstance(found, dict) or not all(
    isinstance(entry, dict)
    and type(entry.get('num_steps')) is int
    and entry['num_steps'] > 0
    and type(entry.get('of')) is int
    and isinstance(entry.get('budget'), str)
    for entry in found.values()
  ):
    raise InputError(
      f'{path}: allowed are {form}; remove it, and it is decided anew'
    )
  return found


def _write(path: pathlib.Path, decided: dict[str, dict[str, Any]]) -> None:
  text = json.dumps(decided, indent=2, allow_nan=False) + '\n'
  write_atomically(path, text.encode())
