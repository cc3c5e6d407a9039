"""Which cases train and which are held out: folds, groups, copies.

The folds are those of `splits.json` in the workdir, which a user may replace;
where there is none they are made and written there.
"""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from medseg_jax.data import groups as grouping
from medseg_jax.data import splits
from medseg_jax.data.case import Source
from medseg_jax.data.groups import Groups, some
from medseg_jax.data.identity import is_blank
from medseg_jax.experiment import copied_cases, held_out
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.experiment.held_out import Record
from medseg_jax.runtime.errors import InputError, counted

# An image that lies in several stays in the first of them alone.
_STRICTEST_FIRST = ('test', 'val', 'train')


def divide(
  opened: dict[str, Source],
  digests: Digests,
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  record: Record | None,
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
    record: of the workdir's training, where there is one: of the cases that
      splits.json names some may have been renamed or removed since.
    writes: whether folds that are made are to be written there.

  Raises:
    InputError: there is no such fold, or the user's own split parts a group.
  """
  names = {split: source.names for split, source in opened.items()}
  group_of = {
    split: grouping.read_groups(config.data.group, names[split])
    for split in opened
  }
  copied_cases.tell(
    opened, digests, '; the same image stays on one side of every split'
  )
  # Of phantoms there are as many as are wanted.
  made_up = config.data.source == 'phantom' and config.data.own_splits
  if 'val' not in opened and config.data.fold != 'all' and not made_up:
    same_image = {n: v for n, v in digests['train'].items() if not is_blank(v)}
    together = grouping.join(names['train'], group_of['train'], same_image)
    fold = _fold(together, digests['train'], config, workdir, record, writes)
    names |= fold
    group_of['val'] = group_of['train']
    digests = digests | {'val': digests['train']}
    _tell_groups(together, config)
  check_groups(names, group_of, config)
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
  together: Groups,
  digests: Mapping[str, str],
  config: ConfigDict,
  workdir: pathlib.Path,
  record: Record | None,
  writes: bool,
) -> splits.Fold:
  """Returns the names under 'train' and 'val' of the config's fold."""
  data, path = config.data, workdir / 'splits.json'
  if not path.exists():
    folds = splits.all_folds(
      list(together),
      num_folds=data.num_folds,
      fold_order=data.fold_order,
      groups=together,
      where=data.path,
    )
    index = splits.fold_index(data.fold, len(folds))
    if writes:
      splits.write_splits(path, folds)
    return dict(folds[index])
  folds = splits.read_splits(path)
  index = splits.fold_index(data.fold, len(folds))
  named = list(
    dict.fromkeys(n for f in folds for part in f.values() for n in part)
  )
  if record is None:
    splits.check_names(folds, list(together), path)
  called = _called_now(named, digests, record)
  orders = _orders(folds, _groups_then(named, called, together, record))
  _tell_what_decides(path, len(folds), orders, data)
  fold = {
    part: [called[name] for name in names if called[name]]
    for part, names in folds[index].items()
  }
  for part, names in folds[index].items():
    if not fold[part]:
      raise InputError(
        f'{path}, fold {index}: of {counted(len(names), "case")} under '
        f'{part!r} ({some(names)}) none is in {data.path}; put the data back, '
        'or use another --workdir'
      )
  _tell_called(path, called)
  known = set(called.values())
  new = [name for name in together if name not in known]
  return _join(new, fold, together, path, joins=bool(orders))


def _called_now(
  named: Sequence[str], digests: Mapping[str, str], record: Record | None
) -> dict[str, str]:
  """Returns what the cases that a file names are called now; '' where gone.

  A case is the same under another name where its voxels are.
  """
  before = held_out.digest_of_each(record) if record else {}
  taken = set(named)
  free = {value: name for name, value in digests.items() if name not in taken}
  return {
    name: name if name in digests else free.pop(before.get(name, ''), '')
    for name in named
  }


def _groups_then(
  named: Sequence[str],
  called: Mapping[str, str],
  together: Groups,
  record: Record | None,
) -> Groups:
  """Returns the groups of the cases that a file names, gone ones among them."""
  now = {name: together.get(called[name], '') for name in named}
  if record is None:
    return grouping.join(named, now)
  return grouping.join(
    named, now, record.groups, held_out.digest_of_each(record)
  )


def _orders(folds: Sequence[splits.Fold], groups: Groups) -> list[str]:
  """Returns the values of `data.fold_order` that would make these folds.

  None would make a user's own, which may leave cases out on purpose.
  """
  found = []
  for order in splits.FOLD_ORDERS:
    with contextlib.suppress(InputError):  # a single fold, say
      made = splits.all_folds(
        list(groups), num_folds=len(folds), fold_order=order, groups=groups
      )
      if made == list(folds):
        found.append(order)
  return found


def _tell_what_decides(
  path: pathlib.Path, number: int, orders: Sequence[str], data: ConfigDict
) -> None:
  """Prints the folds of a file, and what of the config says otherwise."""
  ignored = []
  if data.num_folds != number:
    ignored.append(f'config.data.num_folds={data.num_folds}')
  if data.fold_order not in (orders or splits.FOLD_ORDERS[:1]):
    ignored.append(f'config.data.fold_order={data.fold_order}')
  decides = f' (the file decides, not {", ".join(ignored)})' if ignored else ''
  print(
    f'folds     {path}: {counted(number, "fold")}, held out is '
    f'{data.fold}{decides}'
  )


def _tell_called(path: pathlib.Path, called: Mapping[str, str]) -> None:
  """Prints which of the cases that a file names are renamed, or gone."""
  renamed = [
    f'{old} is {new}' for old, new in called.items() if old != new and new
  ]
  if renamed:
    print(
      f'note      {path}: {counted(len(renamed), "case")} under another name '
      f'now ({some(renamed)})'
    )
  gone = [name for name, new in called.items() if not new]
  if gone:
    print(
      f'warning   {path}: {counted(len(gone), "case")} that it names, gone or '
      f'changed since ({some(gone)}): left out'
    )


def _join(
  new: Sequence[str],
  fold: splits.Fold,
  together: Groups,
  path: pathlib.Path,
  *,
  joins: bool,
) -> splits.Fold:
  """Returns the fold with cases that its file does not name, and says so.

  They join the side of their group, else the training; not where the file is
  a user's own.
  """
  if not new:
    return fold
  if not joins:
    print(
      f'warning   {path}: left out as in no fold: {counted(len(new), "case")} '
      f'({some(new)})'
    )
    return fold
  held = {together[name] for name in fold['val']}
  added: splits.Fold = {'train': [], 'val': []}
  for name in new:
    added['val' if together[name] in held else 'train'].append(name)
  told = [
    f'{len(names)} {"for training" if part == "train" else "held out"}'
    for part, names in added.items()
    if names
  ]
  print(
    f'note      {path}: {counted(len(new), "case")} new since it was written '
    f'({some(new)}): {" and ".join(told)}; the folds stay as they were'
  )
  return {part: [*fold[part], *added[part]] for part in fold}


def _tell_groups(together: Groups, config: ConfigDict) -> None:
  if config.data.group:
    number = len(set(together.values()))
    print(
      f'groups    {counted(len(together), "case")} in '
      f'{counted(number, "group")} (config.data.group), which no fold parts'
    )


def check_groups(
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
