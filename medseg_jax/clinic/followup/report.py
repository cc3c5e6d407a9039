"""What a follow-up has found: JSON, a table, and lines to print."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medseg_jax.clinic.followup import changes
from medseg_jax.clinic.followup.changes import Change, Followed
from medseg_jax.clinic.followup.quality import Likeness, Quality
from medseg_jax.clinic.followup.time_point import Floats
from medseg_jax.clinic.numbers import WARNING, of_object, rounded

_FORMAT = 1  # of the JSON
_TIMES = ('earlier', 'later')
_COLUMNS = (
  *('structure', 'change', 'trend', 'earlier_lesions', 'later_lesions'),
  *('earlier_ml', 'later_ml', 'change_percent', 'doubling_days'),
  *('earlier_longest_mm', 'later_longest_mm', 'gap_mm', 'remarks'),
)


def to_json(
  followed: Sequence[Followed],
  quality: Quality,
  motion: Floats,
  *,
  channels: Sequence[str],
  days: int | None,
  warnings: Sequence[str],
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns all that is told, as JSON has it.

  Args:
    followed: every structure.
    quality: of the registration.
    motion: see `registration`.
    channels: names of the images'.
    days: between the two; None where nothing tells.
    warnings: lines of what is not to be trusted.
    about: what else is to be told: cases, model, settings.
  """
  to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
  flipped = to_lps @ motion @ to_lps
  return {
    'format': _FORMAT,
    'warning': WARNING,
    **about,
    'days': days,
    'registration': {
      'earlier_to_later_lps_mm': [
        [rounded(float(x)) for x in row] for row in flipped
      ],
      'rotation_degrees': rounded(quality.rotation),
      'shift_lps_mm': [rounded(x) for x in quality.shift],
      'began_with': quality.began_with,
      'consistency_mm': _maybe(quality.consistency),
      'before': _likeness(quality.before),
      'after': _likeness(quality.after),
      'dice': {name: rounded(x) for name, x in quality.dice.items()},
    },
    'warnings': list(warnings),
    'structures': [_structure(one, channels, days) for one in followed],
  }


def to_csv(report: Mapping[str, Any]) -> str:
  """Returns a row for each structure and each group of its lesions.

  Args:
    report: as `to_json` returns it.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(_COLUMNS)
  for structure in report['structures']:
    for change in (structure, *structure.get('changes', ())):
      writer.writerow(
        [
          structure['name'],
          change['change'],
          change['trend'],
          *(' '.join(map(str, change.get(f'{t}_lesions', ()))) for t in _TIMES),
          *('' if x is None else x for x in change['volume_ml']),
          *('' if x is None else x for x in _rest(change)),
          *('' if x is None else x for x in longest(structure, change)),
          change.get('gap_mm') or '',
          '; '.join(change['remarks']),
        ]
      )
  return text.getvalue()


def to_lines(report: Mapping[str, Any]) -> Iterator[str]:
  """Yields a table for people, one row for each structure and each change."""
  rows = [('', 'change', 'earlier, ml', 'later, ml', 'difference')]
  for structure in report['structures']:
    for change in (structure, *structure.get('changes', ())):
      percent = change['change_percent']
      rows.append(
        (
          name_of(structure, change),
          change['change'],
          *(f'{x:.4g}' for x in change['volume_ml']),
          '' if percent is None else f'{percent:+.0f} %',
        )
      )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for name, change, *cells in rows:
    text = '  '.join(x.rjust(w) for x, w in zip(cells, widths[2:], strict=True))
    yield f'{name:{widths[0]}}  {change:{widths[1]}}  {text}'.rstrip()


def name_of(structure: Mapping[str, Any], change: Mapping[str, Any]) -> str:
  """Returns what a row is called: the structure's name, or its lesions'."""
  if 'earlier_lesions' not in change:
    return str(structure['name'])
  return '  ' + letters_of(*(change[f'{time}_lesions'] for time in _TIMES))


def letters_of(earlier: Sequence[int], later: Sequence[int]) -> str:
  """Returns E1 > L1, L2 of the numbers of lesions, from 1."""
  sides = [
    ', '.join(f'{letter}{number}' for number in numbers)
    for letter, numbers in (('E', earlier), ('L', later))
  ]
  return ' > '.join(side or '-' for side in sides)


def longest(
  structure: Mapping[str, Any], change: Mapping[str, Any]
) -> list[float | None]:
  """Returns mm, then and now, of the longest diameter of one, else None."""
  found = []
  for time in _TIMES:
    numbers = change.get(f'{time}_lesions')
    of = structure[time]
    if numbers is None:
      found.append(of['longest_diameter_mm'])
    elif len(numbers) == 1:
      found.append(of['lesions'][numbers[0] - 1]['longest_diameter_mm'])
    else:
      found.append(None)
  return found


def _maybe(value: float | None) -> float | None:
  return None if value is None else rounded(value)


def _rest(change: Mapping[str, Any]) -> tuple[Any, Any]:
  return change['change_percent'], change['doubling_days']


def _likeness(likeness: Likeness) -> dict[str, float | None]:
  return {
    'normalised_mutual_information': rounded(likeness.information),
    'correlation': rounded(likeness.correlation),
    'overlap': rounded(likeness.overlap),
  }


def _structure(
  one: Followed, channels: Sequence[str], days: int | None
) -> dict[str, Any]:
  code, words = one.meaning.kind
  found: dict[str, Any] = {
    'name': one.meaning.name,
    'code': {'scheme': 'SCT', 'code': code, 'meaning': words},
    'lesion': one.meaning.lesion,
    **_change(one.change, days),
  }
  found['code']['generic'] = one.meaning.generic
  lesions = one.earlier, one.later
  for time, measured, interval, own in zip(
    _TIMES, one.whole, one.intervals, lesions, strict=True
  ):
    found[time] = of_object(measured, channels)
    found[time]['volume_interval_ml'] = [rounded(x) for x in interval] or None
    if own is not None:
      found[time]['lesions'] = [
        {'lesion': i + 1} | of_object(lesion, channels)
        for i, lesion in enumerate(own.measured)
      ]
  if one.meaning.lesion:
    found['changes'] = [
      _change(change, days)
      | {
        'earlier_lesions': [i + 1 for i in change.earlier],
        'later_lesions': [i + 1 for i in change.later],
        'gap_mm': rounded(change.gap) if change.gap else None,
      }
      for change in changes.in_order(one.lesions)
    ]
    found['number'] = {
      kind: number
      for kind in changes.KINDS
      if (number := sum(change.kind == kind for change in one.lesions))
    }
  return found


def _change(change: Change, days: int | None) -> dict[str, Any]:
  return {
    'change': change.kind,
    'trend': change.trend,
    'volume_ml': [rounded(x) for x in change.volumes],
    'change_percent': _maybe(change.percent),
    'doubling_days': _maybe(changes.doubling_days(change, days)),
    'remarks': list(change.remarks),
  }
