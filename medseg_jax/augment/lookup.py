"""Image and label of one example, looked up where a warp wants them.

The example may be an array, the patch that was cut out with its margin, or lie
in a data set that holds many. In both a place counts from the first voxel of
what is read, mirrored about the edges of that; so both give the same values, to
the bit, and out of a data set no more voxels are taken than are used.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from medseg_jax.augment import kernels

# Image and label.
Pair = tuple[jax.Array, jax.Array]
T = TypeVar('T')
# Of a result's first axis: the first row that is wanted, and how many.
Rows = tuple[jax.Array, int]


class Place(NamedTuple):
  """Places along one axis, or the sum over all axes: voxels.

  Attributes:
    offset: int32, in the flat arrays.
    inside: bool, whether the example has such a voxel; None where it has all.
  """

  offset: jax.Array
  inside: jax.Array | None


class Box(NamedTuple):
  """Where what is read of an example lies in a volume; it may stick out.

  Attributes:
    first: the volume's first voxel in the flat arrays, and whether the example
      has any voxel of it (scalars).
    starts: `[R]` int32, first voxel of what is read.
    lengths: `[R]` int32, of the volume.
  """

  first: Place
  starts: jax.Array
  lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class Lookup:
  """The voxels of an example.

  Attributes:
    flat_image: `[N, C]` of any float type.
    flat_label: `[N]` of any integer type.
    shape: `[R]`, size of what is read.
    box: where that lies in the flat arrays; None where it is all of them.
    beyond: label of what the volume has no voxel for; the image is 0 there.
  """

  flat_image: jax.Array
  flat_label: jax.Array
  shape: tuple[int, ...]
  box: Box | None = None
  beyond: int = 0

  def along(self, axis: int, index: jax.Array) -> Place:
    """Returns the places of indices (int32, any) along an axis."""
    index = _mirrored(index, self.shape[axis])
    if self.box is None:
      return Place(math.prod(self.shape[axis + 1 :]) * index, None)
    index += self.box.starts[axis]
    length = self.box.lengths[axis]
    inside = (index >= 0) & (index < length)
    stride = math.prod(self.box.lengths[axis + 1 :])
    return Place(stride * jnp.clip(index, 0, length - 1), inside)

  def voxels(self, places: Iterable[Place]) -> Place:
    """Returns the voxels at a place along each axis."""
    if self.box is not None:
      places = [self.box.first, *places]
    offsets, insides = zip(*places, strict=True)
    inside = None
    if self.box is not None:
      inside = functools.reduce(operator.and_, insides)
    return Place(functools.reduce(operator.add, offsets), inside)

  def image(self, voxels: Place) -> jax.Array:
    """Returns `[*P, C]`, float32 or what is more precise."""
    values = self.flat_image.at[voxels.offset].get(mode='promise_in_bounds')
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if voxels.inside is None:
      return values
    return jnp.where(voxels.inside[..., None], values, 0)

  def label(self, voxels: Place) -> jax.Array:
    """Returns `[*P]`, at least int32."""
    values = self.flat_label.at[voxels.offset].get(mode='promise_in_bounds')
    if voxels.inside is None:
      return values
    values = values.astype(jnp.promote_types(values.dtype, jnp.int32))
    return jnp.where(voxels.inside, values, self.beyond)


class Unread(Protocol):
  """A batch whose voxels have not been read."""

  batch_size: int

  def look_up(self, fn: Callable[[T, Lookup, Rows], Pair], drawn: T) -> Pair:
    """Returns image and label `[B, ...]` of `fn`, example by example.

    Args:
      fn: `(drawn, lookup, rows) -> (image, label)` of these rows of an example,
        called for one after the other.
      drawn: what is drawn for each of the `B` examples.
    """


def of_patch(image: jax.Array, label: jax.Array) -> Lookup:
  """Returns the lookup of image `[*S, C]` and label `[*S]`."""
  flat = jnp.asarray(image).reshape(-1, image.shape[-1])
  return Lookup(flat, jnp.asarray(label).ravel(), label.shape)


def linear(lookup: Lookup, coords: jax.Array) -> Pair:
  """Returns image `[*P, C]` and label `[*P]` at coords `[R, *P]`.

  Coordinates are in voxels of what is read. Linear interpolation for the image,
  the nearest voxel for the label, and outside both are mirrored about the edge
  voxels.
  """
  lower = jnp.floor(coords)
  upper_weight = coords - lower
  # Half-way between two voxels the one farther from zero is the nearest.
  is_upper = (upper_weight > 0.5) | ((upper_weight == 0.5) & (coords > 0))
  lower = lower.astype(jnp.int32)
  ends, places = [], []
  for axis in range(len(coords)):
    low, high = (lookup.along(axis, lower[axis] + end) for end in (0, 1))
    choose = functools.partial(jnp.where, is_upper[axis])
    places.append(jax.tree.map(choose, high, low))
    ends.append((low, high))
  values = [
    lookup.image(lookup.voxels(corner)) for corner in itertools.product(*ends)
  ]
  # Neighbours along the last axis, then along the one before it. In this form
  # the value at a whole coordinate is the voxel's own.
  for weight in upper_weight[::-1]:
    values = [
      low + kernels.rounded(weight[..., None] * (high - low))
      for low, high in zip(values[::2], values[1::2], strict=True)
    ]
  return values[0], lookup.label(lookup.voxels(places))


def exact(lookup: Lookup, coords: jax.Array) -> Pair:
  """Returns what `linear` does at coordinates that are whole numbers."""
  index = coords.astype(jnp.int32)
  voxels = lookup.voxels(
    lookup.along(axis, index[axis]) for axis in range(len(index))
  )
  return lookup.image(voxels), lookup.label(voxels)


def _mirrored(index: jax.Array, size: int) -> jax.Array:
  """Returns index reflected about the first and the last voxel of an axis."""
  last = size - 1
  return jnp.abs((index + last) % max(2 * last, 1) - last)
