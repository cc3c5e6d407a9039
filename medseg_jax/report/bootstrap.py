"""Bootstrap intervals of means over cases."""

import math
from collections.abc import Iterator

import numpy as np

_RESAMPLES = 10_000


def intervals(values: np.ndarray) -> tuple[list, list]:
  """Returns the intervals of the class means and of the foreground means.

  95 % each: the percentiles 2.5 and 97.5 of the value over 10,000 drawings of
  as many cases as there are, with replacement (Efron and Tibshirani 1993, "An
  introduction to the bootstrap", 13.3). All classes share the drawings, so
  that the interval of the foreground mean respects that they come from the
  same cases. The drawings are the same each time.

  Args:
    values: [cases, metrics, classes], NaN where undefined, background first.

  Returns:
    [metrics][classes] and [metrics] of [low, high], or None where fewer than
    two cases are defined.
  """
  num_cases, *shape = values.shape
  defined = np.isfinite(values)
  flat = (num_cases, math.prod(shape))
  filled = np.where(defined, values, 0.0).reshape(flat)
  numbers = defined.reshape(flat).astype(np.float64)
  means = [
    _ratio(draws @ filled, draws @ numbers) for draws in _drawings(num_cases)
  ]
  means = np.concatenate(means).reshape(-1, *shape)
  known = np.isfinite(means[..., 1:])
  overall = _ratio(
    np.where(known, means[..., 1:], 0.0).sum(axis=-1), known.sum(axis=-1)
  )
  enough = defined.sum(axis=0) > 1
  enough_overall = defined[..., 1:].any(axis=-1).sum(axis=0) > 1
  per_class = [
    [_interval(means[:, m, c], enough[m, c]) for c in range(shape[1])]
    for m in range(shape[0])
  ]
  return per_class, [
    _interval(overall[:, m], enough_overall[m]) for m in range(shape[0])
  ]


def _ratio(total: np.ndarray, number: np.ndarray) -> np.ndarray:
  return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _drawings(num_cases: int) -> Iterator[np.ndarray]:
  """Yields how often each resample has each case, float64 [some, cases]."""
  rng = np.random.default_rng(0)
  block = 1000  # Resamples at once, which bounds the memory.
  for _ in range(_RESAMPLES // block):
    drawn = rng.integers(max(num_cases, 1), size=(block, num_cases))
    drawn += num_cases * np.arange(block)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=block * num_cases)
    yield counts.reshape(block, num_cases).astype(np.float64)


def _interval(means: np.ndarray, enough: bool) -> list[float] | None:
  if not enough:
    return None
  means = means[np.isfinite(means)]  # A drawing may have no defined case.
  return [float(value) for value in np.percentile(means, (2.5, 97.5))]
