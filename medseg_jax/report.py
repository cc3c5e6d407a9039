"""Results of an evaluation: summary, `summary.json`, `cases.csv` and table.

A record is what one case scored:

  {'case': name,
   'pixel_accuracy': float,
   'classes': {class_name: {'dice', 'iou', 'precision', 'recall': float,
                            'tp', 'fp', 'fn': int}},
   'roi': {'pixel_accuracy', 'classes'}}

`classes` names every class, the background first. NaN stands for undefined.
`roi`, the same numbers inside a region of interest only, may be left out.
"""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from medseg_jax.files import write_atomically

METRICS = ('dice', 'iou', 'precision', 'recall')
COUNTS = ('tp', 'fp', 'fn')


def summarize(
  records: Sequence[Mapping],
  classes: Sequence[str],
  *,
  split: str,
  step: int,
) -> dict:
  """Returns the content of `summary.json`, with None for what is undefined.

  A class's value is the mean over the cases in which it is defined; `n_valid`
  counts those for Dice. `dice_pooled` is the Dice of all voxels of all cases
  taken together. `mean` is the mean of the class values over the foreground
  classes that have one, and `pixel_accuracy` the mean over cases.

  Args:
    records: one a case, see the module's docstring.
    classes: names of the classes, background first.
    split: name of the split that was evaluated.
    step: training step of the checkpoint.
  """
  summary = {
    'split': split,
    'step': int(step),
    'num_cases': len(records),
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
  rows = _csv_text(records).encode('utf-8', errors='backslashreplace')
  write_atomically(directory / 'cases.csv', rows)


def table(summary: Mapping) -> str:
  """Returns the summary as aligned columns for a terminal."""
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
  return tuple(
    dict.fromkeys((ranked[0], ranked[len(ranked) // 2], ranked[-1]))
  )


def _summarize_region(
  regions: Sequence[Mapping], classes: Sequence[str]
) -> dict:
  """Returns {'classes', 'mean'} over cases, or over their regions."""
  values = {
    name: _summarize_class([region['classes'][name] for region in regions])
    for name in classes
  }
  foreground = [values[name] for name in classes[1:]]
  mean = {
    metric: _mean(_column(foreground, metric))
    for metric in (*METRICS, 'dice_pooled')
  }
  mean['pixel_accuracy'] = _mean(_column(regions, 'pixel_accuracy'))
  return {'classes': values, 'mean': mean}


def _summarize_class(cases: Sequence[Mapping]) -> dict:
  """Returns the values of one class from its numbers in every case."""
  value = {metric: _mean(_column(cases, metric)) for metric in METRICS}
  value['n_valid'] = sum(_defined(case['dice']) for case in cases)
  tp, fp, fn = (sum(int(n) for n in _column(cases, c)) for c in COUNTS)
  voxels = 2 * tp + fp + fn
  value['dice_pooled'] = 2 * tp / voxels if voxels else None
  return value


def _column(rows: Iterable[Mapping], key: str) -> list:
  return [row[key] for row in rows]


def _defined(value: float | None) -> bool:
  return value is not None and math.isfinite(value)


def _mean(values: Iterable[float | None]) -> float | None:
  """Returns the mean of the defined values, None where there are none."""
  values = [float(value) for value in values if _defined(value)]
  return math.fsum(values) / len(values) if values else None


def _csv_text(records: Sequence[Mapping]) -> str:
  """Returns a row per case, region ('image', 'roi') and class."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    ('case', 'class', 'region', *METRICS, 'pixel_accuracy', *COUNTS)
  )
  for record in records:
    regions = {'image': record}
    if 'roi' in record:
      regions['roi'] = record['roi']
    for region, values in regions.items():
      for name, numbers in values['classes'].items():
        scores = [numbers[metric] for metric in METRICS]
        scores.append(values['pixel_accuracy'])
        writer.writerow((
          record['case'],
          name,
          region,
          *(float(x) if _defined(x) else '' for x in scores),
          *(int(numbers[count]) for count in COUNTS),
        ))
  return text.getvalue()


def _region_table(region: Mapping) -> str:
  """Returns the table of one region: classes, their mean, pixel accuracy."""
  rows = [('class', *METRICS, 'cases')]
  for name, value in region['classes'].items():
    scores = (_score(value[metric]) for metric in METRICS)
    rows.append((name, *scores, str(value['n_valid'])))
  mean = region['mean']
  rows.append(
    ('foreground mean', *(_score(mean[metric]) for metric in METRICS), '')
  )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]
  lines.append(f'pixel accuracy  {_score(mean["pixel_accuracy"])}')
  return '\n'.join(lines)


def _score(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'
