"""Bringing a volume onto the grid of another file of the same space."""

import itertools
from typing import NamedTuple

import nibabel as nib
import numpy as np

from medseg_jax.data.formats.nifti_geometry import (
  Grid,
  file_shape,
  from_file_order,
  rows,
  times,
  to_file_order,
)
from medseg_jax.runtime.errors import InputError

# Two grids are the same where no voxel is further off than this, in voxels.
SAME = 1e-3
# What lies further off than SAME is told, and beyond this refused.
TOLERANCE = 0.1


class _Match(NamedTuple):
  """How the axes of one file lie in those of another.

  Attributes:
    voxels: the largest distance of voxels that belong together, in voxels.
    mm: the same in mm.
    order: for each axis of the other file the axis of the one.
    steps: for each axis of the other file 1, or -1 where it runs against it.
    affines: of the two.
  """

  voxels: float
  mm: float
  order: np.ndarray
  steps: np.ndarray
  affines: tuple[np.ndarray, np.ndarray]


def align(
  array: np.ndarray,
  grid: Grid,
  to: Grid,
  *,
  what: str,
  where: str,
  tolerance: float = TOLERANCE,
) -> np.ndarray:
  """Returns `array` flipped and permuted onto another grid of the same space.

  Where one of the files has no position in its header, shape and spacing are
  compared, and voxels belong together as they stand in the files. Where a
  header is at odds with itself, the best of its readings counts: programs
  differ in which they take, and write masks by it.

  Args:
    array: `[z, y, x]` or `[z, y, x, C]`.
    grid: of `array`.
    to: the grid wanted.
    what: the file of `array`, for messages.
    where: the file with the grid wanted, for messages.
    tolerance: how far a voxel may lie off, in voxels; below 0.001 it counts as
      0.001.

  Raises:
    InputError: another shape, or a voxel lies further off.
  """
  match = _match(grid, to, what=what, where=where, tolerance=tolerance)
  view = to_file_order(array, grid)
  view = view.transpose(*match.order, *range(3, array.ndim))
  view = view[tuple(slice(None, None, int(step)) for step in match.steps)]
  return np.ascontiguousarray(from_file_order(view, to))


def gap_between(
  grid: Grid,
  to: Grid,
  *,
  what: str,
  where: str,
  tolerance: float = TOLERANCE,
) -> str:
  """Returns a line on what `align` lets pass, though it is odd, or ''.

  Args:
    grid: of the array that would be aligned.
    to: see `align`, as all that follow.
    what: see there.
    where: see there.
    tolerance: see there.

  Raises:
    InputError: as `align`.
  """
  match = _match(grid, to, what=what, where=where, tolerance=tolerance)
  if match.voxels > SAME:
    return (
      f'{what}: up to {_off(match)} off the grid of {where}; it is taken as on '
      f'it, as data.grid_tolerance is {tolerance:g} voxels'
    )
  if grid.placed != to.placed:  # what neither says cannot be at odds
    return (
      f'{what}: shape and spacing are those of {where}, but the header of the '
      f'{"latter" if grid.placed else "former"} says no position (of NIfTI: '
      'sform and qform codes 0); the voxels are taken as they stand in the '
      'files'
    )
  return ''


def _match(
  grid: Grid, to: Grid, *, what: str, where: str, tolerance: float
) -> _Match:
  """Returns how two grids of the same space belong together; see `align`."""
  tolerance = max(tolerance, SAME)
  shapes = file_shape(grid), file_shape(to)
  placed = grid.placed and to.placed
  compare = _compare_places if placed else _compare_sizes
  matches = [
    compare(*pair, *shapes)
    for pair in itertools.product(grid.readings, to.readings)
  ]
  match = matches[0]  # of the readings that are taken, where these fit
  if not match.voxels <= tolerance:
    match = min(matches, key=lambda m: m.voxels)
  shape = tuple(shapes[0][axis] for axis in match.order)
  if shape != shapes[1] or not match.voxels <= tolerance:
    differ = _differences(match, *shapes, placed=placed)
    raise InputError(
      f'{what}: not on the grid of {where}, off by up to {_off(match)} '
      f'({differ}); allowed is data.grid_tolerance, {tolerance:g} voxels, '
      'flipped or permuted axes included'
    )
  return match


def _off(match: _Match) -> str:
  return f'{match.mm:.4g} mm, {match.voxels:.4g} voxels'


def _compare_places(
  affine: np.ndarray,
  to_affine: np.ndarray,
  shape: tuple[int, ...],
  to_shape: tuple[int, ...],
) -> _Match:
  between = np.linalg.inv(to_affine) @ affine
  orientation = nib.io_orientation(between)
  if np.isnan(orientation).any():
    raise ValueError('affines must not be singular')
  order = np.argsort(orientation[:, 0])
  steps = orientation[order, 1].astype(int)
  # Corners of the two grids that belong together: index 0 or the last one.
  ends = np.array(list(itertools.product((0, 1), repeat=3)))
  corners = ends * (np.array(shape) - 1)
  to_ends = np.where(steps > 0, ends[:, order], 1 - ends[:, order])
  to_corners = to_ends * (np.array(to_shape) - 1)
  gap = _apply(affine, corners) - _apply(to_affine, to_corners)
  return _Match(
    voxels=float(np.abs(_apply(between, corners) - to_corners).max()),
    mm=float(np.linalg.norm(gap, axis=-1).max()),
    order=order,
    steps=steps,
    affines=(affine, to_affine),
  )


def _compare_sizes(
  affine: np.ndarray,
  to_affine: np.ndarray,
  shape: tuple[int, ...],
  to_shape: tuple[int, ...],
) -> _Match:
  """Compares where the last voxel lies as seen from the first, axis by axis."""
  sizes, to_sizes = (
    np.linalg.norm(each[:3, :3], axis=0) for each in (affine, to_affine)
  )
  gap = np.abs(
    sizes * (np.array(shape) - 1) - to_sizes * np.subtract(to_shape, 1)
  )
  return _Match(
    voxels=float((gap / to_sizes).max()),
    mm=float(gap.max()),
    order=np.arange(3),
    steps=np.ones(3, int),
    affines=(affine, to_affine),
  )


def _differences(
  match: _Match,
  shape: tuple[int, ...],
  to_shape: tuple[int, ...],
  *,
  placed: bool,
) -> str:
  """Returns what differs between two grids, of the one against the other.

  In the axes of the files.
  """
  shape = tuple(shape[axis] for axis in match.order)
  spacing, to_spacing = (
    np.linalg.norm(affine[:3, :3], axis=0) for affine in match.affines
  )
  turned = match.affines[0][:3, :3] / spacing
  turned = turned[:, match.order] * match.steps
  facts = [
    ('shape', shape, to_shape, times),
    ('spacing', spacing[match.order], to_spacing, lambda v: f'{times(v)} mm'),
  ]
  if placed:
    facts += [
      ('direction', turned, match.affines[1][:3, :3] / to_spacing, rows),
      ('origin', _origin(match, shape), match.affines[1][:3, 3], _numbers),
    ]
  return ', '.join(
    f'{name} {text(one)} against {text(other)}'
    for name, one, other, text in facts
    if not np.allclose(one, other, rtol=1e-4, atol=1e-4)
  )


def _origin(match: _Match, shape: tuple[int, ...]) -> np.ndarray:
  """Returns where the corner lies that belongs to the other's first voxel."""
  corner = np.zeros(3)
  for axis, step, size in zip(match.order, match.steps, shape, strict=True):
    corner[axis] = size - 1 if step < 0 else 0
  return _apply(match.affines[0], corner)


def _numbers(values: np.ndarray) -> str:
  return ' '.join(f'{value:.6g}' for value in values)


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
  return points @ affine[:3, :3].T + affine[:3, 3]
