"""What is learnt of held-out cases, against counts and known temperatures."""

import numpy as np
import pytest
from small import load
from test_calibration import drawn, drawn_regions
from test_in_step import CROPPED, PLAIN, case_of, run

from medseg_jax import calibration
from medseg_jax.data.case import Case
from medseg_jax.data.formats import images
from medseg_jax.experiment import calibrated, sampled_voxels
from medseg_jax.inference.own_grid import Sample
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import calibrating
from medseg_jax.studies.held_out_masks import HeldOutMask

SIDE = 24  # of an image


def config_for(classes=('background', 'a', 'b'), regions=(), sigmoid=False):
  config = load('unet')
  config.data.classes = classes
  config.data.label_values = tuple(range(len(classes)))
  config.data.regions = regions
  if sigmoid:
    config.loss.cross_entropy = config.loss.dice_loss = 0.0
    config.loss.sigmoid_cross_entropy = 1.0
  return config


def held_out(folder, logits, labels, masks, num_folds=4):
  """Returns held-out masks of square images of these voxels, one a row."""
  cases = [
    Case(str(i), np.zeros((SIDE, SIDE, 1)), label, (1.0, 1.0))
    for i, label in enumerate(labels.reshape(-1, SIDE, SIDE))
  ]
  source = type('Source', (list,), {'label_values': (0, 1, 2)})(cases)
  points = np.argwhere(np.ones((SIDE, SIDE), bool)).astype(np.int32)
  found = []
  for i, own in enumerate(logits.reshape(len(cases), SIDE**2, -1)):
    path, sample = folder / f'{i}.png', folder / f'{i}_logits.npz'
    images.write_mask(path, masks[i], (0, 1, 2))
    sampled_voxels.write(sample, Sample(points, own.astype(np.float32)))
    found.append(HeldOutMask(str(i), i % num_folds, path, sample, source, i))
  return found


def test_temperature_and_bands_are_those_of_the_voxels_and_areas(tmp_path):
  number = 34
  logits, labels = drawn(number * SIDE**2)
  labels = labels.astype(np.int16)
  masks = logits.argmax(-1).reshape(-1, SIDE, SIDE).astype(np.int16)
  truth = labels.reshape(masks.shape).copy()
  labels[: 2 * SIDE**2 : 7] = -1  # is ignored, in two images
  found = held_out(tmp_path, logits, labels, masks)
  picture = tmp_path / 'plot.png'
  learnt = calibrating.learn(found, config_for(), (), picture)
  there = labels >= 0
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(calibrating, 'MOST_VALUES', logits.size // 2)
    half = calibrating.learn(found, config_for(), (), tmp_path / 'half.png')
  assert half['num_voxels'] == pytest.approx(there.sum() / 2, rel=0.01)
  assert half['temperature'] == pytest.approx([2.5], rel=0.1)
  (fitted,) = calibration.fit_temperature(
    logits[there].astype(np.float32), labels[there]
  )
  assert learnt['num_voxels'] == there.sum()
  assert learnt['temperature'] == pytest.approx([fitted], rel=1e-4)
  assert fitted == pytest.approx(2.5, rel=0.1)
  error = learnt['expected_error']
  assert error['after'] < error['before'] / 3
  assert list(learnt['class_wise_error']) == ['background', 'a', 'b']
  assert all(
    of['after'] < of['before'] for of in learnt['class_wise_error'].values()
  )
  assert picture.stat().st_size > 1000
  areas = [  # of images whose whole area is known
    [(array[i] == 2).sum() for i in range(2, number)]
    for array in (masks, truth)
  ]
  band = calibration.fit_band(*areas, root=2)
  volumes = learnt['volumes']
  assert volumes['unit'] == 'pixels'
  assert volumes['classes']['b'] == {
    'low': band.low,
    'high': band.high,
    'num_cases': number - 2,
    'left_out_coverage': calibration.left_out_coverage(
      *areas, np.arange(2, number) % 4, root=2
    ),
  }
  assert volumes['classes']['b']['left_out_coverage'] < 1
  read = calibrated.from_json(learnt, num_outputs=3)
  assert read.bands['b'] == band and read.temperature == (
    learnt['temperature'][0],
  )
  first, second = calibrating.describe(learnt)
  assert first.startswith(f'temperature {fitted:.3f}: on folds that it was not')
  assert 'pixel' not in second and second.startswith('volumes   90% intervals')


def test_a_temperature_that_does_not_help_is_not_kept_and_that_is_said(
  tmp_path,
):
  half = 2 * SIDE**2
  honest, timid = (
    drawn(half, seed=1, temperature=1.0),
    drawn(half, seed=2, temperature=0.2),
  )
  logits, labels = map(np.concatenate, zip(honest, timid, strict=True))
  masks = logits.argmax(-1).reshape(-1, SIDE, SIDE).astype(np.int16)
  found = held_out(tmp_path, logits, labels, masks)
  found = [mask._replace(fold=i // 2) for i, mask in enumerate(found)]
  learnt = calibrating.learn(found, config_for(), (), tmp_path / 'plot.png')
  assert learnt['temperature'] == [1.0] != learnt['fitted']
  assert calibrated.from_json(learnt, num_outputs=3).temperature == ()
  lines = calibrating.describe(learnt)
  assert lines[0].startswith('temperature 1 is kept')
  assert lines[1].endswith('a -, b - (too few cases to tell)')


def test_regions_have_one_each_and_sigmoid_classes_share_one(tmp_path):
  logits, there = drawn_regions(8 * SIDE**2)
  # Class 1 is in the first region alone, class 2 in both; the second alone is
  # no class, so what is drawn so is left out.
  labels = np.where(there[:, 0], 1 + there[:, 1], -there[:, 1].astype(int))
  masks = np.zeros((8, SIDE, SIDE), np.int16)
  found = held_out(tmp_path, logits, labels, masks)
  config = config_for(regions=(('whole', (1, 2)), ('core', (2,))))
  learnt = calibrating.learn(found, config, (), tmp_path / 'plot.png')
  kept = labels >= 0
  expected = calibration.fit_temperature(
    logits[kept].astype(np.float32), there[kept]
  )
  assert learnt['fitted'] == pytest.approx(expected, rel=1e-4)
  assert list(learnt['volumes']['classes']) == ['whole', 'core']
  padded = np.concatenate([np.zeros((len(logits), 1)), logits], 1)
  found = held_out(tmp_path, padded, labels, masks)
  config = config_for(sigmoid=True)
  learnt = calibrating.learn(found, config, (), tmp_path / 'plot.png')
  assert len(learnt['fitted']) == 1
  assert list(learnt['class_wise_error']) == ['a', 'b']


def ramp(tiles):
  """A network whose logits differ from voxel to voxel."""
  return np.concatenate([tiles, 2 - tiles, tiles * tiles], -1) * 3


@pytest.mark.parametrize('preprocessing', [PLAIN, CROPPED])
def test_kept_logits_lie_where_they_say_and_no_mask_changes(preprocessing):
  case = case_of(9, 12, 10)
  case.image[:2] = case.image[:, 9:] = 0  # is cropped away
  case = case._replace(label=np.zeros((9, 12, 10), np.int16))
  case.label[3:5] = -1
  [plain] = run(ramp, [case], preprocessing=preprocessing, probabilities=True)
  boxes = []

  def points(case, box):
    boxes.append(box)
    return sampled_voxels.draw(case, box, seed=0)

  [found] = run(
    ramp,
    [case],
    preprocessing=preprocessing,
    probabilities=True,
    temperature=(2.0,),
    points=points,
  )
  np.testing.assert_array_equal(found.label, plain.label)
  at = tuple(found.sample.points.T)
  inside = np.zeros(case.label.shape, bool)
  inside[boxes[0]] = case.label[boxes[0]] >= 0
  assert len(found.sample.points) == inside.sum() and inside[at].all()
  for prediction, temperature in (plain, 1.0), (found, 2.0):
    np.testing.assert_allclose(
      prediction.probs[at],
      calibration.scale(found.sample.logits, [temperature]),
      atol=1e-3,
    )


def test_which_voxels_follows_from_the_name_and_the_seed():
  label = np.zeros((80, 90), np.int16)
  label[:, 20:] = -1
  case = Case('a', np.zeros((80, 90, 1)), label, (1.0, 1.0))
  box = (slice(10, 80), slice(0, 90))
  first = sampled_voxels.draw(case, box, seed=0)
  assert len(first) == sampled_voxels.NUM_VOXELS
  assert (label[tuple(first.T)] == 0).all() and first[:, 0].min() >= 10
  assert abs(first.mean(0) - (44.5, 9.5)).max() < 1.5
  np.testing.assert_array_equal(first, sampled_voxels.draw(case, box, seed=0))
  for other in (
    sampled_voxels.draw(case, box, seed=1),
    sampled_voxels.draw(case._replace(name='b'), box, seed=0),
  ):
    assert (other[:100] != first[:100]).any()


def test_a_damaged_file_of_logits_is_named(tmp_path):
  path = tmp_path / 'a_logits.npz'
  path.write_bytes(b'PK')
  with pytest.raises(InputError, match='remove it, and it is made anew'):
    sampled_voxels.read(path)


def test_mean_probabilities_of_0_do_no_harm(tmp_path):
  logits, labels = drawn(4 * SIDE**2)
  logits = np.log(calibration.scale(logits, [1.0]))
  logits[::50, 0], logits[::50, 1:] = 0, -np.inf  # as of a pair that is sure
  labels[::50] = 0
  masks = np.zeros((4, SIDE, SIDE), np.int16)
  found = held_out(tmp_path, logits, labels, masks)
  learnt = calibrating.learn(found, config_for(), (), tmp_path / 'plot.png')
  assert learnt['expected_error']['after'] < learnt['expected_error']['before']
  assert np.isfinite(learnt['temperature']).all()
