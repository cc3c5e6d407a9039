"""Neighbours along the last axis as channels, for TPUs, at high resolution.

A TPU keeps the last two axes of an array in tiles of 8 x 128 and multiplies
matrices of 128 x 128: an image of 32 channels fills a quarter of the memory it
takes, and a sixteenth of the products. `[B, *S, W, C]` as `[B, *S, W/n, n*C]`
lies in memory without a gap. A convolution of such cells of n voxels has a
block for each voxel of one cell and each of the next cells, many of them zero.
The cells of a convolution with stride s have s times as many voxels as those
that it returns, so that cells stay where they are from stage to stage.

All functions take and return images as they are: what one has unfolded and the
next one folds again, the compiler leaves as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers

from medseg_jax.models import kernel_gradient

LANES = 128  # of TPUs: values of the last axis that are one tile wide


def voxels(width: int, channels: int) -> int:
  """Returns how many voxels to a cell, a power of two that divides `width`."""
  n = 1
  while 2 * n * channels <= LANES and width % (2 * n) == 0:
    n *= 2
  return n


def fold(x: jax.Array, n: int) -> jax.Array:
  """Returns `[B, *S, W, C]` as `[B, *S, W/n, n*C]`."""
  *size, width, channels = x.shape
  return x.reshape(*size, width // n, n * channels)


def unfold(x: jax.Array, n: int) -> jax.Array:
  """Returns `[B, *S, W/n, n*C]` as `[B, *S, W, C]`."""
  *size, width, channels = x.shape
  return x.reshape(*size, width * n, channels // n)


class Conv(nn.Module):
  """A convolution, as `convolution.conv` makes it, of images side by side.

  Attributes:
    features: channels out.
    kernel_size: taps along each axis.
    strides: divide the axes of the image.
    dtype: of the computation.
    kernel_init: of the float32 parameter `kernel`, `[*kernel, C, features]`.
  """

  features: int
  kernel_size: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: str
  kernel_init: initializers.Initializer

  @nn.compact
  def __call__(self, *parts: jax.Array) -> jax.Array:
    """Returns the convolution of the concatenated channels of `parts`."""
    channels = sum(part.shape[-1] for part in parts)
    kernel = self.param(
      'kernel',
      self.kernel_init,
      (*self.kernel_size, channels, self.features),
      jnp.float32,
    )
    parts = tuple(part.astype(self.dtype) for part in parts)
    return convolve(parts, kernel, self.strides)


def convolve(
  parts: Sequence[jax.Array], kernel: jax.Array, strides: Sequence[int]
) -> jax.Array:
  """Returns the convolution of images whose channels are side by side.

  Args:
    parts: `[B, *S, C_i]`, all of one type, in which it is computed.
    kernel: `[*K, sum(C_i), F]` float32.
    strides: divide `S`.

  Returns:
    `[B, *(S/strides), F]`; padded symmetrically for odd `K`.
  """
  dtype, stride = parts[0].dtype, strides[-1]
  width = parts[0].shape[-2]
  n_out = voxels(width // stride, kernel.shape[-1])
  n_in = n_out * stride
  paddings = [((k - 1) // 2, k // 2) for k in kernel.shape[:-2]]
  if n_in == 1 or n_in * max(part.shape[-1] for part in parts) > LANES:
    # Enough channels, or cells larger than the ones that are there.
    def of_voxels(
      x: jax.Array, kernel: jax.Array, padding: tuple[int, int]
    ) -> jax.Array:
      return _convolve(x, kernel, strides, [padding, *paddings[1:]])

    return kernel_gradient.product(
      of_voxels,
      strides[0],
      paddings[0],
      jnp.concatenate(parts, -1),
      kernel.astype(dtype),
    )
  blocks, edges = _blocks(kernel.shape[-3], stride, n_out)
  # In the order of what is side by side: all voxels of a part, then the next.
  splits = np.cumsum([part.shape[-1] for part in parts])[:-1]

  def of_cells(
    x: jax.Array, kernel: jax.Array, padding: tuple[int, int]
  ) -> jax.Array:
    kernels = [
      _block_kernel(part, blocks) for part in jnp.split(kernel, splits, axis=-2)
    ]
    return _convolve(
      x,
      jnp.concatenate(kernels, -2).astype(dtype),
      (*strides[:-1], 1),
      [padding, *paddings[1:-1], edges][-len(paddings) :],
    )

  x = jnp.concatenate([fold(part, n_in) for part in parts], -1)
  y = kernel_gradient.product(of_cells, strides[0], paddings[0], x, kernel)
  return unfold(y, n_out)


def _convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  paddings: Sequence[tuple[int, int]],
) -> jax.Array:
  spatial = 'XYZ'[: x.ndim - 2]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    paddings,
    dimension_numbers=(f'N{spatial}C', f'{spatial}IO', f'N{spatial}C'),
  )


def _blocks(
  taps: int, stride: int, n_out: int
) -> tuple[np.ndarray, tuple[int, int]]:
  """Returns which tap is between which voxels of cells, and the padding.

  Returns:
    `[cells, n_in, n_out, taps]` of zeros and ones, and the number of cells
    before and after the one in the middle.
  """
  n_in = n_out * stride
  low = (taps - 1) // 2
  first = -low // n_in
  last = ((n_out - 1) * stride + taps - 1 - low) // n_in
  found = np.zeros((last - first + 1, n_in, n_out, taps), np.float32)
  for to in range(n_out):
    for tap in range(taps):
      cell, voxel = divmod(to * stride + tap - low, n_in)
      found[cell - first, voxel, to, tap] = 1
  return found, (-first, last)


def _block_kernel(kernel: jax.Array, blocks: np.ndarray) -> jax.Array:
  """Returns `[*K, taps, C, F]` as `[*K, cells, n_in*C, n_out*F]`."""
  *size, _, channels, features = kernel.shape
  cells, n_in, n_out, _ = blocks.shape
  result = jnp.einsum(
    'cvot,...tif->...cviof', blocks, kernel, precision=lax.Precision.HIGHEST
  )
  return result.reshape(*size, cells, n_in * channels, n_out * features)


def dot(
  x: jax.Array,
  matrix: jax.Array,
  *_: Any,
  product: Callable[[jax.Array, jax.Array], jax.Array] = jnp.matmul,
  **__: Any,
) -> jax.Array:
  """Returns `product(x, matrix)`, `[B, *S, C]` x `[C, F]`, called as Flax does.

  Args:
    x: image.
    matrix: that each of its voxels is multiplied by.
    product: of such arrays.
  """
  n = voxels(x.shape[-2], x.shape[-1])
  if n == 1:
    return product(x, matrix)

  def of_cells(
    x: jax.Array, matrix: jax.Array, _: tuple[int, int]
  ) -> jax.Array:
    return product(x, _block_diagonal(matrix, n))

  y = kernel_gradient.product(of_cells, 1, (0, 0), fold(x, n), matrix)
  return unfold(y, n)


def _block_diagonal(matrix: jax.Array, n: int) -> jax.Array:
  """Returns `[..., C, F]` as `[n*C, ... x n*F]`, the same for n voxels."""
  *_, channels, features = matrix.shape
  matrix = jnp.expand_dims(jnp.moveaxis(matrix, -2, 0), (0, -2))
  same = np.eye(n).reshape(n, *(1,) * (matrix.ndim - 3), n, 1)
  matrix = matrix * same.astype(matrix.dtype)
  return matrix.reshape(n * channels, -1)


def fits(x: jax.Array, kernel: jax.Array) -> bool:
  """Returns whether cells fit what `transposed_conv` makes of `x`."""
  *factors, channels, features = kernel.shape
  n = voxels(x.shape[-2], channels) * factors[-1]
  return n > 1 and n * features <= LANES


def transposed_conv(
  x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """Returns the transposed convolution with stride = kernel size.

  The voxels that come of one along the last axis are neighbours in a cell.

  Args:
    x: `[B, *S, C]`.
    kernel: `[*factors, C, F]`.
    bias: `[F]`.

  Returns:
    `[B, *(S*factors), F]`.
  """
  *factors, channels, features = kernel.shape
  n_in = voxels(x.shape[-2], channels)
  n_out = n_in * factors[-1]

  def of_cells(
    x: jax.Array, kernel: jax.Array, _: tuple[int, int]
  ) -> jax.Array:
    # The taps of the last axis become channels, [*factors[:-1], C, tap * F].
    taps = jnp.moveaxis(kernel, -2, -3)
    return x @ _block_diagonal(taps.reshape(*taps.shape[:-2], -1), n_in)

  y = kernel_gradient.product(of_cells, 1, (0, 0), fold(x, n_in), kernel)
  y += jnp.tile(bias, y.shape[-1] // features)
  # Of every voxel `[*factors]` cells, which go between those along each axis.
  rank = len(factors) - 1
  batch, *size, width, _ = y.shape
  y = y.reshape(batch, *size, width, *factors[:-1], n_out * features)
  pairs = [(axis, axis + rank + 1) for axis in range(1, rank + 1)]
  order = [axis for pair in pairs for axis in pair]
  y = y.transpose(0, *order, rank + 1, 2 * rank + 2)
  size = [n * f for n, f in zip(size, factors[:-1], strict=True)]
  return unfold(y.reshape(batch, *size, width, n_out * features), n_out)
