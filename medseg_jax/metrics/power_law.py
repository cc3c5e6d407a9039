"""A power law through errors that fall with the number of training cases.

`error(n) = a + b * n ** -c`, a, b >= 0: a is what no amount of such data would
take away. (Hestness et al. 2017, "Deep learning scaling is predictable,
empirically", arXiv:1712.00409, found this form for many tasks.)
"""

from typing import NamedTuple

import numpy as np

# The exponents that are tried. Below, the law is a logarithm over any range of
# numbers that can be had; above, the error falls at once to what is left.
EXPONENTS = np.linspace(0.05, 2.0, 196)
_RESAMPLES = 2000


class PowerLaw(NamedTuple):
  """`a + b * n ** -c`; each a float, or float64 `[R]` for several fits."""

  a: np.ndarray
  b: np.ndarray
  c: np.ndarray

  def __call__(self, n: float | np.ndarray) -> np.ndarray:
    return self.a + self.b * np.float64(n) ** -self.c


def fit(numbers: np.ndarray, errors: np.ndarray) -> PowerLaw:
  """Returns the law of least squares, with `0 <= a`, `0 <= b` and c in bounds.

  For each exponent that is tried a and b follow from linear least squares, so
  that no start has to be guessed and no minimum is a local one.

  Args:
    numbers: of training cases, `[S]`, three different ones at the least.
    errors: at these, `[S]` or, for several fits, `[R, S]`.
  """
  numbers = np.asarray(numbers, np.float64)
  errors = np.asarray(errors, np.float64)
  many = np.atleast_2d(errors)
  x = numbers[None, :] ** -EXPONENTS[:, None]  # [E, S]
  mean_x, mean_y = x.mean(1), many.mean(1)
  centred = x - mean_x[:, None]
  slope = (many - mean_y[:, None]) @ centred.T / (centred**2).sum(1)  # [R, E]
  offset = mean_y[:, None] - slope * mean_x
  # On the edges of what is allowed, the best with a = 0 or b = 0.
  through = (many @ x.T) / (x**2).sum(1)
  a = np.where(slope < 0, mean_y[:, None], np.where(offset < 0, 0.0, offset))
  b = np.where(slope < 0, 0.0, np.where(offset < 0, through, slope))
  a, b = np.maximum(a, 0.0), np.maximum(b, 0.0)
  found = a[..., None] + b[..., None] * x  # [R, E, S]
  best = ((found - many[:, None]) ** 2).sum(-1).argmin(1)
  rows = np.arange(len(many))
  law = PowerLaw(a[rows, best], b[rows, best], EXPONENTS[best])
  if errors.ndim > 1:
    return law
  return PowerLaw(*(values[0] for values in law))


def mean_errors(dice: np.ndarray) -> np.ndarray:
  """Returns 1 - mean Dice, `[...]`, as summaries count it.

  The mean over the cases of each class, then over the classes.

  Args:
    dice: `[..., cases, classes]`, NaN where a class is undefined.
  """
  defined = np.isfinite(dice)
  number = defined.sum(-2)
  total = np.where(defined, dice, 0.0).sum(-2)
  of_class = np.where(number, total / np.maximum(number, 1), np.nan)
  known = np.isfinite(of_class)
  count = known.sum(-1)
  total = np.where(known, of_class, 0.0).sum(-1)
  return np.where(count, 1 - total / np.maximum(count, 1), np.nan)


def resampled_errors(dice: np.ndarray) -> np.ndarray:
  """Returns `mean_errors` of drawings of the cases, float64 `[R, S]`.

  With replacement, the same each time, and of all sizes the same cases, as
  their errors go together. Drawings without any defined class are left out.

  Args:
    dice: `[S, cases, classes]`, NaN where a class is undefined.
  """
  rng = np.random.default_rng(0)
  count = dice.shape[1]
  drawn = rng.integers(count, size=(_RESAMPLES, count))
  errors = np.array([mean_errors(dice[:, rows]) for rows in drawn])
  return errors[np.isfinite(errors).all(1)]


def resampled_laws(
  numbers: np.ndarray, errors: np.ndarray, drawn: np.ndarray
) -> PowerLaw | None:
  """Returns the laws of drawings, with the scatter of the points about theirs.

  Which cases trained, and by which run, no drawing of held-out cases changes;
  the points tell of it only as they miss the law. So each drawing is moved by
  as much: normal, with a variance that is drawn too, since so few points tell
  it badly (the Student-t of linear regression).

  Args:
    numbers: see `fit`, `[S]`.
    errors: at these, `[S]`.
    drawn: of `resampled_errors`, `[R, S]`.

  Returns:
    `R` laws; None for three points, which a law of three numbers need not miss.
  """
  spare = len(numbers) - len(PowerLaw._fields)
  if spare < 1:
    return None
  missed = fit(numbers, errors)(np.asarray(numbers)) - np.asarray(errors)
  rng = np.random.default_rng(1)
  variance = (missed**2).sum() / rng.chisquare(spare, (len(drawn), 1))
  noise = np.sqrt(variance) * rng.standard_normal(drawn.shape)
  return fit(numbers, drawn + noise)
