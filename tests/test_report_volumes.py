"""Tests of the report's numbers of volumes and of its bootstrap intervals."""

import csv
import json
import math

import numpy as np
import pytest
from report_cases import NAN, case_record, class_numbers
from scipy import stats

from medseg_jax.report import summary as report

VOLUME_CLASSES = ('background', 'organ', 'lesion')


def _volume_record(name, organ, lesion):
  """A record of a volume from (distances, surface Dice, lesions, volumes)."""
  record = case_record(
    name, 0.9, background=(8, 2, 2), organ=(3, 1, 1), lesion=(1, 1, 3)
  )
  for key, numbers in (('organ', organ), ('lesion', lesion)):
    distance, share, (found, missed, false), ml = numbers
    total = 2 * found + missed + false
    record['classes'][key] |= {
      'volume_ml': ml,
      'volume_ml_label': 2 * ml,
      'hausdorff_95': distance,
      'average_surface_distance': distance / 4,
      'surface_dice': share,
      'lesions_found': found,
      'lesions_missed': missed,
      'lesions_false': false,
      'lesion_f1': 2 * found / total if total else NAN,
    }
  record['classes']['background'] |= {'volume_ml': 10.0, 'volume_ml_label': 9.0}
  return record


def _volume_records():
  inf = math.inf
  return [
    _volume_record('a', (2.0, 0.9, (1, 0, 0), 1.0), (8.0, 0.5, (2, 1, 1), 0.1)),
    _volume_record('b', (4.0, 0.8, (1, 0, 2), 2.0), (inf, 0.0, (0, 3, 0), 0.0)),
    _volume_record('c', (6.0, 0.7, (1, 0, 0), 3.0), (NAN, NAN, (0, 0, 0), 0.0)),
  ]


def test_surfaces_volumes_and_lesions_are_averaged_and_counted():
  summary = report.summarize(
    _volume_records(), VOLUME_CLASSES, split='val', step=1
  )
  json.dumps(summary, allow_nan=False)
  organ, lesion = (summary['classes'][name] for name in VOLUME_CLASSES[1:])
  assert organ['hausdorff_95'] == 4.0 and organ['n_infinite'] == 0
  assert organ['average_surface_distance'] == 1.0
  assert organ['surface_dice'] == pytest.approx(0.8)
  assert (organ['volume_ml'], organ['volume_ml_label']) == (2.0, 4.0)
  counts = ('lesions_found', 'lesions_missed', 'lesions_false')
  assert [organ[key] for key in counts] == [3, 0, 2]
  assert organ['lesion_f1'] == pytest.approx((1 + 2 / 4 + 1) / 3)
  # The infinite distance is counted and the undefined one is not.
  assert lesion['hausdorff_95'] == 8.0 and lesion['n_infinite'] == 1
  assert lesion['hausdorff_95_ci95'] is None
  assert lesion['surface_dice'] == pytest.approx(0.25)
  assert [lesion[key] for key in counts] == [2, 4, 1]
  assert lesion['lesion_f1'] == pytest.approx((4 / 6 + 0) / 2)
  background = summary['classes']['background']
  assert background['volume_ml'] == 10.0
  assert not {'hausdorff_95', 'n_infinite', 'lesion_f1'} & set(background)
  mean = summary['mean']
  assert mean['hausdorff_95'] == 6.0
  assert mean['surface_dice'] == pytest.approx((0.8 + 0.25) / 2)
  assert mean['lesion_f1'] == pytest.approx((5 / 6 + 1 / 3) / 2)
  assert 'volume_ml' not in mean and 'lesions_found' not in mean


def test_cases_file_has_the_columns_of_volumes(tmp_path):
  records = _volume_records()
  report.write_report(tmp_path, {}, records)
  with (tmp_path / 'cases.csv').open(newline='') as f:
    rows = list(csv.reader(f))
  assert rows[0][11:] == [
    *('volume_ml', 'volume_ml_label', 'hausdorff_95'),
    *('average_surface_distance', 'surface_dice', 'lesions_found'),
    *('lesions_missed', 'lesions_false', 'lesion_f1'),
  ]
  assert rows[1][11:] == ['10.0', '9.0', *7 * ['']]  # Background.
  assert rows[2][11:] == [
    *('1.0', '2.0', '2.0', '0.5', '0.9', '1', '0', '0', '1.0')
  ]
  assert rows[6][11:] == ['0.0', '0.0', '', '', '0.0', '0', '3', '0', '0.0']
  assert rows[9][11:] == ['0.0', '0.0', '', '', '', '0', '0', '0', '']


def test_table_of_volumes_fits_a_terminal():
  classes = ('background', 'organ', 'a lesion with quite a long name')
  records = _volume_records()
  for record in records:
    record['classes'] = dict(
      zip(classes, record['classes'].values(), strict=True)
    )
  summary = report.summarize(records, classes, split='val', step=1)
  for values in [*summary['classes'].values(), summary['mean']]:
    values['dice_ci95'] = [0.6, 0.8]
  assert report.table(summary) == (
    'class               dice  95 % interval  HD95 mm  surface dice  lesion F1'
    '  cases\n'
    'background        0.8000    0.600-0.800        -             -          -'
    '      3\n'
    'organ             0.7500    0.600-0.800     4.00        0.8000     0.8333'
    '      3\n'
    'a lesio..ng name  0.3333    0.600-0.800     8.00        0.2500     0.3333'
    '      3\n'
    'foreground mean   0.5417    0.600-0.800     6.00        0.5250     0.5833'
    '\n'
    'pixel accuracy  0.9000\n'
    'HD95 leaves out pairs of masks of which one is empty: 1'
  )
  for record in records:
    for numbers in record['classes'].values():
      for key in [key for key in numbers if key.startswith('lesion')]:
        del numbers[key]
  summary = report.summarize(records, classes, split='val', step=1)
  lines = report.table(summary).splitlines()
  assert ' '.join(lines[0].split()) == (
    'class dice 95 % interval iou HD95 mm surface dice cases'
  )
  assert max(map(len, lines)) == 80


def _random_records(values):
  """Records with the Dice and HD95 `values` [cases, foreground classes]."""
  records = []
  for i, row in enumerate(values):
    record = case_record(str(i), 1.0, background=(1, 1, 1))
    for c, value in enumerate(row):
      record['classes'][f'class {c}'] = class_numbers(1, 1, 1) | {
        'dice': value,
        'hausdorff_95': 10 * value,
        'average_surface_distance': value,
        'surface_dice': value,
      }
    records.append(record)
  return records, ('background', *(f'class {c}' for c in range(len(row))))


@pytest.mark.parametrize('share_undefined', [0.0, 0.3])
def test_intervals_are_those_of_scipys_percentile_bootstrap(share_undefined):
  rng = np.random.default_rng(5)
  values = rng.beta(8, 2, (30, 3)) - 0.2 * rng.random((30, 1))
  values[rng.random(values.shape) < share_undefined] = NAN
  values[:, 2] = NAN  # Never occurs.
  records, classes = _random_records(values)
  summary = report.summarize(records, classes, split='val', step=0)

  def expected(statistic):
    def of_indices(indices, axis):
      # [resamples, cases] -> [resamples]; without any axis but the last.
      return statistic(values[indices.astype(int)])

    result = stats.bootstrap(
      (np.arange(30),),
      of_indices,
      vectorized=True,
      method='percentile',
      n_resamples=20_000,
      rng=np.random.default_rng(1),
    )
    return list(result.confidence_interval)

  # Of 10,000 resamples a percentile is about 4 % of the half width off.
  for c in range(2):
    interval = expected(lambda x, c=c: np.nanmean(x[..., c], axis=-1))
    tolerance = 0.06 * (interval[1] - interval[0])
    numbers = summary['classes'][f'class {c}']
    assert numbers['dice_ci95'] == pytest.approx(interval, abs=tolerance)
    assert numbers['hausdorff_95_ci95'] == pytest.approx(
      [10 * x for x in interval], abs=10 * tolerance
    )
    assert numbers['dice_ci95'][0] < numbers['dice'] < numbers['dice_ci95'][1]
  # The classes of one case are drawn together.
  interval = expected(lambda x: np.nanmean(x[..., :2], axis=-2).mean(axis=-1))
  tolerance = 0.06 * (interval[1] - interval[0])
  mean = summary['mean']
  assert mean['dice_ci95'] == pytest.approx(interval, abs=tolerance)
  assert summary['classes']['class 2']['dice_ci95'] is None
  again = report.summarize(records, classes, split='val', step=0)
  assert again == summary


def test_intervals_of_sets_by_hand():
  # Means of two drawings from 0 and 1: 0, 1/2 and 1 with chances 1/4, 1/2,
  # 1/4. The second class is the first mirrored, so the mean never changes.
  records, classes = _random_records(np.array([[0.0, 1.0], [1.0, 0.0]]))
  summary = report.summarize(records, classes, split='val', step=0)
  assert summary['classes']['class 0']['dice_ci95'] == [0, 1]
  assert summary['classes']['class 1']['dice_ci95'] == [0, 1]
  assert summary['mean']['dice_ci95'] == [0.5, 0.5]
  one = report.summarize(records[:1], classes, split='val', step=0)
  assert one['mean']['dice_ci95'] is None
  assert one['classes']['class 0']['dice_ci95'] is None
