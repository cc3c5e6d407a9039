"""The order of the data is a pure function of (seed, step)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as jax_random

from medseg_jax.data.sampling import (
  NOWHERE,
  Patches,
  choose_patches,
  purpose_key,
  read_batch,
  threefry2x32,
)
from medseg_jax.state import step_key, weights_key

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
  assert (got_label[0, outside] == NOWHERE).all()
  assert (got_image[0, outside] == 0).all()


@pytest.mark.parametrize(
  ('key', 'counter', 'expected'),
  [  # The vectors of Random123, the authors' own code.
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
    (
      (0x13198A2E, 0x03707344),
      (0x243F6A88, 0x85A308D3),
      (0xC4923A9C, 0x483DF7A0),
    ),
  ],
)
@pytest.mark.parametrize('xp', [np, jnp])
def test_the_random_bits_are_those_of_the_paper(key, counter, expected, xp):
  x0, x1 = (np.array([c], np.uint32) for c in counter)
  got = threefry2x32(key, x0, x1, xp)
  assert [int(word[0]) for word in got] == list(expected)


def test_the_random_bits_are_those_of_jax():
  counters = np.arange(1000, dtype=np.uint32).reshape(2, 500) * 2_654_435
  key = (12345, 2**31 + 7)
  expected = jax_random.threefry_2x32(
    tuple(np.uint32(k) for k in key), counters.ravel()
  )
  for xp in (np, jnp):
    got = threefry2x32(key, *counters, xp)
    assert got[0].dtype == np.uint32
    np.testing.assert_array_equal(np.concatenate(got), expected)


def test_a_pass_is_a_permutation_for_every_number_of_cases():
  for count in range(1, 70):
    chosen = choose_patches(
      seed=count,
      step=0,
      batch_size=3 * count,
      shapes=[(8, 8)] * count,
      patch_size=(8, 8),
    )
    passes = np.sort(chosen.cases.reshape(3, count), 1)
    np.testing.assert_array_equal(passes, [range(count)] * 3)


def test_all_orders_are_equally_likely():
  shapes = [(8, 8)] * 4
  order = np.concatenate(
    [choose(step, batch_size=480, shapes=shapes).cases for step in range(200)]
  )
  _, counts = np.unique(order.reshape(-1, 4), axis=0, return_counts=True)
  # 24 orders, 1000 draws of each: chi-square of 23 degrees of freedom.
  assert len(counts) == 24
  assert ((counts - 1000) ** 2 / 1000).sum() < 50


def test_positions_are_uniform_and_independent():
  starts = np.concatenate(
    [
      choose(step, batch_size=500, shapes=[(12, 11)]).starts
      for step in range(80)
    ]
  )
  counts = np.bincount(starts[:, 0] * 4 + starts[:, 1], minlength=20)
  assert len(counts) == 20  # 2000 draws of each, 19 degrees of freedom
  assert ((counts - 2000) ** 2 / 2000).sum() < 44


def test_long_runs_do_not_overflow():
  step = 2**31 - 2
  got = choose(step, batch_size=4096, shapes=[(9, 9)] * 5000)
  # Batches of 5000 are whole passes: the same order, by another way.
  epoch, place = divmod(step * 4096, 5000)
  other = choose_patches(
    seed=3,
    step=epoch,
    batch_size=5000,
    shapes=[(9, 9)] * 5000,
    patch_size=(8, 8),
  )
  first = 5000 - place
  np.testing.assert_array_equal(got.cases[:first], other.cases[place:])
  with pytest.raises(ValueError, match=r'2\*\*31'):
    choose(0, batch_size=2**20, shapes=[(9, 9)] * 2048)


def test_seeds_beyond_32_bits_differ():
  orders = [choose(0, seed=s).cases.tolist() for s in (1, 2**32 + 1, 2**40 + 1)]
  assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize('seed', [0, 1, 2**32 - 1])
def test_no_two_purposes_draw_the_same_numbers(seed):
  count = np.arange(400, dtype=np.uint32)
  drawn = [
    np.stack(threefry2x32(purpose_key(seed, purpose), step, count, np), -1)
    for purpose in (1, 2)  # the order of the cases, and the patches
    for step in range(3)
  ]
  # What jax.random keeps as a key is what it draws with: for the weights, and
  # for each step.
  keys = jax.vmap(functools.partial(step_key, seed))(count)
  drawn += [jax.random.key_data(keys), jax.random.key_data(weights_key(seed))]
  # A layer's weights and a part of a batch have keys made of these.
  for key in (weights_key(seed), step_key(seed, 0)):
    below = jax.vmap(functools.partial(jax.random.fold_in, key))(count)
    drawn.append(jax.random.key_data(below))
  # All of that is made of the seed's own key, which others may draw with.
  own = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
  drawn.append(jax.random.key_data(own(count[10:])))
  pairs = np.concatenate([np.reshape(d, (-1, 2)) for d in drawn])
  assert len(np.unique(pairs, axis=0)) == len(pairs)
  # Nor by halves: among so many words chance makes two alike once in a hundred
  # times.
  words = np.concatenate([pairs[:, 0], pairs[:, 1]])
  assert len(words) - len(np.unique(words)) < 5
