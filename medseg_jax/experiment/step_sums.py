"""What a log line tells of the steps since the last one, in sums."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

# Kept with each checkpoint.
_SUMMED = ('steps', 'loss', 'grad_norm')


def zeros() -> dict[str, float]:
  """Returns the sums of no step."""
  return dict.fromkeys(_SUMMED, 0.0)


def rows(count: int, metrics: dict) -> list[dict[str, np.ndarray]]:
  """Returns the metrics of each of `count` steps, read from the device."""
  read = jax.device_get(metrics)
  rows = {name: np.atleast_1d(values) for name, values in read.items()}
  return [{name: row[i] for name, row in rows.items()} for i in range(count)]


def add(
  sums: Mapping[str, float], rows: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
  """Returns the sums with those of more steps, added one after the other.

  So that they are the same to the bit wherever a run was stopped in between.
  """
  total = dict(sums)
  for row in rows:
    total['steps'] += 1
    for name in ('loss', 'grad_norm'):
      total[name] += float(row[name])
  return total
