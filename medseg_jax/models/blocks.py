"""Building blocks of the networks, for images `[B, *S, C]` of any rank.

Parameters are float32. `dtype` is what the convolutions compute in and return;
statistics of the normalisations are float32 always. A kernel size or stride is
a tuple with one number for each spatial axis. Resampling is written as
reshapes: the gradients of XLA's own max-pooling (select-and-scatter) and
transposed convolution are many times slower on CPU.
"""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

LEAKY_SLOPE = 0.01
MAX_GROUPS = 8
DTYPES = ('float32', 'bfloat16')

# A 1x1 convolution as the matrix product that it is, on any number of axes.
pointwise = nn.Dense

ACTIVATIONS = {
    'relu': jax.nn.relu,
    'leaky_relu': functools.partial(
        jax.nn.leaky_relu, negative_slope=LEAKY_SLOPE),
    'gelu': jax.nn.gelu,
    'swish': jax.nn.swish,
}


def check_divisible(size: Sequence[int], divisor: Sequence[int]) -> None:
  """Raises ValueError where an axis of `size` is not a multiple of `divisor`.

  The message names the nearest smaller and larger size that would do.
  """
  if all(n % d == 0 for n, d in zip(size, divisor, strict=True)):
    return
  below = tuple(max(n // d, 1) * d for n, d in zip(size, divisor, strict=True))
  above = tuple(-(-n // d) * d for n, d in zip(size, divisor, strict=True))
  nearest = f'{above}' if below == above else f'{below} and {above}'
  raise ValueError(f'image size {tuple(size)} is not divisible by the strides '
                   f'{tuple(divisor)} of the network; the nearest sizes that '
                   f'are: {nearest}')


def dtype_name(dtype) -> str:
  """Returns 'float32' or 'bfloat16' for that name or type, else ValueError."""
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = None
  if name not in DTYPES:
    raise ValueError(f'dtype={dtype!r} is not allowed: '
                     f'one of {", ".join(DTYPES)}')
  return name


def max_pool(x: jax.Array, stride: Sequence[int]) -> jax.Array:
  """Returns the maximum of every cell of `stride` voxels, `[B, *S/stride, C]`.

  The gradient of tied maxima is shared between them and sums to one.
  """
  for axis, factor in enumerate(stride, start=1):
    cells = x.reshape(*x.shape[:axis], x.shape[axis] // factor, factor,
                      *x.shape[axis + 1:])
    x = functools.reduce(jnp.maximum, [
        lax.index_in_dim(cells, i, axis + 1, keepdims=False)
        for i in range(factor)])
  return x


def mean_pool(x: jax.Array, stride: Sequence[int]) -> jax.Array:
  """Returns the mean of every cell of `stride` voxels, `[B, *S/stride, C]`."""
  return _cells(x, stride).mean(range(2, 2 * len(stride) + 1, 2))


def _cells(x, factors):
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
  return x.reshape(batch, *(n * f for n, f in zip(size, factors, strict=True)),
                   channels)


def upsample_linear(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `x` linearly interpolated between voxel centres, edges repeated.

  The same as `jax.image.resize(..., 'linear')`, without its matrix products.
  """
  for axis, factor in enumerate(factors, start=1):
    n = x.shape[axis]
    if factor == 1:
      continue
    before = jnp.concatenate([
        lax.slice_in_dim(x, 0, 1, axis=axis),
        lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([
        lax.slice_in_dim(x, 1, n, axis=axis),
        lax.slice_in_dim(x, n - 1, n, axis=axis)], axis)
    parts = []
    for i in range(factor):
      offset = (i + 0.5) / factor - 0.5  # from the centre of the voxel
      other = before if offset < 0 else after
      parts.append(x * (1 - abs(offset)) + other * abs(offset))
    shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1:])
    x = jnp.stack(parts, axis + 1).reshape(shape)
  return x


def space_to_depth(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `[B, *(S/factors), prod(factors)*C]`: a cell's voxels as channels.

  The channels are ordered `(*factors, C)`, the last axis fastest.
  """
  rank = len(factors)
  x = _cells(x, factors)
  x = x.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2),
                  2 * rank + 1)
  return x.reshape(*x.shape[:rank + 1], -1)


def depth_to_space(x: jax.Array, factors: Sequence[int]) -> jax.Array:
  """Returns `[B, *(S*factors), C]`, the inverse of `space_to_depth`."""
  batch, *size, channels = x.shape
  rank = len(size)
  x = x.reshape(batch, *size, *factors, channels // math.prod(factors))
  pairs = [(axis, axis + rank) for axis in range(1, rank + 1)]
  x = x.transpose(0, *(axis for pair in pairs for axis in pair), 2 * rank + 1)
  return x.reshape(batch, *(n * f for n, f in zip(size, factors, strict=True)),
                   x.shape[-1])


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the transposed convolution with stride = kernel size.

  Every voxel becomes a cell of voxels, each by a matrix of its own, which is a
  1x1 convolution and `depth_to_space`.

  Args:
    x: `[B, *S, C]`.
    kernel: `[*factors, C, features]`.

  Returns:
    `[B, *(S*factors), features]`.
  """
  matrix = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
  return depth_to_space(x @ matrix, kernel.shape[:-2])


def he_normal(activation: str, num_kernel_axes: int = 0):
  """Returns He's initialiser for weights before `activation`.

  He et al., Delving deep into rectifiers, 2015, equations 10 and 15.

  Args:
    activation: key of `ACTIVATIONS`.
    num_kernel_axes: leading axes that do not add up in the output, which are
      all the spatial ones of a transposed convolution with kernel = stride.
  """
  slope = LEAKY_SLOPE if activation == 'leaky_relu' else 0.0
  return initializers.variance_scaling(
      2 / (1 + slope**2), 'fan_in', 'truncated_normal',
      batch_axis=tuple(range(num_kernel_axes)))


def conv(features: int, kernel: Sequence[int], stride: Sequence[int], **kwargs):
  """Returns an `nn.Conv` that divides every axis by its stride exactly.

  Padding is symmetric for odd kernels, also with a stride, as in PyTorch.
  """
  return nn.Conv(
      features, tuple(kernel), tuple(stride),
      padding=[((k - 1) // 2, k // 2) for k in kernel],
      conv_general_dilated=_conv_3d if len(kernel) == 3 else None, **kwargs)


def _conv_3d(x, kernel, strides, padding, **kwargs):
  """Returns the 3-D convolution, on CPU as 2-D ones.

  XLA's 3-D convolution on CPU takes 3 to 10 times as long as a 2-D one of the
  same work, so there a 2-D convolution of every slice computes what it gives to
  each of the output slices that see it, and these are added up.
  """

  def by_slices(x, kernel):
    batch, depth = x.shape[:2]
    taps, features = kernel.shape[0], kernel.shape[-1]
    length = (depth // strides[0] - 1) * strides[0] + 1
    y = lax.conv_general_dilated(
        x.reshape(batch * depth, *x.shape[2:]),
        jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:4], -1),
        strides[1:], padding[1:], dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    y = y.reshape(batch, depth, *y.shape[1:])
    y = jnp.pad(y, [(0, 0), padding[0], (0, 0), (0, 0), (0, 0)])
    return sum(
        y[:, i:i + length:strides[0], ..., i * features:(i + 1) * features]
        for i in range(taps))

  def whole(x, kernel):
    return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)

  return lax.platform_dependent(x, kernel, cpu=by_slices, default=whole)


class GroupNorm(nn.Module):
  """Normalisation over the voxels and a group of channels of each example.

  Wu & He, Group normalization, 2018. One channel a group is instance
  normalisation (Ulyanov et al. 2016). Statistics are taken for each channel and
  then merged: reducing over a split channel axis is slow.

  Attributes:
    num_groups: divides the channels.
    dtype: of the result.
  """

  num_groups: int
  dtype: str = 'float32'

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
    scale = self.param('scale', initializers.ones, (channels,), jnp.float32)
    bias = self.param('bias', initializers.zeros, (channels,), jnp.float32)
    x = x * (lax.rsqrt(group_mean(jnp.square(x)) + 1e-5) * scale) + bias
    return x.astype(self.dtype)


def _batch_norm(channels, train, dtype, name):
  del channels
  return nn.BatchNorm(use_running_average=not train, momentum=0.9,
                      epsilon=1e-5, dtype=dtype, name=name)


def _instance_norm(channels, train, dtype, name):
  del train
  return GroupNorm(channels, dtype=dtype, name=name)


def _group_norm(channels, train, dtype, name):
  del train
  return GroupNorm(math.gcd(channels, MAX_GROUPS), dtype=dtype, name=name)


NORMS = {
    'batch': _batch_norm,
    'instance': _instance_norm,
    'group': _group_norm,
}


class Stage(nn.Module):
  """The convolutions at one resolution, each followed by norm and activation.

  Attributes:
    features: channels out.
    num_convs: number of convolutions.
    kernel: of every convolution.
    stride: of the first convolution.
    norm, activation: keys of `NORMS` and `ACTIVATIONS`.
    residual: adds the input to what enters the last activation (He et al.
      2016); where the shapes differ through the mean over each stride, a 1x1
      convolution and a norm.
    dropout: probability that a whole channel of an example is set to zero at
      the end (Tompson et al. 2015); neighbouring voxels are too alike for
      dropping single ones to have an effect.
    dtype: of the computation.
  """

  features: int
  num_convs: int
  kernel: tuple[int, ...]
  stride: tuple[int, ...]
  norm: str
  activation: str
  residual: bool
  dropout: float
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    ones = (1,) * len(self.kernel)
    activation = ACTIVATIONS[self.activation]
    init = he_normal(self.activation)

    def norm(x, name):
      return NORMS[self.norm](self.features, train, self.dtype, name)(x)

    shortcut = x
    for i in range(self.num_convs):
      if i:
        x = activation(x)
      x = conv(self.features, self.kernel, ones if i else self.stride,
               use_bias=False, dtype=self.dtype, kernel_init=init,
               name=f'conv_{i}')(x)
      x = norm(x, f'norm_{i}')
    if self.residual:
      if shortcut.shape != x.shape:
        shortcut = pointwise(
            self.features, use_bias=False, dtype=self.dtype, kernel_init=init,
            name='conv_shortcut')(mean_pool(shortcut, self.stride))
        shortcut = norm(shortcut, 'norm_shortcut')
      x += shortcut
    x = activation(x)
    if self.dropout:
      spatial = tuple(range(1, x.ndim - 1))
      x = nn.Dropout(self.dropout, broadcast_dims=spatial,
                     deterministic=not train)(x)
    return x


class Up(nn.Module):
  """Upsampling by `factors` to `features` channels.

  'transpose' is `transposed_conv`, kernel = stride. 'nearest' and 'linear'
  reduce the channels first, by a 1x1 convolution, which commutes with the
  interpolation and is cheaper at the coarse grid.
  """

  features: int
  factors: tuple[int, ...]
  method: str
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    taps = self.factors if self.method == 'transpose' else ()
    kernel = self.param('kernel', he_normal(self.activation, len(taps)),
                        (*taps, x.shape[-1], self.features), jnp.float32)
    bias = self.param('bias', initializers.zeros, (self.features,), jnp.float32)
    x, kernel, bias = (
        value.astype(self.dtype) for value in (x, kernel, bias))
    if self.method == 'transpose':
      return transposed_conv(x, kernel) + bias
    return UPSAMPLE[self.method](x @ kernel + bias, self.factors)


UPSAMPLE = {'nearest': upsample_nearest, 'linear': upsample_linear}
UP_METHODS = ('transpose', *UPSAMPLE)


class AttentionGate(nn.Module):
  """A skip connection `x` weighed voxel by voxel under the coarser `signal`.

  Oktay et al., Attention U-Net, 2018, additive attention: sigmoid(psi(relu(
  W_x x + W_g signal))) on the grid of `signal`, linearly upsampled by `factors`
  to that of `x`. W_x has kernel = stride = `factors`; half as many channels
  in between as `x` has.
  """

  factors: tuple[int, ...]
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array, signal: jax.Array) -> jax.Array:
    make = functools.partial(pointwise, dtype=self.dtype,
                             kernel_init=he_normal('relu'))
    features = max(x.shape[-1] // 2, 1)
    skip = make(features, use_bias=False, name='skip')(
        space_to_depth(x, self.factors))
    gate = jax.nn.relu(skip + make(features, name='signal')(signal))
    gate = jax.nn.sigmoid(make(1, name='gate')(gate))
    return x * upsample_linear(gate, self.factors)
