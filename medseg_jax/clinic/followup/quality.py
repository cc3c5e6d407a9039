"""How well two images lie on each other."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_jax.clinic.followup.time_point import (
  Floats,
  TimePoint,
  inverse,
  mapped,
)
from medseg_jax.clinic.followup.working_grid import WorkingGrid

_BINS = 32
_POINTS = 100_000
_LEAST = 0.2  # share of the smaller image, of which less says little
# Moved copies of MR and CT with noise came to 1.29 and more, the hippocampi of
# two people, which nothing rigid brings together, to 1.08, and CT and MR of two
# people to 1.04 (2026-11-28).
_INFORMATION = 1.1
_OVERLAP = 0.5  # with less, most of one image is not in the other
_ROTATION = 30.0  # degrees; nobody is laid so differently twice
_DICE = (
  0.7  # of organs, which 3 mm off lose a tenth or less where they are large
)


class Likeness(NamedTuple):
  """Of two images, one of them moved, where both are.

  Attributes:
    information: normalised mutual information (Studholme et al. 1999,
      doi:10.1016/S0031-3203(98)00091-0), 1 where one tells nothing of the
      other, 2 where it tells all.
    correlation: of the values; of images of one kind.
    overlap: share of the smaller field of view that lies in the other.
  """

  information: float
  correlation: float
  overlap: float

  @property
  def worth(self) -> float:
    """What is to be largest: a corner that fits is no registration."""
    return self.information if self.overlap >= _LEAST else self.overlap


def likeness(
  earlier: WorkingGrid, later: WorkingGrid, motion: Floats
) -> Likeness:
  """Returns how alike the earlier image and the later one are.

  Args:
    earlier: where samples are taken.
    later: the other.
    motion: see `registration`.
  """
  return comparer(earlier, later)(motion)


def comparer(
  earlier: WorkingGrid, later: WorkingGrid, *, most: int = _POINTS
) -> Callable[[Floats], Likeness]:
  """Returns `likeness` as a function of the motion alone.

  Args:
    earlier: where samples are taken, once.
    later: the other.
    most: about so many samples.
  """
  points = earlier.points(most)
  values = earlier.sample(points)
  volumes = [grid.values.size * grid.spacing**3 for grid in (earlier, later)]

  def compare(motion: Floats) -> Likeness:
    b = later.sample(mapped(points, motion))
    there = ~np.isnan(values) & ~np.isnan(b)
    overlap = min(float(there.mean()) * volumes[0] / min(volumes), 1.0)
    a, b = values[there], b[there]
    if len(a) < 2:
      return Likeness(1.0, 0.0, overlap)
    return Likeness(_information(a, b), _correlation(a, b), overlap)

  return compare


def _information(a: npt.NDArray, b: npt.NDArray) -> float:
  places = _bins(a) * _BINS + _bins(b)
  joint = np.bincount(places, minlength=_BINS**2).reshape(_BINS, _BINS)
  both = _entropy(joint)
  if not both:
    return 1.0
  return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / both


def _bins(x: npt.NDArray) -> npt.NDArray[np.int64]:
  """Returns the bin of each value, of those that its range is cut into."""
  low, high = float(x.min()), float(x.max())
  share = (x - low) * (_BINS / (high - low) if high > low else 0.0)
  return np.minimum(share.astype(np.int64), _BINS - 1)


def _entropy(counts: npt.NDArray) -> float:
  shares = counts[counts > 0] / counts.sum()
  return float(-(shares * np.log(shares)).sum())


def _correlation(a: npt.NDArray, b: npt.NDArray) -> float:
  a, b = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (a, b))
  size = float(np.sqrt((a * a).sum() * (b * b).sum()))
  return float((a * b).sum()) / size if size else 0.0


class Quality(NamedTuple):
  """How far a registration is to be trusted.

  Attributes:
    before: as the coordinates of the images say.
    after: as registered.
    rotation: degrees, about one axis.
    shift: mm, that the middle of the earlier image moves, to the patient's
      left, posterior, superior.
    consistency: mm, see `registration.Found`.
    began_with: likewise.
    dice: of each structure that is no lesion and there both times, where both
      images are.
  """

  before: Likeness
  after: Likeness
  rotation: float
  shift: tuple[float, float, float]
  consistency: float | None
  began_with: str
  dice: dict[str, float]


def rotation_of(motion: Floats) -> float:
  """Returns the degrees of a motion's rotation."""
  cosine = (np.trace(motion[:3, :3]) - 1) / 2
  return math.degrees(math.acos(min(max(float(cosine), -1.0), 1.0)))


def shift_of(motion: Floats, at: Floats) -> tuple[float, float, float]:
  """Returns by how many mm left, posterior, superior a point `[3]` moves."""
  right, anterior, superior = mapped([at], motion)[0] - at
  return -float(right), -float(anterior), float(superior)


def dice_of(
  earlier: TimePoint,
  later: TimePoint,
  motion: Floats,
  indices: Sequence[int],
) -> float | None:
  """Returns the Dice of some classes where both images are; None of nothing."""
  sizes, both = [], []
  for point, other, way in (
    (earlier, later, motion), (later, earlier, inverse(motion)),
  ):  # fmt: skip
    voxels = np.argwhere(np.isin(point.label, list(indices)))
    there = mapped(point.to_world(voxels), way)
    there = there[other.holds(there)]
    hit = np.rint(other.to_voxels(there)).astype(int)
    hit = hit.clip(0, np.array(other.label.shape) - 1)
    found = np.isin(other.label[tuple(hit.T)], list(indices))
    sizes.append(len(there) * point.voxel_ml)
    both.append(np.count_nonzero(found) * point.voxel_ml)
  if not all(sizes):
    return None
  return min(float(sum(both) / sum(sizes)), 1.0)


def warnings_of(quality: Quality, match_mm: float) -> list[str]:
  """Returns a line for each reason not to trust a registration."""
  after, found = quality.after, []
  if after.information < _INFORMATION:
    found.append(
      f'the registered images tell little of each other (normalised mutual '
      f'information {after.information:.2f}, below {_INFORMATION:g})'
    )
  if after.overlap < _OVERLAP:
    found.append(
      f'only {after.overlap:.0%} of the smaller image lies in the other one'
    )
  if quality.rotation > _ROTATION:
    found.append(
      f'a rotation of {quality.rotation:.0f} degrees, more than '
      f'{_ROTATION:g}, is implausible'
    )
  if quality.consistency is None or quality.consistency > match_mm:
    far = 'nowhere' if quality.consistency is None else (
      f'{quality.consistency:.1f} mm away'
    )  # fmt: skip
    found.append(
      'registered the other way round, points come back '
      f'{far}; allowed are {match_mm:g} mm, within which lesions are matched'
    )
  # Without a change organs are large enough to tell; small ones lose more.
  if quality.dice and max(quality.dice.values()) < _DICE:
    name = max(quality.dice, key=lambda name: quality.dice[name])
    found.append(
      f'no structure lies on itself: the best is {name} with a Dice of '
      f'{quality.dice[name]:.2f}, below {_DICE:g}'
    )
  return found
