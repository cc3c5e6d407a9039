"""Images, variables and shapes that the tests of the networks share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from medseg_jax.models.cpu import convolution as on_cpu

SMALL = {'features': 4, 'depth': 2}


def as_on_a_gpu(*args, cuda, default):
  """Takes the place of `lax.platform_dependent`."""
  del default
  return cuda(*args)


def image_of(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def conv_ref(x, kernel, strides, padding):
  spatial = 'XYZ'[: x.ndim - 2]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
  )


def random_variables(model, *args):
  """Returns variables like those of `model.init`, without compiling it."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args))
  rng = np.random.default_rng(0)

  def fill(path, x):
    if path[-1].key in ('scale', 'var'):
      return jnp.ones(x.shape)
    fan_in = math.prod(x.shape[:-1]) if path[-1].key == 'kernel' else 100
    return jnp.asarray(rng.normal(0, (2 / fan_in) ** 0.5, x.shape), jnp.float32)

  return jax.tree.map_with_path(fill, shapes)


def param_shapes(model, shape):
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False)
  )
  return variables['params']


def check_convolution(shape, kernel_shape, strides, padding):
  """Compares `on_cpu.convolve` and its gradients with `conv_ref`."""
  x, kernel = image_of(*shape), image_of(*kernel_shape, seed=1)

  def run(fn):
    y, vjp = jax.vjp(
      lambda x, kernel: fn(x, kernel, strides, padding), x, kernel
    )
    return y, vjp(image_of(*y.shape, seed=2))

  ours, theirs = jax.jit(lambda: (run(on_cpu.convolve), run(conv_ref)))()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
    ours,
    theirs,
  )


def one_cpu():
  """Returns the mesh of one of the test's devices."""
  return jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
