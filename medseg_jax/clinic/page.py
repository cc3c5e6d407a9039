"""A report as one web page, which asks no network for anything."""

import html
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from medseg_jax.clinic.numbers import MOST_LESIONS

_TEMPLATE = importlib.resources.files('medseg_jax.clinic') / 'page.html'


def write_page(
  report: Mapping[str, Any],
  viewer: Mapping[str, Any],
  *,
  colours: Mapping[str, tuple[int, int, int]],
) -> str:
  """Returns the page.

  Args:
    report: see `numbers.to_json`.
    viewer: see `viewer.data_of`.
    colours: of the structures, by name.
  """
  parts = {
    'CASE': _escape(report['case']),
    'WARNING': _escape(report['warning']),
    'ABOUT': _about(report),
    'TABLE': _table(report, colours),
    # "</" would end the script, wherever it stands.
    'DATA': json.dumps(viewer).replace('<', '\\u003c'),
  }
  page = _TEMPLATE.read_text('utf-8')
  pieces = page.split('@@')  # text, name, text, name, .., text
  pieces[1::2] = [parts[name] for name in pieces[1::2]]
  return ''.join(pieces)


def _about(report: Mapping[str, Any]) -> str:
  image, model = report['image'], report['model']
  shape = ' × '.join(map(str, reversed(image['shape'])))
  spacing = ' × '.join(f'{x:.3g}' for x in reversed(image['spacing_mm']))
  lines = [f'Model {model["name"]}, version {model["version"]}.']
  if patient := report.get('patient'):
    told = ', '.join(
      f'{key.replace("_", " ")} {value}' for key, value in patient.items()
    )
    lines.insert(0, f'Patient {told}.')
  lines.append(f'Image of {shape} voxels of {spacing} mm.')
  guessed = [
    one['name'] for one in report['structures'] if one['code']['generic']
  ]
  if guessed:
    which = ', '.join(guessed)
    if len(guessed) == len(report['structures']):
      which = 'the structures'
    lines.append(
      f'No codes were given for {which}: organs or, by their names, lesions.'
    )
  return ' '.join(map(_escape, lines))


def _table(
  report: Mapping[str, Any], colours: Mapping[str, tuple[int, int, int]]
) -> str:
  coverage = report['interval_coverage']
  channels = report['image']['channels']
  names = [f' {name}' if len(channels) > 1 else '' for name in channels]
  heads = ['', 'Structure', 'Volume, ml']
  if coverage:
    heads.append(f'{coverage:.0%} interval, ml')
  heads += ['Longest diameter, mm', 'At right angles, mm']
  heads += [f'Mean ± SD{name}' for name in names]
  heads.append('Remarks')
  rows, absent = [], []
  for i, structure in enumerate(report['structures']):
    if not structure['voxels'] and 'lesions' not in structure:
      absent.append(structure['name'])
      continue
    red, green, blue = colours[structure['name']]
    box = (
      f'<input type="checkbox" checked data-class="{i}" aria-label='
      f'"show {_escape(structure["name"])}"><i style="background:'
      f'rgb({red},{green},{blue})"></i>'
    )
    rows.append([(structure, box, structure['name'])])
    rows[-1] += [
      (lesion, '', f'lesion {lesion["lesion"]}')
      for lesion in structure.get('lesions', ())[:MOST_LESIONS]
    ]
  body = ''.join(
    _row(one, box, name, channels, bool(coverage))
    for group in rows
    for one, box, name in group
  )
  head = ''.join(f'<th>{_escape(text)}</th>' for text in heads)
  rest = f'<p>Not found: {_escape(", ".join(absent))}.</p>' if absent else ''
  table = f'<thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
  return f'<table>{table}</table>{rest}'


def _row(
  one: Mapping[str, Any],
  box: str,
  name: str,
  channels: Sequence[str],
  with_interval: bool,
) -> str:
  cells = [_number(one['volume_ml'])]
  if with_interval:
    low, high = one.get('volume_interval_ml') or (None, None)
    told = f'{_number(low)} – {_number(high)}' if low is not None else ''
    cells.append(told)
  cells += [
    _number(one['longest_diameter_mm']),
    _number(one['perpendicular_diameter_mm']),
  ]
  for channel in channels:
    of = one['intensity'].get(channel)
    cells.append(f'{_number(of["mean"])} ± {_number(of["sd"])}' if of else '')
  remarks = []
  if 'num_lesions' in one:
    number = one['num_lesions']
    remarks.append(f'{number} lesion{"" if number == 1 else "s"}')
    if number > MOST_LESIONS:
      remarks.append(f'the {MOST_LESIONS} largest are shown')
  if not one['voxels']:
    remarks.append('none found')
  if one['touches_border']:
    remarks.append('at the border of the image: may go on beyond it')
  at = ''
  if one['centroid_lps_mm']:
    place = ' '.join(map(str, one['centroid_lps_mm']))
    at = f' tabindex="0" data-at="{place}" title="show this place"'
  kind = ' class="lesion"' if 'lesion' in one else ''
  numbers = ''.join(f'<td class="n">{_escape(cell)}</td>' for cell in cells)
  return (
    f'<tr{kind}{at}><td>{box}</td><td>{_escape(name)}</td>{numbers}'
    f'<td>{_escape("; ".join(remarks))}</td></tr>'
  )


def _number(value: float | None) -> str:
  """Returns three digits or more: what can be measured."""
  if value is None:
    return ''
  if abs(value) >= 100:
    return f'{value:.0f}'
  return f'{value:.3g}'


def _escape(text: str) -> str:
  return html.escape(text, quote=True)
