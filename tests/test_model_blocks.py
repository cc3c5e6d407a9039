"""Parts of the networks: resampling, convolution, norms, dropout, attention.

They are held against flax, lax and numpy, where these have the same.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model_cases import (
  SMALL,
  as_on_a_gpu,
  conv_ref,
  image_of,
  param_shapes,
  random_variables,
)

from medseg_jax import models
from medseg_jax.models import blocks, norms, resampling

# Resampling.


@pytest.mark.parametrize(
  'shape, stride',
  [((2, 12, 3), (3,)), ((2, 4, 6, 3), (2, 3)), ((1, 4, 2, 6, 2), (2, 1, 2))],
)
def test_max_and_mean_pool_equal_flax(shape, stride):
  x = image_of(*shape)
  np.testing.assert_array_equal(
    resampling.max_pool(x, stride), nn.max_pool(x, stride, stride)
  )
  np.testing.assert_allclose(
    resampling.mean_pool(x, stride), nn.avg_pool(x, stride, stride), atol=1e-6
  )


def test_max_pool_gradient_is_flax_s_and_shared_between_ties():
  weights = image_of(1, 2, 2, 2, seed=1)

  @jax.jit
  def gradients(x):
    def ours(x):
      return (resampling.max_pool(x, (2, 2)) * weights).sum()

    def theirs(x):
      return (nn.max_pool(x, (2, 2), (2, 2)) * weights).sum()

    return jax.grad(ours)(x), jax.grad(theirs)(x)

  np.testing.assert_allclose(*gradients(image_of(1, 4, 4, 2)))
  np.testing.assert_allclose(
    gradients(jnp.zeros((1, 4, 4, 2)))[0],
    np.repeat(np.repeat(weights / 4, 2, 1), 2, 2),
  )


@pytest.mark.parametrize('method', ['nearest', 'linear'])
@pytest.mark.parametrize(
  'shape, factors',
  [((2, 5, 3), (4,)), ((1, 3, 4, 2), (2, 3)), ((1, 2, 3, 1, 2), (1, 2, 3))],
)
def test_upsampling_equals_resize(method, shape, factors):
  x = image_of(*shape)
  size = [n * f for n, f in zip(shape[1:-1], factors, strict=True)]
  expected = jax.image.resize(x, (shape[0], *size, shape[-1]), method)
  y = jax.jit(resampling.UPSAMPLE[method], static_argnums=1)(x, factors)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_space_to_depth_orders_channels_by_voxel():
  x = jnp.stack([jnp.arange(8.0), -jnp.arange(8.0)], -1).reshape(1, 2, 4, 2)
  np.testing.assert_array_equal(
    resampling.space_to_depth(x, (2, 2))[0, 0],
    [[0, 0, 1, -1, 4, -4, 5, -5], [2, -2, 3, -3, 6, -6, 7, -7]],
  )
  there = resampling.space_to_depth(x, (1, 2))
  np.testing.assert_array_equal(resampling.depth_to_space(there, (1, 2)), x)


@pytest.mark.parametrize('factors', [(3,), (2, 3), (1, 2, 2)])
def test_up_transpose_equals_transposed_convolution(factors):
  rank = len(factors)
  x = image_of(2, *(4, 3, 5)[:rank], 6)
  up = blocks.Up(4, factors, 'transpose', 'relu', 'float32')
  variables = random_variables(up, x)
  kernel, bias = variables['params']['kernel'], variables['params']['bias']
  assert kernel.shape == (*factors, 6, 4)
  spatial = 'XYZ'[:rank]

  @jax.jit
  def both():
    # lax correlates with the kernel, which turns it round.
    expected = bias + lax.conv_transpose(
      x,
      jnp.flip(kernel, range(rank)),
      factors,
      'VALID',
      dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
    )
    return up.apply(variables, x), expected

  np.testing.assert_allclose(*both(), atol=1e-5)


@pytest.mark.parametrize(
  'activation, gain', [('relu', 2), ('leaky_relu', 2 / 1.0001)]
)
def test_he_normal_counts_what_adds_up_in_an_output(activation, gain):
  def std(init, shape):
    return np.std(jax.jit(init, static_argnums=1)(jax.random.key(0), shape))

  conv = blocks.he_normal(activation)
  assert std(conv, (3, 3, 16, 64)) == pytest.approx(
    math.sqrt(gain / (9 * 16)), rel=0.05
  )
  transposed = blocks.he_normal(activation, num_kernel_axes=2)
  assert std(transposed, (2, 2, 16, 64)) == pytest.approx(
    math.sqrt(gain / 16), rel=0.05
  )


# Convolution, normalisation, dropout, attention.


@pytest.mark.parametrize('activation', [None, *blocks.ACTIVATIONS])
@pytest.mark.parametrize(
  'axes, num_groups', [((0, 1, 2), 6), ((1, 2), 6), ((1, 2), 3), ((1, 2), 1)]
)
def test_norm_and_its_gradient_equal_the_derived_ones(
  axes, num_groups, activation
):
  activation = blocks.ACTIVATIONS.get(activation)
  x, cotangent = image_of(3, 4, 5, 6) * 3 + 2, image_of(3, 4, 5, 6, seed=1)
  scale, bias = image_of(6, seed=2), image_of(6, seed=3)

  def reference(x, scale, bias):
    split = x.reshape(3, 4, 5, num_groups, -1)
    over = (*axes, 4)
    split -= split.mean(over, keepdims=True)
    split /= jnp.sqrt(jnp.square(split).mean(over, keepdims=True) + 1e-5)
    y = split.reshape(x.shape) * scale + bias
    return y if activation is None else activation(y)

  def ours(x, scale, bias):
    return norms.standardize(x, scale, bias, axes, num_groups, activation)[0]

  def run(fn):
    y, vjp = jax.vjp(fn, x, scale, bias)
    return y, vjp(cotangent)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    *jax.jit(lambda: (run(ours), run(reference)))(),
  )


def test_group_norm_equals_numpy_far_from_zero():
  x = np.asarray(image_of(2, 4, 5, 6)) * np.arange(1, 7) + 1000
  module = norms.GroupNorm(3)
  scale, bias = np.linspace(1, 2, 6), np.linspace(-1, 1, 6)
  y = jax.jit(module.apply)({'params': {'scale': scale, 'bias': bias}}, x)
  groups = x.astype(np.float64).reshape(2, 20, 3, 2)
  mean = groups.mean((1, 3), keepdims=True)
  var = groups.var((1, 3), keepdims=True)
  expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(y, expected * scale + bias, atol=2e-3)


@pytest.mark.parametrize('platform', ['cuda', 'cpu'])
@pytest.mark.parametrize('axes', [(1, 2), (0, 1, 2)])
def test_norm_in_half_precision_equals_that_of_the_same_values(
  axes, platform, monkeypatch
):
  if platform == 'cuda':
    monkeypatch.setattr(lax, 'platform_dependent', as_on_a_gpu)
  offset = 20  # far from zero, where one pass over them is least exact
  x = (image_of(2, 16, 16, 6) + offset).astype(jnp.bfloat16)
  cotangent = image_of(2, 16, 16, 6, seed=1).astype(jnp.bfloat16)
  scale, bias = jnp.ones(6), image_of(6, seed=3)

  def run(x, cotangent):
    def fn(x):
      return norms.standardize(x, scale, bias, axes, 6, jax.nn.leaky_relu)[0]

    y, pull_back = jax.vjp(fn, x)
    return y, *pull_back(cotangent)

  half = jax.jit(run)(x, cotangent)
  whole = jax.jit(run)(x.astype(jnp.float32), cotangent.astype(jnp.float32))
  for ours, exact in zip(half, whole, strict=True):
    assert ours.dtype == jnp.bfloat16
    difference = np.abs(ours.astype(jnp.float32) - exact)
    # A few values change sides of the activation's kink in the rounding.
    assert np.mean(difference > 0.01 + 0.01 * np.abs(exact)) < 0.003


@pytest.mark.parametrize(
  'axes, shards', [((1, 2), (2, 1)), ((1, 2), (1, 2)), ((0, 1, 2), (2, 1))]
)
def test_devices_exchange_sums_and_gather_none(axes, shards, monkeypatch):
  """Of the two sums at once XLA would gather those of all the devices."""
  monkeypatch.setattr(lax, 'platform_dependent', as_on_a_gpu)
  mesh = jax.make_mesh(
    shards, ('data', 'spatial'), axis_types=(AxisType.Auto,) * 2
  )
  layout = NamedSharding(mesh, PartitionSpec('data', 'spatial'))
  x = jax.ShapeDtypeStruct((4, 8, 6, 6), jnp.bfloat16, sharding=layout)

  def norm(x):
    ones, zeros = jnp.ones(6), jnp.zeros(6)
    return norms.standardize(x, ones, zeros, axes, 6, None)[0]

  with jax.set_mesh(mesh):
    text = jax.jit(norm).lower(x).compile().as_text()
  assert 'all-gather' not in text
  assert ('all-reduce' in text) == (shards[1] > 1 or 0 in axes)


def test_instance_norm_of_a_single_voxel_is_refused():
  model = models.create_model('unet', 2, **SMALL, norm='instance')
  with pytest.raises(ValueError, match='nothing to normalise'):
    param_shapes(model, (1, 2, 2, 1))


@pytest.mark.parametrize('norm', ['instance', 'group'])
def test_examples_do_not_see_each_other(norm):
  model = models.create_model(
    'unet', 2, features=8, depth=2, convs_per_stage=1, norm=norm
  )
  image = image_of(3, 8, 8, 1) * jnp.array([1, 10, 100]).reshape(3, 1, 1, 1)
  variables = random_variables(model, image)
  apply = jax.jit(lambda image: model.apply(variables, image, train=True))
  others = image.at[jnp.array([0, 2])].multiply(-3)
  np.testing.assert_allclose(apply(others)[1], apply(image)[1], atol=1e-5)
  assert np.abs(apply(others)[0] - apply(image)[0]).max() > 0.1


def test_batch_statistics_update_in_training_only():
  model = models.create_model('unet', 2, **SMALL, convs_per_stage=1)
  image = image_of(4, 8, 8, 1)
  variables = random_variables(model, image)
  evaluate = jax.jit(
    lambda image: model.apply(
      variables, image, train=False, mutable=['batch_stats']
    )
  )
  together, updates = evaluate(image)
  jax.tree.map(
    np.testing.assert_array_equal,
    updates['batch_stats'],
    variables['batch_stats'],
  )
  others = image.at[1:].multiply(-3)
  np.testing.assert_allclose(evaluate(others)[0][0], together[0], atol=1e-5)
  _, updates = jax.jit(
    lambda: model.apply(variables, image, train=True, mutable=['batch_stats'])
  )()
  old = variables['batch_stats']['encoder_0']['norm_0']
  new = updates['batch_stats']['encoder_0']['norm_0']
  kernel = variables['params']['encoder_0']['conv_0']['kernel']
  first = np.asarray(conv_ref(image, kernel, (1, 1), 'SAME')).reshape(-1, 4)
  np.testing.assert_allclose(
    new['mean'], 0.9 * old['mean'] + 0.1 * first.mean(0), atol=1e-5
  )
  np.testing.assert_allclose(
    new['var'], 0.9 * old['var'] + 0.1 * first.var(0), rtol=1e-4
  )


def test_dropout_drops_whole_channels_in_training_only():
  stage = blocks.Stage(
    32,
    1,
    (3, 3),
    (1, 1),
    norm='instance',
    activation='gelu',
    num_blocks=0,
    dropout=0.5,
    dtype='float32',
  )
  x = image_of(2, 4, 4, 1)
  variables = random_variables(stage, x, False)

  @jax.jit
  def both():
    return stage.apply(variables, x, False), stage.apply(
      variables, x, True, rngs={'dropout': jax.random.key(1)}
    )

  kept, dropped = map(np.asarray, both())
  is_zero = (dropped == 0).all((1, 2), keepdims=True)
  assert 0.25 < is_zero.mean() < 0.75
  np.testing.assert_allclose(dropped, np.where(is_zero, 0, 2 * kept), rtol=1e-6)


def test_residual_stage_adds_its_input():
  stage = blocks.Stage(
    3,
    2,
    (3, 3),
    (1, 1),
    norm='instance',
    activation='leaky_relu',
    num_blocks=1,
    dropout=0.0,
    dtype='float32',
  )
  x = image_of(1, 4, 4, 3)
  variables = random_variables(stage, x, False)
  zeros = jax.tree.map(jnp.zeros_like, variables)
  y = jax.jit(stage.apply, static_argnums=2)(zeros, x, False)
  np.testing.assert_allclose(y, np.where(x > 0, x, 0.01 * x), rtol=1e-6)


def test_attention_gate_follows_the_paper():
  x, signal = image_of(2, 6, 4, 4), image_of(2, 3, 2, 8, seed=1)
  gate = blocks.AttentionGate((2, 2), 'float32')
  variables = random_variables(gate, x, signal)

  @jax.jit
  def both():
    p = variables['params']
    skip = conv_ref(x, p['skip']['kernel'].reshape(2, 2, 4, 2), (2, 2), 'VALID')
    hidden = skip + signal @ p['signal']['kernel'] + p['signal']['bias']
    psi = jnp.maximum(hidden, 0) @ p['gate']['kernel'] + p['gate']['bias']
    weight = jax.image.resize(1 / (1 + jnp.exp(-psi)), (2, 6, 4, 1), 'linear')
    return gate.apply(variables, x, signal), x * weight

  np.testing.assert_allclose(*both(), atol=1e-5)
