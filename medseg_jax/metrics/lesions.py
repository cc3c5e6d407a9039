"""Lesion-wise detection between two binary masks, in NumPy, any rank.

A lesion is a component of a mask in which voxels that share a face, an edge or
a corner hang together. A labelled lesion counts as found where the prediction
overlaps it in at least one voxel, and a predicted one as false where it
overlaps no labelled one, so that one prediction over two lesions finds both
and two over one lesion are no false ones.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage


class Lesions(NamedTuple):
  """Numbers of labelled lesions found and missed, of predicted ones false."""

  found: int
  missed: int
  false: int


def count_lesions(pred: npt.ArrayLike, label: npt.ArrayLike) -> Lesions:
  """Returns how many lesions are found, missed and falsely predicted.

  Args:
    pred: bool [*S].
    label: bool [*S].

  Raises:
    ValueError: on masks of unequal shapes or that are not bool.
  """
  pred, label = np.asarray(pred), np.asarray(label)
  for name, mask in (('pred', pred), ('label', label)):
    if mask.dtype != bool:
      raise ValueError(f'{name} must be a bool mask, found {mask.dtype}')
  if pred.shape != label.shape:
    raise ValueError(
      f'pred {pred.shape} and label {label.shape} must have one shape'
    )
  labelled, found = _touched(label, pred)
  predicted, true = _touched(pred, label)
  return Lesions(found, labelled - found, predicted - true)


def lesion_f1(lesions: Lesions) -> float:
  """Returns 2 found / (2 found + missed + false).

  NaN where neither mask has a lesion.
  """
  found, missed, false = lesions
  total = 2 * found + missed + false
  return 2 * found / total if total else float('nan')


def _touched(
  mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]
) -> tuple[int, int]:
  """Returns how many components `mask` has and how many `other` touches."""
  structure = np.ones((3,) * mask.ndim, bool)
  components, count = ndimage.label(mask, structure)
  return count, len(np.unique(components[mask & other]))
