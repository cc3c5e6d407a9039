"""The measurements of a case as JSON and as a table, which name no patient."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medseg_jax.clinic.codes import Meaning
from medseg_jax.clinic.measurements import Measured

WARNING = 'Not for clinical use without validation.'
MOST_LESIONS = 100  # of a class, told one by one but in JSON and the table
_FORMAT = 1  # of the JSON
_DIGITS = 6
_COLUMNS = (
  *('case', 'structure', 'lesion', 'voxels', 'volume_ml', 'low_ml', 'high_ml'),
  *('longest_diameter_mm', 'perpendicular_diameter_mm'),
)
_PLACE = ('left_mm', 'posterior_mm', 'superior_mm', 'touches_border')


class Structure(NamedTuple):
  """A class, or a region of several, and what was measured of it.

  Attributes:
    meaning: of it.
    measured: with its lesions, where it is one.
    interval: ml, the least and the largest volume; () where nothing tells.
  """

  meaning: Meaning
  measured: Measured
  interval: tuple[float, ...] = ()


def to_json(
  case: str,
  structures: Sequence[Structure],
  *,
  channels: Sequence[str],
  coverage: float,
  about: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the numbers as JSON has them; infinite bounds are null.

  Args:
    case: its name.
    structures: see `Structure`.
    channels: names of the image's.
    coverage: the share of cases whose volume the intervals hold; 0 without.
    about: what else is to be told: model, image.
  """
  found = []
  for meaning, measured, interval in structures:
    own = of_object(measured, channels)
    own['volume_interval_ml'] = [rounded(x) for x in interval] or None
    if meaning.lesion:
      own['num_lesions'] = len(measured.lesions)
      own['lesions'] = [
        {'lesion': i + 1} | of_object(lesion, channels)
        for i, lesion in enumerate(measured.lesions)
      ]
    code, words = meaning.kind
    told: dict[str, Any] = {'scheme': 'SCT', 'code': code, 'meaning': words}
    told['generic'] = meaning.generic
    found.append({'name': meaning.name, 'code': told} | own)
  return {
    'format': _FORMAT,
    'warning': WARNING,
    'case': case,
    **about,
    'interval_coverage': coverage or None,
    'structures': found,
  }


def of_object(measured: Measured, channels: Sequence[str]) -> dict[str, Any]:
  """Returns what is told of one object, as JSON has it.

  Args:
    measured: the object.
    channels: names of the image's.
  """
  diameters = measured.diameters
  return {
    'voxels': measured.voxels,
    'volume_ml': rounded(measured.volume),
    'longest_diameter_mm': diameters and rounded(diameters.longest),
    'perpendicular_diameter_mm': diameters and rounded(diameters.perpendicular),
    'diameter_ends_lps_mm': [list(map(rounded, end)) for end in measured.ends],
    'centroid_lps_mm': measured.centroid and [*map(rounded, measured.centroid)],
    'intensity': {
      name: {'mean': rounded(of.mean), 'sd': rounded(of.sd)}
      for name, of in zip(channels, measured.intensity, strict=False)
    },
    'touches_border': measured.at_border,
  }


def to_csv(report: Mapping[str, Any], channels: Sequence[str]) -> str:
  """Returns a row for each structure and each of its lesions.

  Args:
    report: as `to_json` returns it.
    channels: names of the image's.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  statistics = [(name, kind) for name in channels for kind in ('mean', 'sd')]
  of_channels = [f'{kind}_{name}' for name, kind in statistics]
  writer.writerow([*_COLUMNS, *of_channels, *_PLACE])
  for structure in report['structures']:
    lesions = structure.get('lesions', [])
    for one in [structure, *lesions]:
      intensity = [
        one['intensity'].get(name, {}).get(kind) for name, kind in statistics
      ]
      row = [
        *(report['case'], structure['name'], one.get('lesion')),
        *(one['voxels'], one['volume_ml']),
        *(one.get('volume_interval_ml') or (None, None)),
        *(one['longest_diameter_mm'], one['perpendicular_diameter_mm']),
        *intensity,
        *(one['centroid_lps_mm'] or (None,) * 3),
        *('yes' if one['touches_border'] else 'no',),
      ]
      writer.writerow(['' if cell is None else cell for cell in row])
  return text.getvalue()


def rounded(value: float) -> float | None:
  """Returns it with six digits, which is more than can be measured."""
  return float(f'{value:.{_DIGITS}g}') if math.isfinite(value) else None
