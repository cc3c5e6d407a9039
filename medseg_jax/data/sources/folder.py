"""A folder of 2-D images with masks as cases, by the layout that it has.

`PATH/{images,labels|masks}`, or that in each of `PATH/{train,val,test}`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from medseg_jax.data import labels, splits
from medseg_jax.data.case import Case, colour_names
from medseg_jax.data.formats import images
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import files_key

SPLITS = ('train', 'val', 'test')
MASK_FOLDERS = ('labels', 'masks')
MASK_SUFFIXES = ('_mask', '_segmentation', '_manual1', '_label', '_anno')


class Files(NamedTuple):
  """The files of one case."""

  name: str
  image: pathlib.Path
  mask: pathlib.Path
  roi: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Cases of one split, read from their files by index (see `case.Source`).

  Attributes:
    root: the data set's folder.
    files: the files of each case.
    classes: names of the classes, background first.
    label_values: the value of each class in the mask files.
    channels: 1, or 3 where any image of the data set has colour.
    snapped: names of the cases with JPEG or anti-aliased masks.
    snapped_share: share of the split's mask pixels that had none of the label
      values and took the nearest, 0 to 1.
  """

  root: pathlib.Path
  files: tuple[Files, ...]
  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  channels: int
  snapped: frozenset[str] = frozenset()
  snapped_share: float = 0.0

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
    image = images.read_image(case.image)
    if image.shape[-1] < self.channels:
      image = np.repeat(image, self.channels, axis=-1)
    mask, lossy = images.decode_mask(case.mask)
    _check_size(case.image, image, case.mask, mask)
    if not lossy and case.name not in self.snapped:
      strange = np.setdiff1d(mask, self.label_values)
      if strange.size:
        raise labels.unknown_values(case.mask, strange, self.label_values)
    roi = None
    if case.roi is not None:
      roi, lossy = images.decode_mask(case.roi)
      _check_size(case.image, image, case.roi, roi)
      roi = roi > 127 if lossy else roi != 0  # JPEG spoils the zeros.
    return Case(
      name=case.name,
      image=image,
      label=labels.to_classes(mask, self.label_values),
      spacing=(1.0, 1.0),
      roi=roi,
    )

  def case_key(self, index: int) -> str:
    """Returns a hash of the case's files (name, content) and the labels.

    Raises:
      InputError: a file is no longer there, or cannot be read.
    """
    case = self.files[index]
    return files_key(
      filter(None, (case.image, case.mask, case.roi)),
      self.root,
      (case.name, self.label_values, self.channels),
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
  roi: str = '',
  fold: int | str = 0,
  num_folds: int = 5,
  fold_order: str = 'shuffled',
) -> dict[str, FolderSource]:
  """Returns the sources of a data set by split: of `train`, `val`, `test`.

  Reads every mask once, to know their label values and to fail early. A split
  without masks is left out: it is for prediction. Where there is no `val`, it
  is a fold of `train`.

  Args:
    path: the data set's folder.
    classes: names, background first; default `background`, `foreground` or
      `background`, `class_1`, ...
    label_values: value of each class in the mask files; default what the masks
      of all splits hold, ascending (see `labels.infer_label_values`).
    roi: name of a folder beside `images` whose masks (nonzero is inside) mark
      the region to evaluate; empty for none.
    fold: see `splits.split_names`.
    num_folds: see `splits.split_names`.
    fold_order: see `splits.split_names`.

  Raises:
    InputError: the layout, a file, a label value or the fold is not allowed.
  """
  root = pathlib.Path(path)
  cases = {
    split: _match_files(folder, masks, roi)
    for split, (folder, masks) in _find_splits(root).items()
  }
  if 'train' in cases and 'val' not in cases:
    by_name = {case.name: case for case in cases['train']}
    train, val = splits.split_names(
      list(by_name),
      fold=fold,
      num_folds=num_folds,
      fold_order=fold_order,
      where=str(root),
    )
    cases['train'] = [by_name[name] for name in train]
    if val:
      cases['val'] = [by_name[name] for name in val]

  with concurrent.futures.ThreadPoolExecutor() as pool:
    values = {
      split: list(pool.map(_count_values, [case.mask for case in cases[split]]))
      for split in SPLITS
      if split in cases
    }
    every_image = [case.image for files in cases.values() for case in files]
    channels = max(pool.map(images.image_channels, every_image))
  every_mask = [mask for masks in values.values() for mask in masks]
  if not label_values:
    label_values = labels.infer_label_values(every_mask)
    if not any(mask.values.any() for mask in every_mask):
      logging.warning('%s: every mask is empty (all 0)', root)
  label_values = tuple(int(value) for value in label_values)
  classes = labels.name_classes(classes, label_values, str(root))
  labels.check_label_values(every_mask, label_values)

  sources = {}
  for split, masks in values.items():
    counts = [labels.num_snapped(mask, label_values) for mask in masks]
    share = sum(counts) / sum(int(mask.counts.sum()) for mask in masks)
    snapped = frozenset(
      case.name
      for case, count in zip(cases[split], counts, strict=True)
      if count
    )
    if snapped:
      logging.warning(
        '%s, %s: snapped %.2g %% of the mask pixels, in %d of %d files (JPEG '
        'or anti-aliased), to the nearest of %s',
        root, split, 100 * share, len(snapped), len(masks), label_values,
      )  # fmt: skip
    sources[split] = FolderSource(
      root=root,
      files=tuple(cases[split]),
      classes=classes,
      label_values=label_values,
      channels=channels,
      snapped=snapped,
      snapped_share=share,
    )
  return sources


def _count_values(path: pathlib.Path) -> labels.MaskValues:
  stop_signal.check()
  mask, lossy = images.decode_mask(path)
  return labels.count_values(path, mask, lossy=lossy)


def _find_splits(root: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """Returns each split's folder and the name of the mask folder in it."""
  there = {path.name for path in images.list_folder(root) if path.is_dir()}
  found = [split for split in SPLITS if split in there]
  if 'images' in there and found:
    raise InputError(
      f'{root}: both images and {", ".join(found)}; allowed is either images '
      'with labels or masks, or these in each of train, val, test'
    )
  misnamed = sorted(there & {'training', 'valid', 'validation', 'testing'})
  if misnamed and 'images' not in there:
    raise InputError(
      f'{root}: found the folder {misnamed[0]}; allowed names of splits are '
      'train, val and test'
    )
  if 'images' not in there and not found:
    raise InputError(
      f'{root}: no folder images; found {images.name_some(sorted(there))}; '
      'allowed is images with labels or masks, or these in each of train, val, '
      'test'
    )
  result = {}
  for split in found or ['train']:
    folder = root / split if found else root
    inside = [path.name for path in images.list_folder(folder)]
    if 'images' not in inside:
      raise InputError(
        f'{folder}: no folder images; found {images.name_some(inside)}; '
        'allowed is images with labels or masks'
      )
    masks = [name for name in MASK_FOLDERS if name in inside]
    if len(masks) == 2:
      raise InputError(
        f'{folder}: both labels and masks; allowed is one of them'
      )
    if masks:
      result[split] = folder, masks[0]
    elif split == 'train':
      raise InputError(
        f'{folder}: no masks; found {images.name_some(inside)}; allowed is a '
        'folder labels or masks beside images'
      )
    else:
      logging.info('%s: no labels or masks, left for prediction', folder)
  if not result:
    raise InputError(
      f'{root}: no masks in {", ".join(found)}; allowed is a folder labels or '
      'masks beside images in at least one of them'
    )
  return result


def _match_files(
  folder: pathlib.Path, mask_folder: str, roi_folder: str
) -> list[Files]:
  """Returns the files of the cases of one split, sorted by name."""
  by_name = {}
  for path in images.list_images(folder / 'images'):
    by_name[_name(path)] = path
  masks = _match_masks(by_name, folder / 'images', folder / mask_folder)
  rois = {}
  if roi_folder:
    rois = _match_masks(by_name, folder / 'images', folder / roi_folder)
  return [
    Files(name, by_name[name], masks[name], rois.get(name))
    for name in sorted(by_name)
  ]


def _match_masks(
  names: dict[str, pathlib.Path],
  image_folder: pathlib.Path,
  mask_folder: pathlib.Path,
) -> dict[str, pathlib.Path]:
  """Returns the mask of each name; each must have exactly one."""
  matches = collections.defaultdict(list)
  extra = []
  for path in images.list_images(mask_folder):
    stem = _name(path)
    candidates = [stem] + [
      stem[: -len(suffix)]
      for suffix in MASK_SUFFIXES
      if stem.lower().endswith(suffix)
    ]
    match = next((name for name in candidates if name in names), None)
    if match is None:
      extra.append(path.name)
    else:
      matches[match].append(path.name)
  for name, found in matches.items():
    if len(found) > 1:
      raise InputError(
        f'{mask_folder}: {" and ".join(found)} are both masks of '
        f'{names[name].name}; allowed is one'
      )
  missing = [path.name for name, path in names.items() if name not in matches]
  if missing or extra:
    problems = []
    if missing:
      problems.append(
        f'{len(missing)} of {len(names)} images without a mask '
        f'({images.name_some(missing, 3)})'
      )
    if extra:
      problems.append(
        f'{len(extra)} masks without an image ({images.name_some(extra, 3)})'
      )
    raise InputError(
      f'{mask_folder}: {" and ".join(problems)} in {image_folder}; allowed is '
      f'one mask for each image, with its stem or that and one of '
      f'{", ".join(MASK_SUFFIXES)}'
    )
  return {name: mask_folder / found[0] for name, found in matches.items()}


def _name(path: pathlib.Path) -> str:
  # macOS writes accents as separate characters; the same name must match.
  return unicodedata.normalize('NFC', path.stem)


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
