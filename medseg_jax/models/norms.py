"""Normalisations of images `[B, *S, C]`, with statistics in float32 always."""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

from medseg_jax.models import folding

MAX_GROUPS = 8
EPSILON = 1e-5


Activation = Callable[[jax.Array], jax.Array]
_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def standardize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axes: tuple[int, ...],
  num_groups: int,
  activation: Activation | None = None,
  voxels: int = 1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns `x` with mean `bias` and deviation `scale`, its mean and variance.

  The gradient is written down (Ioffe & Szegedy, Batch normalization, 2015): it
  keeps only `x` and reads it twice, once for sums and once for the result, each
  time with the activation's own gradient, where the derived one keeps more and
  makes more passes. It is for the first result alone: the mean and variance are
  to be taken as constants.

  Args:
    x: `[B, *S, C]`, of any float type.
    scale: `[C]` float32.
    bias: `[C]` float32.
    axes: what the statistics are taken over, besides the channels of a group.
    num_groups: of channels with common statistics; divides C.
    activation: of each value by itself, to be applied to the first result; None
      for none.
    voxels: how many of these C / voxels channels each have been folded into C;
      statistics are over all of them. `scale` and `bias` repeat so often.

  Returns:
    `x`, and mean and variance, float32, with size 1 along `axes`.
  """
  return _standardize(x, scale, bias, axes, num_groups, activation, voxels)[0]


def _standardize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axes: tuple[int, ...],
  num_groups: int,
  activation: Activation | None,
  voxels: int,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
  mean, variance = _statistics(x, axes, num_groups, voxels)
  factor = lax.rsqrt(variance + EPSILON)
  y = _spread(x, mean, factor * scale, bias)
  if activation is not None:
    y = activation(y)
  return (y, mean, variance), (x, scale, bias, mean, factor)


def _spread(
  x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array
) -> jax.Array:
  return ((x.astype(jnp.float32) - mean) * factor + bias).astype(x.dtype)


def _statistics(
  x: jax.Array, axes: tuple[int, ...], num_groups: int, voxels: int
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and variance, float32, with size 1 along `axes`."""
  wide = x.astype(jnp.float32)
  group_mean = functools.partial(
    _group_mean, axes=axes, num_groups=num_groups, voxels=voxels
  )
  if x.dtype == jnp.float32:
    mean = group_mean(wide)
    return mean, group_mean(jnp.square(wide - mean))
  # In one pass. What the difference of these two loses of a small variance is
  # less than the rounding of `x` to so few digits has added to it.
  count = math.prod(x.shape[axis] for axis in axes)
  mean, square = (
    group_mean(total / count, axes=())
    for total in _two_sums(wide, jnp.square(wide), axes)
  )
  return mean, jnp.maximum(square - jnp.square(mean), 0)


def _two_sums(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> _Pair:
  """Returns the sums of two arrays, float32, with size 1 along `axes`.

  On a GPU as one reduction: a large one is two kernels, and of two that share
  what they read XLA joins the first kernels alone. Not along axes that devices
  share, over which it would gather every device's sums.
  """
  mesh = jax.sharding.get_abstract_mesh()
  alone = mesh.empty or mesh.size == 1
  if not alone and (0 in axes or mesh.size > mesh.shape.get('data', 1)):
    return _each_sum(a, b, axes)
  return lax.platform_dependent(
    a,
    b,
    cuda=functools.partial(_sums_at_once, axes=axes),
    default=functools.partial(_each_sum, axes=axes),
  )


def _each_sum(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> _Pair:
  return a.sum(axes, keepdims=True), b.sum(axes, keepdims=True)


def _sums_at_once(a: jax.Array, b: jax.Array, axes: tuple[int, ...]) -> _Pair:
  def add(a: _Pair, b: _Pair) -> _Pair:
    return a[0] + b[0], a[1] + b[1]

  zero = jnp.zeros((), jnp.float32)
  sums = lax.reduce((a, b), (zero, zero), add, axes)
  first, second = (jnp.expand_dims(total, axes) for total in sums)
  return first, second


def _standardize_backward(
  axes: tuple[int, ...],
  num_groups: int,
  activation: Activation | None,
  voxels: int,
  saved: tuple[jax.Array, ...],
  cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  x, scale, bias, mean, factor = saved

  def read(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `x` and the cotangent before the activation, in float32."""
    if activation is not None:
      y = _spread(x, mean, factor * scale, bias)
      _, pull_back = jax.vjp(activation, y)
      (cotangent,) = pull_back(cotangent)
    return x.astype(jnp.float32), cotangent.astype(jnp.float32)

  wide, cotangent = read(x, cotangents[0])
  # As sums over x itself, which is in memory, not over what is made of it.
  total, product = _two_sums(cotangent, cotangent * wide, axes)
  weighted = (product - mean * total) * factor
  if x.dtype != jnp.float32:
    # Read again: what was read above would be kept in float32 meanwhile.
    x, again, total, weighted = lax.optimization_barrier(
      (x, cotangents[0], total, weighted)
    )
    wide, cotangent = read(x, again)
  count = math.prod(x.shape[axis] for axis in axes)
  inside = functools.partial(
    _group_mean, axes=(), num_groups=num_groups, voxels=voxels
  )
  mean_total, mean_weighted = (
    inside(value * scale) / count for value in (total, weighted)
  )
  slope = -factor * factor * mean_weighted
  gradient = (
    cotangent * (factor * scale)
    + wide * slope
    - (factor * mean_total + mean * slope)
  )
  rest = tuple(range(x.ndim - 1))
  return (gradient.astype(x.dtype), weighted.sum(rest), total.sum(rest))


standardize.defvjp(_standardize, _standardize_backward)


def _group_mean(
  values: jax.Array, axes: tuple[int, ...], num_groups: int, voxels: int
) -> jax.Array:
  """Returns the means over `axes` and over each group of channels, spread out.

  Taken for each channel and then merged: reducing over a split channel axis is
  slow.
  """
  means = values.mean(axes, keepdims=True) if axes else values
  channels = values.shape[-1]
  if voxels > 1:
    split = means.reshape(*means.shape[:-1], voxels, num_groups, -1)
    split = jnp.broadcast_to(split.mean((-3, -1), keepdims=True), split.shape)
    return split.reshape(means.shape)
  if num_groups == channels:
    return means
  split = means.reshape(*means.shape[:-1], num_groups, -1)
  split = jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape)
  return split.reshape(means.shape)


def _standardize_cells(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axes: tuple[int, ...],
  num_groups: int,
  activation: Activation | None,
  folded: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what `standardize` does, computed on cells where `folded`."""
  channels = x.shape[-1]
  n = folding.voxels(x.shape[-2], channels) if folded else 1
  if n == 1:
    return standardize(x, scale, bias, axes, num_groups, activation)
  scale, bias = jnp.tile(scale, n), jnp.tile(bias, n)
  y, mean, variance = standardize(
    folding.fold(x, n), scale, bias, axes, num_groups, activation, n
  )
  y = folding.unfold(y, n)
  return y, mean[..., :channels], variance[..., :channels]


class BatchNorm(nn.Module):
  """Normalisation of each channel over the batch (Ioffe & Szegedy 2015).

  Running statistics, with momentum 0.9, take its place in inference.

  Attributes:
    train: whether to use and learn the batch's own statistics.
    dtype: of the result.
    scale_init: of the factor for each channel.
    activation: what follows; None for nothing.
    folded: whether to compute it on cells of `folding`.
  """

  train: bool
  dtype: str = 'float32'
  scale_init: initializers.Initializer = initializers.ones
  activation: Activation | None = None
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
    variance = self.variable('batch_stats', 'var', jnp.ones, (channels,))
    scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
    bias = self.param('bias', initializers.zeros, (channels,), jnp.float32)
    if not self.train:
      factor = lax.rsqrt(variance.value + EPSILON) * scale
      x = (x.astype(jnp.float32) - mean.value) * factor + bias
      x = x.astype(self.dtype)
      return x if self.activation is None else self.activation(x)
    axes = tuple(range(x.ndim - 1))
    x, new_mean, new_variance = _standardize_cells(
      x.astype(self.dtype),
      scale,
      bias,
      axes,
      channels,
      self.activation,
      self.folded,
    )
    if not self.is_initializing():
      for stored, new in ((mean, new_mean), (variance, new_variance)):
        stored.value = 0.9 * stored.value + 0.1 * new.reshape(channels)
    return x


class GroupNorm(nn.Module):
  """Normalisation over the voxels and a group of channels of each example.

  Wu & He, Group normalization, 2018. One channel a group is instance
  normalisation (Ulyanov et al. 2016).

  Attributes:
    num_groups: divides the channels.
    dtype: of the result.
    scale_init: of the factor for each channel.
    activation: what follows; None for nothing.
    folded: whether to compute it on cells of `folding`.
  """

  num_groups: int
  dtype: str = 'float32'
  scale_init: initializers.Initializer = initializers.ones
  activation: Activation | None = None
  folded: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    _, *size, channels = x.shape
    if math.prod(size) * (channels // self.num_groups) == 1:
      raise ValueError(
        f'nothing to normalise over in a feature map of size {tuple(size)}: '
        'use a larger image, fewer stages or another norm'
      )
    scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
    bias = self.param('bias', initializers.zeros, (channels,), jnp.float32)
    axes = tuple(range(1, x.ndim - 1))
    return _standardize_cells(
      x.astype(self.dtype),
      scale,
      bias,
      axes,
      self.num_groups,
      self.activation,
      self.folded,
    )[0]


def _batch_norm(
  channels: int,
  train: bool,
  dtype: str,
  name: str,
  scale_init: initializers.Initializer,
  activation: Activation | None,
  folded: bool,
) -> BatchNorm:
  del channels
  return BatchNorm(train, dtype, scale_init, activation, folded, name=name)


def _instance_norm(
  channels: int,
  train: bool,
  dtype: str,
  name: str,
  scale_init: initializers.Initializer,
  activation: Activation | None,
  folded: bool,
) -> GroupNorm:
  del train
  return GroupNorm(channels, dtype, scale_init, activation, folded, name=name)


def _group_norm(
  channels: int,
  train: bool,
  dtype: str,
  name: str,
  scale_init: initializers.Initializer,
  activation: Activation | None,
  folded: bool,
) -> GroupNorm:
  del train
  groups = math.gcd(channels, MAX_GROUPS)
  return GroupNorm(groups, dtype, scale_init, activation, folded, name=name)


NORMS: dict[str, Callable[..., nn.Module]] = {
  'batch': _batch_norm,
  'instance': _instance_norm,
  'group': _group_norm,
}
