"""Convolutions with three taps from half the products: minimal filtering.

Four neighbouring values of a convolution with three taps take 12 products, or 6
by F(4, 3) of Winograd (Arithmetic complexity of computations, 1980; in networks
Lavin & Gray, arXiv:1509.09308): those of six sums of the image and six sums of
the taps. Here along the first spatial axis; what is left along the others are
six convolutions with a third of the taps, of a fourth of the rows:

  y = join(v * u for v, u in zip(split(x), split_kernel(kernel)))

and likewise for the gradient with respect to the kernel, where four rows of the
cotangent are the taps:

  join_kernel(v * z for v, z in zip(split(x), split_cotangent(cotangent)))

In float32 the error is about twice that of the sum of all products.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROWS, TAPS, SUMS = 4, 3, 6  # SUMS = ROWS + TAPS - 1
# The error depends on the points: with 1 and 2 it is half as large again.
_POINTS = (0, 0.75, -0.75, 1.5, -1.5)


def _matrices() -> tuple[np.ndarray, np.ndarray]:
  """Returns the factors `[6, 6]` of rows of the image, and a scale `[6]`.

  Multiplying polynomials is a convolution. Of degree five, the product follows
  from its values at five points and its leading coefficient (the value at
  infinity), so from six products. Transposed this gives the six sums.
  """
  image = np.zeros((SUMS, SUMS))
  for k, point in enumerate(_POINTS):
    others = [p for p in _POINTS if p != point]
    image[k, : SUMS - 1] = np.poly(others)[::-1]
  image[-1] = np.poly(_POINTS)[::-1]
  scale = np.array(
    [math.prod(p - q for q in _POINTS if q != p) for p in _POINTS] + [1]
  )
  return image, scale


def _values(count: int) -> np.ndarray:
  """Returns `[6, count]`: the points' powers, and of infinity the last one."""
  values = np.vander(np.append(_POINTS, 0), count, increasing=True)
  values[-1] = np.arange(count) == count - 1
  return values


_IMAGE, _SCALE = _matrices()


def pays(
  shape: Sequence[int], kernel: Sequence[int], stride: int, rows: int
) -> bool:
  """Returns whether it is faster than all the products, as was measured.

  The sums are memory traffic, for each channel of image and result. On two
  cores with AVX-512 they cost what they save at 100 to 140 products for each.

  Args:
    shape: of the image, `[B, *S, C]`.
    kernel: likewise, `[*taps, C, F]`.
    stride: along the first axis.
    rows: of the result, along the first axis.
  """
  taps, *others, channels, features = kernel
  if taps != TAPS or stride != 1:
    return False
  products = math.prod(others) * channels * features / (channels + features)
  computed = -(-rows // ROWS) * ROWS
  # With few voxels the sums of the kernel take the time.
  return (
    products >= 120 and computed < 1.25 * rows and math.prod(shape[:-1]) >= 1000
  )


def split(x: jax.Array, before: int, rows: int) -> list[jax.Array]:
  """Returns six sums of rows of the image, `[B, rows/4, *S_rest, C]` each.

  Args:
    x: `[B, *S, C]` float32.
    before: rows of 0 in front of `x`; negative cuts off rows.
    rows: of the convolution.
  """
  cells = -(-rows // ROWS)
  windows = [_every_fourth(x, i - before, cells) for i in range(SUMS)]
  return [_sum(row, windows) for row in _IMAGE]


def split_kernel(kernel: jax.Array) -> list[jax.Array]:
  """Returns six sums of the taps, `[1, *taps_rest, C, F]` each."""
  values = _values(TAPS) / _SCALE[:, None]
  taps = [kernel[i : i + 1] for i in range(TAPS)]
  return [_sum(row, taps) for row in values]


def split_cotangent(cotangent: jax.Array) -> list[jax.Array]:
  """Returns six sums of rows, `[B, rows/4, *S_rest, F]` each."""
  cells = -(-cotangent.shape[1] // ROWS)
  values = _values(ROWS) / _SCALE[:, None]
  rows = [_every_fourth(cotangent, i, cells) for i in range(ROWS)]
  return [_sum(row, rows) for row in values]


def join(parts: Sequence[jax.Array], rows: int) -> jax.Array:
  """Returns the convolution `[B, rows, *S_rest, F]` from the six parts'."""
  batch, cells, *rest = parts[0].shape
  y = jnp.zeros((batch, cells, ROWS, *rest), parts[0].dtype)
  for i, values in enumerate(_values(ROWS).T):
    y = lax.dynamic_update_slice_in_dim(
      y, _sum(values, parts)[:, :, None], i, 2
    )
  y = y.reshape(batch, cells * ROWS, *rest)
  return lax.slice_in_dim(y, 0, rows, axis=1)


def join_kernel(parts: jax.Array) -> jax.Array:
  """Returns `[3, *taps_rest, C, F]` from the six parts' `[6, ...]`."""
  return jnp.stack([_sum(values, parts) for values in _values(TAPS).T])


def _every_fourth(x: jax.Array, first: int, count: int) -> jax.Array:
  """Returns rows first, first + 4, ...: `count` of them, 0 where is none."""
  batch, rows, *rest = x.shape
  shift, phase = divmod(first, ROWS)
  cells = -(-rows // ROWS)
  if rows % ROWS:
    x = jnp.pad(x, [(0, 0), (0, cells * ROWS - rows)] + [(0, 0)] * len(rest))
  x = x.reshape(batch, cells, ROWS, *rest)[:, :, phase]
  around = (-shift, count + shift - cells, 0)
  return lax.pad(
    x, jnp.zeros((), x.dtype), [(0, 0, 0), around] + [(0, 0, 0)] * len(rest)
  )


def _sum(
  factors: Sequence[float], arrays: Sequence[jax.Array] | jax.Array
) -> jax.Array:
  """Returns the weighted sum of `arrays`, without those of weight 0."""
  terms = [
    array if factor == 1 else array * np.float32(factor)
    for factor, array in zip(factors, arrays, strict=True)
    if factor
  ]
  return sum(terms[1:], terms[0])
