"""Predicted masks and their labels, in two folders: pairs by stem, and read.

Volumes, or images. What a label means is found out as it is for a data
set to train on; a prediction is read by the values that the labels have.
"""

import collections
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data import labels as labels_lib
from medseg_jax.data.formats import images, nifti
from medseg_jax.data.formats.volume_formats import SUFFIXES
from medseg_jax.data.sources import folder, volume_files
from medseg_jax.data.sources.dataset_json import DatasetJson, read_dataset_json
from medseg_jax.data.sources.folder_files import Files, names_of_case
from medseg_jax.data.sources.volume_files import (
  Failure,
  Refused,
  VolumeFiles,
)
from medseg_jax.data.sources.volume_labels import (
  count_ids,
  find_meaning,
  to_indices,
)
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.runtime.errors import InputError

Pairs = VolumeSource | folder.FolderSource


class Matched(NamedTuple):
  """The masks of two folders.

  Attributes:
    pairs: a prediction as image, its label; by name, which is the prediction's
      stem.
    volumes: whether they are volumes, and not images.
    failures: the labels that have not exactly one prediction.
    unused: the predictions that no label belongs to.
  """

  pairs: tuple[VolumeFiles, ...]
  volumes: bool
  failures: tuple[Failure, ...]
  unused: tuple[pathlib.Path, ...]


class Pair(NamedTuple):
  """What is scored.

  Attributes:
    pred: int [*S], class indices, on the label's grid; one more than the last
      class where the file has a value that no class has.
    label: int [*S], class indices, -1 where it says nothing.
    spacing: of each axis, in mm; 1 for images.
    unknown: pixels or voxels of each value of the prediction of no class.
  """

  pred: np.ndarray
  label: np.ndarray
  spacing: tuple[float, ...]
  unknown: dict[int, int]


def _images(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the images of a folder by stem, however that is encoded."""
  found: dict[str, pathlib.Path] = {}
  for path in images.list_images(folder):
    stem = unicodedata.normalize('NFC', path.stem)
    if stem in found:
      raise InputError(
        f'{folder}: two images are called {stem}, in two ways of writing it '
        'in Unicode; allowed is one of each name'
      )
    found[stem] = path
  return found


def match_masks(predictions: pathlib.Path, labels: pathlib.Path) -> Matched:
  """Returns which prediction and label belong together.

  A file belongs to that of the same stem, or of the same but for one of the
  suffixes that masks usually have, on either side. Volumes of labels, where
  there are any, are what is scored, else images.

  Raises:
    InputError: no such folder, or no masks of one kind in both.
  """
  entries = images.list_folder(labels)
  volumes = any(nifti.stem(path) != path.name for path in entries)
  failures: list[Failure] = []
  if volumes:
    found = [_volumes(place, failures) for place in (predictions, labels)]
  else:
    kinds = f'{" ".join(SUFFIXES)}, or {" ".join(images.IMAGE_SUFFIXES)}'
    if not any(p.suffix.lower() in images.IMAGE_SUFFIXES for p in entries):
      raise InputError(
        f'{labels}: no masks; found '
        f'{images.name_some(p.name for p in entries)}; allowed are {kinds}'
      )
    found = [_images(place) for place in (predictions, labels)]
  made, true = found
  refused = {failure.name for failure in failures}
  alike = collections.defaultdict(list)
  for stem in made:
    for name in names_of_case(stem):
      alike[name].append(stem)
  pairs: dict[str, VolumeFiles] = {}
  used = set()
  # Who has a partner of the very same stem takes it first.
  for stem in sorted(true, key=lambda stem: (stem not in made, stem)):
    label = true[stem]
    stems = [stem] if stem in made else []
    if not stems:
      stems = sorted({s for name in names_of_case(stem) for s in alike[name]})
    used.update(stems)
    if len(stems) == 1 and stems[0] not in pairs:
      name = stems[0]
      pairs[name] = VolumeFiles(name, (made[name],), label)
      continue
    if stem in refused:
      continue
    if not stems:
      line = f'a label without its prediction in {predictions}'
    elif len(stems) > 1:
      names = ' and '.join(made[s].name for s in stems)
      line = f'{names} are both its prediction; allowed is one'
    else:
      first = pairs[stems[0]]
      line = f'the second label of {first.images[0]}, after {first.label.name}'
      line += '; allowed is one'
    failures.append(Failure(stem, f'{label}: {line}'))
  return Matched(
    tuple(pairs[name] for name in sorted(pairs)),
    volumes,
    tuple(failures),
    tuple(made[s] for s in sorted(made) if s not in used | refused),
  )


def open_pairs(
  matched: Matched,
  labels: pathlib.Path,
  *,
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
  grid_tolerance: float = nifti.TOLERANCE,
) -> Pairs:
  """Returns what the labels mean, and the pairs, for `read_pair`.

  Of volumes by `dataset.json` beside the labels, or in the folder above, where
  there is one. A file that cannot be read fails with its pair.

  Args:
    matched: with one pair or more.
    labels: their folder.
    classes: names, background first; () for those of `dataset.json`, or
      default ones.
    label_values: of each class; () for those of `dataset.json`, or all that
      the labels have.
    instances: 'foreground' where the labels number single objects, which are
      all of one class; 'classes' where they do not; '' to look.
    grid_tolerance: how far predictions may lie off their labels, in voxels.

  Raises:
    InputError: names and values that contradict each other or the files, or no
      label can be read.
  """
  wanted = dict(
    classes=tuple(classes), label_values=tuple(label_values), strict=False
  )
  if not matched.volumes:
    files = [Files(f.name, f.images[0], f.label, None) for f in matched.pairs]
    return folder.open_files(
      labels, {'labels': files}, instances=instances, **wanted
    )['labels']
  root, info = _described(labels)
  meaning = find_meaning(
    root,
    info,
    [files.label for files in matched.pairs],
    instances=instances,
    **wanted,
  )
  return VolumeSource(
    root=root,
    files=matched.pairs,
    channels=1,
    channel_names=('prediction',),
    grid_tolerance=grid_tolerance,
    **meaning._asdict(),
  )


def read_pair(source: Pairs, index: int) -> Pair:
  """Returns prediction and label of pair `index`, as class indices.

  Raises:
    InputError: a file is missing or damaged, they are of unequal size or do
      not cover the same space, or the label has a value of no class.
  """
  if isinstance(source, folder.FolderSource):
    return _read_images(source, index)
  files = source.files[index]
  ids = nifti.read_label(files.label)
  problem, _ = source.judge_ids(index, count_ids(ids.array))
  if problem:
    raise InputError(problem)
  volume = nifti.read_label(files.images[0])
  made = nifti.align(
    volume.array,
    volume.grid,
    ids.grid,
    what=str(files.images[0]),
    where=str(files.label),
    tolerance=source.grid_tolerance,
  )
  pred = to_indices(
    made, source.label_values, one_foreground=bool(source.instances)
  )
  strange = pred < 0
  unknown = count_ids(made[strange][None]) if strange.any() else {}
  pred[strange] = len(source.classes)
  return Pair(pred, source.to_classes(ids.array), ids.spacing, unknown)


def _read_images(source: folder.FolderSource, index: int) -> Pair:
  case = source[index]
  path, values = source.files[index].image, source.label_values
  mask, lossy = images.decode_mask(path)
  unknown = {}
  if source.instances:
    far = np.abs(mask.astype(np.int64) - values[0])
    pred = (far > 127 if lossy else far > 0).astype(np.int32)
  else:
    pred = labels_lib.to_classes(mask, values)
    strange = mask != np.asarray(values)[pred]
    if not lossy and strange.any():
      found, counts = np.unique(mask[strange], return_counts=True)
      unknown = dict(zip(found.tolist(), counts.tolist(), strict=True))
      pred[strange] = len(values)
  return Pair(pred, case.label, case.spacing, unknown)


def _volumes(
  place: pathlib.Path, failures: list[Failure]
) -> dict[str, pathlib.Path]:
  """Returns volumes by stem, without those of which two have one stem."""
  refused: list[Refused] = []
  stems = volume_files.by_stem(place, refused)
  for files, reason in refused:
    stems.pop(files.name, None)
    failures.append(Failure(files.name, reason))
  return stems


def _described(
  labels: pathlib.Path,
) -> tuple[pathlib.Path, DatasetJson | None]:
  """Returns the folder of the labels' `dataset.json`, and what it says."""
  for place in (labels, labels.absolute().parent):
    if (place / 'dataset.json').exists():
      return place, read_dataset_json(place / 'dataset.json')
  return labels, None


def describe_unknown(path: pathlib.Path, unknown: Mapping[int, int]) -> str:
  """Returns a line on the values of a prediction that no class has."""
  some = ', '.join(f'{v} ({n} times)' for v, n in list(unknown.items())[:8])
  more = f', ... ({len(unknown)} in all)' if len(unknown) > 8 else ''
  return (
    f'{path}: values that no label has: {some}{more}; they count as wrong '
    'wherever they are'
  )
