"""Cases of one set to training and validation: K folds of the sorted names."""

import re
from collections.abc import Sequence

import numpy as np

from medseg_jax.errors import InputError

# The seed that published folds of the Medical Segmentation Decathlon use.
FOLD_SEED = 12345
FOLD_ORDERS = ('shuffled', 'block')


def split_names(
  names: Sequence[str],
  *,
  fold: int | str = 0,
  num_folds: int = 5,
  fold_order: str = 'shuffled',
  where: str = 'data',
) -> tuple[list[str], list[str]]:
  """Returns the names of the training and of the validation cases of a fold.

  `'shuffled'` is scikit-learn's `KFold(num_folds, shuffle=True,
  random_state=12345)` on the sorted names. `'block'` cuts the names in their
  natural order (`2` before `10`) into contiguous blocks, for sets whose
  neighbours look alike, such as the sections of one stack.

  Args:
    names: names of all cases, in any order.
    fold: which fold validates, an integer (or its text) from 0; `'all'` trains
      on every case and validates on none.
    num_folds: number of folds, at least 2. The first `n % num_folds` folds
      have one case more.
    fold_order: `'shuffled'` or `'block'`.
    where: the folder or file that messages name.

  Raises:
    InputError: no such fold or order, or fewer cases than folds.
  """
  if fold_order not in FOLD_ORDERS:
    raise InputError(
      f'data.fold_order: {fold_order!r}; allowed are {FOLD_ORDERS}'
    )
  names = sorted(names)
  if fold_order == 'block':
    names.sort(key=_natural)
  if fold == 'all':
    return names, []
  index = _fold_index(fold, num_folds)
  if len(names) < num_folds:
    raise InputError(
      f'{where}: {len(names)} case{"s" * (len(names) != 1)} cannot make '
      f"{num_folds} folds; allowed are data.fold='all' (train on every case), "
      'a val folder, or data.num_folds from 2 to the number of cases'
    )
  order = np.arange(len(names))
  if fold_order == 'shuffled':
    np.random.RandomState(FOLD_SEED).shuffle(order)
  held_out = set(np.array_split(order, num_folds)[index].tolist())
  return (
    [name for i, name in enumerate(names) if i not in held_out],
    [name for i, name in enumerate(names) if i in held_out],
  )


def _fold_index(fold: int | str, num_folds: int) -> int:
  if num_folds < 2:
    raise InputError(
      f"data.num_folds: {num_folds}; allowed are 2 or more, or data.fold='all'"
    )
  text = str(fold).strip()
  if not text.isdecimal() or int(text) >= num_folds:
    raise InputError(
      f"data.fold: {fold!r}; allowed are 0 to {num_folds - 1} and 'all'"
    )
  return int(text)


def _natural(name: str) -> list:
  # Texts are at even and numbers at odd places, so that they never compare.
  parts = re.split(r'([0-9]+)', name)
  return [int(p) if i % 2 else p for i, p in enumerate(parts)]
