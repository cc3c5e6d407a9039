"""Label values without a dataset.json: stray ones, and what is no id."""

import numpy as np
import pytest
from data_cases import assert_all_in, assert_one_line
from volume_cases import (
  SHAPE,
  error_of,
  image_array,
  label_array,
  save,
  write_decathlon,
  write_pairs,
)

from medseg_jax.data.sources.inspection import describe_classes, inspect_case
from medseg_jax.data.sources.volumes import open_volumes


def write_labels(root, labels):
  for seed, (name, array) in enumerate(labels.items()):
    save(root / 'images' / f'{name}.nii.gz', image_array(seed, array.shape))
    save(root / 'labels' / f'{name}.nii.gz', array)


def one_voxel_of(value):
  ids = label_array()
  ids[0, 0, 0] = value
  return ids


@pytest.mark.parametrize('given', [(), (0, 1, 2)])
def test_a_value_in_one_voxel_is_no_class_and_is_told(tmp_path, given):
  write_labels(
    tmp_path, {'a': label_array(), 'b': one_voxel_of(9), 'c': label_array()}
  )
  source = open_volumes(tmp_path, label_values=given)['train']
  assert source.label_values == (0, 1, 2)
  if not given:
    (line,) = source.oddities
    assert_all_in(
      line, 'labels/b.nii.gz: the value 9 is in 1 voxel of 1 of 3 labels',
      'mistake', 'ignored', 'data.label_values',
    )  # fmt: skip
  assert source[1].label[0, -1, -1] == -1 and (source[1].label == -1).sum() == 1
  found = inspect_case(source, 1)
  assert found.errors == () and found.case is not None
  (line,) = found.warnings
  assert_all_in(
    line, 'labels/b.nii.gz: label ids of no class', ': 9 (1 voxel);', 'ignored'
  )
  # Whose class it is says so.
  source = open_volumes(tmp_path, label_values=(0, 1, 2, 9))['train']
  assert source.oddities == () and source[1].label.max() == 3


def test_a_value_in_a_few_voxels_is_a_class_and_is_told(tmp_path):
  labels = {name: label_array() for name in 'abc'}
  labels['b'][0, :2, :] = 9
  labels['c'][0, :1, :] = 9
  write_labels(tmp_path, labels)
  source = open_volumes(tmp_path)['train']
  assert source.label_values == (0, 1, 2, 9)
  (line,) = source.oddities
  assert_all_in(
    line, 'labels/b.nii.gz: the value 9 is in 12 voxels of 2 of 3 labels',
    'mistake', 'a class of its own unless data.label_values says 0, 1, 2',
  )  # fmt: skip


@pytest.mark.parametrize('value', [-1, 40000])
def test_strays_that_no_class_can_have(tmp_path, value):
  ids = label_array().astype(np.int32)
  ids[0, 0, 0] = value
  write_labels(tmp_path, {'a': label_array(), 'b': ids})
  line = error_of(tmp_path, strict=False)
  assert_one_line(line, 'labels/b.nii.gz: label ids', 'data.label_values')
  source = open_volumes(tmp_path, label_values=(0, 1, 2))['train']
  assert (source[1].label == -1).sum() == 1


def test_many_voxels_of_no_class_are_no_strays(tmp_path):
  write_labels(tmp_path, {'a': label_array((0, 1, 2, 7))})
  source = open_volumes(tmp_path, label_values=(0, 1, 2))['train']
  (line,) = inspect_case(source, 0).errors
  assert_all_in(line, 'a.nii.gz: label ids of no class: 7 (30 voxels)')
  # Nor is anything a stray that dataset.json says nothing about.
  write_decathlon(tmp_path / 'set')
  save(tmp_path / 'set' / 'labelsTr' / 'a.nii.gz', one_voxel_of(9))
  for values in ((), (0, 2, 1)):
    source = open_volumes(tmp_path / 'set', label_values=values)['train']
    assert inspect_case(source, 0).errors


def test_a_set_of_small_classes_has_nothing_odd(tmp_path):
  ids = np.zeros(SHAPE, np.uint8)
  ids[1, 1, 1:3] = 1
  write_labels(tmp_path, {'a': ids, 'b': ids})
  assert open_volumes(tmp_path)['train'].oddities == ()


def test_classes_are_counted(tmp_path):
  write_labels(tmp_path, {'a': label_array(), 'b': label_array((0, 2))})
  source = open_volumes(tmp_path)['train']
  inspections = [inspect_case(source, i) for i in range(2)]
  assert describe_classes(source, inspections) == [
    'background (0): 100 voxels in 2 of 2 labels',
    'label_1 (1): 40 voxels in 1 of 2 labels',
    'label_2 (2): 100 voxels in 2 of 2 labels',
  ]


# Labels that are no ids.


def test_labels_that_are_no_ids_are_named_with_their_values(tmp_path):
  parts = label_array().astype(np.float32) * 0.37
  write_labels(tmp_path, {name: parts for name in 'abcde'})
  for strict in (True, False):
    line = error_of(tmp_path, strict=strict)
    assert_one_line(
      line, 'labels/a.nii.gz: the label holds 0.37, 0.74 in 80 of 120 voxels',
      'whole numbers', '4 more problems',
    )  # fmt: skip
    assert len(line.value.problems) == 5
  for name in 'abcde':
    one_hot = np.stack([label_array() == k for k in range(3)], -1)
    save(tmp_path / 'labels' / f'{name}.nii.gz', one_hot.astype(np.uint8))
  line = error_of(tmp_path, strict=False)
  assert_one_line(
    line, 'labels/a.nii.gz: a label with 3 channels, shape 6x5x4x3',
    'one mask for each class', '4 more problems',
  )  # fmt: skip


def test_empty_labels_do_not_hide_unreadable_ones(tmp_path):
  write_labels(tmp_path, {name: label_array((0,)) for name in 'abc'})
  assert_one_line(
    error_of(tmp_path), 'every label is empty (all 0), in 3 files'
  )
  save(tmp_path / 'labels' / 'b.nii.gz', np.full(SHAPE, 0.5, np.float32))
  line = error_of(tmp_path, strict=False)
  assert_one_line(line, 'labels/b.nii.gz: the label holds 0.5 in 120')


def test_pairs_with_few_values_are_as_before(tmp_path):
  write_pairs(tmp_path, 'ab')
  source = open_volumes(tmp_path)['train']
  assert source.oddities == () and source.label_values == (0, 1, 2)


def test_ignored_voxels_are_told_by_whoever_reads_the_label_first(
  tmp_path, caplog
):
  write_pairs(tmp_path, 'ab')
  label = label_array()
  label[0, 0, :2] = 9
  save(tmp_path / 'labels' / 'b.nii.gz', label)
  for survey_first in (False, True):
    caplog.clear()
    source = open_volumes(tmp_path, label_values=(0, 1, 2))['train']
    if survey_first:
      (line,) = inspect_case(source, 1).warnings
    cases = [source[i] for i in (0, 1, 1)] + list(source.subset(['b']))
    assert all((case.label[...] == -1).sum() == 2 for case in cases[1:])
    told = [record.getMessage() for record in caplog.records]
    if survey_first:
      assert not told
    else:
      (line,) = told
    assert 'labels/b.nii.gz: label ids of no class: 9 (2 voxels)' in line
