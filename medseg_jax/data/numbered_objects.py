"""Whether masks number single objects, cell 1, cell 2, ..., and no classes.

Of use for images and volumes alike.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# More values than a handful; fewer are classes until shown otherwise.
_HANDFUL = 5
# Of the numbers from 1 to the largest so many occur, and so many of them are
# one blob each: an object may be lost, and another cut in two.
_SHARE = 0.9
# Objects lie anywhere; organs are at home in a place: the positions of one
# vary by less than this share of the variance of all positions.
_AT_HOME = 0.5


class Objects(NamedTuple):
  """What the values of a mask mark.

  Attributes:
    values: `[n]`, those above 0.
    centres: `[n, R]`, of their boxes, as shares of the size of the mask.
    parts: `[n]`, connected parts of each, neighbours at corners included.
  """

  values: np.ndarray
  centres: np.ndarray
  parts: np.ndarray


def are_numbered(found: Sequence[Iterable[int]]) -> bool:
  """Returns whether the values count something up in every mask.

  From 1 without gaps, to more than a handful in one of them.

  Args:
    found: the values of each mask; 0 is the background.
  """
  tops = []
  for values in found:
    values = [value for value in values if value != 0]
    if not values:
      continue
    if min(values) < 0 or len(values) < _SHARE * max(values):
      return False
    tops.append(len(values))
  return max(tops, default=0) > _HANDFUL


def find_objects(mask: np.ndarray) -> Objects:
  """Returns what a mask `[*S]` of integers of at least 0 marks."""
  values, centres, parts = [], [], []
  for value, box in enumerate(ndimage.find_objects(mask), 1):
    if box is None:
      continue
    values.append(value)
    centres.append([(side.start + side.stop) / 2 for side in box])
    inside = mask[box] == value
    parts.append(ndimage.label(inside, np.ones((3,) * mask.ndim))[1])
  centres = np.reshape(centres, (len(values), mask.ndim)) / mask.shape
  return Objects(np.array(values), centres, np.array(parts))


def are_blobs(objects: Sequence[Objects]) -> bool:
  """Returns whether nearly every value of the masks is one connected part."""
  parts = np.concatenate([each.parts for each in objects])
  return bool(np.mean(parts == 1) >= _SHARE)


def are_at_home(
  objects: Sequence[Objects], *, every_axis: bool = False
) -> bool:
  """Returns whether each value lies in much the same place in all masks.

  Of fewer than two values in two masks nobody can say: False.

  Args:
    objects: of each mask.
    every_axis: whether that has to be so along each axis. Objects numbered row
      by row are at home along one; organs of scans that begin anywhere are not
      along one.
  """
  centres = np.concatenate([each.centres for each in objects])
  _, numbers, counts = np.unique(
    np.concatenate([each.values for each in objects]),
    return_inverse=True,
    return_counts=True,
  )
  freedom = len(numbers) - len(counts)
  if freedom < 2 or len(counts) < 2:
    return False
  within = np.zeros(centres.shape[1])
  for axis in range(len(within)):
    means = np.bincount(numbers, centres[:, axis]) / counts
    within[axis] = ((centres[:, axis] - means[numbers]) ** 2).sum() / freedom
  total = centres.var(axis=0, ddof=1)
  if every_axis:
    return bool((within <= _AT_HOME * total).all())
  return bool(within.sum() <= _AT_HOME * total.sum())
