"""Which volumes of a folder belong together: images, channels and labels.

A case is one file, `CASE.nii.gz`, or one for each channel, `CASE_0000.nii.gz`,
`CASE_0001.nii.gz`, ... The label, in a folder of its own, is `CASE.nii.gz` or
that with one of the suffixes that masks usually have. Where both readings are
possible (`scan_0001.nii.gz` may be a case with a number) the label's name
decides, and without labels, whether there is a `_0000`. Hidden files are left
out: macOS leaves a `._CASE.nii.gz` beside each file that it copies. Volumes are
of any of the formats that are read.
"""

import collections
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import (
  find_strays,
  list_folder,
  name_some,
)
from medseg_jax.data.formats.volume_formats import SUFFIXES, data_files
from medseg_jax.data.sources.folder_files import MASK_SUFFIXES
from medseg_jax.runtime.errors import InputError, counted

_CHANNEL = re.compile(r'(.+)_([0-9]{4})')


class VolumeFiles(NamedTuple):
  """The files of one case: one image or one for each channel, in order."""

  name: str
  images: tuple[pathlib.Path, ...]
  label: pathlib.Path | None = None


class Failure(NamedTuple):
  """A case that cannot be predicted, and a line that says why."""

  name: str
  reason: str


class Refused(NamedTuple):
  """A case whose files do not belong together, and a line that says why.

  Of its files some may not be there.
  """

  files: VolumeFiles
  reason: str


class Layout(NamedTuple):
  """The cases of one split, and what is wrong with its files.

  Attributes:
    files: the cases that are complete, by name.
    refused: those that are not, such as a label without its image.
    problems: a line for each error that is of no single case.
    oddities: a line for each thing that is only strange.
  """

  files: tuple[VolumeFiles, ...]
  refused: tuple[Refused, ...] = ()
  problems: tuple[str, ...] = ()
  oddities: tuple[str, ...] = ()


def match_folder(
  image_folder: pathlib.Path, label_folder: pathlib.Path
) -> Layout:
  """Returns the cases of a folder of images and one of labels.

  Raises:
    InputError: no such folder, or no volume in one of them.
  """
  refused: list[Refused] = []
  images = by_stem(image_folder, refused)
  groups = group_channels(images)
  files, used = {}, set()
  for label_stem, label in by_stem(label_folder, refused).items():
    names = [label_stem] + [
      label_stem[: -len(suffix)]
      for suffix in MASK_SUFFIXES
      if label_stem.lower().endswith(suffix)
    ]
    single = next((name for name in names if name in images), None)
    name = single or next((name for name in names if name in groups), None)
    if name is None:
      lost = VolumeFiles(names[-1], (image_folder / label.name,), label)
      line = f'{label}: a label without its image in {image_folder}'
      refused.append(Refused(lost, line))
    elif name in files:
      line = (
        f'{label}: the second label of the case {name}, after '
        f'{files[name].label.name}; allowed is one'
      )
      refused.append(Refused(files[name], line))
    else:
      stems = [name] if single else list(groups[name].values())
      used.update(stems)
      case = VolumeFiles(name, tuple(images[stem] for stem in stems), label)
      problem = ''
      if single is None:
        problem = _missing_channel(image_folder, name, groups[name])
      if problem:
        refused.append(Refused(case, problem))
      else:
        files[name] = case
  rest = {stem: path for stem, path in images.items() if stem not in used}
  rest_groups = group_channels(rest)
  for name, group in rest_groups.items():
    if name in files:
      refused += [
        Refused(files[name], same_name(rest.pop(stem), files[name]))
        for stem in group.values()
      ]
    elif 0 in group:  # one line for all its channels
      for stem in list(group.values())[1:]:
        del rest[stem]
  oddities = [*_unused(image_folder), *_unused(label_folder)]
  if rest:
    count = len(rest)
    oddities.append(
      f'{image_folder}: {counted(count, "image")} without a label in '
      f'{label_folder} {"are" if count > 1 else "is"} left out '
      f'({name_some(path.name for path in rest.values())}); a label has the '
      f'name of the case, or that and one of {", ".join(MASK_SUFFIXES)}'
    )
  return Layout(
    tuple(files[name] for name in sorted(files)),
    refused=tuple(refused),
    oddities=tuple(oddities),
  )


def list_cases(
  paths: Sequence[pathlib.Path], channels: int
) -> tuple[tuple[VolumeFiles, ...], tuple[Failure, ...]]:
  """Returns the cases to predict, by name, and those that cannot be.

  Reads the headers, to see the number of channels.

  Args:
    paths: volumes of one folder.
    channels: the number of image channels that a case must have.
  """
  stems, failures = {}, []
  grouped = collections.defaultdict(list)
  for path in paths:
    grouped[case_name(path)].append(path)
  for name, same in grouped.items():
    stems[name] = same[0]
    if len(same) > 1:  # nobody knows which is meant
      del stems[name]
      line = same_name(same[1], VolumeFiles(name, (same[0],)))
      failures.append(Failure(f'{same[0].name} and {same[1].name}', line))
  cases = {}
  groups = {
    k: group for k, group in group_channels(stems).items() if 0 in group
  }
  for name, group in groups.items():
    files = [stems.pop(stem) for stem in group.values()]
    folder = files[0].parent
    problem = _missing_channel(folder, name, group, channels)
    if not problem and len(group) > channels:
      problem = (
        f'{folder}: case {name} has {counted(len(group), "channel file")}; '
        'allowed is the number of channels of the training, '
        f'{_numbered(name, channels)} (numbers of cases must not begin with '
        '_0000)'
      )
    if problem:
      failures.append(Failure(name, problem))
    elif name in stems:
      line = same_name(stems[name], VolumeFiles(name, tuple(files)))
      names = f'{stems.pop(name).name} and {files[0].name}'
      failures.append(Failure(names, line))
    else:
      cases[name] = VolumeFiles(name, tuple(files))
  cases |= {stem: VolumeFiles(stem, (file,)) for stem, file in stems.items()}
  for case in list(cases.values()):
    problem = _wrong_channels(case, channels)
    if problem:
      failures.append(Failure(case.images[0].name, problem))
      del cases[case.name]
  return tuple(cases[name] for name in sorted(cases)), tuple(failures)


def channels_beside(
  path: pathlib.Path, channels: int
) -> tuple[pathlib.Path, ...]:
  """Returns a file and those of the other channels of its case.

  A file that is complete is a case of its own, whatever lies beside it.

  Raises:
    InputError: the file has no header of a volume.
  """
  match = _CHANNEL.fullmatch(case_name(path))
  if match is None or nifti.read_header(path).channels == channels:
    return (path,)
  paths = [path]
  for other in list_folder(path.parent):
    parts = _CHANNEL.fullmatch(case_name(other))
    if parts and parts[1] == match[1] and nifti.stem(other) != other.name:
      paths += [other] * (other.name != path.name)
  return tuple(paths)


def is_group(case: VolumeFiles) -> bool:
  """Returns whether the case has a file for each channel."""
  return case_name(case.images[0]) != case.name


def by_stem(
  folder: pathlib.Path, refused: list[Refused], *, required: bool = True
) -> dict[str, pathlib.Path]:
  """Returns the volumes of a folder by stem; repeats add to `refused`.

  Raises:
    InputError: none, where they are `required`.
  """
  entries = list_folder(folder)
  paths = [p for p in entries if nifti.stem(p) != p.name and os.path.isfile(p)]
  if required and not paths:
    raise InputError(
      f'{folder}: no volumes; found {name_some(p.name for p in entries)}; '
      f'allowed are {" ".join(SUFFIXES)}'
    )
  stems = {}
  for path in paths:
    name = case_name(path)
    if name in stems:
      first = VolumeFiles(name, (stems[name],))
      refused.append(Refused(first, same_name(path, first)))
    else:
      stems[name] = path
  return stems


def _unused(folder: pathlib.Path) -> list[str]:
  """Returns a line that names what is no volume in a folder of them."""
  parts = data_files(list_folder(folder))
  others = [
    path.name
    for path in find_strays(folder, parts)
    if nifti.stem(path) == path.name or not os.path.isfile(path)
  ]
  if not others:
    return []
  return [
    f'{folder}: not used: {name_some(others)}; what is read are files '
    f'{" ".join(SUFFIXES)} directly in it'
  ]


def _wrong_channels(case: VolumeFiles, channels: int) -> str:
  """Returns a line if the headers tell of another number of channels."""
  try:
    found = sum(nifti.read_header(file).channels for file in case.images)
  except (InputError, OSError) as error:
    return str(error)
  if found == channels:
    return ''
  match = _CHANNEL.fullmatch(case.name)
  files = _numbered(match[1] if match else case.name, channels)
  return (
    f'{case.images[0]}: {counted(found, "channel")}; allowed is the '
    f'number of channels of the training, {channels}'
    + f', in one file or in {files}'
    * (channels > 1)
  )


def _missing_channel(
  folder: pathlib.Path, name: str, group: dict[int, str], channels: int = 0
) -> str:
  """Returns a line if not all of `channels` are there (0: up to the last)."""
  for number in range(channels or max(group) + 1):
    if number not in group:
      return (
        f'{folder}: case {name} has no file {name}_{number:04d}; allowed are '
        f'files of all its channels, {_numbered(name, channels)}'
      )
  return ''


def group_channels(stems: Iterable[str]) -> dict[str, dict[int, str]]:
  """Returns the stems `NAME_0000`, ... by NAME and number, in order."""
  groups = collections.defaultdict(dict)
  for stem in sorted(stems):
    match = _CHANNEL.fullmatch(stem)
    if match:
      groups[match[1]][int(match[2])] = stem
  return groups


def case_name(path: pathlib.Path) -> str:
  # macOS writes accents as separate characters; the same name must match.
  return unicodedata.normalize('NFC', nifti.stem(path))


def same_name(path: pathlib.Path, other: VolumeFiles) -> str:
  return (
    f'{path}: the name of the case, {other.name}, is also that of '
    f'{other.images[0]}; allowed is one case of each name'
  )


def _numbered(name: str, channels: int) -> str:
  """Returns the names of the files of a case; all of them for 0."""
  if channels == 1:
    return f'{name}_0000'
  last = f'to {name}_{channels - 1:04d}' if channels else 'and so on'
  return f'{name}_0000 {last}'
