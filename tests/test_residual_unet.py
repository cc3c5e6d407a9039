"""The residual encoder, rematerialisation, and networks as they are planned.

Numbers of parameters and a residual block are computed here a second time, with
lax and NumPy from the definitions.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from model_cases import image_of, param_shapes, random_variables

from medseg_jax import losses, models
from medseg_jax.models import blocks

ISOTROPIC = {
  'features': [4, 8, 12],
  'depth': 3,
  'down': 'stride',
  'norm': 'instance',
  'activation': 'leaky_relu',
}
ANISOTROPIC = ISOTROPIC | {
  'kernel_sizes': [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
  'strides': [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
}
RESIDUAL = {'residual_blocks': [1, 3, 2], 'convs_per_stage': 1}


def count(model, shape):
  return sum(
    math.prod(p.shape) for p in jax.tree.leaves(param_shapes(model, shape))
  )


def expected_count(
  features,
  kernels,
  strides,
  channels,
  num_classes,
  *,
  blocks=None,
  convs=2,
  heads=1,
):
  """Returns the parameters of a planned network, convolution by convolution."""

  def conv(kernel, before, after):  # with a norm and without a bias
    return math.prod(kernel) * before * after + 2 * after

  total, before = 0, channels
  if blocks:
    total += conv(kernels[0], before, features[0])
    before = features[0]
  for i, (after, kernel) in enumerate(zip(features, kernels, strict=True)):
    num_convs = 2 * blocks[i] if blocks else convs
    total += conv(kernel, before, after)
    total += (num_convs - 1) * conv(kernel, after, after)
    if blocks and before != after:
      total += conv([1], before, after)
    before = after
  for i in range(len(features) - 1):
    total += math.prod(strides[i + 1]) * features[i + 1] * features[i]
    total += features[i]
    total += conv(kernels[i], 2 * features[i], features[i])
    total += (convs - 1) * conv(kernels[i], features[i], features[i])
    if i < heads:
      total += (features[i] + 1) * num_classes
  return total


# Numbers of parameters.


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'deep_supervision': True},
    {'convs_per_stage': 3},
    RESIDUAL,
    RESIDUAL | {'deep_supervision': True},
    RESIDUAL | {'residual_blocks': [2, 1, 1], 'convs_per_stage': 2},
  ],
)
@pytest.mark.parametrize('plan', [ISOTROPIC, ANISOTROPIC])
def test_parameters_by_the_formula(plan, fields):
  model = models.create_model('unet', 3, **(plan | fields))
  kernels = plan.get('kernel_sizes', [[3] * 3] * 3)
  strides = plan.get('strides', [[1] * 3, [2] * 3, [2] * 3])
  assert count(model, (1, 4, 8, 8, 2)) == expected_count(
    plan['features'],
    kernels,
    strides,
    2,
    3,
    blocks=fields.get('residual_blocks'),
    convs=fields.get('convs_per_stage', 2),
    heads=2 if fields.get('deep_supervision') else 1,
  )


def test_parameters_of_a_published_size():
  # The residual encoder M for a patch of 128^3 voxels with 4 channels.
  features = [32, 64, 128, 256, 320, 320]
  model = models.create_model(
    'unet',
    4,
    features=features,
    depth=6,
    down='stride',
    norm='instance',
    residual_blocks=[1, 3, 4, 6, 6, 6],
    convs_per_stage=1,
  )
  found = count(model, (1, 64, 64, 64, 4))
  assert found == expected_count(
    features,
    [[3] * 3] * 6,
    [[1] * 3] + [[2] * 3] * 5,
    4,
    4,
    blocks=[1, 3, 4, 6, 6, 6],
    convs=1,
  )
  assert 1.00e8 < found < 1.05e8  # about 102 million


# The residual encoder.


def test_block_follows_the_definition():
  x = image_of(2, 4, 8, 6, 3)
  stage = blocks.Stage(
    5,
    2,
    (1, 3, 3),
    (1, 2, 2),
    norm='instance',
    activation='leaky_relu',
    num_blocks=2,
    dropout=0.0,
    dtype='float32',
  )
  variables = random_variables(stage, x, False)
  p = variables['params']

  def act(x):
    return jnp.where(x > 0, x, 0.01 * x)

  def conv(x, name, stride=(1, 1, 1)):
    return lax.conv_general_dilated(
      x,
      p[name]['kernel'],
      stride,
      [(0, 0), (1, 1), (1, 1)],
      dimension_numbers=('NXYZC', 'XYZIO', 'NXYZC'),
    )

  def norm(x, name):
    mean, var = (
      x.mean((1, 2, 3), keepdims=True),
      x.var((1, 2, 3), keepdims=True),
    )
    return (x - mean) / jnp.sqrt(var + 1e-5) * p[name]['scale'] + (
      p[name]['bias']
    )

  @jax.jit
  def both():
    y = norm(conv(x, 'conv_0', (1, 2, 2)), 'norm_0')
    y = norm(conv(act(y), 'conv_1'), 'norm_1')
    pooled = x.reshape(2, 4, 4, 2, 3, 2, 3).mean((3, 5))
    first = act(
      y + norm(pooled @ p['conv_shortcut']['kernel'], 'norm_shortcut')
    )
    y = norm(conv(first, 'conv_2'), 'norm_2')
    y = norm(conv(act(y), 'conv_3'), 'norm_3')
    return stage.apply(variables, x, False), act(y + first)

  np.testing.assert_allclose(*both(), atol=1e-4)


def test_skip_is_the_mean_alone_where_channels_stay():
  x = image_of(1, 4, 6, 3)
  stage = blocks.Stage(
    3,
    2,
    (3, 3),
    (2, 2),
    norm='batch',
    activation='relu',
    num_blocks=1,
    dropout=0.0,
    dtype='float32',
  )
  variables = jax.jit(lambda: stage.init(jax.random.key(0), x, False))()
  assert not any('shortcut' in name for name in variables['params'])
  y = jax.jit(lambda: stage.apply(variables, x, False))()
  pooled = np.asarray(x).reshape(1, 2, 2, 3, 2, 3).mean((2, 4))
  # The last norm starts at zero, so that the block starts as its shortcut.
  np.testing.assert_allclose(y, np.maximum(pooled, 0), atol=1e-6)


def test_only_the_norms_before_a_sum_start_at_zero():
  model = models.create_model('unet', 2, **ISOTROPIC, **RESIDUAL)

  @jax.jit  # the rest of the network is not computed
  def scales():
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))['params']
    return {
      (stage, name): params[stage][name]['scale']
      for stage in params
      for name in params[stage]
      if name.startswith('norm')
    }

  zero = {name for name, scale in scales().items() if not scale.any()}
  assert zero == {
    (f'encoder_{i}', f'norm_{2 * block + 1}')
    for i, n in enumerate(RESIDUAL['residual_blocks'])
    for block in range(n)
  }


def test_stem_and_blocks_have_the_kernel_and_stride_of_their_stage():
  model = models.create_model('unet', 2, **ANISOTROPIC, **RESIDUAL)
  params = param_shapes(model, (1, 4, 8, 8, 2))
  assert params['stem']['conv_0']['kernel'].shape == (1, 3, 3, 2, 4)
  assert set(params['stem']) == {'conv_0', 'norm_0'}
  assert params['encoder_0']['conv_0']['kernel'].shape == (1, 3, 3, 4, 4)
  assert params['encoder_1']['conv_5']['kernel'].shape == (3, 3, 3, 8, 8)
  assert params['encoder_1']['conv_shortcut']['kernel'].shape == (4, 8)
  assert set(params['decoder_1']) == {'conv_0', 'norm_0'}
  assert model.divisor(3) == (2, 4, 4)


@pytest.mark.parametrize('none', [0, (), []])
def test_no_blocks_are_the_plain_network(none):
  plain = models.create_model('unet', 2, **ISOTROPIC)
  assert (
    models.create_model('unet', 2, **ISOTROPIC, residual_blocks=none) == plain
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'residual_blocks': (1, 2)}, 'as many entries as stages, depth=3'),
    ({'residual_blocks': -1}, 'residual_blocks=-1.*positive'),
    ({'residual_blocks': (1, 0, 1)}, 'residual_blocks.*positive'),
    ({'residual_blocks': 1, 'residual': True}, 'only one of them'),
  ],
)
def test_values_not_allowed_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    models.create_model('unet', 2, **(ISOTROPIC | fields))


# Gradients, and rematerialisation.


def loss_and_images(shape, **fields):
  """Returns `(params, image, key) -> loss` of a network, and images for it."""
  model = models.create_model('unet', 3, **(ANISOTROPIC | fields))
  loss_fn = losses.create_loss({'dice_loss': 1, 'cross_entropy': 1})
  labels = np.random.default_rng(0).integers(0, 3, shape[:-1])

  def loss(params, image, key):
    logits = model.apply(
      {'params': params}, image, train=True, rngs={'dropout': key}
    )
    return loss_fn(logits, labels).mean()

  return model, loss, image_of(*shape)


def test_every_residual_parameter_has_a_gradient_but_the_lowest_head_s():
  model, loss, image = loss_and_images(
    (1, 2, 8, 8, 1),
    features=[2, 4, 4],
    residual_blocks=[1, 2, 1],
    convs_per_stage=1,
    deep_supervision=True,
  )
  params = random_variables(model, image)['params']
  gradient = jax.jit(jax.grad(loss))(params, image, jax.random.key(0))
  for path, g in jax.tree.leaves_with_path(gradient):
    assert np.isfinite(g).all(), path
    assert np.any(np.asarray(g) != 0) == (path[0].key != 'head_1'), path


def test_remat_has_the_same_parameters_and_numbers():
  fields = {
    'features': 4,
    'depth': 2,
    'residual_blocks': 1,
    'dropout': 0.2,
    'convs_per_stage': 1,
    'kernel_sizes': 3,
    'strides': 2,
  }
  plain, loss, image = loss_and_images((1, 8, 8, 1), **fields)
  remat, remat_loss, _ = loss_and_images((1, 8, 8, 1), **fields, remat=True)
  shape = image.shape
  assert param_shapes(plain, shape) == param_shapes(remat, shape)
  params = random_variables(plain, image)['params']
  key = jax.random.key(1)
  expected = jax.jit(jax.value_and_grad(loss))(params, image, key)
  found = jax.jit(jax.value_and_grad(remat_loss))(params, image, key)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found,
    expected,
  )


def test_remat_updates_batch_statistics():
  image = image_of(2, 8, 8, 1)

  def updates(**fields):
    model = models.create_model('unet', 2, features=4, depth=2, **fields)
    variables = random_variables(model, image)
    return jax.jit(
      lambda: jax.grad(
        lambda p: (lambda y, new: (y.sum(), new))(
          *model.apply(
            variables | {'params': p},
            image,
            train=True,
            mutable=['batch_stats'],
          )
        ),
        has_aux=True,
      )(variables['params'])[1]
    )()

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    updates(remat=True),
    updates(),
  )


def test_remat_keeps_little_for_the_backward_pass():
  def kept_bytes(**fields):
    model, loss, image = loss_and_images((1, 8, 16, 16, 1), **fields)
    params = param_shapes(model, image.shape)
    # The function that `vjp` returns is a tree of what it holds on to.
    backward = jax.eval_shape(
      lambda p: jax.vjp(lambda p: loss(p, image, jax.random.key(0)), p)[1],
      params,
    )
    weights = sum(x.size for x in jax.tree.leaves(params))
    return 4 * (sum(x.size for x in jax.tree.leaves(backward)) - weights)

  for fields in ({}, RESIDUAL):
    # Of the activations of a stage only the inputs of its norms are kept.
    assert kept_bytes(**fields, remat=True) < 0.63 * kept_bytes(**fields)
