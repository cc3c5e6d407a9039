"""Which patches make the batch of a step: a pure function of (seed, step).

Nothing of the order needs to be saved: a resumed run asks for the batch of its
next step and sees exactly what an uninterrupted one would have seen.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IGNORE = -1  # label of pixels outside the image, left out of the loss


class Patches(NamedTuple):
  """The patches of one batch.

  Attributes:
    cases: `[B]` index of the case of each patch.
    starts: `[B, R]` first voxel of each patch; negative where the patch is
      larger than its image.
  """

  cases: np.ndarray
  starts: np.ndarray


def choose_patches(
  *,
  seed: int,
  step: int,
  batch_size: int,
  shapes: Sequence[tuple[int, ...]],
  patch_size: tuple[int, ...],
) -> Patches:
  """Returns the patches of the batch that takes the state from `step` on.

  Every case comes once in each pass over the data, in an order shuffled anew;
  a batch may straddle two passes. Positions are uniform.
  """
  cases, starts = [], []
  for n in range(step * batch_size, (step + 1) * batch_size):
    epoch, place = divmod(n, len(shapes))
    case = int(_permutation(seed, epoch, len(shapes))[place])
    rng = _generator(seed, 2 * n)
    room = np.subtract(shapes[case], patch_size)
    # A patch larger than its image is centred on it.
    drawn = rng.integers(0, np.maximum(room, 0) + 1)
    start = np.where(room < 0, room // 2, drawn)
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


def read_batch(
  images: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  patches: Patches,
  patch_size: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[B, *patch, C]` and labels `[B, *patch]` int16.

  Where a patch sticks out of its image, the image is 0 and the label `IGNORE`.
  """
  batch_size = len(patches.cases)
  channels = images[0].shape[-1]
  image = np.zeros((batch_size, *patch_size, channels), images[0].dtype)
  label = np.full((batch_size, *patch_size), IGNORE, np.int16)
  for b, (case, start) in enumerate(zip(*patches, strict=True)):
    _copy_patch(image[b], images[case], start)
    _copy_patch(label[b], labels[case], start)
  return image, label


def _copy_patch(patch: np.ndarray, array: np.ndarray, start) -> None:
  """Fills `patch` with `array` from `start` on, where `array` reaches."""
  source, target = [], []
  for axis, first in enumerate(start):
    last = min(first + patch.shape[axis], array.shape[axis])
    source.append(slice(max(first, 0), last))
    target.append(slice(max(-first, 0), last - first))
  patch[tuple(target)] = array[tuple(source)]
