"""Standardised intensities against NumPy and hand-made numbers."""

import tracemalloc

import nibabel
import numpy as np
import pytest
from data_cases import assert_one_line

from medseg_jax.data import normalize
from medseg_jax.data.normalize import Channel, standardise
from medseg_jax.runtime.errors import InputError


@pytest.mark.parametrize(
  ('dtype', 'top'), [(np.uint8, 255), (np.uint16, 65535)]
)
def test_scale_divides_by_the_largest_value_of_the_type(dtype, top):
  image = np.array([[[0], [51]], [[102], [top]]], dtype)
  got = standardise(image, normalize='scale').image
  np.testing.assert_allclose(
    got[..., 0], [[0, 51 / top], [102 / top, 1]], rtol=1e-6
  )
  assert got.dtype == np.float32


def test_scale_keeps_floats_from_0_to_1_and_refuses_others():
  image = np.array([[[0.0], [0.25], [1.0]]])
  got = standardise(image, normalize='scale').image
  np.testing.assert_array_equal(got, image)
  with pytest.raises(InputError) as error:
    standardise(image * 2, normalize='scale', name='brain 7')
  assert_one_line(error, 'brain 7', 'from 0 to 2', 'floats from 0 to 1')


@pytest.mark.parametrize('shape', [(7, 9, 3), (4, 5, 6, 2)])
@pytest.mark.parametrize('block', [10, 2**20])
def test_zscore_has_zero_mean_and_unit_deviation(shape, block, monkeypatch):
  monkeypatch.setattr(normalize, '_BLOCK', block)
  image = np.random.default_rng(0).uniform(0, 1.7e6, shape).astype(np.float32)
  got = standardise(image, normalize='zscore').image
  axes = tuple(range(len(shape) - 1))
  wide = image.astype(np.float64)
  expected = (wide - wide.mean(axes)) / wide.std(axes)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  channels = (Channel('zscore'),) * shape[-1]
  np.testing.assert_array_equal(
    standardise(image, channels=channels).image, got
  )


def test_zscore_keeps_the_digits_of_a_large_offset():
  image = np.random.default_rng(0).integers(0, 4, (20, 20, 1)) + 2**23
  got = standardise(image.astype(np.float32), normalize='zscore').image
  np.testing.assert_allclose(
    got, (image - image.mean()) / image.std(), atol=1e-5
  )


def test_zscore_of_a_constant_image_is_zero():
  image = np.full((4, 4, 1), 7, np.uint8)
  for scheme in ('zscore', 'zscore_nonzero'):
    got = standardise(image, channels=(Channel(scheme),)).image
    np.testing.assert_array_equal(got, 0)
  np.testing.assert_array_equal(standardise(image, normalize='zscore').image, 0)


def test_window_maps_its_ends_to_0_and_1_and_clips():
  image = np.array([[-1000, -160, 40, 240, 3000]], np.float32)[..., None]
  got = standardise(image, normalize='window', window=(-160, 240)).image
  np.testing.assert_allclose(got[0, :, 0], [0, 0, 0.5, 1, 1])


def test_ct_clips_and_then_takes_the_numbers_of_the_plan():
  image = np.array([[-1024, -100, 50, 300, 3071]], np.int16)[..., None]
  channel = Channel('ct', low=-100.0, high=300.0, mean=50.0, std=25.0)
  got = standardise(image, channels=(channel,)).image
  np.testing.assert_allclose(got[0, :, 0], [-6, -6, 0, 10, 10])
  assert got.dtype == np.float32


def test_nonzero_zscore_counts_filled_holes_and_clears_the_outside():
  first = np.zeros((9, 9, 9), np.float32)
  first[2:7, 2:7, 2:7] = np.random.default_rng(1).uniform(1, 5, (5, 5, 5))
  first[4, 4, 4] = 0  # a hole: inside
  second = np.zeros_like(first)
  second[2:7, 2:7, 2:8] = 3.0  # not 0 in one channel is inside for both
  got = standardise(
    np.stack([first, second], -1), channels=(Channel('zscore_nonzero'),) * 2
  ).image
  mask = np.zeros(first.shape, bool)
  mask[2:7, 2:7, 2:8] = True
  for c, values in enumerate((first, second)):
    inside = values[mask].astype(np.float64)
    expected = (inside - inside.mean()) / max(inside.std(), 1e-8)
    np.testing.assert_allclose(got[mask, c], expected, atol=1e-6)
    np.testing.assert_array_equal(got[~mask, c], 0)


def test_an_image_of_zeros_stays_zero():
  image = np.zeros((3, 4, 5, 1), np.int16)
  got = standardise(image, channels=(Channel('zscore_nonzero'),)).image
  np.testing.assert_array_equal(got, 0)


def test_each_channel_has_its_own_scheme():
  image = np.stack([np.arange(0, 256, 51)] * 3, -1)[None].astype(np.uint8)
  schemes = (Channel('scale'), Channel('none'), Channel('zscore'))
  got = standardise(image, channels=schemes).image[0]
  x = np.arange(0, 256, 51)
  np.testing.assert_allclose(got[:, 0], x / 255, rtol=1e-6)
  np.testing.assert_array_equal(got[:, 1], x)
  np.testing.assert_allclose(got[:, 2], (x - x.mean()) / x.std(), rtol=1e-6)


def test_scale_refuses_what_is_not_a_photograph():
  image = np.full((2, 2, 1), 1000, np.int16)
  with pytest.raises(InputError) as error:
    standardise(image, channels=(Channel('scale'),), name='scan 3')
  assert_one_line(error, 'scan 3', '1000', 'from 0 to 255')


def test_a_volume_is_not_copied_in_double_precision(monkeypatch):
  monkeypatch.setattr(normalize, '_BLOCK', 2**14)
  image = np.random.default_rng(2).integers(-1000, 2000, (64, 64, 64, 1))
  image = image.astype(np.int16)
  channels = (Channel('zscore'),)
  tracemalloc.start()
  standardise(image, channels=channels)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1.5 * 4 * image.size  # the float32 result and some blocks


def test_a_real_mr_scan(real_data):
  folder = real_data / 'hippocampus' / 'Task04_Hippocampus' / 'imagesTr'
  path = sorted(p for p in folder.iterdir() if not p.name.startswith('.'))[0]
  image = np.asanyarray(nibabel.load(path).dataobj)[..., None]
  got = standardise(image, channels=(Channel('zscore'),)).image
  assert abs(got.mean(dtype=np.float64)) < 1e-6
  assert abs(got.std(dtype=np.float64) - 1) < 1e-6
