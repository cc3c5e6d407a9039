"""Which cases train and which are held out: folds, groups, copies.

The folds are those of `splits.json` in the workdir, which a user may replace;
where there is none they are made and written there.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data import groups as grouping
from medseg_jax.data import splits
from medseg_jax.data.case import Source
from medseg_jax.data.groups import some
from medseg_jax.data.identity import copies, is_blank
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.runtime.errors import InputError, counted

# An image that lies in several stays in the first of them alone.
_STRICTEST_FIRST = ('test', 'val', 'train')


def divide(
  opened: dict[str, Source],
  digests: Digests,
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  writes: bool = True,
) -> dict[str, Source]:
  """Returns the cases by split, with the fold `data.fold` of 'train' as 'val'.

  Where the data has a 'val' of its own that is it. Cases of a group
  (`data.group`) and copies of one image stay on one side; what that changes is
  printed.

  Args:
    opened: 'train', and 'val' and 'test' where the data has such.
    digests: of all of these cases.
    config: its section `data`.
    workdir: of the run, for splits.json.
    writes: whether folds that are made are to be written there.

  Raises:
    InputError: there is no such fold, or the user's own split parts a group.
  """
  names = {split: source.names for split, source in opened.items()}
  group_of = {
    split: grouping.read_groups(config.data.group, names[split])
    for split in opened
  }
  _tell_copies(opened, digests)
  made_up = config.data.source == 'phantom'  # there are as many as are wanted
  if 'val' not in opened and config.data.fold != 'all' and not made_up:
    same_image = {n: v for n, v in digests['train'].items() if not is_blank(v)}
    together = grouping.join(names['train'], group_of['train'], same_image)
    fold = _fold(together, config, workdir, writes)
    names |= fold
    group_of['val'] = group_of['train']
    digests = digests | {'val': digests['train']}
    _tell_groups(together, config)
  _check_groups(names, group_of, config)
  names = _leave_out_copies(names, digests)
  if not names['train']:
    raise InputError(
      f'config.data: every case to train on in {config.data.path} is a copy of '
      'one that is held out; allowed is at least one case of its own'
    )
  own = {split: opened.get(split, opened['train']) for split in names}
  return {
    split: own[split].subset(names[split]) for split in names if names[split]
  }


def _fold(
  together: dict[str, str],
  config: ConfigDict,
  workdir: pathlib.Path,
  writes: bool,
) -> dict[str, list[str]]:
  """Returns the names under 'train' and 'val' of the config's fold."""
  data, path = config.data, workdir / 'splits.json'
  names = list(together)
  if not path.exists():
    folds = splits.all_folds(
      names,
      num_folds=data.num_folds,
      fold_order=data.fold_order,
      groups=together,
      where=data.path,
    )
    index = splits.fold_index(data.fold, len(folds))
    if writes:
      splits.write_splits(path, folds)
    return dict(folds[index])
  folds = splits.read_splits(path, names)
  fold = dict(folds[splits.fold_index(data.fold, len(folds))])
  differs = ''
  if len(folds) != data.num_folds:
    differs = f' (config.data.num_folds, {data.num_folds}, is not looked at)'
  print(
    f'folds     {path}: {counted(len(folds), "fold")}, held out is {data.fold}'
    f'{differs}'
  )
  known = {name for f in folds for part in f.values() for name in part}
  new = [name for name in names if name not in known]
  if not new:
    return fold
  if not _made_here(folds, together):
    print(
      f'warning   {path}: left out as in no fold: {counted(len(new), "case")} '
      f'({some(new)}); add what is to be used to the file'
    )
    return fold
  held_out = {together[name] for name in fold['val']}
  joins = {'train': [], 'val': []}
  for name in new:
    joins['val' if together[name] in held_out else 'train'].append(name)
  told = [
    f'{len(added)} {"for training" if part == "train" else "held out"}'
    for part, added in joins.items()
    if added
  ]
  print(
    f'note      {path}: {counted(len(new), "case")} new since it was written '
    f'({some(new)}): {" and ".join(told)}; the folds stay as they were'
  )
  return {part: [*fold[part], *joins[part]] for part in fold}


def _made_here(folds: Sequence[splits.Fold], together: dict[str, str]) -> bool:
  """Returns whether the program would make these folds of these cases.

  A user's own file may leave cases out on purpose.
  """
  known = sorted({name for f in folds for part in f.values() for name in part})
  groups = {name: together[name] for name in known}
  for order in splits.FOLD_ORDERS:
    try:
      made = splits.all_folds(
        known, num_folds=len(folds), fold_order=order, groups=groups
      )
    except InputError:  # a single fold, say
      continue
    if made == list(folds):
      return True
  return False


def _tell_copies(opened: dict[str, Source], digests: Digests) -> None:
  """Prints which cases are the same image, and where their masks differ."""
  places = {  # by what names a case
    f'{split}/{name}' if len(opened) > 1 else name: (source, i, split, name)
    for split, source in sorted(opened.items())
    for i, name in enumerate(source.names)
  }
  keys = [digests[split][name] for _, _, split, name in places.values()]
  pairs, differ = [], []
  for first, *others in copies(list(places), keys).values():
    for other in others:
      pairs.append(f'{first} = {other}')
      labels = [
        source[i].label for source, i, *_ in (places[first], places[other])
      ]
      if not np.array_equal(*labels):
        differ.append(pairs[-1])
  if not pairs:
    return
  print(
    f'warning   {counted(len(pairs), "case")} with the '
    f'image of another ({some(pairs)}); the same image stays on one '
    'side of every split'
  )
  if differ:
    print(
      f'warning   with other masks for the same image: {some(differ)} '
      f'({len(differ)} in all); one of the two is wrong'
    )


def _tell_groups(together: dict[str, str], config: ConfigDict) -> None:
  if config.data.group:
    number = len(set(together.values()))
    print(
      f'groups    {counted(len(together), "case")} in '
      f'{counted(number, "group")} (config.data.group), which no fold parts'
    )


def _check_groups(
  names: dict[str, Sequence[str]],
  group_of: dict[str, dict[str, str]],
  config: ConfigDict,
) -> None:
  """Raises InputError where a group of `data.group` is on both sides."""
  if not config.data.group:
    return
  where: dict[str, tuple[str, str]] = {}
  for split in _STRICTEST_FIRST:
    for name in names.get(split, ()):
      group = group_of[split][name]
      before, other = where.setdefault(group, (split, name))
      if before != split:
        raise InputError(
          f'config.data.group: {name} in {split} and {other} in {before} are '
          f'both of the group {group!r:.60}; allowed is a group on one side: '
          'mend the split (splits.json, or the folders train, val, test) or '
          'the groups'
        )


def _leave_out_copies(
  names: dict[str, Sequence[str]], digests: Digests
) -> dict[str, list[str]]:
  """Returns the names without copies of what a stricter split holds."""
  held: set[str] = set()
  kept = {}
  for split in _STRICTEST_FIRST:
    if split not in names:
      continue
    keys = {name: digests[split][name] for name in names[split]}
    kept[split] = [name for name in names[split] if keys[name] not in held]
    lost = [name for name in names[split] if keys[name] in held]
    if lost:
      print(
        f'warning   left out of {split}: {counted(len(lost), "case")} whose '
        f'image is held out elsewhere ({some(lost)})'
      )
    held |= {value for value in keys.values() if not is_blank(value)}
  return {split: kept[split] for split in names if split in kept}
