"""The formulas on which segmentation networks rest, each as the code has it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import signal

from medseg_jax import losses


def _convolve(f, g):
  """Returns (f * g)[n] = sum_m f[m] g[n - m] in 2-D, over the full support."""
  shape = [a + b - 1 for a, b in zip(f.shape, g.shape, strict=True)]
  out = np.zeros(shape)
  for n in np.ndindex(*shape):
    for m in np.ndindex(*f.shape):
      k = (n[0] - m[0], n[1] - m[1])
      if 0 <= k[0] < g.shape[0] and 0 <= k[1] < g.shape[1]:
        out[n] += f[m] * g[k]
  return out


def _network_convolution(image, kernel, pad):
  """Returns what a convolution layer computes for one channel."""
  return jax.lax.conv_general_dilated(
    jnp.asarray(image, jnp.float32)[None, ..., None],
    jnp.asarray(kernel, jnp.float32)[..., None, None],
    window_strides=(1, 1),
    padding=[(p, p) for p in pad],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=jax.lax.Precision.HIGHEST,
  )[0, ..., 0]


def test_discrete_convolution():
  rng = np.random.default_rng(0)
  image, kernel = rng.normal(size=(6, 5)), rng.normal(size=(3, 2))
  by_formula = _convolve(image, kernel)
  np.testing.assert_allclose(by_formula, signal.convolve2d(image, kernel))
  # A network's convolution is a cross-correlation: it does not flip the kernel.
  # It equals the convolution with the kernel flipped along both axes.
  pad = (2, 1)
  correlation = _network_convolution(image, kernel, pad)
  np.testing.assert_allclose(
    correlation, signal.correlate2d(image, kernel), atol=1e-5
  )
  np.testing.assert_allclose(
    correlation, _convolve(image, kernel[::-1, ::-1]), atol=1e-5
  )
  assert np.abs(correlation - by_formula).max() > 0.1
  np.testing.assert_allclose(
    _network_convolution(image, kernel[::-1, ::-1], pad), by_formula, atol=1e-5
  )


def test_cross_entropy():
  # L = -sum_c y_c log p_c, with p = softmax(logits) and y the one-hot label.
  probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
  labels = np.array([0, 1])
  one_hot = np.array([[1, 0, 0], [0, 1, 0]])
  by_formula = -(one_hot * np.log(probs)).sum(-1)
  np.testing.assert_allclose(by_formula, [0.35667494, 2.30258509])
  # One voxel an example, so that the mean over voxels is the formula itself.
  found = losses.cross_entropy(np.log(probs)[:, None], labels[:, None])
  np.testing.assert_allclose(found, by_formula, rtol=1e-6)


def test_gradient_step():
  # theta <- theta - alpha grad L, for L the mean cross-entropy of a softmax
  # regression: grad L = x^T (softmax(x theta) - y) / N.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(8, 4)).astype(np.float32)
  theta = rng.normal(size=(4, 3)).astype(np.float32)
  labels = rng.integers(0, 3, 8)
  alpha = 0.1

  @jax.jit
  def loss_fn(theta):
    logits = jnp.matmul(x, theta, precision=jax.lax.Precision.HIGHEST)
    return losses.cross_entropy(logits[None], labels[None])[0]

  exp = np.exp(x @ theta)
  probs = exp / exp.sum(-1, keepdims=True)
  grad = x.T @ (probs - np.eye(3)[labels]) / len(x)
  tx = optax.sgd(alpha)
  updates, _ = tx.update(jax.grad(loss_fn)(theta), tx.init(theta))
  stepped = optax.apply_updates(theta, updates)
  np.testing.assert_allclose(stepped, theta - alpha * grad, rtol=1e-5)
  assert loss_fn(stepped) < loss_fn(theta)
