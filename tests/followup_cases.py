"""A patient of smooth tissue and bright balls, imaged wherever one likes.

Values follow from places in the patient, so that a moved image has no error of
interpolation, and the truth of everything is known.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from medseg_jax.clinic.followup.time_point import TimePoint, mapped

# z up, then to the back and to the left, as volumes are read.
DIRECTIONS = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]], float)
BRIGHT = 2000.0


def affine_of(shape, spacing, middle=(0, 0, 0)):
  """Returns `[4, 4]` of an image around `middle`, mm."""
  affine = np.eye(4)
  affine[:3, :3] = DIRECTIONS * np.broadcast_to(spacing, 3)
  affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
  return affine


def motion_of(degrees=(0, 0, 0), shift=(0, 0, 0)):
  """Returns `[4, 4]`: a rotation about the origin, then a shift in mm."""
  motion = np.eye(4)
  turn = Rotation.from_euler('xyz', degrees, degrees=True)
  motion[:3, :3], motion[:3, 3] = turn.as_matrix(), shift
  return motion


def tissue(points, seed=0):
  """Returns the values at `[n, 3]` mm: an ellipsoid with blobs in it."""
  rng = np.random.default_rng(seed)
  radii = np.array([34, 28, 31])
  far = np.linalg.norm(points / radii, axis=1)
  values = 300 / (1 + np.exp((far - 1) * 12))
  for centre, width, height in zip(
    rng.uniform(-1, 1, (30, 3)) * radii * 0.7,
    rng.uniform(4, 9, 30),
    rng.uniform(-120, 160, 30),
    strict=True,
  ):
    distance = ((points - centre) ** 2).sum(1)
    values += height * np.exp(-distance / (2 * width**2))
  return values


def time_point(
  balls,
  *,
  shape=(40, 44, 42),
  spacing=2.0,
  middle=(0, 0, 0),
  motion=None,
  seed=0,
  noise=15.0,
):
  """Returns an image of the patient after a motion, balls labelled 1.

  Args:
    balls: (centre in mm right, anterior, superior before the motion, radius).
    shape: of the image.
    spacing: mm, of all axes or of each.
    middle: mm, of the image.
    motion: of the patient, `[4, 4]`.
    seed: another one is another patient, with other noise.
    noise: its standard deviation.
  """
  affine = affine_of(shape, spacing, middle)
  voxels = np.indices(shape).reshape(3, -1).T
  back = np.linalg.inv(np.eye(4) if motion is None else motion)
  points = mapped(mapped(voxels, affine), back)
  values = tissue(points, seed)
  label = np.zeros(len(points), np.int16)
  for centre, radius in balls:
    inside = ((points - centre) ** 2).sum(1) < radius**2
    label[inside], values[inside] = 1, BRIGHT
  rng = np.random.default_rng(seed + 1 + int(motion is not None))
  values += rng.normal(0, noise, len(values))
  image = values.reshape(*shape, 1).astype(np.float32)
  return TimePoint(image, label.reshape(shape), affine)
