"""Logits to labels, voxel by voxel."""

import numpy as np
import pytest
from scipy import special

from medseg_jax.inference.decoding import (
  argmax,
  labels_from_regions,
  sigmoid,
  softmax,
)

REGIONS = ((1, 2, 3), (2, 3), (3,))


def test_the_largest_logit_wins_and_probabilities_sum_to_one():
  logits = np.random.default_rng(0).normal(0, 30, (3, 4, 5)).astype('float32')
  probs = softmax(logits)
  np.testing.assert_allclose(probs, special.softmax(logits, -1), atol=1e-6)
  np.testing.assert_array_equal(argmax(logits), probs.argmax(-1))
  assert np.isfinite(softmax(np.array([1e4, -1e4, 0.0]))).all()


def test_sigmoid_of_each_region():
  logits = np.array([-1e4, -3, 0, 0.5, 1e4])
  np.testing.assert_allclose(sigmoid(logits), special.expit(logits), atol=1e-12)


def test_later_regions_paint_over_earlier_ones():
  logits = np.array(
    [
      [-1.0, -1, -1],
      [1, -1, -1],
      [1, 1, -1],
      [1, 1, 1],
      [-1, -1, 2],
      [0, 0, 0],
      [-1, 5, -1],
    ]
  )
  label = labels_from_regions(logits, (1, 2, 3))
  np.testing.assert_array_equal(label, [0, 1, 2, 3, 3, 0, 2])
  assert np.issubdtype(label.dtype, np.integer)
  # The order of painting is that of the channels, whatever the classes are.
  np.testing.assert_array_equal(
    labels_from_regions(logits, (300, 2, 1)), [0, 300, 2, 1, 1, 0, 2]
  )


def test_any_logits_as_a_loop_over_voxels():
  logits = np.random.default_rng(0).normal(size=(3, 4, 5, 3)).astype('float16')
  label = labels_from_regions(logits, (2, 1, 3))
  for index in np.ndindex(3, 4, 5):
    expected = 0
    for r, value in enumerate((2, 1, 3)):
      if logits[index][r] > 0:
        expected = value
    assert label[index] == expected


def test_nested_regions_come_back_as_they_were():
  label = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
  inside = np.stack([np.isin(label, region) for region in REGIONS], -1)
  np.testing.assert_array_equal(
    labels_from_regions(np.where(inside, 3.0, -3.0), (1, 2, 3)), label
  )


def test_one_class_for_each_region():
  with pytest.raises(ValueError, match=r'3 regions.*found \(1, 2\)'):
    labels_from_regions(np.zeros((2, 3)), (1, 2))
