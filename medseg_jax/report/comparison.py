"""Paired differences between two results of the same cases.

A record is what one case scored, see `report.summary`. All differences are the
second result minus the first, case by case, over the cases in which the value
is defined in both: what makes a case hard for both cancels.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from medseg_jax.report.bootstrap import intervals
from medseg_jax.report.summary import SCORES

LESS_IS_BETTER = ('hausdorff_95', 'average_surface_distance')


def compare(
  first: Sequence[Mapping], second: Sequence[Mapping], classes: Sequence[str]
) -> dict:
  """Returns the differences by class and of the foreground, None if undefined.

  `difference_ci95` is the bootstrap interval of the mean difference, over
  cases. `p_wilcoxon` is that of the signed-rank test, two-sided, of no
  difference, zeros left out (Wilcoxon 1945, "Individual comparisons by ranking
  methods"; scipy.stats.wilcoxon); of the foreground, over each case's mean
  difference. It is not corrected for the number of classes and metrics.
  Neither tells what another training run would have given.

  Args:
    first: records of the cases.
    second: those of the same cases, in the same order.
    classes: names that both have, background first.

  Returns:
    'classes': {name: {metric: ...}} and 'mean': {metric: ...}, each of these
    {'first', 'second', 'difference': means over `n` cases, 'difference_ci95',
    'p_wilcoxon', 'better', 'worse', 'equal': how many cases are so in the
    second}; of the foreground means of the classes' means.
  """
  metrics = [m for m in SCORES if _has(first, m) and _has(second, m)]
  values = np.stack([_stacked(r, metrics, classes) for r in (first, second)])
  values[:, ~np.isfinite(values).all(axis=0)] = math.nan
  differences = values[1] - values[0]
  per_class, overall = intervals(differences)
  found: dict = {
    'classes': {
      name: {
        metric: _described(values[:, :, m, c], metric, per_class[m][c])
        for m, metric in enumerate(metrics)
      }
      for c, name in enumerate(classes)
    }
  }
  found['mean'] = {
    metric: _described_mean(values[:, :, m, 1:], metric, overall[m])
    for m, metric in enumerate(metrics)
  }
  right = np.array(
    [[record['pixel_accuracy'] for record in r] for r in (first, second)],
    np.float64,
  )
  own = intervals((right[1] - right[0])[:, None, None])[0][0][0]
  found['mean']['pixel_accuracy'] = _described(right, 'pixel_accuracy', own)
  return found


def changes(
  first: Sequence[Mapping], second: Sequence[Mapping], classes: Sequence[str]
) -> list[dict]:
  """Returns {'case', 'first', 'second', 'difference'}, most changed first.

  Of the mean foreground Dice over the classes for which both have one; cases
  without any are left out, ties in the order of names.
  """
  found = []
  for one, other in zip(first, second, strict=True):
    dice = _stacked([one, other], ['dice'], classes)[:, 0, 1:]
    dice = dice[:, np.isfinite(dice).all(axis=0)]
    if not dice.size:
      continue
    a, b = (float(value) for value in dice.mean(axis=1))
    found.append(
      {'case': one['case'], 'first': a, 'second': b, 'difference': b - a}
    )
  return sorted(found, key=lambda row: (-abs(row['difference']), row['case']))


def same_labels(one: Mapping, other: Mapping, classes: Sequence[str]) -> str:
  """Returns '' or for which class two records are not of the same label.

  The voxels of a label are what was found of it and what was missed.
  """
  for name in classes:
    a, b = (
      int(record['classes'][name]['tp']) + int(record['classes'][name]['fn'])
      for record in (one, other)
    )
    if a != b:
      return f'class {name} has {a} voxels in one label, {b} in the other'
  return ''


def csv_text(
  first: Sequence[Mapping], second: Sequence[Mapping], classes: Sequence[str]
) -> str:
  """Returns a row per case and class: each metric of both, and the difference.

  What is undefined is empty.
  """
  metrics = [m for m in SCORES if _has(first, m) and _has(second, m)]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  parts = ('first', 'second', 'difference')
  writer.writerow(
    ['case', 'class', *(f'{m}_{part}' for m in metrics for part in parts)]
  )
  for one, other in zip(first, second, strict=True):
    pair = _stacked([one, other], metrics, classes)
    for c, name in enumerate(classes):
      rows = [(a, b, b - a) for a, b in pair[:, :, c].T]
      cells = [float(x) if math.isfinite(x) else '' for r in rows for x in r]
      writer.writerow([one['case'], name, *cells])
  return text.getvalue()


def table(comparison: Mapping, metrics: Iterable[str] = ('dice',)) -> str:
  """Returns the differences as aligned columns for a terminal."""
  blocks = []
  for metric in metrics:
    rows = [
      (metric, 'A', 'B', 'B - A', '95 % interval', 'p', 'better/worse/equal')
    ]
    for name, values in [
      *comparison['classes'].items(),
      ('foreground mean', comparison['mean']),
    ]:
      if values[metric]['n']:
        rows.append((name, *_cells(values[metric])))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
      '  '.join(
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
      ).rstrip()
      for row in rows
    ]
    blocks.append('\n'.join(lines))
  return '\n\n'.join(blocks)


def verdict(found: Mapping) -> str:
  """Returns a sentence on a difference of which more is better.

  One is told only where interval and test agree: with few cases the bootstrap
  interval is too narrow.
  """
  interval, p = found['difference_ci95'], found['p_wilcoxon']
  if (
    interval is None
    or p is None
    or p >= 0.05
    or interval[0] <= 0 <= interval[1]
  ):
    return 'no difference can be told from them'
  word = 'better' if found['difference'] > 0 else 'worse'
  return f'B is {word} by {abs(found["difference"]):.4f} on such cases'


def _cells(value: Mapping) -> tuple[str, ...]:
  interval, p = value['difference_ci95'], value['p_wilcoxon']
  return (
    f'{value["first"]:.4f}',
    f'{value["second"]:.4f}',
    f'{value["difference"]:+.4f}',
    '-' if interval is None else '{:+.4f} {:+.4f}'.format(*interval),
    '-' if p is None else f'{p:.3f}' if p >= 0.001 else f'{p:.0e}',
    f'{value["better"]}/{value["worse"]}/{value["equal"]}',
  )


def _has(records: Sequence[Mapping], metric: str) -> bool:
  return any(
    metric in values
    for record in records
    for values in record['classes'].values()
  )


def _stacked(
  records: Sequence[Mapping], metrics: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
  """Returns float64 [cases, metrics, classes], NaN where undefined."""
  values = [
    [[r['classes'][c].get(m, math.nan) for c in classes] for m in metrics]
    for r in records
  ]
  array = np.array(values, np.float64)
  array = array.reshape(len(records), len(metrics), len(classes))
  return np.where(np.isfinite(array), array, math.nan)


def _described(pair: np.ndarray, metric: str, interval: object) -> dict:
  """Returns what is told of a value, [2, cases], NaN in both or in neither."""
  pair = pair[:, np.isfinite(pair).all(axis=0)]
  means = [float(row.mean()) if row.size else None for row in pair]
  return _told(pair[1] - pair[0], means, metric, interval)


def _described_mean(pair: np.ndarray, metric: str, interval: object) -> dict:
  """Returns what is told of a foreground, [2, cases, classes]."""
  some = np.isfinite(pair[0]).any(axis=0)
  means: list[float | None] = [None, None]
  if some.any():
    means = [float(np.nanmean(row[:, some], axis=0).mean()) for row in pair]
  cases = np.isfinite(pair[0]).any(axis=1)
  return _told(
    np.nanmean(pair[1, cases] - pair[0, cases], axis=1), means, metric, interval
  )


def _told(
  differences: np.ndarray,
  means: Sequence[float | None],
  metric: str,
  interval: object,
) -> dict:
  sign = -1 if metric in LESS_IS_BETTER else 1
  first, second = means
  p = None
  if np.any(differences):
    p = float(stats.wilcoxon(differences).pvalue)
  return {
    'first': first,
    'second': second,
    'difference': None if first is None else second - first,
    'difference_ci95': interval,
    'p_wilcoxon': p,
    'n': int(differences.size),
    'better': int((sign * differences > 0).sum()),
    'worse': int((sign * differences < 0).sum()),
    'equal': int((differences == 0).sum()),
  }
