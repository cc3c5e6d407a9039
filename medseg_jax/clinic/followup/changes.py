"""What has become of each structure, and of each lesion, between two times."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.clinic import measurements
from medseg_jax.clinic.codes import Meaning
from medseg_jax.clinic.followup import matching
from medseg_jax.clinic.followup.time_point import (
  Floats,
  TimePoint,
  inverse,
  mapped,
)
from medseg_jax.clinic.measurements import Lesions, Measured

NEW, GONE, SPLIT, MERGED = 'new', 'gone', 'split', 'merged'
REGROUPED = 'regrouped'  # several have become several others
GROWN, SHRUNK, STABLE = 'grown', 'shrunk', 'stable'
NOT_IMAGED = 'not imaged'  # the other image does not reach there
NOT_COMPARABLE = 'not comparable'  # an image ends in it
ABSENT = 'absent'  # both times
# Which are told first.
KINDS = (
  *(NEW, GROWN, MERGED, SPLIT, REGROUPED, STABLE, SHRUNK, GONE),
  *(NOT_COMPARABLE, NOT_IMAGED, ABSENT),
)
_IMAGED = 0.5  # share of a lesion that an image has to hold to have missed it
_CUT = 0.01  # share beyond the other image with which volumes differ by that
_SMALL_MM = 10.0  # below it RECIST 1.1 measures no lesion

# The least and the largest volume of a structure, () where nothing tells.
Interval = Callable[[str, float], tuple[float, ...]]


class Change(NamedTuple):
  """What has become of one structure as a whole, or of a group of lesions.

  Attributes:
    kind: one of `KINDS`.
    trend: grown, shrunk or stable by the sum of the volumes; '' where there is
      no such sum, or an image does not hold all of it.
    earlier: numbers, from 0, of the lesions then; () of a whole structure.
    later: likewise.
    volumes: ml then and now, sums of these lesions.
    gap: mm between lesions that were matched by their distance, else 0.
    remarks: what a reader has to know besides.
  """

  kind: str
  trend: str
  earlier: tuple[int, ...]
  later: tuple[int, ...]
  volumes: tuple[float, float]
  gap: float = 0.0
  remarks: tuple[str, ...] = ()

  @property
  def percent(self) -> float | None:
    """Change of the volume; None from nothing, or where there is no trend."""
    before, after = self.volumes
    return 100 * (after / before - 1) if self.trend and before else None


class Followed(NamedTuple):
  """A structure at both times.

  Attributes:
    meaning: of it.
    whole: as a whole, at the earlier and at the later time point.
    intervals: ml, that hold the true volumes; () where nothing tells.
    change: of the whole.
    earlier: its lesions then, where it is one.
    later: likewise.
    lesions: what has become of them.
  """

  meaning: Meaning
  whole: tuple[Measured, Measured]
  intervals: tuple[tuple[float, ...], tuple[float, ...]]
  change: Change
  earlier: Lesions | None = None
  later: Lesions | None = None
  lesions: tuple[Change, ...] = ()


def follow(
  earlier: TimePoint,
  later: TimePoint,
  motion: Floats,
  *,
  structures: Sequence[tuple[Meaning, Sequence[int]]],
  interval: Interval,
  growth_percent: float,
  match_mm: float,
) -> tuple[Followed, ...]:
  """Returns what has become of each structure.

  Volumes and diameters are those of each image's own voxels; the motion only
  says which lesions are the same.

  Args:
    earlier: image and mask.
    later: likewise.
    motion: see `registration`.
    structures: what they are, and the classes of each.
    interval: of a structure's name and its volume.
    growth_percent: more than this has grown, and what would grow by more if
      the two times were swapped has shrunk.
    match_mm: see `matching.match`.
  """
  return tuple(
    _followed(
      (earlier, later), motion, meaning, indices, interval,
      growth_percent=growth_percent, match_mm=match_mm,
    )
    for meaning, indices in structures
  )  # fmt: skip


def in_order(found: Sequence[Change]) -> list[Change]:
  """Returns them in the order of `KINDS`, the largest of each first."""
  return sorted(found, key=lambda change: KINDS.index(change.kind))


def trend_of(before: float, after: float, growth_percent: float) -> str:
  """Returns whether a volume, then and now, has grown, shrunk or is stable."""
  most = 1 + growth_percent / 100
  if after > before * most:
    return GROWN
  return SHRUNK if before > after * most else STABLE


def doubling_days(change: Change, days: int | None) -> float | None:
  """Returns the days in which the volume doubles, None where it has not grown.

  By exponential growth (Schwartz 1961, doi:10.1002/1097-0142(196111/12)14:6
  <1272::AID-CNCR2820140618>3.0.CO;2-H).

  Args:
    change: what has grown.
    days: between the two.
  """
  before, after = change.volumes
  if change.trend != GROWN or not days or days < 0 or not before:
    return None
  return days * math.log(2) / math.log(after / before)


def _followed(
  points: tuple[TimePoint, TimePoint],
  motion: Floats,
  meaning: Meaning,
  indices: Sequence[int],
  interval: Interval,
  *,
  growth_percent: float,
  match_mm: float,
) -> Followed:
  first, second = (
    measurements.measure(p.label, p.image, p.affine, indices=indices)
    for p in points
  )
  ways = motion, inverse(motion)
  others = points[::-1]
  shares = [
    _share_imaged(_places(point, indices), way, other)
    for point, way, other in zip(points, ways, others, strict=True)
  ]
  intervals = (
    interval(meaning.name, first.volume),
    interval(meaning.name, second.volume),
  )
  change = _change(
    matching.Group((0,) if first.voxels else (), (0,) if second.voxels else ()),
    ((first,), (second,)),
    ([shares[0]], [shares[1]]),
    growth_percent,
  )
  change = _within(change, intervals)._replace(earlier=(), later=())
  followed = Followed(meaning, (first, second), intervals, change)
  if not meaning.lesion:
    return followed
  found = [
    measurements.measure_lesions(p.label, p.image, p.affine, indices=indices)
    for p in points
  ]
  imaged = [
    [_share_imaged(own, way, other) for own in matching.places_of(one, point)]
    for one, point, way, other in zip(found, points, ways, others, strict=True)
  ]
  groups = matching.match(
    (found[0], points[0]), (found[1], points[1]), motion, match_mm=match_mm
  )
  return followed._replace(
    earlier=found[0],
    later=found[1],
    lesions=tuple(
      _change(
        group,
        (found[0].measured, found[1].measured),
        (imaged[0], imaged[1]),
        growth_percent,
      )
      for group in groups
    ),
  )


def _places(point: TimePoint, indices: Sequence[int]) -> Floats:
  """Returns the voxels `[n, 3]` of some classes, mm."""
  return point.to_world(np.argwhere(np.isin(point.label, list(indices))))


def _share_imaged(places: Floats, way: Floats, other: TimePoint) -> float:
  """Returns the share of places that lies in the other image; 1 of none."""
  if not len(places):
    return 1.0
  return float(other.holds(mapped(places, way)).mean())


def _change(
  group: matching.Group,
  measured: tuple[Sequence[Measured], Sequence[Measured]],
  imaged: tuple[Sequence[float], Sequence[float]],
  growth_percent: float,
) -> Change:
  """Returns what has become of a group.

  Args:
    group: indices of these.
    measured: all lesions, then and now.
    imaged: the share of each that the other image holds.
    growth_percent: see `follow`.
  """
  sides = group.earlier, group.later
  own = [[measured[t][i] for i in sides[t]] for t in (0, 1)]
  volumes = sum(one.volume for one in own[0]), sum(one.volume for one in own[1])
  remarks = _cuts(group, measured, imaged)
  trend = ''
  if all(own) and not remarks:
    trend = trend_of(*volumes, growth_percent)
  kind = trend or NOT_COMPARABLE
  if not any(own):
    kind = ABSENT
  elif not all(own):
    seen = max(imaged[t][i] for t in (0, 1) for i in sides[t])
    kind = NEW if own[1] else GONE
    if seen < _IMAGED:
      kind = NOT_IMAGED
  elif max(map(len, sides)) > 1:
    kind = SPLIT if len(own[0]) == 1 else MERGED
    kind = REGROUPED if min(map(len, sides)) > 1 else kind
  if group.gap:
    remarks.append(
      f'matched by distance alone: {group.gap:.1f} mm apart, no overlap'
    )
  longest = [
    one.diameters.longest for both in own for one in both if one.diameters
  ]
  if longest and max(longest) < _SMALL_MM:
    remarks.append(f'below {_SMALL_MM:g} mm, too small to be measured reliably')
  return Change(
    kind, trend, *sides, (volumes[0], volumes[1]), group.gap, tuple(remarks)
  )


def _cuts(
  group: matching.Group,
  measured: tuple[Sequence[Measured], Sequence[Measured]],
  imaged: tuple[Sequence[float], Sequence[float]],
) -> list[str]:
  """Returns how images do not hold all of a group."""
  remarks = []
  names = 'earlier', 'later'
  for t, side in enumerate((group.earlier, group.later)):
    if any(measured[t][i].at_border for i in side):
      remarks.append(
        f'at the border of the {names[t]} image: may go on beyond it'
      )
    if side and (beyond := 1 - min(imaged[t][i] for i in side)) > _CUT:
      remarks.append(
        f'{beyond:.0%} of it lies outside the {names[1 - t]} image'
      )
  return remarks


def _within(
  change: Change, intervals: tuple[tuple[float, ...], tuple[float, ...]]
) -> Change:
  """Returns the change of a whole, stable where the model cannot tell one."""
  if change.kind not in (GROWN, SHRUNK) or not all(intervals):
    return change
  (low, high), (other_low, other_high) = intervals
  if max(low, other_low) > min(high, other_high):
    return change
  return change._replace(
    kind=STABLE,
    trend=STABLE,
    remarks=(*change.remarks, 'the intervals of the two volumes overlap'),
  )
