"""Preprocessing of whole cases, step by step, by independent means."""

import numpy as np
import pytest
from data_cases import assert_one_line, box_oracle
from scipy import ndimage

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import (
  Channel,
  Preprocessing,
  check,
  nonzero_box,
  preprocess,
)
from medseg_jax.runtime.errors import InputError

CT = Channel('ct', low=-100.0, high=300.0, mean=80.0, std=60.0)


def case(image, label=None, spacing=None):
  spacing = spacing or (1.0,) * (image.ndim - 1)
  return Case('a case', np.asarray(image), label, spacing)


def volume(shape=(9, 14, 12), *, channels=1, seed=0):
  """Returns an int16 volume with a margin of zeros, and 3 classes."""
  rng = np.random.default_rng(seed)
  image = np.zeros((*shape, channels), np.int16)
  image[1:-1, 2:-1, 3:-2] = 1 + rng.integers(
    0, 500, (shape[0] - 2, shape[1] - 3, shape[2] - 5, channels)
  )
  smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
  label = np.digitize(smooth, np.quantile(smooth, [0.4, 0.7]))
  return image, label.astype(np.int16) - 1  # with the -1 of ignored voxels


def zoom(array, shape, order):
  factors = np.divide(shape, array.shape)
  options = {'order': order, 'mode': 'nearest', 'grid_mode': True}
  return ndimage.zoom(array.astype(np.float64), factors, **options)


def one_hot_argmax(label, shape):
  values = np.unique(label)
  weights = np.stack([zoom(label == v, shape, 1) for v in values])
  return values[np.round(weights, 7).argmax(0)]


def test_an_image_is_standardised_and_its_label_left_alone():
  image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
  label = np.eye(4, 5, dtype=np.uint8)
  got = preprocess(case(image, label), Preprocessing('scale'))
  np.testing.assert_allclose(got.image, image / 255, rtol=1e-6)
  assert got.image.dtype == np.float32
  np.testing.assert_array_equal(got.label, label)
  assert got.box == (slice(0, 4), slice(0, 5))


def test_the_window_reaches_the_image():
  image = np.array([[-1000, -160, 40, 240, 3000]], np.float32)[..., None]
  got = preprocess(case(image), Preprocessing('window', (-160, 240)))
  np.testing.assert_allclose(got.image[0, :, 0], [0, 0, 0.5, 1, 1])
  assert got.label is None


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_the_case(value):
  image = np.zeros((3, 3, 1), np.float32)
  image[1, 1] = value
  with pytest.raises(InputError) as error:
    preprocess(case(image), Preprocessing())
  assert_one_line(error, 'a case: 1 of 9 image values', 'allowed are finite')


def test_image_and_label_are_resized_to_one_grid():
  p = Preprocessing('scale', resize=(8, 12))
  label = np.eye(5, 7, dtype=np.uint8)
  got = preprocess(case(label[..., None] * np.uint8(255), label), p)
  assert got.image.shape == (8, 12, 1)
  assert got.label.shape == (8, 12)
  unlabelled = preprocess(case(label[..., None] * np.uint8(255)), p)
  np.testing.assert_array_equal(unlabelled.image, got.image)
  assert unlabelled.label is None


def test_the_whole_recipe_of_a_volume():
  image, label = volume(channels=2)
  kept = image.copy()
  p = Preprocessing(
    channels=(CT, Channel('zscore')),
    axes=(1, 0, 2),
    crop=True,
    spacing=(2.0, 1.0, 1.5),
  )
  check(p)
  got = preprocess(case(image, label, (1.5, 2.5, 1.0)), p)
  assert got.box == (slice(1, 8), slice(2, 13), slice(3, 10))
  cropped = image[got.box].transpose(1, 0, 2, 3).astype(np.float64)
  assert cropped.shape[:3] == (11, 7, 7)
  # 2.5 / 2 * 11 = 13.75, 1.5 / 1 * 7 = 10.5 (to even), 1 / 1.5 * 7 = 4.67.
  shape = (14, 10, 5)
  first = (np.clip(cropped[..., 0], -100, 300) - 80) / 60
  second = cropped[..., 1]
  second = (second - second.mean()) / second.std()
  expected = np.stack([zoom(c, shape, 3) for c in (first, second)], -1)
  np.testing.assert_allclose(got.image, expected, atol=1e-5)
  assert got.image.dtype == np.float32
  expected = one_hot_argmax(label[got.box].transpose(1, 0, 2), shape)
  np.testing.assert_array_equal(got.label, expected)
  assert -1 in got.label
  np.testing.assert_array_equal(image, kept)


def test_an_anisotropic_case_is_resampled_in_its_planes():
  image, label = volume((6, 16, 14))
  p = Preprocessing(channels=(CT,), spacing=(2.5, 1.0, 1.0))
  got = preprocess(case(image, label, (5.0, 0.8, 0.8)), p)
  assert got.image.shape == (12, 13, 11, 1)
  values = (np.clip(image[..., 0], -100, 300) - 80) / 60
  plane = [zoom(each, (13, 11), 3) for each in values]
  expected = np.repeat(plane, 2, 0)  # each slice is the nearest of two
  np.testing.assert_allclose(got.image[..., 0], expected, atol=1e-5)
  plane = [one_hot_argmax(each, (13, 11)) for each in label]
  np.testing.assert_array_equal(got.label, np.repeat(plane, 2, 0))


def test_the_plan_of_a_2d_network_leaves_the_first_axis():
  image, label = volume((6, 16, 14))
  p = Preprocessing(channels=(CT,), axes=(0, 1, 2), spacing=(2.0, 2.0))
  check(p)
  got = preprocess(case(image, label, (1.5, 1.0, 1.0)), p)
  assert got.image.shape == (6, 8, 7, 1)
  values = (np.clip(image[..., 0], -100, 300) - 80) / 60
  expected = np.stack([zoom(each, (8, 7), 3) for each in values])
  np.testing.assert_allclose(got.image[..., 0], expected, atol=1e-5)


def test_a_case_at_the_target_spacing_keeps_its_voxels():
  image, label = volume()
  p = Preprocessing(channels=(Channel('none'),), spacing=(1.0, 1.0, 1.0))
  got = preprocess(case(image, label), p)
  np.testing.assert_array_equal(got.image, image)
  np.testing.assert_array_equal(got.label, label)


def test_a_case_of_zeros_is_not_cropped_away():
  image = np.zeros((4, 5, 6, 1), np.int16)
  p = Preprocessing(channels=(Channel('zscore_nonzero'),), crop=True)
  got = preprocess(case(image), p)
  np.testing.assert_array_equal(got.image, 0)
  assert got.image.shape == image.shape


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (Preprocessing('standard'), ["normalize is 'standard'", 'are scale']),
    (Preprocessing('window', (3.0, 1.0)), ['a lower and a higher intensity']),
    (Preprocessing('window'), ['data.window is']),
    (Preprocessing(resize=(0, 4)), ['data.resize is']),
    (Preprocessing(resize=(8, 8), spacing=(1.0, 1.0)), ['one of the two']),
    (
      Preprocessing(channels=(CT, Channel('CT'))),
      ["channel 1 in the plan is 'CT'", 'allowed are ct, zscore'],
    ),
    (Preprocessing(channels=(Channel('ct'),)), ['clips from 0 to 0']),
    (Preprocessing(channels=(Channel('none', std=-1.0),)), ['a std of -1']),
    (Preprocessing(axes=(0, 1, 1)), ['axes of the plan are (0, 1, 1)']),
    (Preprocessing(spacing=(1.0, 0.0, 1.0)), ['(1.0, 0.0, 1.0)', 'above 0']),
    (Preprocessing(axes=(0, 1, 2), spacing=(1.0,)), ['for all but the first']),
  ],
)
def test_settings_without_sense_are_named(settings, words):
  with pytest.raises(InputError) as error:
    check(settings)
  assert_one_line(error, *words)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (Preprocessing(resize=(4, 4)), 'resize is (4, 4), but a case has 3 axes'),
    (Preprocessing(channels=(CT,)), 'a case has 2 channels; the plan has 1'),
    (Preprocessing(axes=(1, 0)), 'a case has 3 axes; the plan has 2'),
    (Preprocessing(spacing=(1.0,)), 'the plan is for a spacing of (1.0,)'),
  ],
)
def test_a_case_that_the_settings_are_not_for_is_named(settings, words):
  image, _ = volume(channels=2)
  with pytest.raises(InputError) as error:
    preprocess(case(image), settings)
  assert_one_line(error, words)


@pytest.mark.parametrize('shape', [(9, 8, 2), (7, 9, 8, 1), (7, 9, 8, 3)])
def test_the_box_is_that_of_the_filled_mask(shape):
  for seed in range(20):
    rng = np.random.default_rng(seed)
    image = np.zeros(shape, np.int16)
    for _ in range(3):
      # A negative value counts, and one channel is enough.
      image[tuple(rng.integers(0, shape))] = rng.choice((-7, 300))
    assert nonzero_box(image) == box_oracle(image)


def test_the_box_around_a_hollow_cube_and_of_nothing():
  image = np.zeros((10, 11, 12, 1), np.float32)
  image[2:7, 3:9, 4:5] = image[2:7, 3:9, 10:11] = 1
  assert nonzero_box(image) == (slice(2, 7), slice(3, 9), slice(4, 11))
  assert nonzero_box(image * 0) == (slice(0, 10), slice(0, 11), slice(0, 12))
