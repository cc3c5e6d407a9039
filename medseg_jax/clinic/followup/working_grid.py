"""Images as registration sees them: voxels of one length, and not too many."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_jax.clinic.followup.time_point import (
  Floats,
  TimePoint,
  inverse,
  mapped,
)

_MOST = 1.5e6  # voxels, with which a volume of 30 cm has some of 2.6 mm
# Metal and other outliers would take most bins of a histogram.
_CLIP = (0.5, 99.5)  # percentiles


class WorkingGrid(NamedTuple):
  """An image, its first channel, on voxels of one length at right angles.

  Attributes:
    values: float32 `[z, y, x]`.
    affine: `[4, 4]`, index to mm right, anterior, superior.
  """

  values: npt.NDArray[np.float32]
  affine: Floats

  @property
  def spacing(self) -> float:
    """mm of a voxel, the same along all axes."""
    return float(np.linalg.norm(self.affine[:3, 0]))

  def points(self, most: int) -> Floats:
    """Returns `[n, 3]` mm of evenly spread voxels, about `most` of them."""
    step = max(1, math.ceil((self.values.size / most) ** (1 / 3)))
    starts = [min(step // 2, size - 1) for size in self.values.shape]
    axes = [
      np.arange(start, size, step)
      for start, size in zip(starts, self.values.shape, strict=True)
    ]
    voxels = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
    return mapped(voxels, self.affine)

  def sample(self, points: Floats) -> npt.NDArray[np.float32]:
    """Returns the values at mm `[n, 3]`, NaN outside the image."""
    voxels = mapped(points, inverse(self.affine))
    found = ndimage.map_coordinates(
      self.values, voxels.T, order=1, mode='nearest', output=np.float32
    )
    last = np.array(self.values.shape) - 1
    beyond = (voxels < -0.5) | (voxels > last + 0.5)
    found[beyond.any(1)] = np.nan
    return np.asarray(found, np.float32)

  @property
  def centre(self) -> Floats:
    """mm of the middle of its box."""
    return mapped([(np.array(self.values.shape) - 1) / 2], self.affine)[0]

  @property
  def centre_of_mass(self) -> Floats:
    """mm of the middle of its values."""
    mass = self.values - self.values.min()
    return mapped([ndimage.center_of_mass(mass)], self.affine)[0]


def working_grid(point: TimePoint) -> WorkingGrid:
  """Returns the image on a grid along its own axes.

  Slices that are shifted against each other lie straight in it; what it has
  beyond the image continues the image's border.
  """
  values = point.image[..., 0].astype(np.float32)
  low, high = np.percentile(values[::2, ::2, ::2], _CLIP)
  if high > low:
    values = values.clip(low, high)
  sizes = np.linalg.norm(point.affine[:3, :3], axis=0)  # mm of a voxel
  shape = np.array(values.shape)
  volume = float(np.prod(sizes * shape))
  spacing = max(float(sizes.min()), (volume / _MOST) ** (1 / 3))
  directions = _at_right_angles(point.affine[:3, :3] / sizes)
  corners = np.stack(
    np.meshgrid(*[(-0.5, size - 0.5) for size in shape], indexing='ij'), -1
  ).reshape(-1, 3)
  along = point.to_world(corners) @ directions  # [8, 3] along the new axes
  number = np.maximum(np.rint(np.ptp(along, 0) / spacing).astype(int), 1)
  middle = (along.min(0) + along.max(0)) / 2
  affine = np.eye(4, dtype=np.float64)
  affine[:3, :3] = directions * spacing
  affine[:3, 3] = directions @ (middle - (number - 1) / 2 * spacing)
  # A voxel stands for all that it covers.
  blur = np.where(spacing > 1.01 * sizes, 0.4 * spacing / sizes, 0)
  values = ndimage.gaussian_filter(values, blur, mode='nearest')
  to_old = inverse(point.affine) @ affine
  small = ndimage.affine_transform(
    values,
    to_old[:3, :3],
    to_old[:3, 3],
    tuple(int(n) for n in number),
    order=1,
    mode='nearest',
    output=np.float32,
  )
  return WorkingGrid(small, affine)


def _at_right_angles(directions: Floats) -> Floats:
  """Returns `[3, 3]` columns at right angles, the nearest to some."""
  left, _, right = np.linalg.svd(directions)
  return np.asarray(left @ right, np.float64)
