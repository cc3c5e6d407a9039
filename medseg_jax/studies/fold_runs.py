"""The trainings of a cross-validation, each a workdir of its own.

Such a workdir is like any other: whoever trains fold 3 in ROOT/2d/fold_3 on
another machine does a part of the work. It is taken up where it has trained and
held out the same cases, by the same plan, for the same network.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data import splits
from medseg_jax.data.groups import some
from medseg_jax.data.identity import is_blank
from medseg_jax.experiment import (
  config_files,
  ensemble,
  held_out,
  model_folder,
  opening,
)
from medseg_jax.experiment.held_out import Record
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError, counted, quote_json, shorten
from medseg_jax.runtime.files import read_json, write_atomically
from medseg_jax.studies.all_folds import SPLITS, Decided

PLAN = 'plan.json'
# Of the recipe, what a fold that was trained elsewhere is compared by.
_RECIPE = (
  *('seed', 'batch_size', 'patch_size', 'patch_growth', 'dtype', 'ema_decay'),
  'loss',
  *('overlap', 'optimizer', 'schedule', 'augment'),
  *('inference.overlap', 'inference.mirror'),
  *('init_from', 'fine_tune', 'stop', 'data.foreground_share'),
)


class FoldRun(NamedTuple):
  """One training.

  Attributes:
    configuration: its name.
    fold: its number.
    workdir: of the training.
    config: for the training.
    resolved: with what data and plan tell.
  """

  configuration: str
  fold: int
  workdir: pathlib.Path
  config: ConfigDict
  resolved: ConfigDict

  @property
  def model(self) -> pathlib.Path:
    return self.workdir / 'model'

  @property
  def title(self) -> str:
    return f'{self.configuration}/{self.workdir.name}'


def list_runs(decided: Decided, root: pathlib.Path) -> list[FoldRun]:
  """Returns all trainings, the folds of one configuration after the other."""
  runs = []
  for name in decided.configurations:
    for index, fold in enumerate(decided.folds):
      config = ConfigDict(decided.config.to_dict())
      config.data.fold = index
      if decided.plan is not None:
        config.plan.configuration = name
      held = {decided.digests[case] for case in fold['val']}
      train = [  # as training will have them: no copy of what is held out
        case
        for case in fold['train']
        if is_blank(decided.digests[case]) or decided.digests[case] not in held
      ]
      resolved = opening.resolve_for(
        config, decided.source.subset(train), decided.plan
      )
      workdir = root / name / f'fold_{index}'
      runs.append(FoldRun(name, index, workdir, config, resolved))
  return runs


def lay_out(run: FoldRun, decided: Decided) -> None:
  """Gives a workdir the folds and the plan, or looks whether it has the same.

  Raises:
    InputError: it holds another training; one line says how it differs.
  """
  workdir = run.workdir
  trained = (workdir / 'checkpoints').exists() or (workdir / 'model').exists()
  record = held_out.read(workdir)
  if record is not None:
    _check_cases(record, run, decided)
  elif trained:
    raise InputError(
      f'{workdir}: has no {held_out.FILE}, so which cases its weights have '
      'seen cannot be told; move the folder away, and the fold is trained anew'
    )
  _lay_out_splits(workdir / SPLITS, decided.folds, recorded=record is not None)
  if decided.plan is not None:
    _lay_out_plan(workdir / PLAN, decided.plan)
  if record is not None:
    config_files.check_same_meaning(run.resolved, workdir)


def _check_cases(record: Record, run: FoldRun, decided: Decided) -> None:
  """Raises InputError where a record is not that of this fold."""
  fold, digests = decided.folds[run.fold], decided.digests
  held = {digests[name]: name for name in fold['val']}
  seen = {digests[name]: name for name in fold['train']}
  for value in held:  # an image that is held out trains under no name
    if not is_blank(value):
      seen.pop(value, None)
  before = {
    value: name
    for cases in record.held_out.values()
    for name, value in cases.items()
  }
  trained = record.trained
  if run.config.init_from:  # what its first weights had seen is recorded, too
    ours = set(digests.values())
    trained = {v: name for v, name in trained.items() if v in ours}
  differences = []
  for what, now, then in (
    ('trained', seen, trained),
    ('held out', held, before),
  ):
    more = [name for value, name in then.items() if value not in now]
    less = [name for value, name in now.items() if value not in then]
    if more:
      differences.append(f'it {what} also {_cases(more)}')
    if less:
      differences.append(f'it has not {what} {_cases(less)}')
  if differences:
    raise InputError(
      f'{run.workdir}: was trained on another division of the cases than '
      f'fold {run.fold} of {run.workdir.parents[1] / SPLITS}: '
      f'{"; ".join(differences)}; move the folder away, and the fold is '
      'trained anew'
    )


def _cases(names: list[str]) -> str:
  return f'{counted(len(names), "case")} ({some(names)})'


def _lay_out_splits(
  path: pathlib.Path, folds: list[splits.Fold], *, recorded: bool
) -> None:
  if not path.exists():
    splits.write_splits(path, folds)
  elif not recorded and splits.read_splits(path) != folds:
    raise InputError(
      f'{path}: not the folds of {path.parents[2] / SPLITS}; remove one of the '
      'two'
    )


def _lay_out_plan(path: pathlib.Path, plan: Mapping[str, Any]) -> None:
  if not path.exists():
    write_atomically(path, planner.to_json(dict(plan)).encode())
    return
  found = read_json(path, 'as --mode=plan writes it')
  difference = 'it is no plan'
  if isinstance(found, dict):
    # What the data set is called elsewhere is no matter to its network.
    difference = _difference({**found, 'dataset': plan['dataset']}, plan)
  if difference:
    raise InputError(
      f'{path}: not the plan of {path.parents[2] / PLAN}: {difference}; remove '
      'one of the two, or move the folder away'
    )


def _difference(one: Any, other: Any, where: str = '') -> str:
  """Returns the first difference of two values from JSON, '' for none."""
  one, other = (json.loads(json.dumps(value)) for value in (one, other))
  if isinstance(one, dict) and isinstance(other, dict):
    for key in sorted({*one, *other}):
      name = f'{where}.{key}' if where else key
      if found := _difference(one.get(key), other.get(key), name):
        return found
    return ''
  if one == other:
    return ''
  values = (shorten(quote_json(value), 60) for value in (one, other))
  return '{} is {} and not {}'.format(where, *values)


def is_done(run: FoldRun) -> bool:
  """Returns whether a training has ended.

  Raises:
    InputError: its model is damaged, or it has trained for longer.
  """
  most, training = run.resolved.num_steps, {}
  if (run.model / model_folder.DESCRIPTION).exists():
    training = model_folder.read_description(run.model)['training']
  # Of one that was stopped before its end, too.
  saved = Checkpoints(run.workdir / 'checkpoints').step(LATEST) or 0
  if (step := max(saved, training.get('step', 0))) > most:
    raise InputError(
      f'{run.workdir}: has trained for {counted(step, "step")}, and '
      f'config.num_steps is {most}; allowed are the same for all folds: set '
      'config.num_steps, or move the folder away'
    )
  if not training:
    return False
  stopped = training.get('stopped_early') and run.resolved.stop.patience
  return training['step'] == most or bool(stopped)


def check_together(runs: Sequence[FoldRun]) -> None:
  """Raises InputError where the folds would make no ensemble in the end.

  Those that are done must go with each other, and with those to be trained. A
  fold that is damaged is told when its turn comes.
  """
  own: dict[str, list[FoldRun]] = {}
  for run in runs:
    own.setdefault(run.configuration, []).append(run)
  for name, all_runs in own.items():
    models = []
    for run in all_runs:
      with contextlib.suppress(InputError):
        models += [run.model] if is_done(run) else []
    if models:
      members = ensemble.gather({name: models})[name]
      if len(models) < len(all_runs):
        ensemble.check_joins(members[0], all_runs[0].resolved, name)


def tell_recipe(run: FoldRun) -> None:
  """Prints what of its recipe is another, where it was trained elsewhere."""
  description = model_folder.read_description(run.model)
  trained = config_files.to_tuples(
    model_folder.config_of(description).to_dict()
  )
  wanted = config_files.to_tuples(run.resolved.to_dict())
  found = [
    difference
    for key in _RECIPE
    if (difference := _difference(_get(trained, key), _get(wanted, key), key))
  ]
  if found:
    print(
      f'warning   {run.workdir}: trained with another recipe, and taken as it '
      f'is: {"; ".join(found)}',
      flush=True,
    )


def _get(config: Mapping[str, Any], key: str) -> Any:
  value: Any = config
  for part in key.split('.'):
    value = value.get(part)
  return value
