"""Reads the report of an evaluation again: `summary.json` and `cases.csv`."""

import csv
import io
import math
import os
import pathlib

from medseg_jax.report.summary import COUNTS, LESION_COUNTS
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json

FILES = ('summary.json', 'cases.csv')
_WORDS = ('case', 'class', 'region', 'failed')
_WHAT = 'a report as --mode=evaluate or score writes it'


def read_report(folder: str | os.PathLike) -> tuple[dict, list[dict]]:
  """Returns the summary, and the records of the cases that were scored.

  A distance that was infinite is NaN, as whatever else is undefined.

  Args:
    folder: that `summary.write_report` wrote to.

  Raises:
    InputError: a file is missing, or is none that this program writes.
  """
  folder = pathlib.Path(folder)
  summary = read_json(folder / 'summary.json', _WHAT)
  path = folder / 'cases.csv'
  if not isinstance(summary, dict) or 'classes' not in summary:
    raise InputError(f'{folder / "summary.json"}: not {_WHAT}')
  try:
    text = path.read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'{path}: cannot be read ({error})') from error
  found: dict[str, dict] = {}
  try:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    for row in rows:
      if not row['class']:  # of a case that failed
        continue
      record = found.setdefault(row['case'], {'case': row['case']})
      region = record
      if row['region'] == 'roi':
        region = record.setdefault('roi', {})
      region['pixel_accuracy'] = _number(row['pixel_accuracy'])
      region.setdefault('classes', {})[row['class']] = {
        key: _number(value, of=key)
        for key, value in row.items()
        if key not in (*_WORDS, 'pixel_accuracy')
      }
    records = list(found.values())
  except (KeyError, TypeError, ValueError, csv.Error) as error:
    raise InputError(f'{path}: not {_WHAT} ({error!r})') from error
  return summary, records


def _number(text: str, of: str = '') -> float:
  if text and of in COUNTS + LESION_COUNTS:
    return int(text)
  return float(text) if text else math.nan
