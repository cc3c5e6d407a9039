"""Tests of the evaluation's summary, files and table, with numbers by hand."""

import csv
import json
import math

import numpy as np
import pytest
from report_cases import NAN, case_record, class_numbers

from medseg_jax.report import summary as report

CLASSES = ('background', 'organ', 'tumour, left', 'never')


def _without_intervals(values):
  return {k: v for k, v in values.items() if not k.endswith('_ci95')}


def _records():
  return [
    {
      'case': name,
      'pixel_accuracy': accuracy,
      'classes': dict(
        zip(CLASSES, (class_numbers(*c) for c in counts), strict=True)
      ),
    }
    for name, accuracy, counts in (
      ('a', 0.75, ((8, 2, 2), (3, 1, 1), (1, 1, 3), (0, 0, 0))),
      ('b "x", y', 0.25, ((4, 0, 4), (1, 3, 1), (0, 0, 0), (0, 0, 0))),
      ('c', NAN, ((0, 0, 0), (0, 0, 2), (0, 4, 0), (0, 0, 0))),
    )
  ]


def test_class_value_is_the_mean_over_the_cases_that_define_it():
  summary = report.summarize(_records(), CLASSES, split='val', step=300)
  assert (summary['split'], summary['step']) == ('val', 300)
  assert summary['num_cases'] == 3
  assert list(summary['classes']) == list(CLASSES)
  organ = summary['classes']['organ']
  # Dice 6/8, 2/6, 0/2; IoU 3/5, 1/5, 0/2; precision 3/4, 1/4, undefined;
  # recall 3/4, 1/2, 0/2; pooled tp 4, fp 4, fn 4.
  assert _without_intervals(organ) == pytest.approx(
    {
      'dice': (3 / 4 + 1 / 3 + 0) / 3,
      'iou': (3 / 5 + 1 / 5 + 0) / 3,
      'precision': 1 / 2,
      'recall': (3 / 4 + 1 / 2 + 0) / 3,
      'n_valid': 3,
      'dice_pooled': 8 / 16,
    }
  )
  # Dice 2/6, undefined, 0/4; recall 1/4, undefined, undefined.
  tumour = summary['classes']['tumour, left']
  assert _without_intervals(tumour) == pytest.approx(
    {
      'dice': 1 / 6,
      'iou': 1 / 10,
      'precision': 1 / 4,
      'recall': 1 / 4,
      'n_valid': 2,
      'dice_pooled': 2 / 10,
    }
  )
  background = summary['classes']['background']
  assert background['dice'] == pytest.approx((16 / 20 + 8 / 12) / 2)
  assert background['n_valid'] == 2


def test_absent_class_is_none_and_left_out_of_the_foreground_mean():
  summary = report.summarize(_records(), CLASSES, split='val', step=0)
  assert summary['classes']['never'] == {
    'dice': None,
    'iou': None,
    'precision': None,
    'recall': None,
    'n_valid': 0,
    'dice_pooled': None,
    **{f'{metric}_ci95': None for metric in report.METRICS},
  }
  # Two classes count; neither the background nor the class never seen.
  assert _without_intervals(summary['mean']) == pytest.approx(
    {
      'dice': (13 / 36 + 1 / 6) / 2,
      'iou': (4 / 15 + 1 / 10) / 2,
      'precision': (1 / 2 + 1 / 4) / 2,
      'recall': (5 / 12 + 1 / 4) / 2,
      'dice_pooled': (1 / 2 + 1 / 5) / 2,
      'pixel_accuracy': 0.5,
    }
  )


def test_no_cases_and_no_foreground_give_none():
  empty = report.summarize([], CLASSES, split='val', step=0)
  assert empty['num_cases'] == 0
  assert set(empty['mean'].values()) == {None}
  records = [case_record('a', 1.0, background=(4, 0, 0))]
  alone = report.summarize(records, ('background',), split='val', step=0)
  assert alone['mean']['dice'] is None
  assert alone['mean']['pixel_accuracy'] == 1.0


def _with_roi():
  record = case_record('a', 0.5, background=(1, 1, 1), organ=(1, 1, 1))
  record['roi'] = {
    'pixel_accuracy': 0.75,
    'classes': {
      'background': class_numbers(2, 0, 1),
      'organ': class_numbers(1, 1, 0),
    },
  }
  other = case_record('b', 0.5, background=(1, 1, 1), organ=(1, 1, 1))
  return [record, other]


def test_region_of_interest_has_its_own_section():
  classes = ('background', 'organ')
  summary = report.summarize(_with_roi(), classes, split='val', step=1)
  assert summary['mean']['dice'] == pytest.approx(1 / 2)
  assert set(summary['roi']) == {'classes', 'mean'}
  assert summary['roi']['mean']['dice'] == pytest.approx(2 / 3)
  assert summary['roi']['mean']['pixel_accuracy'] == 0.75
  assert summary['roi']['classes']['organ']['n_valid'] == 1
  assert 'roi' not in report.summarize(
    _with_roi()[1:], classes, split='val', step=1
  )


def test_summary_file_is_strict_json(tmp_path):
  records = _records()
  summary = report.summarize(records, CLASSES, split='val', step=300)
  directory = tmp_path / 'evaluation' / 'val'
  report.write_report(directory, summary, records)

  def fail(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (directory / 'summary.json').read_text()
  assert json.loads(text, parse_constant=fail) == summary
  assert text.endswith('}\n')
  assert sorted(p.name for p in directory.iterdir()) == [
    'cases.csv',
    'summary.json',
  ]


def test_cases_file_has_a_row_per_case_and_class(tmp_path):
  records = _records()
  summary = report.summarize(records, CLASSES, split='val', step=300)
  report.write_report(tmp_path, summary, records)
  with (tmp_path / 'cases.csv').open(newline='') as f:
    rows = list(csv.reader(f))
  assert rows[0] == [
    *('case', 'class', 'region', 'dice', 'iou', 'precision', 'recall'),
    *('pixel_accuracy', 'tp', 'fp', 'fn'),
  ]
  assert len(rows) == 1 + 3 * 4
  assert rows[2] == [
    *('a', 'organ', 'image', '0.75', '0.6', '0.75', '0.75', '0.75'),
    *('3', '1', '1'),
  ]
  assert rows[7][:2] == ['b "x", y', 'tumour, left']
  assert rows[7][3:] == ['', '', '', '', '0.25', '0', '0', '0']
  assert rows[10] == [
    *('c', 'organ', 'image', '0.0', '0.0', '', '0.0', '', '0', '0', '2')
  ]


def test_cases_file_has_rows_for_the_region_of_interest(tmp_path):
  records = _with_roi()
  records[1]['case'] = 'bad\udcff'  # A file name that is no UTF-8.
  summary = report.summarize(
    records, ('background', 'organ'), split='val', step=1
  )
  report.write_report(tmp_path, summary, records)
  with (tmp_path / 'cases.csv').open(newline='', encoding='utf-8') as f:
    rows = list(csv.DictReader(f))
  assert [(r['case'], r['class'], r['region']) for r in rows] == [
    ('a', 'background', 'image'),
    ('a', 'organ', 'image'),
    ('a', 'background', 'roi'),
    ('a', 'organ', 'roi'),
    ('bad\\udcff', 'background', 'image'),
    ('bad\\udcff', 'organ', 'image'),
  ]
  assert (rows[3]['pixel_accuracy'], rows[3]['iou']) == ('0.75', '0.5')


def test_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'summary.json'
  report.write_atomically(path, b'old')

  def fail(*args):
    raise OSError('disk full')

  with monkeypatch.context() as patch:
    patch.setattr(report.os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
      report.write_atomically(path, b'new')
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]  # No temporary file stays.
  report.write_atomically(path, b'new')
  assert path.read_bytes() == b'new'


def test_summary_with_nan_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(ValueError):
    report.write_report(tmp_path / 'val', {'mean': NAN}, [])
  assert not (tmp_path / 'val').exists()


def test_table_is_aligned_and_marks_undefined():
  summary = report.summarize(_records(), CLASSES, split='val', step=300)
  assert report.table(summary) == (
    'class              dice     iou  precision  recall  cases\n'
    'background       0.7333  0.5833     0.9000  0.6500      2\n'
    'organ            0.3611  0.2667     0.5000  0.4167      3\n'
    'tumour, left     0.1667  0.1000     0.2500  0.2500      2\n'
    'never                 -       -          -       -      0\n'
    'foreground mean  0.2639  0.1833     0.3750  0.3333\n'
    'pixel accuracy  0.5000'
  )


def test_table_shows_the_region_of_interest_below_the_image():
  summary = report.summarize(
    _with_roi(), ('background', 'organ'), split='val', step=1
  )
  whole, inside = report.table(summary).split('\n\n')
  assert whole.startswith('whole image\nclass ')
  assert inside.startswith('inside the region of interest\nclass ')
  assert whole.endswith('pixel accuracy  0.5000')
  assert inside.endswith('pixel accuracy  0.7500')
  assert '0.6667' in inside and '0.6667' not in whole


def _with_dice(*foreground):
  classes = {'background': {'dice': 1.0}}
  for i, value in enumerate(foreground):
    classes[f'class {i}'] = {'dice': value}
  return {'classes': classes}


def test_cases_are_ranked_by_mean_foreground_dice():
  records = [
    _with_dice(0.5, 0.1),  # 0.3
    _with_dice(NAN, 0.9),  # 0.9
    _with_dice(NAN, NAN),  # Left out.
    _with_dice(0.6, 0.6),  # 0.6
    _with_dice(0.2, NAN),  # 0.2
    _with_dice(0.9, NAN),  # 0.9, a tie with the second.
  ]
  assert report.rank_cases(records) == (1, 3, 4)
  assert report.rank_cases(records[:4]) == (1, 3, 0)


def test_few_cases_give_fewer_distinct_indices():
  low, high, undefined = _with_dice(0.1), _with_dice(0.9), _with_dice(NAN)
  assert report.rank_cases([undefined, low, high]) == (2, 1)
  assert report.rank_cases([low, undefined]) == (0,)
  assert report.rank_cases([undefined]) == ()
  assert report.rank_cases([]) == ()


def test_values_are_plain_numbers_also_for_numpy_input():
  records = _records()
  for record in records:
    for numbers in record['classes'].values():
      for key, value in numbers.items():
        to = np.int64 if key in report.COUNTS else np.float32
        numbers[key] = to(value)
  summary = report.summarize(records, CLASSES, split='val', step=np.int32(3))
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary
  assert math.isclose(summary['mean']['dice'], 19 / 72, rel_tol=1e-6)


def test_intervals_inside_the_region_of_interest_are_over_its_cases():
  summary = report.summarize(
    _with_roi(), ('background', 'organ'), split='val', step=1
  )
  assert summary['mean']['dice_ci95'] == [0.5, 0.5]
  assert summary['roi']['mean']['dice_ci95'] is None  # One case has a region.
