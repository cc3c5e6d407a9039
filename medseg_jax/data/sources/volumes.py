"""A folder of volumes with labels as cases: NIfTI files in a usual layout.

The Medical Segmentation Decathlon (`dataset.json`, `imagesTr`, `labelsTr`),
nnU-Net's raw folders of version 1 and 2, or plain `images` and `labels`; see
`dataset_json` and `volume_files`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data import labels
from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources import volume_files
from medseg_jax.data.sources.already_read import AlreadyRead
from medseg_jax.data.sources.dataset_json import (
  MAX_VALUE,
  DatasetJson,
  read_dataset_json,
)
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import stat_key

# Labels are read in threads, each in memory as a whole.
_THREADS = 4


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
    problems: a line for each error among the files of the split.
    oddities: a line for each thing there that is only strange.
    already_read: cases in memory that the next reading hands out.
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
  problems: tuple[str, ...] = ()
  oddities: tuple[str, ...] = ()
  already_read: AlreadyRead = dataclasses.field(
    default_factory=AlreadyRead, repr=False, compare=False
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
    if (case := self.already_read.take(self.case_key(index))) is not None:
      return case
    files = self.files[index]
    image = self.read_image(index)
    label = None
    if files.label is not None:
      ids = nifti.read_label(files.label)
      problem = self.id_problem(index, count_ids(ids.array))
      if problem:
        raise InputError(problem)
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
    image = nifti.read_channels(paths)
    found = image.array.shape[-1]
    if found != self.channels:
      raise InputError(
        f'{paths[0]}: {found} channel{"s" * (found != 1)}; allowed is the '
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
      ids.affine,
      image.array.shape[:3],
      image.affine,
      what=str(self.files[index].label),
      where=str(self.files[index].images[0]),
    )

  def id_problem(self, index: int, counts: dict[int, int]) -> str:
    """Returns a line that names the ids of no class, or '' if there are none.

    Args:
      index: the case.
      counts: what `count_ids` says of its label.
    """
    allowed = {*self.label_values, self.ignore_value}
    found = [
      f'{value} ({n} voxel{"s" * (n != 1)})'
      for value, n in counts.items()
      if value not in allowed
    ]
    if not found:
      return ''
    ignored = ''
    if self.ignore_value is not None:
      ignored = f', ignore {self.ignore_value}'
    return (
      f'{self.files[index].label}: label ids {name_some(found, 8)} are of no '
      f'class; allowed are {name_some(self.label_values, 20)}{ignored} (see '
      'dataset.json or data.label_values)'
    )

  def to_classes(self, ids: np.ndarray) -> np.ndarray:
    """Returns class indices, int16, for ids without an `id_problem`."""
    table = np.full(MAX_VALUE + 1, -1, np.int16)
    table[list(self.label_values)] = np.arange(len(self.label_values))
    label = np.empty(ids.shape, np.int16)
    for plane, of_plane in zip(label, ids, strict=True):
      plane[:] = table[of_plane]  # at once it would take 8 bytes a voxel
    return label

  def case_key(self, index: int) -> str:
    """Returns a hash of the case's files (name, size, time) and the labels.

    Raises:
      InputError: a file is no longer there.
    """
    files = self.files[index]
    meaning = self.label_values, self.regions, self.ignore_value, self.channels
    return stat_key(
      filter(None, (*files.images, files.label)),
      self.root,
      (files.name, *meaning),
    )

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


class _Labels(NamedTuple):
  """The part of a source that says what the labels mean."""

  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
  region_order: tuple[int, ...] = ()
  ignore_value: int | None = None


def open_volumes(
  path: str | os.PathLike,
  *,
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  strict: bool = True,
) -> dict[str, VolumeSource]:
  """Returns the sources `train` and, where there are labels of it, `test`.

  `train` holds all labelled training cases: folds are made of its names.
  Without a `dataset.json` (and `label_values`) every label is read once.

  Args:
    path: the data set's folder.
    classes: names, background first; default those of `dataset.json`, or
      `background`, `foreground`, or `background`, `label_1`, ...
    label_values: value of each class in the label files; default those of
      `dataset.json`, or all that occur, ascending.
    strict: whether problems of the layout (such as an image without a label)
      are errors. Otherwise they are `problems` of the sources, to be listed.

  Raises:
    InputError: the layout, a file or a label value is not allowed.
  """
  root = pathlib.Path(path)
  described = root / 'dataset.json'
  info = read_dataset_json(described) if described.is_file() else None
  layouts = volume_files.find_layouts(root, info.training if info else None)
  for layout in layouts.values():
    if layout.problems and (strict or not layout.files):
      more = len(layout.problems) - 1
      raise InputError(
        layout.problems[0]
        + f' ({more} more problems; --mode=plan lists all)' * (more > 0)
      )
  files = {split: layout.files for split, layout in layouts.items()}
  names = info.channel_names if info else ()
  if not names:
    count = _count_channels(files['train'])
    names = tuple(f'channel_{i}' for i in range(count))
  if strict:  # otherwise found again, and reported, when the case is read
    for cases in files.values():
      _check_channel_files(cases, names)
  if label_values:
    values = tuple(int(value) for value in label_values)
  elif info:
    values = info.label_values
  else:
    values = _scan(root, [c.label for f in files.values() for c in f], strict)
  meaning = _name_labels(root, info, tuple(classes), values)
  return {
    split: VolumeSource(
      root=root,
      files=files[split],
      channels=len(names),
      channel_names=names,
      problems=layout.problems,
      oddities=layout.oddities,
      **meaning._asdict(),
    )
    for split, layout in layouts.items()
  }


def count_ids(ids: np.ndarray) -> dict[int, int]:
  """Returns how many voxels each id of a label `[z, y, x]` has, by id."""
  counts = collections.Counter()
  for plane in ids:  # a copy of the whole would not be small
    if plane.min() >= 0 and plane.max() <= MAX_VALUE:  # faster than sorting
      numbers = np.bincount(plane.ravel())
      values = np.flatnonzero(numbers)
      numbers = numbers[values]
    else:
      values, numbers = np.unique(plane, return_counts=True)
    counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
  return dict(sorted(counts.items()))


def _name_labels(
  root: pathlib.Path,
  info: DatasetJson | None,
  classes: tuple[str, ...],
  values: tuple[int, ...],
) -> _Labels:
  """Returns what the labels mean by `dataset.json` and by the user."""
  outside = [value for value in values if not 0 <= value <= MAX_VALUE]
  if outside:
    raise InputError(
      f'data.label_values: {outside[0]}; allowed are 0 to {MAX_VALUE}'
    )
  default = labels.name_classes(classes, values, str(root))
  if not classes:
    known = {}
    if info:
      known = dict(zip(info.label_values, info.classes, strict=True))
    if known or len(values) > 2:
      default = tuple(
        known.get(v, f'label_{v}' if i else 'background')
        for i, v in enumerate(values)
      )
  if info is None:
    return _Labels(default, values)
  index = {value: i for i, value in enumerate(values)}
  ids = {value for _, of_region in info.regions for value in of_region}
  lost = sorted(ids - set(index))
  if lost:
    raise InputError(
      f'data.label_values: {values} lack {name_some(lost)}, which regions of '
      f'{root / "dataset.json"} have; allowed are all their ids'
    )
  return _Labels(
    classes=default,
    label_values=values,
    regions=tuple(
      (name, tuple(index[value] for value in of_region))
      for name, of_region in info.regions
    ),
    region_order=tuple(index[value] for value in info.region_order),
    ignore_value=info.ignore_value,
  )


def _count_channels(cases: Sequence[VolumeFiles]) -> int:
  """Returns the number of channels of the first case whose header is read."""
  for case in cases:
    if volume_files.is_group(case):
      return len(case.images)
    try:
      return nifti.read_header(case.images[0]).channels
    except InputError:
      if case is cases[-1]:
        raise
  raise ValueError('no cases')


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


def _scan(
  root: pathlib.Path, paths: Sequence[pathlib.Path], strict: bool
) -> tuple[int, ...]:
  """Returns the ids that occur in the label files, ascending."""

  def read(path):
    try:
      return count_ids(nifti.read_label(path).array)
    except InputError:
      if strict:
        raise
      return {}  # is found again, and reported, when the case is read

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    counts = list(pool.map(read, paths))
  values = sorted(set().union(*counts))
  if values in ([], [0]):
    raise InputError(
      f'{root}: every one of the {len(paths)} labels is empty (all 0); allowed '
      'are at least two ids, 0 for the background'
    )
  for path, found in zip(paths, counts, strict=True):
    if found and not 0 <= min(found) <= max(found) <= MAX_VALUE:
      raise InputError(
        f'{path}: label ids from {min(found)} to {max(found)}; allowed are 0 '
        f'to {MAX_VALUE}'
      )
  if len(values) > labels.MAX_CLASSES:
    raise InputError(
      f'{root}: {len(values)} ids in the labels, as of single objects; allowed '
      f'is one for each class, {labels.MAX_CLASSES} at most'
    )
  return tuple(values)
