"""What a calibrated ensemble says of new images: probabilities and volumes."""

import csv
import json

import numpy as np
import pytest
from ensemble_cases import write_untrained_models
from PIL import Image
from predict_cases import compile_once, masks, write_images
from scipy import stats
from small import load

from medseg_jax import load_model
from medseg_jax.calibration import VolumeBand, volume_interval
from medseg_jax.experiment import (
  calibrated,
  ensemble,
  prediction_files,
  trained_model,
  volume_table,
)
from medseg_jax.experiment.calibrated import Calibration
from medseg_jax.experiment.prediction_record import Maker, Record
from medseg_jax.experiment.prediction_targets import MASK, Job, Target
from medseg_jax.inference import decoding
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError, Stopped

BAND = {'low': -2.0, 'high': 3.5, 'num_cases': 40}
LEARNT = {
  'temperature': [3.0],
  'volumes': {
    'unit': 'pixels',
    'root': 2,
    'coverage': 0.9,
    'classes': {'liver': BAND, 'tumour': BAND | {'low': None, 'high': None}},
  },
}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Returns an ensemble without and one with a calibration."""
  root = tmp_path_factory.mktemp('models')
  members = {'2d': [write_untrained_models(root)['small']]}
  for name, learnt in ('plain', None), ('calibrated', LEARNT):
    ensemble.write(
      root / name, members, scores=None, postprocessing=[], calibration=learnt
    )
  return root / 'plain', root / 'calibrated'


def run(model, source, output, **options):
  predict.run(
    trained_model.read_config(None, model, ''),
    None,
    model=model,
    input_path=source,
    output_dir=output,
    **options,
  )


def rows_of(folder):
  with open(folder / 'volumes.csv') as file:
    return list(csv.DictReader(file))


def test_the_temperature_is_that_of_probabilities_and_of_no_mask(
  models, monkeypatch
):
  compile_once(monkeypatch)
  image = np.random.default_rng(0).integers(0, 255, (20, 30), np.uint8)
  plain, ours = (load_model(model).predict(image) for model in models)
  np.testing.assert_array_equal(plain.label, ours.label)
  powers = plain.probs.astype(np.float64) ** (1 / 3)
  expected = powers / powers.sum(-1, keepdims=True)
  np.testing.assert_allclose(ours.probs, expected, atol=2e-3)
  assert abs(plain.probs - ours.probs).max() > 0.01


def test_volumes_are_counts_of_the_masks_with_their_intervals(
  models, tmp_path, monkeypatch, capsys
):
  compile_once(monkeypatch)
  images, output = write_images(tmp_path / 'in'), tmp_path / 'out'
  original, calls = prediction_files.write, []

  def stopping(*args, **named):
    if calls:
      raise Stopped('stopped', 15)
    calls.append(1)
    return original(*args, **named)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prediction_files, 'write', stopping)
    with pytest.raises(Stopped):
      run(models[1], images, output)
  run(models[1], images, output)
  assert 'volumes.csv: 3 cases in pixels, with 90% intervals' in (
    capsys.readouterr().out
  )
  found = rows_of(output)
  assert [row['case'] for row in found[::3]] == ['a', 'b', 'c']
  config = trained_model.read_config(None, models[1], '')
  values = dict(zip(config.data.classes, config.data.label_values, strict=True))
  for row in found:
    mask = np.asarray(Image.open(output / f'{row["case"]}.png'))
    area = (mask == values[row['class']]).sum()
    assert float(row['volume']) == area and row['unit'] == 'pixels'
    bounds = row['low'], row['high']
    if row['class'] == 'liver':
      expected = volume_interval(area, VolumeBand(-2.0, 3.5, 40, 2))
      assert list(map(float, bounds)) == pytest.approx(expected, rel=1e-5)
    else:  # not bounded, not known
      assert bounds == (('0', '') if row['class'] == 'tumour' else ('', ''))
  # Rows of other masks stay, as do all when nothing is left to do.
  more = write_images(tmp_path / 'more', 'd', seed=1)
  run(models[1], more, output)
  assert rows_of(output)[:-3] == found
  before = masks(output)
  run(models[1], images, output)
  assert rows_of(output)[:-3] == found and masks(output) == before


def test_without_a_calibration_there_are_volumes_and_no_intervals(
  models, tmp_path, monkeypatch, capsys
):
  compile_once(monkeypatch)
  images, output = write_images(tmp_path / 'in', 'a'), tmp_path / 'out'
  run(models[0], images, output)
  assert {row['low'] + row['high'] for row in rows_of(output)} == {''}
  # What somebody else has written there is not overwritten.
  (output / 'volumes.csv').write_text('mine\n')
  run(models[0], images, output)
  assert (output / 'volumes.csv').read_text() == 'mine\n'
  assert 'is not overwritten' in capsys.readouterr().out


def test_a_calibration_that_makes_no_sense_is_one_line(models, tmp_path):
  for wrong in ({'temperature': [0.0]}, {'temperature': [1, 2]}, {}):
    description = json.loads((models[1] / 'model.json').read_text())
    description['calibration'] = {**wrong, 'volumes': LEARNT['volumes']}
    for path in (models[1] / '2d').rglob('*.*'):
      target = tmp_path / path.relative_to(models[1])
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())
    (tmp_path / 'model.json').write_text(json.dumps(description))
    with pytest.raises(InputError, match='model.json is damaged'):
      ensemble.read(tmp_path)


def test_bands_of_cases_that_ended_their_training_are_marked():
  band = {'low': 0.0, 'high': 2.0, 'num_cases': 20}
  found = {
    'temperature': [1.0],
    'volumes': {
      'unit': 'ml', 'coverage': 0.9, 'root': 3, 'classes': {'a': band},
    },
    'stopped_early': ['2d/fold_0', '2d/fold_1'],
  }  # fmt: skip
  told = volume_table._told_of_intervals(
    calibrated.from_json(found, num_outputs=2), 'ml'
  )
  assert told.startswith('with 90% intervals (rather narrow')
  assert 'of 2 folds early' in told


def test_entropy_is_that_of_the_calibrated_probabilities(
  models, tmp_path, monkeypatch
):
  compile_once(monkeypatch)
  images, output = write_images(tmp_path / 'in', 'a'), tmp_path / 'out'
  run(models[1], images, output)
  mask = (output / 'a.png').read_bytes()
  config = trained_model.read_config(None, models[1], '')
  config.inference.uncertainty = True
  predict.run(
    config, None, model=models[1], input_path=images, output_dir=output
  )
  assert (output / 'a.png').read_bytes() == mask
  probs = load_model(models[1]).predict(images / 'a.tif').probs
  probs = probs.astype(np.float64)
  most = np.log(probs.shape[-1])
  expected = stats.entropy(probs, axis=-1) / most
  written = np.asarray(Image.open(output / 'a_entropy.png')) / 255
  np.testing.assert_allclose(written, expected, atol=0.005)
  # Without the temperature it is another, which does not pass for this one.
  with pytest.raises(InputError, match='a_entropy.png.*another temperature'):
    predict.run(
      config, None, model=models[0], input_path=images, output_dir=output
    )
  run(models[0], images, output)  # of the same weights the mask is kept
  assert (output / 'a.png').read_bytes() == mask
  other = stats.entropy(probs**3, axis=-1) / most
  assert other.mean() < expected.mean() / 1.05


def test_entropy_of_what_is_decided_by_itself_is_that_of_the_least_sure():
  probs = np.array([[0.5, 0.0], [1.0, 0.9], [0.2, 0.3]])
  expected = [stats.bernoulli.entropy(p).max() / np.log(2) for p in probs]
  for with_background in (False, True):
    padded = probs
    if with_background:
      padded = np.concatenate([1 - probs.max(1, keepdims=True), probs], 1)
    found = decoding.entropy(
      padded, exclusive=False, has_background=with_background
    )
    np.testing.assert_allclose(found, expected)


def test_large_areas_keep_their_digits_and_odd_names_have_one_row(tmp_path):
  config = load('unet')
  config.data.source, config.data.classes = 'folder', ('background', 'a', 'b')
  target = tmp_path / 'caf\udce9.png'
  target.write_bytes(b'a mask')
  job = Job('', (), (Target(MASK, target),))
  maker = Maker('these weights', {})
  Record(tmp_path).add(
    target, target.name, (), '', maker, voxels=[1, 1234567, 0], voxel_size=1.0
  )
  for _ in range(2):
    volume_table.write(tmp_path, [job], config, maker)
  rows = rows_of(tmp_path)
  assert [row['volume'] for row in rows] == ['1234567', '0']
  # Those of a mask that other weights have made stay as they are.
  bands = {'a': VolumeBand(-2.0, 3.5, 40, 2)}
  other = Calibration((), bands, 'pixels', 0.9)
  volume_table.write(tmp_path, [job], config, Maker('others', {}, other))
  assert rows_of(tmp_path) == rows
