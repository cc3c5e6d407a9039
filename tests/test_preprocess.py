"""Standardisation and resizing against NumPy, Pillow and hand-made numbers."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import (
  Preprocessing,
  check,
  preprocess_image,
  preprocess_label,
  resize_linear,
  resize_nearest,
)
from medseg_jax.errors import InputError


def case(image, label=None):
  return Case('a case', np.asarray(image), label, (1.0,) * (image.ndim - 1))


@pytest.mark.parametrize(
  ('dtype', 'top'), [(np.uint8, 255), (np.uint16, 65535)]
)
def test_scale_divides_by_the_largest_value_of_the_type(dtype, top):
  image = np.array([[[0], [51]], [[102], [top]]], dtype)
  got = preprocess_image(case(image), Preprocessing('scale'))
  np.testing.assert_allclose(
    got[..., 0], [[0, 51 / top], [102 / top, 1]], rtol=1e-6
  )
  assert got.dtype == np.float32


@pytest.mark.parametrize('shape', [(7, 9, 3), (4, 5, 6, 2)])
def test_zscore_has_zero_mean_and_unit_deviation_in_each_channel(shape):
  image = np.random.default_rng(0).uniform(0, 1.7e6, shape).astype(np.float32)
  got = preprocess_image(case(image), Preprocessing('zscore'))
  axes = tuple(range(len(shape) - 1))
  np.testing.assert_allclose(got.mean(axes), 0, atol=1e-5)
  np.testing.assert_allclose(got.std(axes), 1, rtol=1e-5)


def test_zscore_of_a_constant_image_is_zero():
  got = preprocess_image(case(np.full((4, 4, 1), 7, np.uint8)), Preprocessing())
  np.testing.assert_array_equal(got, 0)


def test_window_maps_its_ends_to_0_and_1_and_clips():
  image = np.array([[-1000, -160, 40, 240, 3000]], np.float32)[..., None]
  got = preprocess_image(case(image), Preprocessing('window', (-160, 240)))
  np.testing.assert_allclose(got[0, :, 0], [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_the_case(value):
  image = np.zeros((3, 3, 1), np.float32)
  image[1, 1] = value
  with pytest.raises(InputError, match='a case: 1 of 9 image values'):
    preprocess_image(case(image), Preprocessing())


@pytest.mark.parametrize('size', [(20, 30), (7, 50), (91, 64), (64, 13)])
def test_linear_resizing_agrees_with_pillow(size):
  image = np.random.default_rng(1).random((64, 48)).astype(np.float32)
  expected = Image.fromarray(image).resize(size[::-1], Image.BILINEAR)
  got = resize_linear(image[..., None], size)[..., 0]
  np.testing.assert_allclose(got, np.asarray(expected), atol=2e-6)


def test_linear_enlarging_of_a_volume_agrees_with_scipy():
  image = np.random.default_rng(2).random((5, 6, 7)).astype(np.float32)
  expected = ndimage.zoom(image, 2, order=1, mode='nearest', grid_mode=True)
  got = resize_linear(image[..., None], (10, 12, 14))[..., 0]
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_nearest_resizing_keeps_the_values_and_blocks():
  label = np.array([[0, 3], [1, 2]], np.uint8)
  big = resize_nearest(label, (4, 6))
  np.testing.assert_array_equal(big, np.kron(label, np.ones((2, 3), np.uint8)))
  np.testing.assert_array_equal(resize_nearest(big, (2, 2)), label)


def test_image_and_label_are_resized_to_one_grid():
  p = Preprocessing('scale', resize=(8, 12))
  label = np.eye(5, 7, dtype=np.uint8)
  both = case(label[..., None] * np.uint8(255), label)
  assert preprocess_image(both, p).shape == (8, 12, 1)
  assert preprocess_label(both, p).shape == (8, 12)


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (Preprocessing('standard'), "normalize is 'standard'; allowed are scale"),
    (Preprocessing('window', (3.0, 1.0)), 'a lower and a higher intensity'),
    (Preprocessing('window'), 'data.window is'),
    (Preprocessing(resize=(0, 4)), 'data.resize is'),
  ],
)
def test_settings_without_sense_are_named(settings, words):
  with pytest.raises(InputError, match=words):
    check(settings)
