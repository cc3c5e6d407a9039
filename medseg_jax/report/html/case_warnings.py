"""What is odd about a case that was scored."""

import math
from collections.abc import Mapping
from typing import Any

from medseg_jax.report.html.charts import short
from medseg_jax.report.unlike_training import Training, far_from


def warnings_of(
  record: Mapping[str, Any],
  facts: Mapping[str, Any] | None,
  training: Training | None,
  *,
  unit: str,
) -> list[str]:
  """Returns a line for each thing that is odd.

  Args:
    record: see `report.summary`.
    facts: see `unlike_training.facts_of`; None where unknown.
    training: None where unknown.
    unit: of volumes, 'ml' or 'pixels'.
  """
  lines = []
  for name, scores in list(record['classes'].items())[1:]:
    predicted, true = sizes(scores)
    if not predicted and true:
      lines.append(f'{name}: nothing predicted of {short(true)} {unit}')
    elif predicted and not true:
      lines.append(
        f'{name}: {short(predicted)} {unit} predicted, the truth has none'
      )
  if facts is not None and training is not None:
    lines += far_from(facts, training)
  return lines


def sizes(scores: Mapping[str, Any]) -> tuple[float, float]:
  """Returns the volume of prediction and truth, ml or, of images, pixels."""
  if 'volume_ml' in scores:
    return scores['volume_ml'], scores['volume_ml_label']
  return scores['tp'] + scores['fp'], scores['tp'] + scores['fn']


def is_number(value: float | None) -> bool:
  return value is not None and math.isfinite(value)
