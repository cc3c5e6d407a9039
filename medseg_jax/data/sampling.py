"""Which patches make the batch of a step: a pure function of (seed, step).

Nothing of the order needs to be saved: a resumed run asks for the batch of its
next step and sees exactly what an uninterrupted one would have seen.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

IGNORE = -1  # label of pixels outside the image, left out of the loss
# Of each class so many voxels are remembered, or this share of more (nnU-Net).
MIN_VOXELS = 10_000
SHARE_OF_VOXELS = 0.01


class Patches(NamedTuple):
  """The patches of one batch.

  Attributes:
    cases: `[B]` index of the case of each patch.
    starts: `[B, R]` first voxel of each patch; negative where the patch is
      larger than its image.
  """

  cases: np.ndarray
  starts: np.ndarray


def volume_patch(patch_size: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Returns `patch_size` in data of `rank` axes.

  Two numbers for volumes mean slices across the first axis: `(1, y, x)`.
  """
  return (1,) * (rank - len(patch_size)) + tuple(patch_size)


def choose_patches(
  *,
  seed: int,
  step: int,
  batch_size: int,
  shapes: Sequence[tuple[int, ...]],
  patch_size: tuple[int, ...],
  voxels: Sequence[Mapping[int, np.ndarray]] | None = None,
  foreground_share: float = 0.0,
) -> Patches:
  """Returns the patches of the batch that takes the state from `step` on.

  Every case comes once in each pass over the data, in an order shuffled anew;
  a batch may straddle two passes. Positions are uniform, but for a share at
  the end of each batch: there a class is drawn among those in the case, then a
  voxel of it, and the patch is centred on that, as far as the patch stays
  inside the image (Isensee et al., 2021). Where the case has no foreground its
  position is uniform.

  Args:
    seed: of the order and of the positions.
    step: number of the batch.
    batch_size: of the whole batch.
    shapes: of the cases.
    patch_size: spatial; with one number fewer than `shapes` have, slices.
    voxels: `voxels[case]` is `{class: [n, R]}`; needed for the share.
    foreground_share: of the batch; above 0 at least one patch is such.
  """
  if foreground_share and voxels is None:
    raise ValueError('foreground_share needs voxels, the places of the classes')
  patch_size = volume_patch(patch_size, len(shapes[0]))
  uniform = batch_size
  if foreground_share:
    uniform = min(round(batch_size * (1 - foreground_share)), batch_size - 1)
  cases, starts = [], []
  for n in range(step * batch_size, (step + 1) * batch_size):
    epoch, place = divmod(n, len(shapes))
    case = int(_permutation(seed, epoch, len(shapes))[place])
    rng = _generator(seed, 2 * n)
    room = np.subtract(shapes[case], patch_size)
    # A patch larger than its image is centred on it.
    low = np.where(room < 0, room // 2, 0)
    high = np.where(room < 0, room // 2, room)
    present = voxels[case] if n - step * batch_size >= uniform else None
    if present:
      points = present[sorted(present)[rng.integers(len(present))]]
      centre = points[rng.integers(len(points))].astype(int)
      start = np.clip(centre - np.floor_divide(patch_size, 2), low, high)
    else:
      start = low + rng.integers(0, high - low + 1)
    cases.append(case)
    starts.append(start)
  return Patches(np.asarray(cases), np.asarray(starts))


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  # Odd counters keep these draws apart from those of the positions.
  return _generator(seed, 2 * epoch + 1).permutation(size)


def _generator(seed: int, counter: int) -> np.random.Generator:
  key = np.asarray([seed, counter], np.uint64)
  return np.random.Generator(np.random.Philox(key=key))


def foreground_voxels(label: np.ndarray, *, name: str) -> dict[int, np.ndarray]:
  """Returns voxels of each class above 0 in `label` `[*S]`: `{class: [n, R]}`.

  All of a class with few, otherwise a sample without replacement of 10,000 or
  1 %, whichever is more (the rule of nnU-Net); uint16 where that suffices.

  Args:
    label: class indices.
    name: of the case; the sample depends on nothing else.
  """
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  rng = np.random.default_rng(int.from_bytes(digest[:8], 'big'))
  dtype = np.uint16 if max(label.shape) <= 2**16 else np.int32
  chosen = {}
  # Classes are sought in their own boxes: a scan of the whole volume for each
  # of a hundred organs would take longer than everything else.
  for index, box in enumerate(ndimage.find_objects(label), start=1):
    if box is None:
      continue
    mask = label[box] == index
    flat = np.flatnonzero(mask)
    count = max(MIN_VOXELS, math.ceil(SHARE_OF_VOXELS * len(flat)))
    if count < len(flat):
      flat = rng.choice(flat, count, replace=False)
    corner = [part.start for part in box]
    chosen[index] = (
      np.stack(np.unravel_index(flat, mask.shape), -1) + corner
    ).astype(dtype)
  return chosen


def read_batch(
  images: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  patches: Patches,
  patch_size: tuple[int, ...],
  read_size: tuple[int, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[B, *read, C]` and labels `[B, *read]` int16.

  Where a patch sticks out of its image, the image is 0 and the label `IGNORE`.

  Args:
    images: `[*S, C]` each; only the patches are read.
    labels: `[*S]` each.
    patches: of this batch.
    patch_size: that they were chosen for. With one number fewer than `S` has,
      they are slices, and come without that axis.
    read_size: at least `patch_size`, which it is by default: a margin around
      the patch, for an augmentation that turns it.
  """
  read_size = tuple(read_size or patch_size)
  batch_size, rank = patches.starts.shape
  size = volume_patch(read_size, rank)
  margin = np.subtract(size, volume_patch(patch_size, rank)) // 2
  channels = images[0].shape[-1]
  image = np.zeros((batch_size, *size, channels), images[0].dtype)
  label = np.full((batch_size, *size), IGNORE, np.int16)
  for b, (case, start) in enumerate(zip(*patches, strict=True)):
    _copy_patch(image[b], images[case], start - margin)
    _copy_patch(label[b], labels[case], start - margin)
  return (
    image.reshape(batch_size, *read_size, channels),
    label.reshape(batch_size, *read_size),
  )


def _copy_patch(patch: np.ndarray, array: np.ndarray, start) -> None:
  """Fills `patch` with `array` from `start` on, where `array` reaches."""
  source, target = [], []
  for axis, first in enumerate(start):
    begin = max(first, 0)
    end = max(min(first + patch.shape[axis], array.shape[axis]), begin)
    source.append(slice(begin, end))
    target.append(slice(begin - first, end - first))
  patch[tuple(target)] = array[tuple(source)]
