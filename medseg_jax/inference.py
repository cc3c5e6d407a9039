"""Prediction on images larger than the patch: overlapping, weighted tiles."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def sliding_window(
  predict_fn: Callable[[jax.Array], jax.Array],
  image: jax.Array,
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
  jitted one compiles once. Works under `jit` too.

  Args:
    predict_fn: `[N, *patch_size, C] -> [N, *patch_size, K]`, N = `batch_size`.
    image: `[*S, C]`, preprocessed as in training.
    patch_size: as many numbers as there are spatial axes.
    overlap: share of a tile that the next one covers again, 0 up to below 1.
    batch_size: tiles predicted at once; the last batch is filled up.

  Raises:
    ValueError: the ranks disagree or a number is out of range.
  """
  rank = image.ndim - 1
  if len(patch_size) != rank:
    raise ValueError(
      f'patch_size is {tuple(patch_size)}, but the image has {rank} axes'
    )
  if not 0 <= overlap < 1:
    raise ValueError(f'overlap is {overlap}; allowed is 0 up to below 1')
  if batch_size < 1:
    raise ValueError(f'batch_size is {batch_size}; allowed is 1 or more')
  size = image.shape[:-1]
  image, origin = pad_to(image, patch_size)
  image = jnp.asarray(image)  # once, not with every batch of tiles
  starts = tile_starts(image.shape[:-1], patch_size, overlap=overlap)
  num_tiles = len(starts)
  # The tiles that fill up the last batch repeat the first one with weight 0.
  filler = -num_tiles % batch_size
  starts = np.concatenate([starts, np.repeat(starts[:1], filler, 0)])
  used = (np.arange(len(starts)) < num_tiles).astype(np.float32)
  weight = jnp.asarray(gaussian_weight(tuple(patch_size)))

  total, norm = None, jnp.zeros((*image.shape[:-1], 1), jnp.float32)
  for i in range(0, len(starts), batch_size):
    some = slice(i, i + batch_size)
    logits = predict_fn(_cut(image, starts[some], tuple(patch_size)))
    if total is None:
      total = jnp.zeros((*image.shape[:-1], logits.shape[-1]), jnp.float32)
    total, norm = _add(total, norm, logits, weight, starts[some], used[some])
  inside = tuple(slice(o, o + n) for o, n in zip(origin, size, strict=True))
  return (total / norm)[inside]


def tile_starts(
  size: tuple[int, ...], patch_size: tuple[int, ...], *, overlap: float
) -> np.ndarray:
  """Returns the first voxel of every tile, `[T, R]`, evenly spread.

  Along an axis there are `ceil((size - patch) / stride) + 1` tiles with
  `stride = (1 - overlap) * patch`; the first begins at 0, the last ends at the
  image's end.
  """
  axes = []
  for n, p in zip(size, patch_size, strict=True):
    stride = max((1 - overlap) * p, 1)
    count = int(np.ceil(max(n - p, 0) / stride)) + 1
    axes.append(np.round(np.linspace(0, max(n - p, 0), count)).astype(int))
  return np.asarray(list(itertools.product(*axes)))


@functools.lru_cache(maxsize=8)
def gaussian_weight(patch_size: tuple[int, ...]) -> np.ndarray:
  """Returns a tile's weights `[*patch_size]`, float32 in (0, 1].

  A Gaussian about the centre with a standard deviation of an eighth of the
  tile. Far corners keep at least 1e-3 of the peak, so that places which only
  one tile's corner covers are not lost in rounding.
  """
  weight = np.ones(())
  for p in patch_size:
    x = (np.arange(p) - (p - 1) / 2) / (p / 8)
    weight = weight[..., None] * np.exp(-0.5 * x**2)
  return np.maximum(weight / weight.max(), 1e-3).astype(np.float32)


def pad_to(image: jax.Array, patch_size: tuple[int, ...]):
  """Returns `image` at least as large as the patch, and where it begins."""
  missing = [
    max(p - n, 0) for p, n in zip(patch_size, image.shape[:-1], strict=True)
  ]
  before = [m // 2 for m in missing]
  pads = [(b, m - b) for b, m in zip(before, missing, strict=True)]
  if any(missing):
    xp = np if isinstance(image, np.ndarray) else jnp
    image = xp.pad(image, [*pads, (0, 0)])
  return image, before


@functools.partial(jax.jit, static_argnames='patch_size')
def _cut(image, starts, patch_size):
  def cut(start):
    return lax.dynamic_slice(
      image, (*start, 0), (*patch_size, image.shape[-1])
    )
  return jax.vmap(cut)(starts)


@functools.partial(jax.jit, donate_argnames=('total', 'norm'))
def _add(total, norm, logits, weight, starts, used):
  def add_at(array, start, values):
    corner = (*start, 0)
    old = lax.dynamic_slice(array, corner, values.shape)
    return lax.dynamic_update_slice(array, old + values, corner)

  def add_tile(i, sums):
    total, norm = sums
    w = (weight * used[i])[..., None]
    return (
      add_at(total, starts[i], logits[i].astype(jnp.float32) * w),
      add_at(norm, starts[i], w),
    )

  return lax.fori_loop(0, len(logits), add_tile, (total, norm))
