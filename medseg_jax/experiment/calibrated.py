"""What a cross-validation has learnt of a model's certainty, as it travels.

The part `calibration` of an ensemble's `model.json`: a temperature for its
probabilities, and for each class a band around its volume.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medseg_jax.calibration import VolumeBand, volume_interval


class Calibration(NamedTuple):
  """A temperature and the bands of volumes.

  Attributes:
    temperature: what logits are divided by, one for all classes or one for
      each region; () for 1, which changes nothing.
    bands: of each class or region but the background, by name.
    unit: of the volumes, see `unit_of`.
    coverage: the share of new cases whose volume a band is to hold.
  """

  temperature: tuple[float, ...] = ()
  bands: Mapping[str, VolumeBand] = {}
  unit: str = ''
  coverage: float = 0.0

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


def unit_of(source: str) -> str:
  """Returns what volumes are measured in, of a `config.data.source`.

  Files of images do not tell how large a pixel is.
  """
  return 'ml' if source == 'volumes' else 'pixels'


def voxel_size(spacing: Sequence[float], unit: str) -> float:
  """Returns the size of a voxel, spacing in mm, in a unit of `unit_of`."""
  return math.prod(spacing) / 1000 if unit == 'ml' else 1.0


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
    temperature, bands, str(volumes['unit']), float(volumes['coverage'])
  )
