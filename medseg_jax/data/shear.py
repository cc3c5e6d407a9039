"""Volumes whose axes are off right angles, as under a tilted gantry.

A network sees them on a grid at right angles, and what it says comes back on
their own. Between the two the planes of the first axis stay whole: each is
moved in itself, so nothing is mixed across slices.

Let the columns of B be the steps along a grid's axes in mm. With the vectors
of the upright grid in the columns of Q, their lengths in D, B = Q D L, where L
is 1 on its diagonal and 0 above: the voxel i of the sheared grid lies at L i of
the upright one. The last axis of both is the same, and the volume of a voxel.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

SKEW = 0.1  # degrees off right angles that are none
_NOTHING = 1e-3  # voxels that a grid may be off and count as upright
IGNORE = -1  # label of what lies beside the planes of a sheared volume


class Shear(NamedTuple):
  """How a sheared grid lies in an upright one of three axes.

  Attributes:
    shape: of the sheared grid.
    upright: sizes of the upright grid that holds it.
    spacing: mm, of the upright grid.
    moves: `[3, 3]` float64, L of above.
    corner: the first voxel of the upright grid, as L counts them.
  """

  shape: tuple[int, int, int]
  upright: tuple[int, int, int]
  spacing: tuple[float, float, float]
  moves: np.ndarray
  corner: tuple[int, int, int]


def off_right_angles(affine: np.ndarray) -> float:
  """Returns how far axes are off right angles, in degrees, the worst pair.

  Args:
    affine: `[4, 4]`, three axes that span a space.
  """
  axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
  products = np.clip((axes.T @ axes)[np.triu_indices(3, 1)], -1, 1)
  return float(np.abs(90 - np.degrees(np.arccos(products))).max())


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
  """Returns the sizes of a voxel in mm, whose product is its volume.

  Of a sheared grid those of the upright one, which keeps the first axis, and
  whose last one is the distance between slices.

  Args:
    affine: `[4, 4]`, of axes in the order of a file.
  """
  if off_right_angles(affine) <= SKEW:
    return tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
  return tuple(np.abs(np.diag(np.linalg.qr(affine[:3, :3])[1])).tolist())


def shear_of(
  affine: np.ndarray | None, axes: Sequence[int], shape: Sequence[int]
) -> Shear | None:
  """Returns how a grid is sheared, None where it is not.

  Args:
    affine: `[4, 4]` voxel index to mm, or None where it is not known.
    axes: of the affine, in the order of the grid.
    shape: of the grid, three sizes; others are not sheared.
  """
  if affine is None or len(shape) != 3 or off_right_angles(affine) <= SKEW:
    return None
  # The last axis first, as that of the QR decomposition keeps its direction.
  _, upper = np.linalg.qr(affine[:3, list(axes)][:, ::-1])
  sizes = np.diag(upper)
  moves = (upper / sizes[:, None])[::-1, ::-1]
  far = np.asarray(shape) - 1
  moves = np.where(np.abs(moves) * far < _NOTHING, np.eye(3), moves)
  reach = moves * far
  corner = np.floor(np.minimum(reach, 0).sum(1)).astype(int)
  end = np.ceil(np.maximum(reach, 0).sum(1)).astype(int)
  return Shear(
    shape=tuple(shape),
    upright=tuple((end - corner + 1).tolist()),
    spacing=tuple(np.abs(sizes)[::-1].tolist()),
    moves=moves,
    corner=tuple(corner.tolist()),
  )


def to_upright(image: np.ndarray, shear: Shear) -> np.ndarray:
  """Returns an image `[*S, C]` on the upright grid by cubic splines, float32.

  Beyond its edge a plane goes on with the value at the edge.
  """
  moved = np.empty((*shear.upright, image.shape[-1]), np.float32)
  for i, plane in enumerate(image):
    for c in range(image.shape[-1]):
      values = np.asarray(plane[..., c], np.float32)
      moved[i, ..., c] = _move(values, *_into_sheared(shear, i), order=3)
  return moved


def label_to_upright(
  label: np.ndarray, shear: Shear, *, outside: int = IGNORE
) -> np.ndarray:
  """Returns a label `[*S]` of integers on the upright grid.

  Each voxel takes the value with the largest weight when the one-hot label is
  interpolated linearly; of several, the lowest.

  Args:
    label: `[*S]`.
    shear: of its grid.
    outside: label of what lies beside the planes, where nobody looked.
  """
  moved = np.empty(shear.upright, label.dtype)
  for i, plane in enumerate(label):
    way = _into_sheared(shear, i)
    best = np.zeros(shear.upright[1:], np.float32)
    for value in np.unique(plane):
      weight = _move((plane == value).astype(np.float32), *way, order=1)
      moved[i][weight > best + 1e-6] = value
      best = np.maximum(best, weight)
    matrix, offset, _ = way
    places = np.stack(np.indices(shear.upright[1:]), -1) @ matrix.T + offset
    inside = (places >= -0.5) & (places <= np.asarray(plane.shape) - 0.5)
    moved[i][~inside.all(-1)] = outside
  return moved


def from_upright(
  slabs: Iterable[np.ndarray], shear: Shear
) -> Iterator[np.ndarray]:
  """Yields an array on the sheared grid, linearly, slab by slab, float32.

  Args:
    slabs: `[d, *upright[1:], K]`, one after the other along the first axis.
    shear: of the grid.

  Yields:
    `[d, *shape[1:], K]`.
  """
  begin = 0
  for slab in slabs:
    count = slab.shape[-1]
    moved = np.empty((len(slab), *shear.shape[1:], count), np.float32)
    for i, plane in enumerate(slab):
      for k in range(count):
        values = np.asarray(plane[..., k], np.float32)
        way = _into_upright(shear, begin + i)
        moved[i, ..., k] = _move(values, *way, order=1)
    begin += len(slab)
    yield moved


def _into_upright(
  shear: Shear, i: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
  """Returns matrix and offset from plane `i` to its upright one, its shape."""
  offset = shear.moves[1:, 0] * i - shear.corner[1:]
  return shear.moves[1:, 1:], offset, shear.shape[1:]


def _into_sheared(
  shear: Shear, i: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
  """Returns matrix and offset from upright plane `i` to its own, its shape."""
  matrix, offset, _ = _into_upright(shear, i)
  back = np.linalg.inv(matrix)
  return back, -back @ offset, shear.upright[1:]


def _move(
  plane: np.ndarray,
  matrix: np.ndarray,
  offset: np.ndarray,
  shape: tuple[int, ...],
  *,
  order: int,
) -> np.ndarray:
  """Returns a plane whose pixel p is that of `plane` at matrix p + offset."""
  straight = np.array_equal(matrix, np.eye(2))
  return ndimage.affine_transform(
    plane,
    np.ones(2) if straight else matrix,  # axis by axis is quicker
    offset,
    output_shape=shape,
    order=order,
    mode='nearest',
  )
