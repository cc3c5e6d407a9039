"""Metrics against counts by loops and hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medseg_jax import metrics


def _count_by_loops(pred, labels, num_classes, where):
  """Returns tp, fp, fn, tn, each [B, C]."""
  counts = np.zeros((4, len(pred), num_classes), int)
  for index in np.ndindex(pred.shape):
    if not where[index]:
      continue
    for c in range(num_classes):
      p, t = pred[index] == c, labels[index] == c
      kind = 0 if p and t else 1 if p else 2 if t else 3
      counts[kind, index[0], c] += 1
  return counts


def _example(shape, num_classes=4, seed=0):
  rng = np.random.default_rng(seed)
  pred, labels = rng.integers(0, num_classes, (2, 3, *shape))
  return pred, labels, rng.random((3, *shape)) < 0.7


@pytest.mark.parametrize('shape', [(5, 6), (3, 4, 5)])
def test_confusion_matches_loops(shape):
  pred, labels, where = _example(shape)
  everywhere = np.ones_like(where)
  for mask, chosen in ((None, everywhere), (where, where)):
    counts = metrics.confusion(pred, labels, 4, where=mask)
    for found, expected in zip(
      counts, _count_by_loops(pred, labels, 4, chosen), strict=True
    ):
      assert found.dtype == jnp.int32
      np.testing.assert_array_equal(found, expected)


def test_ratios_by_hand():
  pred = np.array([[[0, 1, 1, 1], [0, 0, 2, 1]]])
  labels = np.array([[[0, 0, 1, 1], [1, 0, 2, 2]]])
  counts = metrics.confusion(pred, labels, 4)
  nan = np.nan
  # Class 1: predicted 4 times, labelled 3 times, 2 in common.
  for fn, expected in (
    (metrics.dice_score, [2 * 2 / 6, 2 * 2 / 7, 2 / 3, nan]),
    (metrics.iou, [2 / 4, 2 / 5, 1 / 2, nan]),
    (metrics.precision, [2 / 3, 2 / 4, 1, nan]),
    (metrics.recall, [2 / 3, 2 / 3, 1 / 2, nan]),
  ):
    value = fn(counts)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
  np.testing.assert_allclose(metrics.pixel_accuracy(pred, labels), [5 / 8])


def test_undefined_only_where_the_ratio_has_no_meaning():
  pred = np.zeros((1, 2, 2), int)
  labels = np.ones((1, 2, 2), int)
  counts = metrics.confusion(pred, labels, 3)
  nan = np.nan
  np.testing.assert_array_equal(metrics.dice_score(counts), [[0, 0, nan]])
  np.testing.assert_array_equal(metrics.iou(counts), [[0, 0, nan]])
  np.testing.assert_array_equal(metrics.precision(counts), [[0, nan, nan]])
  np.testing.assert_array_equal(metrics.recall(counts), [[nan, 0, nan]])


def test_nothing_left_is_nan():
  pred, labels, _ = _example((8, 8))
  where = np.ones_like(labels, bool)
  where[1] = False
  counts = metrics.confusion(pred, labels, 4, where=where)
  for fn in (
    metrics.dice_score,
    metrics.iou,
    metrics.precision,
    metrics.recall,
  ):
    assert np.isnan(fn(counts)[1]).all()
    assert np.isfinite(fn(counts)[0, 1:]).all()
  accuracy = metrics.pixel_accuracy(pred, labels, where=where)
  np.testing.assert_array_equal(np.isnan(accuracy), [False, True, False])


def test_negative_labels_are_left_out():
  pred, labels, where = _example((4, 4))
  ignored = np.where(where, labels, -1)
  for found, expected in zip(
    metrics.confusion(pred, ignored, 4),
    metrics.confusion(pred, labels, 4, where=where),
    strict=True,
  ):
    np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(
    metrics.pixel_accuracy(pred, ignored),
    metrics.pixel_accuracy(pred, labels, where=where),
  )


def test_label_of_no_class_makes_a_false_positive():
  counts = metrics.confusion(np.array([[[1]]]), np.array([[[9]]]), 2)
  for found, expected in zip(
    counts, ([0, 0], [0, 1], [0, 0], [1, 0]), strict=True
  ):
    np.testing.assert_array_equal(found, [expected])


def test_counts_are_exact_beyond_two_to_the_24():
  size = 2**24 + 3
  labels = np.ones((1, size), np.int8)
  labels[0, 0] = 0
  counts = metrics.confusion(labels, labels, 2)
  np.testing.assert_array_equal(counts.tp, [[1, size - 1]])
  np.testing.assert_array_equal(counts.tn, [[size - 1, 1]])


def test_confusion_under_jit_and_vmap():
  pred, labels, where = _example((4, 5))
  expected = metrics.confusion(pred, labels, 4, where=where)
  jitted = jax.jit(metrics.confusion, static_argnums=2)(
    pred, labels, 4, where=where
  )
  mapped = jax.vmap(
    lambda p, t, w: metrics.confusion(p[None], t[None], 4, where=w[None])
  )(pred, labels, where)
  for a, b, c in zip(expected, jitted, mapped, strict=True):
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c[:, 0])
  dice = jax.jit(metrics.dice_score)(expected)
  np.testing.assert_array_equal(dice, jax.vmap(metrics.dice_score)(expected))


def test_nanmean_is_over_the_defined_values():
  values = np.array([[1, np.nan, 3], [np.nan, np.nan, 5]], np.float32)
  np.testing.assert_array_equal(metrics.nanmean(values), 3)
  np.testing.assert_array_equal(metrics.nanmean(values, 0), [1, np.nan, 4])
  np.testing.assert_array_equal(jax.jit(metrics.nanmean)(values), 3)
  np.testing.assert_array_equal(metrics.nanmean(values, (0, 1)), 3)
  assert metrics.nanmean(values).dtype == jnp.float32


@pytest.mark.filterwarnings('error')
def test_nanmean_of_nothing_is_nan_without_a_warning():
  assert np.isnan(metrics.nanmean(np.full(3, np.nan)))
  assert np.isnan(metrics.nanmean(np.zeros((0,))))


def test_unequal_shapes_raise():
  with pytest.raises(ValueError, match='one shape'):
    metrics.confusion(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int), 2)
  with pytest.raises(ValueError, match='where must have shape'):
    metrics.pixel_accuracy(
      np.zeros((1, 2), int), np.zeros((1, 2), int), where=np.ones((2, 2), bool)
    )
