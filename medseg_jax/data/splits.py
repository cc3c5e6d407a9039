"""Cases of one set to training and validation: K folds of the sorted names.

Or those of a file in the form of nnU-Net's `splits_final.json`.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from medseg_jax.runtime.errors import InputError, counted, quote
from medseg_jax.runtime.files import read_json, write_atomically

# The seed that published folds of the Medical Segmentation Decathlon use.
FOLD_SEED = 12345
FOLD_ORDERS = ('shuffled', 'block')

# A fold: the names of its cases under 'train' and 'val'.
Fold = dict[str, list[str]]


def all_folds(
  names: Sequence[str],
  *,
  num_folds: int = 5,
  fold_order: str = 'shuffled',
  groups: Mapping[str, str] | None = None,
  where: str = 'data',
) -> list[Fold]:
  """Returns every fold of the cases, in the form of `write_splits`.

  `'shuffled'` is scikit-learn's `KFold(num_folds, shuffle=True,
  random_state=12345)` on the sorted names. `'block'` cuts the names in their
  natural order (`2` before `10`) into contiguous blocks, for sets whose
  neighbours look alike, such as the sections of one stack.

  Args:
    names: names of all cases, in any order.
    num_folds: number of folds, at least 2. The first `n % num_folds` folds
      have one case more.
    fold_order: `'shuffled'` or `'block'`.
    groups: the group of each case; a fold is then one of the groups, so that
      all cases of a group are on one side. None: each case by itself.
    where: the folder or file that messages name.

  Raises:
    InputError: no such order, or fewer cases, or groups, than folds.
  """
  if fold_order not in FOLD_ORDERS:
    raise InputError(
      f'config.data.fold_order is {fold_order!r}; allowed are '
      f'{", ".join(FOLD_ORDERS)}'
    )
  if num_folds < 2:
    raise InputError(
      f'config.data.num_folds is {num_folds}; allowed are 2 or more, or '
      "data.fold='all'"
    )
  names = sorted(names)
  if fold_order == 'block':
    names.sort(key=_natural)
  group_of = {name: (groups or {}).get(name, name) for name in names}
  units = list(dict.fromkeys(group_of.values()))  # in the order of the names
  if len(units) < num_folds:
    cases = counted(len(names), 'case')
    if len(units) < len(names):
      cases += f' in {counted(len(units), "group")}'
    raise InputError(
      f'{where}: {cases} cannot make {num_folds} folds; allowed are '
      "data.fold='all' (train on every case), data.num_folds from 2 to the "
      'number of cases or groups, or a split of your own'
    )
  order = np.arange(len(units))
  if fold_order == 'shuffled':
    np.random.RandomState(FOLD_SEED).shuffle(order)
  folds = []
  for chosen in np.array_split(order, num_folds):
    held_out = {units[i] for i in chosen}
    fold: Fold = {'train': [], 'val': []}
    for name in names:
      fold['val' if group_of[name] in held_out else 'train'].append(name)
    folds.append(fold)
  return folds


def write_splits(path: str | os.PathLike, folds: Sequence[Fold]) -> None:
  """Writes folds as JSON: a list with one `{"train": [], "val": []}` each.

  This is the form of nnU-Net's `splits_final.json`.
  """
  write_atomically(path, (json.dumps(list(folds), indent=1) + '\n').encode())


def read_splits(path: str | os.PathLike) -> list[Fold]:
  """Returns the folds that a file of `write_splits` or nnU-Net holds.

  A case may be left out of a fold, and be none that there is, see
  `check_names`.

  Raises:
    InputError: the file is missing or not of this form, names the same case
      twice in a fold, or none for a part.
  """
  path = pathlib.Path(path)
  form = 'a list with one {"train": [names], "val": [names]} for each fold'
  folds = read_json(path, form)
  if not isinstance(folds, list) or not folds:
    raise InputError(f'{path}: found no list of folds; allowed is {form}')
  for index, fold in enumerate(folds):
    where = f'{path}, fold {index}'
    seen = set()
    for part in ('train', 'val'):
      cases = fold.get(part) if isinstance(fold, dict) else None
      if not isinstance(cases, list) or not all(
        isinstance(name, str) for name in cases
      ):
        raise InputError(f'{where}: no list {part!r}; allowed is {form}')
      if not cases:
        raise InputError(
          f'{where}: {part!r} is empty; allowed is at least one case (to train '
          "on every case, give data.fold='all')"
        )
      for name in cases:
        if name in seen:
          raise InputError(
            f'{where}: case {quote(name)} occurs twice; allowed is once, in '
            "either 'train' or 'val'"
          )
        seen.add(name)
  return [{part: fold[part] for part in ('train', 'val')} for fold in folds]


def check_names(
  folds: Sequence[Fold], names: Sequence[str], path: str | os.PathLike
) -> None:
  """Raises InputError where folds name a case that is not there.

  Args:
    folds: as `read_splits` returns them.
    names: the names of the cases that there are.
    path: of the file of the folds.
  """
  known = set(names)
  for index, fold in enumerate(folds):
    for part, cases in fold.items():
      unknown = [name for name in cases if name not in known]
      if unknown:
        raise InputError(
          f'{path}, fold {index}: {counted(len(unknown), "name")} of no case '
          f'under {part!r}, the first is {quote(unknown[0])}; allowed are the '
          f'names of {counted(len(known), "case")}, such as '
          f'{quote(min(known, default="none"))}: put the files back, or take '
          'the names out; without this file folds are made anew'
        )


def fold_index(fold: int | str, num_folds: int) -> int:
  """Returns the number that `fold`, an integer or its text, stands for.

  Raises:
    InputError: there is no such fold; `'all'` is none either.
  """
  text = str(fold).strip()
  if not text.isdecimal() or int(text) >= num_folds:
    last = f' to {num_folds - 1}' * (num_folds > 1)  # a file may hold one
    raise InputError(
      f"config.data.fold is {quote(fold)}; allowed are 0{last} and 'all'"
    )
  return int(text)


def _natural(name: str) -> list:
  # Texts are at even and numbers at odd places, so that they never compare.
  parts = re.split(r'([0-9]+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)]
