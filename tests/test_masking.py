"""Channels normalised inside a mask are 0 outside it after the augmentation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage
from small import load
from test_device_cache import assert_same, compile_read, one_device

from medseg_jax import augment
from medseg_jax.data import cache as caches
from medseg_jax.data import masking, sampling
from medseg_jax.data.case import Case
from medseg_jax.data.normalize import Channel
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.experiment import build
from medseg_jax.step import TrainStep
from medseg_jax.training import device_cache

INSIDE, WHOLE = Channel('zscore_nonzero'), Channel('zscore')


def head(shape=(20, 24, 22), *, channels=2, spacing=1.0, seed=0):
  """Returns a case in an ellipsoid with a hole, labelled in and out of it."""
  rng = np.random.default_rng(seed)
  grid = np.indices(shape) - np.reshape(shape, (3, 1, 1, 1)) / 2
  radius = np.sqrt(((grid.T / np.array(shape) * 2.4) ** 2).sum(-1)).T
  image = rng.integers(1, 900, (*shape, channels)).astype(np.int16)
  image[(radius > 1) | (radius < 0.3)] = 0
  label = rng.integers(-1, 3, shape).astype(np.int16)
  return Case('a head', image, label, (spacing,) * 3)


def mask_of(case):
  return ndimage.binary_fill_holes((case.image != 0).any(-1))


@pytest.mark.parametrize('xp', [np, jnp])
def test_every_label_comes_back_with_its_mask(xp):
  label = np.arange(-1, 300).repeat(2)
  mask = np.tile([True, False], 301)
  folded = masking.fold(label, mask)
  assert folded.dtype == np.int16
  assert (folded[~mask] < masking.IGNORE).all()
  assert masking.fold(np.array([-1]), np.array([False])) == masking.NOWHERE
  again, inside = masking.unfold(xp.asarray(folded), xp)
  np.testing.assert_array_equal(again, label)
  np.testing.assert_array_equal(inside, mask)
  assert masking.fold(label, None) is label


def test_the_mask_is_that_of_the_normalisation():
  case = head()
  settings = Preprocessing(channels=(INSIDE, WHOLE), axes=(1, 0, 2), crop=True)
  got = preprocess(case, settings)
  mask = mask_of(case)[got.box].transpose(1, 0, 2)
  np.testing.assert_array_equal(got.mask, mask)
  assert not got.image[..., 0][~mask].any() and got.image[..., 1][~mask].any()
  assert got.mask[tuple(n // 2 for n in mask.shape)]  # the hole is filled
  assert preprocess(case._replace(label=None), settings).mask is None
  whole = settings._replace(channels=(WHOLE, WHOLE))
  assert preprocess(case, whole).mask is None


def test_the_mask_is_resampled_as_a_label_and_leaves_the_label_alone():
  case = head(spacing=1.0)
  settings = Preprocessing(channels=(INSIDE, INSIDE), spacing=(1.6, 0.8, 1.0))
  got = preprocess(case, settings)
  plain = preprocess(case, settings._replace(channels=(WHOLE, WHOLE)))
  np.testing.assert_array_equal(got.label, plain.label)
  shape = got.label.shape
  share = ndimage.zoom(
    mask_of(case).astype(float), np.divide(shape, case.label.shape),
    order=1, mode='nearest', grid_mode=True,
  )  # fmt: skip
  clear = np.abs(share - 0.5) > 1e-6
  np.testing.assert_array_equal(got.mask[clear], share[clear] > 0.5)


class OneCase:
  names = ('a head',)

  def __init__(self, case):
    self.case = case

  def __len__(self):
    return 1

  def __getitem__(self, index):
    return self.case

  def case_key(self, index):
    return ''


def test_the_cache_keeps_mask_and_label(tmp_path):
  case = head()
  prepared = functools.partial(
    caches.prepare, OneCase(case), root=tmp_path, with_locations=True
  )
  masked = prepared(Preprocessing(channels=(INSIDE, WHOLE)))
  label, mask = masking.unfold(masked.labels[0], np)
  np.testing.assert_array_equal(label, case.label)
  np.testing.assert_array_equal(mask, mask_of(case))
  # Where the classes are does not depend on the mask.
  plain = prepared(Preprocessing(channels=(WHOLE, WHOLE)))
  np.testing.assert_array_equal(plain.labels[0], case.label)
  for key, points in plain.voxels[0].items():
    np.testing.assert_array_equal(masked.voxels[0][key], points)


def step_of(augment_fn, masked_channels):
  return TrainStep(
    model=None,
    tx=optax.sgd(1.0),
    loss_fn=None,
    augment_fn=augment_fn,
    schedule=lambda step: 1.0,
    seed=0,
    masked_channels=masked_channels,
  )


def test_outside_is_0_after_the_augmentation_and_nowhere_else(tmp_path):
  case = head((10, 12, 11))
  cache = caches.prepare(
    OneCase(case), Preprocessing(channels=(INSIDE, WHOLE)), root=tmp_path
  )
  # Larger than the case along one axis: there is nothing on its sides.
  patch, read = (12, 10, 8), (14, 12, 10)
  settings = dict(seed=0, batch_size=4, patch_size=patch)
  chosen = sampling.choose_patches(step=0, shapes=cache.shapes, **settings)
  batch = sampling.read_batch(cache.images, cache.labels, chosen, patch, read)
  batch = dict(zip(('image', 'label'), batch, strict=True))
  data = device_cache.place(cache, mode='on', mesh=one_device())
  with jax.set_mesh(one_device()):
    there = compile_read(one_device(), read_size=read, **settings)
    assert_same(there(data, jnp.int32(0)), batch.values())
  augment_fn = augment.create_augment(
    patch_size=patch, flip_prob=0.5, warp_prob=0.5, rotation_degrees=20,
    noise_prob=1.0, noise_std=0.1, brightness_prob=1.0, brightness_std=0.5,
  )  # fmt: skip
  step = step_of(augment_fn, (0,))
  got = jax.jit(step.augment)(jnp.int32(0), batch)
  assert set(np.unique(got['label'])) == {-1, 0, 1, 2}
  # What the augmentation itself makes of image, label and mask, moved apart.
  label, mask = masking.unfold(batch['label'].astype(np.int32), np)
  key, _ = step._keys(jnp.int32(0))
  alone = jax.jit(augment_fn)
  image = batch['image'].astype(np.float32)
  plain = alone(key, {'image': image, 'label': label})
  inside = alone(key, {'image': image, 'label': mask.astype(np.int32)})['label']
  inside = np.asarray(inside, bool)
  np.testing.assert_array_equal(got['label'], plain['label'])
  assert 0.2 < inside.mean() < 0.8
  first, second = np.moveaxis(np.asarray(got['image']), -1, 0)
  before, other = np.moveaxis(np.asarray(plain['image']), -1, 0)
  assert not first[~inside].any() and (before[~inside] != 0).mean() > 0.9
  np.testing.assert_allclose(first[inside], before[inside], atol=1e-5)
  np.testing.assert_allclose(second, other, atol=1e-5)


def test_the_config_says_which_channels():
  config = load('auto')
  config.patch_size, config.num_steps = (8, 8), 1
  config.data.axes = (0, 1, 2)
  config.augment.rotation_degrees, config.augment.in_plane = 10.0, False
  config.overlap.batch = True
  config.data.intensities = tuple(
    (scheme, 0.0, 0.0, 0.0, 1.0)
    for scheme in ('zscore_nonzero', 'none', 'zscore_nonzero')
  )
  step = build.train_step_of(config, None, None, None)
  assert step.masked_channels == (0, 2)
  config.data.intensities = ()
  assert build.train_step_of(config, None, None, None).masked_channels == ()
