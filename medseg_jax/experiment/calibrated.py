"""What a cross-validation has learnt of a model's certainty, as it travels.

The part `calibration` of an ensemble's `model.json`: a temperature for its
probabilities, and for each class a band around its volume.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.calibration import VolumeBand, volume_interval
from medseg_jax.data.case import VOLUMES


class Calibration(NamedTuple):
  """A temperature and the bands of volumes.

  Attributes:
    temperature: what logits are divided by, one for all classes or one for
      each region; () for 1, which changes nothing.
    bands: of each class or region but the background, by name.
    unit: of the volumes, see `unit_of`.
    coverage: the share of new cases whose volume a band is to hold.
    stopped_early: the trainings that the cases ended which it was learnt of.
  """

  temperature: tuple[float, ...] = ()
  bands: Mapping[str, VolumeBand] = {}
  unit: str = ''
  coverage: float = 0.0
  stopped_early: tuple[str, ...] = ()

  def interval(self, name: str, volume: float, unit: str) -> tuple[float, ...]:
    """Returns the least and the largest volume of a class, () if unknown.

    Args:
      name: of the class or region.
      volume: as predicted.
      unit: of it.
    """
    if name not in self.bands or unit != self.unit:
      return ()
    return volume_interval(volume, self.bands[name])


ML, PIXELS = 'ml', 'pixels'


def unit_of(source: str) -> str:
  """Returns what volumes are measured in, of a `config.data.source`.

  Files of images do not tell how large a pixel is.
  """
  return ML if source in VOLUMES else PIXELS


def voxel_size(spacing: Sequence[float], unit: str) -> float:
  """Returns the size of a voxel, spacing in mm, in a unit of `unit_of`."""
  return math.prod(spacing) / 1000 if unit == ML else 1.0


def class_counts(label: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns the voxels of each class, int64 `[num_classes]`.

  Args:
    label: `[*S]` class indices, below 0 where ignored.
    num_classes: of these.
  """
  counts = np.zeros(num_classes + 1, np.int64)
  for plane in label:  # counting makes 64 bits of each voxel
    counts += np.bincount(
      plane.ravel().astype(int) + 1, minlength=num_classes + 1
    )
  return counts[1:]


def volumes_of(counts: Sequence[int], data: ConfigDict) -> dict[str, int]:
  """Returns the voxels of each class, or region, but the background.

  Args:
    counts: of each class.
    data: section of the model's config.
  """
  if data.regions:
    return {name: sum(counts[i] for i in of) for name, of in data.regions}
  return dict(zip(data.classes[1:], counts[1:], strict=True))


def from_json(
  found: Mapping[str, Any] | None, *, num_outputs: int
) -> Calibration:
  """Returns what `calibrating.learn` learnt, as JSON has it.

  Args:
    found: it, or None for nothing.
    num_outputs: of the network, for which there may be a temperature each.

  Raises:
    KeyError, TypeError, ValueError: it is something else.
  """
  if found is None:
    return Calibration()
  temperature = tuple(map(float, found['temperature']))
  if len(temperature) not in (1, num_outputs) or not all(
    0 < value < math.inf for value in temperature
  ):
    raise ValueError(f'the temperature is {temperature}')
  volumes = found['volumes']
  bands = {
    name: VolumeBand(
      low=-math.inf if band['low'] is None else float(band['low']),
      high=math.inf if band['high'] is None else float(band['high']),
      num_cases=int(band['num_cases']),
      root=int(volumes['root']),
    )
    for name, band in volumes['classes'].items()
  }
  if set(temperature) == {1.0}:
    temperature = ()
  return Calibration(
    temperature,
    bands,
    str(volumes['unit']),
    float(volumes['coverage']),
    tuple(map(str, found.get('stopped_early', ()))),
  )
