"""Convolutions on CPU against XLA's own, with gradients, over many shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec
from model_cases import (
  as_on_a_gpu,
  check_convolution,
  conv_ref,
  image_of,
  one_cpu,
  random_variables,
)

from medseg_jax import models
from medseg_jax.models import convolution
from medseg_jax.models.cpu import onednn
from medseg_jax.runtime import process, sharding


@pytest.fixture(autouse=True)
def nothing_kept_on_disk():
  # Where compiled programs are kept, as the other tests do, XLA's own is used.
  with process.not_kept(one_cpu()):
    yield


def test_a_program_that_is_kept_on_disk_does_without_onednn():
  module = convolution.conv(
    3, (3, 3), (1, 1), use_bias=False, convolutions='onednn'
  )
  x = image_of(2, 6, 6, 2)
  weights = random_variables(module, x)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  assert jax.config.jax_compilation_cache_dir
  text = jax.jit(module.apply).lower(weights, x).as_text()
  assert '__onednn' not in text


def test_onednn_is_used_where_the_tests_run():
  # x86-64 and a known release; elsewhere XLA's own convolution takes over.
  assert not onednn.why_not()
  model = models.create_model(
    'unet', 2, features=4, depth=2, convolutions='onednn'
  )
  image = image_of(1, 8, 8, 1)
  weights = random_variables(model, image)
  text = jax.jit(model.apply).lower(weights, image).as_text()
  assert text.count('__onednn$convolution') == 8  # 6, the upsampling, the head
  assert 'stablehlo.convolution' not in text


def test_without_onednn_the_convolution_is_xlas_own(monkeypatch):
  module = convolution.conv(
    3, (3, 3), (1, 1), use_bias=False, convolutions='onednn'
  )
  x = image_of(2, 6, 6, 2)
  weights = random_variables(module, x)
  expected = jax.jit(module.apply)(weights, x)
  monkeypatch.setattr(onednn, 'usable', lambda: False)
  own = jax.jit(lambda weights, x: module.apply(weights, x))
  assert '__onednn' not in own.lower(weights, x).as_text()
  np.testing.assert_allclose(own(weights, x), expected, atol=1e-5)


def test_available_says_no_where_jaxlib_has_no_such_call(monkeypatch):
  monkeypatch.setattr(onednn, '_call', lambda *args: 1 / 0)
  assert onednn.why_not.__wrapped__()
  monkeypatch.setattr(
    onednn, '_call', lambda name, config, shape, *_: jnp.zeros(shape)
  )
  assert onednn.why_not.__wrapped__()  # it is there, but wrong


def test_several_devices_share_xlas_own_convolution():
  mesh = sharding.create_mesh(data=4, spatial=2)
  module = convolution.conv(
    3, (3, 3), (1, 1), use_bias=False, convolutions='onednn'
  )
  x = image_of(4, 8, 6, 2)
  weights = random_variables(module, x)
  expected = module.apply(weights, x)
  placed = jax.device_put(x, sharding.patches(mesh))
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(lambda w, x: module.apply(w, x)).lower(weights, placed).compile()
    )
    found = compiled(jax.device_put(weights, sharding.replicated(mesh)), placed)
  assert '__onednn' not in compiled.as_text()
  assert found.sharding.spec[:2] == PartitionSpec('data', 'spatial')[:2]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def _cases():
  """Yields (image, kernel, strides, padding) over ranks, sizes and taps."""
  rng = np.random.default_rng(0)
  for rank in (1, 2, 3):
    for n in range(8):
      taps = rng.integers(1, 5, rank)
      strides = tuple(map(int, rng.integers(1, 4, rank)))
      padding = tuple(((k - 1) // 2, k // 2) for k in taps.tolist())
      if n % 2:
        padding = tuple(
          (int(rng.integers(k)), int(rng.integers(k))) for k in taps
        )
      size = rng.integers(4, 10, rank)
      batch, channels, features = rng.integers(1, 6, 3)
      yield (
        (batch, *size, channels),
        (*taps, channels, features),
        strides,
        padding,
      )


@pytest.mark.parametrize(
  'shape, kernel_shape, strides, padding', list(_cases())
)
def test_convolution_and_gradients_equal_lax(
  shape, kernel_shape, strides, padding
):
  check_convolution(shape, kernel_shape, strides, padding)


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_matmul_and_gradients_equal_numpy(rank):
  x, matrix = image_of(2, *(3, 4, 5)[:rank], 6), image_of(6, 4, seed=1)
  matmul = functools.partial(convolution.matmul, convolutions='onednn')
  y, vjp = jax.vjp(jax.jit(matmul), x, matrix)
  cotangent = np.asarray(image_of(*y.shape, seed=2))
  dx, dmatrix = vjp(cotangent)
  x, matrix = np.asarray(x), np.asarray(matrix)
  np.testing.assert_allclose(y, x @ matrix, atol=1e-5)
  np.testing.assert_allclose(dx, cotangent @ matrix.T, atol=1e-5)
  np.testing.assert_allclose(
    dmatrix, x.reshape(-1, 6).T @ cotangent.reshape(-1, 4), atol=1e-4
  )


@pytest.mark.parametrize(
  'shape, stride',
  [
    ((2, 7, 12, 200, 2), (1, 1, 1)),  # several rows of a slice in a product
    ((1, 60, 42, 44, 2), (3, 1, 1)),  # one slice
    ((2, 80, 15, 15, 4), (1, 1, 1)),  # several slices
    ((1, 2, 28, 2400, 1), (1, 2, 2)),  # one row, of every second voxel
    ((1, 1, 9, 4000, 1), (1, 1, 1)),  # a row is more than a product's share
  ],
)
def test_kernel_gradient_of_large_slices_equals_lax(shape, stride):
  x = image_of(*shape)
  kernel = image_of(3, 3, 3, shape[-1], 3)
  padding = [(1, 1)] * 3
  module = convolution.conv(
    3, (3, 3, 3), stride, use_bias=False, convolutions='onednn'
  )

  def gradient(fn):
    y, vjp = jax.vjp(fn, kernel)
    return vjp(image_of(*y.shape, seed=2))[0]

  ours, theirs = jax.jit(
    lambda: (
      gradient(lambda k: module.apply({'params': {'kernel': k}}, x)),
      gradient(lambda k: conv_ref(x, k, stride, padding)),
    )
  )()
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-3)


def test_3d_convolution_under_vmap_and_in_bfloat16():
  x = image_of(3, 4, 4, 4, 2)
  module = convolution.conv(
    3,
    (3, 3, 3),
    (1, 1, 1),
    use_bias=False,
    dtype='bfloat16',
    convolutions='onednn',
  )
  weights = random_variables(module, x)

  @jax.jit
  def both():
    def loss(weights, x):
      return module.apply(weights, x).astype(jnp.float32).sum()

    whole = jax.grad(loss)(weights, x)
    single = jax.vmap(lambda x: jax.grad(loss)(weights, x[None]))(x)
    exact = jax.grad(
      lambda k: conv_ref(
        x.astype(jnp.bfloat16).astype(jnp.float32), k, (1, 1, 1), 'SAME'
      ).sum()
    )(weights['params']['kernel'])
    return whole['params']['kernel'], single['params']['kernel'].sum(0), exact

  whole, single, exact = both()
  np.testing.assert_allclose(whole, exact, rtol=2e-2, atol=0.1)
  np.testing.assert_allclose(single, exact, rtol=2e-2, atol=0.1)


@pytest.mark.parametrize('shape', [(2, 4, 6, 5), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize('platform', ['cuda', 'cpu'])
def test_head_and_its_gradients_are_single_precision(
  platform, shape, monkeypatch
):
  if platform == 'cuda':
    monkeypatch.setattr(lax, 'platform_dependent', as_on_a_gpu)
  x = image_of(*shape).astype(jnp.bfloat16)
  cotangent = image_of(*shape[:-1], 3, seed=1)
  layer = convolution.head(3, dtype='bfloat16', convolutions='xla', name='head')
  weights = random_variables(layer, x)

  @jax.jit
  def run(weights, x):
    y, pull_back = jax.vjp(layer.apply, weights, x)
    return y, *pull_back(cotangent)

  logits, of_weights, of_x = run(weights, x)
  assert logits.dtype == jnp.float32 and of_x.dtype == jnp.bfloat16
  wide, kernel, cotangent = (
    np.asarray(value, np.float64)
    for value in (x, weights['params']['kernel'], cotangent)
  )
  bias = np.asarray(weights['params']['bias'])
  np.testing.assert_allclose(logits, wide @ kernel + bias, atol=1e-5)
  np.testing.assert_allclose(
    of_weights['params']['kernel'],
    wide.reshape(-1, 5).T @ cotangent.reshape(-1, 3),
    atol=1e-5,
  )
  np.testing.assert_allclose(
    of_weights['params']['bias'], cotangent.reshape(-1, 3).sum(0), atol=1e-5
  )
  np.testing.assert_allclose(
    of_x.astype(jnp.float32), cotangent @ kernel.T, rtol=2**-8, atol=1e-5
  )


def test_gradient_of_a_kernel_as_it_lies_on_a_gpu(monkeypatch):
  x = image_of(2, 6, 6, 3)
  layer = convolution.conv(4, (3, 3), (1, 1), use_bias=False, dtype='bfloat16')
  weights = random_variables(layer, x)

  def gradient(weights):
    def loss(weights):
      return jnp.square(layer.apply(weights, x).astype(jnp.float32)).sum()

    return jax.grad(loss)(weights)['params']['kernel']

  plain = jax.jit(gradient)(weights)
  monkeypatch.setattr(lax, 'platform_dependent', as_on_a_gpu)
  turned = jax.jit(lambda weights: gradient(weights))
  assert 'optimization_barrier' in turned.lower(weights).as_text()
  # In half precision: without the barrier XLA on CPU rounds less.
  np.testing.assert_allclose(
    turned(weights), plain, atol=2**-7 * np.abs(plain).max()
  )
