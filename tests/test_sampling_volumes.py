"""Foreground-forced patches, margins, slices of volumes."""

import numpy as np
import pytest

from medseg_jax.data.sampling import (
  NOWHERE,
  Patches,
  choose_patches,
  read_batch,
  sample_voxels,
  volume_patch,
)

SHAPES = [(36, 50, 35), (40, 40, 40), (30, 60, 33)]
PATCH = (20, 24, 16)


def choose(step=0, *, share=1 / 3, voxels=None, shapes=SHAPES, **settings):
  settings = dict(seed=3, batch_size=9, patch_size=PATCH) | settings
  return choose_patches(
    step=step,
    shapes=shapes,
    voxels=voxels,
    foreground_share=share,
    **settings,
  )


def single(point, index=1):
  """Returns the voxels of a case in which one voxel is of a class."""
  return {index: np.array([point], np.uint16)}


def test_without_a_share_nothing_changes():
  with_voxels = choose(share=0.0, voxels=[single((0, 0, 0))] * 3)
  without = choose(share=0.0)
  np.testing.assert_array_equal(with_voxels.starts, without.starts)


def test_the_share_is_the_end_of_the_batch():
  centres = [(18, 25, 17), (20, 20, 20), (15, 30, 16)]
  voxels = [single(point) for point in centres]
  for step in range(20):
    forced, free = choose(step, voxels=voxels), choose(step, share=0.0)
    np.testing.assert_array_equal(forced.cases, free.cases)
    np.testing.assert_array_equal(forced.starts[:6], free.starts[:6])
    for case, start in zip(forced.cases[6:], forced.starts[6:], strict=True):
      np.testing.assert_array_equal(start + np.array(PATCH) // 2, centres[case])


@pytest.mark.parametrize(
  ('batch_size', 'share', 'count'),
  [(2, 1 / 3, 1), (1, 1 / 3, 1), (9, 1 / 3, 3), (58, 1 / 3, 19), (4, 1.0, 4)],
)
def test_how_many_are_forced(batch_size, share, count):
  voxels = [single((503, 503, 503))]
  got = choose(
    voxels=voxels,
    shapes=[(1000,) * 3],
    share=share,
    batch_size=batch_size,
    patch_size=(6, 6, 6),
  )
  forced = (got.starts == 500).all(1)
  assert forced.sum() == count and forced[batch_size - count :].all()


def test_classes_then_voxels_are_uniform():
  many = np.stack(np.unravel_index(np.arange(1000), (10, 10, 10)), -1) + 20
  few = np.array([[5, 5, 5], [60, 60, 60]])
  voxels = [{1: many.astype(np.uint16), 7: few.astype(np.uint16)}]
  starts = np.concatenate(
    [
      choose(
        step,
        voxels=voxels,
        shapes=[(64,) * 3],
        share=1.0,
        batch_size=40,
        patch_size=(2, 2, 2),
      ).starts
      for step in range(50)
    ]
  )
  centres = starts + 1
  of_few = [(centres == point).all(1).sum() for point in few]
  # 2000 draws: 500 each, with a standard deviation of 19.
  assert all(abs(count - 500) < 90 for count in of_few)
  of_many = centres[~np.isin(centres[:, 0], [5, 60])]
  assert len(of_many) + sum(of_few) == 2000
  assert len(np.unique(of_many, axis=0)) > 500
  assert np.abs(of_many.mean(0) - 24.5).max() < 0.5


def test_patches_at_the_border_stay_inside_and_hold_their_voxel():
  shape, patch = (36, 50, 35), np.array((40, 24, 35))
  for corner in ((0, 0, 0), (35, 49, 34), (0, 49, 0)):
    starts = choose(
      voxels=[single(corner)],
      shapes=[shape],
      share=1.0,
      patch_size=(40, 24, 35),
    ).starts
    # 4 more than there is: 2 on either side. Nowhere else outside.
    assert (starts[:, 0] == -2).all() and (starts[:, 2] == 0).all()
    assert (starts[:, 1] == (0 if corner[1] == 0 else 26)).all()
    assert (starts <= corner).all() and (corner < starts + patch).all()


def test_a_case_without_foreground_is_read_anywhere():
  step = dict(shapes=[(36, 50, 35)], batch_size=4)
  np.testing.assert_array_equal(
    choose(voxels=[{}], share=1.0, **step).starts,
    choose(share=0.0, **step).starts,
  )


def test_a_share_without_voxels_is_a_mistake():
  with pytest.raises(ValueError, match='foreground_share'):
    choose(voxels=None)


def test_few_voxels_of_a_class_are_all_kept():
  label = np.random.default_rng(0).choice(
    [-1, 0, 1, 2, 5], (20, 30, 25), p=[0.1, 0.6, 0.2, 0.05, 0.05]
  )
  got = sample_voxels(label, name='a')
  assert sorted(got) == [1, 2, 5]
  for index, where in got.items():
    assert where.dtype == np.uint16
    np.testing.assert_array_equal(where, np.argwhere(label == index))


@pytest.mark.parametrize(
  ('count', 'kept'), [(10_001, 10_000), (1_500_050, 15_001)]
)
def test_of_many_voxels_a_sample_without_replacement(count, kept):
  label = np.zeros((120, 130, 110), np.uint8)
  label.reshape(-1)[100 : 100 + count] = 1
  got = sample_voxels(label, name='a')[1]
  assert got.shape == (kept, 3)
  assert len(np.unique(got, axis=0)) == kept
  assert (label[tuple(got.T)] == 1).all()
  # Spread over all of them: the mean of a uniform sample.
  flat = np.ravel_multi_index(tuple(got.T), label.shape) - 100
  assert abs(flat.mean() / count - 0.5) < 5 / np.sqrt(12 * kept)
  np.testing.assert_array_equal(sample_voxels(label, name='a')[1], got)
  assert (sample_voxels(label, name='b')[1] != got).any()


def test_long_axes_need_more_bytes():
  label = np.zeros((1, 70_000), np.uint8)
  label[0, 69_999] = 1
  assert sample_voxels(label, name='a')[1].tolist() == [[0, 69_999]]


def test_nothing_labelled_has_no_voxels():
  for value in (0, -1):
    assert sample_voxels(np.full((4, 4), value, np.int16), name='a') == {}


def padded(array, start, size, value):
  """Returns the window by padding everything: the slow, plain way."""
  whole = np.pad(array, 100, constant_values=value)
  return whole[
    tuple(slice(s + 100, s + 100 + n) for s, n in zip(start, size, strict=True))
  ]


@pytest.mark.parametrize(
  'read_size', [(20, 24, 16), (30, 25, 41), (90, 90, 90)]
)
def test_the_margin_is_read_around_the_centre(read_size):
  rng = np.random.default_rng(0)
  labels = [rng.integers(0, 9, shape) for shape in SHAPES]
  images = [rng.normal(size=shape)[..., None] for shape in SHAPES]
  chosen = choose(share=0.0)
  image, label = read_batch(images, labels, chosen, PATCH, read_size)
  for b, (case, start) in enumerate(zip(*chosen, strict=True)):
    first = [
      s - (r - p) // 2 for s, r, p in zip(start, read_size, PATCH, strict=True)
    ]
    np.testing.assert_array_equal(
      label[b], padded(labels[case], first, read_size, NOWHERE)
    )
    np.testing.assert_array_equal(
      image[b, ..., 0], padded(images[case][..., 0], first, read_size, 0)
    )


def test_a_window_that_misses_its_image_is_empty():
  label = np.ones((4, 4), np.uint8)
  patches = Patches(
    np.zeros(4, int), np.array([[9, 0], [-9, 0], [0, 4], [1, -3]])
  )
  _, got = read_batch([label[..., None]], [label], patches, (3, 3))
  assert (got == 1).sum((1, 2)).tolist() == [0, 0, 0, 0]


def test_two_numbers_are_slices_of_volumes():
  assert volume_patch((8, 6), 3) == (1, 8, 6)
  assert volume_patch((8, 6), 2) == (8, 6)
  assert volume_patch((4, 8, 6), 3) == (4, 8, 6)
  rng = np.random.default_rng(0)
  labels = [rng.integers(1, 9, shape) for shape in SHAPES]
  images = [rng.normal(size=(*shape, 2)) for shape in SHAPES]
  voxels = [single((7, 20, 20))] * 3
  seen = set()
  for step in range(20):
    chosen = choose(step, voxels=voxels, patch_size=(16, 24))
    assert chosen.starts.shape == (9, 3)
    assert (chosen.starts[6:] == (7, 12, 8)).all()
    image, label = read_batch(images, labels, chosen, (16, 24))
    assert image.shape == (9, 16, 24, 2) and label.shape == (9, 16, 24)
    for b, (case, (z, y, x)) in enumerate(zip(*chosen, strict=True)):
      seen.add((case, z))
      expected = images[case][z, y : y + 16, x : x + 24]
      np.testing.assert_array_equal(image[b], expected)
    wide, wide_label = read_batch(images, labels, chosen, (16, 24), (30, 40))
    np.testing.assert_array_equal(wide[:, 7:23, 8:32], image)
    np.testing.assert_array_equal(wide_label[:, 7:23, 8:32], label)
  for case, shape in enumerate(SHAPES):
    assert {z for i, z in seen if i == case} <= set(range(shape[0]))
  assert len(seen) > 60


class Counting:
  """An array that counts what is read of it."""

  def __init__(self, array):
    self.array, self.shape, self.dtype = array, array.shape, array.dtype
    self.bytes_read = 0

  def __getitem__(self, where):
    part = self.array[where]
    self.bytes_read += part.nbytes
    return part


def test_only_the_patch_is_read(tmp_path):
  shape = (400, 512, 512)  # 200 MB of zeros that the disk does not hold
  image = np.lib.format.open_memmap(
    tmp_path / 'image.npy', 'w+', np.float16, (*shape, 1)
  )
  image[200:208, 200:208, 200:208] = 1
  label = np.lib.format.open_memmap(
    tmp_path / 'label.npy', 'w+', np.uint8, shape
  )
  images = [Counting(np.load(tmp_path / 'image.npy', mmap_mode='r'))]
  labels = [Counting(np.load(tmp_path / 'label.npy', mmap_mode='r'))]
  del image, label
  patches = Patches(np.array([0]), np.array([[200, 200, 200]]))
  before = resident_bytes()
  got, _ = read_batch(images, labels, patches, (8, 8, 8))
  assert (got == 1).all()
  assert images[0].bytes_read == 8**3 * 2 and labels[0].bytes_read == 8**3
  if before is not None:
    assert resident_bytes() - before < 30e6


def resident_bytes():
  """Returns the memory this process has in use, None where nobody knows."""
  try:
    with open('/proc/self/statm') as file:
      return int(file.read().split()[1]) * 4096
  except OSError:
    return None
