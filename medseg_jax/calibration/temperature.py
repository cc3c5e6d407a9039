"""Temperature scaling: logits divided by a number that is fitted.

Guo et al. 2017, "On calibration of modern neural networks". Of classes one
temperature serves all, so the most probable class stays; of regions each has
its own, since each is decided at a probability of 0.5, which stays too. So no
temperature changes a mask. `logits` are `[N, K]`, one row a voxel; `labels` are
int `[N]` for classes or bool `[N, K]` for regions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from medseg_jax.calibration.reliability import expected_error

Floats = npt.NDArray[np.float64]

RANGE = (0.05, 20.0)  # of a temperature


class Scaling(NamedTuple):
  """What a temperature does to cases that it was not fitted on.

  Attributes:
    temperature: one for all classes, or one for each region; all 1 where a
      fitted one did not lower the error.
    fitted: those that were fitted on all voxels, whether they are kept or not.
    error_before: `expected_error` of all voxels as they are.
    error_after: of all voxels, each scaled by what the other folds say.
    probs_after: `[N, K]` of these, scaled likewise.
  """

  temperature: tuple[float, ...]
  fitted: tuple[float, ...]
  error_before: float
  error_after: float
  probs_after: Floats


def choose_temperature(
  logits: npt.ArrayLike, labels: npt.ArrayLike, folds: npt.ArrayLike
) -> Scaling:
  """Returns the temperature of all voxels, or 1 where it does not help.

  Whether it helps is told by temperatures that were each fitted on all folds
  but one and tried on that one.

  Args:
    logits: `[N, K]`, finite.
    labels: int `[N]`, or bool `[N, K]`.
    folds: int `[N]`, the fold that held out the voxel's case.

  Raises:
    ValueError: shapes that do not match, no voxels, or only one fold.
  """
  logits, labels, folds = map(np.asarray, (logits, labels, folds))
  present = np.unique(folds)
  if len(present) < 2 or folds.shape != logits.shape[:1]:
    raise ValueError(
      'folds must be [N] with two folds or more, got shape '
      f'{folds.shape} and the folds {present[:9].tolist()}'
    )
  fitted = fit_temperature(logits, labels)
  regions = labels.ndim == 2
  probs = np.empty(logits.shape, np.float64)
  for fold in present:
    out = folds == fold
    other = fit_temperature(logits[~out], labels[~out])
    probs[out] = scale(logits[out], other, regions=regions)
  ones = (1.0,) * len(fitted)
  before = expected_error(scale(logits, ones, regions=regions), labels)
  after = expected_error(probs, labels)
  return Scaling(
    temperature=fitted if after < before else ones,
    fitted=fitted,
    error_before=before,
    error_after=after,
    probs_after=probs,
  )


def fit_temperature(
  logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[float, ...]:
  """Returns what makes the labels most probable: one for all, or by region.

  The minimum of the mean cross-entropy over the temperature, within `RANGE`.
  The cross-entropy is convex in the inverse temperature, so there is one.

  Raises:
    ValueError: shapes that do not match, or no voxels.
  """
  logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
  wanted = logits.shape if labels.ndim == 2 else logits.shape[:1]
  if logits.ndim != 2 or labels.shape != wanted or not len(logits):
    raise ValueError(
      'logits must be [N, K] and labels [N], or [N, K] for regions, with N > '
      f'0, got {logits.shape} and {labels.shape}'
    )
  if (
    labels.ndim == 1 and not 0 <= labels.min() <= labels.max() < logits.shape[1]
  ):
    raise ValueError(
      f'labels must lie in 0..{logits.shape[1] - 1}, got {labels.min()}..'
      f'{labels.max()}; leave out what is ignored'
    )
  if labels.ndim == 2:
    return tuple(
      _minimum(np.stack([np.zeros(len(logits)), column], -1), here.astype(int))
      for column, here in zip(logits.T, labels.T, strict=True)
    )
  return (_minimum(logits, labels),)


def scale(
  logits: npt.ArrayLike, temperature: Sequence[float], *, regions: bool = False
) -> Floats:
  """Returns the probabilities `[..., K]` of logits at a temperature.

  Args:
    logits: `[..., K]`.
    temperature: one for all, or one for each of K.
    regions: of a sigmoid each, in place of a softmax.
  """
  scaled = np.asarray(logits, np.float64) / np.asarray(temperature, np.float64)
  return special.expit(scaled) if regions else special.softmax(scaled, axis=-1)


def _minimum(logits: Floats, labels: npt.NDArray) -> float:
  """Returns the temperature of the least cross-entropy of a softmax."""
  of_label = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

  def cross_entropy(log_temperature: float) -> float:
    inverse = np.exp(-log_temperature)
    spread = special.logsumexp(logits * inverse, axis=1)
    return float(np.mean(spread - of_label * inverse))

  found = optimize.minimize_scalar(
    cross_entropy, bounds=np.log(RANGE), method='bounded'
  )
  return float(np.exp(found.x))
