"""Augmentation of volumes: nnU-Net's list, shares of a warp, margins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS
from scipy import ndimage
from test_augment import make_batch, voxels

from medseg_jax.augment import (
  create_augment,
  kernels,
  lookup,
  read_size,
  transforms,
)

# Isensee et al. 2021, with sigma where they say variance of the noise.
NNUNET = {
  'flip_prob': 0.5,
  'warp_prob': 1.0,
  'rotation_prob': 0.2,
  'rotation_degrees': 30.0,
  'scale_prob': 0.2,
  'scale_range': (0.7, 1.4),
  'noise_prob': 0.1,
  'noise_std': 0.1,
  'blur_prob': 0.2,
  'blur_sigma': (0.5, 1.0),
  'blur_channel_prob': 0.5,
  'brightness_prob': 0.15,
  'brightness_range': (0.75, 1.25),
  'contrast_prob': 0.15,
  'contrast_range': (0.75, 1.25),
  'contrast_clip': True,
  'low_resolution_prob': 0.25,
  'low_resolution_zoom': (0.5, 1.0),
  'low_resolution_channel_prob': 0.5,
  'gamma_invert_prob': 0.1,
  'gamma_prob': 0.3,
  'gamma_range': (0.7, 1.5),
  'gamma_keep_stats': True,
}
WARP = (
  'warp_prob',
  'rotation_prob',
  'rotation_degrees',
  'scale_prob',
  'scale_range',
)
# Shares of something that has a probability of its own.
SHARES = (
  'rotation_prob',
  'scale_prob',
  'blur_channel_prob',
  'low_resolution_channel_prob',
)


def quick(fn):
  """Returns fn jitted, with half the time for the compiler."""
  options = {'xla_backend_optimization_level': 0} | AS_USERS
  return jax.jit(fn, compiler_options=options)


def run(batch, seed=0, **fields):
  return quick(create_augment(**fields))(jax.random.key(seed), batch)


def ramps(shape, number):
  """Returns `number` equal examples, a channel for the index of each axis."""
  image = np.moveaxis(voxels(shape), 0, -1).astype(np.float32)
  return {
    'image': jnp.asarray(np.stack([image] * number)),
    'label': jnp.zeros((number, *shape), jnp.int32),
  }


def middle(x, shape):
  starts = [(a - b) // 2 for a, b in zip(x.shape, shape, strict=False)]
  return x[tuple(slice(s, s + n) for s, n in zip(starts, shape, strict=True))]


# The whole list.


def test_the_whole_list_gives_a_sound_patch_that_the_key_decides():
  shape, patch = (11, 12, 10), (8, 9, 7)
  batch = make_batch(shape, channels=2, batch_size=16)
  augment_fn = quick(create_augment(patch_size=patch, **NNUNET))
  first, again, other = (
    augment_fn(jax.random.key(seed), batch) for seed in (1, 1, 2)
  )
  assert first['image'].shape == (16, *patch, 2)
  assert first['label'].shape == (16, *patch)
  assert np.isfinite(first['image']).all()
  assert set(np.unique(first['label'])) <= {-1, 0, 1, 2, 3}
  np.testing.assert_array_equal(first['image'], again['image'])
  assert not np.array_equal(first['image'], other['image'])


def test_what_is_not_drawn_is_exactly_the_middle_of_what_was_read():
  fields = {
    k: 1e-9 if k.endswith('_prob') and k not in SHARES else v
    for k, v in NNUNET.items()
  }
  batch = make_batch((10, 12), channels=2)
  result = run(batch, patch_size=(7, 12), **fields)
  for name in ('image', 'label'):
    expected = [middle(x, (7, 12)) for x in batch[name]]
    np.testing.assert_array_equal(result[name], expected)


@pytest.mark.parametrize('names', [set(NNUNET) - set(SHARES), set(SHARES)])
def test_nothing_is_traced_without_a_probability_or_a_share_of_it(names):
  off = {name: 0.0 for name in names if name.endswith('_prob')}
  fields = {
    name: value
    for name, value in NNUNET.items()
    if name.startswith(('warp', 'rotation', 'scale', 'blur', 'low'))
  }
  jaxpr = jax.make_jaxpr(create_augment(**fields | off))(
    jax.random.key(0), make_batch((6, 8))
  )
  assert not jaxpr.eqns


# Rotation and scale.


def test_rotation_and_scale_are_drawn_with_their_own_probabilities():
  # Half the extent of the grid and its angle, read off two channels of ramps.
  batch = ramps((9, 9), 400)
  fields = {
    'warp_prob': 1,
    'rotation_degrees': 20,
    'scale_range': (1.5, 2.0),
    'rotation_prob': 0.3,
    'scale_prob': 0.6,
  }
  image = np.asarray(run(batch, **fields)['image'], np.float64)
  step = (image[:, 5, 4] - image[:, 3, 4]) / 2
  scale = 1 / np.hypot(*step.T)
  angle = np.degrees(np.arctan2(step[:, 1], step[:, 0]))
  assert abs((np.abs(scale - 1) > 1e-4).mean() - 0.6) < 0.08
  assert abs((np.abs(angle) > 1e-3).mean() - 0.3) < 0.08
  both = (np.abs(angle) > 1e-3) & (np.abs(scale - 1) > 1e-4)
  assert abs(both.mean() - 0.18) < 0.06
  assert scale.max() < 2.001 and np.abs(angle).max() < 20.01
  # A warp that does neither returns the input itself.
  same = (image == batch['image']).all(axis=(1, 2, 3))
  neither = (np.abs(angle) < 1e-3) & (np.abs(scale - 1) < 1e-4)
  np.testing.assert_array_equal(same, neither)
  assert abs(same.mean() - 0.28) < 0.07


def test_in_plane_leaves_the_first_axis_and_turns_the_other_two():
  shape = (5, 11, 11)
  batch = ramps(shape, 32)
  fields = {
    'warp_prob': 1,
    'rotation_degrees': 180,
    'scale_range': (1.2, 1.4),
  }
  image = np.asarray(run(batch, in_plane=True, **fields)['image'])
  np.testing.assert_allclose(image[..., 0], batch['image'][..., 0], rtol=1e-6)
  # The same motion in every slice, about the slice's centre.
  first = image[:, :1, ..., 1:]
  np.testing.assert_array_equal(first.repeat(5, axis=1), image[..., 1:])
  np.testing.assert_allclose(image[:, :, 5, 5, 1:], 5)
  step = image[:, 0, 6, 5, 1:] - image[:, 0, 5, 5, 1:]
  scale = 1 / np.hypot(*step.T)
  assert scale.min() > 1.199 and scale.max() < 1.401
  assert np.ptp(np.arctan2(*step.T)) > np.pi


def test_in_plane_means_nothing_in_2d():
  batch = make_batch((8, 9))
  fields = {'warp_prob': 1, 'rotation_degrees': 30, 'scale_range': (0.7, 1.4)}
  one, other = (
    jax.make_jaxpr(create_augment(in_plane=x, **fields))(
      jax.random.key(0), batch
    )
    for x in (True, False)
  )
  assert one.eqns and str(one) == str(other)


# Reading with a margin.


@pytest.mark.parametrize(
  ('shape', 'patch'), [((14, 17), (9, 10)), ((9, 8, 12), (6, 5, 7))]
)
def test_a_patch_is_turned_about_its_own_centre_within_what_was_read(
  shape, patch
):
  rank = len(shape)
  angles = np.array([0.4, -0.3, 0.2])[: 1 if rank == 2 else 3]
  matrix = np.asarray(kernels.rotation_matrix(jnp.asarray(angles))) / 0.9
  image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  label = np.random.default_rng(2).integers(0, 9, shape)
  new_image, new_label = quick(
    lambda *arrays: transforms.apply_warp(
      transforms.Warp(jnp.array(True), matrix),
      lookup.of_patch(*arrays),
      patch_size=patch,
    )
  )(jnp.asarray(image)[..., None], jnp.asarray(label))
  margin = (np.array(shape) - patch) // 2
  centre = (np.array(patch) - 1) / 2
  offset = centre + margin - matrix @ centre
  for x, order, new in ((image, 1, new_image[..., 0]), (label, 0, new_label)):
    expected = ndimage.affine_transform(
      x, matrix, offset, patch, order=order, mode='mirror'
    )
    np.testing.assert_allclose(new, expected, atol=1e-4)


@pytest.mark.parametrize('warp', [False, True])
def test_flips_and_turns_of_a_patch_are_those_of_the_middle(warp):
  extra = {'warp_prob': 1e-9, 'rotation_degrees': 10} if warp else {}
  batch = make_batch((8, 9), batch_size=1)
  batch = jax.tree.map(lambda x: x.repeat(64, axis=0), batch)
  result = run(batch, patch_size=(5, 5), flip_prob=0.5, rot90_prob=1, **extra)
  patch = middle(np.asarray(batch['image'][0, ..., 0]), (5, 5))
  expected = {
    np.rot90(patch[::step], k).tobytes() for step in (1, -1) for k in range(4)
  }
  found = {x.tobytes() for x in np.asarray(result['image'])}
  assert found == expected


@pytest.mark.parametrize(
  ('name', 'value', 'allowed'),
  [
    ('patch_size', (8, 8.5), 'whole numbers >= 1'),
    ('patch_size', (8,), '2 or 3'),
    ('patch_size', (8, 0), '>= 1'),
    ('patch_size', '88', 'whole numbers'),
    ('in_plane', 1, 'True or False'),
    ('contrast_clip', None, 'True or False'),
    ('low_resolution_zoom', (0.5, 1.5), '0 < lo <= hi <= 1'),
    ('low_resolution_zoom', (0, 1), '0 < lo <= hi <= 1'),
    ('rotation_prob', 2, r'\[0, 1\]'),
  ],
)
def test_a_value_that_is_not_allowed_is_named(name, value, allowed):
  with pytest.raises(ValueError, match=f'{name} is .*{allowed}') as error:
    create_augment(**{name: value})
  assert repr(value) in str(error.value)


def test_a_patch_that_does_not_fit_into_the_batch_is_refused():
  batch = make_batch((6, 8))
  for patch in ((6, 9), (6, 8, 1)):
    augment_fn = create_augment(patch_size=patch)
    with pytest.raises(ValueError, match='no larger than'):
      augment_fn(jax.random.key(0), batch)
  with pytest.raises(ValueError, match='read_size needs'):
    read_size(None, **NNUNET)
