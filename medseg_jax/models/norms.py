"""Normalisations of images `[B, *S, C]`, with statistics in float32 always."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

MAX_GROUPS = 8


class GroupNorm(nn.Module):
  """Normalisation over the voxels and a group of channels of each example.

  Wu & He, Group normalization, 2018. One channel a group is instance
  normalisation (Ulyanov et al. 2016). Statistics are taken for each channel and
  then merged: reducing over a split channel axis is slow.

  Attributes:
    num_groups: divides the channels.
    dtype: of the result.
    scale_init: of the factor for each channel.
  """

  num_groups: int
  dtype: str = 'float32'
  scale_init: Callable = initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, *size, channels = x.shape
    if math.prod(size) * (channels // self.num_groups) == 1:
      raise ValueError(
          f'nothing to normalise over in a feature map of size {tuple(size)}: '
          'use a larger image, fewer stages or another norm')
    x = x.astype(jnp.float32)
    axes = tuple(range(1, x.ndim - 1))

    def group_mean(values):
      means = values.mean(axes).reshape(batch, self.num_groups, -1)
      means = jnp.broadcast_to(means.mean(-1, keepdims=True), means.shape)
      return means.reshape(batch, *(1 for _ in size), channels)

    x -= group_mean(x)
    scale = self.param('scale', self.scale_init, (channels,), jnp.float32)
    bias = self.param('bias', initializers.zeros, (channels,), jnp.float32)
    x = x * (lax.rsqrt(group_mean(jnp.square(x)) + 1e-5) * scale) + bias
    return x.astype(self.dtype)


def _batch_norm(channels, train, dtype, name, scale_init):
  del channels
  return nn.BatchNorm(use_running_average=not train, momentum=0.9,
                      epsilon=1e-5, dtype=dtype, name=name,
                      scale_init=scale_init)


def _instance_norm(channels, train, dtype, name, scale_init):
  del train
  return GroupNorm(channels, dtype, scale_init, name=name)


def _group_norm(channels, train, dtype, name, scale_init):
  del train
  return GroupNorm(math.gcd(channels, MAX_GROUPS), dtype, scale_init,
                   name=name)


NORMS = {
    'batch': _batch_norm,
    'instance': _instance_norm,
    'group': _group_norm,
}
