"""README.md of a model folder: what it says, and that models do without it."""

import json
import zipfile

import pytest
from predict_cases import write_model

from medseg_jax.experiment import ensemble, model_card, model_folder

SCORES = {
  'split': 'val',
  'num_cases': 7,
  'num_failed': 1,
  'failed': {'smith_john': 'damaged'},
  'classes': {
    'background': {'dice': 0.5, 'dice_ci95': [0.25, 0.75], 'n_valid': 7},
    'a|b': {'dice': None, 'dice_ci95': None, 'n_valid': 0},
  },
  'mean': {'dice': 0.8125, 'dice_ci95': [0.75, 0.875], 'hausdorff_95': 2.5},
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a model folder with weights of chance."""
  return write_model(tmp_path_factory.mktemp('card') / 'run') / 'model'


def test_it_says_what_the_model_says_and_names_nobody(folder):
  description = model_folder.read_description(folder)
  data = description['training']['config']['data']
  description |= {'classes': ['background', 'a|b'], 'label_values': [0, 255]}
  description['scores'] = SCORES
  description['preprocessing']['spacing'] = [2.0, 0.5, 0.5]
  data['path'] = '/data/smith_john'
  description['training']['cases'] = {'train': {'smith_john': '0'}}
  card = model_card.of_model(description)
  for line in (
    '* Values of a mask: 0 background, 255 a\\|b',
    "* Resampled to: 2 x 0.5 x 0.5 mm, in the network's axes",
    '| background | 0.500 | 0.250 to 0.750 | - | 7 |',
    '| a\\|b | - | - | - | 0 |',
    '| foreground mean | 0.812 | 0.750 to 0.875 | 2.50 |  |',
    '1 cases could not be scored.',
    '* Licence of the model',
  ):
    assert line in card.splitlines(), line
  assert 'Not for clinical use without validation' in card
  assert 'smith' not in card and '/data' not in card
  description['scores'] = None
  card = model_card.of_model(description)
  assert 'Nothing was held out' in card and '| class |' not in card


def test_every_model_has_one_that_travels(folder, tmp_path):
  card = (folder / 'README.md').read_text()
  assert card == model_card.of_model(model_folder.read_description(folder))
  ensemble.pack(folder, tmp_path / 'model.zip')
  with zipfile.ZipFile(tmp_path / 'model.zip') as file:
    assert file.read('README.md').decode() == card
  (tmp_path / 'copy').mkdir()
  model_folder.copy(tmp_path / 'model.zip', tmp_path / 'copy')
  assert (tmp_path / 'copy' / 'README.md').read_text() == card


def test_a_model_from_before_does_without(folder, tmp_path):
  old = tmp_path / 'old'
  old.mkdir()
  for name in ('model.json', 'model.safetensors'):
    (old / name).write_bytes((folder / name).read_bytes())
  assert model_folder.read(old).step == model_folder.read(folder).step
  ensemble.pack(old, tmp_path / 'old.zip')
  names = zipfile.ZipFile(tmp_path / 'old.zip').namelist()
  assert names == ['model.json', 'model.safetensors']
  (tmp_path / 'copy').mkdir()
  model_folder.copy(tmp_path / 'old.zip', tmp_path / 'copy')
  assert not (tmp_path / 'copy' / 'README.md').exists()


def test_an_ensemble_has_one_of_its_own(folder):
  first = json.loads((folder / 'model.json').read_text())
  card = model_card.of_ensemble(
    {
      'written_by': first['written_by'],
      'configurations': [{'name': '2d', 'members': [{}, {}]}],
      'postprocessing': [{}],
      'calibration': None,
      'scores': SCORES,
    },
    first,
  )
  assert '* Members: 2 x 2d' in card and 'Post-processing' in card
  assert 'Calibration' not in card and '0.750 to 0.875' in card
