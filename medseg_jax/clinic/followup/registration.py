"""The rigid motion that brings the earlier image onto the later one.

Mutual information (Mattes et al. 2003, doi:10.1109/TMI.2003.809072), so that
the two may differ in contrast, with SimpleITK. A motion is `[4, 4]`, mm right,
anterior and superior at the earlier time point to those at the later one.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from medseg_jax.clinic.followup import quality
from medseg_jax.clinic.followup.time_point import Floats, mapped
from medseg_jax.clinic.followup.working_grid import WorkingGrid

_BINS = 32
_SEED = 1  # of what is sampled: the same images give the same motion
_SAMPLES = 30_000  # voxels that a step looks at
_LEAST = 16  # voxels along an axis, below which an image is not made coarser
_STEPS = 100  # of each descent
_DESCENTS = 3  # at one resolution, as long as one gains as much as
_GAIN = 1e-4  # of normalised mutual information
_COORDINATES = 'the coordinates'
_PARTS = 8  # of the smaller box, by one of which the search moves it on
_SEEN = 4_000  # points that it compares
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Found(NamedTuple):
  """A motion.

  Attributes:
    motion: `[4, 4]`.
    began_with: what the best began with, in words.
    consistency: mm, how far points come back from where they were when the
      two images are registered anew the other way round; None where that found
      nothing.
  """

  motion: Floats
  began_with: str
  consistency: float | None


def register(earlier: WorkingGrid, later: WorkingGrid) -> Found:
  """Returns the motion that makes the two alike.

  Each of several beginnings, as the scanners' coordinates say, the middles of
  boxes and of masses laid onto each other, and the best of a search through all
  shifts, goes its own way at the coarsest resolution; the best goes on.
  """
  with _one_thread():
    motion, name = _one_way(earlier, later)
    back, _ = _one_way(later, earlier)
  points = earlier.points(2000)
  there = mapped(points, motion)
  seen = ~np.isnan(later.sample(there))
  consistency = None
  if seen.any():
    off = mapped(there[seen], back) - points[seen]
    consistency = float(np.linalg.norm(off, axis=1).mean())
  return Found(motion, name, consistency)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
  """Makes sums of one order: the same images give the same to the bit."""
  before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
  sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
  try:
    yield
  finally:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _one_way(fixed: WorkingGrid, moving: WorkingGrid) -> tuple[Floats, str]:
  """Returns the best motion, and what it began with."""
  images = _as_itk(fixed), _as_itk(moving)
  factors = _factors(fixed, moving)

  compare = quality.comparer(fixed, moving)

  def worth(motion: Floats) -> float:
    return compare(motion).worth

  begun = {}
  shifts: list[Floats] = []
  for name, shift in (
    (_COORDINATES, np.zeros(3)),
    ('the middles of the images', moving.centre - fixed.centre),
    ('the centres of mass', moving.centre_of_mass - fixed.centre_of_mass),
    ('a search', _searched(fixed, moving)),
  ):
    near = 2 * factors[0] * fixed.spacing
    if any(np.linalg.norm(shift - other) < near for other in shifts):
      continue  # it would end where that one does
    shifts.append(shift)
    start = np.eye(4)
    start[:3, 3] = shift
    begun[name] = _optimised(images, start, fixed.centre, factors[0])
    if name == _COORDINATES and worth(start) > worth(begun[name]):
      begun[name] = start  # copies of one image, say
  name = max(begun, key=lambda name: worth(begun[name]))
  best = begun[name]
  for factor in factors:
    for _ in range(_DESCENTS):
      found = _optimised(images, best, fixed.centre, factor)
      gain = worth(found) - worth(best)
      best = found if gain > 0 else best
      if gain < _GAIN:
        break
  return best, name


def _searched(fixed: WorkingGrid, moving: WorkingGrid) -> Floats:
  """Returns the best shift `[3]`, mm, of a grid of them.

  All leave half of the smaller box in the other one, along each axis. Two
  images that show different parts of a body have other middles, and what a
  table or an export has set anew are no common coordinates.
  """
  boxes = [np.array(g.values.shape) * g.spacing for g in (fixed, moving)]
  smaller = np.minimum(*boxes)
  counts = np.floor(sum(boxes) / 2 / smaller * _PARTS - _PARTS / 2).astype(int)
  along = [
    np.arange(-count, count + 1) * size / _PARTS
    for count, size in zip(counts, smaller, strict=True)
  ]
  grid = np.stack(np.meshgrid(*along, indexing='ij'), -1).reshape(-1, 3)
  shifts = moving.centre - fixed.centre
  shifts = shifts + grid @ (fixed.affine[:3, :3] / fixed.spacing).T
  compare = quality.comparer(fixed, moving, most=_SEEN)
  best, found = -1.0, shifts[0]
  for shift in shifts:
    motion = np.eye(4)
    motion[:3, 3] = shift
    worth = compare(motion).worth
    if worth > best:
      best, found = worth, shift
  return np.asarray(found, np.float64)


def _factors(*grids: WorkingGrid) -> list[int]:
  """Returns how many voxels become one, resolution by resolution."""
  shortest = min(min(grid.values.shape) for grid in grids)
  factors = [f for f in (4, 2, 1) if shortest >= _LEAST * f]
  return factors or [1]


def _optimised(
  images: tuple[sitk.Image, sitk.Image],
  start: Floats,
  centre: Floats,
  factor: int,
) -> Floats:
  """Returns the motion that a descent from `start` ends with, else `start`."""
  method = sitk.ImageRegistrationMethod()
  method.SetMetricAsMattesMutualInformation(_BINS)
  voxels = math.prod(images[0].GetSize()) / factor**3
  if voxels > _SAMPLES:
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SAMPLES / voxels, _SEED)
  method.SetInterpolator(sitk.sitkLinear)
  method.SetOptimizerAsRegularStepGradientDescent(
    learningRate=2.0 * images[0].GetSpacing()[0] * factor,  # mm
    minStep=1e-2 * images[0].GetSpacing()[0],
    numberOfIterations=_STEPS,
    relaxationFactor=0.8,  # with half of it a narrow valley ends the descent
  )
  method.SetOptimizerScalesFromPhysicalShift()
  method.SetShrinkFactorsPerLevel([factor])
  method.SetSmoothingSigmasPerLevel([0.5 * (factor - 1)])
  method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
  transform = _as_transform(start, centre)
  method.SetInitialTransform(transform, inPlace=True)
  try:
    method.Execute(*images)
  except RuntimeError:  # the images do not meet
    return start
  return _as_motion(transform)


def _as_itk(grid: WorkingGrid) -> sitk.Image:
  image = sitk.GetImageFromArray(grid.values)
  affine = (_TO_LPS @ grid.affine)[:, [2, 1, 0, 3]]  # index (x, y, z)
  image.SetSpacing([grid.spacing] * 3)
  image.SetOrigin(affine[:3, 3].tolist())
  image.SetDirection((affine[:3, :3] / grid.spacing).ravel().tolist())
  return image


def _as_transform(motion: Floats, centre: Floats) -> sitk.Euler3DTransform:
  lps = _TO_LPS @ motion @ _TO_LPS
  middle = (_TO_LPS[:3, :3] @ centre).tolist()
  transform = sitk.Euler3DTransform()
  transform.SetCenter(middle)
  transform.SetMatrix(lps[:3, :3].ravel().tolist(), 1e-6)
  # y = R (x - c) + c + t
  shift = lps[:3, 3] - middle + lps[:3, :3] @ middle
  transform.SetTranslation(shift.tolist())
  return transform


def _as_motion(transform: sitk.Euler3DTransform) -> Floats:
  lps = np.eye(4)
  lps[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
  centre = np.array(transform.GetCenter())
  lps[:3, 3] = centre + transform.GetTranslation() - lps[:3, :3] @ centre
  return np.asarray(_TO_LPS @ lps @ _TO_LPS, np.float64)
