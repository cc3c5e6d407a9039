"""Whole networks: create_model, shapes, numbers of parameters, gradients.

Networks are tiny; shapes need no compilation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import SMALL, image_of, param_shapes, random_variables

from medseg_jax import models


def num_params(shape=(1, 8, 8, 1), num_classes=3, **fields):
  model = models.create_model('unet', num_classes, **(SMALL | fields))
  return sum(
    math.prod(p.shape) for p in jax.tree.leaves(param_shapes(model, shape))
  )


# create_model.


def test_unknown_name_and_field_name_what_is_alike():
  with pytest.raises(ValueError, match="'unte'; did you mean unet"):
    models.create_model('unte', 2)
  with pytest.raises(ValueError, match="'atention'; did you mean attention"):
    models.create_model('unet', 2, atention=True)
  with pytest.raises(ValueError, match="encoder_decoder.*'features'"):
    models.create_model('encoder_decoder', 2, features=4)
  with pytest.raises(ValueError, match=r"'swin' \(known: encoder_decoder, "):
    models.create_model('swin', 2)


def test_lists_as_json_has_them_make_the_same_hashable_module():
  lists = models.create_model(
    'unet',
    2,
    features=[4, 8],
    depth=2,
    kernel_sizes=[[1, 3], 3],
    strides=[1, [1, 2]],
    convs_per_stage=[1, 2],
  )
  tuples = models.create_model(
    'unet',
    2,
    features=(4, 8),
    depth=2,
    kernel_sizes=((1, 3), 3),
    strides=(1, (1, 2)),
    convs_per_stage=(1, 2),
  )
  assert lists == tuples
  assert hash(lists) == hash(tuples)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'norm': 'layer'}, 'norm.*one of batch, instance, group'),
    ({'activation': 'tanh'}, 'activation.*relu'),
    ({'down': 'mean'}, 'down.*max_pool, stride'),
    ({'up': 'cubic'}, 'up.*transpose, nearest, linear'),
    ({'dtype': 'float16'}, 'dtype.*float32, bfloat16'),
    ({'features': (4, 8, 16)}, 'as many entries as stages, depth=2'),
    ({'strides': (2, 2)}, 'strides.*must be 1'),
    ({'strides': 0}, 'strides=0.*positive'),
    ({'kernel_sizes': (3, (3, 0))}, 'kernel_sizes.*positive'),
    ({'convs_per_stage': 0}, 'convs_per_stage=0.*positive'),
    ({'depth': 0}, 'depth=0.*positive'),
    ({'dropout': 1.0}, 'dropout=1.0'),
  ],
)
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
  params = jax.jit(
    lambda: model.init(  # the rest of it is not computed
      jax.random.key(0), jnp.zeros((1, 4, 4, 3))
    )['params']['conv_1']
  )()
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
  in_3d = (
    (27 * 4 + 8 + 27 * 16 + 8)
    + (27 * 32 + 16 + 27 * 64 + 16)
    + (8 * 8 * 4 + 4)
    + (27 * 32 + 8 + 27 * 16 + 8)
    + head_0
  )
  assert num_params(shape=(1, 8, 8, 8, 1)) == in_3d


@pytest.mark.parametrize(
  'fields, extra',
  [
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
  ],
)
def test_option_changes_the_number_of_parameters(fields, extra):
  assert num_params(**fields) - num_params() == extra


def test_features_double_up_to_the_cap_or_are_given():
  capped = models.create_model('unet', 2, features=4, depth=4, max_features=12)
  given = models.create_model('unet', 2, features=(4, 8, 12, 12), depth=4)
  assert param_shapes(capped, (1, 8, 8, 1)) == param_shapes(given, (1, 8, 8, 1))


def test_divisor_and_its_error():
  model = models.create_model(
    'unet', 2, features=2, depth=4, strides=(1, (1, 2, 2), (1, 2, 2), 2)
  )
  assert model.divisor(3) == (2, 8, 8)
  assert models.create_model('unet', 2).divisor(2) == (16, 16)
  with pytest.raises(
    ValueError,
    match=r'\(4, 20, 24\).*\(2, 8, 8\).*'
    r'\(4, 16, 24\) and \(4, 24, 24\)',
  ):
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


# Whole networks.


def test_deep_supervision_gives_every_decoder_stage_in_training():
  model = models.create_model(
    'unet', 3, features=2, depth=4, deep_supervision=True
  )

  def run(train):
    image = jnp.zeros((2, 16, 24, 1))
    variables = model.init(jax.random.key(0), image, train=False)
    return model.apply(variables, image, train=train, mutable=['batch_stats'])[
      0
    ]

  logits = jax.eval_shape(lambda: run(True))
  assert [x.shape for x in logits] == [
    (2, 16, 24, 3),
    (2, 8, 12, 3),
    (2, 4, 6, 3),
  ]
  assert jax.eval_shape(lambda: run(False)).shape == (2, 16, 24, 3)


@pytest.mark.parametrize(
  'fields, shape',
  [
    (
      {
        'attention': True,
        'residual': True,
        'down': 'stride',
        'deep_supervision': True,
        'norm': 'instance',
        'depth': 3,
      },
      (2, 8, 8, 2),
    ),
    (
      {'activation': 'leaky_relu', 'norm': 'group', 'up': 'linear', 'depth': 2},
      (1, 4, 8, 8, 2),
    ),
    ({'activation': 'swish', 'up': 'nearest', 'depth': 2}, (2, 16, 2)),
  ],
)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(fields, shape):
  model = models.create_model(
    'unet', 3, features=4, convs_per_stage=1, **fields
  )
  image = image_of(*shape)
  variables = random_variables(model, image)

  @jax.jit
  @jax.grad
  def gradient(params):
    logits, _ = model.apply(
      variables | {'params': params}, image, train=True, mutable=['batch_stats']
    )
    return sum(
      (x * image_of(*x.shape, seed=5)).sum() for x in jax.tree.leaves(logits)
    )

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


@pytest.mark.parametrize(
  'name, fields, shape',
  [
    (
      'unet',
      {
        'features': 4,
        'depth': 3,
        'attention': True,
        'residual': True,
        'dropout': 0.1,
        'deep_supervision': True,
      },
      (2, 16, 16, 1),
    ),
    (
      'unet',
      {
        'features': 4,
        'depth': 2,
        'norm': 'instance',
        'up': 'linear',
        'down': 'stride',
      },
      (2, 8, 8, 8, 1),
    ),
    ('encoder_decoder', {}, (2, 8, 8, 1)),
  ],
)
def test_bfloat16_reaches_every_convolution(name, fields, shape):
  num_classes = 7  # a size that only the heads have
  model = models.create_model(name, num_classes, dtype='bfloat16', **fields)
  image = jnp.zeros(shape)
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}

  def loss(params, rest):
    logits, _ = model.apply(
      {'params': params, **rest},
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )
    assert {x.dtype for x in jax.tree.leaves(logits)} == {jnp.dtype('float32')}
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
