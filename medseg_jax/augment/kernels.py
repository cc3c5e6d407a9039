"""The arithmetic of augmentation without chance, on one example."""

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

# The numbers of two axes.
Plane = tuple[int, int]


def turn_parts(
  turns: jax.Array, plane: ArrayLike, is_first: jax.Array, is_second: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns (swap, flips) for `reorient` to do `numpy.rot90(x, turns, axes)`.

  Args:
    turns: 0..3, may be traced like all others.
    plane: number of the pair of axes among `planes`.
    is_first: `[R]` bool, marks the first axis of the pair.
    is_second: `[R]` bool, marks the second one.
  """
  swap = jnp.where(turns % 2 == 1, plane, -1)
  flips = is_first & ((turns == 1) | (turns == 2)) | is_second & (turns >= 2)
  return swap, flips


def reorient(
  x: jax.Array,
  planes: Iterable[Plane],
  swap: ArrayLike | None,
  flips: jax.Array,
) -> jax.Array:
  """Returns x `[*S, ...]` with two axes swapped, then axes reversed; exact.

  Args:
    x: the array.
    planes: static pairs of equally long axes.
    swap: number of the pair to swap, -1 for none; may be traced. None where
      there are no pairs.
    flips: `[R]` bool, the axes to reverse; may be traced.
  """
  swapped = [jnp.swapaxes(x, *axes) for axes in planes]
  for number, candidate in enumerate(swapped):
    x = jnp.where(swap == number, candidate, x)
  for axis, flip in enumerate(flips):
    x = jnp.where(flip, jnp.flip(x, axis), x)
  return x


def reorient_coords(
  coords: jax.Array,
  planes: Iterable[Plane],
  swap: ArrayLike | None,
  flips: jax.Array,
) -> jax.Array:
  """Returns where in x to look up what `reorient(x)` holds at coords."""
  rank, *shape = coords.shape
  rows = jnp.stack(
    [
      jnp.where(flips[axis], shape[axis] - 1 - coords[axis], coords[axis])
      for axis in range(rank)
    ]
  )
  result = rows
  for number, (a, b) in enumerate(planes):
    order = list(range(rank))
    order[a], order[b] = b, a
    result = jnp.where(swap == number, rows[jnp.array(order)], result)
  return result


def rotation_matrix(angles: jax.Array) -> jax.Array:
  """Returns a rotation, 2x2 from [1] or 3x3 from [3] angles in radians.

  The angles turn the planes of axes (0, 1), in 3-D (0, 1), (0, 2), (1, 2); the
  matrix is the product of these rotations in that order. A positive angle turns
  the plane's first axis towards its second one.
  """
  rank = {1: 2, 3: 3}[len(angles)]
  matrix = jnp.eye(rank)
  for angle, (a, b) in zip(
    angles, itertools.combinations(range(rank), 2), strict=True
  ):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = (
      jnp.eye(rank)
      .at[[a, a, b, b], [a, b, a, b]]
      .set(jnp.stack([cos, -sin, sin, cos]))
    )
    # By default an accelerator would round the factors to bfloat16.
    matrix = jnp.matmul(matrix, turn, precision=lax.Precision.HIGHEST)
  return matrix


def rounded(product: jax.Array) -> jax.Array:
  """Returns a product that is not contracted with the sum that it joins.

  Whether it is would be up to the compiler, program by program.
  """
  return lax.reduce_precision(product, exponent_bits=8, mantissa_bits=22)


def between_points(points: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Returns values `[R, *shape]` between control points `[R, *grid]`.

  By cubic convolution (Keys 1981), as `jax.image.resize` does; but sum by sum,
  in an order that is no compiler's choice, so that all programs find the same.
  """
  for axis, size in enumerate(shape, start=1):
    weights = cubic_weights(points.shape[axis], size)
    column = (size, *(1 for _ in shape[axis:]))
    terms = [
      rounded(
        jnp.asarray(weights[:, i].reshape(column))
        * lax.slice_in_dim(points, i, i + 1, axis=axis)
      )
      for i in range(points.shape[axis])
    ]
    points = functools.reduce(operator.add, terms)
  return points


def cubic_weights(points: int, size: int) -> np.ndarray:
  """Returns what each point counts at each place, `[size, points]` float32."""
  places = (np.arange(size) + 0.5) * points / size - 0.5
  far = np.abs(places[:, None] - np.arange(points))
  near = (1.5 * far - 2.5) * far**2 + 1
  next_to = ((-0.5 * far + 2.5) * far - 4) * far + 2
  weights = np.where(far < 1, near, np.where(far < 2, next_to, 0))
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def affine_coords(matrix: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Returns `[R, *shape]` voxel coordinates: matrix about the centre voxel.

  matrix: `[R, R]` float32.
  """
  rank = len(shape)
  centre = [(size - 1) / 2 for size in shape]
  offsets = [
    jnp.expand_dims(
      jnp.arange(shape[axis]) - centre[axis],
      [other for other in range(rank) if other != axis],
    )
    for axis in range(rank)
  ]
  # As many bits as leave the products exact, which costs 0.0003 voxels for 128
  # and 0.005 for 512: then it does not matter which of them a compiler joins
  # with a sum, and all programs find the same coordinates, to the bit.
  bits = 23 - (max(shape) - 1).bit_length()
  matrix = lax.reduce_precision(matrix, exponent_bits=8, mantissa_bits=bits)
  # Sums of products over broadcast axes, as in rotation_matrix for precision.
  return jnp.stack(
    [
      centre[i] + sum(matrix[i, j] * offsets[j] for j in range(rank))
      for i in range(rank)
    ]
  )


def crop(x: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Returns the middle of x `[*S, ...]`, of `shape`; see `margins`."""
  starts = margins(x.shape[: len(shape)], shape)
  return x[tuple(map(slice, starts, map(sum, zip(starts, shape, strict=True))))]


def margins(outer: Sequence[int], inner: Sequence[int]) -> list[int]:
  """Returns the index in `outer` of the first voxel of its middle `inner`."""
  return [(a - b) // 2 for a, b in zip(outer, inner, strict=True)]


def gaussian_blur(image: jax.Array, sigma: ArrayLike, radius: int) -> jax.Array:
  """Returns image `[*S, C]` convolved with a Gaussian, edges mirrored.

  Args:
    image: float `[*S, C]`.
    sigma: in voxels, may be traced; 0 leaves the image as it is.
    radius: static; the kernel has 2 * radius + 1 taps along each axis.
  """
  taps = jnp.arange(-radius, radius + 1)
  # The floor gives exactly one tap of weight 1 in place of 0 / 0.
  kernel = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)) ** 2)
  kernel = kernel / kernel.sum()
  for axis, size in enumerate(image.shape[:-1]):
    padding = [(0, 0)] * image.ndim
    padding[axis] = (radius, radius)
    # A sum of shifted images is many times faster on CPU than lax.conv; the
    # barrier keeps one axis from being computed again for each tap of the next.
    padded = lax.optimization_barrier(jnp.pad(image, padding, mode='reflect'))
    image = _sum(
      kernel[i] * lax.slice_in_dim(padded, i, i + size, axis=axis)
      for i in range(2 * radius + 1)
    )
  return image


def adjust_gamma(image: jax.Array, gamma: ArrayLike) -> jax.Array:
  """Returns image `[*S, C]` with `x ** gamma` on each channel's range as 0..1.

  gamma: `[C]`, positive. A constant channel stays as it is.
  """
  axes = tuple(range(image.ndim - 1))
  lo = image.min(axis=axes)
  extent = image.max(axis=axes) - lo
  unit = (image - lo) / jnp.where(extent > 0, extent, 1)
  return lo + extent * unit**gamma


def low_resolution(
  image: jax.Array, zoom: jax.Array, axes: Iterable[int]
) -> jax.Array:
  """Returns image `[*S, C]` sampled down to round(zoom * size), and up again.

  Down by the nearest voxel, up linearly; both grids cover the same extent, and
  beyond the centre of the outermost coarse voxel its value goes on. The coarse
  grid is never made, so its size may depend on a traced zoom.

  Args:
    image: float `[*S, C]`.
    zoom: `[C]` in (0, 1], may be traced.
    axes: static, the axes that lose their resolution.
  """
  letters = 'xyz'[: image.ndim - 1]
  for axis in axes:
    # A product with a matrix takes a fifth of the time of gathers on CPU. Not
    # in bfloat16, the default of an accelerator.
    old, new = letters, letters.replace(letters[axis], 'n')
    image = jnp.einsum(
      f'cn{letters[axis]},{old}c->{new}c',
      _coarse_weights(image.shape[axis], zoom),
      image,
      precision=lax.Precision.HIGHEST,
    )
  return image


def _coarse_weights(size: int, zoom: jax.Array) -> jax.Array:
  """Returns `[C, size, size]`: what each voxel of an axis takes from which."""
  coarse = jnp.round(zoom * size).astype(jnp.int32)
  coarse = jnp.maximum(coarse, 1)[:, None]
  place = (jnp.arange(size) + 0.5) * coarse / size - 0.5
  place = jnp.clip(place, 0, coarse - 1)
  low = jnp.floor(place).astype(jnp.int32)
  weights = []
  for step, weight in (
    (low, 1 - (place - low)),
    (jnp.minimum(low + 1, coarse - 1), place - low),
  ):
    # The voxel in which the centre of a coarse one lies, in whole numbers.
    voxel = (2 * step + 1) * size // (2 * coarse)
    weights.append(weight[..., None] * (voxel[..., None] == jnp.arange(size)))
  return _sum(weights)


def restore_stats(image: jax.Array, reference: jax.Array) -> jax.Array:
  """Returns image with the mean and deviation of each channel of reference."""
  axes = tuple(range(image.ndim - 1))
  std = image.std(axis=axes)
  factor = reference.std(axis=axes) / jnp.where(std > 0, std, 1)
  return reference.mean(axis=axes) + factor * (image - image.mean(axis=axes))


def _sum(arrays: Iterable[jax.Array]) -> jax.Array:
  """Returns the sum of at least one array, without the 0 of `sum`."""
  return functools.reduce(operator.add, arrays)
