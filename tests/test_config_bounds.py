"""Every whole number of a config is held against what it may be."""

import pytest
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.experiment import config_bounds, opening
from medseg_jax.experiment.overrides import keys_of
from medseg_jax.runtime.errors import InputError


def set_key(config, key, value):
  *sections, name = key.split('.')
  for section in sections:
    config = config[section]
  with config.ignore_type():
    config[name] = value


def value_of(config, key):
  for part in key.split('.'):
    config = config[part]
  return config


def test_no_whole_number_of_the_default_config_is_forgotten():
  config = load('unet')
  found = {key for key in keys_of(config) if type(value_of(config, key)) is int}
  # The network checks its own, and a fold may be 'all'.
  own = {key for key in found if key.startswith('model.')} | {'data.fold'}
  assert found - own == set(config_bounds.BOUNDS)
  assert set(config_bounds.SIZES) <= set(keys_of(config))


@pytest.mark.parametrize('name', ['unet', 'auto', 'auto_cpu', 'em', 'tutorial'])
def test_the_configs_are_within(name):
  config_bounds.check(load(name))


@pytest.mark.parametrize('key', [*config_bounds.BOUNDS, *config_bounds.SIZES])
def test_what_is_outside_is_one_line_before_any_work(key, tmp_path):
  low, high = (config_bounds.BOUNDS | config_bounds.SIZES)[key]
  for value in (low - 1, high + 1, 1.5, float('nan'), True, 'many', None):
    config = shrink(load('unet'))
    sizes = key in config_bounds.SIZES
    set_key(config, key, (64, value) if sizes else value)
    with pytest.raises(InputError) as error:
      opening.open_run(config, tmp_path)
    assert_one_line(error, f'config.{key} is', str(value), f'from {low} to')
  assert not list(tmp_path.iterdir())


def test_a_section_alone():
  config = shrink(load('unet'))
  config.seed = -1
  config_bounds.check(config, 'inference')
  config.inference.batch_size = -2
  with pytest.raises(InputError, match='inference.batch_size is -2'):
    config_bounds.check(config, 'inference')
