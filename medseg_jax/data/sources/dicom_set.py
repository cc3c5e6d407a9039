"""DICOM series with masks as a data set: `config.data.source=dicom`.

Masks are segmentations or structure sets that refer to their series, wherever
they lie, or volumes named like a series' folder. Each series is written once as
NIfTI, with its mask, below the folder of the caches; that is opened as any data
set of volumes is.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources import dicom_series
from medseg_jax.data.sources.volumes import VolumeSource, open_volumes
from medseg_jax.runtime.errors import InputError, InputErrors, counted
from medseg_jax.runtime.files import files_key
from medseg_jax.runtime.progress import Progress

if TYPE_CHECKING:
  from medseg_jax.data.formats.dicom.label_objects import LabelObject
  from medseg_jax.data.formats.dicom.series import Series

_NOTES = 'dicom.json'  # what the converted folder says of the series
_VERSION = 2  # of what is written


class _Case(NamedTuple):
  """A series and its mask: one of the two."""

  name: str
  series: 'Series'
  drawn: 'LabelObject | None'
  volume: pathlib.Path | None


def open_dicom(
  path: str | os.PathLike,
  *,
  cache: pathlib.Path,
  classes: Sequence[str] = (),
  allow_gaps: bool = False,
  assume_hounsfield: bool = False,
  **options: Any,
) -> dict[str, VolumeSource]:
  """Returns the source `train`: all series with a mask.

  Args:
    path: the folder, with all below it.
    cache: folder of the caches; the volumes are written below its `dicom`.
    classes: names of the regions or segments to learn, the background first;
      () for all that occur, by name.
    allow_gaps: whether slices that are missing are filled in for the network;
      they have no label.
    assume_hounsfield: see `reading.read_volume`.
    **options: see `volumes.open_volumes`.

  Raises:
    InputError: no such folder, no series with a mask, or a file or a mask that
      cannot be read.
  """
  root = pathlib.Path(path)
  if not root.is_dir():
    raise InputError(
      f'{root}: no folder; allowed is one with DICOM series and masks'
    )
  forced = dict(allow_gaps=allow_gaps, assume_hounsfield=assume_hounsfield)
  folder = _converted(root, cache / 'dicom', tuple(classes), forced)
  notes = json.loads((folder / _NOTES).read_text('utf-8'))
  if notes['classes']:  # they are in dataset.json
    classes = ()
    options['label_values'] = ()
  opened = open_volumes(folder, classes=classes, **options)
  odd = (*opened['train'].oddities, *notes['notes'])
  return {'train': dataclasses.replace(opened['train'], oddities=odd)}


def _converted(
  root: pathlib.Path,
  cache: pathlib.Path,
  classes: tuple[str, ...],
  forced: Mapping[str, bool],
) -> pathlib.Path:
  """Returns the folder of the volumes, which it writes where it is not there.

  A file that is added, taken away or changed makes it another folder.
  """
  files = [*dicom_series.files_in(root, ())]
  stem = re.sub(r'\W+', '_', root.resolve().name)[:40]

  def place(names: tuple[str, ...]) -> pathlib.Path:
    how = (_VERSION, *sorted(forced.items()), *names)
    key = files_key(files, root, how)
    return cache / f'{stem}-{key[:16]}'

  folder = place(classes)
  if folder.exists():
    return folder
  cases, names, notes = _match(root, files, classes)
  final = place(names) if names else folder
  if not final.exists():
    unfinished = final.with_name(f'{final.name}.{os.getpid()}.tmp')
    try:
      _write(unfinished, cases, names, notes, forced)
      try:
        unfinished.rename(final)
      except OSError:  # another process was first
        if not final.exists():
          raise
    finally:
      shutil.rmtree(unfinished, ignore_errors=True)
  return final


def _match(
  root: pathlib.Path, files: Sequence[pathlib.Path], classes: tuple[str, ...]
) -> tuple[list[_Case], tuple[str, ...], list[str]]:
  """Returns the cases, the classes that they tell, and what is to be told.

  Classes are () where volumes are the masks, whose values have no names.
  """
  reading = dicom_series.library()
  from medseg_jax.data.formats.dicom import label_objects

  volumes = [path for path in files if nifti.stem(path) != path.name]
  found = reading.read_files([path for path in files if path not in volumes])
  notes, problems, objects = [], [], []
  for aside in found.set_aside:
    if (drawn := label_objects.look(aside.path)) is not None:
      objects.append(drawn)
    elif aside.damaged:
      problems.append(f'{aside.path}: {aside.reason}')
  series = [each for each in found.series if len(each.frames) > 1]
  names = _case_names(series, root)
  by_uid = collections.defaultdict(list)
  for drawn in objects:
    for uid in drawn.series:
      by_uid[uid].append(drawn)
  cases, used = [], set()
  for name, each in zip(names, series, strict=True):
    where = each.first.path.parent
    masks = by_uid.get(each.first.series, [])
    beside = [path for path in volumes if _belongs(path, where)]
    several = [*(drawn.path for drawn in masks), *beside]
    if len(several) > 1:
      problems.append(
        f'{where}: {counted(len(several), "mask")} for one series, '
        f'{name_some(several, 3)}; allowed is one'
      )
    elif several:
      used.add(several[0])
      drawn = masks[0] if masks else None
      cases.append(_Case(name, each, drawn, None if masks else beside[0]))
      notes += [f'{name}: {note}' for note in each.notes]
    else:
      notes.append(f'{where}: the series {each.name} has no mask: not used')
  problems += [
    f'{path}: a mask of no series that is there'
    for path in (*(drawn.path for drawn in objects), *volumes)
    if path not in used and not any(f'{path}' in line for line in problems)
  ]
  if not cases and not problems:
    problems.append(
      f'{root}: {counted(len(series), "series", "series")} and no mask of one; '
      'allowed are DICOM segmentations and structure sets that refer to a '
      'series, and volumes named like its folder'
    )
  kinds = {case.drawn is None for case in cases}
  if len(kinds) > 1:
    problems.append(
      f'{root}: some masks are DICOM objects and some are volumes, whose '
      'values have no names; allowed are those of one kind'
    )
  if problems:
    raise InputErrors(problems)
  if kinds == {True}:
    return cases, (), notes
  there = sorted({n for case in cases for n in case.drawn.names.values()})
  wanted = classes or ('background', *there)
  if unknown := [name for name in wanted[1:] if name not in there]:
    raise InputError(
      f'config.data.classes has {unknown[0]!r}, which no mask in {root} has; '
      f'they have {", ".join(there)}'
    )
  for case in cases:
    if lacking := set(wanted[1:]) - set(case.drawn.names.values()):
      notes.append(
        f'{case.drawn.path}: has no {", ".join(sorted(lacking))}, which counts '
        'as empty there'
      )
  if left := [name for name in there if name not in wanted]:
    notes.append(f'{root}: not in config.data.classes: {", ".join(left)}')
  return cases, wanted, notes


def _belongs(path: pathlib.Path, folder: pathlib.Path) -> bool:
  """Returns whether a volume is named like the folder of a series, or in it."""
  name = nifti.stem(path)
  beside = path.parent == folder.parent and (
    name == folder.name or re.match(rf'{re.escape(folder.name)}[_.-]', name)
  )
  return path.parent == folder or bool(beside)


def _case_names(
  series: Sequence['Series'], root: pathlib.Path
) -> tuple[str, ...]:
  """Returns a name for each: its folders', but nobody's own name."""
  places = [each.first.path.parent.relative_to(root).parts for each in series]
  tops = collections.Counter(parts[:1] for parts in places)
  names: list[str] = []
  for i, (each, parts) in enumerate(zip(series, places, strict=True)):
    short = parts[:1] if tops[parts[:1]] == 1 else parts
    name = re.sub(r'[^\w.+-]+', '_', '_'.join(short))
    if not name or name in names or dicom_series.tells_patient(name, each):
      name = f'case_{i:03d}'
    names.append(name)
  return tuple(names)


def _write(
  folder: pathlib.Path,
  cases: Sequence[_Case],
  classes: tuple[str, ...],
  notes: list[str],
  forced: Mapping[str, bool],
) -> None:
  """Writes the data set, as nnU-Net lays it out where classes have names."""
  reading = dicom_series.library()
  from medseg_jax.data.formats.dicom import label_objects

  named = bool(classes)
  images, labels = ('imagesTr', 'labelsTr') if named else ('images', 'labels')
  for name in (images, labels):
    (folder / name).mkdir(parents=True)
  problems, notes, gaps = [], list(notes), 0
  with Progress(len(cases), unit='case', desc='read DICOM') as progress:
    for case in cases:
      file = f'{case.name}{"_0000" if named else ""}.nii.gz'
      label = folder / labels / f'{case.name}.nii.gz'
      try:
        volume = reading.read_volume(case.series, **forced)
        notes += dicom_series.told_of(case.series, **forced)
        gaps += len(case.series.missing)
        if case.drawn is None and case.series.missing:
          problems.append(
            f'{case.volume}: a mask of a series with missing slices, of which '
            'a volume cannot leave them out; allowed are DICOM objects'
          )
        elif case.drawn is None:
          mask = nifti.read_label(case.volume)
          nifti.write_label(label, mask.array, mask.grid)
        else:
          native, twice = label_objects.read(
            case.drawn, case.series, classes[1:]
          )
          if twice:
            notes.append(
              f'{case.drawn.path}: {counted(twice, "voxel")} in more than one '
              'class; the last of config.data.classes has them'
            )
          mask = reading.from_native(native, case.series, missing=len(classes))
          nifti.write_label(label, mask, volume.grid)
        nifti.write_volume(folder / images / file, volume.array, volume.grid)
      except InputError as error:
        problems.append(str(error))
      progress.advance()
  if problems:
    raise InputErrors(problems)
  if named:
    kinds = {str(case.series.first.header.get('Modality')) for case in cases}
    channel = kinds.pop() if len(kinds) == 1 else 'channel_0'
    ignored = {'ignore': len(classes)} if gaps else {}
    described = {
      'channel_names': {'0': channel},
      'labels': {name: i for i, name in enumerate(classes)} | ignored,
      'numTraining': len(cases),
      'file_ending': '.nii.gz',
    }
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / 'dataset.json').write_text(text, 'utf-8')
  sources = {
    case.name: [str(case.series.first.path.parent), case.series.name]
    for case in cases
  }
  told = {'classes': list(classes), 'notes': notes, 'sources': sources}
  (folder / _NOTES).write_text(json.dumps(told, indent=2), 'utf-8')
