"""Surface distances against hand-computed areas and brute force."""

import itertools
import math

import numpy as np
import pytest

from medseg_jax.metrics import surface


def _box(shape, *slices):
  mask = np.zeros(shape, bool)
  mask[slices] = True
  return mask


def _code(*voxels):
  """Returns the code of a neighbourhood from the voxels that are inside."""
  rank = len(voxels[0])
  corners = list(itertools.product((0, 1), repeat=rank))
  return sum(1 << corners.index(v) for v in voxels)


def _ball(shape, centre, radius, spacing):
  grid = np.ogrid[tuple(slice(n) for n in shape)]
  squares = [
    ((x - c) * s) ** 2 for x, c, s in zip(grid, centre, spacing, strict=True)
  ]
  return sum(squares) <= radius**2


def _brute_force(pred, label, spacing, percentile, tolerance):
  """Returns HD, average distance and surface Dice by loops over elements."""
  elements = []
  areas = surface.code_areas(spacing)
  for mask in (pred, label):
    padded = np.pad(mask, 1)
    found = []
    for corner in np.ndindex(*(n - 1 for n in padded.shape)):
      window = padded[tuple(slice(c, c + 2) for c in corner)].ravel()
      if window.any() and not window.all():
        code = sum(int(v) << k for k, v in enumerate(window))
        found.append((np.array(corner) * spacing, areas[code]))
    elements.append(found)
  directed = []
  for one, other in (elements, elements[::-1]):
    directed.append(
      sorted((min(np.linalg.norm(p - q) for q, _ in other), a) for p, a in one)
    )
  percentiles = []
  for pairs in directed:
    total, covered = sum(a for _, a in pairs), 0
    for distance, area in pairs:
      covered += area
      if covered >= percentile / 100 * total - 1e-9:
        percentiles.append(distance)
        break
  pairs = directed[0] + directed[1]
  total = sum(a for _, a in pairs)
  return (
    max(percentiles),
    sum(d * a for d, a in pairs) / total,
    sum(a for d, a in pairs if d <= tolerance) / total,
  )


def test_lengths_of_contour_elements_are_those_of_marching_squares():
  areas = surface.code_areas((3, 4))
  diagonal = 2.5  # half of the 3-4-5 triangle's long side
  assert areas[0] == areas[15] == 0
  for voxel in itertools.product((0, 1), repeat=2):
    np.testing.assert_allclose(areas[_code(voxel)], diagonal)
    np.testing.assert_allclose(areas[15 - _code(voxel)], diagonal)
  np.testing.assert_allclose(areas[_code((0, 0), (0, 1))], 4)
  np.testing.assert_allclose(areas[_code((0, 0), (1, 0))], 3)
  np.testing.assert_allclose(areas[_code((0, 0), (1, 1))], 2 * diagonal)


def test_areas_of_single_corners_and_flat_faces_by_hand():
  spacing = np.array([1.0, 2.0, 3.0])
  areas = surface.code_areas(spacing)
  # The triangle of the three edge midpoints next to a corner.
  a, b, c = np.diag(spacing / 2)
  triangle = np.linalg.norm(np.cross(b - a, c - a)) / 2
  for voxel in itertools.product((0, 1), repeat=3):
    np.testing.assert_allclose(areas[_code(voxel)], triangle)
  for axis in range(3):
    half = [v for v in itertools.product((0, 1), repeat=3) if v[axis] == 0]
    np.testing.assert_allclose(
      areas[_code(*half)], spacing.prod() / spacing[axis]
    )
  # Two voxels along axis 2: a rectangle that cuts off an edge of the cube.
  edge = math.hypot(spacing[0] / 2, spacing[1] / 2) * spacing[2]
  np.testing.assert_allclose(areas[_code((0, 0, 0), (0, 0, 1))], edge)
  # Opposite corners touch in nothing: two triangles.
  np.testing.assert_allclose(areas[_code((0, 0, 0), (1, 1, 1))], 2 * triangle)
  # One voxel and its three neighbours: the regular hexagon with sides sqrt(.5).
  hexagon = _code((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
  np.testing.assert_allclose(
    surface.code_areas((1, 1, 1))[hexagon], 1.5 * math.sqrt(3) / 2
  )


def test_area_does_not_change_with_complement_or_axis_flip():
  areas = surface.code_areas((1, 1, 1))
  codes = np.arange(256)
  np.testing.assert_allclose(areas, areas[::-1])
  bits = (codes[:, None] >> np.arange(8)) & 1
  cubes = bits.reshape(256, 2, 2, 2)
  for axis in (1, 2, 3):
    flipped = np.flip(cubes, axis).reshape(256, 8) @ (1 << np.arange(8))
    np.testing.assert_allclose(areas, areas[flipped])
  swapped = cubes.swapaxes(1, 3).reshape(256, 8) @ (1 << np.arange(8))
  np.testing.assert_allclose(areas, areas[swapped])
  assert (areas[1:-1] > 0).all()


def test_area_of_a_box_is_its_faces_less_the_cut_edges():
  spacing = (1.0, 1.0, 1.0)
  mask = _box((6, 7, 8), slice(1, 5), slice(1, 5), slice(1, 5))
  areas = surface.surface_distances(mask, mask, spacing).pred_areas
  # 6 faces of 3x3 inner grid corners, 12 edges of 3, 8 corner triangles.
  expected = 6 * 9 + 12 * 3 * math.sqrt(0.5) + 8 * math.sqrt(3) / 8
  np.testing.assert_allclose(areas.sum(), expected)
  assert len(areas) == 5**3 - 3**3


def test_diagonal_plane_has_its_true_area():
  # Each step of a staircase has a corner column with one voxel column inside
  # and one with three inside; both cut off half a diagonal.
  areas = surface.code_areas((1, 1, 1))
  one = _code((0, 0, 0), (0, 0, 1))
  three = _code(
    *[v for v in itertools.product((0, 1), repeat=3) if v[:2] != (1, 1)]
  )
  np.testing.assert_allclose(areas[one] + areas[three], math.sqrt(2))


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_boxes_displaced_by_two_voxels_are_two_spacings_apart(axis):
  spacing = (0.5, 1.0, 3.0)
  label = _box((12, 12, 12), *[slice(2, 9)] * 3)
  pred = np.roll(label, 2, axis)
  gap = 2 * spacing[axis]
  np.testing.assert_allclose(
    surface.hausdorff_distance(pred, label, spacing, 100), gap
  )
  assert surface.surface_dice(pred, label, spacing, gap) == 1
  assert surface.surface_dice(pred, label, spacing, 0.99 * gap) < 1


def test_displaced_squares_by_hand():
  # Squares of 2x2 voxels, 1 apart along axis 0: contours of 3x3 grid corners
  # less the centre. Lengths: 4 corners of r = sqrt(.5), 4 sides of 1. Axis-0
  # rows of pred at 1, 2, 3, of label at 0, 1, 2. Of pred, row 3 is 1 away from
  # row 2; row 2's ends lie on the label, row 1's ends too and its middle lies
  # in the label's centre, 1 away from the contour. The label mirrors this.
  label = _box((5, 5), slice(1, 3), slice(1, 3))
  pred = np.roll(label, 1, 0)
  r = math.sqrt(0.5)
  length, away = 4 * r + 4, 2 * r + 1 + 1
  spacing = (1, 1)
  np.testing.assert_allclose(
    surface.average_surface_distance(pred, label, spacing), away / length
  )
  np.testing.assert_allclose(
    surface.surface_dice(pred, label, spacing, 0.5), 1 - away / length
  )
  share = 100 * (1 - away / length)
  for percentile, expected in ((share - 0.1, 0), (share + 0.1, 1)):
    assert expected == surface.hausdorff_distance(
      pred, label, spacing, percentile
    )


@pytest.mark.parametrize(
  'shape, spacing',
  [
    ((9, 8), (0.7, 2.0)),
    ((6, 5, 7), (1.0, 0.8, 2.5)),
  ],
)
def test_scores_match_brute_force_on_random_masks(shape, spacing):
  rng = np.random.default_rng(0)
  for share in (0.1, 0.5, 0.9):
    pred, label = rng.random((2, *shape)) < share
    hausdorff, average, dice = _brute_force(pred, label, spacing, 90, 1.0)
    scores = surface.surface_metrics(
      pred, label, spacing, percentile=90, tolerance=1.0
    )
    np.testing.assert_allclose(scores['hausdorff_distance'], hausdorff)
    np.testing.assert_allclose(scores['average_surface_distance'], average)
    np.testing.assert_allclose(scores['surface_dice'], dice)
    assert scores == {
      'hausdorff_distance': surface.hausdorff_distance(
        pred, label, spacing, 90
      ),
      'average_surface_distance': surface.average_surface_distance(
        pred, label, spacing
      ),
      'surface_dice': surface.surface_dice(pred, label, spacing, 1.0),
    }


@pytest.mark.parametrize('search', ['tree', 'both', 'transform'])
@pytest.mark.parametrize(
  'spacing', [(1.0, 1.0), (0.3, 1.7), (1.0, 1.0, 1.0), (0.7, 0.7, 5.0)]
)
def test_every_way_to_search_gives_the_same(monkeypatch, search, spacing):
  rng = np.random.default_rng(2)
  shape = (13, 11, 9)[: len(spacing)]
  pred, label = (rng.random(shape) < share for share in (0.3, 0.02))
  # How many points a search is worth: all go to the tree, those that are left
  # by the first look, or none.
  ways = {'tree': (0.01, 2), 'both': (1, 1), 'transform': (1e9, 1)}
  worth, near = ways[search]
  monkeypatch.setattr(surface, '_POINTS_A_SEARCH', worth)
  monkeypatch.setattr(surface, '_NEAR', near)
  found = surface.surface_distances(pred, label, spacing)
  points = []
  for mask in (pred, label):
    padded = np.pad(mask, 1)
    corners = [
      corner
      for corner in np.ndindex(*(n - 1 for n in padded.shape))
      if 0
      < padded[tuple(slice(c, c + 2) for c in corner)].sum()
      < 2 ** len(shape)
    ]
    points.append(np.array(corners) * spacing)
  gaps = np.linalg.norm(points[0][:, None] - points[1], axis=-1)
  np.testing.assert_allclose(found.pred_distances, gaps.min(1))
  np.testing.assert_allclose(found.label_distances, gaps.min(0))


def test_concentric_spheres_are_their_radii_apart():
  spacing = (1.0, 1.0, 2.0)
  balls = [_ball((50, 50, 26), (25, 25, 13), r, spacing) for r in (20, 14)]
  for percentile in (50, 95, 100):
    distance = surface.hausdorff_distance(*balls, spacing, percentile)
    assert abs(distance - 6) < 1.5
  # Elements lie on both sides of the sphere, and the nearest one counts, so the
  # distance comes out short by less than half the largest spacing.
  average = surface.average_surface_distance(*balls, spacing)
  assert 5 < average < 6
  areas = surface.surface_distances(*balls, spacing).pred_areas
  # The staircase of a voxel sphere has up to a tenth more area than the sphere.
  assert 1 < areas.sum() / (4 * math.pi * 20**2) < 1.12


def test_percentile_weighs_by_area_and_takes_the_larger_direction():
  label = _box((40, 40), slice(10, 30), slice(10, 30))
  pred = label.copy()
  pred[20, 30:38] = True  # a thin spike on one side
  assert surface.hausdorff_distance(pred, label, (1, 1), 100) == 8
  assert surface.hausdorff_distance(pred, label, (1, 1), 50) == 0
  assert surface.hausdorff_distance(label, pred, (1, 1), 100) == 8


def test_scores_do_not_depend_on_place_and_order_of_the_masks():
  rng = np.random.default_rng(1)
  pred, label = rng.random((2, 5, 6, 7)) < 0.4
  spacing = (1.0, 2.0, 0.5)
  padded = [np.pad(m, ((3, 1), (0, 4), (2, 2))) for m in (pred, label)]
  scores = surface.surface_metrics(pred, label, spacing, tolerance=1)
  for pair in (padded, padded[::-1]):
    moved = surface.surface_metrics(*pair, spacing, tolerance=1)
    assert moved == pytest.approx(scores)


def test_tolerance_met_exactly_counts_whatever_the_rounding():
  label = _box((9, 9), slice(1, 4), slice(1, 4))
  pred = np.roll(label, 3, 0)
  # 3 * 0.1 is more than 0.3 in floating point.
  assert surface.surface_dice(pred, label, (0.1, 0.1), 0.3) == 1


@pytest.mark.parametrize('shape', [(4, 5), (4, 5, 3)])
def test_empty_masks(shape):
  empty, full = np.zeros(shape, bool), np.ones(shape, bool)
  spacing = (1.0,) * len(shape)
  for pair in ((empty, full), (full, empty)):
    assert surface.hausdorff_distance(*pair, spacing) == math.inf
    assert surface.average_surface_distance(*pair, spacing) == math.inf
    assert surface.surface_dice(*pair, spacing, 1) == 0
  assert math.isnan(surface.hausdorff_distance(empty, empty, spacing))
  assert math.isnan(surface.average_surface_distance(empty, empty, spacing))
  assert math.isnan(surface.surface_dice(empty, empty, spacing, 1))


def test_equal_masks_that_fill_the_array_are_at_distance_zero():
  mask = np.ones((3, 4, 5), bool)
  assert surface.surface_metrics(mask, mask, (1, 1, 1), tolerance=0) == {
    'hausdorff_distance': 0,
    'average_surface_distance': 0,
    'surface_dice': 1,
  }


@pytest.mark.parametrize(
  'pred, spacing, message',
  [
    (np.zeros((3, 4), bool), (1, 1), 'one shape'),
    (np.zeros((3, 3), np.uint8), (1, 1), 'bool'),
    (np.zeros(3, bool), (1,), '2 or 3 axes'),
    (np.zeros((3, 3), bool), (1, 1, 1), '2 numbers'),
    (np.zeros((3, 3), bool), 1, '2 numbers'),
    (np.zeros((3, 3), bool), (1, 0), 'positive'),
    (np.zeros((3, 3), bool), (1, np.nan), 'positive'),
  ],
)
def test_bad_masks_and_spacings_raise(pred, spacing, message):
  with pytest.raises(ValueError, match=message):
    surface.hausdorff_distance(pred, np.zeros((3, 3), bool), spacing)


def test_bad_percentile_and_tolerance_raise():
  mask = np.ones((3, 3), bool)
  for percentile in (-1, 101, math.nan):
    with pytest.raises(ValueError, match='percentile'):
      surface.hausdorff_distance(mask, mask, (1, 1), percentile)
  for tolerance in (-1, math.nan):
    with pytest.raises(ValueError, match='tolerance'):
      surface.surface_dice(mask, mask, (1, 1), tolerance)


def test_the_interface_keeps_its_name():
  import medseg_jax.surface as promised

  for name in promised.__all__:
    assert getattr(promised, name) is getattr(surface, name)
