"""Tests of medseg_jax.models. Networks are tiny; shapes need no compilation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from medseg_jax import models
from medseg_jax.models import blocks

SMALL = {'features': 4, 'depth': 2}


def image_of(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def random_variables(model, *args):
  """Returns variables like those of `model.init`, without compiling it."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))
  rng = np.random.default_rng(0)

  def fill(path, x):
    if path[-1].key in ('scale', 'var'):
      return jnp.ones(x.shape)
    fan_in = math.prod(x.shape[:-1]) if path[-1].key == 'kernel' else 100
    return jnp.asarray(rng.normal(0, (2 / fan_in)**0.5, x.shape), jnp.float32)

  return jax.tree.map_with_path(fill, shapes)


def param_shapes(model, shape):
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))
  return variables['params']


def num_params(shape=(1, 8, 8, 1), num_classes=3, **fields):
  model = models.create_model('unet', num_classes, **(SMALL | fields))
  return sum(math.prod(p.shape) for p in jax.tree.leaves(
      param_shapes(model, shape)))


def conv_ref(x, kernel, strides, padding):
  spatial = 'XYZ'[:x.ndim - 2]
  return lax.conv_general_dilated(
      x, kernel, strides, padding,
      dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'))


# create_model.


def test_unknown_name_and_field_name_the_closest():
  with pytest.raises(ValueError, match="'unte'.*closest known one is 'unet'"):
    models.create_model('unte', 2)
  with pytest.raises(ValueError, match="'atention'.*one is 'attention'"):
    models.create_model('unet', 2, atention=True)
  with pytest.raises(ValueError, match="encoder_decoder.*'features'"):
    models.create_model('encoder_decoder', 2, features=4)


def test_lists_as_json_has_them_make_the_same_hashable_module():
  lists = models.create_model(
      'unet', 2, features=[4, 8], depth=2, kernel_sizes=[[1, 3], 3],
      strides=[1, [1, 2]], convs_per_stage=[1, 2])
  tuples = models.create_model(
      'unet', 2, features=(4, 8), depth=2, kernel_sizes=((1, 3), 3),
      strides=(1, (1, 2)), convs_per_stage=(1, 2))
  assert lists == tuples
  assert hash(lists) == hash(tuples)


@pytest.mark.parametrize('fields, message', [
    ({'norm': 'layer'}, 'norm.*one of batch, instance, group'),
    ({'activation': 'tanh'}, 'activation.*relu'),
    ({'down': 'mean'}, 'down.*max_pool, stride'),
    ({'up': 'cubic'}, 'up.*transpose, nearest, linear'),
    ({'dtype': 'float16'}, 'dtype.*float32, bfloat16'),
    ({'features': (4, 8, 16)}, '3 entries, but depth=2'),
    ({'strides': (2, 2)}, 'strides.*must be 1'),
    ({'strides': 0}, 'strides=0.*positive'),
    ({'kernel_sizes': (3, (3, 0))}, 'kernel_sizes.*positive'),
    ({'convs_per_stage': 0}, 'convs_per_stage=0.*positive'),
    ({'depth': 0}, 'depth=0.*positive'),
    ({'dropout': 1.0}, 'dropout=1.0'),
])
def test_values_not_allowed_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    models.create_model('unet', 2, **(SMALL | fields))


def test_dtype_may_be_a_type():
  model = models.create_model('encoder_decoder', 2, dtype=jnp.bfloat16)
  assert model.dtype == 'bfloat16'


# Shapes and numbers of parameters.


@pytest.mark.parametrize('name', ['unet', 'encoder_decoder'])
@pytest.mark.parametrize('shape', [(2, 16, 3), (2, 16, 8, 3), (1, 8, 16, 8, 3)])
def test_logits_have_the_image_grid_and_are_float32(name, shape):
  model = models.create_model(name, 5, dtype='bfloat16')
  if name == 'unet':
    model = model.clone(features=4, depth=3)

  def run():
    image = jnp.zeros(shape)
    variables = model.init(jax.random.key(0), image, train=False)
    return model.apply(variables, image, train=False)

  logits = jax.eval_shape(run)
  assert logits.shape == (*shape[:-1], 5)
  assert logits.dtype == jnp.float32


def test_encoder_decoder_has_the_published_number_of_parameters():
  model = models.create_model('encoder_decoder', 1)
  shapes = param_shapes(model, (1, 256, 256, 3))
  assert sum(math.prod(p.shape) for p in jax.tree.leaves(shapes)) == 740_225
  assert model.divisor(2) == (4, 4)


def test_encoder_decoder_starts_as_in_keras():
  model = models.create_model('encoder_decoder', 1)
  params = jax.jit(lambda: model.init(  # the rest of it is not computed
      jax.random.key(0), jnp.zeros((1, 4, 4, 3)))['params']['conv_1'])()
  kernel = np.asarray(params['kernel'])
  limit = math.sqrt(6 / (9 * 64 + 9 * 128))
  assert np.abs(kernel).max() == pytest.approx(limit, rel=1e-2)
  assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=2e-2)
  assert not np.any(params['bias'])


def test_unet_parameters_by_hand():
  # Convolutions without bias; a norm has 2 parameters a channel.
  encoder_0 = 9 * 1 * 4 + 8 + 9 * 4 * 4 + 8
  encoder_1 = 9 * 4 * 8 + 16 + 9 * 8 * 8 + 16
  up_0 = 4 * 8 * 4 + 4
  decoder_0 = 9 * 8 * 4 + 8 + 9 * 4 * 4 + 8
  head_0 = 4 * 3 + 3
  total = encoder_0 + encoder_1 + up_0 + decoder_0 + head_0
  assert total == 1687
  assert num_params() == total
  assert num_params(norm='instance') == total
  assert num_params(norm='group') == total
  in_3d = (27 * 4 + 8 + 27 * 16 + 8) + (27 * 32 + 16 + 27 * 64 + 16) + (
      8 * 8 * 4 + 4) + (27 * 32 + 8 + 27 * 16 + 8) + head_0
  assert num_params(shape=(1, 8, 8, 8, 1)) == in_3d


@pytest.mark.parametrize('fields, extra', [
    # W_x: 4 taps, 4 -> 2; W_g: 8 -> 2 with bias; psi: 2 -> 1 with bias.
    ({'attention': True}, 4 * 4 * 2 + (8 * 2 + 2) + (2 + 1)),
    # Shortcuts 1 -> 4, 4 -> 8, 8 -> 4 with their norms.
    ({'residual': True}, (4 + 8) + (4 * 8 + 16) + (8 * 4 + 8)),
    ({'up': 'nearest'}, (8 * 4 + 4) - (4 * 8 * 4 + 4)),
    ({'up': 'linear'}, (8 * 4 + 4) - (4 * 8 * 4 + 4)),
    ({'down': 'stride'}, 0),
    ({'strides': (1, (1, 2))}, 2 * 8 * 4 - 4 * 8 * 4),
    ({'convs_per_stage': (3, 2)}, 2 * (9 * 16 + 8)),
    ({'kernel_sizes': (3, (1, 3))}, -6 * (4 * 8 + 8 * 8)),
    ({'deep_supervision': True}, 0),  # one decoder stage, one head
])
def test_option_changes_the_number_of_parameters(fields, extra):
  assert num_params(**fields) - num_params() == extra


def test_features_double_up_to_the_cap_or_are_given():
  capped = models.create_model('unet', 2, features=4, depth=4, max_features=12)
  given = models.create_model('unet', 2, features=(4, 8, 12, 12), depth=4)
  assert param_shapes(capped, (1, 8, 8, 1)) == param_shapes(given, (1, 8, 8, 1))


def test_divisor_and_its_error():
  model = models.create_model('unet', 2, features=2, depth=4,
                              strides=(1, (1, 2, 2), (1, 2, 2), 2))
  assert model.divisor(3) == (2, 8, 8)
  assert models.create_model('unet', 2).divisor(2) == (16, 16)
  with pytest.raises(ValueError, match=r'\(4, 20, 24\).*\(2, 8, 8\).*'
                     r'\(4, 16, 24\) and \(4, 24, 24\)'):
    param_shapes(model, (1, 4, 20, 24, 1))
  with pytest.raises(ValueError, match='strides.*2 spatial axes'):
    model.divisor(2)
  with pytest.raises(ValueError, match=r'nearest.*\(4, 8\)'):
    param_shapes(models.create_model('encoder_decoder', 2), (1, 3, 8, 1))


def test_anisotropic_strides_leave_the_first_axis():
  model = models.create_model('unet', 2, **SMALL, strides=(1, (1, 2, 2)))
  image = jnp.zeros((1, 3, 8, 8, 1))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image))
  logits = jax.eval_shape(model.apply, variables, image)
  assert logits.shape == (1, 3, 8, 8, 2)
  assert variables['params']['up_0']['kernel'].shape == (1, 2, 2, 8, 4)


# Resampling.


@pytest.mark.parametrize('shape, stride', [
    ((2, 12, 3), (3,)), ((2, 4, 6, 3), (2, 3)), ((1, 4, 2, 6, 2), (2, 1, 2))])
def test_max_and_mean_pool_equal_flax(shape, stride):
  x = image_of(*shape)
  np.testing.assert_array_equal(
      blocks.max_pool(x, stride), nn.max_pool(x, stride, stride))
  np.testing.assert_allclose(
      blocks.mean_pool(x, stride), nn.avg_pool(x, stride, stride), atol=1e-6)


def test_max_pool_gradient_is_flax_s_and_shared_between_ties():
  weights = image_of(1, 2, 2, 2, seed=1)

  @jax.jit
  def gradients(x):
    def ours(x):
      return (blocks.max_pool(x, (2, 2)) * weights).sum()

    def theirs(x):
      return (nn.max_pool(x, (2, 2), (2, 2)) * weights).sum()

    return jax.grad(ours)(x), jax.grad(theirs)(x)

  np.testing.assert_allclose(*gradients(image_of(1, 4, 4, 2)))
  np.testing.assert_allclose(
      gradients(jnp.zeros((1, 4, 4, 2)))[0],
      np.repeat(np.repeat(weights / 4, 2, 1), 2, 2))


@pytest.mark.parametrize('method', ['nearest', 'linear'])
@pytest.mark.parametrize('shape, factors', [
    ((2, 5, 3), (4,)), ((1, 3, 4, 2), (2, 3)), ((1, 2, 3, 1, 2), (1, 2, 3))])
def test_upsampling_equals_resize(method, shape, factors):
  x = image_of(*shape)
  size = [n * f for n, f in zip(shape[1:-1], factors, strict=True)]
  expected = jax.image.resize(x, (shape[0], *size, shape[-1]), method)
  y = jax.jit(blocks.UPSAMPLE[method], static_argnums=1)(x, factors)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_space_to_depth_orders_channels_by_voxel():
  x = jnp.stack([jnp.arange(8.0), -jnp.arange(8.0)], -1).reshape(1, 2, 4, 2)
  np.testing.assert_array_equal(
      blocks.space_to_depth(x, (2, 2))[0, 0],
      [[0, 0, 1, -1, 4, -4, 5, -5], [2, -2, 3, -3, 6, -6, 7, -7]])
  np.testing.assert_array_equal(
      blocks.depth_to_space(blocks.space_to_depth(x, (1, 2)), (1, 2)), x)


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
        x, jnp.flip(kernel, range(rank)), factors, 'VALID',
        dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'))
    return up.apply(variables, x), expected

  np.testing.assert_allclose(*both(), atol=1e-5)


@pytest.mark.parametrize('activation, gain', [
    ('relu', 2), ('leaky_relu', 2 / 1.0001)])
def test_he_normal_counts_what_adds_up_in_an_output(activation, gain):
  def std(init, shape):
    return np.std(jax.jit(init, static_argnums=1)(jax.random.key(0), shape))

  conv = blocks.he_normal(activation)
  assert std(conv, (3, 3, 16, 64)) == pytest.approx(
      math.sqrt(gain / (9 * 16)), rel=0.05)
  transposed = blocks.he_normal(activation, num_kernel_axes=2)
  assert std(transposed, (2, 2, 16, 64)) == pytest.approx(
      math.sqrt(gain / 16), rel=0.05)


# Convolution, normalisation, dropout, attention.


@pytest.mark.parametrize('kernel, stride', [
    ((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 1, 2)), ((1, 3, 2), (1, 2, 2)),
    ((5, 1, 3), (3, 1, 1))])
def test_3d_convolution_and_gradients_equal_lax(kernel, stride):
  x = image_of(2, 6, 4, 4, 3)
  module = blocks.conv(5, kernel, stride, use_bias=False)
  weights = random_variables(module, x)
  padding = [((k - 1) // 2, k // 2) for k in kernel]
  size = [n // s for n, s in zip((6, 4, 4), stride, strict=True)]
  cotangent = image_of(2, *size, 5, seed=2)

  def reference(weights, x):
    return conv_ref(x, weights['params']['kernel'], stride, padding)

  def run(fn):
    y, vjp = jax.vjp(fn, weights, x)
    return y, vjp(cotangent)

  ours, theirs = jax.jit(lambda: (run(module.apply), run(reference)))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
               ours, theirs)


def test_group_norm_equals_numpy_far_from_zero():
  x = np.asarray(image_of(2, 4, 5, 6)) * np.arange(1, 7) + 1000
  module = blocks.GroupNorm(3)
  scale, bias = np.linspace(1, 2, 6), np.linspace(-1, 1, 6)
  y = jax.jit(module.apply)({'params': {'scale': scale, 'bias': bias}}, x)
  groups = x.astype(np.float64).reshape(2, 20, 3, 2)
  mean = groups.mean((1, 3), keepdims=True)
  var = groups.var((1, 3), keepdims=True)
  expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(y, expected * scale + bias, atol=2e-3)


def test_instance_norm_of_a_single_voxel_is_refused():
  model = models.create_model('unet', 2, **SMALL, norm='instance')
  with pytest.raises(ValueError, match='nothing to normalise'):
    param_shapes(model, (1, 2, 2, 1))


@pytest.mark.parametrize('norm', ['instance', 'group'])
def test_examples_do_not_see_each_other(norm):
  model = models.create_model('unet', 2, features=8, depth=2,
                              convs_per_stage=1, norm=norm)
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
  evaluate = jax.jit(lambda image: model.apply(
      variables, image, train=False, mutable=['batch_stats']))
  together, updates = evaluate(image)
  jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'],
               variables['batch_stats'])
  others = image.at[1:].multiply(-3)
  np.testing.assert_allclose(evaluate(others)[0][0], together[0], atol=1e-5)
  _, updates = jax.jit(lambda: model.apply(
      variables, image, train=True, mutable=['batch_stats']))()
  old = variables['batch_stats']['encoder_0']['norm_0']
  new = updates['batch_stats']['encoder_0']['norm_0']
  kernel = variables['params']['encoder_0']['conv_0']['kernel']
  first = np.asarray(conv_ref(image, kernel, (1, 1), 'SAME')).reshape(-1, 4)
  np.testing.assert_allclose(
      new['mean'], 0.9 * old['mean'] + 0.1 * first.mean(0), atol=1e-5)
  np.testing.assert_allclose(
      new['var'], 0.9 * old['var'] + 0.1 * first.var(0), rtol=1e-4)


def test_dropout_drops_whole_channels_in_training_only():
  stage = blocks.Stage(32, 1, (3, 3), (1, 1), norm='instance',
                       activation='gelu', residual=False, dropout=0.5,
                       dtype='float32')
  x = image_of(2, 4, 4, 1)
  variables = random_variables(stage, x, False)

  @jax.jit
  def both():
    return stage.apply(variables, x, False), stage.apply(
        variables, x, True, rngs={'dropout': jax.random.key(1)})

  kept, dropped = map(np.asarray, both())
  is_zero = (dropped == 0).all((1, 2), keepdims=True)
  assert 0.25 < is_zero.mean() < 0.75
  np.testing.assert_allclose(dropped, np.where(is_zero, 0, 2 * kept), rtol=1e-6)


def test_residual_stage_adds_its_input():
  stage = blocks.Stage(3, 2, (3, 3), (1, 1), norm='instance',
                       activation='leaky_relu', residual=True, dropout=0.0,
                       dtype='float32')
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


# Whole networks.


def test_deep_supervision_gives_every_decoder_stage_in_training():
  model = models.create_model('unet', 3, features=2, depth=4,
                              deep_supervision=True)

  def run(train):
    image = jnp.zeros((2, 16, 24, 1))
    variables = model.init(jax.random.key(0), image, train=False)
    return model.apply(variables, image, train=train,
                       mutable=['batch_stats'])[0]

  logits = jax.eval_shape(lambda: run(True))
  assert [x.shape for x in logits] == [
      (2, 16, 24, 3), (2, 8, 12, 3), (2, 4, 6, 3)]
  assert jax.eval_shape(lambda: run(False)).shape == (2, 16, 24, 3)


@pytest.mark.parametrize('fields, shape', [
    ({'attention': True, 'residual': True, 'down': 'stride',
      'deep_supervision': True, 'norm': 'instance', 'depth': 3}, (2, 8, 8, 2)),
    ({'activation': 'leaky_relu', 'norm': 'group', 'up': 'linear', 'depth': 2},
     (1, 4, 8, 8, 2)),
    ({'activation': 'swish', 'up': 'nearest', 'depth': 2}, (2, 16, 2)),
])
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(fields, shape):
  model = models.create_model('unet', 3, features=4, convs_per_stage=1,
                              **fields)
  image = image_of(*shape)
  variables = random_variables(model, image)

  @jax.jit
  @jax.grad
  def gradient(params):
    logits, _ = model.apply(variables | {'params': params}, image, train=True,
                            mutable=['batch_stats'])
    return sum((x * image_of(*x.shape, seed=5)).sum()
               for x in jax.tree.leaves(logits))

  for path, g in jax.tree.leaves_with_path(gradient(variables['params'])):
    assert np.isfinite(g).all(), path
    assert np.any(np.asarray(g) != 0), path


def test_shifting_by_the_divisor_shifts_the_logits():
  model = models.create_model('unet', 2, features=4, depth=3, convs_per_stage=1)
  image = image_of(1, 64, 8, 1)
  variables = random_variables(model, image)
  apply = jax.jit(lambda image: model.apply(variables, image, train=False))
  logits = apply(image)
  shifted = apply(jnp.roll(image, 4, axis=1))
  np.testing.assert_allclose(shifted[:, 24:44], logits[:, 20:40], atol=1e-5)
  # By less the grid of the pooling does not go along.
  by_one = apply(jnp.roll(image, 1, axis=1))
  assert np.abs(by_one[:, 21:41] - logits[:, 20:40]).max() > 1e-3


def test_jit_and_vmap_equal_the_plain_call():
  model = models.create_model('unet', 2, **SMALL, convs_per_stage=1)
  image = image_of(2, 4, 4, 1)
  variables = random_variables(model, image)

  def apply(image):
    return model.apply(variables, image, train=False)

  plain = apply(image)
  np.testing.assert_allclose(jax.jit(apply)(image), plain, atol=1e-5)
  single = jax.jit(jax.vmap(apply))(image[:, None])[:, 0]
  np.testing.assert_allclose(single, plain, atol=1e-5)


def equations(jaxpr):
  """Yields the equations of `jaxpr` and of those inside them."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


@pytest.mark.parametrize('name, fields, shape', [
    ('unet', {'features': 4, 'depth': 3, 'attention': True, 'residual': True,
              'dropout': 0.1, 'deep_supervision': True}, (2, 16, 16, 1)),
    ('unet', {'features': 4, 'depth': 2, 'norm': 'instance', 'up': 'linear',
              'down': 'stride'}, (2, 8, 8, 8, 1)),
    ('encoder_decoder', {}, (2, 8, 8, 1)),
])
def test_bfloat16_reaches_every_convolution(name, fields, shape):
  num_classes = 7  # a size that only the heads have
  model = models.create_model(name, num_classes, dtype='bfloat16', **fields)
  image = jnp.zeros(shape)
  variables = jax.eval_shape(
      lambda: model.init(jax.random.key(0), image, train=False))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

  def loss(params, rest):
    logits, _ = model.apply(
        {'params': params, **rest}, image, train=True, mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)})
    assert {x.dtype for x in jax.tree.leaves(logits)} == {
        jnp.dtype('float32')}
    return sum(x.sum() for x in jax.tree.leaves(logits))

  params = variables.pop('params')
  jaxpr = jax.make_jaxpr(jax.grad(loss))(params, variables)
  counts = {'body': 0, 'head': 0}
  for eqn in equations(jaxpr.jaxpr):
    if eqn.primitive.name not in ('conv_general_dilated', 'dot_general'):
      continue
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    kind = 'head' if any(num_classes in s for s in shapes) else 'body'
    counts[kind] += 1
    expected = 'float32' if kind == 'head' else 'bfloat16'
    assert {str(v.aval.dtype) for v in eqn.invars} == {expected}, eqn
  # Forward, and the gradients with respect to input and kernel.
  assert counts['head'] >= 3
  assert counts['body'] >= 14
