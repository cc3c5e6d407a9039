"""Augmentation against NumPy and SciPy, on shapes small enough for a CPU."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage, stats

from medseg_jax.augment import create_augment, kernels, lookup, transforms

ALL_ON = {
  'flip_prob': 0.5,
  'rot90_prob': 0.5,
  'warp_prob': 0.5,
  'rotation_degrees': 30,
  'scale_range': [0.7, 1.4],
  'elastic_std': 2.0,
  'elastic_spacing': 6,
  'blur_prob': 0.5,
  'blur_sigma': (0.5, 1.0),
  'brightness_prob': 0.5,
  'brightness_std': 0.2,
  'contrast_prob': 0.5,
  'contrast_range': (0.6, 1.5),
  'gamma_prob': 0.5,
  'gamma_range': (0.7, 1.5),
  'noise_prob': 0.5,
  'noise_std': 0.2,
}


def make_batch(shape, channels=1, batch_size=2, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(batch_size, *shape, channels))
  label = rng.integers(-1, 4, (batch_size, *shape))
  return {
    'image': jnp.asarray(image, jnp.float32),
    'label': jnp.asarray(label, jnp.int32),
  }


def run(batch, seed=0, **fields):
  return jax.jit(create_augment(**fields))(jax.random.key(seed), batch)


@jax.jit
def warp(image, label, coords):
  return lookup.linear(lookup.of_patch(image, label), coords)


def random_coords(key, shape, **fields):
  warp = transforms.draw_warp(key, shape, **fields)
  return transforms.warp_coords(warp, shape)


def voxels(shape):
  return np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'))


# Kernels.


@pytest.mark.parametrize('shape', [(9, 12), (5, 6, 7)])
def test_warp_agrees_with_scipy_inside_and_far_outside(shape):
  rng = np.random.default_rng(1)
  image = rng.normal(size=(*shape, 2)).astype(np.float32)
  label = rng.integers(-1, 4, shape).astype(np.int32)
  coords = voxels(shape) + rng.normal(0, 6, (len(shape), *shape))
  # Nothing half-way between two voxels, where rounding is a matter of taste.
  coords = np.where(np.abs(coords % 1 - 0.5) < 1e-3, coords + 0.01, coords)
  new_image, new_label = warp(image, label, coords.astype(np.float32))
  for channel in range(2):
    expected = ndimage.map_coordinates(
      image[..., channel], coords, order=1, mode='mirror'
    )
    np.testing.assert_allclose(new_image[..., channel], expected, atol=2e-5)
  expected = ndimage.map_coordinates(label, coords, order=0, mode='mirror')
  np.testing.assert_array_equal(new_label, expected)


def test_warp_works_on_an_axis_of_one_voxel():
  image = np.random.default_rng(2).normal(size=(1, 6, 7, 1)).astype(np.float32)
  label = np.arange(42).reshape(1, 6, 7)
  coords = voxels((1, 6, 7)).astype(np.float32)
  coords[0] += 0.4
  new_image, new_label = warp(image, label, coords)
  np.testing.assert_allclose(new_image, image, rtol=1e-6)
  np.testing.assert_array_equal(new_label, label)


def test_affine_coords_rotate_like_scipy():
  image = np.random.default_rng(3).normal(size=(11, 11)).astype(np.float32)

  @jax.jit
  def rotate(angle):
    matrix = kernels.rotation_matrix(jnp.radians(angle))
    coords = kernels.affine_coords(matrix, image.shape)
    label = jnp.zeros(image.shape, jnp.int32)
    return warp(image[..., None], label, coords)

  new_image, _ = rotate(jnp.array([25.0]))
  expected = ndimage.rotate(image, -25, reshape=False, order=1, mode='mirror')
  np.testing.assert_allclose(new_image[..., 0], expected, atol=1e-4)


def test_rotation_matrix_is_the_product_of_plane_rotations():
  angles = np.array([0.3, -0.7, 1.1])
  expected = np.eye(3)
  for angle, (a, b) in zip(angles, [(0, 1), (0, 2), (1, 2)], strict=True):
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    expected = expected @ turn
  matrix = kernels.rotation_matrix(jnp.asarray(angles, jnp.float32))
  np.testing.assert_allclose(matrix, expected, atol=1e-6)


# One for all cases: a shape is compiled once for every sigma.
blur = jax.jit(functools.partial(kernels.gaussian_blur, radius=6))


@pytest.mark.parametrize('shape', [(9, 12), (5, 6, 7)])
@pytest.mark.parametrize('sigma', [0.0, 0.6, 1.3])
def test_gaussian_blur_agrees_with_scipy(shape, sigma):
  image = np.random.default_rng(4).normal(size=(*shape, 2)).astype(np.float32)
  sigmas = (sigma,) * len(shape) + (0,)
  expected = ndimage.gaussian_filter(image, sigmas, mode='mirror', radius=6)
  blurred = blur(image, sigma)
  np.testing.assert_allclose(blurred, expected, atol=1e-5)


def test_adjust_gamma_is_a_power_law_within_the_range_of_each_channel():
  image = np.random.default_rng(5).normal(size=(6, 7, 3)).astype(np.float32)
  image[..., 2] = 4.5
  gamma = np.array([0.5, 2.0, 2.0])
  expected = image.copy()
  for c in range(2):
    lo, hi = image[..., c].min(), image[..., c].max()
    unit = (image[..., c] - lo) / (hi - lo)
    expected[..., c] = unit ** gamma[c] * (hi - lo) + lo
  result = kernels.adjust_gamma(jnp.asarray(image), jnp.asarray(gamma))
  np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize('turns', range(4))
def test_reorient_turns_like_numpy_and_so_do_its_coordinates(turns):
  x = np.random.default_rng(6).integers(0, 99, (5, 4, 5))
  axes = np.arange(3)
  swap, flips = kernels.turn_parts(turns, 0, axes == 0, axes == 2)
  flips = flips ^ np.array([False, True, False])
  expected = np.flip(np.rot90(x, turns, (0, 2)), 1)
  planes = ((0, 2),)
  turned = kernels.reorient(jnp.asarray(x), planes, swap, flips)
  np.testing.assert_array_equal(turned, expected)
  coords = jnp.asarray(voxels(x.shape))
  coords = np.asarray(kernels.reorient_coords(coords, planes, swap, flips))
  np.testing.assert_array_equal(x[tuple(coords)], expected)


# The whole function.


@pytest.mark.parametrize('shape', [(12, 12), (6, 6, 6)])
def test_everything_on_gives_a_sound_batch_that_the_key_alone_decides(shape):
  batch = make_batch(shape, channels=2, batch_size=1)
  batch = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), batch)
  batch['name'] = jnp.arange(3)
  augment_fn = jax.jit(create_augment(**ALL_ON))
  first, again, other = (
    augment_fn(jax.random.key(seed), batch) for seed in (1, 1, 2)
  )
  assert first.keys() == batch.keys()
  for name in ('image', 'label'):
    assert first[name].shape == batch[name].shape
    assert first[name].dtype == batch[name].dtype
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])
  assert np.isfinite(first['image']).all()
  assert set(np.unique(first['label'])) <= {-1, 0, 1, 2, 3}
  np.testing.assert_array_equal(first['name'], batch['name'])
  for a, b in itertools.combinations(np.asarray(first['image']), 2):
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {k: 0.0 if k.endswith('_prob') else v for k, v in ALL_ON.items()},
    {k: 1.0 for k in ALL_ON if k.endswith('_prob')}
    | {'flip_prob': 0, 'rot90_prob': 0},
  ],
)
def test_nothing_is_traced_when_everything_is_off(fields):
  # The second set has no probability, the third nothing that could change.
  batch = make_batch((6, 8))
  augment_fn = create_augment(**fields)
  assert not jax.make_jaxpr(augment_fn)(jax.random.key(0), batch).eqns
  result = augment_fn(jax.random.key(0), batch)
  np.testing.assert_array_equal(result['image'], batch['image'])


def test_examples_that_are_not_drawn_stay_exactly_as_they_are():
  # So improbable that none of these examples is drawn.
  fields = {k: 1e-9 if k.endswith('_prob') else v for k, v in ALL_ON.items()}
  batch = make_batch((8, 8), channels=3)
  result = run(batch, **fields)
  np.testing.assert_array_equal(result['image'], batch['image'])
  np.testing.assert_array_equal(result['label'], batch['label'])


@pytest.mark.parametrize('warp', [False, True])
def test_flips_and_turns_give_each_symmetry_of_the_square_exactly(warp):
  # A warp that is never drawn moves the same turns onto the coordinates.
  extra = {'warp_prob': 1e-9, 'rotation_degrees': 10} if warp else {}
  batch = make_batch((5, 5), channels=2, batch_size=1)
  batch = jax.tree.map(lambda x: jnp.repeat(x, 64, axis=0), batch)
  result = run(batch, flip_prob=0.5, rot90_prob=1, **extra)
  image, label = np.asarray(batch['image'][0]), np.asarray(batch['label'][0])
  symmetries = [
    [np.rot90(x[::step], k) for x in (image, label)]
    for step in (1, -1)
    for k in range(4)
  ]
  seen = set()
  for new_image, new_label in zip(
    np.asarray(result['image']), np.asarray(result['label']), strict=True
  ):
    matches = [
      number
      for number, (x, y) in enumerate(symmetries)
      if np.array_equal(new_image, x) and np.array_equal(new_label, y)
    ]
    assert len(matches) == 1
    seen.update(matches)
  assert seen == set(range(8))


def test_rot90_in_3d_turns_only_planes_of_equal_axes():
  batch = make_batch((4, 3, 4), batch_size=32)
  result = run(batch, rot90_prob=1)
  seen = set()
  for old, new in zip(
    np.asarray(batch['label']), np.asarray(result['label']), strict=True
  ):
    matches = [
      k for k in range(4) if np.array_equal(np.rot90(old, k, (0, 2)), new)
    ]
    assert len(matches) == 1
    seen.update(matches)
  assert seen == set(range(4))


@pytest.mark.parametrize('shape', [(24, 24), (12, 12, 12)])
def test_image_and_label_move_together(shape):
  # A smooth image sampled linearly must stay near its own nearest neighbour.
  ramp = sum(voxels(shape)) + 3 * voxels(shape)[0]
  label = jnp.asarray(np.stack([ramp] * 4), jnp.int32)
  batch = {'image': label[..., None].astype(jnp.float32), 'label': label}
  spatial = (
    'flip_prob rot90_prob warp_prob rotation_degrees scale_range elastic_std '
    'elastic_spacing'
  )
  fields = {name: ALL_ON[name] for name in spatial.split()} | {'warp_prob': 1}
  result = run(batch, **fields)
  image = np.asarray(result['image'][..., 0])
  moved = np.asarray(result['label'])
  # Half a voxel along each axis, with slopes 4, 1 and 1.
  assert np.abs(image - moved).max() <= 0.5 * (4 + len(shape) - 1) + 1e-3
  assert np.abs(moved - label).mean() > 1


def test_scale_magnifies_and_elastic_displaces_by_the_stated_amounts():
  shape = (41, 41)
  args = {'prob': 1.0, 'scale_range': (2.0, 2.0)}
  coords = random_coords(jax.random.key(0), shape, **args)
  centre = np.array([20, 20]).reshape(2, 1, 1)
  np.testing.assert_allclose(coords, centre + (voxels(shape) - centre) / 2)
  # At spacing 1 every voxel is a control point: the deviation is exact.
  coords = random_coords(
    jax.random.key(1), shape, prob=1.0, elastic_std=3.0, elastic_spacing=1.0
  )
  assert np.std(coords - voxels(shape)) == pytest.approx(3.0, rel=0.05)


def test_probabilities_and_spreads_are_those_of_the_fields():
  shape, number = (3, 4), 400
  image = jnp.arange(12.0).reshape(1, *shape, 1).repeat(number, axis=0)
  batch = {'image': image, 'label': jnp.zeros((number, *shape), jnp.int32)}
  flipped = np.asarray(run(batch, flip_prob=0.3)['image'][..., 0])
  axis_0 = (flipped[:, 0].min(axis=1) > flipped[:, -1].min(axis=1)).mean()
  axis_1 = (flipped[:, 0, 0] > flipped[:, 0, -1]).mean()
  assert abs(axis_0 - 0.3) < 0.08 and abs(axis_1 - 0.3) < 0.08

  delta = run(batch, brightness_prob=0.5, brightness_std=2.0)['image'] - image
  delta = np.asarray(delta[:, 0, 0, 0])
  assert abs((delta != 0).mean() - 0.5) < 0.08
  assert np.std(delta[delta != 0]) == pytest.approx(2.0, rel=0.2)

  result = np.asarray(
    run(batch, contrast_prob=1, contrast_range=(0.5, 2.0))['image']
  )
  np.testing.assert_allclose(result.mean((1, 2, 3)), 5.5, rtol=1e-5)
  factor = np.log2((result[:, 2, 3, 0] - 5.5) / 5.5)
  assert stats.kstest(factor, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_noise_has_a_uniform_sigma_and_no_bias():
  batch = make_batch((32, 32), batch_size=200)
  noise = np.asarray(
    run(batch, noise_prob=1, noise_std=0.8)['image'] - batch['image']
  )
  sigma = noise.std(axis=(1, 2, 3))
  assert stats.kstest(sigma / 0.8, 'uniform').pvalue > 1e-3
  assert abs(noise.mean()) < 0.01


def test_one_transform_does_not_shift_the_random_numbers_of_another():
  batch = make_batch((8, 8))
  alone = run(batch, flip_prob=0.5)
  together = run(batch, flip_prob=0.5, noise_prob=1, noise_std=0.5)
  np.testing.assert_array_equal(alone['label'], together['label'])


def test_float16_images_come_back_as_float16():
  batch = make_batch((8, 8))
  batch['image'] = batch['image'].astype(jnp.float16)
  result = run(batch, noise_prob=1, noise_std=0.1, flip_prob=0.5)
  assert result['image'].dtype == jnp.float16


def test_sharding_over_examples_and_space_changes_nothing():
  batch = make_batch((8, 8), batch_size=4)
  # A halo exchange (blur), gathers (warp), a reduction (gamma), random numbers.
  names = ('flip', 'warp', 'rotation', 'blur', 'gamma', 'noise')
  fields = {k: v for k, v in ALL_ON.items() if k.startswith(names)}
  expected = run(batch, **fields)
  mesh = jax.make_mesh(
    (2, 2),
    ('data', 'spatial'),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[:4],
  )
  with jax.set_mesh(mesh):
    sharding = NamedSharding(mesh, PartitionSpec('data', 'spatial'))
    result = run(jax.device_put(batch, sharding), **fields)
  assert len(result['image'].sharding.device_set) == 4
  np.testing.assert_allclose(result['image'], expected['image'], atol=1e-5)
  np.testing.assert_array_equal(result['label'], expected['label'])
  assert not np.array_equal(result['label'], batch['label'])


# Wrong use.


@pytest.mark.parametrize(
  ('name', 'value', 'allowed'),
  [
    ('flip_prob', 1.5, r'\[0, 1\]'),
    ('noise_prob', float('nan'), r'\[0, 1\]'),
    ('blur_prob', '0.5', r'\[0, 1\]'),
    ('scale_range', (1.2, 0.8), '0 < lo <= hi'),
    ('gamma_range', [0, 1], '0 < lo <= hi'),
    ('contrast_range', 0.5, '0 < lo <= hi'),
    ('blur_sigma', (-1, 1), '0 <= lo <= hi'),
    ('noise_std', -0.1, '>= 0'),
    ('elastic_std', None, '>= 0'),
    ('elastic_spacing', 0, '>= 1'),
    ('rotation_degrees', 200, r'\[0, 180\]'),
  ],
)
def test_a_value_that_is_not_allowed_is_named(name, value, allowed):
  with pytest.raises(ValueError, match=f'{name} is .*{allowed}') as error:
    create_augment(**{name: value})
  assert repr(value) in str(error.value)


def test_an_unknown_field_is_answered_with_what_is_alike():
  with pytest.raises(ValueError, match="'flip_probs'; did you mean flip_prob"):
    create_augment(flip_probs=0.5)
  with pytest.raises(ValueError, match=r"'cutout' \(known: patch_size, "):
    create_augment(cutout=0.5)


def test_arrays_that_do_not_fit_are_refused():
  batch = make_batch((6, 8))
  augment_fn = create_augment(rot90_prob=0.5)
  key = jax.random.key(0)
  with pytest.raises(ValueError, match='rot90_prob.*6x8'):
    augment_fn(key, batch)
  with pytest.raises(ValueError, match='label'):
    augment_fn(key, batch | {'label': batch['label'][:, :-1]})
  with pytest.raises(ValueError, match='float image'):
    augment_fn(key, batch | {'image': batch['image'].astype(jnp.uint8)})
  with pytest.raises(ValueError, match='integer label'):
    augment_fn(key, batch | {'label': batch['image'][..., 0]})
