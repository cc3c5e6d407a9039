"""What tells that an image is unlike those that a model learnt from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_FACTOR = 2.0  # of the training's median: farther is far
_SAMPLE = 100_000  # voxels that tell the median intensity
_LOOKED_AT = 2e7  # voxels that tell where they are


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


def training_of_plan(plan: Any) -> Training | None:
  """Returns what a plan says of the training cases; None where it does not.

  Args:
    plan: as `planner.make_plan` made it, perhaps edited, or None.
  """
  try:
    found = plan['fingerprint']
    spacing = [float(mm) for mm in found['median_spacing']]
    shape = [float(n) for n in found['median_shape']]
    return Training(
      [
        Range(
          str(name),
          float(channel['percentile_00_5']),
          float(channel['percentile_99_5']),
        )
        for name, channel in zip(
          plan['channel_names'], found['intensities'], strict=False
        )
      ],
      spacing,
      [n * mm for n, mm in zip(shape, spacing, strict=True)],
    )
  except (KeyError, TypeError, ValueError):
    return None


def facts_of(
  image: npt.NDArray | None,
  label: npt.NDArray[np.integer],
  spacing: Sequence[float],
) -> dict[str, Any]:
  """Returns the shape, spacing and intensity of a case.

  Args:
    image: `[*S, C]`, or None.
    label: `[*S]`, true or predicted.
    spacing: of each axis.

  Returns:
    'shape'; 'extent', that of the box of what is not zero, in voxels;
    'spacing'; and 'medians', of each channel in the foreground of the label,
    empty where there is none. Of large volumes not all voxels are looked at.
  """
  medians: list[float] = []
  extent = list(label.shape)
  if image is not None and label.ndim == 3:
    step = max(1, round((label.size / _LOOKED_AT) ** (1 / 3)))
    thin = (slice(None, None, step),) * label.ndim
    extent = _extent((image[thin] != 0).any(-1), step, label.shape)
    where = np.flatnonzero(label[thin] > 0)
    where = where[:: max(1, len(where) // _SAMPLE)]
    if len(where):
      # Of a view with gaps `reshape` would copy the volume.
      at = np.unravel_index(where, label[thin].shape)
      values = image[thin][at].astype(np.float64)
      medians = [float(x) for x in np.median(values, axis=0)]
  return {
    'shape': list(label.shape),
    'extent': extent,
    'spacing': [float(x) for x in spacing],
    'medians': medians if np.isfinite(medians).all() else [],
  }


def far_from(facts: Mapping[str, Any], training: Training) -> list[str]:
  """Returns a line for each thing that is far from the training.

  That is a median intensity in the foreground outside the range of 99 % of the
  training's, or a spacing or size along an axis of less than half or more than
  twice the training's median.

  Args:
    facts: see `facts_of`.
    training: see `Training`.
  """
  lines = [
    f'far from the training: intensity of {known.channel} in the '
    f'foreground {value:.4g}, there {known.low:.4g} to {known.high:.4g}'
    for value, known in zip(
      facts['medians'], training.intensities, strict=False
    )
    if not known.low <= value <= known.high
  ]
  spacing = facts['spacing']
  size = [n * mm for n, mm in zip(facts['extent'], spacing, strict=True)]
  for what, own, usual in (
    ('spacing', spacing, training.spacing),
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


def _extent(
  inside: npt.NDArray[np.bool_], step: int, shape: Sequence[int]
) -> list[int]:
  """Returns the sides of the box of what is True, in voxels.

  Args:
    inside: every `step`-th voxel along each axis.
    step: likewise.
    shape: of all voxels, which is returned where all are False.
  """
  sides = []
  for axis, size in enumerate(shape):
    others = tuple(other for other in range(inside.ndim) if other != axis)
    found = np.flatnonzero(inside.any(axis=others))
    if not len(found):
      return list(shape)
    sides.append(min(int(found[-1] - found[0] + 1) * step, size))
  return sides


def _product(values: Sequence[float]) -> str:
  """Returns what is along each axis, x first, as people have it."""
  return ' × '.join(f'{value:.3g}' for value in reversed(values))
