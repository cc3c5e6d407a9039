"""`volumes.csv` beside predicted masks: the volume of every class, and bounds.

It follows from what `predictions.jsonl` says of each mask, so it is whole
whenever a prediction has ended, however often it was killed. Rows of other
masks in the folder stay.
"""

import csv
import io
import math
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from medseg_jax.data.formats import nifti
from medseg_jax.experiment import calibrated
from medseg_jax.experiment.calibrated import Calibration
from medseg_jax.experiment.prediction_jobs import VOLUME_TABLE, Job
from medseg_jax.experiment.prediction_record import Maker, Record
from medseg_jax.runtime.errors import counted
from medseg_jax.runtime.files import write_atomically

COLUMNS = ('case', 'class', 'volume', 'low', 'high', 'unit')


def write(
  folder: pathlib.Path,
  jobs: Sequence[Job],
  config: ConfigDict,
  maker: Maker,
) -> str:
  """Writes the rows of this model's masks; returns a line for people.

  `low` and `high` hold the true volume of a new case of the same kind with the
  probability `calibration.coverage`; both are empty where the model does not
  know, `high` where nothing bounds it.

  Args:
    folder: of the masks.
    jobs: of this run, done or kept.
    config: of the model, resolved.
    maker: of its masks; those that another has made keep their rows.
  """
  path, calibration = folder / VOLUME_TABLE, maker.calibration
  try:
    rows = _read(path)
  except (OSError, ValueError, csv.Error):
    return (
      f'warning   {path}: is not overwritten, as it is no table of volumes of '
      'this program; move it away, and it is written'
    )
  record = Record(folder)
  lines = record.lines
  unit = calibrated.unit_of(config.data.source)
  number = untold = 0
  for job in jobs:
    if not job.target.is_file():
      continue
    name = record.name_of(job.target)
    line = lines.get(name, {})
    own = maker.of(job.targets[0].kind)
    if (line.get('weights'), line.get('settings')) != own[:2]:
      continue
    counts = line.get('voxels')
    if counts is None:
      untold += 1
      continue
    number += 1
    case = nifti.stem(name) if nifti.stem(name) != name else job.target.stem
    if '/' in name:  # each has a folder of its own
      case = job.name
    case = _printable(case)
    size = line['voxel_size']
    rows[case] = [
      _row(case, of, count * size if size != 1 else count, unit, calibration)
      for of, count in calibrated.volumes_of(counts, config.data).items()
    ]
  if not number:
    return ''
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(COLUMNS)
  for case in sorted(rows):
    writer.writerows(rows[case])
  content = text.getvalue().encode()
  if not path.exists() or path.read_bytes() != content:
    write_atomically(path, content)
  return (
    f'volumes   {path}: {counted(number, "case")} in {unit}, '
    + _told_of_intervals(calibration, unit)
    + (f' ({untold} of an earlier version left out)' if untold else '')
  )


def _told_of_intervals(calibration: Calibration, unit: str) -> str:
  if not calibration.bands or calibration.unit != unit:
    return 'without intervals, which a cross-validated model has'
  text = f'with {calibration.coverage:.0%} intervals'
  if unbound := [
    name for name, band in calibration.bands.items() if math.isinf(band.high)
  ]:
    text += f' (too few cases were cross-validated for {", ".join(unbound)})'
  if calibration.stopped_early:
    text += (
      ' (rather narrow: their cases ended the training of '
      f'{counted(len(calibration.stopped_early), "fold")} early)'
    )
  return text


def _row(
  case: str, name: str, volume: float, unit: str, calibration: Calibration
) -> list[str]:
  bounds = calibration.interval(name, volume, unit) or (None, None)
  numbers = [_cell(value) for value in (volume, *bounds)]
  return [case, name, *numbers, unit]


def _cell(value: float | None) -> str:
  if value is None or math.isinf(value):
    return ''
  # Pixels are whole; large ones of them are not to lose digits.
  return str(value) if isinstance(value, int) else f'{value:.6g}'


def _printable(name: str) -> str:
  """Returns a file's name as UTF-8 can have it, which not all names are."""
  return name.encode('utf-8', 'backslashreplace').decode()


def _read(path: pathlib.Path) -> dict[str, list[list[str]]]:
  """Returns the rows of each case, none where there is no file.

  Raises:
    OSError, ValueError, csv.Error: it is something else.
  """
  if not path.exists():
    return {}
  with open(path, encoding='utf-8', newline='') as file:
    head, *rows = [*csv.reader(file)] or [[]]
  if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
    raise ValueError('no table of volumes')
  found: dict[str, list[list[str]]] = {}
  for row in rows:
    found.setdefault(row[0], []).append(row)
  return found
