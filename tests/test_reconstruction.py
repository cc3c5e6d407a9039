"""What is hidden of a patch, and what restoring it costs, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medseg_jax.data.masking import IGNORE
from medseg_jax.training import reconstruction

# (size, block, share, blocks, hidden); along cut axes the last is smaller.
CASES = [
  ((12, 8), (4, 2), 0.75, 12, 9),
  ((8, 12, 8), (2, 4, 4), 0.6, 24, 14),
  ((7, 9), (4, 4), 0.5, 6, 3),
]


def blocks_of(mask, block):
  """Yields the voxels of each block of `[*S]`, by loops."""
  for corner in np.ndindex(
    *(-(-n // b) for n, b in zip(mask.shape, block, strict=True))
  ):
    yield mask[
      tuple(slice(c * b, c * b + b) for c, b in zip(corner, block, strict=True))
    ]


@pytest.mark.parametrize(('size', 'block', 'share', 'number', 'count'), CASES)
def test_as_many_whole_blocks_of_each_image(size, block, share, number, count):
  hidden = reconstruction.hidden_voxels(
    jax.random.key(3), (5, *size), block=block, share=share
  )
  assert hidden.shape == (5, *size) and hidden.dtype == bool
  assert reconstruction.num_blocks(size, block) == number
  assert reconstruction.num_hidden(size, block, share) == count
  for mask in np.asarray(hidden):
    found = list(blocks_of(mask, block))
    assert len(found) == number
    assert all(part.all() or not part.any() for part in found)
    assert sum(part.all() for part in found) == count
  assert len({mask.tobytes() for mask in np.asarray(hidden)}) > 1


def test_every_block_is_as_likely_and_steps_differ():
  draws = np.stack(
    [
      reconstruction.hidden_voxels(
        jax.random.key(i), (500, 4, 6), block=(2, 2), share=0.5
      )
      for i in range(2)
    ]
  )
  assert not np.array_equal(*draws)
  rates = draws.reshape(-1, 4, 6)[:, ::2, ::2].mean(0)
  np.testing.assert_allclose(rates, 0.5, atol=5 * 0.5 / np.sqrt(1000))


def batch_of(seed=0, shape=(2, 8, 8, 3)):
  rng = np.random.default_rng(seed)
  label = np.zeros(shape[:-1], np.int32)
  label[0, :3] = IGNORE  # beyond the image
  return {
    'image': jnp.asarray(rng.normal(size=shape), jnp.float32),
    'label': jnp.asarray(label),
  }


def test_the_network_sees_zeros_and_is_asked_for_what_was_there():
  batch, key = batch_of(), jax.random.key(1)
  hidden = np.asarray(
    reconstruction.hidden_voxels(key, (2, 8, 8), block=(4, 2), share=0.75)
  )
  given = reconstruction.hide(key, batch, block=(4, 2), share=0.75)
  image = np.asarray(batch['image'])
  np.testing.assert_array_equal(
    given['image'], np.where(hidden[..., None], 0, image)
  )
  np.testing.assert_array_equal(given['label'][..., :-1], image)
  counts = hidden.copy()
  counts[0, :3] = False
  np.testing.assert_array_equal(given['label'][..., -1], counts)


def test_only_hidden_voxels_count():
  given = reconstruction.hide(
    jax.random.key(1), batch_of(), block=(4, 2), share=0.75
  )
  outputs = jnp.asarray(np.random.default_rng(9).normal(size=(2, 8, 8, 3)))
  target = np.asarray(given['label'], np.float64)
  expected = []
  for output, image, counts in zip(
    np.asarray(outputs), target[..., :-1], target[..., -1], strict=True
  ):
    errors = [
      (output[at] - image[at]) ** 2 for at in map(tuple, np.argwhere(counts))
    ]
    expected.append(np.mean(errors))
  found = reconstruction.squared_error(outputs, given['label'])
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  coarse = jnp.ones((2, 4, 4, 3))
  np.testing.assert_array_equal(
    reconstruction.squared_error((outputs, coarse), given['label']), found
  )
  grads = jax.grad(
    lambda x: reconstruction.squared_error(x, given['label']).sum()
  )(outputs)
  moves = (np.asarray(grads) != 0).any(-1)
  np.testing.assert_array_equal(moves, target[..., -1] > 0)


def test_nothing_to_restore_costs_nothing():
  target = jnp.concatenate(
    [jnp.ones((1, 4, 4, 2)), jnp.zeros((1, 4, 4, 1))], -1
  )
  value, grads = jax.value_and_grad(
    lambda x: reconstruction.squared_error(x, target).sum()
  )(jnp.zeros((1, 4, 4, 2)))
  assert value == 0 and not np.asarray(grads).any()


def test_devices_that_share_a_batch_hide_the_same():
  batch = batch_of(shape=(4, 8, 8, 1))

  def hide(key, batch):
    return reconstruction.hide(key, batch, block=(2, 4), share=0.6)

  mesh = jax.make_mesh(
    (4, 2), ('data', 'spatial'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  layout = NamedSharding(mesh, PartitionSpec('data', 'spatial'))
  key = jax.random.key(5)
  shared = jax.jit(hide, out_shardings=layout)(
    key, jax.device_put(batch, layout)
  )
  for name, alone in jax.jit(hide)(key, batch).items():
    np.testing.assert_array_equal(shared[name], alone)
