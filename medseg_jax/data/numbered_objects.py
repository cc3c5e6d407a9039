"""What single masks show of numbered objects: cell 1, cell 2, ..., no classes.

Of use for images and volumes alike; `instances` judges whole sets.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

# More values than a handful in one mask; fewer are classes.
HANDFUL = 5
# So many of the values are one blob each: an object may be cut in two.
_SHARE = 0.9
# So many objects of a mask are looked at, and in boxes that together are so
# many times larger than it: specks and edges that lie all over it are no blobs.
_LOOKED_AT, _LARGEST = 64, 8
# Of so many values, those in most masks, the places are compared.
_COMPARED = 100
# Organs lie the same way from each other in every mask: the cosine between the
# directions is about 1, and 0 for what lies anywhere. Objects numbered row by
# row reach 0.5.
_SAME_WAY = 0.7
# Above it values are replaced by their ranks, which takes 8 bytes a voxel.
_LONGEST_LIST = 2**20


class Objects(NamedTuple):
  """What the values of a mask mark.

  Attributes:
    values: `[n]`, those above 0, ascending.
    centres: `[n, R]`, of their boxes, as shares of the size of the mask.
    blobs: which of those looked at are one connected part, neighbours at
      corners included.
  """

  values: np.ndarray
  centres: np.ndarray
  blobs: np.ndarray


def may_number(values: Iterable[int]) -> bool:
  """Returns whether the values of one mask may be the numbers of objects."""
  values = np.asarray(list(values))
  return len(values) > HANDFUL and bool(
    values.min() >= 0 and np.count_nonzero(values) > HANDFUL
  )


def find_objects(mask: np.ndarray, values: Iterable[int]) -> Objects | None:
  """Returns what a mask `[*S]` marks; None where its values are no blobs.

  Args:
    mask: integers of at least 0.
    values: those that occur in it.
  """
  values = np.array(sorted(value for value in values if value != 0))
  boxes = _boxes(mask, values)
  centres = np.array(
    [[(side.start + side.stop) / 2 for side in box] for box in boxes]
  )
  some = np.unique(
    np.linspace(0, len(values) - 1, min(len(values), _LOOKED_AT)).astype(int)
  )
  size = sum(mask[boxes[i]].size for i in some)
  if size > _LARGEST * mask.size:
    return None
  corners = np.ones((3,) * mask.ndim)
  blobs = [
    ndimage.label(mask[boxes[i]] == values[i], corners)[1] == 1 for i in some
  ]
  return Objects(values, centres / mask.shape, np.array(blobs))


def are_blobs(objects: Sequence[Objects]) -> bool:
  """Returns whether nearly every value of the masks is one connected part."""
  return bool(np.concatenate([each.blobs for each in objects]).mean() >= _SHARE)


def are_in_place(objects: Sequence[Objects]) -> bool | None:
  """Returns whether values lie the same way from each other in all masks.

  None where no two masks have two values in common, so that nobody can say.
  Where scans begin, and how large they are, is of no matter; in images, nor is
  whether left is right, as in eyes and hands.
  """
  values, counts = np.unique(
    np.concatenate([each.values for each in objects]), return_counts=True
  )
  most = np.argsort(-counts, kind='stable')[:_COMPARED]
  common = np.sort(values[most][counts[most] > 1])
  ndim = objects[0].centres.shape[-1]
  total = np.zeros((len(common), len(common), ndim))
  masks = np.zeros((len(common), len(common)))
  for each in objects:
    here = np.isin(each.values, common)
    at = np.searchsorted(common, each.values[here])
    pairs = np.ix_(at, at)
    ways = each.centres[here] - each.centres[here][:, None]
    lengths = np.linalg.norm(ways, axis=-1)
    ways /= np.maximum(lengths, 1e-9)[..., None]
    if ndim == 2 and (total[pairs][..., 1] * ways[..., 1]).sum() < 0:
      ways[..., 1] *= -1
    total[pairs] += ways
    masks[pairs] += lengths > 0
  # The sum of the cosines of each two masks, from the length of the sum of all.
  cosines = ((total**2).sum(-1) - masks)[masks > 1].sum()
  count = (masks * (masks - 1))[masks > 1].sum()
  return bool(cosines > _SAME_WAY * count) if count else None


def _boxes(mask: np.ndarray, values: np.ndarray) -> list[tuple[slice, ...]]:
  """Returns the box of each of `values`, all of them above 0."""
  if values[-1] <= _LONGEST_LIST:
    every = ndimage.find_objects(mask, max_label=int(values[-1]))
    return [every[value - 1] for value in values]
  ranks = np.searchsorted(np.concatenate([[0], values]), mask)
  return ndimage.find_objects(ranks, max_label=len(values))
