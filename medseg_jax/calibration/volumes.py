"""Intervals around predicted volumes that hold the true one nine times in ten.

Split conformal prediction (Vovk et al. 2005, "Algorithmic learning in a random
world"; with a quantile to either side, as in Romano et al. 2019, "Conformalized
quantile regression"): how far predictions were off on cases that the model had
not seen bounds how far it will be off on the next one, whatever the model, as
long as that case is of the same kind.

Residuals are those of the volume's cube root, which is the radius of a ball of
that volume but for a factor: an error is a layer at the surface, so it is about
the same for small and for large objects, and an object that was missed
altogether (0) has a residual like any other. Of areas it is the square root.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

COVERAGE = 0.9


class VolumeBand(NamedTuple):
  """Bounds of the root of the true volume less that of the predicted one.

  Attributes:
    low: lower bound, in the root of the volumes' unit; minus infinity where
      there were too few cases to tell one.
    high: upper bound; infinity likewise.
    num_cases: that tell them.
    root: 3 for the cube root, of volumes; 2 for the square root, of areas.
  """

  low: float
  high: float
  num_cases: int
  root: int = 3


def fit_band(
  predicted: npt.ArrayLike,
  measured: npt.ArrayLike,
  *,
  coverage: float = COVERAGE,
  root: int = 3,
) -> VolumeBand:
  """Returns the band that holds a new case's volume with this probability.

  At least with this one, and with at most 2 / (n + 1) more where no two
  residuals are the same, for n cases and a new one that are exchangeable. A
  bound on both sides takes 2 / (1 - coverage) - 1 cases, 19 for 0.9.

  Args:
    predicted: `[n]`, 0 or more, in any unit; of one class, on cases that the
      model has not seen.
    measured: `[n]`, of the expert's masks.
    coverage: within 0 .. 1.
    root: see `VolumeBand`.

  Raises:
    ValueError: shapes that differ, volumes below 0 or not finite, or a coverage
      outside 0 .. 1.
  """
  if not 0 < coverage < 1:
    raise ValueError(f'coverage must lie within 0..1, got {coverage}')
  residuals = np.sort(_residuals(predicted, measured, root))
  number = len(residuals)
  tail = (number + 1) * (1 - coverage) / 2
  # So that 20 * 0.05 is 1, whatever the rounding.
  rank = math.floor(tail + 1e-9)
  if rank < 1:
    return VolumeBand(-math.inf, math.inf, number, root)
  low, high = residuals[rank - 1], residuals[number - rank]
  return VolumeBand(float(low), float(high), number, root)


def volume_interval(volume: float, band: VolumeBand) -> tuple[float, float]:
  """Returns the least and the largest volume, in the unit of `volume`.

  The least is 0 or more, the largest infinity where nothing bounds it. An
  interval need not hold the predicted volume: where the model makes objects too
  small, it lies above.
  """
  radius = float(_root(volume, band.root))
  low, high = (
    max(radius + bound, 0.0) ** band.root for bound in (band.low, band.high)
  )
  return low, high


def left_out_coverage(
  predicted: npt.ArrayLike,
  measured: npt.ArrayLike,
  folds: npt.ArrayLike,
  *,
  coverage: float = COVERAGE,
  root: int = 3,
) -> float | None:
  """Returns the share of cases whose volume lies in the other folds' interval.

  None where the others of a fold are too few to bound one: an interval without
  a bound holds everything, and says nothing.

  Args:
    predicted: see `fit_band`.
    measured: likewise.
    folds: int `[n]`, the fold that held out the case.
    coverage: see `fit_band`.
    root: likewise.

  Raises:
    ValueError: as `fit_band`; no case, or only one fold.
  """
  predicted, measured, folds = map(np.asarray, (predicted, measured, folds))
  present = np.unique(folds)
  if len(present) < 2 or folds.shape != predicted.shape:
    raise ValueError(
      f'folds must be [n] with two folds or more, got shape {folds.shape} and '
      f'the folds {present[:9].tolist()}'
    )
  inside = 0
  for fold in present:
    out = folds == fold
    band = fit_band(
      predicted[~out], measured[~out], coverage=coverage, root=root
    )
    if math.isinf(band.high):
      return None
    residuals = _residuals(predicted[out], measured[out], root)
    inside += int(((residuals >= band.low) & (residuals <= band.high)).sum())
  return inside / len(folds)


def _residuals(
  predicted: npt.ArrayLike, measured: npt.ArrayLike, root: int
) -> npt.NDArray[np.float64]:
  predicted = np.asarray(predicted, np.float64)
  measured = np.asarray(measured, np.float64)
  if predicted.shape != measured.shape or predicted.ndim != 1:
    raise ValueError(
      f'predicted and measured must be [n], got {predicted.shape} and '
      f'{measured.shape}'
    )
  for name, volumes in (('predicted', predicted), ('measured', measured)):
    if not (np.isfinite(volumes) & (volumes >= 0)).all():
      raise ValueError(f'{name} must be finite and 0 or more, got {volumes}')
  return _root(measured, root) - _root(predicted, root)


def _root(volumes: npt.ArrayLike, root: int) -> npt.NDArray[np.float64]:
  roots = {2: np.sqrt, 3: np.cbrt}
  if root not in roots:
    raise ValueError(f'root must be 2 or 3, got {root}')
  return roots[root](np.asarray(volumes, np.float64))
