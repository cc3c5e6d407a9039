"""The power law of a learning curve against what it was made of, and scipy."""

import numpy as np
import pytest
from scipy import optimize

from medseg_jax.metrics import power_law

SIZES = np.array([10, 20, 40, 80])


@pytest.mark.parametrize('law', [(0.05, 0.9, 0.5), (0.0, 0.4, 0.3)])
def test_a_law_is_found_again(law):
  a, b, c = law
  found = power_law.fit(SIZES, a + b * SIZES**-c)
  np.testing.assert_allclose(found, law, atol=1e-6)
  assert found(160) == pytest.approx(a + b * 160**-c)


@pytest.mark.parametrize('seed', range(6))
def test_no_other_law_within_the_bounds_fits_better(seed):
  rng = np.random.default_rng(seed)
  errors = 0.1 + 0.5 * SIZES ** -rng.uniform(0.1, 1.5)
  errors = np.clip(errors + rng.normal(0, 0.02, 4), 0.01, 1)
  law = power_law.fit(SIZES, errors)
  assert law.a >= 0 and law.b >= 0
  ours = ((law(SIZES) - errors) ** 2).sum()
  low, high = power_law.EXPONENTS[[0, -1]]
  theirs = min(
    2
    * optimize.least_squares(
      lambda p: p[0] + p[1] * SIZES ** -p[2] - errors,
      (0.1, 0.5, c),
      bounds=([0, 0, low], [1, np.inf, high]),
    ).cost
    for c in (0.1, 0.5, 1.0, 1.9)
  )
  assert ours <= theirs * 1.01 + 1e-9


def test_errors_that_rise_have_no_law():
  law = power_law.fit(SIZES, np.array([0.1, 0.2, 0.3, 0.4]))
  assert law.b == 0 and law.a == pytest.approx(0.25)


def test_many_fits_are_each_one_s():
  rng = np.random.default_rng(0)
  errors = rng.uniform(0.1, 0.9, (7, 4))
  errors[0] = np.sort(errors[0])  # on an edge
  together = power_law.fit(SIZES, errors)
  for i, row in enumerate(errors):
    np.testing.assert_allclose(
      [values[i] for values in together], power_law.fit(SIZES, row)
    )


def test_errors_are_of_classes_and_then_of_their_mean():
  nan = np.nan
  dice = np.array([[[0.8, 0.2], [0.6, nan]], [[nan, nan], [nan, 0.5]]])
  np.testing.assert_allclose(power_law.mean_errors(dice), [0.55, 0.5])
  assert np.isnan(power_law.mean_errors(np.full((3, 2), nan)))


def test_drawings_are_of_the_same_cases_at_all_sizes():
  cases = np.linspace(0.1, 0.9, 9)[:, None]
  drawn = power_law.resampled_errors(np.array([cases, cases - 0.1]))
  np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 0.1)
  deviation = cases.std() / 3  # of the mean of nine
  assert drawn[:, 0].std() == pytest.approx(deviation, rel=0.1)


def test_scatter_about_a_law_widens_its_interval():
  cases = np.linspace(-0.1, 0.1, 9)[:, None]
  sizes = np.array([5, 10, 20, 40, 80, 160])
  smooth = 0.1 + 0.5 * sizes**-0.5
  rough = smooth + 0.01 * np.array([1, -1, 1, -1, 1, -1])

  def spread(errors):
    drawn = power_law.resampled_errors(
      np.array([1 - error + cases for error in errors])
    )
    laws = power_law.resampled_laws(sizes, errors, drawn)
    return np.std(laws(160) - laws(320))

  assert spread(rough) > 5 * spread(smooth)
  drawn = np.array([smooth[:3]] * 4)
  assert power_law.resampled_laws(sizes[:3], smooth[:3], drawn) is None


def test_the_scatter_is_that_of_linear_regression():
  """With a and b alone, in the middle of their range, c hardly matters."""
  rng = np.random.default_rng(0)
  sizes = np.geomspace(4, 4**6, 12)
  errors = 0.3 + 0.4 * sizes**-0.5 + rng.normal(0, 0.002, 12)
  laws = power_law.resampled_laws(sizes, errors, np.tile(errors, (3000, 1)))
  missed = power_law.fit(sizes, errors)(sizes) - errors
  sigma = np.sqrt((missed**2).sum() / 9)
  # The level far out is the mean of about half of the points.
  assert sigma / np.sqrt(12) < laws.a.std() < sigma
