"""Building blocks of the networks, for images `[B, *S, C]` of any rank.

Parameters are float32. `dtype` is what the convolutions compute in and return;
statistics of the normalisations are float32 always. A kernel size or stride is
a tuple with one number for each spatial axis.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from medseg_jax.models import convolution, norms, resampling

LEAKY_SLOPE = 0.01
DTYPES = ('float32', 'bfloat16')

UP_METHODS = ('transpose', *resampling.UPSAMPLE)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': jax.nn.relu,
  'leaky_relu': functools.partial(
    jax.nn.leaky_relu, negative_slope=LEAKY_SLOPE
  ),
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
  raise ValueError(
    f'image size {tuple(size)} is not divisible by the strides '
    f'{tuple(divisor)} of the network; the nearest sizes that '
    f'are: {nearest}'
  )


def dtype_name(dtype: jax.typing.DTypeLike) -> str:
  """Returns 'float32' or 'bfloat16' for that name or type, else ValueError."""
  try:
    name = jnp.dtype(dtype).name
  except TypeError:
    name = ''
  if name not in DTYPES:
    raise ValueError(
      f'dtype={dtype!r} is not allowed: one of {", ".join(DTYPES)}'
    )
  return name


def he_normal(
  activation: str, num_kernel_axes: int = 0
) -> jax.nn.initializers.Initializer:
  """Returns He's initialiser for weights before `activation`.

  He et al., Delving deep into rectifiers, 2015, equations 10 and 15.

  Args:
    activation: key of `ACTIVATIONS`.
    num_kernel_axes: leading axes that do not add up in the output, which are
      all the spatial ones of a transposed convolution with kernel = stride.
  """
  slope = LEAKY_SLOPE if activation == 'leaky_relu' else 0.0
  return initializers.variance_scaling(
    2 / (1 + slope**2),
    'fan_in',
    'truncated_normal',
    batch_axis=tuple(range(num_kernel_axes)),
  )


class Stage(nn.Module):
  """The convolutions at one resolution, each followed by norm and activation.

  A residual block adds its input to what enters its last activation (He et al.
  2016): through the mean over each stride, and a 1x1 convolution and a norm
  where the number of channels changes. The last norm of a block starts at zero,
  so that at first the block is its shortcut (Goyal et al. 2017).

  Attributes:
    features: channels out.
    num_convs: number of convolutions, in each block if there are blocks.
    kernel: of every convolution.
    stride: of the first convolution.
    norm, activation: keys of `norms.NORMS` and `ACTIVATIONS`.
    num_blocks: residual blocks, one after the other; 0 for the convolutions
      alone.
    dropout: probability that a whole channel of an example is set to zero at
      the end (Tompson et al. 2015); neighbouring voxels are too alike for
      dropping single ones to have an effect.
    dtype: of the computation.
    convolutions: who computes them, one of `convolution.CONVOLUTIONS`.
  """

  features: int
  num_convs: int
  kernel: tuple[int, ...]
  stride: tuple[int, ...]
  norm: str
  activation: str
  num_blocks: int
  dropout: float
  dtype: str
  convolutions: str = convolution.XLA

  @nn.compact
  def __call__(
    self, x: jax.Array, train: bool, skip: jax.Array | None = None
  ) -> jax.Array:
    """Returns `[B, *S/stride, features]`; `skip` joins the channels of `x`."""
    parts = [x] if skip is None else [skip, x]
    if self.convolutions != convolution.FOLDED or self.num_blocks:
      parts = [jnp.concatenate(parts, -1)]
    activation = ACTIVATIONS[self.activation]
    num_convs = self.num_convs * max(self.num_blocks, 1)
    shortcut = parts[0]  # a block has one part
    for i in range(num_convs):
      last = bool(self.num_blocks) and (i + 1) % self.num_convs == 0
      stride = (1,) * len(self.kernel) if i else self.stride
      convolve = convolution.conv_of_parts(
        self.features,
        self.kernel,
        stride,
        dtype=self.dtype,
        convolutions=self.convolutions,
        kernel_init=he_normal(self.activation),
        name=f'conv_{i}',
      )
      x = convolve(*parts)
      x = self._norm(x, train, f'norm_{i}', None if last else activation, last)
      if last:
        first_block = i < self.num_convs
        x += self._project(shortcut, train) if first_block else shortcut
        x = shortcut = activation(x)
      parts = [x]
    if self.dropout:
      spatial = tuple(range(1, x.ndim - 1))
      x = nn.Dropout(
        self.dropout, broadcast_dims=spatial, deterministic=not train
      )(x)
    return x

  def _norm(
    self,
    x: jax.Array,
    train: bool,
    name: str,
    activation: norms.Activation | None,
    starts_at_zero: bool = False,
  ) -> jax.Array:
    make = norms.NORMS[self.norm]
    init = initializers.zeros if starts_at_zero else initializers.ones
    folded = self.convolutions == convolution.FOLDED
    return make(
      self.features, train, self.dtype, name, init, activation, folded
    )(x)

  def _project(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns `x` on the grid and with the channels of the first block."""
    x = resampling.mean_pool(x, self.stride)
    if x.shape[-1] == self.features:
      return x
    x = convolution.pointwise(
      self.features,
      use_bias=False,
      dtype=self.dtype,
      convolutions=self.convolutions,
      kernel_init=he_normal(self.activation),
      name='conv_shortcut',
    )(x)
    return self._norm(x, train, 'norm_shortcut', None)


class Up(nn.Module):
  """Upsampling by `factors` to `features` channels.

  'transpose' is a transposed convolution, kernel = stride. 'nearest' and
  'linear' reduce the channels first, by a 1x1 convolution, which commutes with
  the interpolation and is cheaper at the coarse grid.
  """

  features: int
  factors: tuple[int, ...]
  method: str
  activation: str
  dtype: str
  convolutions: str = convolution.XLA

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    taps = self.factors if self.method == 'transpose' else ()
    kernel = self.param(
      'kernel',
      he_normal(self.activation, len(taps)),
      (*taps, x.shape[-1], self.features),
      jnp.float32,
    )
    bias = self.param('bias', initializers.zeros, (self.features,), jnp.float32)
    x, kernel, bias = (value.astype(self.dtype) for value in (x, kernel, bias))
    if self.method == 'transpose':
      return convolution.transposed_conv(
        x, kernel, bias, convolutions=self.convolutions
      )
    x = convolution.matmul(x, kernel, convolutions=self.convolutions) + bias
    return resampling.UPSAMPLE[self.method](x, self.factors)


class AttentionGate(nn.Module):
  """A skip connection `x` weighed voxel by voxel under the coarser `signal`.

  Oktay et al., Attention U-Net, 2018, additive attention: sigmoid(psi(relu(
  W_x x + W_g signal))) on the grid of `signal`, linearly upsampled by `factors`
  to that of `x`. W_x has kernel = stride = `factors`; half as many channels
  in between as `x` has.
  """

  factors: tuple[int, ...]
  dtype: str
  convolutions: str = convolution.XLA

  @nn.compact
  def __call__(self, x: jax.Array, signal: jax.Array) -> jax.Array:
    make = functools.partial(
      convolution.pointwise,
      dtype=self.dtype,
      convolutions=self.convolutions,
      kernel_init=he_normal('relu'),
    )
    features = max(x.shape[-1] // 2, 1)
    skip = make(features, use_bias=False, name='skip')(
      resampling.space_to_depth(x, self.factors)
    )
    gate = jax.nn.relu(skip + make(features, name='signal')(signal))
    gate = jax.nn.sigmoid(make(1, name='gate')(gate))
    return x * resampling.upsample_linear(gate, self.factors)
