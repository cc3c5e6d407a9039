"""Folds: which cases are held out, and the errors of wrong options.

The expected folds were printed by scikit-learn 1.9:
KFold(k, shuffle=True, random_state=12345).split(range(n)).
"""

import pytest
from data_cases import assert_all_in

from medseg_jax.data import splits
from medseg_jax.errors import InputError


@pytest.mark.parametrize(
  ('num_cases', 'folds'),
  [
    (10, [[0, 7], [3, 9], [4, 6], [1, 8], [2, 5]]),
    (11, [[0, 3, 7], [6, 9, 10], [1, 4, 8], [2, 5]]),
    (
      30,
      [
        [3, 8, 12, 15, 18, 26], [0, 6, 7, 20, 21, 24],
        [10, 11, 13, 19, 22, 23], [14, 16, 17, 25, 27, 29],
        [1, 2, 4, 5, 9, 28],
      ],
    ),
  ],
)  # fmt: skip
def test_shuffled_folds_are_those_of_scikit_learn(num_cases, folds):
  cases = [f'case_{i:03d}' for i in range(num_cases)]
  for fold, held_out in enumerate(folds):
    train, val = splits.split_names(
      cases[::-1], fold=fold, num_folds=len(folds)
    )
    assert val == [cases[i] for i in held_out]
    assert train == [cases[i] for i in range(num_cases) if i not in held_out]


def test_block_folds_are_neighbours_in_natural_order():
  cases = [f's{i}' for i in range(11)]
  folds = [
    splits.split_names(cases, fold=i, num_folds=4, fold_order='block')[1]
    for i in range(4)
  ]
  assert folds == [cases[:3], cases[3:6], cases[6:9], cases[9:]]


def test_fold_all_trains_on_everything():
  assert splits.split_names(['b', 'a'], fold='all') == (['a', 'b'], [])
  assert splits.split_names(['b'], fold='all') == (['b'], [])


def test_fold_may_be_a_text():
  cases = [str(i) for i in range(10)]
  text = splits.split_names(cases, fold='3')
  assert text == splits.split_names(cases, fold=3)


@pytest.mark.parametrize(
  ('options', 'parts'),
  [
    ({'fold': 5}, ['data.fold: 5', '0 to 4', "'all'"]),
    ({'fold': -1}, ['data.fold: -1', '0 to 4']),
    ({'fold': 'none'}, ["data.fold: 'none'", '0 to 4']),
    ({'fold': 1.5}, ['data.fold: 1.5', '0 to 4']),
    ({'num_folds': 1}, ['data.num_folds: 1', '2 or more']),
    ({'num_folds': 7}, ['DATA: 6 cases', '7 folds', "fold='all'"]),
    ({'fold_order': 'random'}, ["'random'", "'shuffled', 'block'"]),
  ],
)
def test_wrong_folds_are_errors(options, parts):
  with pytest.raises(InputError) as error:
    splits.split_names(list('abcdef'), where='DATA', **options)
  assert_all_in(str(error.value), *parts)
