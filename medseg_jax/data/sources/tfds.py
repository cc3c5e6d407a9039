"""Cases of any prepared TFDS data set that holds an image and a mask.

TensorFlow is imported when a data set is opened, so that everything else runs
where it is not installed.

Oxford-IIIT Pet, as an example: its feature 'label' is the breed, so the mask is
'segmentation_mask', of 1 (pet), 2 (background) and 3 (border). The background
comes first, so

  open_tfds('oxford_iiit_pet', classes=('background', 'pet', 'border'),
            label_values=(2, 1, 3))
"""

import collections
import contextlib
import copy
import functools
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from medseg_jax.data import instances as instances_lib
from medseg_jax.data import label_inference, labels, mask_values
from medseg_jax.data.case import Case, colour_names
from medseg_jax.data.sources.tfds_features import (
  check_whole,
  find_mask,
  image_and_mask,
)
from medseg_jax.runtime import stop_signal, telling
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import content_hash

SPLITS = {'train': ('train',), 'val': ('validation', 'val'), 'test': ('test',)}

# A gap of this many examples is read over; opening the split anew costs more.
_SHORT_GAP = 16


class TfdsSource:
  """Cases of one split, or of a part of it, by index; a `case.Source`.

  Reading in ascending order goes through the files once, any other order opens
  them anew for each case, but for formats with random access (array_record).
  """

  def __init__(
    self,
    *,
    builder,
    split: str,
    keys: tuple[str, str],
    names: Sequence[str],
    positions: Sequence[int],
    classes: tuple[str, ...],
    label_values: tuple[int, ...],
    channels: int,
    instances: str = '',
  ):
    """Holds the examples at `positions` of the TFDS split; see `open_tfds`."""
    self.names = tuple(names)
    self.classes = classes
    self.label_values = label_values
    self.channels = channels
    self.instances = instances
    self.channel_names = colour_names(channels)
    self._builder = builder
    self._split = split
    self._keys = keys
    self._positions = tuple(positions)
    self._lock = threading.Lock()
    self._examples = None  # the examples from position self._next on
    self._next = 0
    self._content = functools.cache(_content)

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Case:
    """Returns case `index`, label int32 `[*S]`.

    Raises:
      InputError: the mask does not fit the image, or has a value of no class.
    """
    name = self.names[index]  # an IndexError ends iteration
    example = self._read(self._positions[index])
    where = f'{self._builder.info.full_name}, case {name}'
    image, mask = image_and_mask(example, self._keys, where)
    if image.shape[-1] != self.channels:
      raise InputError(
        f'{where}: {counted(image.shape[-1], "channel")}; allowed is '
        f'{self.channels}, as most cases have'
      )
    if self.instances:
      mask = np.where(mask == self.label_values[0], *self.label_values)
    if np.setdiff1d(mask, self.label_values).size:
      found = [mask_values.count_values(where, mask, lossy=False)]
      label_inference.check_label_values(found, self.label_values)
      snapped = label_inference.describe_snapped(found, self.label_values)
      telling.warn(
        f'{where}: snapped to the nearest of {self.label_values}: {snapped}'
      )
    return Case(
      name=name,
      image=image,
      label=labels.to_classes(mask, self.label_values),
      spacing=(1.0,) * mask.ndim,
    )

  def _read(self, position: int) -> dict[str, np.ndarray]:
    """Returns the example at a position of the TFDS split."""
    with self._lock:  # the iterator is shared between threads
      gap = position - self._next
      if self._examples is None or not 0 <= gap <= _SHORT_GAP:
        split = f'{self._split}[{position}:]'
        self._examples = _read_split(self._builder, split, self._keys)
        gap = 0
      examples, self._examples = self._examples, None  # None if reading fails
      for _ in range(gap):
        next(examples)
      example = next(examples)
      self._examples, self._next = examples, position + 1
      return example

  def case_key(self, index: int) -> str:
    """Returns a hash of the data set's version, the case's file, the labels."""
    from etils import epath

    info = self._builder.info
    split = info.splits[self._split]
    position = self._positions[index]
    # Which of the split's files holds the case; the others do not matter.
    ends = np.cumsum(split.shard_lengths)
    path = epath.Path(split.filepaths[np.searchsorted(ends, position, 'right')])
    lines = [
      info.full_name, self._split, self._keys, position, self.label_values,
      path.name, self._content(path), *filter(None, [self.instances]),
    ]  # fmt: skip
    return hashlib.sha256(repr(lines).encode()).hexdigest()

  def subset(self, names: Sequence[str]) -> 'TfdsSource':
    """Returns the source of the cases of these names.

    In the order of the files, whatever that of the names: it reads fast.
    """
    wanted = set(names)
    kept = [i for i, name in enumerate(self.names) if name in wanted]
    part = copy.copy(self)  # but for what is shared by reading threads
    part._lock, part._examples = threading.Lock(), None
    part.names = tuple(self.names[i] for i in kept)
    part._positions = tuple(self._positions[i] for i in kept)
    return part


def _content(path) -> Any:
  """Returns what a file holds, of one in a store (gs://) its size and time."""
  far = '://' in os.fspath(path)
  return (path.stat().length, path.stat().mtime) if far else content_hash(path)


def open_tfds(
  name: str,
  *,
  data_dir: str | os.PathLike = '',
  image_key: str = 'image',
  mask_key: str = '',
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
) -> dict[str, TfdsSource]:
  """Returns the sources of a prepared TFDS data set by split.

  They are 'train', 'val' (the data set's 'validation' or 'val') and 'test', as
  far as there are examples of such; 'test' may be alone. Nothing is downloaded.
  Names are those of the feature 'file_name' (read once), without suffix, where
  they are all different, and otherwise `train_000012`, the position in the TFDS
  split.

  Args:
    name: as for `tfds.load`, such as 'my_set/config:1.0.0'.
    data_dir: where data sets are prepared; empty for TFDS's own default.
    image_key: the feature with the image, `[*S, C]` or `[*S]`.
    mask_key: the feature with the mask, `[*S]` or `[*S, 1]`, of integers; empty
      for the first of MASK_KEYS that is an image or a tensor of 2 axes or more.
    classes: names, background first; default 'classes' in the data set's
      metadata, or `background`, `foreground`, or `background`, `class_1`, ...
    label_values: the value of each class in the masks; default what the masks
      of the first split hold, ascending (see `label_inference`), read once for
      that.
    instances: 'foreground' where masks number single objects, all of which are
      of the second class; 'classes' for a class each; '' to look at them.

  Raises:
    InputError: the data set is not there, or holds no such image and mask.
  """
  builder = _open_builder(name, os.path.expanduser(data_dir))
  info = builder.info
  keys = (image_key, find_mask(info, image_key, mask_key))
  filled = [name for name in info.splits if info.splits[name].num_examples]
  found = {
    split: there[0]
    for split, names in SPLITS.items()
    if (there := [n for n in names if n in filled])
  }
  if not found:
    allowed = [name for names in SPLITS.values() for name in names]
    raise InputError(
      f'{info.full_name}: no examples in a split {" or ".join(allowed)}; found '
      f'the splits {", ".join(info.splits) or "none"}'
    )

  first = next(iter(found.values()))  # train, where there is such
  channels = _most_channels(builder, first, keys)
  found_masks = []
  if not label_values or instances:
    found_masks = _look_at_masks(builder, first, keys)
  metadata = info.metadata or {}
  instances, line = instances_lib.choose(
    [mask.values for mask in found_masks],
    [mask.objects for mask in found_masks],
    wish=instances,
    classes=classes or metadata.get('classes', ()),
    label_values=label_values,
    where=info.full_name,
  )
  if line:
    logging.warning('%s', line)
  if not label_values:
    label_values = (0, 1)
    if not instances:
      label_values = label_inference.infer_label_values(found_masks)
  label_values = tuple(int(value) for value in label_values)
  if not classes and len(metadata.get('classes', ())) == len(label_values):
    classes = metadata['classes']
  classes = labels.name_classes(classes, label_values, info.full_name)

  sources = {}
  for split, at in found.items():
    names = _case_names(builder, at)
    sources[split] = TfdsSource(
      builder=builder,
      split=at,
      keys=keys,
      names=names,
      positions=range(len(names)),
      classes=classes,
      label_values=label_values,
      channels=channels,
      instances=instances,
    )
  return sources


def _import_tfds():
  """Returns the module tensorflow_datasets, with TensorFlow kept off GPUs."""
  try:
    import tensorflow as tf
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise InputError(
      f"config.data.source is 'tfds': {error}; it needs `pip install "
      'tensorflow-cpu tensorflow-datasets`'
    ) from error
  # Refused where TensorFlow runs already: whoever started it has decided.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')  # else it takes their memory
  return tfds


def _open_builder(name: str, data_dir: str):
  """Returns the builder of a data set that is prepared."""
  tfds = _import_tfds()
  place = data_dir or tfds.core.constants.DATA_DIR
  command = f'tfds build {name}' + (f' --data_dir={data_dir}' * bool(data_dir))
  try:
    builder = tfds.builder(name, data_dir=data_dir or None)
  except (ValueError, AssertionError, ImportError, OSError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = reason.rstrip('.')
    raise InputError(
      f'TFDS data set {name!r} in {place}: {reason}; allowed is a data set '
      f'that is prepared there, see `{command}`'
    ) from error
  if not builder.info.splits:
    raise InputError(
      f'TFDS data set {name!r} in {place}: not prepared; run `{command}`'
    )
  return builder


def _read_split(
  builder, split: str, keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields the features `keys` of a split's examples, in the order of files."""
  import tensorflow_datasets as tfds

  features = builder.info.features
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    skip = {
      key: tfds.decode.SkipDecoding()
      for key in features
      if key not in keys and isinstance(features[key], tfds.features.Image)
    }
    examples = builder.as_data_source(split=split, decoders=skip)
    yield from _unless_stopped(examples)
    return
  decoders = tfds.decode.PartialDecoding(dict.fromkeys(keys, True))
  # Interleaved files would give another order than slices of the split do.
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  dataset = builder.as_dataset(
    split=split, shuffle_files=False, decoders=decoders, read_config=config
  )
  yield from _unless_stopped(tfds.as_numpy(dataset))


def _unless_stopped(examples: Iterable[Any]) -> Iterator[Any]:
  for example in examples:
    stop_signal.check()
    yield example


def _case_names(builder, split: str) -> list[str]:
  num_examples = builder.info.splits[split].num_examples
  if 'file_name' in builder.info.features:
    names = []
    for example in _read_split(builder, split, ['file_name']):
      text = example['file_name']
      text = text.decode() if isinstance(text, bytes) else str(text)
      names.append(os.path.splitext(text)[0].replace('/', '_'))
    if len(set(names)) == num_examples:
      return names
  return [f'{split}_{i:06d}' for i in range(num_examples)]


def _most_channels(builder, split: str, keys: tuple[str, str]) -> int:
  """Returns the channels of the images, of most where not all are alike."""
  found = collections.Counter()
  where = f'{builder.info.full_name}, {split}'
  for example in _read_split(builder, split, keys):
    image, _ = image_and_mask(example, keys, where)
    found[image.shape[-1]] += 1
    if builder.info.features[keys[0]].shape[-1] is not None:
      break  # all are alike
  return found.most_common(1)[0][0]


def _look_at_masks(
  builder, split: str, keys: tuple[str, str]
) -> list[mask_values.MaskValues]:
  """Returns what the masks of a split hold."""
  where = pathlib.PurePath(builder.info.full_name)
  found = []
  for i, example in enumerate(_read_split(builder, split, keys[1:])):
    mask = np.asarray(example[keys[1]])
    check_whole(mask, f'{where}, {keys[1]}')
    if mask.shape[-1] == 1 and mask.ndim > 2:
      mask = mask[..., 0]
    found.append(
      mask_values.count_values(
        where / f'{split} {i}', mask.astype(np.int64), lossy=False
      )
    )
  return found
