"""Two time points in, all files of a follow-up out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medseg_jax.clinic import measurements
from medseg_jax.clinic.codes import Meaning
from medseg_jax.clinic.followup import (
  changes,
  matching,
  page,
  pictures,
  quality,
  registration,
  report,
)
from medseg_jax.clinic.followup.changes import Change, Followed, Interval
from medseg_jax.clinic.followup.quality import Quality
from medseg_jax.clinic.followup.time_point import (
  Floats,
  TimePoint,
  inverse,
  mapped,
)
from medseg_jax.clinic.followup.working_grid import working_grid

_MOST_PICTURES = 60  # of some 50 kB


class Comparison(NamedTuple):
  """What a follow-up has found.

  Attributes:
    report: see `report.to_json`.
    page: HTML.
    table: CSV.
  """

  report: dict[str, Any]
  page: str
  table: str


def compare(
  earlier: TimePoint,
  later: TimePoint,
  *,
  structures: Sequence[tuple[Meaning, Sequence[int]]],
  interval: Interval,
  growth_percent: float,
  match_mm: float,
  days: int | None,
  warnings: Sequence[str],
  about: Mapping[str, Any],
) -> Comparison:
  """Returns what has changed, with the quality of the registration.

  Args:
    earlier: image and mask.
    later: likewise.
    structures: see `changes.follow`; likewise the next three.
    interval: of a structure's name and its volume.
    growth_percent: what counts as grown.
    match_mm: what counts as the same place.
    days: between the two.
    warnings: lines of what is not to be trusted, those of the registration
      are added.
    about: what the report is to tell besides.
  """
  motion, found = registered(earlier, later, structures)
  followed = changes.follow(
    earlier, later, motion, structures=structures, interval=interval,
    growth_percent=growth_percent, match_mm=match_mm,
  )  # fmt: skip
  channels = [f'channel_{i}' for i in range(earlier.image.shape[-1])]
  told = report.to_json(
    followed, found, motion, channels=channels, days=days,
    warnings=[*warnings, *quality.warnings_of(found, match_mm)],
    about={
      **about,
      'settings': {'growth_percent': growth_percent, 'match_mm': match_mm},
    },
  )  # fmt: skip
  written = page.write_page(
    told,
    overview=_overview(earlier, later, motion, structures),
    pictures=[*_pictures((earlier, later), motion, followed, structures)],
    number=sum(len(_shown_of(one)) for one in followed),
  )
  return Comparison(told, written, report.to_csv(told))


def registered(
  earlier: TimePoint,
  later: TimePoint,
  structures: Sequence[tuple[Meaning, Sequence[int]]],
) -> tuple[Floats, Quality]:
  """Returns the motion between two time points, and how good it is."""
  grids = working_grid(earlier), working_grid(later)
  found = registration.register(*grids)
  motion = found.motion
  scores = {
    meaning.name: quality.dice_of(earlier, later, motion, indices)
    for meaning, indices in structures
    if not meaning.lesion
  }
  return motion, Quality(
    quality.likeness(*grids, np.eye(4)),
    quality.likeness(*grids, motion),
    quality.rotation_of(motion),
    quality.shift_of(motion, grids[0].centre),
    found.consistency,
    found.began_with,
    {name: dice for name, dice in scores.items() if dice is not None},
  )


def _overview(
  earlier: TimePoint,
  later: TimePoint,
  motion: Floats,
  structures: Sequence[tuple[Meaning, Sequence[int]]],
) -> list[str]:
  indices = [index for _, of in structures for index in of]
  shown = tuple(
    pictures.Shown(point, pictures.window_of(point), None, indices)
    for point in (earlier, later)
  )
  middle = (np.array(earlier.label.shape) - 1) / 2
  there = earlier.to_world([middle])[0]
  return [
    pictures.overview((shown[0], shown[1]), motion, axis=axis, middle=there)
    for axis in range(3)
  ]


def _shown_of(one: Followed) -> Sequence[Change]:
  """Returns what there are pictures of: lesions, or the whole."""
  if not one.meaning.lesion:
    return () if one.change.kind == changes.ABSENT else (one.change,)
  return changes.in_order(one.lesions)


def _pictures(
  points: tuple[TimePoint, TimePoint],
  motion: Floats,
  followed: Sequence[Followed],
  structures: Sequence[tuple[Meaning, Sequence[int]]],
) -> Iterator[page.Picture]:
  """Yields a picture of each change, at the middle of what is largest."""
  axis = measurements.slice_axis(points[0].affine)
  windows = [pictures.window_of(point) for point in points]
  left = _MOST_PICTURES
  for one, (_, indices) in zip(followed, structures, strict=True):
    wanted = _shown_of(one)[:left]
    left -= len(wanted)
    found = _places(one, indices, points, motion) if wanted else ((), ())
    for change in wanted:
      name = one.meaning.name
      sides: tuple[Sequence[int], Sequence[int]] = ((0,), (0,))
      if one.meaning.lesion:
        sides = change.earlier, change.later
        name += ' ' + report.letters_of(
          *([i + 1 for i in side] for side in sides)
        )
      first, second = (
        pictures.Shown(point, window, of, indices if of is None else chosen)
        for point, window, of, chosen in zip(
          points, windows, (one.earlier, one.later), sides, strict=True
        )
      )
      places = [
        found[t][i] for t in (0, 1) for i in sides[t] if len(found[t][i])
      ]
      largest = max(places, key=len)
      middle = (largest.min(0) + largest.max(0)) / 2
      # What is bent may have its middle outside: a voxel of it is shown.
      middle = largest[np.linalg.norm(largest - middle, axis=1).argmin()]
      source = pictures.pair(
        (first, second), motion, axis=axis, middle=middle,
        reach=pictures.reach_of(np.concatenate(places)),
      )  # fmt: skip
      yield page.Picture(f'{name}: {change.kind}', source)


def _places(
  one: Followed,
  indices: Sequence[int],
  points: tuple[TimePoint, TimePoint],
  motion: Floats,
) -> tuple[Sequence[Floats], Sequence[Floats]]:
  """Returns mm `[n, 3]` of each lesion, or of the whole, then and now.

  All at the earlier time point.
  """
  of_each: list[tuple[Floats, ...]] = []
  for point, lesions in zip(points, (one.earlier, one.later), strict=True):
    if lesions is None:
      voxels = np.argwhere(np.isin(point.label, list(indices)))
      of_each.append((point.to_world(voxels),))
    else:
      of_each.append(matching.places_of(lesions, point))
  back = inverse(motion)
  return of_each[0], tuple(mapped(places, back) for places in of_each[1])
