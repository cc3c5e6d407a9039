"""Intervals of volumes: ranks counted by hand, coverage by drawing cases."""

import math

import numpy as np
import pytest

from medseg_jax.calibration import (
  fit_band,
  left_out_coverage,
  volume_interval,
)


def roots(residuals, predicted=10.0):
  """Returns (predicted, measured) volumes with these residuals of the roots."""
  residuals = np.asarray(residuals, float)
  return np.full(len(residuals), predicted**3), (predicted + residuals) ** 3


def test_the_bounds_are_the_ranks_that_the_rule_says():
  rng = np.random.default_rng(0)
  residuals = np.arange(1, 40) / 100  # 39 cases: 40 * 0.05 = 2
  band = fit_band(*roots(rng.permutation(residuals)))
  assert band.low == pytest.approx(0.02)
  assert band.high == pytest.approx(0.38)
  assert band.num_cases == 39


@pytest.mark.parametrize(('number', 'bound'), [(18, False), (19, True)])
def test_it_takes_nineteen_cases_to_bound_both_sides(number, bound):
  band = fit_band(*roots(np.arange(number) / 100))
  assert math.isfinite(band.low) is math.isfinite(band.high) is bound
  low, high = volume_interval(8.0, band)
  assert bound or (low, high) == (0.0, math.inf)


@pytest.mark.parametrize('number', [19, 20, 57, 260])
def test_of_cases_left_out_one_by_one_as_many_lie_inside_as_promised(number):
  # Each is as likely to be the new one, so their share is the probability.
  rng = np.random.default_rng(number)
  predicted = rng.uniform(100, 5000, number + 1)
  measured = predicted * rng.uniform(0.7, 1.2, number + 1)
  found = left_out_coverage(predicted, measured, np.arange(number + 1))
  promised = 1 - 2 * math.floor((number + 1) * 0.05 + 1e-9) / (number + 1)
  assert found == pytest.approx(promised)
  assert 0.9 <= found <= 0.9 + 2 / (number + 1)


def test_left_out_folds_are_not_asked():
  # The second fold's predictions are all 1 too small, the others' right.
  residuals = np.repeat([0.0, 1.0, 0.0], 20) + np.arange(60) * 1e-6
  predicted, measured = roots(residuals)
  folds = np.repeat([0, 1, 2], 20)
  inside = 0
  for fold in range(3):
    band = fit_band(predicted[folds != fold], measured[folds != fold])
    for volume, true in zip(
      predicted[folds == fold], measured[folds == fold], strict=True
    ):
      low, high = volume_interval(volume, band)
      inside += low <= true <= high
  assert left_out_coverage(predicted, measured, folds) == inside / 60
  assert inside < 41  # of the second fold none


def test_an_interval_is_in_the_unit_of_the_volumes():
  predicted, measured = roots(np.arange(19) / 100 - 0.09)
  ml, mm3 = (
    fit_band(predicted, measured),
    fit_band(predicted * 1e3, measured * 1e3),
  )
  np.testing.assert_allclose(
    volume_interval(27e3, mm3), 1e3 * np.array(volume_interval(27.0, ml))
  )
  low, high = volume_interval(27.0, ml)
  assert (low, high) == pytest.approx((2.91**3, 3.09**3))


def test_what_was_missed_altogether_has_an_interval_from_zero():
  band = fit_band(*roots(np.arange(19) / 100 - 0.09))
  low, high = volume_interval(0.0, band)
  assert low == 0 < high == pytest.approx(0.09**3)


def test_a_share_of_cases_within_no_bounds_is_not_told():
  predicted, measured = roots(np.arange(20) / 100)
  assert math.isfinite(fit_band(predicted, measured).high)
  assert left_out_coverage(predicted, measured, np.arange(20) % 5) is None


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: fit_band([1.0], [1.0, 2.0]), 'must be'),
    (lambda: fit_band([-1.0], [1.0]), 'predicted must be finite and 0 or more'),
    (lambda: fit_band([1.0], [math.nan]), 'measured must be finite'),
    (lambda: fit_band([1.0], [1.0], coverage=1.0), 'within 0..1'),
    (lambda: left_out_coverage([1.0], [1.0], [0]), 'two folds or more'),
  ],
)
def test_what_makes_no_sense_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
