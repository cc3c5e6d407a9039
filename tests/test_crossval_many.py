"""A cross-validation of images by several processes, and of groups."""

import json

import conftest
import many
import pytest


def flags(data, **keys):
  config = many.SMALL | {
    'eval_every': 0,
    'num_steps': 2,
    'data.source': 'folder',
    'data.path': data,
    'data.resize': '(16, 16)',
    'data.num_folds': 2,
    'data.group': 'case (.*).',  # case 00 to case 09, and case 10 on
    'data.own_splits': False,
    **keys,
  }
  return [
    *('--config=configs/unet.py', '--mode=crossval'),
    *(
      f'--config.{key}={value}'
      for key, value in config.items()
      if 'phantom' not in key
    ),
  ]


def made(root):
  """Returns what does not depend on who did how much of it."""
  paths = [
    *root.glob('2d/fold_*/held_out/*.png'),
    *root.glob('crossval/2d/*'),
    root / 'crossval' / 'summary.json',
    root / 'splits.json',
    *root.glob('model/**/model.safetensors'),
  ]
  return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_two_processes_cross_validate_as_one_does(tmp_path):
  conftest.write_pairs(tmp_path / 'discs', 13, size=24)
  arguments = flags(tmp_path / 'discs')
  one, two = tmp_path / 'one', tmp_path / 'two'
  many.run(one, *arguments, processes=1, devices=2)
  first, second = many.run(two, *arguments, processes=2)
  assert 'model     ' in first and second == ''
  wanted, found = made(one), made(two)
  assert len([name for name in wanted if name.endswith('.png')]) == 13
  # On one device and on two, logits may differ in their last bits.
  path = 'crossval/summary.json'
  mine, theirs = (json.loads(each.pop(path)) for each in (wanted, found))
  one, two = (each.pop('calibration') for each in (mine, theirs))
  assert one['fitted'] == pytest.approx(two['fitted'], rel=1e-3)
  assert one['volumes'] == two['volumes']
  assert theirs == mine and found == wanted
  folds = json.loads(wanted['splits.json'])
  assert sorted(len(fold['val']) for fold in folds) == [3, 10]
