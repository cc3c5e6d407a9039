"""One series of an archive as a folder of files, to be segmented as any other.

It lies below the output, since it has the name of the patient, and nobody
looks for that in a cache. Each file is written whole, under the UID of its
instance; so a second run asks the archive what belongs to the series and
retrieves what is missing.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources import dicom_series, to_predict
from medseg_jax.pacs import address
from medseg_jax.pacs.address import Web
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import check_writable
from medseg_jax.runtime.progress import Progress

FOLDER = 'fetched'  # below the output
# Modalities of objects without slices of their own (PS3.3, C.7.3.1.1.1).
_NO_IMAGES = (
  'ANN', 'AU', 'DOC', 'ECG', 'EPS', 'FID', 'HD', 'KO', 'M3D', 'PLAN',
  'PR', 'REG', 'RESP', 'RTDOSE', 'RTINTENT', 'RTPLAN', 'RTRECORD', 'RTSTRUCT',
  'RWV', 'SEG', 'SMR', 'SR', 'STAIN', 'TEXTUREMAP',
)  # fmt: skip


def fetch(
  source: Web, output: pathlib.Path, *, series: str, config: ConfigDict
) -> pathlib.Path:
  """Returns a folder with the files of one series, and nothing else.

  Args:
    source: what of which archive.
    output: folder of the masks.
    series: which of a study: number, UID or words of its description; '' for
      the only one with images.
    config: of the model, resolved.

  Raises:
    InputError: the model takes no series, there is none of that name, or the
      archive does not give all of it.
  """
  data = config.data
  if data.source not in VOLUMES or data.channels != 1:
    raise InputError(
      f'--input={source.name}: DICOM series, of one channel each, which the '
      'model does not take'
    )
  if to_predict.is_file_name(output):
    raise InputError(
      f'--output={output}: the name of a file; allowed with --input='
      f'{source.name} is a folder'
    )
  dicom_series.library()
  web = address.library(source)
  client = web.connect(source)
  found = _choose(web.find_series(client, source), source, series)
  uids = web.find_instances(client, source, found)
  key = hashlib.sha256(found.uid.encode()).hexdigest()[:8]
  number = f'{found.number}_' if found.number.isdigit() else ''
  folder = output / FOLDER / f'series_{number}{key}'
  check_writable(folder)
  names = {f'{uid}.dcm' for uid in uids}
  there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
  strays = sorted(name for name in there - names if name[0] != '.')
  if strays:
    raise InputError(
      f'{folder}: has files that are not of the series as {source.name} has '
      f'it: {name_some(strays)}; move them away'
    )
  missing = sorted(names - there)
  if missing:
    with Progress(len(missing), unit='file', desc='fetch') as progress:
      for name in missing:
        uid = name.removesuffix('.dcm')
        web.retrieve(client, source, found, uid, folder / name)
        progress.advance()
  print(
    f'fetched   series {found.name}: {counted(len(missing), "new file")} into '
    f'{folder}; they name the patient, delete them when they are no longer '
    'needed',
    flush=True,
  )
  return folder


def _choose(found: Sequence[Any], source: Web, wanted: str) -> Any:
  """Returns the series that is meant.

  A wanted one is looked for only where the address names a study alone; of a
  series that it names it may tell a phase (see `dicom_series.find`).
  """
  where = f'{source.name}/studies/{source.study}'
  if source.series:
    if len(found) != 1:
      raise InputError(
        f'{where}: {len(found)} series {source.series}; check the UIDs'
      )
    return found[0]
  images = [each for each in found if each.modality not in _NO_IMAGES]
  if not images:
    raise InputError(
      f'{where}: {counted(len(found), "series", "series")}, and none of images'
    )
  chosen = images
  if wanted:
    chosen = [each for each in images if _is_named(each, wanted)]
  if len(chosen) == 1:
    return chosen[0]
  asked = f'--series={wanted} names {len(chosen)} of ' if wanted else ''
  raise InputError(
    f'{where}: {asked}{counted(len(images), "series", "series")}: '
    f'{"; ".join(each.name for each in images)}; choose one with --series= its '
    'number, UID or words of its description'
  )


def _is_named(series: Any, wanted: str) -> bool:
  return wanted in (series.number, series.uid) or (
    not wanted.isdigit() and wanted.lower() in series.name.lower()
  )
