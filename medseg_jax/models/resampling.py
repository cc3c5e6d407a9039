"""Pooling and upsampling of images `[B, *S, C]` of any rank.

A stride or factor is one number for each spatial axis. Written as reshapes: the
gradients of XLA's own max-pooling (select-and-scatter) and transposed
convolution are many times slower on CPU.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array, stride: Sequence[int]) -> jax.Array:
  """Returns the maximum of every cell of `stride` voxels, `[B, *S/stride, C]`.

  The gradient of tied maxima is shared between them and sums to one.
  """
  for axis, factor in enumerate(stride, start=1):
    cells = x.reshape(
      *x.shape[:axis], x.shape[axis] // factor, factor, *x.shape[axis + 1 :]
    )
    x = functools.reduce(
      jnp.maximum,
      [
        lax.index_in_dim(cells, i, axis + 1, keepdims=False)
        for i in range(factor)
      ],
    )
  return x


def mean_pool(x: jax.Array, stride: Sequence[int]) -> jax.Array:
  """Returns the mean of every cell of `stride` voxels, `[B, *S/stride, C]`."""
  return _cells(x, stride).mean(range(2, 2 * len(stride) + 1, 2))


def _cells(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `x` with each spatial axis split in two, `(n / factor, factor)`."""
  shape = [x.shape[0]]
  for n, factor in zip(x.shape[1:-1], factors, strict=True):
    shape += [n // factor, factor]
  return x.reshape(*shape, x.shape[-1])


def upsample_nearest(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `x` with every voxel repeated `factors` times along its axes."""
  batch, *size, channels = x.shape
  shape = [batch]
  for n, factor in zip(size, factors, strict=True):
    shape += [n, factor]
  x = jnp.expand_dims(x, range(2, 2 * len(size) + 1, 2))
  x = jnp.broadcast_to(x, (*shape, channels))
  return x.reshape(
    batch, *(n * f for n, f in zip(size, factors, strict=True)), channels
  )


def upsample_linear(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `x` linearly interpolated between voxel centres, edges repeated.

  The same as `jax.image.resize(..., 'linear')`, without its matrix products.
  """
  for axis, factor in enumerate(factors, start=1):
    n = x.shape[axis]
    if factor == 1:
      continue
    before = jnp.concatenate(
      [
        lax.slice_in_dim(x, 0, 1, axis=axis),
        lax.slice_in_dim(x, 0, n - 1, axis=axis),
      ],
      axis,
    )
    after = jnp.concatenate(
      [
        lax.slice_in_dim(x, 1, n, axis=axis),
        lax.slice_in_dim(x, n - 1, n, axis=axis),
      ],
      axis,
    )
    parts = []
    for i in range(factor):
      offset = (i + 0.5) / factor - 0.5  # from the centre of the voxel
      other = before if offset < 0 else after
      parts.append(x * (1 - abs(offset)) + other * abs(offset))
    shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
    x = jnp.stack(parts, axis + 1).reshape(shape)
  return x


def space_to_depth(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `[B, *(S/factors), prod(factors)*C]`: a cell's voxels as channels.

  The channels are ordered `(*factors, C)`, the last axis fastest.
  """
  rank = len(factors)
  x = _cells(x, factors)
  x = x.transpose(
    0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1
  )
  return x.reshape(*x.shape[: rank + 1], -1)


def depth_to_space(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `[B, *(S*factors), C]`, the inverse of `space_to_depth`."""
  batch, *size, channels = x.shape
  rank = len(size)
  x = x.reshape(batch, *size, *factors, channels // math.prod(factors))
  pairs = [(axis, axis + rank) for axis in range(1, rank + 1)]
  x = x.transpose(0, *(axis for pair in pairs for axis in pair), 2 * rank + 1)
  return x.reshape(
    batch, *(n * f for n, f in zip(size, factors, strict=True)), x.shape[-1]
  )


UPSAMPLE = {'nearest': upsample_nearest, 'linear': upsample_linear}
