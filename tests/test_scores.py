"""Tests of one case's record, from metrics, boxes by hand and real labels."""

import math

import nibabel
import numpy as np
import pytest

from medseg_jax import metrics
from medseg_jax.metrics import case_scores, lesions, surface
from medseg_jax.metrics.case_scores import score_case
from medseg_jax.report import summary as report

CLASSES = ('background', 'organ', 'tumour')


def _random(shape, seed=0, low=-1, high=4):
  """A prediction, and labels with ignored voxels and some of no class."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 3, shape), rng.integers(low, high, shape)


def _assert_counts(row, confusion, c):
  expected = {
    'dice': metrics.dice_score(confusion),
    'iou': metrics.iou(confusion),
    'precision': metrics.precision(confusion),
    'recall': metrics.recall(confusion),
  }
  for key, value in expected.items():
    np.testing.assert_equal(row[key], value[0, c].item())
  for key in ('tp', 'fp', 'fn'):
    assert row[key] == int(getattr(confusion, key)[0, c])
    assert type(row[key]) is int


@pytest.mark.parametrize('shape', [(13, 17), (5, 6, 7)])
@pytest.mark.parametrize('masked', [False, True])
def test_counts_and_ratios_are_those_of_metrics(shape, masked):
  pred, label = _random(shape)
  where = np.random.default_rng(1).random(shape) < 0.6 if masked else None
  record = score_case(
    pred.astype(np.uint8),
    label.astype(np.int16),
    classes=CLASSES,
    spacing=(1.0,) * len(shape),
    where=where,
  )
  batched = None if where is None else where[None]
  confusion = metrics.confusion(pred[None], label[None], 3, where=batched)
  assert list(record['classes']) == list(CLASSES)
  for c, name in enumerate(CLASSES):
    _assert_counts(record['classes'][name], confusion, c)
  accuracy = metrics.pixel_accuracy(pred[None], label[None], where=batched)
  assert record['pixel_accuracy'] == pytest.approx(accuracy[0].item())
  expected = {*report.METRICS, *report.COUNTS}
  if len(shape) == 3:
    expected |= set(report.VOLUMES)
  assert set(record['classes']['organ']) == expected


def test_counts_in_blocks_are_the_same(monkeypatch):
  pred, label = _random((31, 33))
  settings = {'classes': CLASSES, 'spacing': (1, 1)}
  whole = score_case(pred, label, **settings)
  monkeypatch.setattr(case_scores, '_BLOCK', 64)
  assert score_case(pred, label, **settings) == whole


def test_counts_are_exact_where_float32_is_not():
  size = 2**24 + 3
  pred = np.ones(size, np.uint8)
  pred[-1] = 0
  label = np.ones(size, np.uint8)
  record = score_case(pred, label, classes=CLASSES, spacing=(1.0,))
  assert record['classes']['organ']['tp'] == size - 1
  assert record['classes']['organ']['fn'] == 1


def test_nothing_left_is_undefined():
  pred, label = np.ones((4, 4), int), np.full((4, 4), -1)
  record = score_case(
    pred,
    label,
    classes=CLASSES,
    spacing=(1, 1),
    surface_tolerance=1.0,
    lesions=True,
  )
  assert math.isnan(record['pixel_accuracy'])
  for row in record['classes'].values():
    assert math.isnan(row['dice']) and row['tp'] == row['fp'] == 0
  organ = record['classes']['organ']
  assert math.isnan(organ['hausdorff_95']) and math.isnan(organ['lesion_f1'])
  assert organ['lesions_false'] == 0


def _boxes():
  """An organ shifted by two voxels of 3 mm, and a missed tumour."""
  pred, label = np.zeros((2, 20, 24, 24), np.uint8)
  label[4:10, 4:12, 4:14] = 1
  pred[6:12, 4:12, 4:14] = 1
  label[15:17, 18:20, 18:21] = 2
  return pred, label


def test_volumes_and_surfaces_are_in_true_millimetres():
  pred, label = _boxes()
  record = score_case(
    pred,
    label,
    classes=CLASSES,
    spacing=(3.0, 0.5, 2.0),
    surface_tolerance=5.9,
  )
  organ, tumour = (record['classes'][name] for name in CLASSES[1:])
  # A voxel is 3 mm^3; the organ has 6 * 8 * 10 of them.
  assert organ['volume_ml'] == pytest.approx(480 * 3 / 1000)
  assert organ['volume_ml_label'] == pytest.approx(480 * 3 / 1000)
  assert tumour['volume_ml'] == 0
  assert tumour['volume_ml_label'] == pytest.approx(12 * 3 / 1000)
  assert organ['hausdorff_95'] == 6.0  # The ends lie 2 * 3 mm apart.
  assert 0 < organ['surface_dice'] < 1
  assert tumour['hausdorff_95'] == tumour['average_surface_distance'] == np.inf
  assert tumour['surface_dice'] == 0
  background = record['classes']['background']
  assert background['volume_ml_label'] == pytest.approx(
    (20 * 24 * 24 - 492) * 3 / 1000
  )
  assert not set(report.SURFACES) & set(background)
  assert 'lesion_f1' not in organ


def test_surfaces_and_lesions_are_those_of_the_whole_masks():
  rng = np.random.default_rng(3)
  blobs = rng.random((2, 12, 14, 10)) < 0.05
  pred, label = blobs * rng.integers(1, 3, blobs.shape)
  label[rng.random(label.shape) < 0.1] = -1
  spacing = (2.0, 1.0, 0.7)
  record = score_case(
    pred,
    label,
    classes=CLASSES,
    spacing=spacing,
    surface_tolerance=1.5,
    lesions=True,
  )
  for c, name in ((1, 'organ'), (2, 'tumour')):
    masks = (pred == c) & (label >= 0), label == c
    expected = surface.surface_metrics(*masks, spacing, tolerance=1.5)
    row = record['classes'][name]
    assert row['hausdorff_95'] == pytest.approx(expected['hausdorff_distance'])
    for key in ('average_surface_distance', 'surface_dice'):
      assert row[key] == pytest.approx(expected[key])
    counts = lesions.count_lesions(*masks)
    assert tuple(row[key] for key in report.LESION_COUNTS) == tuple(counts)
    assert row['lesion_f1'] == lesions.lesion_f1(counts)


def test_what_is_ignored_is_background_to_surfaces_and_lesions():
  pred, label = _boxes()
  settings = {
    'classes': CLASSES,
    'spacing': (1, 1, 1),
    'surface_tolerance': 1.0,
    'lesions': True,
  }
  plain = score_case(pred, label, **settings)
  pred[0:2, 20:, 20:] = 1  # Far off, and ignored.
  spoiled = score_case(pred, label, **settings)
  assert spoiled['classes']['organ']['lesions_false'] == 1
  assert spoiled['classes']['organ']['hausdorff_95'] > 2
  where = np.ones(pred.shape, bool)
  where[0:2] = False
  ignored = label.astype(int)
  ignored[0:2] = -1
  inside = score_case(pred, label, where=where, **settings)
  np.testing.assert_equal(inside, score_case(pred, ignored, **settings))
  assert inside['classes']['organ'] == plain['classes']['organ']


def test_regions_are_scored_from_the_label_maps():
  pred, label = _random((6, 7, 8))
  regions = (('whole', (1, 2)), ('core', (2,)))
  settings = {'spacing': (1, 2, 3), 'surface_tolerance': 2.0, 'lesions': True}
  record = score_case(pred, label, classes=CLASSES, regions=regions, **settings)
  names = case_scores.scored_names(CLASSES, regions)
  assert names == tuple(record['classes']) == ('background', 'whole', 'core')
  kept = label >= 0
  for name, indices in (('background', (0,)), *regions):
    masks = (np.isin(x, indices).astype(int) for x in (pred, label))
    one = score_case(*masks, classes=('not', name), where=kept, **settings)
    row = record['classes'][name]
    expected = {k: v for k, v in one['classes'][name].items() if k in row}
    np.testing.assert_equal(row, expected)
  assert 'hausdorff_95' in record['classes']['whole']
  assert 'hausdorff_95' not in record['classes']['background']
  plain = score_case(pred, label, classes=CLASSES, spacing=(1, 1, 1))
  assert record['pixel_accuracy'] == plain['pixel_accuracy']


def test_a_class_of_no_region_is_background():
  pred, label = np.array([[0, 1, 2]]), np.array([[0, 2, 1]])
  record = score_case(
    pred, label, classes=CLASSES, regions=(('core', (2,)),), spacing=(1, 1)
  )
  assert [record['classes']['background'][k] for k in report.COUNTS] == [
    1,
    1,
    1,
  ]
  assert case_scores.scored_names(CLASSES) == CLASSES


def test_records_make_a_report():
  records = []
  for seed in range(3):
    pred, label = _random((6, 7, 8), seed)
    record = score_case(
      pred,
      label,
      classes=CLASSES,
      spacing=(1, 1, 1),
      surface_tolerance=1.0,
      lesions=True,
    )
    records.append({'case': f'case {seed}', **record})
  summary = report.summarize(records, CLASSES, split='val', step=0)
  assert summary['mean']['surface_dice'] == pytest.approx(
    np.mean(
      [
        record['classes'][name]['surface_dice']
        for record in records
        for name in CLASSES[1:]
      ]
    )
  )


def test_misuse_is_refused():
  pred = np.zeros((4, 4), int)

  def score(*args, **settings):
    return score_case(
      *args, **{'classes': CLASSES, 'spacing': (1, 1), **settings}
    )

  with pytest.raises(ValueError, match=r'label must have .*\(4, 4\), found'):
    score(pred, pred[:2])
  with pytest.raises(ValueError, match='where must have the shape'):
    score(pred, pred, where=pred[0] > 0)
  with pytest.raises(ValueError, match=r'pred must lie in 0..2, found 0..3'):
    score(pred + 3 * np.eye(4, dtype=int), pred)
  with pytest.raises(ValueError, match='spacing must hold 2 numbers'):
    score(pred, pred, spacing=(1, 1, 1))
  with pytest.raises(ValueError, match=r'region all has .*\(0, 1\).* 1..2'):
    score(pred, pred, regions=(('all', (0, 1)),))


def test_a_shifted_real_hippocampus(real_data):
  folder = real_data / 'hippocampus' / 'Task04_Hippocampus' / 'labelsTr'
  file = nibabel.load(sorted(folder.glob('hippo*.nii.gz'))[0])
  label = np.asarray(file.dataobj).astype(np.uint8)
  pred = np.roll(label, 1, axis=0)
  record = score_case(
    pred,
    label,
    classes=('background', 'anterior', 'posterior'),
    spacing=file.header.get_zooms(),
    surface_tolerance=1.0,
    lesions=True,
  )
  for c, name in ((1, 'anterior'), (2, 'posterior')):
    row = record['classes'][name]
    ml = np.count_nonzero(label == c) * np.prod(file.header.get_zooms()) / 1000
    assert row['volume_ml_label'] == pytest.approx(ml)
    assert row['volume_ml'] == pytest.approx(ml)
    assert 0.8 < ml < 4  # A half of a hippocampus.
    # No point is farther than the shift of 1 mm.
    assert row['hausdorff_95'] == 1.0
    assert row['surface_dice'] == 1.0
    assert 0.75 < row['dice'] < 0.95
    assert row['lesion_f1'] == 1.0
