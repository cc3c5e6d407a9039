"""A report as one web page, which asks no network for anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from medseg_jax.clinic.numbers import MOST_LESIONS
from medseg_jax.report.html.templates import render


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
    name = structure['name']
    if not structure['voxels'] and 'lesions' not in structure:
      absent.append(name)
      continue
    row = _row(structure, name, channels, bool(coverage))
    rows.append(
      row | {'number': i, 'colour': '{},{},{}'.format(*colours[name])}
    )
    rows += [
      _row(lesion, f'lesion {lesion["lesion"]}', channels, bool(coverage))
      for lesion in structure.get('lesions', ())[:MOST_LESIONS]
    ]
  return render(
    'medseg_jax.clinic',
    'page.html',
    report=report,
    viewer=viewer,
    about=_about(report),
    heads=heads,
    rows=rows,
    absent=absent,
  )


def _about(report: Mapping[str, Any]) -> list[str]:
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
  return lines


def _row(
  one: Mapping[str, Any],
  name: str,
  channels: Sequence[str],
  with_interval: bool,
) -> dict[str, Any]:
  """Returns the row of a structure, or of a lesion in it."""
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
  return {
    'name': name,
    'number': None,
    'lesion': 'lesion' in one,
    'at': ' '.join(map(str, one['centroid_lps_mm'] or ())),
    'cells': cells,
    'remarks': '; '.join(remarks),
  }


def _number(value: float | None) -> str:
  """Returns three digits or more: what can be measured."""
  if value is None:
    return ''
  if abs(value) >= 100:
    return f'{value:.0f}'
  return f'{value:.3g}'
