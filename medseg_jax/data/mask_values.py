"""What the pixels of one mask say about its values: how many, and where.

A class fills areas, so that the whole neighbourhood of some pixels has its
value, or nearly so after lossy compression. Other values live on the edges
between two classes, or are specks.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from medseg_jax.data.numbered_objects import Objects, find_objects, may_number

# A JPEG moves the values of a flat neighbourhood by less than the first; near
# the edges of small objects by less than the second.
SPREADS = SPREAD, WIDE_SPREAD = 16, 32
# Rows that are counted at once: what lies in the processor's cache is quick.
_BAND_PIXELS = 2**19


class MaskValues(NamedTuple):
  """The values of one mask file, ascending, and how many pixels have each.

  Attributes:
    path: the file, or whatever messages are to name.
    values: `[K]`, ascending.
    counts: `[K]`, pixels of each value.
    solid: `[K]`, how many of them are in a 2x2 block of one value.
    between: `[K]`, how many lie between the least and the largest value of
      their 3x3 neighbours, as edges do. 0 for masks of two values without
      lossy compression, which have no edges of other values.
    flat: for each of SPREADS `[2, L]`, values and counts of the means of those
      3x3 blocks whose values differ by no more. Nothing for masks of two
      values without lossy compression.
    lossy: whether the file's compression changes values.
    objects: what the values mark, where they may number single objects.
  """

  path: pathlib.Path
  values: np.ndarray
  counts: np.ndarray
  solid: np.ndarray
  between: np.ndarray
  flat: tuple[np.ndarray, ...]
  lossy: bool
  objects: Objects | None = None


def count_values(
  path: pathlib.Path, mask: np.ndarray, *, lossy: bool
) -> MaskValues:
  """Returns the counts of the values of `mask [*S]`, read from `path`.

  In more than two dimensions the blocks lie in the plane of the last two axes.
  """
  planes = mask.reshape(-1, *mask.shape[-2:])
  values = _unique(planes)
  counts = np.zeros(len(values), np.int64)
  solid = np.zeros(len(values), np.int64)
  between = np.zeros(len(values), np.int64)
  flat = (np.zeros((2, 0), np.int64),) * len(SPREADS)
  look_twice = lossy or len(values) > 2
  for plane in planes:
    for first, last in _bands(plane.shape):
      band = plane[max(first - 1, 0) : last + 1]
      own = slice(first - max(first - 1, 0), None)
      own = slice(own.start, own.start + last - first)
      codes = _codes(band, values)
      counts += np.bincount(codes[own].ravel(), minlength=len(values))
      inside = _in_blocks(codes)[own]
      solid += np.bincount(codes[own][inside], minlength=len(values))
      if look_twice and min(band.shape) >= 3:
        inside, means = _neighbourhoods(band)
        between += np.bincount(codes[1:-1, 1:-1][inside], minlength=len(values))
        flat = tuple(map(_merge, flat, means))
  objects = None
  if not lossy and may_number(values):
    objects = find_objects(mask, values)
  return MaskValues(path, values, counts, solid, between, flat, lossy, objects)


def _bands(shape: tuple[int, int]):
  """Yields first and last row (not included) of the parts to count at once."""
  rows = max(1, _BAND_PIXELS // max(shape[1], 1))
  for first in range(0, shape[0], rows):
    yield first, min(first + rows, shape[0])


def _unique(planes: np.ndarray) -> np.ndarray:
  low, high = int(planes.min()), int(planes.max())
  if high - low >= 65536:
    return np.unique(planes)
  seen = np.zeros(high - low + 1, bool)  # Many times faster than sorting.
  for plane in planes:
    for first, last in _bands(plane.shape):
      seen[plane[first:last] - low] = True
  return np.flatnonzero(seen) + low


def _codes(band: np.ndarray, values: np.ndarray) -> np.ndarray:
  low, high = int(values[0]), int(values[-1])
  if high - low >= 65536:
    return np.searchsorted(values, band)
  table = np.zeros(high - low + 1, np.int32)
  table[values - low] = np.arange(len(values), dtype=np.int32)
  return table[band - low]


def _in_blocks(codes: np.ndarray) -> np.ndarray:
  """Returns which pixels are in a 2x2 block of one value."""
  rows = codes[:-1] == codes[1:]
  columns = codes[:, :-1] == codes[:, 1:]
  block = rows[:, :-1] & rows[:, 1:] & columns[:-1]
  inside = np.zeros(codes.shape, bool)
  for y in (slice(None, -1), slice(1, None)):
    for x in (slice(None, -1), slice(1, None)):
      inside[y, x] |= block
  return inside


def _neighbourhoods(band: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
  """Returns which inner pixels lie between others, and the flat means."""
  high = _reduce_3x3(np.maximum, band)
  low = _reduce_3x3(np.minimum, band)
  inner = band[1:-1, 1:-1]
  sums = _reduce_3x3(np.add, band)
  means = []
  for spread in SPREADS:
    rounded = np.rint(sums[high - low <= spread] / 9).astype(np.int64)
    means.append(np.stack(np.unique(rounded, return_counts=True)))
  return (low < inner) & (inner < high), means


def _reduce_3x3(function: np.ufunc, band: np.ndarray) -> np.ndarray:
  rows = function(function(band[:-2], band[1:-1]), band[2:])
  return function(function(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _merge(*flats: np.ndarray) -> np.ndarray:
  """Returns values and counts of several such, summed by value."""
  joined = np.concatenate(flats, axis=1)
  values, index = np.unique(joined[0], return_inverse=True)
  counts = np.bincount(index, joined[1], minlength=len(values))
  return np.stack([values, counts.astype(np.int64)])


class Pool(NamedTuple):
  """The values of several masks together; see `MaskValues`.

  Attributes:
    values: `[K]`, ascending.
    counts: `[K]`
    solid: `[K]`
    between: `[K]`
    files: `[K]`, how many masks hold each value.
    flat: for each of SPREADS `[2, L]`
  """

  values: np.ndarray
  counts: np.ndarray
  solid: np.ndarray
  between: np.ndarray
  files: np.ndarray
  flat: tuple[np.ndarray, ...]


def pool(masks) -> Pool:
  """Returns the sums over the masks."""
  values, index = np.unique(
    np.concatenate([mask.values for mask in masks]), return_inverse=True
  )

  def total(numbers):
    return np.bincount(index, np.concatenate(numbers)).astype(np.int64)

  return Pool(
    values,
    total([mask.counts for mask in masks]),
    total([mask.solid for mask in masks]),
    total([mask.between for mask in masks]),
    total([np.ones(len(mask.values)) for mask in masks]),
    tuple(
      _merge(*(mask.flat[i] for mask in masks)) for i in range(len(SPREADS))
    ),
  )
