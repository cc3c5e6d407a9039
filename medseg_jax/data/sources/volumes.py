"""A folder of volumes with labels as cases: files in a usual layout.

The Medical Segmentation Decathlon (`dataset.json`, `imagesTr`, `labelsTr`),
nnU-Net's raw folders of version 1 and 2, or plain `images` and `labels`; see
`dataset_json`, `volume_layouts` and `volume_files`.
"""

import collections
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.formats.volume_formats import data_files
from medseg_jax.data.numbered_objects import HANDFUL
from medseg_jax.data.sources import volume_files
from medseg_jax.data.sources.already_read import AlreadyRead
from medseg_jax.data.sources.dataset_json import read_dataset_json
from medseg_jax.data.sources.volume_files import Refused, VolumeFiles
from medseg_jax.data.sources.volume_geometry import find_oddities
from medseg_jax.data.sources.volume_labels import (
  FEW,
  count_ids,
  find_meaning,
  name_counts,
  to_indices,
)
from medseg_jax.data.sources.volume_layouts import find_layouts
from medseg_jax.runtime import telling
from medseg_jax.runtime.errors import InputError, InputErrors, counted
from medseg_jax.runtime.files import files_key


@dataclasses.dataclass(frozen=True)
class VolumeSource:
  """Cases of one split, read from their files by index (see `case.Source`).

  Attributes:
    root: the data set's folder.
    files: the files of each case.
    classes: names of the classes, background first, one for each of
      `label_values`; empty for images without labels.
    label_values: the value of each class in the label files.
    channels: number of image channels.
    channel_names: name of each channel.
    regions: name and class indices of each region; empty where the classes
      themselves are what is segmented.
    region_order: the class index to write for each region, later regions over
      earlier ones.
    ignore_value: the value of voxels without a label, or None.
    instances: 'foreground' where the labels number single objects: every value
      above 0 is of class 1; '' elsewhere.
    strays_ignored: whether values of no class in a few voxels of a label are
      ignored; otherwise they are errors.
    grid_tolerance: how far a label may lie off its image, in voxels.
    problems: a line for each error among the files of the data set.
    incomplete: of these those of single cases, which are not in `files`.
    refused: why a case of `files` fails when it is read, by name.
    oddities: a line for each thing there that is only strange.
    already_read: cases in memory that the next reading hands out.
    told: lines on strays that were told, by whoever read the label first.
    stage_masks: of a cascade, the file of what the coarser network says of each
      case, by name; see `data.previous_stage`.
  """

  root: pathlib.Path
  files: tuple[VolumeFiles, ...]
  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  channels: int
  channel_names: tuple[str, ...]
  regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
  region_order: tuple[int, ...] = ()
  ignore_value: int | None = None
  instances: str = ''
  strays_ignored: bool = False
  grid_tolerance: float = nifti.TOLERANCE
  problems: tuple[str, ...] = ()
  incomplete: tuple[Refused, ...] = ()
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
  oddities: tuple[str, ...] = ()
  already_read: AlreadyRead = dataclasses.field(
    default_factory=AlreadyRead, repr=False, compare=False
  )
  told: set[str] = dataclasses.field(
    default_factory=set, repr=False, compare=False
  )
  stage_masks: Mapping[str, pathlib.Path] = dataclasses.field(
    default_factory=dict, repr=False, compare=False
  )

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    return tuple(case.name for case in self.files)

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Case:
    """Returns case `index`: image `[z, y, x, C]`, label int16 `[z, y, x]`.

    The label is on the image's grid; -1 marks voxels to ignore. It is None
    where the case has no label file.

    Raises:
      InputError: a file is missing or damaged, has values that are not finite
        or another number of channels; the grids of image and label differ, or
        a label has a value of no class.
    """
    files = self.files[index]
    if files.name in self.refused:
      raise InputError(self.refused[files.name])
    if case := self.already_read.take(lambda: self.case_key(index)):
      return case
    image = self.read_image(index)
    label = None
    if files.label is not None:
      ids = nifti.read_label(files.label)
      problem, strays = self.judge_ids(index, count_ids(ids.array))
      if problem:
        raise InputError(problem)
      if strays and strays not in self.told:
        self.told.add(strays)
        telling.warn(strays)
      label = self.to_classes(self.align_label(index, ids, image))
    return Case(
      name=files.name,
      image=image.array,
      label=label,
      spacing=image.spacing,
      affine=image.affine,
    )

  def read_image(self, index: int) -> nifti.Volume:
    """Returns the image of case `index`.

    Raises:
      InputError: see `__getitem__`.
    """
    paths = self.files[index].images
    image = nifti.read_channels(paths, tolerance=self.grid_tolerance)
    found = image.array.shape[-1]
    if found != self.channels:
      raise InputError(
        f'{paths[0]}: {counted(found, "channel")}; allowed is the '
        f"number of the data set's channels, {self.channels} "
        f'({name_some(self.channel_names)})'
      )
    return image

  def align_label(
    self, index: int, ids: nifti.Volume, image: nifti.Volume
  ) -> np.ndarray:
    """Returns the ids `[z, y, x]` of case `index` on the grid of its image.

    Raises:
      InputError: they do not cover the same space.
    """
    return nifti.align(
      ids.array,
      ids.grid,
      image.grid,
      what=str(self.files[index].label),
      where=str(self.files[index].images[0]),
      tolerance=self.grid_tolerance,
    )

  def find_oddities(self, index: int) -> tuple[str, ...]:
    """Returns a line for each oddity in the headers of case `index`."""
    return find_oddities(self.files[index], self.grid_tolerance)

  def judge_ids(self, index: int, counts: dict[int, int]) -> tuple[str, str]:
    """Returns a line that names ids of no class, and one that names strays.

    Either is '' where there is nothing to say.

    Args:
      index: the case.
      counts: what `count_ids` says of its label.
    """
    allowed = {*self.label_values, self.ignore_value}
    found = {value: n for value, n in counts.items() if value not in allowed}
    if self.instances:
      found = {value: n for value, n in found.items() if value < 0}
    if not found:
      return '', ''
    label, ids = self.files[index].label, name_counts(found)
    if self.strays_ignored and sum(found.values()) < FEW:
      return '', (
        f'{label}: label ids of no class: {ids}; these '
        'voxels are ignored, in training and in scores'
      )
    ignored = ''
    if self.ignore_value is not None:
      ignored = f', ignore {self.ignore_value}'
    hint = ''
    if len(found) > HANDFUL:
      hint = "; data.instances='foreground' makes one class of numbered objects"
    return (
      f'{label}: label ids of no class: {ids}; allowed are '
      f'{name_some(self.label_values, 20)}{ignored} (see dataset.json or '
      f'data.label_values){hint}'
    ), ''

  def to_classes(self, ids: np.ndarray) -> np.ndarray:
    """Returns class indices, int16, and -1 for what is to be ignored."""
    label = to_indices(
      ids, self.label_values, one_foreground=bool(self.instances)
    )
    if self.instances and self.ignore_value is not None:
      label[ids == self.ignore_value] = -1
    return label

  def case_key(self, index: int) -> str:
    """Returns a hash of the case's files (name, content) and the labels.

    Raises:
      InputError: a file is no longer there, or cannot be read.
    """
    files = self.files[index]
    meaning = self.label_values, self.regions, self.ignore_value, self.channels
    merged = ('one foreground',) * bool(self.instances)
    paths = [*files.images] + [files.label] * (files.label is not None)
    return files_key(
      (*paths, *data_files(paths)),
      self.root,
      (files.name, *meaning, *merged),
    )

  def with_incomplete(self) -> 'VolumeSource':
    """Returns the source of all cases; the incomplete fail when read."""
    refused: dict[str, str] = {}
    by_name = {files.name: files for files in self.files}
    owners = {p: f for f in self.files for p in (*f.images, f.label)}
    for files, reason in self.incomplete:
      files = owners.get(files.images[0], files)
      refused.setdefault(files.name, reason)
      by_name.setdefault(files.name, files)
    files = tuple(by_name[name] for name in sorted(by_name))
    return dataclasses.replace(self, files=files, refused=refused)

  def subset(self, names: Sequence[str]) -> 'VolumeSource':
    """Returns the source of the cases of these names, in this order.

    Raises:
      ValueError: a name that no case has.
    """
    by_name = dict(zip(self.names, self.files, strict=True))
    unknown = [name for name in names if name not in by_name]
    if unknown:
      raise ValueError(f'no cases {name_some(unknown)} in {self.root}')
    return dataclasses.replace(self, files=tuple(by_name[n] for n in names))


def open_volumes(
  path: str | os.PathLike,
  *,
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
  grid_tolerance: float = nifti.TOLERANCE,
  strict: bool = True,
  known: Collection[pathlib.Path] = (),
) -> dict[str, VolumeSource]:
  """Returns the sources `train` and `test`, as far as there are labels of it.

  `train` holds all labelled training cases: folds are made of its names.
  Without a `dataset.json` (and `label_values`) every label is read once.

  Args:
    path: the data set's folder.
    classes: names, background first; default those of `dataset.json`, or
      `background`, `foreground`, or `background`, `label_1`, ...
    label_values: value of each class in the label files; default those of
      `dataset.json`, or all that occur, ascending.
    instances: of labels that number single objects: 'foreground', all are one
      class, or 'classes', each is one; '' to look at the labels (see
      `instances.judge`), unless their values are known.
    grid_tolerance: how far a label may lie off its image, in voxels.
    strict: whether problems of the layout (such as a label without an image)
      are errors. Otherwise they are `problems` of the sources, to be listed.
    known: files of the folder that the run uses otherwise.

  Raises:
    InputError: the layout, a file or a label value is not allowed.
  """
  if not 0 <= grid_tolerance < math.inf:
    raise InputError(
      f'config.data.grid_tolerance is {grid_tolerance}; allowed are voxels '
      'from 0 on'
    )
  root = pathlib.Path(path)
  described = root / 'dataset.json'
  info = None
  if os.path.lexists(described):  # also what is no file is looked at, and told
    info = read_dataset_json(described)
  layouts = find_layouts(root, info.training if info else None, known)
  problems = [
    line
    for layout in layouts.values()
    for line in (*layout.problems, *(case.reason for case in layout.refused))
  ]
  whole = layouts.get('train', layouts.get('test'))
  if problems and (strict or not whole.files):
    raise InputErrors(problems)
  files = {split: layout.files for split, layout in layouts.items()}
  files = {split: cases for split, cases in files.items() if cases}
  names = info.channel_names if info else ()
  if not names:
    count, _ = _count_channels(whole.files)
    names = tuple(f'channel_{i}' for i in range(count))
  elif not strict:  # who reads all files anyway can tell who is wrong
    _check_names(described, names, whole.files)
  if strict:  # otherwise found again, and reported, when the case is read
    for cases in files.values():
      _check_channel_files(cases, names)
  meaning = find_meaning(
    root,
    info,
    [case.label for cases in files.values() for case in cases],
    classes=tuple(classes),
    label_values=tuple(int(value) for value in label_values),
    instances=instances,
    strict=strict,
  )
  fields = meaning._asdict()
  odd = [line for layout in layouts.values() for line in layout.oddities]
  odd += fields.pop('oddities')
  already_read = AlreadyRead()
  return {
    split: VolumeSource(
      root=root,
      files=cases,
      channels=len(names),
      channel_names=names,
      grid_tolerance=grid_tolerance,
      problems=tuple(problems),
      incomplete=layouts[split].refused,
      oddities=tuple(odd),
      already_read=already_read,
      **fields,
    )
    for split, cases in files.items()
  }


def _count_channels(cases: Sequence[VolumeFiles]) -> tuple[int, int]:
  """Returns the number of channels that most cases have, and how many these.

  Raises:
    InputErrors: no header can be read.
  """
  found, problems = collections.Counter(), []
  for case in cases:
    try:
      if volume_files.is_group(case):
        found[len(case.images)] += 1
      else:
        found[nifti.read_header(case.images[0]).channels] += 1
    except InputError as error:  # told again when the case is read
      problems.append(str(error))
  if not found:
    raise InputErrors(problems)
  return found.most_common(1)[0]


def _check_names(
  described: pathlib.Path, names: tuple[str, ...], cases: Sequence[VolumeFiles]
) -> None:
  """Blames `dataset.json` where most cases have another number of channels."""
  try:
    count, agree = _count_channels(cases)
  except InputErrors:
    return  # each is told when it is read
  if count != len(names) and 2 * agree > len(cases) > 1:
    raise InputError(
      f'{described}: names {counted(len(names), "channel")} '
      f'({name_some(names)}), but {agree} of {len(cases)} cases have {count}; '
      'allowed is a name for each channel'
    )


def _check_channel_files(
  cases: Sequence[VolumeFiles], names: tuple[str, ...]
) -> None:
  for case in cases:
    if volume_files.is_group(case) and len(case.images) != len(names):
      raise InputError(
        f'{case.images[0]}: one of {len(case.images)} channel files of the '
        f'case {case.name}; allowed are {len(names)}, one for each channel '
        f'({name_some(names)})'
      )
