"""The text of every config, so that a change of one is seen in all."""

import json

import pytest
from conftest import ROOT
from small import load

from medseg_jax.models import create_model

NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('[!_]*.py'))
GOLDEN = ROOT / 'tests' / 'golden'


def text(name: str) -> str:
  return json.dumps(load(name).to_dict(), indent=2, sort_keys=True) + '\n'


@pytest.mark.parametrize('name', NAMES)
def test_the_config_is_as_written_down(name):
  # After a change on purpose: python tests/test_configs.py
  assert text(name) == (GOLDEN / f'{name}.json').read_text()


def test_no_golden_text_is_left_over():
  assert sorted(p.stem for p in GOLDEN.glob('*.json')) == NAMES


def test_the_stable_keys_are_there():
  config = load('unet')
  for key in [
    'seed',
    'num_steps',
    'batch_size',
    'patch_size',
    'mesh.data',
    'mesh.spatial',
    'dtype',
    'model.name',
    'loss',
    'optimizer.name',
    'optimizer.learning_rate',
    'schedule.name',
    'data.source',
    'data.path',
    'data.classes',
    'data.label_values',
    'data.resize',
    'data.fold',
    'data.num_folds',
    'init_from',
    'augment',
    'log_every',
    'eval_every',
    'checkpoint_every',
    'checkpoint_keep',
  ]:
    section = config
    for part in key.split('.'):
      assert part in section, key
      section = section[part]


def test_fields_of_a_stage_take_one_number_or_one_each():
  config = load('unet')
  for key, value in [
    ('features', (8, 16, 24, 32)),
    ('convs_per_stage', (1, 2, 2, 2)),
    ('kernel_sizes', (3, 3, (1, 3), 3)),
    ('strides', (1, 2, (1, 2), 2)),
  ]:
    config.model[key] = value
  fields = config.model.to_dict()
  model = create_model(fields.pop('name'), 3, **fields)
  assert model.divisor(2) == (4, 8)
  config.data.fold = 'all'
  assert config.data.fold == 'all'


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for each in NAMES:
    (GOLDEN / f'{each}.json').write_text(text(each))
