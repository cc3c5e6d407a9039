"""`init_from.json`: whose weights a training began with, `config.init_from`.

Training writes it to its workdir; by it one that goes on knows its beginning,
also where the model has moved or is gone.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from medseg_jax.runtime.errors import InputError, counted, quote, shorten
from medseg_jax.runtime.files import read_json, write_atomically

FILE, VERSION = 'init_from.json', 1


def write(report: dict[str, Any] | None, workdir: pathlib.Path) -> None:
  """Writes what a training began with; None is one of no other's weights."""
  path = workdir / FILE
  if report is None:
    path.unlink(missing_ok=True)  # of one that never came to a checkpoint
  else:
    write_atomically(path, (json.dumps(report, indent=1) + '\n').encode())


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns what the training of a workdir began with, None for none.

  Raises:
    InputError: the file is not what training wrote.
  """
  path = workdir / FILE
  if not path.exists():
    return None
  found = read_json(path, 'as training writes it')
  fits = (
    isinstance(found, dict)
    and found.get('version') == VERSION
    and isinstance(found.get('sha256'), str)
    and isinstance(found.get('settings'), dict)
    and all(isinstance(values, dict) for values in found['settings'].values())
    and {'model', 'data'}
    <= found['settings'].keys()
    <= {'model', 'data', 'plan'}
  )
  if not fits:
    raise InputError(
      f'{path}: {quote(found)}; allowed is what training writes, version '
      f'{VERSION}'
    )
  return found


def read_any(workdir: pathlib.Path) -> dict[str, Any] | None:
  """Returns what `read` does, of a workdir or of a training inside it.

  A cross-validation and a learning curve have trainings two folders below.
  """
  for place in (workdir, *sorted(workdir.glob('*/*'))):
    if (record := read(place)) is not None:
      return record
  return None


def describe(report: Mapping[str, Any]) -> str:
  """Returns lines on what a network took from a model."""
  parts = [f'{counted(len(report["loaded"]), "array")} loaded as they are']
  for key, what in (
    ('adapted', 'adapted'),
    ('new', 'new'),
    ('left_behind', 'left behind'),
  ):
    if names := report[key]:
      parts.append(f'{len(names)} {what} ({shorten(", ".join(names), 200)})')
  lines = [
    f'init_from {report["path"]}, {report["checkpoint"]} of step '
    f'{report["step"]}, sha256 {report["sha256"][:12]}',
    f'weights   {"; ".join(parts)}',
  ]
  for what in ('classes', 'channels'):
    told = [
      f'{key.replace("_", " ")}: {shorten(", ".join(names), 200)}'
      for key, names in report[what].items()
      if names
    ]
    lines.append(f'{what:<9} {"; ".join(told)}')
  return '\n'.join(lines)
