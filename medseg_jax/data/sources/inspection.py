"""Checks of a data set of volumes: every problem in one go, a line for each.

Errors are what training would stop at, warnings what is legal but odd. Each
case is read once, by `inspect_case`; `inspect_set` compares them. What is odd
about the layout and the headers is told wherever files are opened, not here.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.identity import digest, is_blank
from medseg_jax.data.sources.volume_labels import count_ids
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.runtime.errors import InputError, counted

# A case is odd where its spacing or shape is so many times off the median ...
ODD_FACTOR = {'spacing': 2.0, 'shape': 3.0}
# ... but not where more of the cases are (a wide range), or there are fewer.
ODD_SHARE = 0.05
ODD_MIN_CASES = 5


class Inspection(NamedTuple):
  """What the reading of one case has shown.

  Attributes:
    case: as the source gives it; None where there are errors. Of many cases
      keep `inspection._replace(case=None)`: `inspect_set` needs no voxels.
    errors: a line for each problem; each names the file.
    warnings: a line for each oddity; each names the file.
    digest: hash of the image's voxels; empty where it cannot be read.
    shape: of the image, (z, y, x); empty where it cannot be read.
    spacing: of the image in mm; empty where it cannot be read.
    counts: voxels of each id of the label; empty where it cannot be read.
  """

  case: Case | None
  errors: tuple[str, ...]
  warnings: tuple[str, ...]
  digest: str
  shape: tuple[int, ...]
  spacing: tuple[float, ...]
  counts: dict[int, int]


def inspect_case(source: VolumeSource, index: int) -> Inspection:
  """Returns case `index` with all that is wrong or odd about its voxels."""
  files = source.files[index]
  errors, warnings = [], []
  image = ids = label = None
  try:
    image = source.read_image(index)
    warnings += _constant_channels(source, index, image.array)
  except InputError as error:
    errors.append(str(error))
  if files.label is not None:
    try:
      ids = nifti.read_label(files.label)
    except InputError as error:
      errors.append(str(error))
  counts = {}
  if ids is not None:
    counts = count_ids(ids.array)
    problem, strays = source.judge_ids(index, counts)
    if strays:
      warnings.append(strays)
      source.told.add(strays)
    if problem:
      errors.append(problem)
    elif not set(counts) & set(source.label_values[1:]):
      warnings.append(f'{files.label}: the label is empty, no voxel of a class')
    if image is not None:
      try:
        aligned = source.align_label(index, ids, image)
        label = None if problem else source.to_classes(aligned)
      except InputError as error:
        errors.append(str(error))
  case = None
  if not errors:
    case = Case(files.name, image.array, label, image.spacing, image.affine)
  return Inspection(
    case=case,
    errors=tuple(errors),
    warnings=tuple(warnings),
    digest='' if image is None else digest(image.array),
    shape=() if image is None else image.array.shape[:3],
    spacing=() if image is None else image.spacing,
    counts=counts,
  )


def inspect_set(
  source: VolumeSource, inspections: Sequence[Inspection]
) -> tuple[list[str], list[str]]:
  """Returns the errors and the warnings of the set as a whole.

  Those of its cases are not among them.

  Args:
    source: the set, opened with `strict=False`.
    inspections: one for each of its cases, in their order.
  """
  warnings = []
  by_digest = collections.defaultdict(list)
  for files, inspection in zip(source.files, inspections, strict=True):
    if inspection.digest and not is_blank(inspection.digest):
      by_digest[inspection.digest].append(files.images[0])
  for first, *others in by_digest.values():
    warnings += [f'{path}: the same voxels as {first}' for path in others]
  for name, unit in (('spacing', ' mm'), ('shape', ' voxels')):
    values = [getattr(inspection, name) for inspection in inspections]
    warnings += _odd_ones(source, values, name, unit)
  return list(source.problems), warnings


def describe_classes(
  source: VolumeSource, inspections: Sequence[Inspection]
) -> list[str]:
  """Returns a line for each class: in how many voxels and cases it is.

  Args:
    source: the set.
    inspections: one for each of its cases.
  """
  found = [inspection.counts for inspection in inspections if inspection.counts]
  lines = []
  for name, value in zip(source.classes, source.label_values, strict=True):
    each = [_of_class(source, counts, value) for counts in found]
    each = [count for count in each if count]
    count = sum(each)
    lines.append(
      f'{name} ({value}): {count:,} voxel{"s" * (count != 1)} in {len(each)} '
      f'of {counted(len(found), "label")}'
    )
  return lines


def _of_class(source: VolumeSource, counts: dict[int, int], value: int) -> int:
  """Returns how many voxels of a label are of the class with this value."""
  if not source.instances or value == 0:
    return counts.get(value, 0)
  return sum(n for v, n in counts.items() if v > 0 and v != source.ignore_value)


def _constant_channels(
  source: VolumeSource, index: int, image: np.ndarray
) -> Iterator[str]:
  paths = source.files[index].images
  for i, name in enumerate(source.channel_names):
    channel = image[..., i]
    low = channel.min()
    if low == channel.max():
      path = paths[i] if len(paths) > 1 else paths[0]
      yield f'{path}: {low:g} everywhere in channel {name}'


def _odd_ones(
  source: VolumeSource, values: Sequence[tuple], name: str, unit: str
) -> list[str]:
  """Returns a line for each case far off the median of the set."""
  known = np.array([value for value in values if value], float)
  if len(known) < ODD_MIN_CASES:
    return []
  median = np.median(known, axis=0)
  odd = []
  for files, value in zip(source.files, values, strict=True):
    ratio = np.array(value or median) / median
    if np.maximum(ratio, 1 / ratio).max() > ODD_FACTOR[name]:
      odd.append(
        f'{files.images[0]}: {name} {_times(value)}{unit} (z, y, x), the '
        f'median of the {len(known)} cases is {_times(median)}'
      )
  return odd if len(odd) <= max(1, ODD_SHARE * len(known)) else []


def _times(numbers: Sequence[float]) -> str:
  return ' x '.join(f'{number:g}' for number in numbers)
