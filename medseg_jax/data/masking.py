"""The mask of what is not 0, folded into the label.

Channels that are normalised inside the mask are 0 outside it, and shall be so
again after the augmentation (Isensee et al., 2021). By then the voxels have
moved, and the mask has to have moved exactly as the label, so it travels in
it, through the cache and on every way to the step: a voxel outside the mask has
`-3 - l` in place of its label `l`. No label of a voxel inside, `IGNORE`
included, is below `IGNORE`, so nothing is lost, and any data set may be read as
if it had a mask.
"""

from typing import Any

import numpy as np

IGNORE = -1  # label of voxels that are left out of the loss
# IGNORE outside the mask; so is all that lies outside an image.
NOWHERE = -3 - IGNORE

Array = Any  # of NumPy or of jax.numpy


def fold(label: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
  """Returns the label with the mask in it, int16; itself where mask is None.

  Args:
    label: `[*S]` integers from `IGNORE` on.
    mask: `[*S]` bool.
  """
  if mask is None:
    return label
  label = label.astype(np.int16)
  return np.where(mask, label, -3 - label)


def unfold(folded: Array, xp: Any) -> tuple[Array, Array]:
  """Returns the label and the mask, True where it was None.

  Args:
    folded: of a signed type.
    xp: `numpy` or `jax.numpy`.
  """
  mask = folded >= IGNORE
  return xp.where(mask, folded, -3 - folded), mask
