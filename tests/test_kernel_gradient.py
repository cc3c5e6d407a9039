"""Gradients of folded kernels among devices: the same numbers, few bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import conv_ref, image_of, random_variables

from medseg_jax.hardware import costs, hlo
from medseg_jax.models import create_model, folding
from medseg_jax.runtime import sharding


@pytest.fixture(autouse=True)
def few_lanes(monkeypatch):
  """As 128 lanes are to the 32 channels of a network, 32 are to the 8 here."""
  monkeypatch.setattr(folding, 'LANES', 32)


def mesh_of(data, spatial):
  devices = jax.devices()[: data * spatial]
  return sharding.create_mesh(data=data, spatial=spatial, devices=devices)


def gradient_of(fn, count):
  """Returns the gradient of a weighted sum of `fn` by all `count` arguments."""

  def weighed(*args):
    y = fn(*args)
    return (y * image_of(*y.shape, seed=7)).sum()

  return jax.grad(weighed, tuple(range(count)))


def gradients_on(mesh, fn, x, *weights):
  """Returns gradients of a weighted sum of `fn`, and the bytes of all-reduces.

  Args:
    mesh: that the images are spread over.
    fn: `(x, *weights) -> y`.
    x: images.
    weights: on every device.
  """

  spread, everywhere = sharding.patches(mesh), sharding.replicated(mesh)
  layouts = (spread, *(everywhere for _ in weights))
  with jax.set_mesh(mesh):
    jitted = jax.jit(
      gradient_of(fn, len(layouts)),
      in_shardings=layouts,
      out_shardings=layouts,
    )
    compiled = jitted.lower(x, *weights).compile()
  found = costs.total(costs.kernels(hlo.parse(compiled.as_text()), set()))
  x = jax.device_put(x, spread)
  weights = jax.device_put(weights, everywhere)
  return compiled(x, *weights), found.collectives['all-reduce']['bytes']


def check_alike(found, wanted):
  """Compares gradients, to 1e-5 of the largest of each array."""
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
  ('mesh', 'shape', 'taps', 'strides', 'features'),
  [
    ((4, 1), (4, 6, 16, 8), (3, 3), (1, 1), 8),
    ((2, 2), (2, 4, 3, 16, 8), (3, 3, 3), (1, 1, 1), 8),
    ((2, 4), (2, 8, 16, 8), (3, 3), (2, 2), 16),
    ((2, 4), (2, 8, 16, 8), (3, 3), (2, 2), 8),  # as it is, not folded
    ((1, 4), (1, 8, 16, 8), (5, 3), (1, 1), 8),
    ((1, 4), (1, 8, 16, 8), (4, 3), (1, 1), 8),  # more rows after than before
    ((1, 2), (1, 8, 16, 8), (2, 3), (4, 1), 8),  # no row of a neighbour
    ((1, 4), (2, 12, 16, 8), (3, 3), (3, 1), 8),
    ((1, 4), (2, 4, 16, 8), (1, 3), (1, 1), 8),
  ],
)
def test_the_gradient_is_that_of_the_convolution(
  mesh, shape, taps, strides, features
):
  x, kernel = image_of(*shape), image_of(*taps, 8, features, seed=1)
  paddings = [((k - 1) // 2, k // 2) for k in taps]

  def ours(x, kernel):
    return folding.convolve([x], kernel, strides)

  def theirs(x, kernel):
    return conv_ref(x, kernel, strides, paddings)

  found, num_bytes = gradients_on(mesh_of(*mesh), ours, x, kernel)
  wanted, _ = gradients_on(mesh_of(*mesh), theirs, x, kernel)
  check_alike(found, wanted)
  assert num_bytes == kernel.nbytes


@pytest.mark.parametrize(
  ('mesh', 'shape'),
  [
    ((4, 1), (2, 4, 16, 8)),  # examples that devices cannot share
    ((1, 4), (1, 6, 16, 8)),  # rows likewise
    ((1, 4), (1, 4, 16, 8)),  # a row each, where two of a neighbour are needed
    ((1, 1), (1, 4, 16, 8)),
  ],
)
def test_what_has_no_equal_parts_is_left_to_the_compiler(mesh, shape):
  x, kernel = image_of(*shape), image_of(5, 3, 8, 8, seed=1)
  mesh = mesh_of(*mesh)

  def text(x, kernel):
    with jax.set_mesh(mesh):
      fn = jax.grad(lambda k: folding.convolve([x], k, (1, 1)).sum())
      return str(jax.make_jaxpr(fn)(kernel))

  assert 'shard_map' not in text(x, kernel)
  assert 'shard_map' not in str(
    jax.make_jaxpr(jax.grad(lambda k: folding.convolve([x], k, (1, 1)).sum()))(
      kernel
    )
  )


@pytest.mark.parametrize('mesh', [(4, 1), (2, 2)])
def test_products_with_a_matrix_likewise(mesh):
  x = image_of(4, 4, 8, 16)
  kernel, bias = image_of(2, 2, 16, 8, seed=1), image_of(8, seed=2)
  assert folding.fits(x, kernel)
  mesh = mesh_of(*mesh)

  def theirs(x, kernel, bias):
    y = jnp.einsum('bhwc,ijcf->bhiwjf', x, kernel) + bias
    return y.reshape(4, 8, 16, 8)

  found, num_bytes = gradients_on(
    mesh, folding.transposed_conv, x, kernel, bias
  )
  wanted, _ = gradients_on(mesh, theirs, x, kernel, bias)
  check_alike(found, wanted)
  assert num_bytes < 1.5 * kernel.nbytes  # a bias is summed as it is
  matrix = image_of(16, 6, seed=3)
  found, num_bytes = gradients_on(mesh, folding.dot, x, matrix)
  wanted, _ = gradients_on(mesh, jnp.matmul, x, matrix)
  check_alike(found, wanted)
  assert num_bytes == matrix.nbytes


def test_a_network_has_the_gradients_that_it_has_on_one_device():
  x = image_of(4, 16, 16, 2)
  fields = {'features': 8, 'depth': 2, 'remat': True, 'deep_supervision': True}
  model = create_model('unet', 3, convolutions='folded', **fields)
  variables = random_variables(model, x, True)
  leaves, structure = jax.tree.flatten(variables['params'])

  def apply(x, *leaves):
    params = jax.tree.unflatten(structure, leaves)
    logits, _ = model.apply(
      {**variables, 'params': params}, x, train=True, mutable=['batch_stats']
    )
    return jnp.concatenate([one.reshape(-1) for one in logits])

  found, num_bytes = gradients_on(mesh_of(2, 2), apply, x, *leaves)
  wanted = jax.jit(gradient_of(apply, 1 + len(leaves)))(x, *leaves)
  check_alike(found, wanted)
  assert num_bytes < 1.5 * sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize('checked', [False, True])
def test_within_a_map_over_devices_their_owner_adds_up(checked):
  mesh, x = mesh_of(4, 1), image_of(16, 6, 16, 8)
  kernel = image_of(3, 3, 8, 8, seed=1)

  def loss(x, kernel):
    y = folding.convolve([x], kernel, (1, 1))
    return (y * image_of(*y.shape[1:], seed=7)).sum()

  def gradient(x, kernel):
    if checked:  # varies by device: what it is added up by is our own
      kernel = jax.lax.pcast(kernel, ('data', 'spatial'), to='varying')
    return jax.lax.psum(jax.grad(loss, 1)(x, kernel), ('data', 'spatial'))

  images, everywhere = sharding.patches(mesh).spec, jax.sharding.PartitionSpec()
  with jax.set_mesh(mesh):
    mapped = jax.shard_map(
      gradient,
      in_specs=(images, everywhere),
      out_specs=everywhere,
      check_vma=checked,
    )
    found = jax.jit(mapped)(x, kernel)
  check_alike([found], [jax.grad(loss, 1)(x, kernel)])
