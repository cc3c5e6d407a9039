"""What a warp looks up in the data set is what it finds in a patch cut out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS
from test_device_cache import SHAPES_2D, SHAPES_3D, cache_of, one_device
from test_shared_data import bits

from medseg_jax.augment import create_augment, read_size, warps
from medseg_jax.data import masking, sampling
from medseg_jax.runtime import sharding
from medseg_jax.training import device_batches, device_cache

FIELDS = {
  'flip_prob': 0.5,
  'warp_prob': 1.0,
  'rotation_prob': 0.5,
  'rotation_degrees': 30.0,
  'scale_prob': 0.5,
  'scale_range': (0.7, 1.4),
}
ELASTIC = {'warp_prob': 0.5, 'elastic_std': 1.5, 'elastic_spacing': 6.0}


def masked(cache, dtype):
  """Returns the cache with a mask in each label, and images of a type."""
  rng = np.random.default_rng(1)
  labels = [
    masking.fold(label, rng.random(label.shape) < 0.7) for label in cache.labels
  ]
  images = [image.astype(dtype) for image in cache.images]
  dtypes = (np.dtype(dtype),) * len(images)
  return cache._replace(images=images, labels=labels, dtypes=dtypes)


def batches(cache, mesh, patch_size, fields, steps):
  """Yields batches augmented from patches that were cut out, and without."""
  data = device_cache.place(cache, mode='on', mesh=mesh)
  fields = FIELDS | fields | {'patch_size': patch_size}
  first, *rest = read_size(**fields)
  settings = {
    'seed': 3,
    'batch_size': 8,
    'patch_size': patch_size,
    'read_size': (first + -first % mesh.shape['spatial'], *rest),
    'layout': sharding.patches(mesh),
    'foreground_share': 1 / 3,
  }
  augment_fn = create_augment(**fields)

  @functools.partial(
    jax.jit, out_shardings=settings['layout'], compiler_options=AS_USERS
  )
  def cut(data, step):
    batch = device_batches.read_batch(data, step, **settings)
    image = batch['image'].astype(jnp.float32)
    label = batch['label'].astype(jnp.int32)
    return augment_fn(jax.random.key(step), {'image': image, 'label': label})

  @functools.partial(
    jax.jit, out_shardings=settings['layout'], compiler_options=AS_USERS
  )
  def looked_up(data, step):
    batch = device_batches.UnreadBatch(data, step, **settings)
    return augment_fn(jax.random.key(step), batch)

  with jax.set_mesh(mesh):
    for step in steps:
      step = np.int32(step)
      yield jax.device_get((cut(data, step), looked_up(data, step)))
  assert cut._cache_size() == looked_up._cache_size() == 1


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key, array in one.items():
    assert array.dtype == other[key].dtype
    # Whether a zero is negative may differ: 1 * -0 + 0 * x is 0.
    np.testing.assert_array_equal(bits(array + 0), bits(other[key] + 0))


@pytest.mark.parametrize(
  ('shapes', 'channels', 'dtype', 'patch_size', 'fields'),
  [
    (SHAPES_2D, 2, np.float16, (16, 16), {'rot90_prob': 0.5} | ELASTIC),
    (SHAPES_3D, 1, np.float16, (8, 12, 10), {}),
    (SHAPES_3D, 1, np.float32, (8, 12, 12), {'in_plane': True} | ELASTIC),
    (SHAPES_3D, 2, np.float32, (12, 16), {}),  # slices
  ],
)
def test_the_augmented_batches_are_the_same(
  shapes, channels, dtype, patch_size, fields
):
  cache = masked(cache_of(shapes, channels=channels, lowest=-1), dtype)
  beyond = moved = 0
  for one, other in batches(
    cache, one_device(), patch_size, fields, [*range(4), 12_345]
  ):
    assert_same(one, other)
    beyond += (one['label'] == masking.NOWHERE).sum()
    moved += np.ptp(one['label'], axis=0).any()
  assert beyond and moved  # patches stick out


def test_devices_look_up_their_own_part(capsys):
  mesh = sharding.create_mesh(data=4, spatial=2)
  cache = masked(cache_of(SHAPES_3D, lowest=-1), np.float16)
  [(one, other)] = batches(cache, mesh, (8, 12, 10), ELASTIC, [5])
  assert_same(one, other)


def test_what_is_not_warped_is_cut_out_exactly():
  cache, mesh = cache_of(SHAPES_3D), one_device()
  data = device_cache.place(cache, mode='on', mesh=mesh)
  patch_size = (8, 8, 8)
  fields = FIELDS | {
    'flip_prob': 0.0,
    'rotation_prob': 1e-9,
    'scale_prob': 1e-9,
  }
  batch = device_batches.UnreadBatch(
    data,
    np.int32(7),
    seed=3,
    batch_size=4,
    patch_size=patch_size,
    read_size=read_size(patch_size, **fields),
    layout=sharding.patches(mesh),
  )
  with jax.set_mesh(mesh):
    found = jax.jit(
      lambda key: create_augment(patch_size=patch_size, **fields)(key, batch)
    )(jax.random.key(0))
  chosen = sampling.choose_patches(
    seed=3, step=7, batch_size=4, shapes=cache.shapes, patch_size=patch_size
  )
  image, label = sampling.read_batch(
    cache.images, cache.labels, chosen, patch_size
  )
  np.testing.assert_array_equal(found['image'], image)
  np.testing.assert_array_equal(found['label'], label)


def test_a_batch_has_to_be_read_where_nothing_warps():
  assert warps(**FIELDS) and not warps(**FIELDS | {'warp_prob': 0})
  with pytest.raises(ValueError, match='only for warps'):
    create_augment(noise_prob=0.5, noise_std=1)(jax.random.key(0), object())
