"""A folder of 2-D images with masks as cases.

`PATH/{images,labels|masks}`, or that in each of `PATH/{train,val,test}`.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from medseg_jax.data import instances as instances_lib
from medseg_jax.data import label_inference, labels, mask_values
from medseg_jax.data.case import Case, colour_names
from medseg_jax.data.formats import images
from medseg_jax.data.sources.already_read import AlreadyRead
from medseg_jax.data.sources.folder_files import Files, find_files
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import files_key


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Cases of one split, read from their files by index (see `case.Source`).

  Attributes:
    root: the data set's folder.
    files: the files of each case.
    classes: names of the classes, background first.
    label_values: the value of each class in the mask files.
    channels: 1, or 3 where any image of the data set has colour.
    instances: 'foreground' where the masks number single objects, which all
      are of the second class; '' elsewhere.
    snapped: names of the cases with JPEG or anti-aliased masks.
    snapped_share: share of the split's mask pixels that had none of the label
      values and took the nearest, 0 to 1.
    refused: why the mask of a case cannot be used, by name; its reading fails.
    already_read: cases in memory that the next reading hands out.
  """

  root: pathlib.Path
  files: tuple[Files, ...]
  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  channels: int
  instances: str = ''
  snapped: frozenset[str] = frozenset()
  snapped_share: float = 0.0
  refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
  already_read: AlreadyRead = dataclasses.field(
    default_factory=AlreadyRead, repr=False, compare=False
  )

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    return tuple(case.name for case in self.files)

  @property
  def channel_names(self) -> tuple[str, ...]:
    return colour_names(self.channels)

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Case:
    """Returns case `index`: image `[H, W, channels]`, label int32 `[H, W]`.

    Raises:
      InputError: a file is missing or damaged, the sizes of image and mask
        differ, or a mask has changed to values that no class has.
    """
    case = self.files[index]
    if problem := case.problem or self.refused.get(case.name):
      raise InputError(problem)
    if kept := self.already_read.take(lambda: self.case_key(index)):
      return kept
    image = images.read_image(case.image)
    if image.shape[-1] < self.channels:
      image = np.repeat(image, self.channels, axis=-1)
    mask, lossy = images.decode_mask(case.mask)
    _check_size(case.image, image, case.mask, mask)
    if self.instances:
      far = np.abs(mask.astype(np.int64) - self.label_values[0])
      # Numbers do not survive a JPEG, so it has two values, and noise.
      is_object = far > 127 if lossy else far > 0
      mask = np.where(is_object, *self.label_values[::-1])
    label = labels.to_classes(mask, self.label_values)
    if not lossy and case.name not in self.snapped:
      strange = mask[mask != np.asarray(self.label_values)[label]]
      if strange.size:
        raise labels.unknown_values(
          case.mask, np.unique(strange), self.label_values
        )
    roi = None
    if case.roi is not None:
      roi, lossy = images.decode_mask(case.roi)
      _check_size(case.image, image, case.roi, roi)
      roi = roi > 127 if lossy else roi != 0  # JPEG spoils the zeros.
    return Case(
      name=case.name,
      image=image,
      label=label,
      spacing=(1.0, 1.0),
      roi=roi,
    )

  def case_key(self, index: int) -> str:
    """Returns a hash of the case's files (name, content) and the labels.

    Raises:
      InputError: a file is no longer there, or cannot be read.
    """
    case = self.files[index]
    merged = (self.instances,) if self.instances else ()
    return files_key(
      filter(None, (case.image, case.mask, case.roi)),
      self.root,
      (
        case.name,
        self.label_values,
        self.channels,
        *merged,
      ),
    )

  def subset(self, names: Sequence[str]) -> 'FolderSource':
    """Returns the source of the cases of these names, in this order."""
    by_name = dict(zip(self.names, self.files, strict=True))
    return dataclasses.replace(self, files=tuple(by_name[n] for n in names))


def open_folder(
  path: str | os.PathLike,
  *,
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
  roi: str = '',
  known: Collection[pathlib.Path] = (),
  strict: bool = True,
) -> dict[str, FolderSource]:
  """Returns the sources of a data set by split: of `train`, `val`, `test`.

  Reads every file once, to know the label values and to name all that are bad.
  A split without masks is left out: it is for prediction. There may be `test`
  alone.

  Args:
    path: the data set's folder.
    classes: names, background first; default `background`, `foreground` or
      `background`, `class_1`, ...
    label_values: value of each class in the mask files; default what the masks
      of all splits hold, ascending (see `label_inference`).
    instances: 'foreground' where the masks number single objects, which are
      all of the second class; 'classes' where each number is a class; '' to
      look at the masks (see `instances.judge`), unless `label_values` or more
      than two `classes` are given.
    roi: name of a folder beside `images` whose masks (nonzero is inside) mark
      the region to evaluate; empty for none.
    known: files of the folder that the run uses otherwise.
    strict: whether a file that cannot be used, or has no partner, is an error.
      Otherwise its case fails when it is read, unless no case can be used.

  Raises:
    InputError: the layout, a file, or a label value is not allowed.
  """
  root = pathlib.Path(path)
  return open_files(
    root,
    find_files(root, roi, known, strict=strict),
    classes=classes,
    label_values=label_values,
    instances=instances,
    strict=strict,
  )


def open_files(
  root: pathlib.Path,
  cases: dict[str, list[Files]],
  *,
  classes: Sequence[str] = (),
  label_values: Sequence[int] = (),
  instances: str = '',
  strict: bool = True,
) -> dict[str, FolderSource]:
  """Returns the source of each split, from the files of its cases.

  Args:
    root: of all of them, for messages.
    cases: by split.
    classes: see `open_folder`, as all that follow.
    label_values: see there.
    instances: see there.
    strict: see there.

  Raises:
    InputError: a file, or a label value, is not allowed.
  """
  found = _look_at_all(root, cases, strict)
  channels = _agree_on_channels(root, found)
  values = {
    split: {name: look.mask for name, look in looks.items()}
    for split, looks in found.items()
  }
  every_mask = [mask for masks in values.values() for mask in masks.values()]
  instances, line = instances_lib.choose(
    [mask.values for mask in every_mask],
    [mask.objects for mask in every_mask],
    wish=instances,
    classes=classes,
    label_values=label_values,
    where=str(root),
  )
  if line:
    logging.warning('%s', line)
  inferred = not label_values
  if inferred:
    if not any(mask.values.any() for mask in every_mask):
      raise InputError(
        f'{root}: every one of the {len(every_mask)} masks is empty (all 0), '
        f'{every_mask[0].path.name} for one, so there is nothing to learn; '
        'allowed are masks that hold two values or more'
      )
    label_values = (0, 1)
    if not instances:
      label_values = label_inference.infer_label_values(every_mask)
  label_values = tuple(int(value) for value in label_values)
  classes = labels.name_classes(classes, label_values, str(root))
  refused = {}
  if not instances and strict:
    label_inference.check_label_values(every_mask, label_values)
  elif not instances:
    refused = {split: _refuse(values[split], label_values) for split in values}

  sources, already_read = {}, AlreadyRead()
  for split, of_split in values.items():
    unfit = refused.get(split, {})
    fit = {name: m for name, m in of_split.items() if name not in unfit}
    masks = list(fit.values())
    snapped, share = frozenset(), 0.0
    if not instances and masks:
      snapped = frozenset(
        name
        for name, mask in fit.items()
        if label_inference.num_snapped(mask, label_values)
      )
      share = label_inference.snapped_share(masks, label_values)
    if snapped:
      logging.warning(
        '%s, %s: snapped %.2g %% of the mask pixels, in %d of %s, to the '
        'nearest of %s: %s%s',
        root, split, 100 * share, len(snapped), counted(len(masks), 'file'),
        label_values,
        label_inference.describe_snapped(masks, label_values),
        '; data.label_values keeps a value as a class' * inferred,
      )  # fmt: skip
    sources[split] = FolderSource(
      already_read=already_read,
      root=root,
      files=tuple(cases[split]),
      classes=classes,
      label_values=label_values,
      channels=channels,
      instances=instances,
      snapped=snapped,
      snapped_share=share,
      refused=unfit,
    )
  return sources


def _refuse(
  masks: Mapping[str, mask_values.MaskValues], label_values: tuple[int, ...]
) -> dict[str, str]:
  """Returns why a mask has values of no class, by the name of its case."""
  reasons = {}
  try:
    label_inference.check_label_values(list(masks.values()), label_values)
  except InputError:  # which are they?
    for name, mask in masks.items():
      try:
        label_inference.check_label_values([mask], label_values)
      except InputError as error:
        reasons[name] = str(error)
    if not reasons:
      raise
  return reasons


class _Look(NamedTuple):
  """What the first reading of a case tells."""

  image: pathlib.Path
  channels: int
  mask: mask_values.MaskValues


def _look_at_all(
  root: pathlib.Path, cases: dict[str, list[Files]], strict: bool
) -> dict[str, dict[str, _Look]]:
  """Returns the looks at all cases by split and name, or names all bad files.

  Not `strict`, those that cannot be used are left out, unless all are such.
  """

  def look_at(case):
    try:
      return _look_at(case), ''
    except InputError as error:
      return None, str(error)

  every_case = [case for files in cases.values() for case in files]
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    looks, errors = zip(*pool.map(look_at, every_case), strict=True)
  errors = list(filter(None, errors))
  if errors and (strict or len(errors) == len(every_case)):
    if len(errors) == 1:
      raise InputError(errors[0])
    first = '; '.join(
      images.one_line(error.removeprefix(f'{root}/')) for error in errors[:2]
    )
    raise InputError(
      f'{root}: files that cannot be used in {len(errors)} of '
      f'{len(every_case)} cases; the first: {first}'
    )
  each = iter(looks)
  found = {
    split: {case.name: next(each) for case in files}
    for split, files in cases.items()
  }
  return {
    split: {name: look for name, look in of_split.items() if look is not None}
    for split, of_split in found.items()
  }


def _look_at(case: Files) -> _Look:
  stop_signal.check()
  if case.problem:
    raise InputError(case.problem)
  image = images.read_image(case.image)
  mask, lossy = images.decode_mask(case.mask)
  _check_size(case.image, image, case.mask, mask)
  if case.roi is not None:
    _check_size(case.image, image, case.roi, images.read_mask(case.roi))
  values = mask_values.count_values(case.mask, mask, lossy=lossy)
  return _Look(case.image, image.shape[-1], values)


def _agree_on_channels(
  root: pathlib.Path, found: dict[str, dict[str, _Look]]
) -> int:
  """Returns the channels of all images: 3 where any has colour, and says so."""
  looks = [look for split in found.values() for look in split.values()]
  colour = [look for look in looks if look.channels == 3]
  if 0 < len(colour) < len(looks):
    kinds = {3: colour, 1: [look for look in looks if look.channels == 1]}
    few = min(kinds, key=lambda channels: len(kinds[channels]))
    logging.warning(
      '%s: %s among %d images, unlike the others: %s; all are read with 3 '
      'channels',
      root, counted(len(kinds[few]), {3: 'colour image', 1: 'grey image'}[few]),
      len(looks),
      images.name_some(look.image.name for look in kinds[few]),
    )  # fmt: skip
  return 3 if colour else 1


def _check_size(
  image_path: pathlib.Path,
  image: np.ndarray,
  mask_path: pathlib.Path,
  mask: np.ndarray,
) -> None:
  if image.shape[:2] != mask.shape:
    raise InputError(
      f'{mask_path}: {_size(mask)} pixels (height x width), but {image_path} '
      f'has {_size(image)}; allowed is one size for both'
    )


def _size(array: np.ndarray) -> str:
  return f'{array.shape[0]} x {array.shape[1]}'
