"""The arithmetic of augmentation without chance, on one example."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import ndimage


def turn_parts(turns, plane, is_first, is_second):
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


def reorient(x, planes, swap, flips):
  """Returns x `[*S, ...]` with two axes swapped, then axes reversed; exact.

  Args:
    x: the array.
    planes: static pairs of equally long axes.
    swap: number of the pair to swap, -1 for none; may be traced.
    flips: `[R]` bool, the axes to reverse; may be traced.
  """
  swapped = [jnp.swapaxes(x, *axes) for axes in planes]
  for number, candidate in enumerate(swapped):
    x = jnp.where(swap == number, candidate, x)
  for axis, flip in enumerate(flips):
    x = jnp.where(flip, jnp.flip(x, axis), x)
  return x


def reorient_coords(coords, planes, swap, flips):
  """Returns where in x to look up what `reorient(x)` holds at coords."""
  rank, *shape = coords.shape
  rows = jnp.stack([
      jnp.where(flips[axis], shape[axis] - 1 - coords[axis], coords[axis])
      for axis in range(rank)
  ])
  result = rows
  for number, (a, b) in enumerate(planes):
    order = list(range(rank))
    order[a], order[b] = b, a
    result = jnp.where(swap == number, rows[jnp.array(order)], result)
  return result


def rotation_matrix(angles):
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
    turn = jnp.eye(rank).at[[a, a, b, b], [a, b, a, b]].set(
        jnp.stack([cos, -sin, sin, cos])
    )
    # By default an accelerator would round the factors to bfloat16.
    matrix = jnp.matmul(matrix, turn, precision=lax.Precision.HIGHEST)
  return matrix


def affine_coords(matrix, shape):
  """Returns `[R, *shape]` voxel coordinates: matrix about the centre voxel."""
  rank = len(shape)
  centre = [(size - 1) / 2 for size in shape]
  offsets = [
      jnp.expand_dims(
          jnp.arange(shape[axis]) - centre[axis],
          [other for other in range(rank) if other != axis],
      )
      for axis in range(rank)
  ]
  # Sums of products over broadcast axes, as in rotation_matrix for precision.
  return jnp.stack([
      centre[i] + sum(matrix[i, j] * offsets[j] for j in range(rank))
      for i in range(rank)
  ])


def warp(image, label, coords):
  """Returns image `[*S, C]` and label `[*S]` looked up at coords `[R, *S]`.

  Coordinates are in voxels. Linear interpolation for the image, the nearest
  voxel for the label, and outside both are mirrored about the edge voxels.
  """
  sample = functools.partial(
      ndimage.map_coordinates, coordinates=tuple(coords), mode='mirror'
  )
  linear_fn = functools.partial(sample, order=1)
  new_image = jax.vmap(linear_fn, in_axes=-1, out_axes=-1)(image)
  return new_image, sample(label, order=0)


def gaussian_blur(image, sigma, radius):
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
    image = sum(
        kernel[i] * lax.slice_in_dim(padded, i, i + size, axis=axis)
        for i in range(2 * radius + 1)
    )
  return image


def adjust_gamma(image, gamma):
  """Returns image `[*S, C]` with `x ** gamma` on each channel's range as 0..1.

  gamma: `[C]`, positive. A constant channel stays as it is.
  """
  axes = tuple(range(image.ndim - 1))
  lo = image.min(axis=axes)
  extent = image.max(axis=axes) - lo
  unit = (image - lo) / jnp.where(extent > 0, extent, 1)
  return lo + extent * unit**gamma
