"""The count of operations against counts by hand and by loops."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from medseg_jax.benchmarking.flops import count_flops
from medseg_jax.models import create_model


def shaped(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def products(size, taps, stride, low, high):
  """Returns the pairs of an output voxel and a tap that lies on the image."""
  per_axis = []
  for n, k, s, before, after in zip(size, taps, stride, low, high, strict=True):
    outputs = range((n + before + after - k) // s + 1)
    hits = [
      (o, t)
      for o, t in itertools.product(outputs, range(k))
      if 0 <= o * s + t - before < n
    ]
    per_axis.append(len(hits))
  total = 1
  for count in per_axis:
    total *= count
  return total


@pytest.mark.parametrize(
  ('size', 'taps', 'stride', 'low', 'high'),
  [
    ((8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((9, 7), (3, 5), (2, 1), (1, 2), (1, 2)),
    ((6, 4), (2, 2), (2, 2), (0, 0), (0, 0)),
    ((5, 6, 7), (3, 1, 3), (1, 2, 2), (1, 0, 1), (1, 0, 1)),
  ],
)
def test_a_convolution_and_its_gradients_have_the_same_work(
  size, taps, stride, low, high
):
  spatial = 'DHW'[-len(size) :]

  def conv(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      stride,
      list(zip(low, high, strict=True)),
      dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
    )

  x, kernel = shaped(2, *size, 3), shaped(*taps, 3, 4)
  work = 2 * 2 * 3 * 4 * products(size, taps, stride, low, high)
  assert count_flops(conv, x, kernel) == work

  def gradient(*wanted):
    def fn(x, kernel):
      y, vjp = jax.vjp(conv, x, kernel)
      return [vjp(y)[i] for i in wanted]

    return count_flops(fn, x, kernel)

  assert gradient(0) == gradient(1) == 2 * work
  assert gradient(0, 1) == 3 * work


def test_groups_share_the_channels():
  def conv(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      'VALID',
      feature_group_count=2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  # 6x6 outputs of 8 features, each of 9 taps on 2 of the 4 channels.
  work = 2 * 36 * 8 * 9 * 2
  x, kernel = shaped(1, 8, 8, 4), shaped(3, 3, 2, 8)
  assert count_flops(conv, x, kernel) == work

  def gradients(x, kernel):
    return jax.grad(lambda *a: conv(*a).sum(), (0, 1))(x, kernel)

  # The sum's gradient needs no forward pass.
  assert count_flops(gradients, x, kernel) == 2 * work


def test_matrix_products_in_loops_branches_and_calls():
  a = shaped(5, 6, 7)
  b = shaped(5, 7, 3)
  work = 2 * 5 * 6 * 7 * 3
  product = jax.jit(lambda a, b: a @ b)
  assert count_flops(product, a, b) == work

  def repeated(a, b):
    return lax.scan(lambda carry, _: (carry, a @ b), 0, None, length=4)[1]

  def until(a, b):
    return lax.while_loop(
      lambda c: c.sum() < 1, lambda c: c + a @ b, jnp.zeros((5, 6, 3))
    )

  def either(a, b):
    return lax.cond(
      a.sum() > 0, lambda: (a @ b) @ jnp.ones((3, 3)), lambda: a @ b
    )

  def here(a, b):
    return lax.platform_dependent(
      a,
      b,
      cpu=lambda a, b: (a @ b) @ jnp.ones((3, 3)),
      default=lambda a, b: a @ b,
    )

  def unused(a, b):
    a @ b
    return a

  assert count_flops(repeated, a, b) == 4 * work
  assert count_flops(until, a, b) == work
  assert count_flops(either, a, b) == work + 2 * 5 * 6 * 3 * 3
  assert count_flops(here, a, b) == work
  twice = shaped(2, *a.shape), shaped(2, *b.shape)
  assert count_flops(jax.vmap(here), *twice) == 2 * work
  assert count_flops(unused, a, b) == 0
  remat = jax.checkpoint(lambda a, b: jnp.sin(a @ b))
  forward_twice = jax.grad(lambda a, b: remat(a, b).sum(), (0, 1))
  assert count_flops(forward_twice, a, b) == 3 * work


def test_a_network_on_this_backend():
  """By hand; the layers as they stand, whatever computes them here."""
  model = create_model('unet', 3, features=4, depth=2)
  image = shaped(2, 8, 8, 1)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  arguments = variables['params'], variables['batch_stats'], image

  def loss(params, batch_stats, image):
    logits, _ = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      image,
      train=True,
      mutable=['batch_stats'],
    )
    return (logits**2).sum()

  def conv(size, channels, features):
    along = 3 * size - 2  # taps on the image, of all voxels of an axis
    return 2 * 2 * along**2 * channels * features

  first = conv(8, 1, 4)
  rest = (
    conv(8, 4, 4)  # the first stage
    + conv(4, 4, 8)
    + conv(4, 8, 8)  # the second
    + 2 * 2 * 64 * 8 * 4  # the transposed convolution
    + conv(8, 8, 4)
    + conv(8, 4, 4)
    + 2 * 2 * 64 * 4 * 3  # the head
  )
  assert count_flops(loss, *arguments) == first + rest
  # Nothing needs the gradient with respect to the image.
  assert count_flops(jax.grad(loss), *arguments) == 2 * first + 3 * rest


def test_the_compiler_counts_about_as_many():
  layer = nn.Conv(16, (3, 3))
  image = jnp.zeros((4, 32, 32, 16))
  variables = jax.eval_shape(layer.init, jax.random.key(0), image)
  compiled = jax.jit(layer.apply).lower(variables, image).compile()
  ours = count_flops(layer.apply, variables, image)
  assert ours == pytest.approx(compiled.cost_analysis()['flops'], rel=0.02)
