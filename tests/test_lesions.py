"""Tests of counting lesions, against hand-made masks and a flood fill."""

import itertools
import math

import numpy as np
import pytest

from medseg_jax.metrics import lesions
from medseg_jax.metrics.lesions import Lesions


def _mask(shape, *voxels):
  mask = np.zeros(shape, bool)
  for voxel in voxels:
    mask[voxel] = True
  return mask


def test_lesions_by_hand():
  label = np.zeros((12, 12, 12), bool)
  label[1:3, 1:3, 1:3] = True  # Found, by one voxel.
  label[6:9, 6:9, 6:9] = True  # Found, by two separate blobs.
  label[1:3, 9:11, 1:3] = True  # Missed.
  pred = np.zeros_like(label)
  pred[2:4, 2:4, 2:4] = True
  pred[6, 6, 6] = pred[8, 8, 8] = True
  pred[10, 1, 10] = True  # False.
  pred[10, 1, 1:3] = True  # False.
  counts = lesions.count_lesions(pred, label)
  assert counts == Lesions(found=2, missed=1, false=2)
  assert lesions.lesion_f1(counts) == 2 * 2 / (2 * 2 + 1 + 2)


def test_one_prediction_over_two_lesions_finds_both():
  label = _mask((3, 7), (1, 1), (1, 5))
  pred = _mask((3, 7), (1, slice(None)))
  counts = lesions.count_lesions(pred, label)
  assert counts == Lesions(2, 0, 0)
  assert lesions.lesion_f1(counts) == 1


def test_touching_side_by_side_is_not_overlapping():
  label, pred = _mask((4, 4), (1, 1)), _mask((4, 4), (1, 2))
  assert lesions.count_lesions(pred, label) == Lesions(0, 1, 1)


@pytest.mark.parametrize('rank', [2, 3])
def test_corners_hang_together(rank):
  diagonal = _mask((4,) * rank, *((i,) * rank for i in range(4)))
  empty = np.zeros_like(diagonal)
  assert lesions.count_lesions(diagonal, empty) == Lesions(0, 0, 1)
  apart = _mask((5,) * rank, (0,) * rank, (2,) * rank)
  assert lesions.count_lesions(apart, np.zeros_like(apart)).false == 2


def test_empty_masks():
  empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
  none = lesions.count_lesions(empty, empty)
  assert none == Lesions(0, 0, 0)
  assert math.isnan(lesions.lesion_f1(none))
  for pred, label, expected in (
    (full, empty, Lesions(0, 0, 1)),
    (empty, full, Lesions(0, 1, 0)),
  ):
    counts = lesions.count_lesions(pred, label)
    assert counts == expected
    assert lesions.lesion_f1(counts) == 0


def _components(mask):
  """The sets of voxels that a flood fill reaches one from another."""
  steps = list(itertools.product((-1, 0, 1), repeat=mask.ndim))
  left, found = set(map(tuple, np.argwhere(mask).tolist())), []
  while left:
    todo, component = [left.pop()], set()
    while todo:
      voxel = todo.pop()
      component.add(voxel)
      for step in steps:
        other = tuple(a + b for a, b in zip(voxel, step, strict=True))
        if other in left:
          left.remove(other)
          todo.append(other)
    found.append(component)
  return found


@pytest.mark.parametrize('shape', [(20, 15), (9, 8, 10)])
def test_random_masks_agree_with_a_flood_fill(shape):
  rng = np.random.default_rng(len(shape))
  for _ in range(10):
    pred, label = rng.random((2, *shape)) < 0.6 ** (2 * len(shape) - 1)
    preds, labels = _components(pred), _components(label)
    found = sum(any(a & b for b in preds) for a in labels)
    false = sum(not any(a & b for b in labels) for a in preds)
    expected = (found, len(labels) - found, false)
    assert tuple(lesions.count_lesions(pred, label)) == expected
    assert found and false and found < len(labels)


def test_misuse_is_refused():
  mask = np.zeros((3, 3), bool)
  with pytest.raises(ValueError, match='label must be a bool mask'):
    lesions.count_lesions(mask, mask.astype(int))
  with pytest.raises(ValueError, match=r'\(3, 3\) and label \(2, 3\)'):
    lesions.count_lesions(mask, mask[:2])
