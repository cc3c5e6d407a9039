"""Every label comes back from the regions that it lies in, or is named."""

import json

import numpy as np
import pytest
from data_cases import assert_one_line
from volume_cases import error_of, label_array, save, write_nnunet

from medseg_jax.data.sources import region_order
from medseg_jax.data.sources.dataset_json import read_dataset_json
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.inference.decoding import labels_from_regions
from medseg_jax.runtime.errors import InputError

# As nnU-Net's documentation has it for BraTS.
BRATS = {
  'background': 0,
  'whole tumor': [1, 2, 3],
  'tumor core': [2, 3],
  'enhancing tumor': 3,
}
KITS = {'background': 0, 'kidney': [1, 2, 3], 'masses': [2, 3], 'tumor': 2}


def read(tmp_path, labels, order):
  path = tmp_path / 'dataset.json'
  path.write_text(json.dumps({'labels': labels, 'regions_class_order': order}))
  return read_dataset_json(path)


@pytest.mark.parametrize(
  ('labels', 'order'), [(BRATS, [1, 2, 3]), (KITS, [1, 3, 2])]
)
def test_published_orders_are_right(tmp_path, labels, order):
  found = read(tmp_path, labels, order)
  assert found.region_order == tuple(order)
  values = np.arange(4)
  inside = np.stack([np.isin(values, ids) for _, ids in found.regions], -1)
  logits = np.where(inside, 1.0, -1.0)
  np.testing.assert_array_equal(labels_from_regions(logits, order), values)


@pytest.mark.parametrize(
  ('labels', 'order', 'words'),
  [
    (
      BRATS,
      [3, 2, 1],
      'the label 1, in whole tumor, comes back as 3, in whole tumor and tumor '
      'core and enhancing tumor, by "regions_class_order" [3, 2, 1]',
    ),
    (BRATS, [1, 3, 2], 'the label 2, in whole tumor and tumor core, comes'),
    (
      dict(reversed(BRATS.items())),
      [3, 2, 1],
      'the label 2, in tumor core and whole tumor, comes back as 1, in whole '
      'tumor, by',
    ),
    (KITS, [1, 2, 3], 'the label 2, in kidney and masses and tumor, comes'),
    (
      {'background': 0, 'all': [0, 1, 2], 'part': 2},
      [1, 2],
      'the label 0, in all, comes back as 1',
    ),
  ],
)
def test_a_wrong_order_is_one_line(tmp_path, labels, order, words):
  with pytest.raises(InputError) as error:
    read(tmp_path, labels, order)
  assert_one_line(error, tmp_path / 'dataset.json', words)


def test_labels_of_the_same_regions_are_one_and_said(tmp_path):
  write_nnunet(
    tmp_path,
    channel_names={'0': 'T1', '1': 'T2'},
    labels={'background': 0, 'whole': [1, 2, 3], 'core': [2, 3]},
    regions_class_order=[1, 3],
  )
  for name in 'ab':
    save(tmp_path / 'labelsTr' / f'{name}.nii.gz', label_array((0, 1, 2, 3)))
  source = open_volumes(tmp_path)['train']
  assert source.oddities == (
    f'{tmp_path}: the label 2 is in the same regions as 3 (whole, core): no '
    'prediction tells them apart, and masks have 3 for both',
  )
  # What the user adds is in no region, so that nobody would ever predict it.
  assert_one_line(
    error_of(tmp_path, label_values=(0, 1, 2, 3, 9)),
    'config.data.label_values',
    'the label 9, in no region, comes back as 0, in no region',
  )


@pytest.mark.parametrize('seed', range(20))
def test_what_is_found_is_what_decoding_does(seed):
  rng = np.random.default_rng(seed)
  inside = rng.random((3, 5)) < 0.6  # [regions, labels]
  inside[:, 0] = False
  regions = [(f'r{i}', np.flatnonzero(row)) for i, row in enumerate(inside)]
  order = rng.permutation(np.arange(1, 5))[:3]
  painted = labels_from_regions(np.where(inside.T, 0.5, -0.5), order)
  found = region_order.changes(range(5), regions, order)
  assert {c.value: c.becomes for c in found} == {
    value: int(painted[value]) for value in range(5) if painted[value] != value
  }
  for change in found:
    own, other = inside[:, change.value], inside[:, change.becomes]
    assert change.lossless == (own.any() and (own == other).all())


def test_plan_says_so_before_anything_else(tmp_path, refused):
  write_nnunet(
    tmp_path / 'data',
    channel_names={'0': 'T1', '1': 'T2'},
    labels={'background': 0, 'whole': [1, 2], 'core': 2},
    regions_class_order=[2, 1],
  )
  text = refused(
    '--mode=plan', '--config=configs/auto.py', f'--workdir={tmp_path}/run',
    f'--config.data.path={tmp_path}/data',
  )  # fmt: skip
  assert text.count('\n') == 1 and 'dataset.json: the label 1, in whole' in text
  assert 'comes back as 2, in whole and core, by' in text
  assert not (tmp_path / 'run' / 'plan.json').exists()
