"""Morphology and connected components of masks, on the device.

Masks are bool `[*S]` of any rank. Beyond their edge there is nothing that a
mask could grow from, and nothing that it would shrink from.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

DILATION, EROSION, OPENING, CLOSING = range(4)
MAX_RADIUS = 8  # voxels
_FAR = 1000  # above the square of any distance that matters


def dilated(mask: jax.Array, radius: jax.Array) -> jax.Array:
  """Returns a mask with all that is within a radius of it.

  By squared distances, one axis after the other (Felzenszwalb and Huttenlocher
  2012, "Distance transforms of sampled functions"); as they matter up to the
  largest radius only, an axis takes 17 shifts, whatever the radius.

  Args:
    mask: bool `[*S]`.
    radius: scalar, in voxels, at most `MAX_RADIUS`; may be traced.
  """
  squared = jnp.where(mask, 0, _FAR)
  for axis in range(mask.ndim):
    # The barrier keeps an axis from being computed again for each shift of the
    # next one.
    shifted = _shifts(lax.optimization_barrier(squared), axis, MAX_RADIUS, _FAR)
    squared = functools.reduce(
      jnp.minimum, (row + k * k for k, row in shifted.items())
    )
  return squared <= radius * radius


def morphed(
  mask: jax.Array, operation: jax.Array, radius: jax.Array
) -> jax.Array:
  """Returns a mask after dilation, erosion, opening or closing by a ball.

  Args:
    mask: bool `[*S]`.
    operation: scalar, one of the four; may be traced.
    radius: of the ball, see `dilated`.
  """

  def grown(mask: jax.Array, inverted: jax.Array) -> jax.Array:
    return dilated(mask ^ inverted, radius) ^ inverted

  # A mask shrinks as the rest grows.
  once = grown(mask, (operation == EROSION) | (operation == OPENING))
  return lax.cond(
    (operation == OPENING) | (operation == CLOSING),
    lambda: grown(once, operation == CLOSING),
    lambda: once,
  )


def components(mask: jax.Array) -> jax.Array:
  """Returns the number of each voxel's component: `[*S]` int32, 0 outside.

  Voxels that touch by a face, an edge or a corner are of one component; its
  number is 1 + the largest flat index of its voxels.
  """

  def spread(numbers: jax.Array) -> jax.Array:
    new = numbers
    for axis in range(mask.ndim):
      shifted = _shifts(lax.optimization_barrier(new), axis, 1, 0)
      new = functools.reduce(jnp.maximum, shifted.values())
    new = jnp.where(mask, new, 0)
    # The voxel that a number is of is in this component, too, and may have
    # heard of a larger one: so far fewer rounds do than it is long.
    heard = jnp.pad(new.ravel(), (1, 0))[new]
    return jnp.maximum(new, heard)

  start = jnp.arange(1, mask.size + 1, dtype=jnp.int32).reshape(mask.shape)
  start = jnp.where(mask, start, 0)
  numbers, _ = lax.while_loop(
    lambda carry: (carry[0] != carry[1]).any(),
    lambda carry: (spread(carry[0]), carry[0]),
    (start, jnp.where(mask, 0, -1)),
  )
  return numbers


def _shifts(
  x: jax.Array, axis: int, most: int, beyond: int
) -> dict[int, jax.Array]:
  """Returns x shifted along an axis by -most .. most, by the number."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (most, most)
  padded = jnp.pad(x, pads, constant_values=beyond)
  cut: Callable[..., jax.Array] = functools.partial(
    lax.dynamic_slice_in_dim, padded, slice_size=x.shape[axis], axis=axis
  )
  return {k: cut(start_index=most + k) for k in range(-most, most + 1)}
