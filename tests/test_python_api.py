"""Training and predicting from a program, without the command line."""

import json

import jax
import numpy as np
import pytest
from data_cases import assert_one_line
from ml_collections import ConfigDict
from small import load, shrink

import medseg_jax
from medseg_jax.data.sources.phantom import open_phantom
from medseg_jax.runtime.errors import InputError

COMPILED = '/jax/core/compile/backend_compile_duration'
TINY = {
  'num_steps': 4,
  'batch_size': 8,
  'patch_size': (16, 16),
  'model.depth': 2,
  'model.features': 4,
  'data.phantom.num_train': 12,
  'data.phantom.num_val': 3,
  'data.phantom.num_test': 5,
}


def test_train_look_predict(tmp_path):
  model, summary, workdir = medseg_jax.train(workdir=tmp_path, keys=TINY)
  assert workdir == tmp_path
  written = tmp_path / 'evaluation' / 'test' / 'summary.json'
  assert json.loads(written.read_text()) == summary
  case = open_phantom(shape=(16, 16), seed=3, num_train=1)['train'][0]
  found = model.predict(case.image, spacing=case.spacing)
  again = medseg_jax.load_model(workdir / 'model')
  np.testing.assert_array_equal(
    again.predict(case.image, spacing=case.spacing).label, found.label
  )
  assert found.label.shape == (16, 16)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: events.append(name)
  )
  try:
    for factor in (1.0, 0.5):
      model.predict(factor * case.image, spacing=case.spacing)
    assert COMPILED not in events
    jax.jit(lambda x: x + 3)(np.arange(7))  # that it would be seen
    assert COMPILED in events
  finally:
    jax.monitoring.clear_event_listeners()


def test_a_config_of_ones_own_stays_as_it_is(tmp_path):
  config = shrink(load('unet'))
  before = config.to_json()
  found = medseg_jax.train(config, workdir=tmp_path, keys={'num_steps': 2})
  assert found.summary['step'] == 2 and config.to_json() == before


def test_a_config_file_and_the_folder_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(
    'from configs import unet\n'
    'def get_config(steps):\n'
    '  config = unet.get_config()\n'
    '  config.num_steps = int(steps)\n'
    '  return config\n'
  )
  keys = {key: value for key, value in TINY.items() if key != 'num_steps'}
  found = medseg_jax.train('mine.py:3', keys=keys)
  assert found.summary['step'] == 3
  assert (tmp_path / 'runs/mine/model/model.json').exists()


@pytest.mark.parametrize(
  'config, keys, words',
  [
    ('nowhere.py', {}, 'config nowhere.py: no such file'),
    (None, {'num_step': 3}, 'did you mean config.num_steps?'),
    (ConfigDict({'num_steps': 3}), {'num_steps': 'x'}, 'a whole number'),
  ],
)
def test_mistakes_are_one_line(config, keys, words, tmp_path):
  with pytest.raises(InputError) as error:
    medseg_jax.train(config, workdir=tmp_path, keys=keys)
  assert words in str(error.value)
  assert_one_line(error)
