"""What a data set's `dataset.json` says of its channels, classes and files.

Two forms are in use. That of the Medical Segmentation Decathlon and of nnU-Net
version 1 maps ids to names, and may list the files:

  {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"},
   "training": [{"image": "./imagesTr/a.nii.gz", "label": ...}, ...]}

nnU-Net version 2 maps names to ids, or to several ids, which makes regions that
may overlap. The id of the name `ignore` marks voxels that nobody labelled:

  {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz",
   "labels": {"background": 0, "whole tumour": [1, 2], "core": 2, "ignore": 3},
   "regions_class_order": [1, 2]}
"""

import os
import pathlib
from typing import Any, NamedTuple

from medseg_jax.data.formats import images
from medseg_jax.data.formats.volume_formats import SUFFIXES
from medseg_jax.data.sources import region_order
from medseg_jax.runtime.errors import InputError, counted, quote, quote_json
from medseg_jax.runtime.files import read_json

# Ids up to here fit the small integers that masks are stored in.
MAX_VALUE = 32767
_LONGEST_NAME = 200

_LABELS = (
  '{"0": "background", "1": "organ", ...} or {"background": 0, "organ": 1, ...}'
)


class Entry(NamedTuple):
  """One file of the list `training`, as it is written there."""

  image: str
  label: str


class DatasetJson(NamedTuple):
  """The content of a `dataset.json`.

  Attributes:
    channel_names: one for each image channel; empty where it names none.
    classes: names of the classes, background first. In a data set of regions,
      a value that no region has to itself is `label_1` for value 1.
    label_values: the value of each class in the mask files, ascending.
    regions: name and values of each region; empty where every name has one
      value.
    region_order: the values to write for the regions, one each, later ones
      over earlier ones; empty where there are no regions.
    ignore_value: the value of voxels without a label, or None.
    training: the listed training files; None where nothing is listed.
  """

  channel_names: tuple[str, ...]
  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  regions: tuple[tuple[str, tuple[int, ...]], ...]
  region_order: tuple[int, ...]
  ignore_value: int | None
  training: tuple[Entry, ...] | None


def read_dataset_json(path: str | os.PathLike) -> DatasetJson:
  """Returns what a `dataset.json` of either form says.

  The number of cases that some files state is not read: it is often wrong.

  Raises:
    InputError: it cannot be read, is not JSON or not of either form, or a
      label does not come back from the regions that it lies in.
  """
  path = pathlib.Path(path)
  content = read_json(path, 'an object with "labels"')
  if not isinstance(content, dict):
    raise InputError(
      f'{path}: holds no JSON object; allowed is an object with "labels"'
    )
  if not content.get('labels') or not isinstance(content['labels'], dict):
    raise InputError(
      f'{path}: no "labels"; found {images.name_some(content, 8)}; allowed is '
      f'"labels": {_LABELS}'
    )
  ending = content.get('file_ending', SUFFIXES[0])
  if ending not in SUFFIXES:
    raise InputError(
      f'{path}: "file_ending" {quote_json(ending)}; allowed are '
      f'{" ".join(SUFFIXES)} (convert the files to one of them)'
    )
  values = _values_by_name(content['labels'], path)
  classes, label_values = _name_values(values, path)
  regions = ()
  if any(len(of_name) > 1 for of_name in values.values()):
    regions = tuple(
      (name, of_name)
      for name, of_name in values.items()
      if name != 'ignore' and of_name != (0,)
    )
  return DatasetJson(
    channel_names=_channel_names(content, path),
    classes=classes,
    label_values=label_values,
    regions=regions,
    region_order=_region_order(content, regions, label_values, path),
    ignore_value=values['ignore'][0] if 'ignore' in values else None,
    training=_training(content, path),
  )


def read_channel_names(path: str | os.PathLike) -> tuple[str, ...]:
  """Returns the names of the channels alone; empty where it names none.

  Raises:
    InputError: it cannot be read, is no JSON object, or names them otherwise.
  """
  path = pathlib.Path(path)
  content = read_json(path, 'an object with "channel_names"')
  if not isinstance(content, dict):
    raise InputError(
      f'{path}: holds no JSON object; allowed is an object with "channel_names"'
    )
  return _channel_names(content, path)


def _values_by_name(
  entries: dict[str, Any], path: pathlib.Path
) -> dict[str, tuple[int, ...]]:
  """Returns the label values of each name."""
  by_id = all(key.strip().isdecimal() for key in entries)
  values = {}
  for key, value in entries.items():
    name, ids = (value, key) if by_id else (key, value)
    of_name = tuple(map(_to_id, ids if isinstance(ids, list) else [ids]))
    if (
      not _is_name(name)
      or not of_name
      or len(set(of_name)) < len(of_name)
      or not 0 <= min(of_name) <= max(of_name) <= MAX_VALUE
    ):
      raise InputError(
        f'{path}: "labels" has {quote_json({key: value})}; allowed is {_LABELS}'
        f' with ids from 0 to {MAX_VALUE}, each once, and names of one line'
      )
    if name in values:
      raise InputError(
        f'{path}: "labels" has two ids of the name {quote(name)}; allowed is '
        'one'
      )
    values[name] = of_name
  if len(values.get('ignore', (0,))) > 1:
    raise InputError(
      f'{path}: "labels" has {len(values["ignore"])} ids of "ignore"; allowed '
      'is one'
    )
  return values


def _name_values(
  values: dict[str, tuple[int, ...]], path: pathlib.Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Returns the classes and their values, ascending, without `ignore`."""
  names = {}
  for name, of_name in values.items():
    if len(of_name) == 1:
      if of_name[0] in names:
        raise InputError(
          f'{path}: "labels" gives {quote(names[of_name[0]])} and '
          f'{quote(name)} the id {of_name[0]}; allowed is one name for each id'
        )
      names[of_name[0]] = name
  own = {v for k, of_name in values.items() if k != 'ignore' for v in of_name}
  for ignored in values.get('ignore', ()):
    if ignored in own:
      raise InputError(
        f'{path}: the id {ignored} of "ignore" is in a region too; allowed is '
        'an id of its own'
      )
  if 0 not in own:
    raise InputError(
      f'{path}: "labels" has no id 0; allowed is {_LABELS}, the background '
      'with the id 0'
    )
  if len(own) < 2:
    raise InputError(
      f'{path}: "labels" has the background only; allowed is {_LABELS}'
    )
  ordered = tuple(sorted(own))
  return tuple(names.get(v, f'label_{v}') for v in ordered), ordered


def _region_order(
  content: dict[str, Any],
  regions: tuple,
  label_values: tuple[int, ...],
  path: pathlib.Path,
) -> tuple[int, ...]:
  if not regions:
    return ()
  order = content.get('regions_class_order')
  ids = tuple(map(_to_id, order)) if isinstance(order, list) else ()
  right = len(ids) == len(set(ids)) == len(regions)
  if not right or not set(ids) <= set(label_values):
    raise InputError(
      f'{path}: "regions_class_order" is '
      f'{"missing" if order is None else quote_json(order)}; allowed is a list '
      f'of {counted(len(regions), "id")} to write for the regions '
      f'{images.name_some(name for name, _ in regions)}, no two the same'
    )
  for change in region_order.changes(label_values, regions, ids):
    if not change.lossless:
      raise InputError(f'{path}: {region_order.error(change, ids)}')
  return ids


def _channel_names(
  content: dict[str, Any], path: pathlib.Path
) -> tuple[str, ...]:
  """Returns the names in the order of their numbers."""
  key = 'channel_names' if 'channel_names' in content else 'modality'
  names = content.get(key, {})
  by_number = {}
  if isinstance(names, dict):
    by_number = {_to_id(number): name for number, name in names.items()}
  if (
    not isinstance(names, dict)
    or sorted(by_number) != list(range(len(names)))
    or not all(_is_name(name) for name in names.values())
  ):
    raise InputError(
      f'{path}: "{key}" is {quote_json(names)}; allowed is '
      '{"0": "T1", "1": "T2", ...}, a name for each channel from 0'
    )
  return tuple(by_number[number] for number in range(len(by_number)))


def _training(
  content: dict[str, Any], path: pathlib.Path
) -> tuple[Entry, ...] | None:
  """Returns the listed files, or None where there is no list."""
  entries = content.get('training')
  if entries is None:
    return None
  pairs = []
  for entry in entries if isinstance(entries, list) else [entries]:
    image = entry.get('image') if isinstance(entry, dict) else None
    label = entry.get('label') if isinstance(entry, dict) else None
    if not all(isinstance(f, str) and f.isprintable() for f in (image, label)):
      raise InputError(
        f'{path}: "training" has {quote_json(entry)}; allowed is a list of '
        '{"image": file, "label": file}'
      )
    pairs.append(Entry(image, label))
  if not pairs:
    raise InputError(
      f'{path}: "training" is empty; allowed is a list of {{"image": file, '
      '"label": file}, or none: then all files of imagesTr count'
    )
  return tuple(pairs)


def _to_id(value: Any) -> int:
  """Returns the number that a value or its text stands for, -1 for none."""
  if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
    return int(value)
  if isinstance(value, float) and value.is_integer() and value <= MAX_VALUE:
    return int(value)
  is_number = isinstance(value, int) and not isinstance(value, bool)
  return value if is_number else -1


def _is_name(value: Any) -> bool:
  """Returns whether a value can name something in one line of a table."""
  return (
    isinstance(value, str)
    and value.isprintable()
    and 0 < len(value) <= _LONGEST_NAME
  )
