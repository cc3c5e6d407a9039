"""An image with its mask at one time point, and places of it in the patient."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class TimePoint(NamedTuple):
  """One of the two.

  Attributes:
    image: `[z, y, x, C]`.
    label: `[z, y, x]` class indices.
    affine: `[4, 4]`, index (z, y, x) to mm right, anterior, superior.
  """

  image: npt.NDArray
  label: npt.NDArray[np.integer]
  affine: Floats

  @property
  def voxel_ml(self) -> float:
    """The volume of a voxel, ml."""
    return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

  def to_world(self, voxels: npt.ArrayLike) -> Floats:
    """Returns `[n, 3]` mm of indices `[n, 3]`."""
    return mapped(voxels, self.affine)

  def to_voxels(self, points: npt.ArrayLike) -> Floats:
    """Returns the indices `[n, 3]`, not rounded, of mm `[n, 3]`."""
    return mapped(points, inverse(self.affine))

  def holds(self, points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Returns which of mm `[n, 3]` lie in one of its voxels."""
    voxels = self.to_voxels(points)
    shape = np.array(self.label.shape)
    return np.asarray(((voxels >= -0.5) & (voxels < shape - 0.5)).all(1))


def mapped(points: npt.ArrayLike, matrix: Floats) -> Floats:
  """Returns `[n, 3]` points after a map `[4, 4]`."""
  found = np.asarray(points, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
  return np.asarray(found, np.float64)


def inverse(motion: Floats) -> Floats:
  """Returns the map `[4, 4]` back."""
  return np.asarray(np.linalg.inv(motion), np.float64)
