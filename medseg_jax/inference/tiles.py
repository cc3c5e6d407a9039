"""Where the tiles of an image lie, what they weigh, and what they hold."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(eq=False)
class Grid:
  """The tiles of one image, and their sums.

  Attributes:
    size: of the image's spatial axes.
    origin: where the image begins within the padded one.
    padded: size of the image padded to at least a tile.
    patch: size of a tile, as many numbers as `size`.
    starts: along each axis the first voxel of each tile, `[T_a]`.
    weights: along each axis each tile's share of its voxels, `[T_a, patch]`.
    case: what the caller knows the image by.
    total: of the planes from the current row's first on, see `stitching.py`.
  """

  size: tuple[int, ...]
  origin: tuple[int, ...]
  padded: tuple[int, ...]
  patch: tuple[int, ...]
  starts: list[np.ndarray]
  weights: list[np.ndarray]
  case: Any = None
  total: Any = None

  @property
  def num_tiles(self) -> int:
    return math.prod(map(len, self.starts))

  def number_of(self, place: tuple[int, ...]) -> int:
    """Returns the number of a tile, from 0, in the order that they are cut."""
    return int(np.ravel_multi_index(place, [len(s) for s in self.starts]))


class Tile(NamedTuple):
  """One tile; along axis `a` it is number `place[a]` of its grid."""

  grid: Grid
  place: tuple[int, ...]
  values: np.ndarray | jax.Array  # [*patch_size, C] float32


def full_rank(patch_size: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Returns the patch size with a number for each of `rank` axes.

  A network with one axis fewer than the image sees slices of axis 0; this is
  the only place that knows.

  Raises:
    ValueError: there are other than `rank` or `rank - 1` numbers.
  """
  if len(patch_size) == rank:
    return tuple(patch_size)
  if len(patch_size) == rank - 1 > 0:
    return (1, *patch_size)
  raise ValueError(
    f'patch_size is {tuple(patch_size)}, but the image has {rank} axes'
  )


def lay_out(
  size: tuple[int, ...],
  patch_size: tuple[int, ...],
  *,
  overlap: float,
  case: Any = None,
) -> Grid:
  """Returns the tiles of an image of `size`, padded where it is smaller."""
  patch = full_rank(patch_size, len(size))
  padded = tuple(map(max, size, patch))
  origin = tuple((n - s) // 2 for n, s in zip(padded, size, strict=True))
  axes = list(zip(padded, patch, strict=True))
  starts = [axis_starts(n, p, overlap=overlap) for n, p in axes]
  weights = [
    axis_weights(s, n, p) for s, (n, p) in zip(starts, axes, strict=True)
  ]
  return Grid(tuple(size), origin, padded, patch, starts, weights, case)


def axis_starts(size: int, patch: int, *, overlap: float) -> np.ndarray:
  """Returns the first voxel of each tile along an axis, evenly spread.

  There are `ceil((size - patch) / stride) + 1` tiles with
  `stride = (1 - overlap) * patch`; the first begins at 0, the last ends at the
  image's end.
  """
  stride = max((1 - overlap) * patch, 1)
  count = int(np.ceil(max(size - patch, 0) / stride)) + 1
  return np.round(np.linspace(0, max(size - patch, 0), count)).astype(int)


@functools.lru_cache(maxsize=8)
def gaussian_weight(patch: int) -> np.ndarray:
  """Returns a tile's weights along one axis, `[patch]` float64 in (0, 1].

  A Gaussian with a standard deviation of an eighth of the tile; an image's
  weights are the product over its axes. It lies about the tile's very middle,
  half a voxel beside nnU-Net's for even sizes, so that a mirrored image gets a
  mirrored result. As each voxel's weights are brought to a sum of 1 before
  anything is added, even a corner's exp(-24) needs no lower bound.
  """
  x = (np.arange(patch) - (patch - 1) / 2) / (patch / 8)
  weight = np.exp(-0.5 * x**2)
  return weight / weight.max()


def axis_weights(starts: np.ndarray, size: int, patch: int) -> np.ndarray:
  """Returns each tile's share of each of its voxels, `[T, patch]` float32.

  The tiles lie on a grid and the weights are products, so shares that add up
  to 1 along each axis do so over the image: no sum of weights is kept.
  """
  weight = gaussian_weight(patch)
  norm = np.zeros(size)
  for start in starts:
    norm[start : start + patch] += weight
  shares = [weight / norm[start : start + patch] for start in starts]
  return np.asarray(shares, np.float32)


def cut(
  image: np.ndarray | jax.Array, grid: Grid, patch_size: tuple[int, ...]
) -> Iterator[Tile]:
  """Yields the tiles of `image` `[*S, C]`, row by row along axis 0.

  The values of NumPy images are cut on the host; the device need not hold the
  image. Outside the image they are 0.
  """
  traced = isinstance(image, jax.core.Tracer)
  xp = jnp if traced else np
  image = image if traced else np.asarray(image)
  pads = [
    (o, p - o - n)
    for o, p, n in zip(grid.origin, grid.padded, grid.size, strict=True)
  ]
  if any(map(any, pads)):
    image = xp.pad(image, [*pads, (0, 0)])
  for place in np.ndindex(*map(len, grid.starts)):
    part = image[window(corner(grid, place), grid.patch)]
    # NumPy copies here: views would keep a large image in memory for as long
    # as the batch waits for the next image's tiles.
    values = part.reshape(*patch_size, image.shape[-1]).astype(np.float32)
    yield Tile(grid, place, values)


def corner(grid: Grid, place: tuple[int, ...]) -> list[int]:
  """Returns the first voxel of the tile at `place` in the padded image."""
  return [int(s[i]) for s, i in zip(grid.starts, place, strict=True)]


def window(begin: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
  """Returns the slices from `begin` on, `size` long."""
  return tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))
