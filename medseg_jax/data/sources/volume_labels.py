"""What the label files of a data set of volumes mean: which value is what.

By the user's word, else by `dataset.json`, else by what occurs in the files.
"""

import collections
import concurrent.futures
import contextlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data import instances as instances_lib
from medseg_jax.data import label_inference, labels, numbered_objects
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources import region_order
from medseg_jax.data.sources.dataset_json import MAX_VALUE, DatasetJson
from medseg_jax.runtime.errors import InputError, InputErrors, counted, quote

# A value of fewer voxels than a cube of 3 looks like a slip of the hand.
FEW = 27
# Labels are read in threads, each in memory as a whole.
_THREADS = 4
_LOOKED_AT = 8  # labels, for where each value lies


class Meaning(NamedTuple):
  """What the labels mean; the attributes are those of `VolumeSource`.

  `oddities` has a line for each thing that looks like a mistake.
  """

  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  regions: tuple[tuple[str, tuple[int, ...]], ...] = ()
  region_order: tuple[int, ...] = ()
  ignore_value: int | None = None
  instances: str = ''
  strays_ignored: bool = False
  oddities: tuple[str, ...] = ()


def find_meaning(
  root: pathlib.Path,
  info: DatasetJson | None,
  paths: Sequence[pathlib.Path],
  *,
  classes: tuple[str, ...],
  label_values: tuple[int, ...],
  instances: str,
  strict: bool,
) -> Meaning:
  """Returns what the labels of a data set mean.

  Args:
    root: the data set's folder.
    info: what its `dataset.json` says, or None.
    paths: the label files; read where nobody says their values.
    classes: given by the user, or ().
    label_values: given by the user, or ().
    instances: of labels that number objects: 'foreground' for one class of
      all values above 0, 'classes' for one of each, '' to look.
    strict: whether a label that cannot be read is an error, or left to the
      reading of its case.

  Raises:
    InputError: values or names that contradict each other, or no two values.
  """
  instances_lib.check_wish(instances)
  if instances == 'foreground':
    return _one_foreground(root, info, classes, label_values)
  oddities = ()
  if label_values:
    values = label_values
  elif info:
    values = info.label_values
  else:
    values, oddities = _infer(root, paths, classes, instances, strict)
    if not values:
      meaning = _one_foreground(root, info, classes, label_values)
      return meaning._replace(oddities=oddities)
  # As a finished training keeps them in its config, they are those of the file.
  described = info and set(values) == set(info.label_values)
  meaning = _name_values(root, info, classes, values)
  if meaning.regions:
    oddities = (*oddities, *_regions_tell(root, info, values))
  return meaning._replace(strays_ignored=not described, oddities=oddities)


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


def name_counts(counts: dict[int, int]) -> str:
  """Returns, say, `5 (40 voxels), 9 (1 voxel)`."""
  return name_some(
    (f'{value} ({counted(n, "voxel")})' for value, n in counts.items()), 8
  )


def to_indices(
  ids: np.ndarray, label_values: Sequence[int], *, one_foreground: bool = False
) -> np.ndarray:
  """Returns class indices, int16, and -1 for values of no class.

  Args:
    ids: `[z, y, x]` integers.
    label_values: the value of each class.
    one_foreground: whether all values above 0 are class 1.
  """
  table = np.full(MAX_VALUE + 2, -1, np.int16)
  table[list(label_values)] = np.arange(len(label_values))
  label = np.empty(ids.shape, np.int16)
  for plane, of_plane in zip(label, ids, strict=True):
    if one_foreground:
      plane[:] = np.sign(of_plane.astype(np.int32))
      continue
    if of_plane.min() < 0 or of_plane.max() > MAX_VALUE:
      outside = (of_plane < 0) | (of_plane > MAX_VALUE)
      of_plane = np.where(outside, np.int64(MAX_VALUE + 1), of_plane)
    plane[:] = table[of_plane]  # at once it would take 8 bytes a voxel
  return label


def _one_foreground(
  root: pathlib.Path,
  info: DatasetJson | None,
  classes: tuple[str, ...],
  label_values: tuple[int, ...],
) -> Meaning:
  instances_lib.check_label_values(label_values)
  values = label_values or (0, 1)
  if values[0] != 0 or not 0 < values[1] <= MAX_VALUE:
    raise InputError(
      f'config.data.label_values is {quote(values)} beside '
      "data.instances='foreground'; allowed are two, 0 and the value to write "
      'for all others, or none'
    )
  return Meaning(
    classes=labels.name_classes(classes, values, str(root)),
    label_values=values,
    ignore_value=info.ignore_value if info else None,
    instances='foreground',
  )


def _name_values(
  root: pathlib.Path,
  info: DatasetJson | None,
  classes: tuple[str, ...],
  values: tuple[int, ...],
) -> Meaning:
  """Returns what the labels mean by `dataset.json` and by the user."""
  outside = [value for value in values if not 0 <= value <= MAX_VALUE]
  if outside:
    raise InputError(
      f'config.data.label_values has {outside[0]}; allowed are 0 to {MAX_VALUE}'
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
    return Meaning(default, values)
  index = {value: i for i, value in enumerate(values)}
  ids = {value for _, of_region in info.regions for value in of_region}
  lost = sorted(ids - set(index))
  if lost:
    raise InputError(
      f'config.data.label_values is {quote(values)}, without '
      f'{name_some(lost)}, which regions of {root / "dataset.json"} have; '
      'allowed are all their ids'
    )
  return Meaning(
    classes=default,
    label_values=values,
    regions=tuple(
      (name, tuple(index[value] for value in of_region))
      for name, of_region in info.regions
    ),
    region_order=tuple(index[value] for value in info.region_order),
    ignore_value=info.ignore_value,
  )


def _regions_tell(
  root: pathlib.Path, info: DatasetJson, values: tuple[int, ...]
) -> tuple[str, ...]:
  """Returns a line for each label that another one stands for in masks.

  Raises:
    InputError: a label, which the user has added, that never comes back.
  """
  found = region_order.changes(values, info.regions, info.region_order)
  for change in found:
    if not change.lossless:
      line = region_order.error(change, info.region_order)
      raise InputError(
        f'config.data.label_values is {quote(values)}: by '
        f'{root / "dataset.json"} {line}'
      )
  return tuple(f'{root}: {region_order.oddity(change)}' for change in found)


def _infer(
  root: pathlib.Path,
  paths: Sequence[pathlib.Path],
  classes: tuple[str, ...],
  instances: str,
  strict: bool,
) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Returns the ids that occur in the label files, ascending, and oddities.

  No ids where they are the numbers of objects, which all become one class.
  """
  counts, problems = _read_all(paths)
  if problems and strict:
    raise InputErrors(problems)
  found = {path: ids for path, ids in counts.items() if ids}
  values = sorted(set().union(*found.values()))
  if values in ([], [0]):
    # Not that they are empty is told then, but why nobody can tell.
    raise InputErrors(
      problems
      or [
        f'{root}: every label is empty (all 0), in '
        f'{counted(len(paths), "file")}; allowed are at least two ids, 0 for '
        'the background'
      ]
    )
  choice, line = instances_lib.choose(
    [np.array([*ids]) for ids in found.values()],
    [] if instances else _objects(found),
    wish=instances,
    classes=classes,
    label_values=(),
    where=str(root),
  )
  if choice:
    return (), (line,)
  if values[0] < 0 or values[-1] > MAX_VALUE:
    raise InputErrors(
      [
        f'{path}: label ids from {min(ids)} to {max(ids)}; allowed are 0 to '
        f'{MAX_VALUE} (or give data.label_values: what is of no class, in few '
        'voxels, is ignored then)'
        for path, ids in found.items()
        if min(ids) < 0 or max(ids) > MAX_VALUE
      ]
    )
  if len(values) > labels.MAX_CLASSES:
    raise InputError(
      f'{root}: {len(values)} ids in the labels, as of single objects; '
      f'allowed is one for each class, {labels.MAX_CLASSES} at most '
      "(data.instances='foreground' makes them one class)"
    )
  if instances == 'classes':
    return tuple(values), ()
  if line:
    return tuple(values), (line,)
  return _without_specks(found)


def _read_all(
  paths: Sequence[pathlib.Path],
) -> tuple[dict[pathlib.Path, dict[int, int]], list[str]]:
  """Returns the counts of each label that can be read, and what cannot."""
  problems = {}

  def read(path):
    try:
      return count_ids(nifti.read_label(path).array)
    except InputError as error:
      problems[path] = str(error)
      return {}

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    counts = dict(zip(paths, pool.map(read, paths), strict=True))
  return counts, [problems[path] for path in paths if path in problems]


def _objects(
  found: dict[pathlib.Path, dict[int, int]],
) -> list[numbered_objects.Objects | None]:
  """Returns what those labels mark that have most values, if it may matter."""
  if not instances_lib.are_many([np.array([*ids]) for ids in found.values()]):
    return []
  most = sorted(found, key=lambda path: -len(found[path]))[:_LOOKED_AT]

  def look_at(path):
    with contextlib.suppress(InputError):  # gone since; told with its case
      ids = nifti.read_label(path).array
      return numbered_objects.find_objects(ids, count_ids(ids))
    return None

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    several = [
      path for path in most if numbered_objects.may_number(found[path])
    ]
    return list(pool.map(look_at, several))


def _without_specks(
  found: dict[pathlib.Path, dict[int, int]],
) -> tuple[tuple[int, ...], tuple[str, ...]]:
  """Returns the values that are classes, and a line for each that is rare.

  A rare value looks like a mistake; specks (see `label_inference`) are certain
  to be one.
  """
  total, files = collections.Counter(), collections.Counter()
  for ids in found.values():
    total.update(ids)
    files.update(ids.keys())
  values = sorted(total)
  specks = label_inference.are_specks(
    np.array([total[v] for v in values]), np.array([files[v] for v in values])
  )
  dropped = {v for v, speck in zip(values, specks, strict=True) if speck and v}
  rare = {v for v in values if v and total[v] < FEW}
  rest = tuple(v for v in values if v not in rare)
  if len(rest) < 2:  # they are all that there is
    return tuple(values), ()
  lines = []
  for value in sorted(rare):
    where = next(path for path, ids in found.items() if value in ids)
    line = (
      f'{where}: the value {value} is in {counted(total[value], "voxel")} of '
      f'{files[value]} of {counted(len(found), "label")}, which looks like a '
      'mistake; '
    )
    if value in dropped:
      line += (
        'these voxels are ignored, in training and in scores, unless '
        'data.label_values has the value'
      )
    else:
      line += (
        'it is a class of its own unless data.label_values says '
        f'{name_some(rest, 8)}'
      )
    lines.append(line)
  return tuple(v for v in values if v not in dropped), tuple(lines)
