"""What has become of lesions, of masks and motions that are known."""

import csv
import io
import json

import numpy as np
import pytest
from followup_cases import affine_of, motion_of, time_point

from medseg_jax.clinic import codes, measurements
from medseg_jax.clinic.followup import changes, matching, report
from medseg_jax.clinic.followup.quality import Likeness, Quality
from medseg_jax.clinic.followup.time_point import TimePoint

LESION, ORGAN = codes.meanings(('', 'lesion', 'organ'))
LIKE = Likeness(1.3, 0.9, 0.95)
GOOD = Quality(LIKE, LIKE, 3.0, (1.0, 2.0, 3.0), 0.1, 'the coordinates', {})
STRUCTURES = ((LESION, (1,)),)


def follow(earlier, later, motion=None, *, structures=STRUCTURES, **more):
  options = dict(interval=lambda *of: (), growth_percent=55.0, match_mm=5.0)
  motion = np.eye(4) if motion is None else motion
  return changes.follow(
    earlier, later, motion, structures=structures, **options | more
  )


def row(*runs, spacing=1.0):
  """Returns a time point with lesions along a line, from 0 to 59."""
  label = np.zeros((9, 9, 60), np.int16)
  for start, stop in runs:
    label[3:6, 3:6, start:stop] = 1
  affine = affine_of(label.shape, spacing)
  return TimePoint(np.zeros((*label.shape, 1)), label, affine)


@pytest.mark.parametrize(
  ('earlier', 'later', 'kinds'),
  [
    ([(20, 24)], [(20, 24)], ['stable']),
    ([(20, 24)], [(20, 26)], ['stable']),  # 50 % more
    ([(20, 24)], [(20, 27)], ['grown']),
    ([(20, 27)], [(20, 24)], ['shrunk']),
    ([(20, 26)], [(20, 24)], ['stable']),
    ([], [(20, 24)], ['new']),
    ([(20, 24)], [], ['gone']),
    ([], [], []),
    ([(20, 34)], [(20, 26), (28, 34)], ['split']),
    ([(20, 26), (28, 34)], [(20, 34)], ['merged']),
    ([(10, 20), (22, 32)], [(10, 15), (17, 27), (29, 32)], ['regrouped']),
    ([(20, 24)], [(27, 31)], ['stable']),  # 4 mm apart: the same
    ([(20, 24)], [(29, 33)], ['new', 'gone']),  # 6 mm
    # The nearest are the same, the other is new.
    ([(20, 24)], [(12, 16), (26, 30)], ['new', 'stable']),
    # Neighbours that touch each other a bit stay apart.
    ([(10, 21), (23, 34)], [(12, 23), (25, 36)], ['stable', 'stable']),
  ],
)
def test_what_becomes_of_lesions_in_a_row(earlier, later, kinds):
  [found] = follow(row(*earlier), row(*later))
  told = [change.kind for change in changes.in_order(found.lesions)]
  assert told == kinds
  # Swapped, everything is the other way round.
  [found] = follow(row(*later), row(*earlier))
  other = {
    'new': 'gone', 'gone': 'new', 'grown': 'shrunk', 'shrunk': 'grown',
    'split': 'merged', 'merged': 'split',
  }  # fmt: skip
  swapped = sorted(other.get(kind, kind) for kind in kinds)
  assert sorted(change.kind for change in found.lesions) == swapped


def test_volumes_are_those_of_the_measurements_of_each_image():
  """On grids of other voxels, moved, against each image by itself."""
  motion = motion_of((5, -8, 10), (6, -4, 9))
  balls = {
    'stable': (((-15, 8, 0), 5.0), ((-15, 8, 0), 5.2)),
    'grown': (((12, 8, 6), 4.0), ((12, 8, 6), 5.5)),
    'shrunk': (((12, -10, -6), 6.0), ((12, -10, -6), 4.5)),
    'gone': (((-5, -14, 10), 4.0), None),
    'new': (None, ((0, 12, -16), 4.0)),
  }
  earlier = time_point(
    [then for then, _ in balls.values() if then], spacing=(3, 1, 1),
    shape=(24, 80, 80),
  )  # fmt: skip
  later = time_point(
    [now for _, now in balls.values() if now], spacing=(1, 1.5, 1.5),
    shape=(90, 60, 60), motion=motion,
  )  # fmt: skip
  [found] = follow(earlier, later, motion)
  kinds = [change.kind for change in found.lesions]
  assert sorted(kinds) == sorted(balls)
  measured = [
    measurements.measure(p.label, p.image, p.affine, indices=(1,), lesions=True)
    for p in (earlier, later)
  ]
  for own, whole in zip((found.earlier, found.later), measured, strict=True):
    assert [(one.voxels, one.centroid) for one in own.measured] == [
      (one.voxels, one.centroid) for one in whole.lesions
    ]
  assert [one.volume for one in found.whole] == [one.volume for one in measured]
  for change in found.lesions:
    for t, (numbers, volume) in enumerate(
      zip((change.earlier, change.later), change.volumes, strict=True)
    ):
      own = [measured[t].lesions[i].volume for i in numbers]
      assert volume == pytest.approx(sum(own))
      if own and (ball := balls[change.kind][t]):
        sphere = 4 / 3 * np.pi * ball[1] ** 3 / 1000
        assert volume == pytest.approx(sphere, rel=0.1)


def test_what_the_other_image_does_not_reach_is_neither_new_nor_gone():
  balls = [((0, 0, 24), 5.0), ((0, 0, -24), 5.0), ((0, 0, 0), 5.0)]
  above = time_point(balls, shape=(24, 40, 40), middle=(0, 0, 12))
  below = time_point(balls, shape=(24, 40, 40), middle=(0, 0, -12))
  [found] = follow(above, below)
  assert sorted(change.kind for change in found.lesions) == [
    'not imaged', 'not imaged', 'stable'
  ]  # fmt: skip
  # Cut by the border of one image, both volumes are not of the same.
  cut = time_point(balls[:1], shape=(24, 40, 40), middle=(0, 0, 1))
  [found] = follow(above._replace(label=above.label * 0), cut)
  [change] = found.lesions
  assert change.kind == 'new' and 'border of the later' in change.remarks[0]
  [found] = follow(time_point(balls[:1]), cut)
  [change] = found.lesions
  assert (change.kind, change.trend, change.percent) == (
    'not comparable', '', None
  )  # fmt: skip
  assert 'lies outside the later image' in ' '.join(change.remarks)


def test_a_change_within_the_intervals_of_the_model_is_none():
  earlier, later = row((20, 24)), row((20, 28))
  [found] = follow(earlier, later, interval=lambda name, v: (0.5 * v, 1.5 * v))
  assert (found.change.kind, found.change.percent) == (
    'stable', pytest.approx(100)
  )  # fmt: skip
  assert found.change.remarks[-1] == 'the intervals of the two volumes overlap'
  [found] = follow(earlier, later, interval=lambda name, v: (0.9 * v, 1.1 * v))
  assert found.change.kind == 'grown'
  assert found.intervals[0] == pytest.approx((0.0324, 0.0396))


def test_classes_that_are_no_lesions_are_followed_as_a_whole():
  earlier, later = row((10, 14), (20, 24)), row((10, 18), (20, 28))
  [found] = follow(earlier, later, structures=((ORGAN, (1,)),))
  assert (found.change.kind, found.lesions) == ('grown', ())
  assert found.change.volumes == (0.072, 0.144)
  [nothing] = follow(row(), row(), structures=((ORGAN, (1,)),))
  assert nothing.change.kind == 'absent'


def test_the_doubling_time_is_that_of_exponential_growth():
  [found] = follow(row((20, 24)), row((20, 36)))
  [change] = found.lesions
  days = changes.doubling_days(change, 100)
  assert 36 * 2 ** (100 / days) == pytest.approx(4 * 36)
  assert changes.doubling_days(change, None) is None
  assert changes.doubling_days(change._replace(trend='stable'), 100) is None


def test_many_lesions_are_matched_as_one_by_one():
  """Against the definition, pair by pair, on masks of noise."""
  rng = np.random.default_rng(0)
  points = []
  for shape in ((12, 30, 28), (14, 26, 32)):
    label = (rng.random(shape) < 0.03).astype(np.int16)
    image = np.zeros((*shape, 1))
    points.append(TimePoint(image, label, affine_of(shape, (2, 1, 1))))
  lesions = [
    measurements.measure_lesions(p.label, p.image, p.affine, indices=(1,))
    for p in points
  ]
  pairs = [*zip(lesions, points, strict=True)]
  groups = matching.match(*pairs, np.eye(4), match_mm=1.5)
  assert sorted(i for g in groups for i in g.earlier) == [
    *range(len(lesions[0].measured))
  ]
  assert sorted(j for g in groups for j in g.later) == [
    *range(len(lesions[1].measured))
  ]
  own, theirs = (matching.places_of(*pair) for pair in pairs)
  together = {(i, j) for g in groups for i in g.earlier for j in g.later}
  near = touching = 0
  for i, a in enumerate(own):
    for j, b in enumerate(theirs):
      gap = np.linalg.norm(a[:, None] - b[None], axis=-1).min()
      if gap == 0:  # voxels of both grids lie at the same places
        assert (i, j) in together
        touching += 1
      near += 0 < gap <= 1.5
  alone = [g for g in groups if g.gap]
  assert near > len(alone) > 5 and touching > 5
  for group in alone:
    [i], [j] = group.earlier, group.later
    gaps = np.linalg.norm(own[i][:, None] - theirs[j][None], axis=-1)
    assert group.gap == pytest.approx(gaps.min()) and 0 < group.gap <= 1.5


def test_json_and_table_tell_the_same():
  earlier, later = row((10, 20), (30, 34)), row((10, 14), (16, 20), (50, 52))
  found = follow(earlier, later, structures=((LESION, (1,)), (ORGAN, (2,))))
  motion = motion_of((0, 0, 10), (1, 2, 3))
  told = report.to_json(
    found, GOOD, motion, channels=('a',), days=30, warnings=['odd'], about={}
  )
  json.dumps(told, allow_nan=False)
  lps = np.array(told['registration']['earlier_to_later_lps_mm'])
  point = np.array([10.0, 20.0, 30.0])
  right, anterior, superior = (motion @ [*point, 1])[:3]
  np.testing.assert_allclose(
    (lps @ [-10, -20, 30, 1])[:3], (-right, -anterior, superior), rtol=1e-5
  )
  lesion, organ = told['structures']
  assert lesion['number'] == {'new': 1, 'split': 1, 'gone': 1}
  assert (organ['change'], 'changes' in organ) == ('absent', False)
  rows = [*csv.DictReader(io.StringIO(report.to_csv(told)))]
  assert [
    (r['change'], r['earlier_lesions'], r['later_lesions']) for r in rows
  ] == [
    ('stable', '', ''),
    ('new', '', '3'),
    ('split', '1', '1 2'),
    ('gone', '2', ''),
    ('absent', '', ''),
  ]
  assert (rows[2]['trend'], rows[2]['later_ml']) == ('stable', '0.072')
  lines = [*report.to_lines(told)]
  assert lines[3].split() == [
    'E1', '>', 'L1,', 'L2', 'split', '0.09', '0.072', '-20', '%'
  ]  # fmt: skip
