"""Phantoms: reproducible, plausible in Hounsfield units, splits apart."""

import time

import numpy as np
import pytest
from scipy import ndimage

from medseg_jax.data.sources import phantom
from medseg_jax.data.sources import phantom_anatomy as anatomy
from medseg_jax.runtime.errors import InputError

SIZE = 96


@pytest.fixture(scope='module')
def slices():
  return [anatomy.generate(0, i, (SIZE, SIZE)) for i in range(60)]


def make_scene(shape):
  """Returns an empty scene, patient straight in the middle."""
  return anatomy._Scene(
    rng=np.random.default_rng(0),
    image=np.zeros(shape, np.float32),
    label=np.zeros(shape, np.uint8),
    cavity=np.ones(shape, np.float32),
    shift=np.zeros(3),
    turn=0.0,
    belly=np.ones(3),
    fat=-100.0,
    contrast=0.0,
  )


@pytest.mark.parametrize('shape', [(33,), (32, 48), (12, 24, 20)])
def test_image_and_label_have_the_shape_asked_for(shape):
  image, label = anatomy.generate(1, 2, shape)
  assert image.shape == (*shape, 1) and image.dtype == np.float32
  assert label.shape == shape and label.dtype == np.uint8
  assert np.isfinite(image).all() and image.min() >= -1024
  assert set(np.unique(label)) <= {0, 1, 2, 3}


def test_same_arguments_give_the_same_bits_whatever_came_before():
  first = anatomy.generate(3, 7, (40, 40))
  anatomy.generate(3, 8, (40, 40))
  again = anatomy.generate(3, 7, (40, 40))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])


def test_every_example_differs_in_image_and_in_label(slices):
  images = {image.tobytes() for image, _ in slices}
  labels = {label.tobytes() for _, label in slices}
  assert len(images) == len(labels) == len(slices)
  assert anatomy.generate(1, 0, (SIZE, SIZE))[1].tobytes() not in labels


def test_finer_phantom_is_the_same_patient():
  coarse = anatomy.generate(0, 4, (64, 64))[1]
  fine = anatomy.generate(0, 4, (128, 128))[1]
  blocks = fine.reshape(64, 2, 64, 2)
  assert (blocks == coarse[:, None, :, None]).mean() > 0.97


def test_classes_occur_often_enough_to_be_learned(slices):
  counts = np.array(
    [np.bincount(label.ravel(), minlength=4) for _, label in slices]
  )
  present = (counts > 0).mean(axis=0)
  share = counts.mean(axis=0) / SIZE**2
  assert present[1] == 1 and present[2] > 0.9
  assert 0.6 <= present[3] < 1
  assert share[3] > 0.005 and share[0] < 0.95


def test_intensities_are_those_of_ct(slices):
  images = np.array([image[..., 0] for image, _ in slices])
  labels = np.array([label for _, label in slices])
  assert 50 < np.median(images[labels == 1]) < 110
  assert 110 < np.median(images[labels == 2]) < 190
  assert abs(images[:, :3, :3].mean() + 1000) < 3
  assert all(images.max(axis=(1, 2)) > 350)  # bone


def test_tumours_are_darker_than_their_organ_by_over_twice_the_noise(slices):
  ratios = []
  for image, label in slices:
    image = image[..., 0]
    noise = image[:4].std()  # in air
    parts, num_parts = ndimage.label(label == 3)
    for part in range(1, num_parts + 1):
      tumour = parts == part
      core = ndimage.binary_erosion(tumour)
      ring = ndimage.binary_dilation(tumour, iterations=4)
      ring &= ~ndimage.binary_dilation(label == 3)
      organ = np.isin(label, (1, 2)) & ring
      if core.sum() >= 10 and organ.sum() >= 10:
        difference = np.median(image[organ]) - np.median(image[core])
        ratios.append(difference / noise)
  assert len(ratios) > 40
  assert np.mean(np.array(ratios) > 2) > 0.9


def test_no_range_of_intensity_finds_the_liver(slices):
  scores = []
  for image, label in slices:
    liver = label == 1
    low, high = np.percentile(image[liver], (5, 95))
    found = ((image >= low) & (image <= high))[..., 0]
    scores.append(2 * (found & liver).sum() / (found.sum() + liver.sum()))
  assert np.mean(scores) < 0.75


@pytest.mark.parametrize('angle', [0.0, 0.7])
def test_ellipse_fills_its_area_with_partial_volume(angle):
  scene = make_scene((60, 60))
  box, share = anatomy._ellipsoid(
    scene, (0, 11, -7), (50, 33, 61), angle, 0.0, 0.0
  )
  pixel = 6.0 * 6.0  # mm^2: a field of view of 360 mm
  assert share.sum() * pixel == pytest.approx(np.pi * 33 * 61, rel=0.01)
  assert 0 < ((share > 0) & (share < 1)).sum() < share.size / 2
  # Its centre of gravity, in mm from the middle of the image.
  full = np.zeros((60, 60))
  full[box] = share
  rows, columns = ndimage.center_of_mass(full)
  assert (rows - 29.5) * 6 == pytest.approx(11, abs=0.1)
  assert (columns - 29.5) * 6 == pytest.approx(-7, abs=0.1)


def test_tilted_ellipsoid_fills_its_volume():
  scene = make_scene((48, 60, 60))
  _, share = anatomy._ellipsoid(scene, (5, 0, 9), (50, 30, 40), 0.5, 0.4, 0.0)
  voxel = 5.0 * 6.0 * 6.0  # mm^3
  expected = 4 / 3 * np.pi * 50 * 30 * 40
  assert share.sum() * voxel == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize('center', [(0, 400, 0), (0, -178, 178)])
def test_ellipse_beyond_the_edge_is_cut_off(center):
  scene = make_scene((60, 60))
  anatomy._organ(scene, center, (20, 20, 20), 7.0, 2)
  inside = max(map(abs, center)) < 180
  assert scene.image.max() == pytest.approx(7.0 if inside else 0.0)
  assert (scene.label == 2).any() == inside


def test_noise_has_unit_variance_and_correlates_between_neighbours():
  noise = anatomy._correlated_noise(np.random.default_rng(0), (400, 400))
  assert noise.std() == pytest.approx(1, rel=0.02)
  for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
    assert (a * b).mean() == pytest.approx(4 / 9, rel=0.05)
  assert abs((noise[3:] * noise[:-3]).mean()) < 0.02


def test_generating_is_fast():
  # Ten times what it takes of this thread, so that a busy machine passes.
  for shape, limit in (((128, 128), 0.05), ((64, 64, 64), 0.3)):
    times = []
    for i in range(3):
      start = time.thread_time()
      anatomy.generate(0, i, shape)
      times.append(time.thread_time() - start)
    assert min(times) < limit


def test_source_hands_out_named_cases_lazily():
  source = phantom.PhantomSource(12, (20, 24), seed=5, split='test')
  assert len(source) == 12 and len(source.names) == 12
  case = source[7]
  assert case.name == 'test_0007' == source.names[7]
  assert case.spacing == (18.0, 15.0)
  image, label = anatomy.generate(5, phantom.SPLIT_START['test'] + 7, (20, 24))
  np.testing.assert_array_equal(case.image, image)
  np.testing.assert_array_equal(case.label, label)
  assert source[-1].name == 'test_0011'
  assert source.classes == ('background', 'liver', 'kidney', 'tumour')
  assert source.label_values == (0, 1, 2, 3) and source.channels == 1
  with pytest.raises(IndexError):
    source[12]


def test_splits_share_no_example_and_do_not_depend_on_each_other():
  small = phantom.open_phantom(
    shape=(24, 24), num_train=6, num_val=3, num_test=2
  )
  large = phantom.open_phantom(
    shape=(24, 24), num_train=9, num_val=3, num_test=2
  )
  assert {k: len(v) for k, v in small.items()} == {
    'train': 6, 'val': 3, 'test': 2
  }  # fmt: skip
  every = [case.image.tobytes() for source in small.values() for case in source]
  assert len(set(every)) == 11
  for split in ('val', 'test'):
    np.testing.assert_array_equal(small[split][1].image, large[split][1].image)


def test_empty_splits_are_left_out():
  sources = phantom.open_phantom(shape=(8, 8), num_val=0)
  assert list(sources) == ['train', 'test']


def test_case_key_tells_phantoms_apart():
  sources = [
    phantom.PhantomSource(*arguments)
    for arguments in [
      (3, (24, 24), 0, 'train'),
      (3, (24, 26), 0, 'train'),
      (3, (24, 24), 1, 'train'),
      (3, (24, 24), 0, 'val'),
    ]
  ]
  keys = [source.case_key(i) for source in sources for i in range(3)]
  assert len(set(keys)) == 12
  # The same patient, whatever the number of cases and the way to count.
  more = phantom.PhantomSource(5, (24, 24), 0, 'train')
  assert [more.case_key(i) for i in range(3)] == keys[:3]
  assert sources[0].case_key(-1) == keys[2]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'shape': (8, 8, 8, 8)}, r'shape is \(8, 8, 8, 8\)'),
    ({'shape': (64, 3)}, r'shape is \(64, 3\)'),
    ({'shape': (64, 64), 'seed': -1}, 'seed is -1'),
    ({'shape': (64, 64), 'num_val': -2}, 'num_val is -2'),
  ],
)
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(InputError, match=message):
    phantom.open_phantom(**arguments)
