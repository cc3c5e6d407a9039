"""Prediction on images larger than the patch: overlapping, weighted tiles.

The tiles of one image after the other form one stream, which is cut into
batches of one fixed shape: the network compiles once, and small images share
batches. `tiles.py` says where tiles lie and what they weigh, `stitching.py`
adds them up.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from medseg_jax.inference import stitching, tiles
from medseg_jax.inference.stitching import Run, Slab
from medseg_jax.inference.tiles import Tile

# `[N, *patch_size, C] -> [N, *patch_size, K]`; tiles come from the host.
PredictFn = Callable[[Any], jax.Array]
Case = TypeVar('Case')  # whatever an image is known by

FLUSH_BATCHES = 8  # an image of at least so many fills up its last one


def sliding_window(
  predict_fn: PredictFn,
  image: jax.Array | np.ndarray,
  patch_size: tuple[int, ...],
  *,
  overlap: float = 0.5,
  batch_size: int = 1,
) -> jax.Array:
  """Returns the logits `[*S, K]` float32 of `image` on its own grid.

  Tiles of `patch_size` overlap by at least `overlap` and are averaged with
  Gaussian weights, which trust the middle of a tile more than its border
  (nnU-Net, arXiv:1904.08128). Where the image is smaller than the tile it is
  padded with 0 on both sides, and the padding is cut off again.

  Every call of `predict_fn` has the same shape, whatever the image's, so a
  jitted one compiles once. Works under `jit` too. `sliding_slabs` gives the
  same in pieces, for volumes whose logits do not fit into memory.

  Args:
    predict_fn: `[N, *patch_size, C] -> [N, *patch_size, K]`, N = `batch_size`.
    image: `[*S, C]`, preprocessed as in training.
    patch_size: as many numbers as there are spatial axes; or one fewer: then
      each slice of axis 0 is an image of its own.
    overlap: share of a tile that the next one covers again, 0 up to below 1.
    batch_size: tiles predicted at once; the last batch is filled up.

  Raises:
    ValueError: the ranks disagree or a number is out of range.
  """
  slabs = sliding_slabs(
    predict_fn, image, patch_size, overlap=overlap, batch_size=batch_size
  )
  first = next(slabs)
  if isinstance(first, jax.core.Tracer):
    return jnp.concatenate([first, *slabs])
  logits = np.empty((*image.shape[:-1], first.shape[-1]), np.float32)
  begin = 0
  for slab in itertools.chain([first], slabs):
    logits[begin : begin + len(slab)] = slab
    begin += len(slab)
  return jnp.asarray(logits)


def sliding_slabs(
  predict_fn: PredictFn,
  image: jax.Array | np.ndarray,
  patch_size: tuple[int, ...],
  *,
  overlap: float = 0.5,
  batch_size: int = 1,
  buffer_bytes: int | None = None,
) -> Iterator[np.ndarray | jax.Array]:
  """Returns `sliding_window`'s logits in consecutive slabs along axis 0.

  A slab is `[d, *S_rest, K]` float32; all together have the image's planes.
  Only the planes that the tiles of one row cover are held, and the image stays
  on the host: the device gets it in batches of tiles.

  Args:
    predict_fn: as in `sliding_window`.
    image: likewise, of any float or integer type.
    patch_size: likewise.
    overlap: likewise.
    batch_size: likewise.
    buffer_bytes: of device memory that the sums may take; where they need more
      they are kept in host memory. None for a quarter of what is free
      there. (On CPU they always are in host memory.)

  Raises:
    ValueError: the ranks disagree or a number is out of range.
  """
  _check(overlap, batch_size)
  tiles.full_rank(patch_size, image.ndim - 1)
  stream = stream_slabs(
    predict_fn,
    iter([(None, image)]),
    patch_size,
    overlap=overlap,
    batch_size=batch_size,
    buffer_bytes=buffer_bytes,
  )
  return (slab.logits for _, slab in stream)


def stream_slabs(
  predict_fn: PredictFn,
  images: Iterable[tuple[Case, np.ndarray | jax.Array] | None],
  patch_size: tuple[int, ...],
  *,
  overlap: float = 0.5,
  batch_size: int = 1,
  buffer_bytes: int | None = None,
  watch: Callable[[float], None] | None = None,
) -> Iterator[tuple[Case, Slab]]:
  """Yields `(case, slab)`, the slabs of one image after those of the other.

  Small images share batches: the next image is asked for when a batch has room
  for its tiles. An image of many tiles is finished before the next one is asked
  for. Other arguments and errors are those of `sliding_slabs`.

  Args:
    predict_fn: see `sliding_window`.
    images: each with whatever its slabs are to be known by. None among them
      asks to finish those before it first.
    patch_size: see `sliding_window`.
    overlap: likewise.
    batch_size: likewise.
    buffer_bytes: see `sliding_slabs`.
    watch: takes the share of an image of many tiles that the network has had,
      whenever it has had more of it.
  """
  _check(overlap, batch_size)
  many = FLUSH_BATCHES * batch_size
  stream = _stream(images, tuple(patch_size), overlap, many)
  waiting: collections.deque[stitching.Job] = collections.deque()
  for batch in _batches(stream, batch_size):
    started = []
    share = 0.0
    if batch:
      grid = batch[-1].grid
      if grid.num_tiles >= many:
        share = (grid.number_of(batch[-1].place) + 1) / grid.num_tiles
      logits = predict_fn(_stack(batch, batch_size))
      if buffer_bytes is None:
        buffer_bytes = stitching.free_bytes(logits)
      started = [
        stitching.start(run, logits, buffer_bytes) for run in _runs(batch)
      ]
      del (
        batch,
        logits,
        grid,
      )  # so that they are gone when the next ones are made
    # A batch's results are read once the next batch is on its way, so that the
    # device works while the host adds, cuts and decodes.
    while waiting:
      job = waiting.popleft()
      for slab in stitching.read(job):
        yield job.run.grid.case, slab
        del slab
      del job
    waiting.extend(started)
    if watch is not None and share:
      watch(share)


def by_case(
  stream: Iterator[tuple[Case, Slab]],
) -> Iterator[tuple[Case, Iterator[np.ndarray | jax.Array]]]:
  """Yields `(case, its slabs' logits)`, to be read before the next case.

  After the last slab of a case none is asked for: that would wait for the
  network to predict the next case.
  """
  for case, slab in stream:
    yield case, _of_one_case(slab, stream)
    del case, slab


def _of_one_case(
  slab: Slab, stream: Iterator[tuple[Any, Slab]]
) -> Iterator[np.ndarray | jax.Array]:
  while True:
    logits, is_last = slab
    del slab
    yield logits
    del logits
    if is_last:
      return
    _, slab = next(stream)


def _check(overlap: float, batch_size: int) -> None:
  if not 0 <= overlap < 1:
    raise ValueError(f'overlap is {overlap}; allowed is 0 up to below 1')
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; allowed is 1 or more')


def _stream(
  images: Iterable[tuple[Any, np.ndarray | jax.Array] | None],
  patch_size: tuple[int, ...],
  overlap: float,
  flush_tiles: int,
) -> Iterator[Tile | None]:
  """Yields every image's tiles, and None where a batch has to end."""
  for item in images:
    if item is None:
      yield None
      continue
    case, image = item
    grid = tiles.lay_out(
      image.shape[:-1], patch_size, overlap=overlap, case=case
    )
    del item, case
    yield from tiles.cut(image, grid, patch_size)
    del image  # before the next one is made
    if grid.num_tiles >= flush_tiles:
      yield None
    del grid


def _batches(
  stream: Iterator[Tile | None], batch_size: int
) -> Iterator[list[Tile]]:
  """Yields lists of up to `batch_size` tiles; [] to read what is under way."""
  batch: list[Tile] = []
  for tile in stream:
    if tile is not None:
      batch.append(tile)
    if len(batch) == batch_size or (tile is None and batch):
      yield batch
      batch = []
    if tile is None:
      yield []
  if batch:
    yield batch
  yield []


def _stack(batch: list[Tile], batch_size: int) -> jax.Array | np.ndarray:
  """Returns the tiles as `[batch_size, *patch_size, C]`, filled up with 0."""
  xp = jnp if isinstance(batch[0].values, jax.core.Tracer) else np
  stacked = xp.stack([tile.values for tile in batch])
  if len(batch) == batch_size:
    return stacked
  filler = [(0, batch_size - len(batch))] + [(0, 0)] * (stacked.ndim - 1)
  return xp.pad(stacked, filler)


def _runs(batch: list[Tile]) -> list[Run]:
  """Returns the batch's tiles, those of one row of one image together."""
  rows = itertools.groupby(
    enumerate(batch), key=lambda item: (id(item[1].grid), item[1].place[0])
  )
  runs = []
  for row in (list(row) for _, row in rows):
    first, tile = row[0]
    runs.append(Run(tile.grid, [tile.place for _, tile in row], first))
  return runs
