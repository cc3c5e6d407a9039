"""Convolutions of images `[B, *S, C]` of any rank, and who computes them.

'xla' is the compiler's own, on every platform. With 'onednn' the program for
one CPU calls a library that is faster there (`cpu/convolution.py` says by how
much); programs for other platforms and for several devices have XLA's own all
the same. 'folded' is the compiler's own on images as TPUs like them where there
are few channels (`folding.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.sharding import Mesh

from medseg_jax.models import cpu, few_features, folding, resampling
from medseg_jax.models.cpu import convolution as on_cpu
from medseg_jax.models.cpu import onednn

XLA, ONEDNN, FOLDED = CONVOLUTIONS = ('xla', 'onednn', 'folded')


def choose(mesh: Mesh) -> tuple[str, str]:
  """Returns who computes the convolutions of programs on `mesh`, and why.

  Returns:
    one of `CONVOLUTIONS`, and what keeps oneDNN from a CPU's, else ''.
  """
  if mesh.devices.flat[0].platform == 'tpu':
    return FOLDED, ''
  return cpu.choose(mesh)


def conv(
  features: int,
  kernel: Sequence[int],
  stride: Sequence[int],
  *,
  convolutions: str = XLA,
  **kwargs: Any,
) -> nn.Conv:
  """Returns an `nn.Conv` that divides every axis by its stride exactly.

  Padding is symmetric for odd kernels, also with a stride, as in PyTorch.
  """
  return nn.Conv(
    features,
    tuple(kernel),
    tuple(stride),
    padding=[((k - 1) // 2, k // 2) for k in kernel],
    conv_general_dilated=_by_onednn if convolutions == ONEDNN else _by_xla,
    **kwargs,
  )


def conv_of_parts(
  features: int,
  kernel: Sequence[int],
  stride: Sequence[int],
  *,
  convolutions: str,
  dtype: str,
  kernel_init: initializers.Initializer,
  name: str,
) -> Callable[..., jax.Array]:
  """Returns `conv` without a bias, for one image.

  Folded, it takes several, and is that of their channels side by side.
  """
  if convolutions == FOLDED:
    return folding.Conv(
      features, tuple(kernel), tuple(stride), dtype, kernel_init, name=name
    )
  return conv(
    features,
    kernel,
    stride,
    use_bias=False,
    dtype=dtype,
    convolutions=convolutions,
    kernel_init=kernel_init,
    name=name,
  )


def pointwise(
  features: int, *, convolutions: str = XLA, **kwargs: Any
) -> nn.Dense:
  """Returns a 1x1 convolution as the matrix product that it is."""
  products = {ONEDNN: _matmul_by_onednn, FOLDED: folding.dot}
  return nn.Dense(features, dot_general=products.get(convolutions), **kwargs)


def head(
  num_classes: int, *, dtype: str, convolutions: str, name: str
) -> nn.Dense:
  """Returns the 1x1 convolution to logits, float32, of `x` of type `dtype`."""
  if (
    dtype == 'float32'
    or num_classes > few_features.MOST
    or convolutions == ONEDNN
  ):
    return pointwise(
      num_classes, dtype=jnp.float32, convolutions=convolutions, name=name
    )
  return nn.Dense(
    num_classes,
    dtype=jnp.float32,
    dot_general=_narrow_folded
    if convolutions == FOLDED
    else few_features.narrow_dot,
    name=name,
  )


def _narrow_folded(
  x: jax.Array, matrix: jax.Array, *_: Any, **__: Any
) -> jax.Array:
  """Returns what `few_features.narrow_dot` does, computed on cells."""
  return folding.dot(x, matrix, product=few_features.narrow_dot)


def matmul(
  x: jax.Array, matrix: jax.Array, *, convolutions: str = XLA
) -> jax.Array:
  """Returns `x @ matrix`, `[B, *S, C]` x `[C, F]`: a convolution by one tap."""
  if convolutions == FOLDED:
    return folding.dot(x, matrix)
  return _matmul_by_onednn(x, matrix) if convolutions == ONEDNN else x @ matrix


def transposed_conv(
  x: jax.Array, kernel: jax.Array, bias: jax.Array, *, convolutions: str = XLA
) -> jax.Array:
  """Returns the transposed convolution with stride = kernel size.

  Every voxel becomes a cell of voxels, each by a matrix of its own, which is a
  1x1 convolution and `depth_to_space`.

  Args:
    x: `[B, *S, C]`.
    kernel: `[*factors, C, features]`.
    bias: `[features]`.
    convolutions: one of `CONVOLUTIONS`.

  Returns:
    `[B, *(S*factors), features]`.
  """
  if convolutions == FOLDED and folding.fits(x, kernel):
    return folding.transposed_conv(x, kernel, bias)
  matrix = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
  y = matmul(x, matrix, convolutions=convolutions)
  return resampling.depth_to_space(y, kernel.shape[:-2]) + bias


@jax.custom_vjp
def _laid_out(kernel: jax.Array) -> jax.Array:
  """Returns `kernel`, whose gradient on a GPU lies in memory as the weights do.

  GPUs' convolutions compute it with other axes last. Turned round on the way
  into the update, the weights could not be updated where they lie: their new
  values would be written elsewhere and copied.
  """
  return kernel


def _as_vector(array: jax.Array) -> jax.Array:
  # It lies in memory in one way only.
  vector = lax.optimization_barrier(array.reshape(-1))
  return vector.reshape(array.shape)


def _lay_out(_: None, gradient: jax.Array) -> tuple[jax.Array]:
  return (
    lax.platform_dependent(gradient, cuda=_as_vector, default=lambda x: x),
  )


_laid_out.defvjp(lambda kernel: (kernel, None), _lay_out)


def _by_xla(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **settings: Any,
) -> jax.Array:
  """Returns what `lax.conv_general_dilated` does, which Flax calls so."""
  if kernel.dtype != jnp.float32:  # what CPUs compute in needs no turning
    kernel = _laid_out(kernel)
  return lax.conv_general_dilated(x, kernel, strides, padding, **settings)


def _may_call_onednn() -> bool:
  """Returns whether what is traced now may hold calls of oneDNN.

  XLA knows how to share its own convolutions among several devices, and cannot
  keep these calls on disk.
  """
  mesh = jax.sharding.get_abstract_mesh()
  several = not mesh.empty and mesh.size > 1
  return not several and onednn.usable()


def _by_onednn(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **settings: Any,
) -> jax.Array:
  """Returns what `lax.conv_general_dilated` does, which Flax calls so."""
  dilations = (*settings['lhs_dilation'], *settings['rhs_dilation'])
  plain = set(dilations) == {1} and settings['feature_group_count'] == 1
  if not plain or not _may_call_onednn():
    return _by_xla(x, kernel, strides, padding, **settings)
  return on_cpu.convolve(
    x, kernel, tuple(strides), tuple((low, high) for low, high in padding)
  )


def _matmul_by_onednn(
  x: jax.Array, matrix: jax.Array, *_: Any, **__: Any
) -> jax.Array:
  """Returns what `lax.dot_general` does, which Flax calls so."""
  if not _may_call_onednn():
    return x @ matrix
  ones = (1,) * (x.ndim - 2)
  return on_cpu.convolve(
    x, matrix.reshape(*ones, *matrix.shape), ones, ((0, 0),) * len(ones)
  )
