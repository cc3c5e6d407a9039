"""A follow-up as one web page, which asks no network for anything."""

import html
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medseg_jax.clinic.followup import report as reports
from medseg_jax.clinic.numbers import MOST_LESIONS

_TEMPLATE = (
  importlib.resources.files('medseg_jax.clinic.followup') / 'page.html'
)
_HEADS = (
  *('', 'Change', 'Earlier, ml', 'Later, ml', 'Difference'),
  *('Earlier, longest mm', 'Later, longest mm', 'Remarks'),
)
_NUMBERS = range(2, 7)  # the columns that are
_PLANES = ('Axial', 'Coronal', 'Sagittal')


class Picture(NamedTuple):
  """One picture of a change.

  Attributes:
    caption: what it shows.
    source: address of the image.
  """

  caption: str
  source: str


def write_page(
  report: Mapping[str, Any],
  *,
  overview: Sequence[str],
  pictures: Sequence[Picture],
  number: int,
) -> str:
  """Returns the page.

  Args:
    report: see `report.to_json`.
    overview: pictures of the registration across z, y and x.
    pictures: of single changes.
    number: of changes there are.
  """
  shown = 'In each slice: left earlier, right later, moved onto the earlier.'
  if number > len(pictures):
    shown += f' The first {len(pictures)} of {number} are shown.'
  if not number:
    shown = 'There is nothing to show: both masks are empty.'
  parts = {
    'CASES': _escape('{earlier} and {later}'.format(**report['cases'])),
    'WARNING': _escape(report['warning']),
    'POOR': ''.join(
      f'<p class="warning poor">{_escape(_sentence(line))}</p>'
      for line in report['warnings']
    ),
    'ABOUT': _escape(_about(report)),
    'TABLE': _table(report),
    'NOTE': _escape(_note(report)),
    'QUALITY': _quality(report['registration']),
    'OVERVIEW': ''.join(
      f'<figure><figcaption>{name}</figcaption>'
      f'<img alt="{name}" src="{source}"></figure>'
      for name, source in zip(_PLANES, overview, strict=True)
    ),
    'SHOWN': _escape(shown),
    'PICTURES': ''.join(
      f'<figure><img alt="{_escape(one.caption)}" src="{one.source}">'
      f'<figcaption>{_escape(one.caption)}</figcaption></figure>'
      for one in pictures
    ),
  }
  pieces = _TEMPLATE.read_text('utf-8').split(
    '@@'
  )  # text, name, text, .., text
  pieces[1::2] = [parts[name] for name in pieces[1::2]]
  return ''.join(pieces)


def _about(report: Mapping[str, Any]) -> str:
  days, model = report['days'], report['model']
  words = f'Model {model["name"]}, version {model["version"]}. '
  if patient := report.get('patient'):
    told = ', '.join(
      f'{key.replace("_", " ")} {value}' for key, value in patient.items()
    )
    words = f'Patient {told}. {words}'
  if days is None:
    return words + 'The images do not tell how much time lies between them.'
  return words + f'{days} day{"" if days == 1 else "s"} lie between them.'


def _note(report: Mapping[str, Any]) -> str:
  settings = report['settings']
  growth = settings['growth_percent']
  less = 100 * (1 - 1 / (1 + growth / 100))
  text = (
    f'Volumes and diameters are those of each image by itself. Grown is what '
    f'has more than {growth:g} % more volume, shrunk what has more than '
    f'{less:.0f} % less. E and L number the lesions of the earlier and of the '
    'later image by falling volume; those that lie on each other, or alone and '
    f'within {settings["match_mm"]:g} mm, are the same.'
  )
  if not any(one['lesion'] for one in report['structures']):
    text += ' The model has no class that is a lesion: structures are compared.'
  return text


def _table(report: Mapping[str, Any]) -> str:
  body = []
  for structure in report['structures']:
    found = structure.get('changes', ())
    body.append(_row(structure, structure, len(found)))
    body += [_row(structure, change) for change in found[:MOST_LESIONS]]
  head = ''.join(
    f'<th class="n">{text}</th>' if i in _NUMBERS else f'<th>{text}</th>'
    for i, text in enumerate(_HEADS)
  )
  return (
    f'<table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
    '</table>'
  )


def _row(
  structure: Mapping[str, Any], change: Mapping[str, Any], number: int = 0
) -> str:
  """Returns a row of the table, of a structure or of one of `number` groups."""
  percent, kind = change['change_percent'], change['change']
  remarks = list(change['remarks'])
  if change['doubling_days'] is not None:
    remarks.insert(0, f'doubles in {change["doubling_days"]:.0f} days')
  if 'number' in change:
    counts = ', '.join(f'{n} {name}' for name, n in change['number'].items())
    remarks.insert(0, f'lesions: {counts or "none"}')
  if number > MOST_LESIONS:
    remarks.append(f'{MOST_LESIONS} of these are shown')
  told = kind
  if change['trend'] not in ('', kind):
    told = f'{kind}, {change["trend"]}'
  cells = [
    *map(number_of, change['volume_ml']),
    '' if percent is None else f'{percent:+.0f} %',
    *map(number_of, reports.longest(structure, change)),
  ]
  numbers = ''.join(f'<td class="n">{_escape(cell)}</td>' for cell in cells)
  lesion = ' class="lesion"' if 'earlier_lesions' in change else ''
  name = reports.name_of(structure, change).strip()
  return (
    f'<tr{lesion}><td>{_escape(name)}</td><td><span class="kind '
    f'{kind.split()[0]}">{_escape(told)}</span></td>{numbers}'
    f'<td>{_escape("; ".join(remarks))}</td></tr>'
  )


def _quality(found: Mapping[str, Any]) -> str:
  rotation, shift = found['rotation_degrees'], found['shift_lps_mm']
  directions = zip('LPS', shift, strict=True)
  moved = ', '.join(f'{x:.1f} mm {name}' for name, x in directions)
  back = found['consistency_mm']
  rows = [
    ('Rotation found', f'{rotation:.1f} degrees'),
    ('Movement of the middle of the earlier image', moved),
    ('Began with', found['began_with']),
    (
      'Registered the other way round, points come back to within',
      'nowhere' if back is None else f'{back:.2f} mm',
    ),
  ]
  for key, words in (
    ('normalised_mutual_information', 'Normalised mutual information, 1 to 2'),
    ('correlation', 'Correlation'),
    ('overlap', 'Share of the smaller image that lies in the other'),
  ):
    before, after = found['before'][key], found['after'][key]
    rows.append((words, f'{after:.2f}, before {before:.2f}'))
  rows += [
    (f'Dice of {name}', f'{dice:.2f}') for name, dice in found['dice'].items()
  ]
  body = ''.join(
    f'<tr><td>{_escape(name)}</td><td>{_escape(value)}</td></tr>'
    for name, value in rows
  )
  return f'<table><tbody>{body}</tbody></table>'


def number_of(value: float | None) -> str:
  """Returns three digits or more, '' of nothing."""
  if value is None:
    return ''
  return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _sentence(text: str) -> str:
  return f'{text[:1].upper()}{text[1:]}.'


def _escape(text: str) -> str:
  return html.escape(text, quote=True)
