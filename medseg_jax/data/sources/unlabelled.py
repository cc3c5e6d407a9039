"""A folder of volumes without labels as cases, to learn from images alone.

Files directly in the folder, or in those that data sets keep images in:
what a Decathlon or nnU-Net folder has of labels is not read. Channels are files
or lie in one file, as everywhere (`volume_files`).
"""

import collections
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import (
  find_strays,
  list_folder,
  name_some,
)
from medseg_jax.data.formats.volume_formats import SUFFIXES, data_files
from medseg_jax.data.sources.dataset_json import read_channel_names
from medseg_jax.data.sources.folder_files import MASK_FOLDERS, MASK_SUFFIXES
from medseg_jax.data.sources.volume_files import (
  case_name,
  group_channels,
  list_cases,
)
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.runtime.errors import InputError, InputErrors, counted

FOLDERS = (
  *('imagesTr', 'imagesTs', 'images'),
  *('train/images', 'val/images', 'test/images'),
)
_LABELS = ('labelsTr', 'labelsTs', *MASK_FOLDERS)  # not to be read
# `_seg` is that of tumour challenges, whose masks lie beside their images.
_MASKS = (*MASK_SUFFIXES, '_seg')


@dataclasses.dataclass(frozen=True)
class UnlabelledVolumes(VolumeSource):
  """Volumes without labels, which have no classes.

  The label of a case is 0 everywhere: on its way to the step it takes along
  what lies inside of an image, and what of it is not 0 (`data.masking`).
  """

  def __getitem__(self, index: int) -> Case:
    case = super().__getitem__(index)
    return case._replace(label=np.zeros(case.image.shape[:-1], np.int16))


def open_unlabelled(
  path: str | os.PathLike,
  *,
  grid_tolerance: float = nifti.TOLERANCE,
  strict: bool = True,
) -> dict[str, UnlabelledVolumes]:
  """Returns the source `train` of all volumes of a folder.

  The names of the channels are those of its `dataset.json`, where it has one.

  Args:
    path: the folder.
    grid_tolerance: how far channels of a case may lie off each other, in
      voxels.
    strict: whether problems with single cases are errors. Otherwise they are
      `problems` of the source, to be listed.

  Raises:
    InputError: no volumes, or one is not allowed.
  """
  if not 0 <= grid_tolerance < math.inf:
    raise InputError(
      f'config.data.grid_tolerance is {grid_tolerance}; allowed are voxels '
      'from 0 on'
    )
  root = pathlib.Path(path)
  paths, oddities = _find(root)
  described = root / 'dataset.json'
  names: tuple[str, ...] = ()
  if os.path.lexists(described):
    names = read_channel_names(described)
  names = names or tuple(f'channel_{i}' for i in range(_count_channels(paths)))
  files, failures = list_cases(paths, len(names))
  problems = [failure.reason for failure in failures]
  if problems and (strict or not files):
    raise InputErrors(problems)
  source = UnlabelledVolumes(
    root=root,
    files=files,
    classes=(),
    label_values=(),
    channels=len(names),
    channel_names=names,
    grid_tolerance=grid_tolerance,
    problems=tuple(problems),
    oddities=tuple(oddities),
  )
  return {'train': source}


def _find(root: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
  """Returns the volumes of a folder, and a line for what is left out.

  Raises:
    InputError: there are none.
  """
  list_folder(root)  # says what is wrong with it
  within = {f: _volumes_in(root / f) for f in FOLDERS if (root / f).is_dir()}
  paths = [path for found in within.values() for path in found]
  paths = paths or _volumes_in(root)
  masks = [p for p in paths if case_name(p).lower().endswith(_MASKS)]
  images = [path for path in paths if path not in masks]
  allowed = (
    f'images {" ".join(SUFFIXES)} directly in it, or in {", ".join(FOLDERS)}'
  )
  if not images:
    found = name_some(p.name for p in (masks or list_folder(root)))
    raise InputError(
      f'{root}: no volumes to pretrain on; found {found}; allowed are {allowed}'
    )
  oddities = []
  if masks:
    oddities.append(
      f'{root}: not used: {counted(len(masks), "file")} called as masks are '
      f'({name_some(p.name for p in masks)})'
    )
  used = {
    root / pathlib.Path(f).parts[0] for f, found in within.items() if found
  }
  used |= {root / name for name in _LABELS} | {*paths, *data_files(paths)}
  if strays := find_strays(root, used):
    oddities.append(
      f'{root}: not used: {name_some(p.name for p in strays)}; what is read '
      f'are {allowed}'
    )
  return images, oddities


def _volumes_in(folder: pathlib.Path) -> list[pathlib.Path]:
  return [
    path
    for path in list_folder(folder)
    if nifti.stem(path) != path.name and os.path.isfile(path)
  ]


def _count_channels(paths: Sequence[pathlib.Path]) -> int:
  """Returns the number of channels that most cases have.

  Raises:
    InputErrors: no header can be read.
  """
  stems = {case_name(path): path for path in paths}
  groups = {k: g for k, g in group_channels(stems).items() if 0 in g}
  found = collections.Counter(len(group) for group in groups.values())
  grouped = {stem for group in groups.values() for stem in group.values()}
  problems = []
  for stem, path in stems.items():
    if stem not in grouped:
      try:
        found[nifti.read_header(path).channels] += 1
      except InputError as error:
        problems.append(str(error))
  if not found:
    raise InputErrors(problems)
  return found.most_common(1)[0][0]
