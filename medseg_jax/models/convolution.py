"""Convolutions of images `[B, *S, C]` of any rank, in 3-D fast on CPU too.

XLA's 3-D convolution on CPU takes 3 to 10 times as long as a 2-D one of the
same work, so there a 2-D convolution of every slice computes what it gives to
each of the output slices that see it, and these are added up. For many voxels
XLA's gradient of the kernel is slow in its turn, 3 to 5 times slower than
matrix products of small blocks, which stay in the processor's cache; for few
voxels it compiles faster.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Voxels of the output: from how many on the kernel's gradient is made of
# products of blocks, and how many there are in a block.
_MANY_VOXELS = 2**15
_BLOCK_VOXELS = 2**11


def conv(features: int, kernel: Sequence[int], stride: Sequence[int], **kwargs):
  """Returns an `nn.Conv` that divides every axis by its stride exactly.

  Padding is symmetric for odd kernels, also with a stride, as in PyTorch.
  """
  return nn.Conv(
      features, tuple(kernel), tuple(stride),
      padding=[((k - 1) // 2, k // 2) for k in kernel],
      conv_general_dilated=_conv_3d if len(kernel) == 3 else None, **kwargs)


def _conv_3d(x, kernel, strides, padding, **kwargs):
  """Returns the 3-D convolution, on CPU by 2-D ones."""

  def whole(x, kernel):
    return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)

  by_slices = functools.partial(
      _by_slices, strides=tuple(strides), padding=tuple(map(tuple, padding)))
  return lax.platform_dependent(x, kernel, cpu=by_slices, default=whole)


def _by_slices(x, kernel, strides, padding):
  batch, depth = x.shape[:2]
  taps, features = kernel.shape[0], kernel.shape[-1]
  length = (depth // strides[0] - 1) * strides[0] + 1
  y = _conv_2d(
      x.reshape(batch * depth, *x.shape[2:]),
      jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:4], -1),
      strides[1:], padding[1:])
  y = y.reshape(batch, depth, *y.shape[1:])
  y = jnp.pad(y, [(0, 0), padding[0], (0, 0), (0, 0), (0, 0)])
  return sum(
      y[:, i:i + length:strides[0], ..., i * features:(i + 1) * features]
      for i in range(taps))


_lax_conv_2d = functools.partial(
    lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_2d(x, kernel, strides, padding):
  """Returns the 2-D convolution of `[N, H, W, C]`."""
  return _lax_conv_2d(x, kernel, strides, padding)


def _conv_2d_forward(x, kernel, strides, padding):
  return _lax_conv_2d(x, kernel, strides, padding), (x, kernel)


def _conv_2d_backward(strides, padding, saved, cotangent):
  x, kernel = saved
  if math.prod(cotangent.shape[:-1]) < _MANY_VOXELS:
    _, vjp = jax.vjp(lambda x, kernel: _lax_conv_2d(
        x, kernel, strides, padding), x, kernel)
    return vjp(cotangent)
  _, vjp = jax.vjp(lambda x: _lax_conv_2d(x, kernel, strides, padding), x)
  return (*vjp(cotangent),
          _kernel_gradient(x, cotangent, kernel, strides, padding))


_conv_2d.defvjp(_conv_2d_forward, _conv_2d_backward)


def _kernel_gradient(x, cotangent, kernel, strides, padding):
  """Returns the gradient of `_conv_2d` with respect to its kernel."""
  count, height, width, features = cotangent.shape
  taps, channels = kernel.shape[:2], x.shape[-1]
  slices = _divisor(count, _BLOCK_VOXELS // (height * width))
  rows = _divisor(height, _BLOCK_VOXELS // width)
  x = jnp.pad(x, [(0, 0), *padding, (0, 0)])
  # What the taps span on x for `rows` rows and a whole row of the output.
  spans = [(n - 1) * s + 1 for n, s in zip((rows, width), strides, strict=True)]
  high, wide = (span + k - 1 for span, k in zip(spans, taps, strict=True))

  def add_block(i, gradient):
    first, row = i // (height // rows) * slices, i % (height // rows) * rows
    patch = lax.dynamic_slice(
        x, (first, row * strides[0], 0, 0), (slices, high, wide, channels))
    seen = jnp.concatenate([
        patch[:, y:y + spans[0]:strides[0], z:z + spans[1]:strides[1]]
        for y in range(taps[0]) for z in range(taps[1])], -1)
    block = lax.dynamic_slice(
        cotangent, (first, row, 0, 0), (slices, rows, width, features))
    return gradient + jnp.einsum('nyxc,nyxf->cf', seen, block,
                                 preferred_element_type=jnp.float32)

  gradient = lax.fori_loop(
      0, count // slices * (height // rows), add_block,
      jnp.zeros((taps[0] * taps[1] * channels, features), jnp.float32))
  return gradient.reshape(kernel.shape).astype(kernel.dtype)


def _divisor(number, limit):
  """Returns the largest divisor of `number` up to `limit`, at least 1."""
  return max(d for d in range(1, number + 1)
             if number % d == 0 and d <= max(limit, 1))
