"""A config survives the program that wrote it: newer keys, older files."""

import json

import pytest
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.experiment import config_files
from medseg_jax.experiment.config_files import read_config, write_config
from medseg_jax.runtime.errors import InputError


@pytest.fixture
def written(tmp_path):
  """Returns a function that writes a config, changed by another function."""

  def write(change, name='unet'):
    config = shrink(load(name), augmented=True)
    config.data.channels = 1
    config.data.classes = ('background', 'organ')
    config.data.label_values = (0, 1)
    write_config(config, tmp_path)
    found = json.loads((tmp_path / 'config.json').read_text())
    change(found)
    (tmp_path / 'config.json').write_text(json.dumps(found))
    return config

  return write


def test_what_was_written_is_read(written, tmp_path):
  for name in ('unet', 'auto', 'tutorial'):
    config = written(lambda found: None, name)
    assert read_config(tmp_path) == config
  found = json.loads((tmp_path / 'config.json').read_text())
  assert found['version'] == config_files.VERSION


def test_keys_of_later_take_their_defaults(written, tmp_path, capsys):
  def older(found):
    del found['version']  # the first ones had none
    del found['data']['group'], found['augment']['low_resolution_zoom']
    del found['evaluation'], found['model']['remat'], found['ema_decay']

  config = written(older)
  assert read_config(tmp_path) == config
  assert capsys.readouterr().out == ''


def test_another_network_has_keys_of_its_own(written, tmp_path):
  def older(found):
    found['model'] = {'name': 'encoder_decoder', 'its_own': 3}

  written(older)
  assert read_config(tmp_path).model.to_dict() == {
    'name': 'encoder_decoder',
    'its_own': 3,
  }


def test_keys_that_nothing_knows_are_named(written, tmp_path, capsys):
  def strange(found):
    found['data']['held_out'] = 'abc'
    found['colour'] = 'blue'
    found['loss']['my_loss'] = 1.0

  config = written(strange)
  assert read_config(tmp_path) == config
  [line] = capsys.readouterr().out.splitlines()
  for key in ('data.held_out', 'colour', 'loss.my_loss', 'config.json'):
    assert key in line


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (lambda found: found.update(version=99), ['version 99']),
    (lambda found: found.update(version='x' * 999), ['version']),
    (lambda found: found.update(data=3), ['data is 3', 'section']),
    (lambda found: found.update(model=[1]), ['model is [1]', 'section']),
    (lambda found: found.pop('model'), ['model']),
    (lambda found: found['data'].pop('classes'), ['data.classes is []', 'two']),
    (
      lambda found: found['data'].update(classes='ab'),
      ['data.classes', 'list'],
    ),
    (lambda found: found['data'].update(classes=[1, 2]), ['classes', 'names']),
    (lambda found: found['data'].pop('label_values'), ['data.label_values']),
    (
      lambda found: found['data'].update(label_values=[0, 1, 2]),
      ['data.label_values is [0, 1, 2]', 'each class'],
    ),
    (lambda found: found['data'].pop('channels'), ['data.channels is None']),
    (lambda found: found['data'].update(channels=True), ['data.channels']),
    (lambda found: found.update(seed='7'), ["seed is '7'", 'whole number']),
    (lambda found: found.update(num_steps=2.5), ['num_steps is 2.5']),
    (lambda found: found.update(patch_size=16), ['patch_size is 16', 'list']),
    (lambda found: found.update(dtype=None), ['dtype is None', 'text']),
    (
      lambda found: found['inference'].update(overlap='x' * 999),
      ['inference.overlap', 'a number'],
    ),
    (
      lambda found: found['inference'].update(mirror=1),
      ['inference.mirror is 1', 'true or false'],
    ),
    (
      lambda found: found['loss'].update(dice_loss={}),
      ['loss.dice_loss is {}'],
    ),
  ],
)
def test_what_is_no_config_is_told(written, tmp_path, change, words):
  written(change)
  with pytest.raises(InputError) as error:
    read_config(tmp_path)
  assert_one_line(error, 'config.json', *words)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize('text', ['[]', 'null', '3', '{', ''])
def test_other_files_are_told(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(InputError) as error:
    read_config(tmp_path)
  assert_one_line(error, 'config.json', 'allowed')
