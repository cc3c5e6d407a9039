"""What is odd about a case that was scored."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medseg_jax.report.html.charts import short

_FACTOR = 2.0  # of the training's median: farther is far


class Range(NamedTuple):
  """The foreground of the training cases in one channel: 99 % of it."""

  channel: str
  low: float
  high: float


class Training(NamedTuple):
  """What the training cases were like, as far as the plan knows.

  Attributes:
    intensities: of each channel.
    spacing: the median, mm along each axis; () where unknown.
    size: likewise, of the extent of what is not zero, mm.
  """

  intensities: Sequence[Range]
  spacing: Sequence[float]
  size: Sequence[float]


def warnings_of(
  record: Mapping[str, Any],
  facts: Mapping[str, Any] | None,
  training: Training | None,
  *,
  unit: str,
) -> list[str]:
  """Returns a line for each thing that is odd.

  Far from the training is a case whose median in the foreground lies outside
  the range of 99 % of the training's, or whose spacing or size along an axis is
  less than half or more than twice the training's median.

  Args:
    record: see `report.summary`.
    facts: see `case_views.facts_of`; None where unknown.
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
  if facts is None or training is None:
    return lines
  for value, known in zip(facts['medians'], training.intensities, strict=False):
    if not known.low <= value <= known.high:
      lines.append(
        f'far from the training: intensity of {known.channel} in the '
        f'foreground {value:.4g}, there {known.low:.4g} to {known.high:.4g}'
      )
  size = [
    n * mm for n, mm in zip(facts['shape'], facts['spacing'], strict=True)
  ]
  for what, own, usual in (
    ('spacing', facts['spacing'], training.spacing),
    ('size', size, training.size),
  ):
    if len(own) != len(usual):
      continue
    ratios = [a / b for a, b in zip(own, usual, strict=True)]
    if any(ratio > _FACTOR or ratio < 1 / _FACTOR for ratio in ratios):
      lines.append(
        f'far from the training: {what} {_product(own)} mm, '
        f'there {_product(usual)}'
      )
  return lines


def sizes(scores: Mapping[str, Any]) -> tuple[float, float]:
  """Returns the volume of prediction and truth, ml or, of images, pixels."""
  if 'volume_ml' in scores:
    return scores['volume_ml'], scores['volume_ml_label']
  return scores['tp'] + scores['fp'], scores['tp'] + scores['fn']


def is_number(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _product(values: Sequence[float]) -> str:
  return ' × '.join(f'{value:.3g}' for value in values)
