"""Resampling against SciPy's zoom, Pillow and hand-made numbers."""

import functools
import tracemalloc
import weakref

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg_jax.data import resample
from medseg_jax.data.resample import (
  coarse_axis,
  output_shape,
  resample_image,
  resample_label,
  resample_linear_slabs,
  resize_linear,
  resize_nearest,
)

SIZES = [
  ((13, 17, 11), (9, 11, 7)),
  ((13, 17, 11), (20, 9, 11)),
  ((7, 6, 5), (7, 15, 13)),
  ((1, 6, 90), (3, 1, 200)),
  ((30, 41), (41, 19)),
  ((25,), (11,)),
]


def zoom(array, shape, order):
  """Returns SciPy's answer, `[*S]`, in double precision."""
  factors = np.divide(shape, array.shape)
  options = {'order': order, 'mode': 'nearest', 'grid_mode': True}
  result = ndimage.zoom(array.astype(np.float64), factors, **options)
  assert result.shape == tuple(shape)
  return result


def one_hot_argmax(label, shape):
  """Returns the label by the definition: SciPy on every class, then argmax."""
  values = np.unique(label)
  weights = np.stack([zoom(label == v, shape, 1) for v in values])
  # Equal weights differ in their last digits; the lowest value has to win.
  return values[np.round(weights, 7).argmax(0)]


def blobs(shape, classes, seed, lowest=-1):
  """Returns a label of smooth regions that share many borders."""
  noise = np.random.default_rng(seed).normal(size=(classes, *shape))
  smooth = [ndimage.gaussian_filter(each, 1.5) for each in noise]
  return (np.argmax(smooth, 0) + lowest).astype(np.int16)


@pytest.mark.parametrize(('old', 'new'), SIZES)
@pytest.mark.parametrize('channels', [1, 3])
def test_cubic_resampling_agrees_with_scipy(old, new, channels):
  image = np.random.default_rng(0).normal(size=(*old, channels))
  image = image.astype(np.float32)
  got = resample_image(image, new)
  assert got.dtype == np.float32 and got.flags.c_contiguous
  for c in range(channels):
    expected = zoom(image[..., c], new, 3)
    np.testing.assert_allclose(got[..., c], expected, atol=1e-5)


def test_chunks_change_nothing(monkeypatch):
  image = np.random.default_rng(1).normal(size=(23, 31, 29, 2))
  image = image.astype(np.float32)
  label = blobs((23, 31, 29), 5, seed=1)
  new = (40, 17, 23)
  whole = resample_image(image, new), resample_label(label, new)
  monkeypatch.setattr(resample, '_CHUNK', 1000)
  monkeypatch.setattr(resample, '_MIXED', 77)
  monkeypatch.setattr(resample, '_ROWS', 5)
  np.testing.assert_allclose(resample_image(image, new), whole[0], atol=1e-5)
  np.testing.assert_array_equal(resample_label(label, new), whole[1])


@pytest.mark.parametrize(('old', 'new'), SIZES)
def test_overwriting_gives_the_same(old, new):
  image = np.random.default_rng(2).normal(size=(*old, 2)).astype(np.float32)
  kept = image.copy()
  expected = resample_image(image, new)
  np.testing.assert_array_equal(image, kept)
  got = resample_image(image, new, overwrite=True)
  np.testing.assert_array_equal(got, expected)
  assert got.base is None  # Nothing of the old volume stays in memory.


def test_overwriting_needs_little_more_than_the_result(monkeypatch):
  monkeypatch.setattr(resample, '_CHUNK', 2**14)
  image = np.random.default_rng(3).random((96, 96, 96, 1), np.float32)
  tracemalloc.start()
  got = resample_image(image, (64, 64, 64), overwrite=True)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 1.6 * got.nbytes < 0.5 * image.nbytes


def test_integers_are_resampled_as_they_are():
  image = np.arange(-600, 600, dtype=np.int16).reshape(10, 12, 10, 1)
  got = resample_image(image, (7, 12, 15), overwrite=True)
  expected = zoom(image[..., 0], (7, 12, 15), 3)
  np.testing.assert_allclose(got[..., 0], expected, atol=1e-3)
  assert image[0, 0, 0] == -600


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('new', [(5, 12, 7), (21, 13, 17)])
def test_a_coarse_axis_takes_the_nearest_slice(axis, new):
  image = np.random.default_rng(3).normal(size=(9, 10, 11)).astype(np.float32)
  label = blobs(image.shape, 4, seed=3)
  plane = new[:axis] + (image.shape[axis],) + new[axis + 1 :]
  image_planes = zoom(image, plane, 3)
  label_planes = one_hot_argmax(label, plane)
  # map_coordinates, order 0, at half-pixel centres: what the recipe does.
  grid = np.indices(new).astype(np.float64)
  scale = image.shape[axis] / new[axis]
  grid[axis] = scale * (grid[axis] + 0.5) - 0.5
  pick = functools.partial(
    ndimage.map_coordinates, coordinates=grid, order=0, mode='nearest'
  )
  got = resample_image(image[..., None], new, nearest_axis=axis)[..., 0]
  np.testing.assert_allclose(got, pick(image_planes), atol=1e-5)
  got = resample_label(label, new, nearest_axis=axis)
  np.testing.assert_array_equal(got, pick(label_planes))


@pytest.mark.parametrize(('old', 'new'), SIZES)
@pytest.mark.parametrize('classes', [2, 9])
def test_labels_agree_with_the_argmax_of_the_one_hot_label(old, new, classes):
  label = blobs(old, classes, seed=4)
  got = resample_label(label, new)
  np.testing.assert_array_equal(got, one_hot_argmax(label, new))
  assert got.dtype == label.dtype


def test_noise_in_118_classes_agrees_with_the_one_hot_label():
  label = np.random.default_rng(5).integers(0, 118, (9, 8, 7), np.uint8)
  for new in [(13, 6, 10), (18, 16, 14)]:
    got = resample_label(label, new)
    np.testing.assert_array_equal(got, one_hot_argmax(label, new))


def test_between_two_classes_the_lower_one_wins():
  # The new voxel lies halfway between the two.
  assert resample_label(np.array([5, 2]), (1,)) == 2
  assert resample_label(np.array([-1, 2]), (1,)) == -1
  # 3/4 and 1/4, by hand.
  np.testing.assert_array_equal(
    resample_label(np.array([4, 1]), (4,)), [4, 4, 1, 1]
  )
  # Two quarters of class 1 against one of class 0 and one of class 2.
  label = np.array([[0, 1], [1, 2]], np.uint8)
  assert resample_label(label, (1, 1)) == 1


def test_a_case_at_the_target_shape_is_returned_untouched():
  image = np.zeros((4, 5, 6, 1), np.int16)
  label = np.zeros((4, 5, 6), np.uint8)
  assert resample_image(image, (4, 5, 6), nearest_axis=0) is image
  assert resample_label(label, (4, 5, 6), nearest_axis=0) is label


def slabs_of(array, sizes):
  start = 0
  for size in sizes:
    yield array[start : start + size]
    start += size
  assert start == len(array)


@pytest.mark.parametrize(('old', 'new'), [*SIZES, ((6, 5, 4), (6, 5, 4))])
@pytest.mark.parametrize('values', [1, 150, 2**24])
def test_linear_slabs_agree_with_scipy(old, new, values, monkeypatch):
  monkeypatch.setattr(resample, '_SLAB', values)
  logits = np.random.default_rng(6).normal(size=(*old, 3)).astype(np.float32)
  rest = old[0] - old[0] // 2
  sizes = [old[0] // 2] + [1] * rest
  slabs = list(resample_linear_slabs(slabs_of(logits, sizes), old, new))
  plane = int(np.prod(new[1:])) * 3
  assert all(s.size <= max(values, plane) for s in slabs)
  assert all(s.dtype == np.float32 for s in slabs)
  got = np.concatenate(slabs)
  assert got.shape == (*new, 3)
  for k in range(3):
    expected = zoom(logits[..., k], new, 1)
    np.testing.assert_allclose(got[..., k], expected, atol=2e-6)


def test_linear_slabs_hold_what_they_need_and_read_no_further(monkeypatch):
  monkeypatch.setattr(resample, '_SLAB', 1)
  read = []

  def slabs():
    for i in range(40):
      slab = np.full((1, 4, 4, 2), i, np.float32)
      read.append(weakref.ref(slab))
      yield slab
      del slab

  result = resample_linear_slabs(slabs(), (40, 4, 4), (20, 6, 3))
  for i, slab in enumerate(result):
    np.testing.assert_allclose(slab, np.full((1, 6, 3, 2), 2 * i + 0.5), 1e-6)
    assert len(read) == 2 * i + 2
    assert sum(ref() is not None for ref in read) <= 2
  assert i == 19


@pytest.mark.parametrize('count', [4, 6])
def test_slabs_that_do_not_add_up_are_refused(count):
  slabs = (np.zeros((1, 3, 2)) for _ in range(count))
  with pytest.raises(ValueError, match=r'a whole of \(5, 3\)'):
    list(resample_linear_slabs(slabs, (5, 3), (9, 7)))


@pytest.mark.parametrize(
  ('shape', 'spacing', 'target', 'expected'),
  [
    ((100, 512, 512), (5.0, 0.7, 0.7), (2.5, 1.4, 1.4), (200, 256, 256)),
    ((36, 50, 35), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (36, 50, 35)),
    ((3, 4, 5), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), (1, 1, 1)),
    ((30, 400, 400), (8.0, 0.5, 0.5), (1.0, 1.0), (30, 200, 200)),
    ((5, 7, 9), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2, 4, 4)),  # half to even
    ((40, 60), (1.0, 1.0), (0.5, 2.0), (80, 30)),
  ],
)
def test_the_new_shape_covers_the_same_space(shape, spacing, target, expected):
  assert output_shape(shape, spacing, target) == expected


@pytest.mark.parametrize(
  ('spacing', 'target', 'expected'),
  [
    ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), None),
    ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # 3 is not more than 3
    ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
    ((1.0, 1.0, 5.0), (5.0, 1.0, 1.0), 2),  # the case's own goes first
    ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1),
    ((0.2, 1.0, 1.0), (1.0, 1.0, 1.0), None),  # two axes are coarsest
    ((6.0, 1.0, 1.0), (1.0, 1.0), 0),  # the plan of a 2-D network
    ((9.0, 1.0), (1.0, 1.0), None),
  ],
)
def test_the_coarse_axis(spacing, target, expected):
  assert coarse_axis(spacing, target) == expected


@pytest.mark.parametrize('size', [(20, 30), (7, 50), (91, 64), (64, 13)])
def test_linear_resizing_agrees_with_pillow(size):
  image = np.random.default_rng(1).random((64, 48)).astype(np.float32)
  expected = Image.fromarray(image).resize(size[::-1], Image.BILINEAR)
  got = resize_linear(image[..., None], size)[..., 0]
  np.testing.assert_allclose(got, np.asarray(expected), atol=2e-6)


def test_linear_enlarging_of_a_volume_agrees_with_scipy():
  image = np.random.default_rng(2).random((5, 6, 7)).astype(np.float32)
  got = resize_linear(image[..., None], (10, 12, 14))[..., 0]
  np.testing.assert_allclose(got, zoom(image, (10, 12, 14), 1), atol=1e-6)


def test_nearest_resizing_keeps_the_values_and_blocks():
  label = np.array([[0, 3], [1, 2]], np.uint8)
  big = resize_nearest(label, (4, 6))
  np.testing.assert_array_equal(big, np.kron(label, np.ones((2, 3), np.uint8)))
  np.testing.assert_array_equal(resize_nearest(big, (2, 2)), label)


def test_a_real_scan_and_its_label(real_data):
  folder = real_data / 'ct_mr'
  load = [
    np.asanyarray(nibabel.load(folder / part / 'example_mr_sm.nii.gz').dataobj)
    for part in ('images', 'labels')
  ]
  image, label = (array[:60, :50, :40] for array in load)
  new = tuple(round(n * 0.7) for n in image.shape)
  spread = np.ptp(image.astype(np.float64))
  got = resample_image(image.astype(np.float32)[..., None], new)[..., 0]
  assert np.abs(got - zoom(image, new, 3)).max() < 1e-3 * spread
  label = label.astype(np.int16)
  assert len(np.unique(label)) > 5
  np.testing.assert_array_equal(
    resample_label(label, new), one_hot_argmax(label, new)
  )
