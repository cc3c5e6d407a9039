"""Frames that form a volume, in the order of their positions.

Frames belong together that agree in study, series, directions, size and pixel
spacing. They are ordered by their position along the normal: numbers and names
of files say nothing. Where several lie at one position they are phases of one
examination, told apart by the fewest attributes that separate them all.
"""

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from medseg_jax.data.formats.dicom.frames import PHASES, Frame
from medseg_jax.runtime.errors import InputError, counted

# Cosines of directions, and mm of positions and of pixels, that count as one.
_SAME_DIRECTION, _SAME_PLACE, _SAME_SPACING = 1e-4, 1e-2, 1e-4
# How far gaps may be off their median, a share, and slices off even ones, mm.
_UNEVEN, _DRIFT = 0.01, 0.1
_SHARE = 0.1  # of a gap that one with missing slices may be off a multiple


class Series(NamedTuple):
  """A volume `[n, rows, columns]` of slices.

  Attributes:
    frames: `n` of them, along the normal: the cross product of the directions.
    phase: what tells it from others of its series, '' where nothing does.
    notes: a line for each thing that was left out or is odd.
    reason: why it cannot be read, '' where it can.
  """

  frames: tuple[Frame, ...]
  phase: str = ''
  notes: tuple[str, ...] = ()
  reason: str = ''

  @property
  def first(self) -> Frame:
    return self.frames[0]

  @property
  def name(self) -> str:
    """What a person knows it by: number, description, kind and size."""
    header = self.first.header
    number = str(header.get('SeriesNumber', ''))
    number = '' if number == 'None' else number
    description = str(header.get('SeriesDescription') or '').strip()
    size = 'x'.join(map(str, (*self.first.shape[::-1], len(self.frames))))
    words = [number, description, self.phase, str(header.get('Modality', ''))]
    return ' '.join(word for word in (*words, size) if word)

  @property
  def affine(self) -> np.ndarray:
    """`[4, 4]` float64, index (column, row, slice) to mm, left and posterior.

    The slices are evenly spread between the first and the last, also where they
    are shifted against each other, as by a tilted gantry; those that are
    missing count, too.
    """
    first = self.first
    affine = np.eye(4)
    affine[:3, 0] = first.row_direction * first.pixel_spacing[1]
    affine[:3, 1] = first.column_direction * first.pixel_spacing[0]
    if len(self.frames) > 1:
      along = self.frames[-1].position - first.position
      affine[:3, 2] = along / self.places[-1]
    affine[:3, 3] = first.position
    return affine

  @property
  def places(self) -> tuple[int, ...]:
    """The number of each slice from 0, where those that are missing count."""
    if len(self.frames) > 1 and not self.reason:
      gaps, gap = _gaps(self.frames)
      steps = np.rint(gaps / gap).astype(int)
      if (np.abs(gaps / gap - steps) < _SHARE).all() and steps.all():
        return (0, *np.cumsum(steps).tolist())
    return tuple(range(len(self.frames)))

  @property
  def missing(self) -> tuple[int, ...]:
    """The numbers that no slice has, of those of `places`."""
    places = self.places
    return tuple(sorted({*range(places[-1])} - {*places}))

  def position_of(self, place: int) -> np.ndarray:
    """Returns where a slice has its first pixel, `[3]` mm, a missing one too.

    Args:
      place: its number, see `places`.
    """
    affine = self.affine
    return affine[:3, 3] + place * affine[:3, 2]


def series_of(
  frames: Sequence[Frame], pixels_of: Callable[[Frame], np.ndarray]
) -> list[Series]:
  """Returns the volumes that frames form, by study, series and phase.

  Args:
    frames: of any files, in any order.
    pixels_of: reads what a frame holds; asked for only of those at one place
      that nothing else tells apart.
  """
  found = []
  for group in _alike(frames):
    ordered = sorted(group, key=lambda f: (_height(f, group[0]), str(f.path)))
    try:
      kept, notes = _without_copies(ordered, pixels_of)
      found += [
        Series(tuple(phase), name, tuple(notes))
        for name, phase in _phases(kept)
      ]
    except InputError as error:  # it costs none of the others
      found.append(Series(tuple(ordered), reason=str(error)))
  return sorted(found, key=_key)


def _key(series: Series) -> tuple:
  header = series.first.header
  number = str(header.get('SeriesNumber', ''))
  first = series.first
  return first.study, int(number) if number.isdigit() else -1, first.series


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
  groups: list[list[Frame]] = []
  by_key: dict[tuple, list[list[Frame]]] = collections.defaultdict(list)
  for frame in frames:
    own = by_key[frame.study, frame.series, frame.shape]
    for group in own:
      if _same_plane(frame, group[0]):
        group.append(frame)
        break
    else:
      own.append([frame])
      groups.append(own[-1])
  return groups


def _same_plane(a: Frame, b: Frame) -> bool:
  directions = (
    np.abs(a.row_direction - b.row_direction).max(),
    np.abs(a.column_direction - b.column_direction).max(),
  )
  return max(directions) < _SAME_DIRECTION and np.allclose(
    a.pixel_spacing, b.pixel_spacing, rtol=0, atol=_SAME_SPACING
  )


def _height(frame: Frame, first: Frame) -> float:
  """Returns where a frame lies along the normal of the group's first, mm."""
  normal = np.cross(first.row_direction, first.column_direction)
  return float(normal @ frame.position)


def _places(frames: Sequence[Frame]) -> list[list[Frame]]:
  """Returns frames, which are in order, by their position."""
  places: list[list[Frame]] = []
  for frame in frames:
    if places and (
      abs(_height(frame, frames[0]) - _height(places[-1][0], frames[0]))
      < _SAME_PLACE
    ):
      places[-1].append(frame)
    else:
      places.append([frame])
  return places


def _without_copies(
  frames: Sequence[Frame], pixels_of: Callable[[Frame], np.ndarray]
) -> tuple[list[Frame], list[str]]:
  """Returns each image at a place once, and a line for each copy."""
  kept, notes = [], []
  for place in _places(frames):
    if len(place) == 1:
      kept += place
      continue
    known: dict[tuple, Frame] = {}
    alike = collections.Counter((f.phase, f.rescale) for f in place)
    for frame in place:
      digest = b''
      if alike[frame.phase, frame.rescale] > 1:
        digest = hashlib.sha256(pixels_of(frame).tobytes()).digest()
      key = (digest, frame.phase, frame.rescale)
      if key in known:
        notes.append(
          f'{frame.path}: the same slice as {known[key].path}; left out'
        )
      else:
        known[key] = frame
        kept.append(frame)
  return kept, notes


def _phases(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
  """Returns the frames by phase, one at each position.

  Raises:
    InputError: two frames at one position are told apart by nothing.
  """
  places = _places(frames)
  most = max(map(len, places))
  if most == 1:
    return [('', list(frames))]
  # Last where an attribute is missing in some, as images without diffusion
  # weighting may have no b-value.
  for also_none, chosen in itertools.product((False, True), _choices()):
    own = [[_phase(frame, chosen) for frame in place] for place in places]
    values = {value for place in own for value in place}
    # As many as the fullest place has, so that what each slice has of its own,
    # such as its time, is none; a phase may lack slices.
    if (
      len(values) == most
      and all(len({*place}) == len(place) for place in own)
      and (also_none or not any(None in value for value in values))
    ):
      split: dict[tuple, list[Frame]] = {value: [] for value in values}
      for frame in frames:
        split[_phase(frame, chosen)].append(frame)
      names = [PHASES[i] for i in chosen]
      return [
        (' '.join(map(_value_text, names, value)), split[value])
        for value in sorted(values, key=_in_order)
      ]
  one, other = max(places, key=len)[:2]
  also = other.path
  if one.path == other.path:
    also = f'frame {other.number + 1}, as frame {one.number + 1},'
  raise InputError(
    f'{one.path}: {also} lies at the same position '
    f'{_text(one.position)} and has other pixels, and none of '
    f'{", ".join(PHASES)} tells their series apart; allowed is one slice at '
    'each position: move the others away'
  )


def _choices() -> Iterator[tuple[int, ...]]:
  """Yields numbers of `PHASES`: each alone, then each pair, and so on."""
  for count in range(1, len(PHASES) + 1):
    yield from itertools.combinations(range(len(PHASES)), count)


def _phase(frame: Frame, chosen: Sequence[int]) -> tuple[Any, ...]:
  return tuple(frame.phase[i] for i in chosen)


def _value_text(name: str, value: Any) -> str:
  if value is None:
    return f'without {name}'
  return f'{name} {value:g}' if isinstance(value, float) else f'{name} {value}'


def _in_order(value: tuple[Any, ...]) -> list[tuple[Any, ...]]:
  """Returns what sorts nothing first, then numbers by size, then words."""
  return [
    (part is not None, isinstance(part, str), part or 0) for part in value
  ]


def _gaps(frames: Sequence[Frame]) -> tuple[np.ndarray, float]:
  """Returns mm from each slice to the next, along the normal, their median."""
  gaps = np.diff([_height(frame, frames[0]) for frame in frames])
  return gaps, float(np.median(gaps))


def check_even(series: Series, *, allow_gaps: bool = False) -> None:
  """Raises InputError where slices are missing, doubled or unevenly spread.

  The gap is the median of the gaps, never SliceThickness.

  Args:
    series: any.
    allow_gaps: whether slices may be missing.
  """
  if series.reason:
    raise InputError(series.reason)
  frames = series.frames
  where = f'{series.first.path.parent}, series {series.name}'
  if len(frames) < 2:
    raise InputError(
      f'{where}: a single slice; allowed is a volume of two or more'
    )
  gaps, gap = _gaps(frames)
  places = series.places
  for i in np.flatnonzero(np.abs(gaps - gap) > _UNEVEN * gap):
    missing = round(gaps[i] / gap) - 1
    between = f'{frames[i].path.name} and {frames[i + 1].path.name}'
    if missing > 0 and abs(gaps[i] / gap - missing - 1) < _SHARE:
      if allow_gaps and places[i + 1] - places[i] == missing + 1:
        continue
      place = frames[i].position + (
        frames[i + 1].position - frames[i].position
      ) / (missing + 1)
      raise InputError(
        f'{where}: {counted(missing, "slice")} missing between {between}, the '
        f'first at {_text(place)} mm; allowed is a whole series, or with '
        '--config.data.allow_gaps=true one whose gaps are filled for the '
        'network'
      )
    raise InputError(
      f'{where}: {between} are {gaps[i]:.4g} mm apart, but its slices mostly '
      f'{gap:.4g} mm; allowed are slices at even distances'
    )
  even = np.array([series.position_of(place) for place in places])
  found = np.array([frame.position for frame in frames])
  drift = np.linalg.norm(found - even, axis=1)
  if (i := int(drift.argmax())) is not None and drift[i] > _DRIFT:
    raise InputError(
      f'{where}: {frames[i].path.name} lies {drift[i]:.3g} mm beside the line '
      'through the first and the last slice; allowed are up to '
      f'{_DRIFT:g} mm'
    )


def _text(position: np.ndarray) -> str:
  """Returns, say, (1.00, 2.50, -3.00)."""
  return '({})'.format(', '.join(f'{x:.2f}' for x in position))
