"""Whether masks number single objects, cell 1, cell 2, ..., and no classes.

Of use for images and volumes alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import ndimage

# More values than a handful; fewer are classes until shown otherwise.
_HANDFUL = 5
# Of the numbers from 1 to the largest so many occur, and so many of them are
# one blob each: an object may be lost, and another cut in two.
_SHARE = 0.9
# Classes are the same in nearly every mask, while the number of objects varies.
_VARIES = 1.5


def are_numbered(found: Sequence[Iterable[int]]) -> bool:
  """Returns whether the values count something up in every mask.

  From 1 without gaps, to more than a handful in one of them. Whether each is
  one blob says `are_blobs`.

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


def counts_vary(found: Sequence[Iterable[int]]) -> bool:
  """Returns whether masks differ in how many values they have, as objects do.

  Of classes nearly every mask has the same number, and all masks agree.

  Args:
    found: the values of each mask; 0 is the background.
  """
  tops = [len(set(values) - {0}) for values in found]
  tops = [top for top in tops if top]
  if len(tops) < 3:
    return False
  _, times = np.unique(tops, return_counts=True)
  return 2 * times.max() <= len(tops) and max(tops) >= _VARIES * min(tops)


def are_blobs(mask: np.ndarray) -> bool:
  """Returns whether nearly every value above 0 is one connected region.

  Args:
    mask: `[*S]` integers of at least 0, neighbours at corners included.
  """
  rank = mask.ndim
  single = total = 0
  for value, box in enumerate(ndimage.find_objects(mask), 1):
    if box is None:
      continue
    _, count = ndimage.label(mask[box] == value, np.ones((3,) * rank))
    single += count == 1
    total += 1
  return total > 0 and single >= _SHARE * total
