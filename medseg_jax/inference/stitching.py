"""Adds up weighted tiles, row by row, and hands out what is finished.

Only the planes along axis 0 that the current row of tiles covers are held: on
the device as an array `[patch[0], *rest, K]`, or, where that does not fit, on
the host as a deque of its planes. `start` sets the device to work and returns
at once, `read` waits for the numbers.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from medseg_jax.inference.tiles import Grid, corner, window

SLAB_VALUES = 2**24  # of a slab at most, but a plane at least
UNKNOWN_MEMORY = 2**31  # bytes to take of a device that does not tell its own


class Run(NamedTuple):
  """Tiles of one row of one grid that follow each other in a batch."""

  grid: Grid
  places: list[tuple[int, ...]]
  first: int  # number of the first of them in the batch


class Slab(NamedTuple):
  """Planes of an image that no further tile changes.

  Attributes:
    logits: `[d, *S_rest, K]` float32.
    is_last: whether the image ends with it.
  """

  logits: np.ndarray | jax.Array
  is_last: bool


class Job(NamedTuple):
  """What is under way on the device.

  Attributes:
    run: its tiles.
    logits: of the whole batch where the host adds them, else None.
    slabs: finished, each with the part of it that counts.
  """

  run: Run
  logits: jax.Array | None
  slabs: collections.deque[tuple[jax.Array, tuple[slice, ...]]]


def free_bytes(logits: jax.Array | np.ndarray) -> int:
  """Returns the memory that sums may take where `logits` lie.

  A quarter of what is free there: the network needs the rest. 0 where they lie
  on a CPU: its memory is the host's, where NumPy adds as fast and compiles
  nothing; and while they are traced, when there is no choice.
  """
  if not isinstance(logits, jax.Array) or isinstance(logits, jax.core.Tracer):
    return 0
  device: Any = next(iter(logits.sharding.addressable_devices))
  if device.platform == 'cpu':
    return 0
  stats = device.memory_stats() or {}
  if 'bytes_limit' not in stats:
    return UNKNOWN_MEMORY
  return (stats['bytes_limit'] - stats.get('bytes_in_use', 0)) // 4


def start(run: Run, logits: jax.Array, buffer_bytes: int) -> Job:
  """Returns what to read later of the run's tiles; waits for nothing."""
  grid = run.grid
  if grid.total is None:
    grid.total = _new_total(grid, logits, buffer_bytes)
  if isinstance(grid.total, collections.deque):
    return Job(run, logits, collections.deque())
  places = np.zeros((len(logits), len(grid.size)), int)
  places[run.first : run.first + len(run.places)] = run.places
  columns = list(places.T)
  corners = [s[i] for s, i in zip(grid.starts[1:], columns[1:], strict=True)]
  weights = [w[i] for w, i in zip(grid.weights, columns, strict=True)]
  end = run.first + len(run.places)
  total = _add(grid.total, logits, weights, corners, run.first, end)
  begin, end, finished = _finished(run)
  depth = _slab_depth(total.shape)
  inside = window(grid.origin[1:], grid.size[1:])
  slabs: collections.deque[tuple[jax.Array, tuple[slice, ...]]] = (
    collections.deque()
  )
  for plane in range(begin, end, depth):
    # The last slab begins earlier, so that all have one shape.
    at = min(plane, len(total) - depth)
    count = min(end - plane, depth)
    slab = _take(total, at, depth)
    slabs.append((slab, (slice(plane - at, plane - at + count), *inside)))
  if not finished:
    grid.total = total
  else:
    grid.total = None if _is_last_row(run) else _shift(total, finished)
  return Job(run, None, slabs)


def read(job: Job) -> Iterator[Slab]:
  """Yields the slabs that the job finished."""
  if job.logits is not None:
    yield from _add_on_host(job.run, np.asarray(job.logits))
  slab: np.ndarray | jax.Array
  while job.slabs:
    slab, inside = job.slabs.popleft()
    traced = isinstance(slab, jax.core.Tracer)
    slab = (slab if traced else np.asarray(slab))[inside]
    yield Slab(slab, is_last=_is_last_row(job.run) and not job.slabs)


def _add_on_host(run: Run, logits: np.ndarray) -> Iterator[Slab]:
  grid, planes = run.grid, run.grid.total
  if not planes:
    shape = (grid.patch[0], *grid.padded[1:], logits.shape[-1])
    # Views of one array: planes that come and go would tear the heap to pieces.
    planes.extend(np.zeros(shape, np.float32))
  _add_planes(run, logits, planes)
  begin, end, finished = _finished(run)
  if not finished:
    return
  last = _is_last_row(run)
  depth = _slab_depth((len(planes), *planes[0].shape))
  inside = window(grid.origin[1:], grid.size[1:])
  _move_on(planes, begin, last)
  for plane in range(begin, end, depth):
    count = min(end - plane, depth)
    slab = np.stack([p[inside] for p in itertools.islice(planes, count)])
    _move_on(planes, count, last)
    yield Slab(slab, is_last=last and plane + count == end)
  _move_on(planes, finished - end, last)


def _add_planes(
  run: Run, logits: np.ndarray, planes: collections.deque[np.ndarray]
) -> None:
  grid = run.grid
  for place, tile in zip(run.places, logits[run.first :], strict=False):
    first, *rest = [w[i] for w, i in zip(grid.weights, place, strict=True)]
    across = functools.reduce(np.multiply.outer, rest, np.ones((), np.float32))[
      ..., None
    ]
    inside = window(corner(grid, place)[1:], grid.patch[1:])
    tile = tile.reshape(*grid.patch, -1)
    for plane, values, share in zip(planes, tile, first, strict=True):
      part = plane[inside]
      part += values.astype(np.float32, copy=False) * (across * share)


def _move_on(
  planes: collections.deque[np.ndarray], count: int, last: bool
) -> None:
  """Takes the first planes away; empty they come back behind the others."""
  for _ in range(count):
    plane = planes.popleft()
    if not last:
      plane[...] = 0
      planes.append(plane)


def _finished(run: Run) -> tuple[int, int, int]:
  """Returns begin, end of the image's planes that the run finished, and how
  many planes it finished in all, padding included; all 0 within a row."""
  grid, place = run.grid, run.places[-1]
  rest = zip(place[1:], grid.starts[1:], strict=True)
  if any(i + 1 < len(starts) for i, starts in rest):
    return 0, 0, 0
  row, starts = place[0], grid.starts[0]
  here = int(starts[row])
  finished = grid.patch[0]
  if not _is_last_row(run):
    finished = int(starts[row + 1]) - here
  begin = max(grid.origin[0] - here, 0)
  end = min(grid.origin[0] + grid.size[0] - here, finished)
  return begin, end, finished


def _is_last_row(run: Run) -> bool:
  return run.places[-1][0] + 1 == len(run.grid.starts[0])


def _slab_depth(shape: Sequence[int]) -> int:
  """Returns how many planes of sums of `shape` leave in one slab."""
  return max(1, min(shape[0], SLAB_VALUES // math.prod(shape[1:])))


def _new_total(
  grid: Grid, logits: jax.Array, buffer_bytes: int
) -> jax.Array | collections.deque[np.ndarray]:
  num_classes = logits.shape[-1]
  if isinstance(logits, jax.core.Tracer):
    return jnp.zeros((grid.patch[0], *grid.padded[1:], num_classes))
  shape = (grid.patch[0], *_bucket(grid), num_classes)
  # Twice: moving the planes on makes a copy.
  if 2 * 4 * math.prod(shape) > buffer_bytes:
    return collections.deque()
  return jnp.zeros(shape, jnp.float32)


def _bucket(grid: Grid) -> list[int]:
  """Returns the size of a plane of the sums, at least the padded image's.

  The tile's, times the same power of sqrt(2) along every axis, so that a few
  compiled programs serve all images.
  """
  power, sizes = 0, list(grid.patch[1:])
  while any(np.less(sizes, grid.padded[1:])):
    power += 1
    sizes = [math.ceil(p * 2 ** (power / 2)) for p in grid.patch[1:]]
  return sizes


@functools.partial(jax.jit, donate_argnames='total')
def _add(
  total: jax.Array,
  logits: jax.Array,
  weights: list[jax.Array],
  corners: list[jax.Array],
  first: int,
  end: int,
) -> jax.Array:
  """Returns `total` with tiles `first` to `end` of the batch added."""
  patch = [w.shape[1] for w in weights]
  logits = logits.reshape(len(logits), *patch, total.shape[-1])

  def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
    values = logits[i].astype(jnp.float32)
    for axis, weight in enumerate(weights):
      shape = [1] * values.ndim
      shape[axis] = -1
      values *= weight[i].reshape(shape)
    at: list[int | jax.Array] = [0, *(c[i] for c in corners), 0]
    old = lax.dynamic_slice(total, at, values.shape)
    return lax.dynamic_update_slice(total, old + values, at)

  return lax.fori_loop(first, end, add_tile, total)


@functools.partial(jax.jit, static_argnames='depth')
def _take(total: jax.Array, at: int, depth: int) -> jax.Array:
  return lax.dynamic_slice_in_dim(total, at, depth)


@jax.jit
def _shift(total: jax.Array, by: int) -> jax.Array:
  """Returns the planes from `by` on, filled up with planes of 0."""
  planes = jnp.arange(len(total)) + by
  return jnp.take(total, planes, axis=0, mode='fill', fill_value=0)
