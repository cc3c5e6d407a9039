"""Images folded for TPUs: the same parameters and the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import conv_ref, image_of, random_variables
from test_choice_of_convolutions import mesh_on

from medseg_jax.models import convolution, create_model, folding, norms
from medseg_jax.runtime import process


@pytest.fixture(autouse=True)
def few_lanes(monkeypatch):
  """As 128 lanes are to the 32 channels of a network, 32 are to the 8 here."""
  monkeypatch.setattr(folding, 'LANES', 32)


def with_gradients(fn, *args):
  """Returns the results of `fn`, and gradients of their weighted sum."""

  def weigh(*args):
    results = jax.tree.leaves(fn(*args))
    return sum(
      (y * image_of(*y.shape, seed=i + 7)).sum() for i, y in enumerate(results)
    ), results

  every = tuple(range(len(args)))
  return jax.value_and_grad(weigh, every, has_aux=True)(*args)


def check_alike(ours, theirs, *args):
  """Compares results and gradients, to 1e-5 of the largest of each array."""
  found, wanted = jax.jit(
    lambda: (with_gradients(ours, *args), with_gradients(theirs, *args))
  )()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
    found,
    wanted,
  )


@pytest.mark.parametrize(
  ('shape', 'parts', 'taps', 'strides', 'features', 'cells'),
  [
    ((2, 4, 4, 16), (8,), (3, 3, 3), (1, 1, 1), 8, 4),
    ((1, 4, 4, 16), (8, 8), (3, 3, 3), (1, 1, 1), 8, 4),  # with a skip
    ((1, 4, 4, 16), (8,), (3, 3, 3), (2, 2, 2), 16, 4),  # into two a cell
    ((1, 4, 16), (16,), (3, 3), (2, 2), 32, 8),  # into one a cell
    ((2, 4, 16), (1,), (3, 5), (1, 1), 8, 4),
    ((1, 4, 16), (8,), (4, 2), (2, 2), 16, 4),
    ((1, 4, 16), (8,), (3, 1), (2, 1), 8, 4),
    ((1, 4, 24), (5,), (3, 3), (1, 3), 12, 4),
  ],
)
def test_folded_convolution_is_the_convolution(
  shape, parts, taps, strides, features, cells, monkeypatch
):
  convolved, convolve = [], folding._convolve

  def seen(x, *args):
    convolved.append(x)
    return convolve(x, *args)

  monkeypatch.setattr(folding, '_convolve', seen)
  images = [image_of(*shape, c, seed=c + i) for i, c in enumerate(parts)]
  kernel = image_of(*taps, sum(parts), features, seed=9)
  paddings = [((k - 1) // 2, k // 2) for k in taps]

  def ours(kernel, *images):
    return folding.convolve(images, kernel, strides)

  def theirs(kernel, *images):
    return conv_ref(jnp.concatenate(images, -1), kernel, strides, paddings)

  check_alike(ours, theirs, kernel, *images)
  assert {x.shape[-2] for x in convolved} == {cells}


@pytest.mark.parametrize(
  ('width', 'channels', 'voxels'),
  [(16, 8, 4), (16, 6, 4), (16, 17, 1), (6, 8, 2), (7, 8, 1), (16, 1, 16)],
)
def test_a_cell_is_a_power_of_two_that_divides_and_fits(
  width, channels, voxels
):
  assert folding.voxels(width, channels) == voxels


@pytest.mark.parametrize(
  ('shape', 'channels', 'features'),
  [((1, 4, 7), 8, 8), ((1, 4, 16), 32, 64), ((1, 4, 16), 24, 8)],
)
def test_what_does_not_fit_is_left_as_it_is(shape, channels, features):
  x, kernel = image_of(*shape, channels), image_of(3, 3, channels, features)
  text = str(jax.make_jaxpr(lambda x: folding.convolve([x], kernel, (1, 1)))(x))
  assert 'reshape' not in text


@pytest.mark.parametrize(
  ('channels', 'features', 'factors'),
  [(16, 8, (2, 2, 2)), (16, 8, (1, 2, 2)), (16, 16, (2, 1)), (32, 16, (2, 2))],
)
def test_folded_transposed_convolution_is_one(channels, features, factors):
  x = image_of(2, *(4,) * (len(factors) - 1), 8, channels)
  kernel = image_of(*factors, channels, features, seed=1)
  bias = image_of(features, seed=2)
  assert folding.fits(x, kernel)
  check_alike(
    lambda *args: convolution.transposed_conv(*args, convolutions='folded'),
    convolution.transposed_conv,
    *(x, kernel, bias),
  )


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_folded_logits_are_the_logits(dtype):
  x = image_of(2, 4, 16, 8).astype(dtype).astype(jnp.float32)
  folded, plain = (
    convolution.head(3, dtype=dtype, convolutions=convolutions, name=None)
    for convolutions in ('folded', 'xla')
  )
  variables = random_variables(plain, x)

  def ours(x, variables):
    return folded.apply(variables, x)

  def theirs(x, variables):
    return plain.apply(variables, x)

  # The gradient of `x` has the digits of `x`.
  check_alike(ours, theirs, x, variables)


@pytest.mark.parametrize('norm', norms.NORMS)
def test_folded_norm_is_the_norm(norm):
  x, scale = image_of(2, 4, 16, 8) + 1, image_of(8, seed=1)

  def run(folded):
    module = norms.NORMS[norm](
      8, True, 'float32', None, jax.nn.initializers.ones, jax.nn.gelu, folded
    )
    variables = random_variables(module, x)

    def apply(x, scale):
      params = {**variables['params'], 'scale': scale}
      return module.apply(
        {**variables, 'params': params}, x, mutable=['batch_stats']
      )

    return apply

  check_alike(run(True), run(False), x, scale)


@pytest.mark.parametrize(
  ('shape', 'fields'),
  [
    (
      (1, 8, 8, 16, 1),
      {'down': 'stride', 'norm': 'instance', 'deep_supervision': True},
    ),
    (
      (2, 8, 24, 2),
      {'residual': True, 'attention': True, 'up': 'linear', 'norm': 'group'},
    ),
  ],
)
def test_a_folded_network_has_the_same_parameters_and_numbers(shape, fields):
  x = image_of(*shape)
  models = [
    create_model(
      'unet', 3, features=8, depth=3, convolutions=convolutions, **fields
    )
    for convolutions in ('folded', 'xla')
  ]
  variables = random_variables(models[1], x, True)
  initial = [
    jax.eval_shape(model.init, jax.random.key(0), x) for model in models
  ]
  assert initial[0] == initial[1]

  def run(model):
    return lambda variables, x: model.apply(variables, x, train=True)

  check_alike(run(models[0]), run(models[1]), variables, x)


def test_programs_for_tpus_are_folded():
  assert convolution.choose(mesh_on('tpu', 8)) == ('folded', '')
  assert convolution.choose(mesh_on('gpu')) == ('xla', '')


class Lowered:
  """A program whose compiler knows the options that it is told."""

  def __init__(self, known):
    self.known = known

  def compile(self, compiler_options=None):
    for name in compiler_options or {}:
      if name not in self.known:
        raise jax.errors.JaxRuntimeError(
          f"INVALID_ARGUMENT: No such compile option: '{name}'"
        )
    return compiler_options


def test_tpus_get_options_that_their_compiler_knows():
  knowing = Lowered(process.TPU_OPTIONS)
  assert process.compile_for(mesh_on('tpu'), knowing) == process.TPU_OPTIONS
  for name, value in process.TPU_OPTIONS.items():
    found = process.compile_for(mesh_on('tpu'), Lowered({name}))
    assert found == {name: value}
  assert process.compile_for(mesh_on('tpu'), Lowered(())) is None
  assert process.compile_for(mesh_on('gpu'), knowing) is None
