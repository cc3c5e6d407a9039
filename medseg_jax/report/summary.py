"""Results of an evaluation: summary, `summary.json`, `cases.csv` and table.

A record is what one case scored:

  {'case': name,
   'pixel_accuracy': float,
   'classes': {class_name: {'dice', 'iou', 'precision', 'recall': float,
                            'tp', 'fp', 'fn': int, ...}},
   'roi': {'pixel_accuracy', 'classes'}}

`classes` names every class, the background first. NaN stands for undefined.
`roi`, the same numbers inside a region of interest only, may be left out. A
class may have more numbers, lengths in mm; each group is there as a whole or
not at all, and for some classes (the foreground) only:

  'volume_ml', 'volume_ml_label': float, volume of prediction and label
  'hausdorff_95', 'average_surface_distance', 'surface_dice': float, see
    `metrics.surface`; the two distances are inf where one of the masks is empty
  'lesions_found', 'lesions_missed', 'lesions_false': int, 'lesion_f1': float,
    see `metrics.lesions`
"""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medseg_jax.report.bootstrap import intervals
from medseg_jax.runtime.files import write_atomically

METRICS = ('dice', 'iou', 'precision', 'recall')
COUNTS = ('tp', 'fp', 'fn')
VOLUMES = ('volume_ml', 'volume_ml_label')
SURFACES = ('hausdorff_95', 'average_surface_distance', 'surface_dice')
LESION_COUNTS = ('lesions_found', 'lesions_missed', 'lesions_false')
LESION_METRICS = ('lesion_f1',)
SCORES = (*METRICS, *SURFACES, *LESION_METRICS)

_TABLE_WIDTH = 80


def summarize(
  records: Sequence[Mapping],
  classes: Sequence[str],
  *,
  split: str,
  step: int,
  failed: Mapping[str, str] | None = None,
) -> dict:
  """Returns the content of `summary.json`, with None for what is undefined.

  `num_cases` counts the cases that were scored, `num_failed` those that could
  not be, and `failed` says of each why: they are in none of the numbers.

  A class's value is the mean over the cases in which it is defined; `n_valid`
  counts those for Dice. `dice_pooled` is the Dice of all voxels of all cases
  taken together. `mean` is the mean of the class values over the foreground
  classes that have one, and `pixel_accuracy` the mean over cases.

  A distance is inf where one mask is empty. It is left out of the means, and
  `n_infinite` says in how many cases: read the distances beside it, as a class
  that is missed altogether does not worsen them. Lesions are counted over all
  cases together. Groups that no record has are not in the summary.

  `<metric>_ci95` is the 95 % bootstrap interval [low, high] of the value
  beside it, over cases, see `bootstrap.intervals`. It tells how much the choice
  of cases matters, not that of the training run.

  Args:
    records: one a case, see the module's docstring.
    classes: names of the classes, background first.
    split: name of the split that was evaluated.
    step: training step of the checkpoint.
    failed: why each case that is in no record could not be scored, by name.
  """
  summary = {
    'split': split,
    'step': int(step),
    'num_cases': len(records),
    'num_failed': len(failed or {}),
    'failed': dict(failed or {}),
    **_summarize_region(records, classes),
  }
  rois = [record['roi'] for record in records if 'roi' in record]
  if rois:
    summary['roi'] = _summarize_region(rois, classes)
  return summary


def write_report(
  directory: str | os.PathLike, summary: Mapping, records: Sequence[Mapping]
) -> None:
  """Writes `summary.json` and `cases.csv`, each as a whole or not at all."""
  directory = pathlib.Path(directory)
  text = json.dumps(summary, indent=2, allow_nan=False) + '\n'
  write_atomically(directory / 'summary.json', text.encode())
  # A file name that is no valid text must not cost the evaluation.
  text = _csv_text(records, summary.get('failed', {}))
  rows = text.encode('utf-8', errors='backslashreplace')
  write_atomically(directory / 'cases.csv', rows)


def table(summary: Mapping) -> str:
  """Returns the summary as aligned columns for a terminal.

  Of volumes it has the main numbers only, in at most 80 columns.
  """
  blocks = [_region_table(summary)]
  if 'roi' in summary:
    blocks = [
      'whole image\n' + blocks[0],
      'inside the region of interest\n' + _region_table(summary['roi']),
    ]
  return '\n\n'.join(blocks)


def rank_cases(records: Sequence[Mapping]) -> tuple[int, ...]:
  """Returns the indices of the best, the median and the worst case.

  By mean foreground Dice; ties keep their order, cases without any defined
  foreground Dice are left out, and of an even number the worse of the two
  middle ones is the median. Distinct indices: with two cases best and worst,
  with one that one, with none an empty tuple.
  """
  dice = [
    _mean(list(_column(record['classes'].values(), 'dice'))[1:])
    for record in records
  ]
  ranked = [i for i, value in enumerate(dice) if value is not None]
  ranked.sort(key=lambda i: -dice[i])
  if not ranked:
    return ()
  return tuple(dict.fromkeys((ranked[0], ranked[len(ranked) // 2], ranked[-1])))


def _summarize_region(
  regions: Sequence[Mapping], classes: Sequence[str]
) -> dict:
  """Returns {'classes', 'mean'} over cases, or over their regions."""
  rows = {
    name: [region['classes'][name] for region in regions] for name in classes
  }
  values = {name: _summarize_class(rows[name]) for name in classes}
  foreground = [values[name] for name in classes[1:]]
  mean = {
    metric: _mean(value.get(metric) for value in foreground)
    for metric in (*METRICS, 'dice_pooled')
  }
  for metric in SCORES[len(METRICS) :]:
    if any(metric in value for value in foreground):
      mean[metric] = _mean(value.get(metric) for value in foreground)
  mean['pixel_accuracy'] = _mean(_column(regions, 'pixel_accuracy'))
  metrics = [metric for metric in SCORES if metric in mean]
  per_class, overall = intervals(_stacked(rows, metrics))
  for m, metric in enumerate(metrics):
    mean[f'{metric}_ci95'] = overall[m]
    for c, name in enumerate(classes):
      if metric in values[name]:
        values[name][f'{metric}_ci95'] = per_class[m][c]
  return {'classes': values, 'mean': mean}


def _summarize_class(cases: Sequence[Mapping]) -> dict:
  """Returns the values of one class from its numbers in every case."""
  value = {metric: _mean(_column(cases, metric)) for metric in METRICS}
  value['n_valid'] = sum(_defined(case['dice']) for case in cases)
  tp, fp, fn = (sum(int(n) for n in _column(cases, c)) for c in COUNTS)
  voxels = 2 * tp + fp + fn
  value['dice_pooled'] = 2 * tp / voxels if voxels else None
  present = _present(cases)
  for metric in (*VOLUMES, *SURFACES, *LESION_METRICS):
    if metric in present:
      value[metric] = _mean(case.get(metric) for case in cases)
  if SURFACES[0] in present:
    value['n_infinite'] = sum(
      math.isinf(case.get(SURFACES[0]) or 0) for case in cases
    )
  for count in LESION_COUNTS:
    if count in present:
      value[count] = sum(int(case.get(count, 0)) for case in cases)
  return value


def _present(rows: Iterable[Mapping]) -> set[str]:
  return set().union(*rows)


def _stacked(
  rows: Mapping[str, Sequence[Mapping]], metrics: Sequence[str]
) -> np.ndarray:
  """Returns float64 [cases, metrics, classes], NaN for what has no mean."""
  values = [
    [[case.get(metric, math.nan) for case in cases] for cases in rows.values()]
    for metric in metrics
  ]
  values = np.array(values, np.float64).transpose(2, 0, 1)
  return np.where(np.isfinite(values), values, math.nan)


def _column(rows: Iterable[Mapping], key: str) -> list:
  return [row[key] for row in rows]


def _defined(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _mean(values: Iterable[float | None]) -> float | None:
  """Returns the mean of the defined values, None where there are none."""
  values = [float(value) for value in values if _defined(value)]
  return math.fsum(values) / len(values) if values else None


def _csv_text(records: Sequence[Mapping], failed: Mapping[str, str]) -> str:
  """Returns a row per case, region ('image', 'roi') and class.

  And where there are such one without numbers per case that failed.
  """
  present = _present(
    row for record in records for row in record['classes'].values()
  )
  more = [
    key
    for key in (*VOLUMES, *SURFACES, *LESION_COUNTS, *LESION_METRICS)
    if key in present
  ]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  columns = ['case', 'class', 'region', *METRICS, 'pixel_accuracy', *COUNTS]
  columns += more + ['failed'] * bool(failed)
  writer.writerow(columns)
  for record in records:
    regions = {'image': record}
    if 'roi' in record:
      regions['roi'] = record['roi']
    for region, values in regions.items():
      for name, numbers in values['classes'].items():
        scores = [numbers[metric] for metric in METRICS]
        scores.append(values['pixel_accuracy'])
        writer.writerow(
          (
            record['case'],
            name,
            region,
            *(_cell(x, float) for x in scores),
            *(int(numbers[count]) for count in COUNTS),
            *(
              _cell(numbers.get(key), int if key in LESION_COUNTS else float)
              for key in more
            ),
            *([''] * bool(failed)),
          )
        )
  for case, reason in failed.items():
    writer.writerow([case, *[''] * (len(columns) - 2), reason])
  return text.getvalue()


def _cell(value: float | None, kind: type) -> float | int | str:
  return kind(value) if _defined(value) else ''


def _region_table(region: Mapping) -> str:
  """Returns the table of one region: classes, their mean, pixel accuracy."""
  mean = region['mean']
  columns = {metric: (metric, _score) for metric in METRICS}
  if 'hausdorff_95' in mean:
    columns = {
      'dice': ('dice', _score),
      'dice_ci95': ('95 % interval', _interval_text),
      'iou': ('iou', _score),
      'hausdorff_95': ('HD95 mm', _length),
      'surface_dice': ('surface dice', _score),
    }
  if 'lesion_f1' in mean:
    # IoU orders cases as Dice does: the first to make room.
    columns.pop('iou')
    columns['lesion_f1'] = ('lesion F1', _score)
  rows = [('class', *(head for head, _ in columns.values()), 'cases')]
  for name, value in [*region['classes'].items(), ('foreground mean', mean)]:
    cells = [text(value.get(key)) for key, (_, text) in columns.items()]
    rows.append((name, *cells, str(value.get('n_valid', ''))))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  if 'hausdorff_95' in mean:
    room = _TABLE_WIDTH - sum(width + 2 for width in widths[1:])
    widths[0] = min(widths[0], room)
  lines = [
    '  '.join(
      cell.rjust(width) if i else _shorten(cell, width).ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  lines.append(f'pixel accuracy  {_score(mean["pixel_accuracy"])}')
  infinite = sum(
    value.get('n_infinite', 0) for value in region['classes'].values()
  )
  if infinite:
    lines.append(
      f'HD95 leaves out pairs of masks of which one is empty: {infinite}'
    )
  return '\n'.join(lines)


def _shorten(name: str, width: int) -> str:
  """Returns the name, with its middle cut out where it is too long."""
  if len(name) <= width:
    return name
  tail = (width - 2) // 2
  return f'{name[: width - 2 - tail]}..{name[-tail:]}'


def _interval_text(interval: Sequence[float] | None) -> str:
  return '-' if interval is None else '{:.3f}-{:.3f}'.format(*interval)


def _length(value: float | None) -> str:
  return '-' if value is None else f'{value:.2f}'


def _score(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'
