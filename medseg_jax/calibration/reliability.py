"""How far probabilities are from the frequencies that they promise.

Of all voxels to which a class is given a probability of about 0.8, four fifths
should be of that class. Bins are of equal width; an error is the mean over the
bins of the distance between mean probability and frequency, each bin weighted
by its number of voxels. `probs` are `[N, K]` in 0 .. 1, one row a voxel.
`labels` are int `[N]` for classes, of which each voxel has one, or bool
`[N, K]` for regions, which may overlap.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_BINS = 15


class Reliability(NamedTuple):
  """Probabilities against frequencies, of the values in each bin.

  Attributes:
    counts: int64 `[bins]`, values in the bin.
    probability: `[bins]`, their mean; NaN where there are none.
    frequency: `[bins]`, the share of them that is so; likewise.
  """

  counts: npt.NDArray[np.int64]
  probability: Floats
  frequency: Floats


def reliability(
  probs: npt.ArrayLike, hits: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> Reliability:
  """Returns the reliability diagram of events.

  DeGroot and Fienberg 1983, "The comparison and evaluation of forecasters".

  Args:
    probs: `[N]`, what each event was given, 0 .. 1.
    hits: bool `[N]`, whether it came.
    num_bins: of equal width; a probability on an edge is in the upper one.

  Raises:
    ValueError: shapes that differ, or probabilities outside 0 .. 1.
  """
  probs, hits = np.asarray(probs, np.float64), np.asarray(hits, bool)
  # Averages in float32 are off by a little.
  probs = np.where(np.abs(probs - 0.5) < 0.5 + 1e-6, probs.clip(0, 1), probs)
  if probs.shape != hits.shape or probs.ndim != 1:
    raise ValueError(
      f'probs and hits must be [N], got {probs.shape} and {hits.shape}'
    )
  if probs.size and not (probs.min() >= 0 and probs.max() <= 1):
    raise ValueError(
      f'probs must lie in 0..1, got {probs.min()}..{probs.max()}'
    )
  index = np.minimum((probs * num_bins).astype(np.int64), num_bins - 1)
  counts = np.bincount(index, minlength=num_bins)
  with np.errstate(invalid='ignore'):
    return Reliability(
      counts=counts,
      probability=np.bincount(index, probs, num_bins) / counts,
      frequency=np.bincount(index, hits, num_bins) / counts,
    )


def expected_error(
  probs: npt.ArrayLike, labels: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> float:
  """Returns the expected calibration error of the chosen classes, 0 .. 1.

  Of the probability of each voxel's most probable class, against whether that
  is its class (Guo et al. 2017, "On calibration of modern neural networks").
  Regions are each a choice of its own, between being there and not, so theirs
  is the mean over the regions. NaN without voxels.

  Raises:
    ValueError: shapes that do not match.
  """
  probs, labels = _check(probs, labels)
  if labels.ndim == 2:
    sure = np.maximum(probs, 1 - probs)
    right = (probs > 0.5) == labels
    errors = [
      error_of(reliability(*pair, num_bins=num_bins))
      for pair in zip(sure.T, right.T, strict=True)
    ]
    return float(np.mean(errors))
  chosen = probs.argmax(axis=1)
  return error_of(
    reliability(probs.max(axis=1), chosen == labels, num_bins=num_bins)
  )


def class_wise_error(
  probs: npt.ArrayLike, labels: npt.ArrayLike, *, num_bins: int = NUM_BINS
) -> Floats:
  """Returns the calibration error of each class or region, `[K]`.

  Of its probability on all voxels (Kull et al. 2019, "Beyond temperature
  scaling", who call the mean of these the classwise-ECE). NaN without voxels.

  Raises:
    ValueError: shapes that do not match.
  """
  probs, labels = _check(probs, labels)
  there = labels.T if labels.ndim == 2 else None
  errors = [
    error_of(
      reliability(
        column,
        labels == k if there is None else there[k],
        num_bins=num_bins,
      )
    )
    for k, column in enumerate(probs.T)
  ]
  return np.array(errors, np.float64)


def error_of(diagram: Reliability) -> float:
  """Returns the mean distance of a diagram, NaN of an empty one."""
  total = diagram.counts.sum()
  if not total:
    return float('nan')
  gap = np.abs(diagram.probability - diagram.frequency)
  return float(np.where(diagram.counts > 0, gap, 0) @ diagram.counts / total)


def _check(
  probs: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[Floats, npt.NDArray]:
  probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
  wanted = probs.shape if labels.ndim == 2 else probs.shape[:1]
  if probs.ndim != 2 or labels.shape != wanted:
    raise ValueError(
      'probs must be [N, K] and labels [N], or [N, K] for regions, got '
      f'{probs.shape} and {labels.shape}'
    )
  if (
    labels.ndim == 1
    and labels.size
    and (labels.min() < 0 or labels.max() >= probs.shape[1])
  ):
    raise ValueError(
      f'labels must lie in 0..{probs.shape[1] - 1}, got {labels.min()}..'
      f'{labels.max()}; leave out what is ignored'
    )
  return probs, labels
