"""What the trainings of a learning curve scored, and what follows from it."""

import contextlib
import csv
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg_jax.experiment import early_stop, model_folder
from medseg_jax.metrics import power_law
from medseg_jax.report.learning_plot import Fitted, learning_plot
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import read_json
from medseg_jax.studies.fold_runs import FoldRun

_PERCENTILES = (2.5, 97.5)


def scores(workdir: pathlib.Path) -> pathlib.Path:
  """Returns the file of what a training's held-out cases scored."""
  return workdir / 'evaluation' / 'val' / 'cases.csv'


def are_there(workdir: pathlib.Path) -> bool:
  """Returns whether the scores are of the model that a training ended with.

  Somebody may have evaluated other weights of it since.
  """
  path = scores(workdir).with_name('summary.json')
  if not (path.exists() and scores(workdir).exists()):
    return False
  training = model_folder.read_description(workdir / 'model')['training']
  with contextlib.suppress(InputError, AttributeError):
    summary = read_json(path, 'a summary')
    return all(
      summary.get(key) == training[key] for key in ('step', 'checkpoint')
    )
  return False


def failed(workdir: pathlib.Path) -> list[str]:
  """Returns the names of the cases that could not be scored."""
  with scores(workdir).open(newline='', encoding='utf-8') as file:
    return [row['case'] for row in csv.DictReader(file) if not row['class']]


def read(
  workdir: pathlib.Path, cases: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
  """Returns the Dice of each case and class, `[cases, classes]`, or NaN.

  A case that could not be scored has none.

  Args:
    workdir: of a training that has ended.
    cases: that it has held out.
    classes: the foreground.

  Raises:
    InputError: one of them is not there.
  """
  path, found = scores(workdir), {}
  with path.open(newline='', encoding='utf-8') as file:
    for row in csv.DictReader(file):
      if not row['class']:  # it failed
        found |= {(row['case'], name): math.nan for name in classes}
      elif row['region'] == 'image':
        value = float(row['dice']) if row['dice'] else math.nan
        found[row['case'], row['class']] = value
  missing = [name for name in cases if (name, classes[0]) not in found]
  if missing:
    raise InputError(
      f'{path}: {counted(len(missing), "held-out case")} without a score, the '
      f'first {missing[0]}; remove the file, and all are scored anew'
    )
  return np.array([[found[name, each] for each in classes] for name in cases])


def describe(
  numbers: Sequence[int], dice: np.ndarray, runs: Sequence[FoldRun]
) -> dict[str, Any]:
  """Returns the content of `summary.json`.

  Intervals of points tell how much the choice of the held-out cases matters.
  Those of the fit also have the scatter of the points about it.

  Args:
    numbers: of training cases.
    dice: `[S, cases, classes]`.
    runs: the trainings, of `S` sizes.
  """
  errors = power_law.mean_errors(dice)
  drawn = power_law.resampled_errors(dice)
  stopped = early_stop.of_folds({each.title: each.workdir for each in runs})
  points = []
  for i, (number, each) in enumerate(zip(numbers, runs, strict=True)):
    point = {
      'cases': number,
      'dice': _number(1 - errors[i]),
      'dice_ci95': _interval(1 - drawn[:, i], dice.shape[1]),
      'num_steps': each.resolved.num_steps,
      'workdir': each.title,
    }
    if each.title in stopped:
      point['stopped_early'] = stopped[each.title]
    points.append(point)
  result: dict[str, Any] = {
    'split': 'val',
    'num_held_out': dice.shape[1],
    'points': points,
    'fit': None,
    'doubled': None,
    'notes': [],
  }
  if len(numbers) < 3 or not np.isfinite(errors).all():
    result['notes'] = ['three sizes with a defined Dice are needed for a fit']
    return result
  law = power_law.fit(numbers, errors)
  laws = power_law.resampled_laws(numbers, errors, drawn)
  last = max(numbers)
  result['fit'] = {
    'formula': '1 - dice = a + b * cases ** -c',
    **{name: float(value) for name, value in law._asdict().items()},
    'rms_residual': float(np.sqrt(np.mean((law(numbers) - errors) ** 2))),
  }
  result['doubled'] = {
    'cases': 2 * last,
    'dice': float(1 - law(2 * last)),
    'dice_ci95': None,
    'gain': float(law(last) - law(2 * last)),
    'gain_ci95': None,
  }
  if laws is not None:
    result['doubled'] |= {
      'dice_ci95': _interval(1 - laws(2 * last), dice.shape[1]),
      'gain_ci95': _interval(laws(last) - laws(2 * last), dice.shape[1]),
    }
  result['notes'] = _notes(law, len(numbers))
  return result


def _notes(law: power_law.PowerLaw, num_points: int) -> list[str]:
  low, high = power_law.EXPONENTS[[0, -1]]
  if not law.b:
    return ['the Dice does not rise with the number of cases']
  found = []
  if law.c in (low, high):
    found.append(
      f'the exponent is at the edge of what is tried ({low:g} to {high:g}): '
      'no power law shows within these sizes'
    )
  if num_points == 3:
    found.append(
      'a law of three numbers can go through any three points: nothing here '
      'tells whether it holds, so it has no interval'
    )
  return found


def _number(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None


def _interval(values: np.ndarray, num_cases: int) -> list[float] | None:
  if num_cases < 2 or not len(values):
    return None
  return [float(value) for value in np.percentile(values, _PERCENTILES)]


def picture(result: dict[str, Any], dice: np.ndarray) -> np.ndarray:
  """Returns the curve drawn, uint8 `[h, w, 3]`.

  Args:
    result: as `describe` returns it.
    dice: that it is of.
  """
  points = [p for p in result['points'] if p['dice'] is not None]
  numbers = [point['cases'] for point in points]
  fitted = None
  if result['fit']:
    law = power_law.PowerLaw(*(result['fit'][name] for name in 'abc'))
    at = np.geomspace(min(numbers), 2 * max(numbers), 60)
    low = high = 1 - law(at)
    laws = power_law.resampled_laws(
      numbers, power_law.mean_errors(dice), power_law.resampled_errors(dice)
    )
    if laws is not None:
      drawn = 1 - np.array([laws(n) for n in at])
      low, high = np.percentile(drawn, _PERCENTILES, axis=1)
    fitted = Fitted(at, 1 - law(at), low, high)
  return learning_plot(
    numbers,
    [point['dice'] for point in points],
    [point['dice_ci95'] for point in points],
    fitted,
    title=f'Dice of {counted(result["num_held_out"], "held-out case")}',
  )


def table(result: dict[str, Any]) -> str:
  """Returns the curve as aligned columns for a terminal, and what it means."""
  rows = [('cases', 'dice', '95 % interval')]
  for point in result['points']:
    rows.append((str(point['cases']), *_cells(point)))
  doubled = result['doubled']
  if doubled:
    rows.append((f'{doubled["cases"]} (fit)', *_cells(doubled)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True))
    for row in rows
  ]
  if doubled:
    fit, interval = result['fit'], doubled['gain_ci95']
    between = (
      '' if interval is None else ', 95 % {:.4f} to {:.4f}'.format(*interval)
    )
    lines.append(
      f'1 - Dice = {fit["a"]:.4f} + {fit["b"]:.4f} * cases ** -{fit["c"]:.2f}: '
      f'twice the cases would gain {doubled["gain"]:.4f}{between}'
    )
    lines.append(
      'intervals are over the held-out cases; those of the fit also have the '
      'scatter of its points'
    )
  lines += [f'note      {note}' for note in result['notes']]
  if any('stopped_early' in point for point in result['points']):
    lines.append(
      'note      the held-out cases ended trainings early: these numbers are '
      'too good for new images'
    )
  return '\n'.join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, str]:
  dice, interval = row['dice'], row['dice_ci95']
  return (
    '-' if dice is None else f'{dice:.4f}',
    '-' if interval is None else '{:.3f}-{:.3f}'.format(*interval),
  )
