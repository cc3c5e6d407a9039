"""Which label values a set of mask files has, and which pixels snap to them.

Masks should hold one value for each class. Files saved as JPEG, or drawn or
resized with smooth edges, hold more, and a slip of the hand leaves specks.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from medseg_jax.data.labels import (
  MAX_CLASSES,
  MAX_LOOSE_CLASSES,
  unknown_values,
)
from medseg_jax.data.mask_values import SPREAD, SPREADS, MaskValues, Pool, pool
from medseg_jax.runtime.errors import InputError, counted

# A value with a smaller share of its pixels in 2x2 blocks can be a stray.
LOOSE_SHARE = 0.25
# A set is smooth where so many strays lie between values so far apart ...
SMOOTH_STRAYS = 3
SMOOTH_SPAN = 64
# ... take less than this share of every file (thin vessels: up to 0.4) ...
SMOOTH_SHARE = 0.5
# ... and at least this share of their pixels is between its neighbours.
BETWEEN_SHARE = 0.5
# A speck has no more pixels than this in all masks, in no more files, and the
# typical value so many times more.
SPECK_PIXELS, SPECK_FILES, SPECK_RATIO = 8, 3, 100
# Given label values, what fills no area is a class forgotten only if it takes
# this share of all pixels.
THIN_SHARE = 0.001
# A level has so many flat blocks, and so many times more than there are,
# on the average, beside it and at the valley to any larger one.
LEVEL_BLOCKS, LEVEL_RATIO = 12, 4
LEVEL_WIDTH = 3  # values to either side that belong to a level


def infer_label_values(masks: Sequence[MaskValues]) -> tuple[int, ...]:
  """Returns the label values of a set of masks, ascending, background first.

  * Of masks without loss every value is a class, but specks: 8 pixels at most
    in 3 files at most where the typical value has a hundred times more.
  * JPEG masks, those that were JPEG once and those with smooth edges hold many
    other values. Without JPEG it takes 3 or more, and most of the values, with
    less than a quarter of their pixels in 2x2 blocks, most of them between
    their neighbours, in less than half of every file, to say so. Then classes
    are the peaks in the histogram of flat 3x3 blocks, with empty valleys on
    both sides; if there is one only, also the value farthest from it.
  * Where JPEG and other masks mix, the others decide, if they show two values.
  * Masks that hold nothing but 0 count as empty masks of the values 0 and 255.

  Raises:
    InputError: one value other than 0 only, or more than 256 values, or a
      picture rather than masks.
  """
  lossless = [mask for mask in masks if not mask.lossy]
  values = class_values(lossless) if lossless else np.array([], int)
  if not lossless or (len(values) < 2 and len(lossless) < len(masks)):
    values = class_values(masks)
  if len(values) == 1:
    if values[0] != 0 or any(mask.lossy and mask.values[-1] for mask in masks):
      raise InputError(
        f'{masks[0].path.parent}: one label value only, {values[0]}, in '
        f'{counted(len(masks), "mask")}; allowed are two or more (or give '
        'data.label_values)'
      )
    return (0, 255)
  pooled = pool(lossless or masks)
  loose = pooled.solid < LOOSE_SHARE * pooled.counts
  picture = len(values) > MAX_LOOSE_CLASSES and loose.mean() > 0.5
  if len(values) > MAX_CLASSES or picture:
    worst = max(masks, key=lambda mask: len(mask.values))
    raise InputError(
      f'{worst.path}: {len(values)} values in the masks, {len(worst.values)} '
      'in this one, as in a picture; allowed is one value for each class, '
      f'{MAX_CLASSES} at most, or maps of numbered objects with '
      "data.instances='foreground'"
    )
  return tuple(values.tolist())


def class_values(masks: Sequence[MaskValues]) -> np.ndarray:
  """Returns the values that look like classes, ascending; one at least."""
  pooled = pool(masks)
  if not _is_spread(pooled, masks):
    return pooled.values[~are_specks(pooled.counts, pooled.files)]
  levels = _levels(pooled)
  values = pooled.values
  if not levels:
    levels = [int(values[pooled.counts.argmax()])]
  if len(levels) == 1:  # of thin structures: the value that is farthest
    farthest = values[np.argmax(np.abs(values - levels[0]))]
    if abs(farthest - levels[0]) > SPREAD:
      levels.append(int(farthest))
  return np.sort(levels)


def are_specks(counts: np.ndarray, files: np.ndarray) -> np.ndarray:
  """Returns which values are slips: a few pixels in all of the masks.

  Args:
    counts: `[K]`, pixels of each value in all masks.
    files: `[K]`, how many masks hold each.
  """
  few = (counts <= SPECK_PIXELS) & (files <= SPECK_FILES)
  if few.all():
    return np.zeros(len(few), bool)
  typical = np.median(counts[~few])
  return few & (counts * SPECK_RATIO <= typical)


def check_label_values(
  masks: Sequence[MaskValues], label_values: tuple[int, ...]
) -> None:
  """Checks that all else in the masks may snap to `label_values`.

  Specks, thin traces and edges may; a class that no label value is near may
  not.

  Raises:
    InputError: names the file with most of such a class, and its values.
  """
  for lossy in (False, True):
    some = [mask for mask in masks if mask.lossy == lossy]
    if not some:
      continue
    pooled = pool(some)
    near = SPREAD if _is_spread(pooled, some) else 0
    found = np.array(_levels(pooled) if near else _filled(pooled), int)
    distance = np.abs(found[:, None] - np.asarray(label_values))
    wrong = np.sort(found[(distance > near).all(axis=1)])
    if len(wrong):
      raise _forgotten(some, wrong, label_values)


def snapped_share(
  masks: Sequence[MaskValues], label_values: tuple[int, ...]
) -> float:
  """Returns the share of all pixels that have none of the label values."""
  total = sum(int(mask.counts.sum()) for mask in masks)
  return sum(num_snapped(mask, label_values) for mask in masks) / total


def num_snapped(mask: MaskValues, label_values: tuple[int, ...]) -> int:
  """Returns how many pixels of the mask have none of the label values."""
  return int(mask.counts[~np.isin(mask.values, label_values)].sum())


def describe_snapped(
  masks: Sequence[MaskValues], label_values: tuple[int, ...], limit: int = 4
) -> str:
  """Returns the values that snap, most frequent first, with counts and files.

  Such as '1 (1 pixel of a.png)' or '254 (1200 pixels in 10 files)'.
  """
  pooled = pool(masks)
  strays = np.flatnonzero(~np.isin(pooled.values, label_values))
  strays = strays[np.argsort(-pooled.counts[strays], kind='stable')]
  texts = []
  for i in strays[:limit]:
    value, count = pooled.values[i], int(pooled.counts[i])
    where = f'in {pooled.files[i]} files'
    if pooled.files[i] == 1:
      path = next(mask.path for mask in masks if value in mask.values)
      where = f'of {pathlib.PurePath(path).name}'
    texts.append(f'{value} ({counted(count, "pixel")} {where})')
  if len(strays) > limit:
    texts.append(f'... ({len(strays)} values in all)')
  return ', '.join(texts)


def _forgotten(
  masks: Sequence[MaskValues], wrong: np.ndarray, label_values: tuple[int, ...]
) -> InputError:
  def pixels(mask):
    return mask.counts[np.isin(mask.values, wrong)].sum()

  worst = max(masks, key=pixels)
  there = [value for value in wrong if value in worst.values]
  files = sum(bool(pixels(mask)) for mask in masks)
  return unknown_values(
    worst.path,
    there or wrong,
    label_values,
    counts=[int(worst.counts[worst.values == value].sum()) for value in there],
    files=f' ({files} of {len(masks)} files have such)' * (files > 1),
  )


def _filled(pooled: Pool) -> np.ndarray:
  """Returns the values that fill areas, or much of the masks as thin lines."""
  share = pooled.counts / pooled.counts.sum()
  filled = (pooled.solid > SPECK_PIXELS) | (share >= THIN_SHARE)
  return pooled.values[filled & ~are_specks(pooled.counts, pooled.files)]


def _is_spread(pooled: Pool, masks: Sequence[MaskValues]) -> bool:
  """Returns whether most values are not classes, but edges between these.

  So it is after lossy compression, also where the file was saved as PNG later,
  and where edges are smooth.
  """
  if any(mask.lossy for mask in masks):
    return True
  values, counts, solid = pooled.values, pooled.counts, pooled.solid
  stray = solid < LOOSE_SHARE * counts
  stray[[0, -1]] = False
  if stray.sum() < SMOOTH_STRAYS or 2 * stray.sum() <= len(values):
    return False
  shares = [
    mask.counts[np.isin(mask.values, values[stray])].sum() / mask.counts.sum()
    for mask in masks
  ]
  return bool(
    values[-1] - values[0] >= SMOOTH_SPAN
    and solid[stray].sum() < LOOSE_SHARE * counts[stray].sum()
    and pooled.between[stray].sum() >= BETWEEN_SHARE * counts[stray].sum()
    and max(shares) < SMOOTH_SHARE
  )


def _levels(pooled: Pool) -> list[int]:
  """Returns the values that fill areas, where most values do not."""
  levels = []
  for spread, flat in zip(SPREADS, pooled.flat, strict=True):
    levels += _peaks(flat, spread, levels)
  first, last = pooled.values[[0, -1]]
  refined = set()
  for level in levels:
    near = np.abs(pooled.values - level) <= SPREAD // 2
    most = pooled.values[near][pooled.counts[near].argmax()]
    # What is darker than black, or lighter than white, has been cut off.
    refined.add(int(most) if most in (first, last) else level)
  return sorted(refined)


def _peaks(flat: np.ndarray, spread: int, known: Sequence[int]) -> list[int]:
  """Returns the peaks in the histogram of flat blocks, the largest first.

  Args:
    flat: `[2, L]`, values and counts.
    spread: values nearer than this belong to the larger peak.
    known: peaks that are known already.
  """
  values, counts = flat
  peaks = []
  for at in np.argsort(-counts, kind='stable'):
    distance = np.abs(values - values[at])
    mass = counts[distance <= LEVEL_WIDTH].sum()
    # The valleys to either side, which would be full on a slope.
    sides = (values < values[at], values > values[at])
    valley = (distance > spread // 2) & (distance <= spread)
    beside = max(counts[side & valley].sum() for side in sides)
    per_value = beside / (spread - spread // 2)
    if (
      mass >= LEVEL_BLOCKS
      and mass >= LEVEL_RATIO * per_value * (2 * LEVEL_WIDTH + 1)
      and all(abs(values[at] - other) > spread for other in (*known, *peaks))
    ):
      peaks.append(int(values[at]))
  return [_median(values, counts, peak, spread // 2) for peak in peaks]


def _median(
  values: np.ndarray, counts: np.ndarray, peak: int, width: int
) -> int:
  """Returns the median of the blocks within `width` of a peak."""
  near = np.abs(values - peak) <= width
  cumulative = np.cumsum(counts[near])
  at = np.searchsorted(cumulative, cumulative[-1] / 2)
  return int(values[near][at])
