"""Surface distances between two binary masks, in NumPy, 2-D and 3-D.

The convention is that of the Medical Segmentation Decathlon (Nikolov et al.
2021, "Clinically applicable segmentation of head and neck anatomy"). A surface
element sits at every corner of the voxel grid whose 2^d surrounding voxels are
neither all inside nor all outside; voxels beyond the array count as outside.
Its area (2-D: length) is that of the marching-cubes (2-D: marching-squares)
triangles for this neighbourhood, scaled by `spacing`. Its distance is that to
the nearest surface element of the other mask.

Masks are bool arrays of one shape. `spacing` is the size of a voxel along each
axis in any unit; distances and tolerances are in that unit. Both masks empty:
every score is NaN. One empty: distances are inf and the surface Dice is 0.
"""

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from medseg_jax.metrics.surface_areas import code_areas

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# A percentile or tolerance that is met exactly must not be lost to rounding.
_ROUNDING = 1e-9
# What lies within so many of the smallest voxel sides is found by looking.
_NEAR = 2
# A search in a tree takes as long as the transform of so many grid points.
_POINTS_A_SEARCH = 32


class SurfaceDistances(NamedTuple):
  """Distance to the other surface and area, for each surface element."""

  pred_distances: Floats
  pred_areas: Floats
  label_distances: Floats
  label_areas: Floats


def hausdorff_distance(
  pred: npt.ArrayLike,
  label: npt.ArrayLike,
  spacing: npt.ArrayLike,
  percentile: float = 95,
) -> float:
  """Returns the larger of the two directed percentiles of surface distance.

  A directed percentile is the smallest distance within which at least
  `percentile` percent of the one surface's area lies from the other surface.

  Args:
    pred: bool [*S], rank 2 or 3.
    label: bool [*S].
    spacing: voxel size along each axis.
    percentile: in [0, 100]; 100 gives the Hausdorff distance itself.

  Raises:
    ValueError: on unequal shapes, masks that are not bool or not of rank 2 or
      3, a spacing of another length or not positive, or a bad percentile.
  """
  _check_percentile(percentile)
  return _hausdorff(surface_distances(pred, label, spacing), percentile)


def average_surface_distance(
  pred: npt.ArrayLike, label: npt.ArrayLike, spacing: npt.ArrayLike
) -> float:
  """Returns the average symmetric surface distance.

  It is the area-weighted mean over the elements of both surfaces together, so
  the larger surface has the larger share; it is not the mean of the two
  directed means. Arguments and errors are those of `hausdorff_distance`.
  """
  return _average(surface_distances(pred, label, spacing))


def surface_dice(
  pred: npt.ArrayLike,
  label: npt.ArrayLike,
  spacing: npt.ArrayLike,
  tolerance: float,
) -> float:
  """Returns the share of both surfaces' area within `tolerance` of the other.

  Arguments and errors are those of `hausdorff_distance`; `tolerance` is in the
  unit of `spacing` and not negative.
  """
  _check_tolerance(tolerance)
  return _dice(surface_distances(pred, label, spacing), tolerance)


def surface_metrics(
  pred: npt.ArrayLike,
  label: npt.ArrayLike,
  spacing: npt.ArrayLike,
  *,
  percentile: float = 95,
  tolerance: float,
) -> dict[str, float]:
  """Returns all three scores by function name, at the cost of one of them."""
  _check_percentile(percentile)
  _check_tolerance(tolerance)
  distances = surface_distances(pred, label, spacing)
  return {
    'hausdorff_distance': _hausdorff(distances, percentile),
    'average_surface_distance': _average(distances),
    'surface_dice': _dice(distances, tolerance),
  }


def surface_distances(
  pred: npt.ArrayLike, label: npt.ArrayLike, spacing: npt.ArrayLike
) -> SurfaceDistances:
  """Returns distances and areas of the elements of both surfaces.

  Arguments and errors are those of `hausdorff_distance`. An empty mask has no
  elements, and the distances to it are inf.
  """
  pred, label = np.asarray(pred), np.asarray(label)
  for name, mask in (('pred', pred), ('label', label)):
    if mask.dtype != bool:
      raise ValueError(f'{name} must be a bool mask, found {mask.dtype}')
    if mask.ndim not in (2, 3):
      raise ValueError(f'{name} must have 2 or 3 axes, found {mask.shape}')
  if pred.shape != label.shape:
    raise ValueError(
      f'pred {pred.shape} and label {label.shape} must have one shape'
    )
  spacing = np.asarray(spacing, np.float64)
  if spacing.shape != (pred.ndim,):
    raise ValueError(
      f'spacing must hold {pred.ndim} numbers, found {spacing.tolist()}'
    )
  if not (np.isfinite(spacing) & (spacing > 0)).all():
    raise ValueError(f'spacing must be positive, found {spacing.tolist()}')
  pred_surface, label_surface = _surface(pred), _surface(label)
  areas = code_areas(spacing)
  return SurfaceDistances(
    _nearest(pred_surface, label_surface, spacing),
    areas[pred_surface.codes],
    _nearest(label_surface, pred_surface, spacing),
    areas[label_surface.codes],
  )


def _hausdorff(distances: SurfaceDistances, percentile: float) -> float:
  if not distances.pred_areas.size and not distances.label_areas.size:
    return float('nan')
  return max(
    _percentile(distances.pred_distances, distances.pred_areas, percentile),
    _percentile(distances.label_distances, distances.label_areas, percentile),
  )


def _percentile(distances: Floats, areas: Floats, percentile: float) -> float:
  if not areas.size:
    return float('inf')
  order = np.argsort(distances)
  covered = np.cumsum(areas[order])
  goal = percentile / 100 * covered[-1] * (1 - _ROUNDING)
  return float(distances[order[np.searchsorted(covered, goal)]])


def _average(distances: SurfaceDistances) -> float:
  area = distances.pred_areas.sum() + distances.label_areas.sum()
  if area == 0:
    return float('nan')
  total = (
    distances.pred_distances @ distances.pred_areas
    + distances.label_distances @ distances.label_areas
  )
  return float(total / area)


def _dice(distances: SurfaceDistances, tolerance: float) -> float:
  area = distances.pred_areas.sum() + distances.label_areas.sum()
  if area == 0:
    return float('nan')
  reach = tolerance * (1 + _ROUNDING)
  within = (
    distances.pred_areas[distances.pred_distances <= reach].sum()
    + distances.label_areas[distances.label_distances <= reach].sum()
  )
  return float(within / area)


def _check_percentile(percentile: float) -> None:
  if not 0 <= percentile <= 100:
    raise ValueError(f'percentile must be in [0, 100], found {percentile}')


def _check_tolerance(tolerance: float) -> None:
  if not tolerance >= 0:
    raise ValueError(f'tolerance must not be negative, found {tolerance}')


class _Surface(NamedTuple):
  """Surface elements on the grid of voxel corners.

  Attributes:
    start: `[d]`, where the grid around the mask begins.
    grid: bool `[*G]`, where the elements are.
    codes: uint8 `[N]`, the neighbourhood of each, in C order.
  """

  start: npt.NDArray[np.int64]
  grid: Mask
  codes: npt.NDArray[np.uint8]

  def points(self, spacing: Floats) -> Floats:
    """Returns positions, `[N, d]`."""
    return (np.argwhere(self.grid) + self.start) * spacing


def _surface(mask: Mask) -> _Surface:
  rank = mask.ndim
  boxes = ndimage.find_objects(mask.view(np.uint8))
  if not boxes:
    start = np.zeros(rank, np.int64)
    return _Surface(start, np.zeros((0,) * rank, bool), np.zeros(0, np.uint8))
  crop = np.pad(mask[boxes[0]], 1).view(np.uint8)
  codes = np.zeros([n - 1 for n in crop.shape], np.uint8)
  for bit, corner in enumerate(itertools.product((0, 1), repeat=rank)):
    window = tuple(
      slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True)
    )
    codes |= crop[window] << bit
  grid = (codes != 0) & (codes != 2**2**rank - 1)
  return _Surface(np.array([s.start for s in boxes[0]]), grid, codes[grid])


def _nearest(surface: _Surface, other: _Surface, spacing: Floats) -> Floats:
  """Returns for each element the distance to the nearest of the others.

  Few elements are sought in a k-d tree. Of many, most have a neighbour that is
  found by looking at the nearest points of the grid; if many are left even so,
  as of speckle around an organ, a Euclidean distance transform of the grid is
  quicker than the tree. All three give the same numbers.
  """
  count = len(surface.codes)
  if not count or not len(other.codes):
    return np.full(count, np.inf)
  start = np.minimum(surface.start, other.start)
  stops = (s.start + s.grid.shape for s in (surface, other))
  shape = np.maximum(*stops) - start
  few = shape.prod() // _POINTS_A_SEARCH
  if count + len(other.codes) < few:
    return _by_tree(surface.points(spacing), other, spacing)
  grid, others = (_embed(s, start, shape) for s in (surface, other))
  distances = np.full(count, np.inf)
  left = _find_near(distances, grid, others, spacing)
  if not left.size:
    return distances
  where = np.unravel_index(np.flatnonzero(grid)[left], grid.shape)
  if len(left) < few:
    points = (np.stack(where, axis=-1) + start) * spacing
    distances[left] = _by_tree(points, other, spacing)
  else:
    distances[left] = _by_transform(where, others, spacing)
  return distances


def _by_tree(points: Floats, other: _Surface, spacing: Floats) -> Floats:
  tree = spatial.cKDTree(
    other.points(spacing), balanced_tree=False, compact_nodes=False
  )
  return tree.query(points)[0]


def _by_transform(
  where: tuple[npt.NDArray[np.int64], ...], others: Mask, spacing: Floats
) -> Floats:
  nearest = ndimage.distance_transform_edt(
    ~others, sampling=spacing, return_distances=False, return_indices=True
  )
  squares = np.zeros(len(where[0]))
  for axis, size in enumerate(spacing):
    squares += ((nearest[axis][where] - where[axis]) * size) ** 2
  return np.sqrt(squares)


def _embed(
  surface: _Surface, start: npt.NDArray[np.int64], shape: npt.NDArray[np.int64]
) -> Mask:
  """Returns the elements on a larger grid."""
  grid = np.zeros(shape, bool)
  inner = tuple(
    slice(first, first + size)
    for first, size in zip(
      surface.start - start, surface.grid.shape, strict=True
    )
  )
  grid[inner] = surface.grid
  return grid


def _find_near(
  distances: Floats, grid: Mask, others: Mask, spacing: Floats
) -> npt.NDArray[np.int64]:
  """Enters the distances of elements that have a near neighbour.

  Returns:
    The numbers of the elements that have none.
  """
  offsets = np.array(
    list(itertools.product(range(-_NEAR, _NEAR + 1), repeat=grid.ndim))
  )
  lengths = np.linalg.norm(offsets * spacing, axis=-1)
  near = np.flatnonzero(lengths <= _NEAR * np.min(spacing) * (1 + _ROUNDING))
  near = near[np.argsort(lengths[near], kind='stable')]
  padded = np.pad(others, _NEAR)
  steps = offsets @ np.array(padded.strides)
  places = np.flatnonzero(np.pad(grid, _NEAR))
  left = np.arange(len(places))
  for i in near:
    found = padded.ravel()[places + steps[i]]
    distances[left[found]] = lengths[i]
    places, left = places[~found], left[~found]
  return left
