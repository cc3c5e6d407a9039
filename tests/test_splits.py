"""Folds: which cases are held out, and the errors of wrong options.

The expected folds were printed by scikit-learn 1.9:
KFold(k, shuffle=True, random_state=12345).split(range(n)).
"""

import json

import pytest
from data_cases import assert_all_in, assert_one_line

from medseg_jax.data import splits
from medseg_jax.runtime.errors import InputError


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
    made = splits.all_folds(cases[::-1], num_folds=len(folds))[fold]
    assert made == {
      'train': [cases[i] for i in range(num_cases) if i not in held_out],
      'val': [cases[i] for i in held_out],
    }


def test_block_folds_are_neighbours_in_natural_order():
  cases = [f's{i}' for i in range(11)]
  folds = splits.all_folds(cases, num_folds=4, fold_order='block')
  assert [fold['val'] for fold in folds] == [
    cases[:3], cases[3:6], cases[6:9], cases[9:],
  ]  # fmt: skip


@pytest.mark.parametrize('fold', [3, '3', ' 3 '])
def test_fold_may_be_a_text(fold):
  assert splits.fold_index(fold, 5) == 3


@pytest.mark.parametrize('fold', [5, -1, 'none', 1.5])
def test_wrong_folds_are_errors(fold):
  with pytest.raises(InputError) as error:
    splits.fold_index(fold, 5)
  assert_one_line(error, f'data.fold is {fold!r}', '0 to 4', "'all'")


@pytest.mark.parametrize(
  ('options', 'parts'),
  [
    ({'num_folds': 1}, ['data.num_folds is 1', '2 or more']),
    ({'num_folds': 0}, ['data.num_folds is 0', '2 or more']),
    ({'num_folds': 7}, ['DATA: 6 cases', '7 folds', "fold='all'"]),
    ({'fold_order': 'random'}, ["'random'", 'shuffled, block']),
  ],
)
def test_folds_that_cannot_be_made_are_errors(options, parts):
  with pytest.raises(InputError) as error:
    splits.all_folds(list('abcdef'), where='DATA', **options)
  assert_all_in(str(error.value), *parts)


def test_all_folds_are_written_and_read(tmp_path):
  cases = [f'case_{i}' for i in range(7)]
  folds = splits.all_folds(cases[::-1], num_folds=3)
  assert len(folds) == 3
  for fold in folds:
    assert sorted(fold['train'] + fold['val']) == cases
  assert sorted(name for fold in folds for name in fold['val']) == cases
  path = tmp_path / 'new' / 'splits.json'
  splits.write_splits(path, folds)
  assert json.loads(path.read_text()) == folds
  assert splits.read_splits(path) == folds
  block = splits.all_folds(cases, num_folds=7, fold_order='block')
  assert [fold['val'] for fold in block] == [[name] for name in cases]


def test_a_file_may_hold_a_single_fold():
  assert splits.fold_index('0', 1) == 0
  for fold in (1, 'all', -1):
    with pytest.raises(InputError) as error:
      splits.fold_index(fold, 1)
    assert_one_line(error, f'data.fold is {fold!r}; allowed are 0 and')


def test_a_file_of_splits_may_leave_cases_out(tmp_path):
  path = tmp_path / 'splits_final.json'
  path.write_text('[{"train": ["b", "a"], "val": ["d"], "note": 1}]')
  folds = splits.read_splits(path)
  assert folds == [{'train': ['b', 'a'], 'val': ['d']}]


@pytest.mark.parametrize(
  ('text', 'parts'),
  [
    ('[{"train": ', ['not JSON', 'line 1', 'allowed is a list']),
    ('', ['not JSON']),
    ('{"train": ["a"], "val": ["b"]}', ['no list of folds']),
    ('[]', ['no list of folds']),
    ('[["a"], ["b"]]', ['fold 0', "no list 'train'"]),
    ('[{"train": ["a"]}]', ['fold 0', "no list 'val'"]),
    ('[{"train": [1], "val": ["b"]}]', ["no list 'train'"]),
    ('[{"train": ["a", "b"], "val": ["b"]}]', ["case 'b' occurs twice"]),
    ('[{"train": ["a", "a"], "val": ["b"]}]', ["case 'a' occurs twice"]),
    ('[{"train": ["a"], "val": []}]', ["'val' is empty", "data.fold='all'"]),
    ('[{"train": [], "val": ["a"]}]', ["'train' is empty"]),
  ],
)
def test_wrong_files_of_splits_are_errors(tmp_path, text, parts):
  path = tmp_path / 'splits.json'
  path.write_text(text)
  with pytest.raises(InputError) as error:
    splits.read_splits(path)
  assert_one_line(error, path, *parts)


def test_names_of_no_case_are_errors():
  folds = [{'train': ['a'], 'val': ['b']}, {'train': ['a'], 'val': ['x', 'y']}]
  splits.check_names(folds, ['a', 'b', 'x', 'y', 'z'], 'splits.json')
  with pytest.raises(InputError) as error:
    splits.check_names(folds, ['a', 'b', 'c'], 'splits.json')
  assert_one_line(
    error, 'splits.json, fold 1', "2 names of no case under 'val'", "'x'",
    '3 cases', "such as 'a'", 'put the files back', 'made anew',
  )  # fmt: skip


def test_splits_that_are_not_there_or_no_text(tmp_path):
  with pytest.raises(InputError) as error:
    splits.read_splits(tmp_path / 'none.json')
  assert_one_line(error, 'none.json: cannot be read')
  (tmp_path / 'binary.json').write_bytes(b'\xff\xfe\x80')
  with pytest.raises(InputError) as error:
    splits.read_splits(tmp_path / 'binary.json')
  assert_one_line(error, 'binary.json: not JSON')
