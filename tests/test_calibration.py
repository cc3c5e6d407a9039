"""Calibration of probabilities, against loops and known temperatures."""

import numpy as np
import pytest
from scipy import special

from medseg_jax import calibration

TRUE_TEMPERATURE = 2.5


def drawn(number=20_000, classes=3, *, seed=0, temperature=TRUE_TEMPERATURE):
  """Returns logits that are too sure by `temperature`, and labels."""
  rng = np.random.default_rng(seed)
  honest = rng.normal(size=(number, classes)) * 2
  probs = special.softmax(honest, axis=1)
  labels = (probs.cumsum(axis=1) < rng.random((number, 1))).sum(axis=1)
  return honest * temperature, np.minimum(labels, classes - 1)


def drawn_regions(number=20_000, *, temperatures=(0.5, 3.0), seed=0):
  rng = np.random.default_rng(seed)
  honest = rng.normal(size=(number, len(temperatures))) * 2
  there = rng.random(honest.shape) < special.expit(honest)
  return honest * np.array(temperatures), there


def naive_error(probs, hits, num_bins=15):
  """The mean gap of the bins, one value after the other."""
  bins = [[] for _ in range(num_bins)]
  for prob, hit in zip(probs, hits, strict=True):
    bins[min(int(prob * num_bins), num_bins - 1)].append((prob, hit))
  gaps = [
    abs(np.mean([p for p, _ in one]) - np.mean([h for _, h in one])) * len(one)
    for one in bins
    if one
  ]
  return sum(gaps) / len(probs)


def test_reliability_by_hand():
  found = calibration.reliability(
    [0.1, 0.3, 0.4, 1.0], [False, True, False, True], num_bins=4
  )
  assert found.counts.tolist() == [1, 2, 0, 1]
  np.testing.assert_allclose(found.probability, [0.1, 0.35, np.nan, 1.0])
  np.testing.assert_allclose(found.frequency, [0.0, 0.5, np.nan, 1.0])


def test_errors_are_those_of_a_loop():
  logits, labels = drawn(500)
  probs = special.softmax(logits, axis=1)
  assert calibration.expected_error(probs, labels) == pytest.approx(
    naive_error(probs.max(axis=1), probs.argmax(axis=1) == labels)
  )
  np.testing.assert_allclose(
    calibration.class_wise_error(probs, labels),
    [naive_error(probs[:, k], labels == k) for k in range(3)],
  )


def test_errors_of_regions_are_those_of_a_loop():
  logits, there = drawn_regions(500)
  probs = special.expit(logits)
  sure = [
    naive_error(np.maximum(p, 1 - p), (p > 0.5) == t)
    for p, t in zip(probs.T, there.T, strict=True)
  ]
  assert calibration.expected_error(probs, there) == pytest.approx(
    np.mean(sure)
  )
  np.testing.assert_allclose(
    calibration.class_wise_error(probs, there),
    [naive_error(probs[:, k], there[:, k]) for k in range(2)],
  )


def test_nothing_to_tell_is_not_a_number():
  assert np.isnan(calibration.expected_error(np.zeros((0, 2)), np.zeros(0)))


def test_a_known_temperature_is_found():
  (found,) = calibration.fit_temperature(*drawn())
  assert found == pytest.approx(TRUE_TEMPERATURE, rel=0.03)


def test_the_temperature_of_each_region_is_found():
  found = calibration.fit_temperature(*drawn_regions())
  np.testing.assert_allclose(found, (0.5, 3.0), rtol=0.04)


def test_no_other_temperature_is_better():
  logits, labels = drawn(2000)
  (found,) = calibration.fit_temperature(logits, labels)

  def cross_entropy(temperature):
    probs = calibration.scale(logits, [temperature])
    return -np.log(probs[np.arange(len(labels)), labels]).mean()

  grid = np.exp(np.linspace(np.log(0.05), np.log(20), 400))
  assert cross_entropy(found) <= min(map(cross_entropy, grid)) + 1e-9


@pytest.mark.parametrize('case', [drawn, drawn_regions])
def test_it_is_kept_where_it_helps_on_the_other_folds(case):
  logits, labels = case()
  folds = np.arange(len(logits)) % 3
  chosen = calibration.choose_temperature(logits, labels, folds)
  assert chosen.temperature == chosen.fitted
  assert chosen.error_after < chosen.error_before / 4
  # Fitted without a fold, tried on it; each fold's voxels by themselves.
  regions = labels.ndim == 2
  probs = np.zeros(logits.shape)
  for fold in range(3):
    others = calibration.fit_temperature(
      logits[folds != fold], labels[folds != fold]
    )
    probs[folds == fold] = calibration.scale(
      logits[folds == fold], others, regions=regions
    )
  assert chosen.error_after == calibration.expected_error(probs, labels)


def test_one_that_does_not_help_is_not_kept():
  # One fold is as sure as it may be, the other far too sure: each fold's own
  # temperature is the wrong one for the other.
  honest, of_honest = drawn(4000, seed=1, temperature=1.0)
  timid, of_timid = drawn(4000, seed=2, temperature=0.2)
  chosen = calibration.choose_temperature(
    np.concatenate([honest, timid]),
    np.concatenate([of_honest, of_timid]),
    np.repeat([0, 1], 4000),
  )
  assert chosen.error_after > chosen.error_before
  assert chosen.temperature == (1.0,) != chosen.fitted


def test_no_temperature_changes_a_mask():
  logits, _ = drawn(1000)
  regions, _ = drawn_regions(1000)
  for temperature in (0.1, 7.0):
    probs = calibration.scale(logits, [temperature])
    assert (probs.argmax(axis=1) == logits.argmax(axis=1)).all()
    there = calibration.scale(
      regions, [temperature, 1 / temperature], regions=1
    )
    assert ((there > 0.5) == (regions > 0)).all()


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: calibration.reliability([1.5], [True]), 'must lie in 0..1'),
    (lambda: calibration.reliability([0.5], [True, False]), 'must be'),
    (lambda: calibration.expected_error([[0.5]], [0, 1]), 'must be'),
    (lambda: calibration.fit_temperature([[0.0]], [0, 1]), 'must be'),
    (lambda: calibration.fit_temperature(np.zeros((0, 2)), []), 'N > 0'),
    (
      lambda: calibration.choose_temperature([[0.0, 1]], [1], [0]),
      'two folds or more',
    ),
  ],
)
def test_what_makes_no_sense_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_what_is_ignored_is_no_class():
  for call in (calibration.fit_temperature, calibration.expected_error):
    with pytest.raises(ValueError, match='must lie in 0..1'):
      call(np.full((3, 2), 0.5), [0, 1, -1])


def test_the_rounding_of_an_average_is_no_error():
  found = calibration.reliability(np.float32([1.0000001]), [True])
  assert found.probability[-1] == 1
