"""What nnU-Net's augmentation does to the values of an image."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats
from test_augment import make_batch
from test_augment_volumes import quick, run

from medseg_jax.augment import kernels


def test_blur_and_low_resolution_take_their_share_of_the_channels():
  batch = make_batch((6, 7), channels=3, batch_size=300)
  for name, extra in (
    ('blur', {'blur_sigma': (0.5, 1.0)}),
    ('low_resolution', {'low_resolution_zoom': (0.5, 0.6)}),
  ):
    shares = {f'{name}_prob': 0.6, f'{name}_channel_prob': 0.5}
    result = run(batch, **shares, **extra)
    changed = np.asarray(result['image'] != batch['image']).any(axis=(1, 2))
    counts = np.bincount(changed.sum(axis=1), minlength=4) / 300
    expected = 0.6 * stats.binom(3, 0.5).pmf(range(4)) + [0.4, 0, 0, 0]
    np.testing.assert_allclose(counts, expected, atol=0.09)
    np.testing.assert_array_equal(result['label'], batch['label'])


@pytest.mark.parametrize('shape', [(9, 16), (8, 5, 11)])
def test_low_resolution_is_nearest_down_and_linear_up(shape):
  image = np.random.default_rng(3).normal(size=(*shape, 3)).astype(np.float32)
  zooms = (0.5, 0.73, 1.0)
  low_resolution_fn = quick(
    lambda *args: kernels.low_resolution(*args, range(len(shape)))
  )
  result = low_resolution_fn(jnp.asarray(image), jnp.array(zooms))
  for channel, zoom in enumerate(zooms):
    expected = image[..., channel].astype(np.float64)
    for axis, size in enumerate(shape):
      coarse = round(zoom * size)
      centres = (np.arange(coarse) + 0.5) / coarse * size
      low = np.take(expected, np.floor(centres).astype(int), axis)
      expected = np.apply_along_axis(
        lambda line, at=centres, n=size: np.interp(
          np.arange(n) + 0.5, at, line
        ),
        axis,
        low,
      )
    np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)
  np.testing.assert_array_equal(result[..., 2], image[..., 2])


def test_low_resolution_in_plane_keeps_the_first_axis():
  batch = make_batch((4, 6, 6), batch_size=1)
  batch['image'] = batch['image'].at[:, [0, 2, 3]].set(0)
  fields = {'low_resolution_prob': 1, 'low_resolution_zoom': (0.5, 0.5)}
  image = run(batch, in_plane=True, **fields)['image']
  np.testing.assert_array_equal(
    np.any(image, axis=(0, 2, 3, 4)), [False, True, False, False]
  )
  image = run(batch, **fields)['image']
  np.testing.assert_array_equal(
    np.any(image, axis=(0, 2, 3, 4)), [True, True, True, False]
  )


def test_brightness_multiplies_each_channel_before_it_adds():
  batch = make_batch((4, 5), channels=2, batch_size=300)
  fields = {'brightness_prob': 1, 'brightness_range': (0.5, 2.0)}
  scaled = np.asarray(run(batch, **fields)['image'])
  factor = scaled / np.asarray(batch['image'])
  assert np.ptp(factor, axis=(1, 2)).max() < 1e-4
  factor = factor[:, 0, 0]
  assert np.abs(np.diff(factor)).max() > 0.1
  logs = np.log2(factor).ravel()
  assert stats.kstest(logs, stats.uniform(-1, 2).cdf).pvalue > 1e-3
  # The offset is the one that it is without a factor.
  both = run(batch, brightness_std=0.3, **fields)['image']
  offset = run(batch, brightness_prob=1, brightness_std=0.3)['image']
  np.testing.assert_allclose(both - scaled, offset - batch['image'], atol=1e-5)


def test_contrast_clip_keeps_the_range_of_each_channel():
  batch = make_batch((6, 7), channels=2, batch_size=8)
  fields = {'contrast_prob': 1, 'contrast_range': (1.5, 2.0)}
  free, kept = (
    np.asarray(run(batch, contrast_clip=x, **fields)['image'])
    for x in (False, True)
  )
  image = np.asarray(batch['image'])
  lo, hi = (f(axis=(1, 2), keepdims=True) for f in (image.min, image.max))
  np.testing.assert_allclose(kept, np.clip(free, lo, hi), atol=1e-6)
  assert np.any(free > hi) and np.any(free < lo)


@pytest.mark.parametrize('invert', [False, True])
@pytest.mark.parametrize('keep_stats', [False, True])
def test_gamma_is_a_power_law_of_the_image_or_of_its_negative(
  invert, keep_stats
):
  batch = make_batch((6, 7), channels=2, batch_size=4)
  name = 'gamma_invert_prob' if invert else 'gamma_prob'
  fields = {'gamma_range': (0.5, 0.8), 'gamma_keep_stats': keep_stats}
  result = np.asarray(run(batch, **{name: 1}, **fields)['image'], np.float64)
  for e, c in itertools.product(range(4), range(2)):
    old = np.asarray(batch['image'][e, ..., c], np.float64)
    new = result[e, ..., c]
    if keep_stats:
      np.testing.assert_allclose(new.mean(), old.mean(), atol=1e-5)
      np.testing.assert_allclose(new.std(), old.std(), rtol=1e-5)
    else:
      np.testing.assert_allclose(new.max(), old.max(), atol=1e-5)
      np.testing.assert_allclose(new.min(), old.min(), atol=1e-5)
    old, new = ((-x if invert else x) for x in (old, new))
    old, new = ((x - x.min()) / np.ptp(x) for x in (old, new))
    inside = (old > 0.1) & (old < 0.9)
    gamma = np.log(new[inside]) / np.log(old[inside])
    assert np.ptp(gamma) < 1e-3
    assert 0.499 < gamma.mean() < 0.801


def test_the_two_gammas_are_drawn_apart():
  batch = make_batch((4, 5), batch_size=400)
  fields = {'gamma_range': (0.5, 0.6), 'gamma_keep_stats': True}
  changed = [
    np.asarray(
      run(batch, **{name: 0.5}, **fields)['image'] != batch['image']
    ).any(axis=(1, 2, 3))
    for name in ('gamma_prob', 'gamma_invert_prob')
  ]
  assert all(abs(x.mean() - 0.5) < 0.08 for x in changed)
  assert abs((changed[0] & changed[1]).mean() - 0.25) < 0.08


def test_a_constant_channel_survives_what_divides_by_its_range():
  batch = make_batch((6, 7, 5), channels=2)
  batch['image'] = batch['image'].at[..., 1].set(1.5)
  fields = {
    'contrast_prob': 1,
    'contrast_range': (0.75, 0.8),
    'contrast_clip': True,
    'low_resolution_prob': 1,
    'low_resolution_zoom': (0.5, 0.6),
    'gamma_invert_prob': 1,
    'gamma_prob': 1,
    'gamma_range': (0.7, 0.8),
    'gamma_keep_stats': True,
  }
  result = run(batch, **fields)['image']
  assert np.isfinite(result).all()
  np.testing.assert_allclose(result[..., 1], 1.5, rtol=1e-5)


def test_noise_comes_before_what_smooths_it():
  batch = make_batch((24, 24), batch_size=16)
  batch['image'] = jnp.zeros_like(batch['image'])
  noise = {'noise_prob': 1, 'noise_std': 1.0}
  alone = np.asarray(run(batch, **noise)['image'])
  blur = {'blur_prob': 1, 'blur_sigma': (1.0, 1.0)}
  smooth = np.asarray(run(batch, **noise, **blur)['image'])
  expected = ndimage.gaussian_filter(
    alone, (0, 1, 1, 0), mode='mirror', radius=4
  )
  np.testing.assert_allclose(smooth, expected, atol=1e-5)
