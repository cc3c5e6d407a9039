"""A BIDS data set with masks among its derivatives: `config.data.source=bids`.

Files are `sub-XX/[ses-YY/]TYPE/ENTITIES_SUFFIX.nii.gz`, those of derivatives
below `derivatives/NAME`. Which image and which mask is meant is told by what
sets them apart, their kind: the suffix and the entities that derived files add,
`T1w` or `NAME/desc-lesion_mask`. All other entities say whose image it is and
name the case. See bids-specification.readthedocs.io, "Imaging derivatives".
"""

import collections
import csv
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medseg_jax.data import labels
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import list_folder, name_some
from medseg_jax.data.sources.volume_files import (
  Layout,
  Refused,
  VolumeFiles,
  case_name,
)
from medseg_jax.data.sources.volume_labels import Meaning, find_meaning
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.runtime.errors import InputError, InputErrors, counted, quote

# For `config.data.group`: no fold parts the sessions of a subject.
SUBJECT = '^(sub-[^_]+)'

_DERIVED = ('space', 'atlas', 'seg', 'res', 'den', 'label', 'desc')
_LABELS = ('dseg', 'mask')
_LAYOUT = (
  'sub-XX/[ses-YY/]anat/sub-XX_T1w.nii.gz with '
  'derivatives/NAME/sub-XX/[ses-YY/]anat/sub-XX_dseg.nii.gz or '
  '..._desc-..._mask.nii.gz'
)


class _File(NamedTuple):
  """A volume: whose, and of which kind."""

  path: pathlib.Path
  case: str  # as sub-01_ses-02_acq-fast
  kind: str  # as NAME/desc-lesion_mask, without NAME/ where it is raw


def open_bids(
  path: str | os.PathLike,
  *,
  images: Sequence[str] = (),
  label: str = '',
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
  grid_tolerance: float = nifti.TOLERANCE,
  strict: bool = True,
) -> dict[str, VolumeSource]:
  """Returns the source `train` of all images that have a mask.

  Args:
    path: the data set's folder.
    images: the kind of image for each channel; () for the only one that the
      raw data has where the masks lie, or else the derivatives.
    label: the kind of mask; '' for the only one.
    classes: names, background first; default those of `dseg.tsv`, or the
      entity `label` of a mask, or see `volumes.open_volumes`.
    label_values: see `volumes.open_volumes`; likewise the rest.
    instances: likewise.
    grid_tolerance: likewise.
    strict: likewise.

  Raises:
    InputError: no such folder, no or several kinds of image or mask, or a file
      that is not allowed.
  """
  root = pathlib.Path(path)
  files = _files(root)
  of_kind = collections.defaultdict(list)
  for file in files:
    of_kind[file.kind].append(file)
  label = _choose_label(root, of_kind, label)
  images = _choose_images(root, of_kind, tuple(images), of_kind[label])
  layout = _match(root, [of_kind[kind] for kind in images], of_kind[label])
  problems = [case.reason for case in layout.refused]
  if problems and (strict or not layout.files):
    raise InputErrors(problems)
  left = sorted(set(of_kind) - {label, *images})
  oddities = list(layout.oddities)
  if left:
    oddities.append(f'{root}: not used: {name_some(left)}')
  paths = [case.label for case in layout.files if case.label]
  meaning = find_meaning(
    root,
    None,
    paths,
    classes=tuple(classes),
    label_values=tuple(int(value) for value in label_values),
    instances=instances,
    strict=strict,
  )
  if not classes and not meaning.instances:
    called = _called(root, paths, label, meaning)
    labels.name_classes(called, meaning.label_values, str(root))
    meaning = meaning._replace(classes=called)
  fields = meaning._asdict()
  suffixes = [kind.split('/')[-1] for kind in images]
  source = VolumeSource(
    root=root,
    files=layout.files,
    channels=len(images),
    channel_names=tuple(
      suffix if suffixes.count(suffix) == 1 else kind
      for suffix, kind in zip(suffixes, images, strict=True)
    ),
    grid_tolerance=grid_tolerance,
    problems=tuple(problems),
    incomplete=layout.refused,
    oddities=(*oddities, *fields.pop('oddities')),
    **fields,
  )
  return {'train': source}


def _files(root: pathlib.Path) -> list[_File]:
  """Returns all volumes with a name as BIDS has it.

  Raises:
    InputError: no such folder, or no subject in it.
  """
  there = list_folder(root)
  derived = root / 'derivatives'
  places = {'': root}
  if derived.is_dir():
    folders = filter(os.path.isdir, list_folder(derived))
    places |= {f'{folder.name}/': folder for folder in folders}
  files = []
  for place, folder in places.items():
    for pattern in ('sub-*/*/*', 'sub-*/ses-*/*/*'):
      for path in sorted(folder.glob(pattern)):
        # A lost link is told when it is read: someone has yet to fetch it.
        if nifti.stem(path) != path.name and not path.is_dir():
          *entities, suffix = case_name(path).split('_')
          if entities and all('-' in entity for entity in entities):
            own = [e for e in entities if e.split('-')[0] not in _DERIVED]
            kind = [*(e for e in entities if e not in own), suffix]
            files.append(_File(path, '_'.join(own), f'{place}{"_".join(kind)}'))
  if not files:
    raise InputError(
      f'{root}: no volumes as BIDS names them; found '
      f'{name_some(path.name for path in there)}; allowed is {_LAYOUT}'
    )
  return files


def _choose_label(
  root: pathlib.Path, of_kind: Mapping[str, list[_File]], wish: str
) -> str:
  """Returns the kind of the masks."""
  masks = [kind for kind in of_kind if _suffix(kind) in _LABELS]
  if wish:
    _check_there(root, 'label', wish, of_kind, masks)
    return wish
  if not masks:
    raise InputError(
      f'{root}: no masks; found {name_some(sorted(of_kind), 8)}; allowed is '
      f'{_LAYOUT}'
    )
  if len(masks) > 1:
    raise InputError(
      f'{root}: {len(masks)} kinds of masks; name one in '
      f'config.data.bids.label: {name_some(sorted(masks), 20)}'
    )
  return masks[0]


def _choose_images(
  root: pathlib.Path,
  of_kind: Mapping[str, list[_File]],
  wish: tuple[str, ...],
  masks: Sequence[_File],
) -> tuple[str, ...]:
  """Returns the kind of image of each channel."""
  # Of what lies in folders of the same name as the masks do, say anat.
  types = {mask.path.parent.name for mask in masks}
  near = [
    kind
    for kind, files in of_kind.items()
    if _suffix(kind) not in (*_LABELS, 'probseg', _suffix(masks[0].kind))
    and types & {file.path.parent.name for file in files}
  ]
  for kind in wish:
    _check_there(root, 'images', kind, of_kind, near)
  if wish:
    if len(set(wish)) < len(wish):
      raise InputError(
        f'config.data.bids.images is {quote(wish)}; allowed is each kind once'
      )
    return wish
  found = [kind for kind in near if '/' not in kind] or near
  if len(found) != 1:
    what = f'{len(found)} kinds of images' if found else 'no images'
    raise InputError(
      f'{root}: {what} beside the masks {masks[0].kind}; name one, or one for '
      'each channel, in config.data.bids.images: '
      f'{name_some(sorted(found or set(of_kind) - {masks[0].kind}), 20)}'
    )
  return (found[0],)


def _check_there(
  root: pathlib.Path,
  key: str,
  wish: str,
  of_kind: Mapping[str, list[_File]],
  usual: Sequence[str],
) -> None:
  if wish not in of_kind:
    raise InputError(
      f'config.data.bids.{key} has {quote(wish)}, which {root} does not; '
      f'allowed are {name_some(sorted(usual or of_kind), 20)}'
    )


def _suffix(kind: str) -> str:
  return re.split('[/_]', kind)[-1]


def _match(
  root: pathlib.Path,
  channels: Sequence[Sequence[_File]],
  masks: Sequence[_File],
) -> Layout:
  """Returns the cases: each mask with the images of whom it is."""
  files: dict[str, VolumeFiles] = {}
  refused, used = [], set()
  for mask in masks:
    chosen, reason = [], ''
    for images in channels:
      found = [i for i in images if i.case == mask.case]
      if not found:  # a mask may leave out how its image was taken
        whose = set(mask.case.split('_'))
        found = [i for i in images if whose <= set(i.case.split('_'))]
      if len(found) == 1:
        chosen.append(found[0])
      elif not reason:
        names = name_some(image.path.name for image in found)
        reason = (
          f'{mask.path}: a mask without its image {images[0].kind}'
          if not found
          else f'{mask.path}: {len(found)} images for one mask ({names}); '
          'allowed is one, of the same entities'
        )
    # Of a mask of one acquisition among several, its image has the name.
    name = chosen[0].case if chosen else mask.case
    case = VolumeFiles(name, tuple(i.path for i in chosen), mask.path)
    if not reason and name in files:
      reason = (
        f'{mask.path}: the second mask of the case {name}, after '
        f'{files[name].label}; allowed is one'
      )
    if reason:
      lost = case._replace(images=case.images or (root / mask.case,))
      refused.append(Refused(lost, reason))
    else:
      files[name] = case
      used.update(case.images)
  rest = [i.path.name for i in channels[0] if i.path not in used]
  oddities = []
  if rest:
    oddities.append(
      f'{root}: {counted(len(rest), "image")} without a mask '
      f'{"are" if len(rest) > 1 else "is"} left out ({name_some(rest)})'
    )
  return Layout(
    tuple(files[name] for name in sorted(files)),
    refused=tuple(refused),
    oddities=tuple(oddities),
  )


def _called(
  root: pathlib.Path,
  masks: Sequence[pathlib.Path],
  kind: str,
  meaning: Meaning,
) -> tuple[str, ...]:
  """Returns the names of the classes, by tables that hold for the masks.

  Raises:
    InputError: a table that cannot be read, or two that contradict each other.
  """
  names: dict[int, str] = {}
  first: dict[int, pathlib.Path] = {}
  for table in dict.fromkeys(_table(root, mask) for mask in masks):
    for value, name in (_read_table(table) if table else {}).items():
      if names.setdefault(value, name) != name:
        raise InputError(
          f'{table}: calls {value} {quote(name)}, which is '
          f'{quote(names[value])} in {first[value]}; allowed is one name'
        )
      first.setdefault(value, table)
  structure = re.search('label-([^_]+)', kind)
  if not names and structure and len(meaning.classes) == 2:
    return (meaning.classes[0], structure[1])
  background, *rest = zip(meaning.label_values, meaning.classes, strict=True)
  return (background[1], *(names.get(value, name) for value, name in rest))


def _table(root: pathlib.Path, mask: pathlib.Path) -> pathlib.Path | None:
  """Returns the table of values for a mask: the nearest that may be of it.

  A table holds for all masks below its folder that have its entities and
  suffix (BIDS, "The inheritance principle").
  """
  *entities, suffix = case_name(mask).split('_')
  folder = mask.parent
  while folder == root or root in folder.parents:
    fitting = [
      table
      for table in folder.glob(f'*{suffix}.tsv')
      if table.stem.split('_')[-1] == suffix
      and set(table.stem.split('_')[:-1]) <= set(entities)
    ]
    if fitting:
      return max(fitting, key=lambda table: table.stem.count('_'))
    folder = folder.parent
  return None


def _read_table(path: pathlib.Path) -> dict[int, str]:
  """Returns the names of values by a table with columns `index` and `name`."""
  form = 'allowed is a table with tabs and the columns index and name'
  try:
    text = path.read_text('utf-8-sig')
    rows = list(csv.DictReader(io.StringIO(text), delimiter='\t'))
  except (OSError, ValueError, csv.Error) as error:
    reason = getattr(error, 'strerror', None) or 'not text in UTF-8'
    raise InputError(f'{path}: cannot be read ({reason}); {form}') from error
  names: dict[int, str] = {}
  for number, row in enumerate(rows, 2):
    value, name = (row.get('index') or '').strip(), row.get('name') or ''
    name = name.strip()
    if not value.isdecimal() or not name or not name.isprintable():
      raise InputError(
        f'{path}, line {number}: index {quote(value)}, name {quote(name)}; '
        f'{form}, a whole number and a name in each line'
      )
    if names.setdefault(int(value), name) != name:
      raise InputError(
        f'{path}, line {number}: a second name of {value}; allowed is one'
      )
  return names
