"""How much around a patch is read, so that a turned one has no empty corner."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_augment import random_coords, voxels
from test_augment_volumes import NNUNET, WARP, quick, run

from medseg_jax.augment import create_augment, kernels, read_size


@pytest.mark.parametrize(
  ('patch', 'fields', 'expected'),
  [
    ((8, 9), {}, (8, 9)),
    ((8, 9), NNUNET | {'warp_prob': 0}, (8, 9)),
    ((8, 9), NNUNET | {'rotation_prob': 0, 'scale_prob': 0}, (8, 9)),
    # Half 17 and 8.5 voxels, by 0.85: 20 and 10; 1.5 more are 2.
    ((35, 18), {'warp_prob': 0.1, 'scale_range': (0.85, 1)}, (41, 22)),
    # A smaller scale reads no more, 0.9 less: 18.89 and 9.44.
    ((35, 18), {'warp_prob': 0.1, 'scale_range': (0.5, 1)}, (41, 22)),
    ((35, 18), {'warp_prob': 0.1, 'scale_range': (0.9, 1)}, (39, 20)),
    ((20, 10), {'warp_prob': 1, 'scale_range': (1, 1.4)}, (20, 10)),
    # 3 * 1.2 voxels.
    ((20, 10, 9), {'warp_prob': 1, 'elastic_std': 1.2}, (28, 18, 17)),
    # The diagonal of 30 x 40 voxels, half of it 25.
    ((31, 41), {'warp_prob': 1, 'rotation_degrees': 180}, (51, 51)),
    # 15 cos + 20 sin and 20 cos + 15 sin of 30 degrees: 22.99, 24.82.
    ((31, 41), {'warp_prob': 1, 'rotation_degrees': 30}, (47, 51)),
    (
      (5, 31, 41),
      {'warp_prob': 1, 'rotation_degrees': 180, 'in_plane': True},
      (5, 51, 51),
    ),
    # The half diagonals of 20 x 60 and, twice, 30 x 60: 31.62, 33.54.
    ((21, 31, 61), {'warp_prob': 1, 'rotation_degrees': 180}, (65, 69, 69)),
    # As above, and 2 cos + 20 sin of 30 degrees: 11.73.
    ((31, 41, 5), {'warp_prob': 1, 'rotation_degrees': 30}, (47, 51, 25)),
    # These by 0.85: 27.05, 29.20, 13.80.
    ((31, 41, 5), NNUNET, (57, 61, 29)),
    # Half the diagonal of 8 x 40 voxels is 20.4, 17 more than 4 and 1 more
    # than 20. A turn needs the margin of the second axis along the first.
    (
      (9, 9, 41),
      {
        'warp_prob': 1,
        'rotation_degrees': 180,
        'in_plane': True,
        'rot90_prob': 0.5,
      },
      (43, 43, 43),
    ),
  ],
)
def test_read_size_by_hand(patch, fields, expected):
  assert read_size(patch, **fields) == expected


@pytest.mark.parametrize(
  ('patch', 'degrees'),
  [((40, 56, 40), 30), ((16, 64, 48), 15), ((21, 33, 25), 70)],
)
def test_read_size_is_that_of_the_farthest_corner_turned_in_one_plane(
  patch, degrees
):
  half = (np.array(patch) - 1) / 2
  angles = np.linspace(-degrees, degrees, 1001)
  matrices = np.concatenate(
    [
      Rotation.from_euler(axis, angles[:, None], degrees=True).as_matrix()
      for axis in 'xyz'
    ]
  )
  reach = (np.abs(matrices) @ half).max(axis=0)
  size = np.array(read_size(patch, warp_prob=1, rotation_degrees=degrees))
  assert np.all((size - patch) % 2 == 0)
  assert np.all(size - 1 >= 2 * reach)
  # No voxel too many, but for what the steps of the angle miss.
  assert np.all(size - 1 < 2 * (reach + 1.01))


@pytest.mark.parametrize(
  ('patch', 'fields'),
  [
    (
      (4, 9, 9),
      {'rotation_degrees': 180, 'in_plane': True, 'rot90_prob': 0.5},
    ),
    ((13, 20), {'rotation_degrees': 180}),
  ],
)
def test_a_rotation_in_one_plane_sees_nothing_outside_of_what_was_read(
  patch, fields
):
  fields = {'warp_prob': 1, 'scale_range': (0.85, 1.4)} | fields
  size = read_size(patch, **fields)
  augment_fn = quick(create_augment(patch_size=patch, **fields))

  def lowest(missing):
    """Returns the lowest image and label seen, a rim of the input missing."""
    rims = [missing * (n > m) for n, m in zip(size, patch, strict=True)]
    inside = np.ones([n - 2 * m for n, m in zip(size, rims, strict=True)])
    label = np.pad(inside.astype(np.int32), [(2 + m, 2 + m) for m in rims]) - 1
    label = jnp.asarray(label)[None].repeat(300, axis=0)
    batch = {'image': label[..., None] + 1.0, 'label': label}
    result = augment_fn(jax.random.key(0), batch)
    return float(result['image'].min()), int(result['label'].min())

  image, label = lowest(missing=0)
  assert image > 1 - 1e-4 and label == 0
  # These keys do reach nearly that far.
  image, label = lowest(missing=3)
  assert image == 0 and label == -1


def test_few_voxels_are_looked_up_outside_of_what_was_read():
  fields = {k: NNUNET[k] for k in WARP if k != 'warp_prob'}
  coords_fn = functools.partial(random_coords, prob=1.0, **fields)
  # Without an elastic part the corners of a cube of two give the matrix; the
  # random numbers do not depend on the shape.
  keys = jax.random.split(jax.random.key(0), 4000)
  cubes = quick(jax.vmap(lambda key: coords_fn(key, (2, 2, 2))))(keys)
  cubes = np.asarray(cubes, np.float64)
  origin = cubes[..., 0, 0, 0]
  steps = [cubes[..., 1, 0, 0], cubes[..., 0, 1, 0], cubes[..., 0, 0, 1]]
  matrices = np.stack([step - origin for step in steps], axis=-1)
  # Not in plane: the first axis is turned and scaled, too.
  assert np.abs(matrices[:, 0] - [1, 0, 0]).max() > 0.4
  # The trick with the cube is right: the coordinates of a patch itself.
  changed = np.abs(matrices - np.eye(3)).max(axis=(1, 2)) > 0.1
  number, patch = np.flatnonzero(changed)[0], (5, 7, 6)
  half = (np.array(patch) - 1) / 2
  expected = (np.moveaxis(voxels(patch), 0, -1) - half) @ matrices[number].T
  coords = quick(lambda key: coords_fn(key, patch))(keys[number])
  np.testing.assert_allclose(
    np.moveaxis(coords, 0, -1), expected + half, atol=1e-4
  )
  rng = np.random.default_rng(0)
  for patch in ((40, 56, 40), (16, 48, 40)):
    offsets = rng.integers(0, patch, (500, 3)) - (np.array(patch) - 1) / 2
    reach = np.abs(np.einsum('nij,vj->nvi', matrices, offsets, optimize=True))
    limit = (np.array(read_size(patch, **NNUNET)) - 1) / 2
    share = (reach > limit + 1e-3).any(axis=-1).mean()
    assert 1e-4 < share < 1e-3


def test_no_corner_is_empty():
  patch = (8, 12, 10)
  fields = {name: NNUNET[name] for name in WARP} | {
    'rotation_prob': 1,
    'scale_prob': 1,
  }
  ones = np.ones((300, *read_size(patch, **fields)), np.int32)
  batch = {'image': jnp.float32(ones)[..., None], 'label': jnp.asarray(ones)}
  result = run(batch, patch_size=patch, **fields)
  assert np.all(result['label'] == 1)
  np.testing.assert_allclose(result['image'], 1, atol=1e-5)


# Wrong use.


def test_between_control_points_values_are_those_of_cubic_convolution():
  points = jax.random.normal(jax.random.key(0), (3, 4, 7, 2))
  for shape in ((9, 33, 10), (4, 7, 2)):
    np.testing.assert_allclose(
      kernels.between_points(points, shape),
      jax.image.resize(points, (3, *shape), 'cubic'),
      atol=1e-5,
    )
