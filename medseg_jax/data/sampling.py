"""Which patches make the batch of a step: a pure function of (seed, step).

Nothing of the order needs to be saved: a resumed run asks for the batch of its
next step and sees exactly what an uninterrupted one would have seen.

The random numbers are those of a counter: `threefry2x32(key, (step, i))`, in
uint32 arithmetic on whole arrays. So NumPy on the host and jax.numpy inside the
compiled step (`xp`) choose the same patches to the bit. Each purpose has a key
of its own (`purpose_key`), so no number is drawn twice. A number below `n` is
the remainder by `n`, whose bias is less than n / 2**32.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medseg_jax.data.masking import IGNORE, NOWHERE

# Of each class so many voxels are remembered, or this share of more (nnU-Net).
MIN_VOXELS = 10_000
SHARE_OF_VOXELS = 0.01
# Key of voxels of any label but IGNORE; classes and regions have keys above.
ANNOTATED = 0
# What random numbers are drawn for, see `purpose_key`.
_ORDER, _PATCHES = 1, 2

Array = Any  # of NumPy or of jax.numpy


class Patches(NamedTuple):
  """The patches of one batch.

  Attributes:
    cases: `[B]` int32, index of the case of each patch.
    starts: `[B, R]` int32, first voxel of each patch; negative where the patch
      is larger than its image.
  """

  cases: Array
  starts: Array


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
  the end of each batch: there a class (or region) is drawn among those in the
  case, then a voxel of it, and the patch is centred on that, as far as the
  patch stays inside the image (Isensee et al., 2021). All other patches, and
  those of the share where the case has no foreground, are centred on a voxel of
  `ANNOTATED` where the case has such.

  Args:
    seed: of the order and of the positions.
    step: number of the batch.
    batch_size: of the whole batch.
    shapes: of the cases.
    patch_size: spatial; with one number fewer than `shapes` have, slices.
    voxels: `voxels[case]` as of `voxels_of_source`; needed for the share.
    foreground_share: of the batch; above 0 at least one patch is such.
  """
  if foreground_share and voxels is None:
    raise ValueError('foreground_share needs voxels, the places of the classes')

  def voxel_fn(cases, forced, class_bits, voxel_bits):
    centres = np.full((len(cases), len(shapes[0])), -1, np.int32)
    for i, case in enumerate(cases):
      found = voxels[case]
      present = sorted(found.keys() - {ANNOTATED})
      if forced[i] and present:
        points = found[present[class_bits[i] % len(present)]]
      elif ANNOTATED in found:
        points = found[ANNOTATED]
      else:
        continue
      centres[i] = points[voxel_bits[i] % len(points)]
    return centres

  return draw_patches(
    seed=seed,
    step=step,
    batch_size=batch_size,
    num_cases=len(shapes),
    rank=len(shapes[0]),
    shape_fn=lambda cases: np.asarray([shapes[i] for i in cases], np.int32),
    voxel_fn=None if voxels is None else voxel_fn,
    patch_size=patch_size,
    foreground_share=foreground_share,
  )


def draw_patches(
  *,
  seed: int,
  step: Array,
  batch_size: int,
  num_cases: int,
  rank: int,
  shape_fn: Callable[[Array], Array],
  voxel_fn: Callable[[Array, Array, Array, Array], Array] | None,
  patch_size: tuple[int, ...],
  foreground_share: float = 0.0,
  xp: Any = np,
) -> Patches:
  """Returns what `choose_patches` does, for data that lies anywhere.

  Args:
    seed: 0 or more, below 2**64.
    step: scalar int, which may be traced; below 2**31.
    batch_size: times `num_cases` below 2**31.
    num_cases: in the data set.
    rank: `R`, the spatial axes of the cases.
    shape_fn: `cases [n] -> [n, R]` int32, their shapes.
    voxel_fn: `(cases, forced, class_bits, voxel_bits)`, each `[B]`, to `[B, R]`
      int32: where to centre the patches, as the random bits say, on one of the
      classes where `forced`, else on an annotated voxel; -1 for anywhere. None
      where all may lie anywhere.
    patch_size: spatial; with fewer than `R` numbers, slices.
    foreground_share: of the batch.
    xp: `numpy`, or `jax.numpy` for traced values.
  """
  patch_size = np.asarray(volume_patch(patch_size, rank), np.int32)
  cases = _cases(seed, step, batch_size, num_cases, xp)
  bits = _bits_of_patches(seed, step, batch_size, rank + 2, xp)
  room = shape_fn(cases) - patch_size
  # A patch larger than its image is centred on it.
  low = xp.where(room < 0, room // 2, 0)
  high = xp.where(room < 0, room // 2, room)
  steps = bits[:, :rank] % (high - low + 1).astype(xp.uint32)
  starts = low + steps.astype(xp.int32)
  if voxel_fn is not None:
    first = min(round(batch_size * (1 - foreground_share)), batch_size - 1)
    forced = (np.arange(batch_size) >= first) & (foreground_share > 0)
    centres = voxel_fn(cases, forced, *bits[:, rank : rank + 2].T)
    centred = xp.clip(centres - patch_size // 2, low, high)
    starts = xp.where(centres < 0, starts, centred)
  return Patches(cases, starts)


def _cases(seed, step, batch_size, num_cases, xp) -> Array:
  """Returns the cases of the batch: `[B]` int32."""
  if num_cases * batch_size >= 2**31:
    raise ValueError(
      f'{num_cases} cases times batch_size={batch_size} is 2**31 or more'
    )
  # step * batch_size itself could exceed 32 bits in a long run.
  passes, rest = divmod(step, num_cases)
  begin = rest * batch_size
  first_epoch = passes * batch_size + begin // num_cases
  places = begin % num_cases + np.arange(batch_size, dtype=np.int32)
  num_epochs = (num_cases + batch_size - 2) // num_cases + 1
  orders = _orders_on_host if xp is np else _orders
  order = orders(seed, first_epoch, num_epochs, num_cases, xp)
  return order[places // num_cases, places % num_cases]


def _orders(seed, first_epoch, num_epochs, num_cases, xp) -> Array:
  """Returns the order of the cases in some epochs: `[epochs, cases]` int32."""
  first_epoch = xp.asarray(first_epoch).astype(xp.uint32)  # modulo 2**32
  epochs = first_epoch + np.arange(num_epochs, dtype=np.uint32)
  hashes, _ = threefry2x32(
    purpose_key(seed, _ORDER),
    epochs[:, None],
    np.arange(num_cases, dtype=np.int32),
    xp,
  )
  # Equal hashes, one pair in 2**32, keep the order of the cases.
  return xp.argsort(hashes, axis=-1, stable=True).astype(xp.int32)


_orders_on_host = functools.lru_cache(maxsize=4)(_orders)


def _bits_of_patches(seed, step, batch_size, count, xp) -> Array:
  """Returns `[B, count]` random uint32 (or one more) for each patch."""
  pairs = np.arange(batch_size * -(-count // 2), dtype=np.uint32)
  counters = pairs.reshape(batch_size, -1)
  words = threefry2x32(purpose_key(seed, _PATCHES), step, counters, xp)
  return xp.stack(words, -1).reshape(batch_size, -1)


@functools.cache
def purpose_key(seed: int, purpose: int) -> tuple[int, int]:
  """Returns the key of one purpose of the random numbers of a seed.

  jax.random, which draws for the weights and within the step, encrypts
  counters whose first word is 0 with keys made of the seed alone. A purpose is
  the first word here and never 0, so their numbers are other ones.

  Args:
    seed: 0 or more, below 2**64.
    purpose: above 0, below 2**32.
  """
  seed_words = seed & 0xFFFFFFFF, seed >> 32
  words = threefry2x32(seed_words, np.uint32([purpose]), 0, np)
  return int(words[0][0]), int(words[1][0])


def threefry2x32(
  key: tuple[int, int], x0: Array, x1: Array, xp: Any
) -> tuple[Array, Array]:
  """Returns two arrays of random uint32 for the counters `(x0, x1)`.

  Twenty rounds of the block cipher of Salmon et al., "Parallel random numbers:
  as easy as 1, 2, 3" (2011), which jax.random uses, too.

  Args:
    key: two numbers below 2**32.
    x0: int or array, below 2**32.
    x1: likewise; broadcast against `x0`.
    xp: `numpy` or `jax.numpy`.
  """
  keys = [np.uint32(k) for k in (*key, key[0] ^ key[1] ^ 0x1BD11BDA)]
  x0, x1 = xp.broadcast_arrays(
    xp.asarray(x0).astype(xp.uint32), xp.asarray(x1).astype(xp.uint32)
  )
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for block in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
      x0 = x0 + x1
      x1 = (x1 << np.uint32(turn)) | (x1 >> np.uint32(32 - turn))
      x1 = x1 ^ x0
    x0 = x0 + keys[(block + 1) % 3]
    x1 = x1 + keys[(block + 2) % 3] + np.uint32(block + 1)
  return x0, x1


def voxels_of_source(
  label: np.ndarray, source: Any, *, name: str
) -> dict[int, np.ndarray]:
  """Returns `sample_voxels` for the regions and the ignore label of a source.

  Sources that have neither, as those of images, need not have the attributes.
  """
  return sample_voxels(
    label,
    name=name,
    regions=[classes for _, classes in getattr(source, 'regions', ())],
    annotated=has_ignore_label(source),
  )


def has_ignore_label(source: Any) -> bool:
  """Returns whether voxels of its cases can be labelled as `IGNORE`."""
  return getattr(source, 'ignore_value', None) is not None


def sample_voxels(
  label: np.ndarray,
  *,
  name: str,
  regions: Sequence[Sequence[int]] = (),
  annotated: bool = False,
) -> dict[int, np.ndarray]:
  """Returns voxels of what is in `label` `[*S]`: `{key: [n, R]}`.

  All of what has few, otherwise a sample without replacement of 10,000 or 1 %,
  whichever is more (the rule of nnU-Net); uint16 where that suffices.

  Args:
    label: class indices, `IGNORE` where there is none.
    name: of the case, which decides on the sample.
    regions: classes of each; region i has the key i + 1. Without regions each
      class above 0 is its own key.
    annotated: whether `ANNOTATED` is a key, too.
  """
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).digest()
  rng = np.random.default_rng(int.from_bytes(digest[:8], 'big'))
  dtype = np.uint16 if max(label.shape) <= 2**16 else np.int32

  def sample(mask, corner):
    flat = np.flatnonzero(mask)
    count = max(MIN_VOXELS, math.ceil(SHARE_OF_VOXELS * len(flat)))
    if count < len(flat):
      flat = rng.choice(flat, count, replace=False)
    points = np.stack(np.unravel_index(flat, mask.shape), -1)
    return (points + corner).astype(dtype)

  chosen = {}
  for key, mask, corner in _masks(label, regions):
    chosen[key] = sample(mask, corner)
  if annotated and (mask := label != IGNORE).any():
    chosen[ANNOTATED] = sample(mask, 0)
  return chosen


def _masks(label, regions) -> Iterator[tuple[int, np.ndarray, Any]]:
  """Yields key, mask in a box, and the box's first voxel of what is there."""
  if regions:
    for key, classes in enumerate(regions, start=1):
      mask = np.isin(label, classes)
      if mask.any():
        yield key, mask, 0
    return
  # Classes are sought in their own boxes: a scan of the whole volume for each
  # of a hundred organs would take longer than everything else.
  for index, box in enumerate(ndimage.find_objects(label), start=1):
    if box is not None:
      yield index, label[box] == index, [part.start for part in box]


def read_batch(
  images: Sequence[np.ndarray],
  labels: Sequence[np.ndarray],
  patches: Patches,
  patch_size: tuple[int, ...],
  read_size: tuple[int, ...] | None = None,
  dtype: np.dtype | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns images `[B, *read, C]` and labels `[B, *read]` int16.

  Where a patch sticks out of its image, the image is 0 and the label `NOWHERE`.
  `masking.unfold` makes the labels those of the classes.

  Args:
    images: `[*S, C]` each; only the patches are read.
    labels: `[*S]` each.
    patches: of this batch.
    patch_size: that they were chosen for. With one number fewer than `S` has,
      they are slices, and come without that axis.
    read_size: at least `patch_size`, which it is by default: a margin around
      the patch, for an augmentation that turns it.
    dtype: of the batch's images; by default that of `images[0]`.
  """
  read_size = tuple(read_size or patch_size)
  batch_size, rank = patches.starts.shape
  size = volume_patch(read_size, rank)
  margin = np.subtract(size, volume_patch(patch_size, rank)) // 2
  channels = images[0].shape[-1]
  image = np.zeros((batch_size, *size, channels), dtype or images[0].dtype)
  label = np.full((batch_size, *size), NOWHERE, np.int16)
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
