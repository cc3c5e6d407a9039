"""Which label values a set of mask files has, and which pixels snap to them.

Masks should hold one value for each class. Files saved as JPEG, or drawn or
resized with smooth edges, hold more. What tells a value of a class from a
stray one is area: a class fills 2x2 blocks of one value somewhere, while
strays form the one pixel wide slopes between two classes.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.runtime.errors import InputError

# A level of a JPEG or smooth mask fills this share of some file as 2x2 blocks.
LEVEL_SHARE = 0.005
# A JPEG moves the values of a flat region by less than this, so two levels
# that are nearer are one.
JPEG_SPREAD = 16
# A value with a smaller share of its pixels in 2x2 blocks can be a stray.
LOOSE_SHARE = 0.25
# A set is smooth where so many strays lie between values so far apart ...
SMOOTH_STRAYS = 3
SMOOTH_SPAN = 64
# ... and take less than this share of every file (thin vessels: up to 0.4).
SMOOTH_SHARE = 0.5
# More values than this are the numbers of single objects; and more than the
# second with most of them loose are a picture.
MAX_CLASSES = 256
MAX_LOOSE_CLASSES = 32


class MaskValues(NamedTuple):
  """The values of one mask file, ascending, and how many pixels have each.

  `solid` counts those of them that are in a 2x2 block of one value (of nearly
  one value for JPEG, `lossy`).
  """

  path: pathlib.Path
  values: np.ndarray
  counts: np.ndarray
  solid: np.ndarray
  lossy: bool


def count_values(
  path: pathlib.Path, mask: np.ndarray, *, lossy: bool
) -> MaskValues:
  """Returns the counts of the values of `mask [H, W]`, read from `path`."""
  if np.ptp(mask) < 65536:  # Counting is many times faster than sorting.
    values = np.arange(mask.min(), mask.max() + 1)
    codes = mask - mask.min()
  else:
    values, codes = np.unique(mask, return_inverse=True)
  corners = mask[:-1, :-1], mask[1:, :-1], mask[:-1, 1:], mask[1:, 1:]
  spread = np.maximum.reduce(corners) - np.minimum.reduce(corners)
  block = spread <= (JPEG_SPREAD // 2 if lossy else 0)
  solid = np.zeros(mask.shape, bool)
  for rows in (slice(None, -1), slice(1, None)):
    for columns in (slice(None, -1), slice(1, None)):
      solid[rows, columns] |= block
  counts = np.bincount(codes.ravel(), minlength=len(values))
  solid_counts = np.bincount(codes[solid], minlength=len(values))
  found = counts > 0
  return MaskValues(
    path, values[found], counts[found], solid_counts[found], lossy
  )


def infer_label_values(masks: Sequence[MaskValues]) -> tuple[int, ...]:
  """Returns the label values of a set of masks, ascending, background first.

  * Masks without JPEG: every value that occurs.
  * Unless they are smooth (anti-aliased). Strays are values with less than a
    quarter of their pixels in 2x2 blocks of one value. In a smooth set they
    are 3 or more, most of the values, lie between two others that are 64 or
    more apart and each as frequent as any stray, and take less than half of
    every file.
  * For smooth sets and JPEG: the values that fill 0.5 % of some file as 2x2
    blocks (and for JPEG have no more frequent one within 16); if only one
    does, also the value that occurs farthest from it.
  * Where JPEG and other masks mix, the others decide, if they show two values.
  * Masks that hold nothing but 0 count as empty masks of the values 0 and 255.

  Raises:
    InputError: one value other than 0 only, or more than 256 values, or a
      picture rather than masks.
  """
  lossless = [mask for mask in masks if not mask.lossy]
  values, counts, solid = _pool(lossless or masks)
  loose = solid < LOOSE_SHARE * counts
  if lossless and (len(values) > 1 or len(lossless) == len(masks)):
    strays = values[1:-1][loose[1:-1]]
    if 2 * len(strays) > len(values) and _is_smooth(strays, lossless):
      values = _levels(lossless)
  else:
    values = _levels(masks)
  if len(values) == 1:
    if values[0] != 0 or any(mask.lossy and mask.values[-1] for mask in masks):
      raise InputError(
        f'{masks[0].path.parent}: one label value, {values[0]}, in all '
        f'{len(masks)} masks; allowed are two or more (or give '
        'data.label_values)'
      )
    return (0, 255)
  worst = max(masks, key=lambda mask: len(mask.values))
  picture = len(values) > MAX_LOOSE_CLASSES and loose.mean() > 0.5
  if len(values) > MAX_CLASSES or picture:
    raise InputError(
      f'{worst.path}: {len(values)} values in the masks, {len(worst.values)} '
      'in this one, as in a picture or a map of single objects; allowed is '
      f'one value for each class, {MAX_CLASSES} at most'
    )
  return tuple(values.tolist())


def check_label_values(
  masks: Sequence[MaskValues], label_values: tuple[int, ...]
) -> None:
  """Checks that every mask holds `label_values`, or values that snap to them.

  Those of JPEG files and of smooth sets (see `infer_label_values`) snap to the
  nearest label value, but for a level that no label value is near.

  Raises:
    InputError: names the first file with other values, and these.
  """
  strays = [_outside(mask.values, label_values) for mask in masks]
  lossless = [mask for mask in masks if not mask.lossy]
  is_smooth = False
  if lossless:
    values = np.unique(np.concatenate([mask.values for mask in lossless]))
    is_smooth = _is_smooth(_outside(values, label_values), lossless)
  for mask, wrong in zip(masks, strays, strict=True):
    if not len(wrong):
      continue
    levels = np.array(_solid_levels([mask]))
    distance = np.abs(levels[:, None] - np.asarray(label_values))
    near = JPEG_SPREAD if mask.lossy else 0
    levels = levels[(distance > near).all(axis=1)]
    # Of many values name those that fill area: the others are their edges.
    snaps = mask.lossy or is_smooth
    if snaps or (len(levels) and len(wrong) > SMOOTH_STRAYS):
      wrong = np.sort(levels)
    if len(wrong):
      raise unknown_values(mask.path, wrong, label_values)


def unknown_values(
  path: pathlib.Path, values: np.ndarray, label_values: tuple[int, ...]
) -> InputError:
  """Returns the error for a mask file with values that no class has."""
  some = ', '.join(str(int(value)) for value in values[:8])
  more = f', ... ({len(values)} in all)' if len(values) > 8 else ''
  return InputError(
    f'{path}: label values {some}{more} are of no class; allowed are '
    f'data.label_values {tuple(label_values)}'
  )


def num_snapped(mask: MaskValues, label_values: tuple[int, ...]) -> int:
  """Returns how many pixels of the mask have none of the label values."""
  return int(mask.counts[~np.isin(mask.values, label_values)].sum())


def to_classes(mask: np.ndarray, label_values: tuple[int, ...]) -> np.ndarray:
  """Returns int32 class indices: of the nearest label value, or the lower."""
  order = np.argsort(label_values)
  ascending = np.asarray(label_values, np.float64)[order]
  middles = (ascending[1:] + ascending[:-1]) / 2
  return order.astype(np.int32)[np.searchsorted(middles, mask)]


def name_classes(
  classes: Sequence[str], label_values: Sequence[int], where: str
) -> tuple[str, ...]:
  """Returns `classes`, or default names where empty, one for each value.

  Raises:
    InputError: label values that repeat or are fewer than two, or another
      number of classes.
  """
  if len(label_values) < 2 or len(set(label_values)) < len(label_values):
    raise InputError(
      f'data.label_values: {tuple(label_values)}; allowed are two or more '
      'different integers, the background first'
    )
  if not classes:
    if len(label_values) == 2:
      return ('background', 'foreground')
    numbered = [f'class_{i}' for i in range(1, len(label_values))]
    return ('background', *numbered)
  if len(classes) != len(label_values):
    raise InputError(
      f'{where}: {len(classes)} data.classes {tuple(classes)} for '
      f'{len(label_values)} label values {tuple(label_values)}; allowed is one '
      'class for each value (data.label_values may name values that are absent)'
    )
  return tuple(classes)


def _outside(values: np.ndarray, label_values: Sequence[int]) -> np.ndarray:
  return values[~np.isin(values, label_values)]


def _pool(masks: Sequence[MaskValues]):
  """Returns values, counts and solid counts, summed over the masks."""
  values, index = np.unique(
    np.concatenate([mask.values for mask in masks]), return_inverse=True
  )
  counts = np.bincount(index, np.concatenate([mask.counts for mask in masks]))
  solid = np.bincount(index, np.concatenate([mask.solid for mask in masks]))
  return values, counts, solid


def _is_smooth(strays: np.ndarray, masks: Sequence[MaskValues]) -> bool:
  """Returns whether `strays` look like the edges between the other values."""
  values, counts, solid = _pool(masks)
  stray = np.isin(values, strays)
  if stray.sum() < SMOOTH_STRAYS or stray[0] or stray[-1]:
    return False
  shares = [
    mask.counts[np.isin(mask.values, strays)].sum() / mask.counts.sum()
    for mask in masks
  ]
  return bool(
    values[-1] - values[0] >= SMOOTH_SPAN
    and solid[stray].sum() < LOOSE_SHARE * counts[stray].sum()
    and min(counts[0], counts[-1]) >= counts[stray].max()
    and max(shares) < SMOOTH_SHARE
  )


def _levels(masks: Sequence[MaskValues]) -> np.ndarray:
  """Returns the values that fill area; two where there are two to be had."""
  levels = _solid_levels(masks)
  values = _pool(masks)[0]
  near = JPEG_SPREAD if any(mask.lossy for mask in masks) else 0
  if not levels:
    levels = [int(values[0])]
  if len(levels) == 1:
    farthest = values[np.argmax(np.abs(values - levels[0]))]
    if abs(farthest - levels[0]) > near:
      levels.append(int(farthest))
  return np.sort(levels)


def _solid_levels(masks: Sequence[MaskValues]) -> list[int]:
  near = JPEG_SPREAD if any(mask.lossy for mask in masks) else 0
  values, _, solid = _pool(masks)
  share = np.zeros(len(values))
  for mask in masks:
    # JPEG spreads one level over some values: take them together.
    sums = np.concatenate([[0], np.cumsum(mask.solid)])
    first = np.searchsorted(mask.values, values - near // 4, 'left')
    last = np.searchsorted(mask.values, values + near // 4, 'right')
    share = np.maximum(share, (sums[last] - sums[first]) / mask.counts.sum())
  levels = []
  for i in np.argsort(-solid, kind='stable'):
    if share[i] >= LEVEL_SHARE and all(
      abs(values[i] - level) > near for level in levels
    ):
      levels.append(int(values[i]))
  return levels
