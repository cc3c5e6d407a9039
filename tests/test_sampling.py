"""The order of the data is a pure function of (seed, step)."""

import numpy as np
import pytest

from medseg_jax.data.sampling import (
  IGNORE,
  Patches,
  choose_patches,
  read_batch,
)

SHAPES = [(10, 12), (8, 8), (20, 9), (8, 30), (16, 16), (11, 11), (9, 9)]


def choose(step, seed=3, batch_size=4, patch_size=(8, 8), shapes=SHAPES):
  return choose_patches(
    seed=seed,
    step=step,
    batch_size=batch_size,
    shapes=shapes,
    patch_size=patch_size,
  )


def test_the_same_seed_and_step_give_the_same_patches_in_any_order():
  forward = [choose(step) for step in range(20)]
  backward = [choose(step) for step in reversed(range(20))][::-1]
  for a, b in zip(forward, backward, strict=True):
    np.testing.assert_array_equal(a.cases, b.cases)
    np.testing.assert_array_equal(a.starts, b.starts)


def test_every_case_comes_once_in_each_pass():
  order = np.concatenate([choose(step).cases for step in range(7)])
  passes = order.reshape(4, 7)
  np.testing.assert_array_equal(np.sort(passes, 1), [range(7)] * 4)
  assert len({tuple(p) for p in passes}) == 4


def test_another_seed_gives_another_order():
  a = np.concatenate([choose(step, seed=0).cases for step in range(7)])
  b = np.concatenate([choose(step, seed=1).cases for step in range(7)])
  assert (a != b).any()


def test_patches_lie_inside_and_reach_both_ends():
  firsts = np.concatenate(
    [choose(step, shapes=[(10, 12)]).starts for step in range(100)]
  )
  assert firsts.min(0).tolist() == [0, 0]
  assert firsts.max(0).tolist() == [2, 4]


@pytest.mark.parametrize('rank', [2, 3])
def test_read_batch_cuts_where_it_says(rank):
  size, patch = (9,) * rank, (4,) * rank
  label = np.arange(9**rank).reshape(size).astype(np.uint16)
  image = np.stack([label, label + 0.5], -1).astype(np.float32)
  start = np.arange(rank) + 1
  got_image, got_label = read_batch(
    [image], [label], Patches(np.array([0]), start[None]), patch
  )
  where = tuple(slice(s, s + 4) for s in start)
  np.testing.assert_array_equal(got_image[0], image[where])
  np.testing.assert_array_equal(got_label[0], label[where])


def test_a_patch_larger_than_the_image_is_centred_and_ignored_outside():
  chosen = choose(0, batch_size=1, patch_size=(8, 6), shapes=[(4, 9)])
  assert chosen.starts[0, 0] == -2
  image, label = np.ones((4, 9, 1), np.float16), np.ones((4, 9), np.uint8)
  got_image, got_label = read_batch([image], [label], chosen, (8, 6))
  assert (got_label[0, 2:6] == 1).all() and (got_image[0, 2:6] == 1).all()
  outside = [0, 1, 6, 7]
  assert (got_label[0, outside] == IGNORE).all()
  assert (got_image[0, outside] == 0).all()
