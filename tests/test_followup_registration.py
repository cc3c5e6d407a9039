"""Motions that are known are found; where there is none, that is said."""

import nibabel
import numpy as np
import pytest
from followup_cases import motion_of, time_point
from scipy import ndimage

from medseg_jax.clinic.followup import comparison, quality, registration
from medseg_jax.clinic.followup.time_point import TimePoint, mapped
from medseg_jax.clinic.followup.working_grid import working_grid

BALLS = (((-12, 8, 4), 6.0), ((12, -6, 8), 5.0))


def error_of(point, found, motion):
  """Returns the largest distance, mm, to where points of an image belong."""
  points = working_grid(point).points(500)
  apart = mapped(points, found) - mapped(points, motion)
  return np.linalg.norm(apart, axis=1).max()


def coarse(balls, **named):
  """Returns an image of fewer voxels than `time_point` makes by itself."""
  return time_point(balls, **{'shape': (32, 32, 32), 'spacing': 2.6} | named)


def quality_of(earlier, later):
  return comparison.registered(earlier, later, ())


def test_a_motion_is_found_and_the_same_each_time():
  """Between other voxels and contrasts, the coordinates off by 20 cm."""
  motion = motion_of((6, -9, 12), (210, -40, 15))
  earlier = time_point(BALLS)
  later = time_point(
    BALLS, motion=motion, spacing=(4, 1.5, 1.5), shape=(24, 60, 60),
    middle=(212, -38, 13),
  )  # fmt: skip
  later = later._replace(image=np.sqrt(later.image - later.image.min()))
  grids = working_grid(earlier), working_grid(later)
  found = registration.register(*grids)
  assert error_of(earlier, found.motion, motion) < 0.75  # half a voxel
  assert found.consistency < 0.75
  again = registration.register(*grids)
  np.testing.assert_array_equal(again.motion, found.motion)


def test_a_good_registration_is_told_as_such():
  earlier = coarse(BALLS)
  motion, found = quality_of(
    earlier, coarse(BALLS, motion=motion_of((0, 0, 10), (4, 0, 0)))
  )
  assert not quality.warnings_of(found, 5.0)
  assert found.rotation == pytest.approx(10, abs=0.3)
  assert found.shift == pytest.approx((-4, 0, 0), abs=0.3)
  assert found.after.information > found.before.information
  # Nothing has moved: nothing moves.
  motion, found = quality_of(earlier, earlier)
  np.testing.assert_allclose(motion, np.eye(4), atol=1e-9)
  assert found.after.information == pytest.approx(2)


def test_a_poor_registration_is_told():
  earlier = coarse(())
  rng = np.random.default_rng(0)
  noise = ndimage.gaussian_filter(rng.normal(size=earlier.image.shape), 3)
  _, found = quality_of(earlier, earlier._replace(image=noise))
  assert 'tell little of each other' in quality.warnings_of(found, 5.0)[0]
  # Half of it is missing.
  above = coarse((), shape=(12, 32, 32), middle=(0, 0, 22))
  below = coarse((), shape=(12, 32, 32), middle=(0, 0, 2))
  _, found = quality_of(above, below)
  assert any('of the smaller image' in w for w in quality.warnings_of(found, 5))


def test_each_reason_for_a_warning():
  like = quality.Likeness(1.3, 0.9, 0.95)
  good = quality.Quality(like, like, 3, (0, 0, 0), 0.1, '', {'a': 0.9, 'b': 0})
  assert not quality.warnings_of(good, 5.0)
  for change, words in (
    (dict(after=like._replace(information=1.05)), 'tell little'),
    (dict(after=like._replace(overlap=0.4)), 'only 40%'),
    (dict(rotation=50.0), '50 degrees'),
    (dict(consistency=7.0), '7.0 mm away'),
    (dict(consistency=None), 'nowhere'),
    (dict(dice={'a': 0.5}), 'Dice of 0.50'),
  ):
    [line] = quality.warnings_of(good._replace(**change), 5.0)
    assert words in line


def test_a_sheared_image_lies_straight_on_the_working_grid():
  point = time_point(BALLS, noise=0)
  sheared = point.affine.copy()
  sheared[:3, 0] += 0.25 * sheared[:3, 1]
  voxels = np.indices(point.label.shape).reshape(3, -1).T
  inside = mapped(mapped(voxels, sheared), np.linalg.inv(point.affine))
  image = ndimage.map_coordinates(point.image[..., 0], inside.T, order=1)
  tilted = TimePoint(image.reshape(*point.label.shape, 1), point.label, sheared)
  straight, other = working_grid(point), working_grid(tilted)
  axes = other.affine[:3, :3] / other.spacing
  np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
  points = straight.points(2000)
  points = points[np.linalg.norm(points, axis=1) < 25]
  apart = straight.sample(points) - other.sample(points)
  assert np.abs(apart).mean() < 0.05 * straight.values.std()


def test_dice_is_that_of_what_both_images_hold():
  ball = (((0, 0, 0), 12.0),)
  earlier = time_point(ball, spacing=1.5, shape=(40, 40, 40))
  motion = motion_of((0, 0, 20), (30, 0, 0))
  later = time_point(ball, motion=motion, middle=(30, 0, 0))
  assert quality.dice_of(earlier, later, motion, (1,)) > 0.93
  away = motion_of((0, 0, 20), (36, 0, 0))  # by half a radius
  expected = 1 - 1.5 * 0.25 + 0.5 * 0.25**3  # of two balls
  found = quality.dice_of(earlier, later, away, (1,))
  assert found == pytest.approx(expected, abs=0.03)
  half = time_point(ball, shape=(20, 44, 42), middle=(0, 0, 20))
  assert quality.dice_of(earlier, half, np.eye(4), (1,)) > 0.9
  far = time_point(ball, middle=(30, 0, 0), motion=motion)
  apart = motion_of(shift=(300, 0, 0))
  assert quality.dice_of(earlier, far, apart, (1,)) is None


def test_a_slab_of_a_ct_lies_in_the_whole(real_data):
  """The last 30 slices of a scan in a file whose origin is the first one's."""
  points = []
  for name in ('example_ct_sm', 'example_ct'):
    file = nibabel.load(real_data / 'ct_mr' / 'images' / f'{name}.nii.gz')
    image = np.asarray(file.dataobj, np.float32).transpose(2, 1, 0)[..., None]
    affine = file.affine[:, [2, 1, 0, 3]]
    points.append(TimePoint(image, np.zeros(image.shape[:3], int), affine))
  slab, whole = (point.image for point in points)
  np.testing.assert_array_equal(slab, whole[82:])
  truth = motion_of(shift=(0, 0, 82 * 3))
  motion, found = quality_of(*points)
  assert error_of(points[0], motion, truth) < 0.5
  assert found.after.overlap > 0.95 and not quality.warnings_of(found, 5.0)
