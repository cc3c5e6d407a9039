"""Whether probabilities and volumes can be believed, and what mends them.

NumPy alone. Everything is learnt on cases that the model has not seen: the
held-out cases of a cross-validation. `folds` says which fold held out each
value; what is learnt on all of them is judged by what is learnt on all but
one fold and tried on that one.
"""

from medseg_jax.calibration.reliability import (
  Reliability,
  class_wise_error,
  expected_error,
  reliability,
)
from medseg_jax.calibration.temperature import (
  Scaling,
  choose_temperature,
  fit_temperature,
  scale,
)
from medseg_jax.calibration.volumes import (
  COVERAGE,
  VolumeBand,
  fit_band,
  left_out_coverage,
  volume_interval,
)

__all__ = [
  'COVERAGE',
  'Reliability',
  'Scaling',
  'VolumeBand',
  'choose_temperature',
  'class_wise_error',
  'expected_error',
  'fit_band',
  'fit_temperature',
  'left_out_coverage',
  'reliability',
  'scale',
  'volume_interval',
]
