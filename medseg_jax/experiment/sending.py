"""Sends the DICOM objects of a prediction to an archive, each once.

`sent.jsonl` beside the masks has a line for each that was kept: what, where to
and when. So a second run sends what an earlier one could not, and no more.
"""

import datetime
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from medseg_jax.data.sources.to_predict import SENT_LIST
from medseg_jax.experiment.clinic_formats import (
  MEASUREMENTS,
  OF_SERIES,
  REPORT,
  RTSTRUCT,
  SEG,
)
from medseg_jax.experiment.prediction_record import append_line, hash_files
from medseg_jax.experiment.prediction_targets import Job
from medseg_jax.pacs import address
from medseg_jax.pacs.address import Node, Web
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError, counted

_BEGIN = '{"sent": '  # of each line
# SOP classes of what is sent (PS3.6, table A-1).
_CLASSES = {
  SEG: '1.2.840.10008.5.1.4.1.1.66.4',
  RTSTRUCT: '1.2.840.10008.5.1.4.1.1.481.3',
  MEASUREMENTS: '1.2.840.10008.5.1.4.1.1.88.34',
}


def probe(to: Node | Web, formats: Sequence[str]) -> None:
  """Makes sure, before all that takes time, that sending can work.

  Args:
    to: the archive.
    formats: that are asked for, see `clinic_formats`.

  Raises:
    InputError: nothing would be sent, or the archive is not there or would not
      take it.
  """
  kinds = [kind for kind in (SEG, RTSTRUCT) if kind in formats]
  if not kinds:
    raise InputError(
      f'--send={to.name}, but --formats={",".join(formats)} has no DICOM '
      f'objects; add {SEG} or {RTSTRUCT}, or leave --send out'
    )
  if {SEG, REPORT} <= set(formats):
    kinds.append(MEASUREMENTS)
  address.library(to).probe(to, [_CLASSES[kind] for kind in kinds])


class Sender:
  """Sends files of one folder, and knows what became of them.

  Args:
    to: the archive.
    folder: of the masks.

  Raises:
    InputError: something else lies in the place of the list.
  """

  def __init__(self, to: Node | Web, folder: pathlib.Path):
    self._to = to
    self._folder = folder
    self._path = folder / SENT_LIST
    self._before = _read(self._path, to.name)
    self._kept = 0  # of earlier runs
    self._sent = 0
    self._refused: list[str] = []

  def send(self, jobs: Iterable[Job]) -> None:
    """Sends the DICOM objects of jobs that are done."""
    for job in jobs:
      paths = [t.path for t in job.targets if t.kind in OF_SERIES]
      hashes = {path: hash_files([path]) for path in paths}
      left = [path for path in paths if hashes[path] not in self._before]
      self._kept += len(paths) - len(left)
      if not left:
        continue
      for answer in address.library(self._to).send(self._to, left):
        name = answer.path.relative_to(self._folder).as_posix()
        if answer.refused:
          self._refused.append(f'{name}: {answer.refused}')
          continue
        line = {
          'sent': name,
          'sha256': hashes[answer.path],
          'to': self._to.name,
          'at': datetime.datetime.now().astimezone().isoformat('T', 'seconds'),
        }
        append_line(self._path, line | _note(answer.note))
        self._sent += 1
        if answer.note:
          print(f'warning   {name}: kept by {self._to.name}, {answer.note}')

  def tell(self) -> InputError | None:
    """Prints what was sent, by all processes; returns the error, if any."""
    found = multihost.gather((self._sent, self._kept, self._refused))
    sent, kept = (sum(own[i] for own in found) for i in (0, 1))
    refused = [line for own in found for line in own[2]]
    if kept:
      print(
        f'kept      {counted(kept, "object")} that {self._to.name} has of an '
        f'earlier run (without {self._path} they are sent again)'
      )
    print(f'sent      {counted(sent, "object")} to {self._to.name}', flush=True)
    for line in refused:
      print(f'not sent  {line}', flush=True)
    if not refused:
      return None
    return InputError(
      f'not sent to {self._to.name}: {len(refused)} of '
      f'{counted(sent + len(refused), "object")}; the files are in '
      f'{self._folder}, and the same command sends what is missing; the first: '
      f'{refused[0]}'
    )


def _note(text: str) -> dict[str, str]:
  return {'note': text} if text else {}


def _read(path: pathlib.Path, to: str) -> set[str]:
  """Returns the hashes of what an archive has.

  Raises:
    InputError: the file is no such list.
  """
  if not path.exists():
    return set()
  found: set[str] = set()
  mistaken = InputError(
    f'{path}: no list of what was sent as --send keeps it there; move it away, '
    'or name another --output'
  )
  if not path.is_file():
    raise mistaken
  text = path.read_bytes().decode('utf-8', 'replace')
  if not _BEGIN.startswith(text.lstrip('\0\n')[: len(_BEGIN)]):
    raise mistaken
  for each in text.splitlines():
    line = _line(each)
    if line.get('to') == to and isinstance(line.get('sha256'), str):
      found.add(line['sha256'])
  return found


def _line(text: str) -> dict[str, Any]:
  """Returns what a line says, nothing where it is cut off."""
  try:
    line = json.loads(text)
  except (ValueError, RecursionError):
    return {}
  return line if isinstance(line, dict) else {}
