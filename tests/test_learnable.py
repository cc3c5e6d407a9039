"""Configs of which nothing can come are told before anything is trained."""

import pytest
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.experiment import build, opening
from medseg_jax.programs import prepare
from medseg_jax.runtime.errors import InputError


def config_of(**changes):
  config = shrink(load('unet'))
  config.data.channels, config.data.classes = 1, ('background', 'organ')
  for key, value in changes.items():
    section, _, name = key.rpartition('__')
    part = config[section] if section else config
    with part.ignore_type():
      part[name] = value
  return config


def check(config):
  mesh = build.mesh_of(config)
  build.check_statistics(config, build.model_of(config, mesh))


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(model__norm='batch', batch_size=1), ['batch norm', 'batch']),
    (
      dict(model__norm='batch', batch_size=4, batch_splits=4),
      ['batch norm', 'batch'],
    ),
    (dict(model__norm='instance', batch_size=8), ['instance norm']),
    (
      dict(model__norm='group', model__features=(8,) * 5, batch_size=8),
      ['group norm'],
    ),
    (
      dict(model__norm='instance', model__features=(4,) * 5),
      ['instance norm'],
    ),
  ],
)
def test_a_norm_with_one_value_is_told(changes, words):
  config = config_of(patch_size=(16, 16), model__depth=5, **changes)
  with pytest.raises(InputError) as error:
    check(config)
  assert_one_line(
    error, 'config.patch_size (16, 16)', 'would do', '(32, 32)', 'depth 4',
    *words,
  )  # fmt: skip


@pytest.mark.parametrize(
  'changes',
  [
    dict(model__norm='batch', batch_size=2),
    dict(model__norm='batch', batch_size=1, patch_size=(32, 16)),
    dict(model__norm='instance', model__depth=4),
    dict(model__norm='group', model__features=8),
    dict(model={'name': 'encoder_decoder'}),
  ],
)
def test_what_can_learn_is_let_through(changes):
  check(config_of(**{'patch_size': (16, 16), 'model__depth': 5} | changes))


def test_a_batch_of_nothing_but_foreground_is_told(tmp_path):
  config = shrink(load('unet'))
  config.batch_size = 1
  config.data.foreground_share = 0.33
  run = opening.open_run(config, tmp_path)
  text = prepare.describe(run.config, run.sources)
  assert 'centres every patch on foreground' in text
  run.config.batch_size = 2
  text = prepare.describe(run.config, run.sources)
  assert 'warning' not in text


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('num_steps', 0),
    ('optimizer__learning_rate', 0.0),
    ('data__foreground_share', 1.5),
    ('ema_decay', 1.0),
    ('inference__overlap', 1.0),
  ],
)
def test_numbers_that_let_nothing_be_learnt_are_told(tmp_path, key, value):
  config = config_of(**{key: value})
  run = opening.open_run(shrink(load('unet')), tmp_path)
  with pytest.raises(InputError) as error:
    build.check_shapes(config, run.sources['train'], build.mesh_of(config))
  assert_one_line(error, f'config.{key.replace("__", ".")} is', 'allowed are')
