"""What is decided once for all folds of a cross-validation.

Every case is held out in exactly one fold, so that the pooled masks are of each
case once, by a model that has not seen it.
"""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data import groups as grouping
from medseg_jax.data import splits
from medseg_jax.data.case import Source
from medseg_jax.data.groups import Groups, some
from medseg_jax.data.identity import is_blank
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment import (
  cascade,
  fine_tuning,
  opening,
  pretraining,
  sources,
  volume_plan,
)
from medseg_jax.experiment import folds as one_fold
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError, counted, quote
from medseg_jax.studies import time_budget

SPLITS = 'splits.json'


class Decided(NamedTuple):
  """What all folds of all configurations share.

  Attributes:
    config: the user's, with absolute paths, and without own splits of the data.
    source: all cases, each of which trains and is held out.
    digests: of them, by name.
    folds: the names of their cases.
    plan: of volumes, else None.
    configurations: names of what is cross-validated, in the order of choice.
  """

  config: ConfigDict
  source: Source
  digests: dict[str, str]
  folds: list[splits.Fold]
  plan: dict[str, Any] | None
  configurations: tuple[str, ...]


def decide(config: ConfigDict, root: pathlib.Path) -> Decided:
  """Returns what all folds share; what is new of it is written to `root`.

  Args:
    config: as the user has it.
    root: of the cross-validation. `splits.json` and, of volumes, `plan.json`
      that are there are obeyed.

  Raises:
    InputError: the data has errors or cannot be divided, or the config is for
      no cross-validation.
  """
  _check(config)
  config = ConfigDict(config.to_dict())
  if config.data.own_splits:
    config.data.own_splits = False
    multihost.from_primary(lambda: tell_own_splits(config))
  opened = opening.open_data(config, root)
  source, digests = opened.sources['train'], opened.digests['train']
  multihost.from_primary(lambda: _check_files(source, config.data.source))
  multihost.from_primary(
    lambda: fine_tuning.check_unseen(
      opened.config,
      digests,
      why='a cross-validation holds out each case once',
    )
  )
  path = root / SPLITS
  folds = multihost.from_primary(
    lambda: divide(source.names, digests, opened.config, path)
  )
  multihost.from_primary(lambda: check_foreground(folds, source, path))
  return Decided(
    opened.config,
    source,
    digests,
    folds,
    opened.plan,
    _configurations(opened.config, opened.plan),
  )


def _check(config: ConfigDict) -> None:
  pretraining.refuse_scores(config)
  fold = config.data.fold
  if fold == 'all':
    raise InputError(
      "config.data.fold is 'all': nothing is held out then, and nothing can be "
      'cross-validated; leave it out'
    )
  if fold != 0:
    raise InputError(
      f'config.data.fold is {quote(fold)}, but --mode=crossval trains every '
      'fold; leave it out, or train that one with --mode=train'
    )
  if config.crossval.time_budget:
    time_budget.parse(config.crossval.time_budget)


def _check_files(source: Source, name: str) -> None:
  """Raises InputError where masks could not lie on the grid of a file."""
  if not isinstance(source, VolumeSource) and source[0].image.ndim > 3:
    raise InputError(
      f'config.data.source is {quote(name)}, with volumes; for --mode=crossval '
      "allowed are 'volumes', and images from 'folder', 'tfds' and 'phantom', "
      'as masks of volumes need the file of their image'
    )


def tell_own_splits(config: ConfigDict) -> None:
  """Prints which cases that the data itself holds out are not used."""
  whole = ConfigDict(config.to_dict())
  whole.data.own_splits = True
  whole.data.path = opening.absolute(whole.data)
  unused = {
    split: len(source)
    for split, source in sources.open_all(whole, strict=False).items()
    if split != 'train'
  }
  if unused:
    parts = ', '.join(f'{number} {split}' for split, number in unused.items())
    print(
      f'note      not used: the cases that the data itself holds out '
      f'({parts}); train alone is divided '
      '(config.data.own_splits=false)',
      flush=True,
    )


def _configurations(
  config: ConfigDict, plan: Mapping[str, Any] | None
) -> tuple[str, ...]:
  """Returns the names of what is to be cross-validated."""
  words = config.crossval.configurations.split(',')
  asked = [name for word in words if (name := word.strip())]
  if plan is None:
    if asked:
      raise InputError(
        f'config.crossval.configurations is {", ".join(asked)}; allowed is '
        'nothing there but with volumes, whose plan has configurations'
      )
    return (f'{len(config.patch_size)}d',)
  known = list(cascade.with_cascade(plan['configurations']))
  if not asked:
    asked = [config.plan.configuration]
    if asked[0] != cascade.NAME:
      asked = [volume_plan.configuration_name(config, plan['configurations'])]
  if config.init_from:  # a model of one of them
    known = [volume_plan.configuration_name(config, plan['configurations'])]
  for name, count in collections.Counter(asked).items():
    if name not in known or count > 1:
      raise InputError(
        f'config.crossval.configurations has {quote(name)}'
        + (f' {count} times' if name in known else '')
        + f'; allowed with {config.init_from or "this data set"}: '
        f'{", ".join(known)}, each to be named once'
      )
  if cascade.NAME in asked:  # it needs the masks of the other
    before = asked[: asked.index(cascade.NAME)]
    if cascade.FIRST not in before:
      rest = [name for name in asked if name not in (*before, cascade.FIRST)]
      asked = [*before, cascade.FIRST, *rest]
  return tuple(asked)


def divide(
  names: Sequence[str],
  digests: Mapping[str, str],
  config: ConfigDict,
  path: pathlib.Path,
) -> list[splits.Fold]:
  """Returns every fold: those of the file, made and written where it is none.

  Args:
    names: of all cases.
    digests: of them, by name.
    config: its section `data`.
    path: of splits.json.

  Raises:
    InputError: there are fewer cases, or groups, than folds; a case is held out
      in two folds, or in none; a fold parts a group.
  """
  own = grouping.read_groups(config.data.group, names)
  same_image = {n: v for n, v in digests.items() if not is_blank(v)}
  together = grouping.join(names, own, same_image)
  made = not path.exists()
  if made:
    _check_enough(together, config.data)
    folds = splits.all_folds(
      names,
      num_folds=config.data.num_folds,
      fold_order=config.data.fold_order,
      groups=together,
      where=config.data.path,
    )
    splits.write_splits(path, folds)
  folds = splits.read_splits(path)
  splits.check_names(folds, names, path)
  check_each_once(folds, names, path)
  for fold in folds:
    one_fold.check_groups(fold, {'train': own, 'val': own}, config)
  decides = ''
  if not made and len(folds) != config.data.num_folds:
    number = config.data.num_folds
    decides = f' (the file decides, not config.data.num_folds={number})'
  print(
    f'folds     {path}: {counted(len(folds), "fold")} of '
    f'{counted(len(names), "case")}{decides}',
    flush=True,
  )
  return folds


def _check_enough(together: Groups, data: ConfigDict) -> None:
  units, cases = len(set(together.values())), len(together)
  if units >= max(data.num_folds, 2):
    return
  what = counted(cases, 'case')
  if units < cases:
    what += f' in {counted(units, "group")}'
  allowed = f'config.data.num_folds from 2 to {units}'
  if units < 2:
    allowed = 'two cases, or groups, at the least'
  raise InputError(
    f'{data.path or data.source}: {what} cannot make {data.num_folds} folds; '
    f'allowed for a cross-validation: {allowed}'
  )


def check_each_once(
  folds: Sequence[splits.Fold],
  names: Sequence[str],
  path: str | pathlib.Path,
) -> None:
  """Raises InputError where not every case is held out in exactly one fold.

  Args:
    folds: of `path`.
    names: of all cases.
    path: the file, for the message.
  """
  held: dict[str, list[int]] = {name: [] for name in names}
  for index, fold in enumerate(folds):
    for name in fold['val']:
      held[name].append(index)
  for name, where in held.items():
    if len(where) > 1:
      more = sum(len(others) > 1 for others in held.values()) - 1
      raise InputError(
        f'{path}: {quote(name)} is held out in the folds '
        f'{", ".join(map(str, where))}'
        + (f', and {counted(more, "more case")} in several' if more else '')
        + "; allowed is each case under 'val' of one fold"
      )
  if missing := [name for name, where in held.items() if not where]:
    raise InputError(
      f'{path}: held out in no fold: {counted(len(missing), "case")} '
      f"({some(missing)}); allowed is each case under 'val' of one fold"
    )


def check_foreground(
  folds: Sequence[splits.Fold], source: Source, path: str | pathlib.Path
) -> None:
  """Raises InputError where no training case of a fold has foreground.

  Reads no more labels than it takes to know, mostly two.

  Args:
    folds: of `path`.
    source: all cases.
    path: of the folds, for the message.
  """
  left = dict(enumerate(set(fold['train']) for fold in folds))
  for index, name in enumerate(source.names):
    concerned = [k for k, names in left.items() if name in names]
    if concerned and (source[index].label > 0).any():
      left = {k: names for k, names in left.items() if k not in concerned}
    if not left:
      return
  k, names = next(iter(left.items()))
  raise InputError(
    f'{path}, fold {k}: no foreground in any of the '
    f'{counted(len(names), "case")} to train on ({some(sorted(names))}); '
    'allowed is a training case with some in every fold'
  )
