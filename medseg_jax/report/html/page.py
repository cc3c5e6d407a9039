"""The report of an evaluation as one page that asks no network for anything."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medseg_jax.report.html import charts, mosaic
from medseg_jax.report.html.case_views import within_limit
from medseg_jax.report.html.case_warnings import (
  is_number,
  sizes,
  warnings_of,
)
from medseg_jax.report.html.charts import Axis, Level, Point, Row, short
from medseg_jax.report.html.templates import render
from medseg_jax.report.panels import class_colors
from medseg_jax.report.unlike_training import Training

# Of a summary, in this order, as far as it has them: heading and digits.
_SCORES = {
  'dice': ('Dice', 3),
  'iou': ('IoU', 3),
  'hausdorff_95': ('HD95, mm', 2),
  'average_surface_distance': ('Mean distance, mm', 2),
  'surface_dice': ('Surface Dice', 3),
  'lesion_f1': ('Lesion F1', 3),
}
_FEW = 6  # classes of which the table of cases has columns of their own


def write_page(
  *,
  title: str,
  about: Sequence[tuple[str, str]],
  notes: Sequence[str],
  summary: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  classes: Sequence[str],
  views: Mapping[str, Mapping[str, Any]],
  train: Sequence[tuple[int, Mapping[str, float | None]]] = (),
  val: Sequence[tuple[int, Mapping[str, float | None]]] = (),
  training: Training | None = None,
  calibration: bytes = b'',
) -> str:
  """Returns the page.

  Args:
    title: what was evaluated.
    about: term and text of what else is to be known: data, split, command.
    notes: what matters for all numbers, a line each.
    summary: see `report.summary.summarize`.
    records: see there.
    classes: names of the classes of the masks, background first.
    views: see `CaseViews.found`.
    train: step and values of the lines of `metrics.jsonl`.
    val: likewise, of the validation split.
    training: what the training cases were like; None where unknown.
    calibration: the reliability plot, a PNG; b'' for none.
  """
  names = list(summary['classes'])
  unit = 'pixels'
  if any('volume_ml' in row for row in summary['classes'].values()):
    unit = 'ml'
  order = sorted(range(len(records)), key=lambda i: _mean_dice(records[i]))
  views = within_limit(views, [records[i]['case'] for i in order])
  cases = []
  for record in records:
    found = views.get(record['case'], {'facts': None, 'view': None})
    lines = warnings_of(record, found['facts'], training, unit=unit)
    cases.append(
      {
        'name': _text(record['case']),
        'dice': _mean_of(record['classes'], 'dice'),
        'warnings': lines,
        'scores': {
          name: {key: _known(value) for key, value in scores.items()}
          for name, scores in record['classes'].items()
        },
        **found,
      }
    )
  colours = class_colors(max(len(classes), 2)).tolist()
  data = {
    'classes': [
      {'name': name, 'colour': colour}
      for name, colour in zip(classes, colours, strict=False)
    ],
    'unit': unit,
    'summary': summary,
    'cases': cases,
  }
  shown = {key: head for key, head in _SCORES.items() if key in summary['mean']}
  columns = names[1:] if len(names) <= _FEW + 1 else []
  return render(
    'medseg_jax.report.html',
    'page.html',
    title=title,
    about=about,
    notes=notes,
    failed=summary['failed'],
    odd=[case for case in cases if case['warnings']],
    verdict=_verdict(summary),
    heads=[head for head, _ in shown.values()],
    rows=[
      (
        name,
        [_value(of, key, digits) for key, (_, digits) in shown.items()],
        of,
      )
      for name, of in summary['classes'].items()
    ],
    mean=[
      _value(summary['mean'], key, digits) for key, (_, digits) in shown.items()
    ],
    roi=_value(summary['roi']['mean'], 'dice', 3) if 'roi' in summary else None,
    accuracy=_number(summary['mean']['pixel_accuracy'], 4),
    curves=_curves(train, val),
    strips=_strips(summary, records),
    folds=_folds(summary, records),
    calibration=mosaic.address(calibration) if calibration else '',
    plots=[(name, _plots(name, records, unit)) for name in names[1:]],
    cases=cases,
    columns=columns,
    distances='hausdorff_95' in summary['mean'],
    mean_of=_mean_of,
    number=_number,
    pictured=sum(bool(case['view']) for case in cases),
    data=data,
  )


def _verdict(summary: Mapping[str, Any]) -> dict[str, str]:
  mean = summary['mean']
  interval = mean.get('dice_ci95')
  return {
    'dice': _number(mean['dice'], 3),
    'interval': '{:.3f} – {:.3f}'.format(*interval) if interval else '',
    'hausdorff_95': _number(mean.get('hausdorff_95'), 2),
    'surface_dice': _number(mean.get('surface_dice'), 3),
  }


def _value(of: Mapping[str, Any], key: str, digits: int) -> tuple[str, str]:
  """Returns a score and its interval, as text."""
  interval = of.get(f'{key}_ci95')
  between = ''
  if interval:
    between = f'{interval[0]:.{digits}f} – {interval[1]:.{digits}f}'
  return _number(of.get(key), digits), between


def _curves(
  train: Sequence[tuple[int, Mapping[str, float | None]]],
  val: Sequence[tuple[int, Mapping[str, float | None]]],
) -> list[Markup]:
  """Returns the charts of a training, of as much as there is of it."""
  found = []
  for title, lines, key, label, low, scale in (
    ('Loss', train, 'loss', 'loss', None, 1),
    ('Learning rate', train, 'learning_rate', 'rate', 0.0, 1),
    ('Validation Dice', val, 'dice', 'mean foreground Dice', None, 1),
    ('Waiting for data', train, 'data_wait_frac', '% of the time', 0.0, 100),
  ):
    curve = [
      (float(step), scale * float(values[key] or 0.0))
      for step, values in lines
      if is_number(values.get(key))
    ]
    if curve:
      axis = Axis(label, low=low)
      found.append(charts.plot(title, Axis('step'), axis, curve=curve))
  return found


def _strips(
  summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> list[Markup]:
  """Returns the charts of the distribution of scores over cases."""
  found = []
  for key in (
    'dice',
    'hausdorff_95',
    'average_surface_distance',
    'surface_dice',
  ):
    if key not in summary['mean']:
      continue
    head, digits = _SCORES[key]
    rows = []
    for name, of in list(summary['classes'].items())[1:]:
      points = [
        Point(i, value, 0.0, f'{_text(record["case"])}: {value:.{digits}f}')
        for i, record in enumerate(records)
        if is_number(value := record['classes'][name].get(key))
      ]
      rows.append(Row(name, points, of.get(key), of.get(f'{key}_ci95')))
    axis = Axis(head)
    if 'mm' in head:
      axis = Axis(head, low=0.0)
    found.append(charts.strips(f'{head}: each case', axis, rows))
  return found


def _folds(
  summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> Markup:
  """Returns the chart of a cross-validation's folds; nothing without one."""
  by_fold: dict[int, list[Point]] = {}
  for i, record in enumerate(records):
    value = _mean_of(record['classes'], 'dice')
    if record['case'] in summary.get('folds', ()) and value is not None:
      told = f'{_text(record["case"])}: {value:.3f}'
      fold = summary['folds'][record['case']]
      by_fold.setdefault(fold, []).append(Point(i, value, 0.0, told))
  if not by_fold:
    return Markup()
  rows = [
    Row(f'fold {fold}', points, statistics.fmean(p.x for p in points), None)
    for fold, points in sorted(by_fold.items())
  ]
  return charts.strips('Mean Dice by fold', Axis('Dice'), rows)


def _plots(
  name: str, records: Sequence[Mapping[str, Any]], unit: str
) -> list[Markup]:
  """Returns the charts of one class."""
  small, agreement = [], []
  for i, record in enumerate(records):
    scores = record['classes'][name]
    predicted, true = sizes(scores)
    case = _text(record['case'])
    if true > 0 and is_number(scores['dice']):
      told = f'{case}: Dice {scores["dice"]:.3f}, {short(true)} {unit}'
      small.append(Point(i, true, scores['dice'], told))
    if true > 0 or predicted > 0:
      told = f'{case}: {short(predicted - true, "+")} {unit} of {short(true)}'
      middle = (predicted + true) / 2
      agreement.append(Point(i, middle, predicted - true, told))
  found = []
  if small:
    wide = max(p.x for p in small) > 10 * min(p.x for p in small)
    across = Axis(f'truth, {unit}', log=wide)
    title = f'{name}: Dice against {"volume" if unit == "ml" else "size"}'
    found.append(charts.plot(title, across, Axis('Dice'), points=small))
  if agreement:
    levels = [Level(0.0, '')]
    differences = [p.y for p in agreement]
    if len(differences) > 1:
      bias, sd = statistics.fmean(differences), statistics.stdev(differences)
      upper, lower = bias + 1.96 * sd, bias - 1.96 * sd
      levels = [
        Level(bias, f'mean {short(bias, "+")}'),
        Level(upper, f'+1.96 SD {short(upper, "+")}'),
        Level(lower, f'−1.96 SD {short(lower, "+")}'),
      ]
    found.append(
      charts.plot(
        f'{name}: agreement of {"volumes" if unit == "ml" else "sizes"} '
        '(Bland and Altman)',
        Axis(f'mean of prediction and truth, {unit}'),
        Axis(f'prediction − truth, {unit}'),
        points=agreement,
        levels=levels,
      )
    )
  return found


def _mean_dice(record: Mapping[str, Any]) -> float:
  """Returns the mean foreground Dice of a case, -1 where undefined."""
  found = _mean_of(record['classes'], 'dice')
  return -1.0 if found is None else found


def _mean_of(scores: Mapping[str, Any], key: str) -> float | None:
  values = [of.get(key) for of in list(scores.values())[1:]]
  known = [value for value in values if is_number(value)]
  return math.fsum(known) / len(known) if known else None


def _known(value: float | None) -> float | None:
  return value if is_number(value) else None


def _number(value: float | None, digits: int) -> str:
  return f'{value:.{digits}f}' if is_number(value) else '–'


def _text(name: str) -> str:
  """Returns a name as UTF-8 can have it, which not all names of files are."""
  return name.encode('utf-8', 'backslashreplace').decode()
