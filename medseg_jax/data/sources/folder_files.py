"""Which files of a folder make up the cases of a 2-D data set.

`PATH/{images,labels|masks}`, or that in each of `PATH/{train,val,test}`.
"""

import collections
import pathlib
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

from absl import logging

from medseg_jax.data.formats import images
from medseg_jax.runtime.errors import InputError, counted

SPLITS = ('train', 'val', 'test')
MASK_FOLDERS = ('labels', 'masks')
MASK_SUFFIXES = ('_mask', '_segmentation', '_manual1', '_label', '_anno')
# In DRIVE 21_manual1 is the mask of 21_training.
_OF_DRIVE = {'_manual1': ('_training', '_test')}


class Files(NamedTuple):
  """The files of one case.

  `problem` says why they do not belong together; then they may not be there.
  """

  name: str
  image: pathlib.Path
  mask: pathlib.Path
  roi: pathlib.Path | None
  problem: str = ''


def find_files(
  root: pathlib.Path,
  roi: str,
  known: Collection[pathlib.Path] = (),
  *,
  strict: bool = True,
) -> dict[str, list[Files]]:
  """Returns the files of each split's cases, and warns of what is not used.

  A split without masks is left out: it is for prediction.

  Args:
    root: the data set's folder.
    roi: name of the folder of regions beside `images`; empty for none.
    known: files of the folder that the run uses otherwise.
    strict: whether an image without its one mask, or a mask without its image,
      is an error. Otherwise it is a case with a `problem`.

  Raises:
    InputError: the layout or a file's name is not allowed.
  """
  folders = _find_splits(root)
  used, unused = {*known}, []
  result = {}
  for split, (folder, masks) in folders.items():
    result[split], more = _match_files(folder, masks, roi, strict)
    used |= {folder, *(folder / name for name in ('images', masks, roi))}
    unused += more
  for folder in sorted({root, *(folder for folder, _ in folders.values())}):
    unused += images.find_strays(folder, used)
  if unused:
    names = [
      f'{path.relative_to(root)}'
      + ' (no labels or masks)' * (path in {root / split for split in SPLITS})
      for path in unused
    ]
    logging.warning(
      '%s: not used: %s; images are read that lie directly in the folders '
      'images and labels or masks, as PNG, TIFF, JPEG or the like',
      root, images.name_some(names),
    )  # fmt: skip
  return result


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
  if not result:
    raise InputError(
      f'{root}: no masks in {", ".join(found)}; allowed is a folder labels or '
      'masks beside images in at least one of them'
    )
  return result


def _match_files(
  folder: pathlib.Path, mask_folder: str, roi_folder: str, strict: bool
) -> tuple[list[Files], list[pathlib.Path]]:
  """Returns the files of the cases of one split by name, and the unused."""
  found = images.find_images(folder / 'images')
  unused = list(found.unused)
  by_name = {_name(path): path for path in found.images}
  partners, problems = [], {}
  for name in filter(None, (mask_folder, roi_folder)):
    found = images.find_images(folder / name)
    unused += found.unused
    matched, wrong = _match_masks(
      by_name, folder / 'images', found.images, strict
    )
    partners.append(matched)
    if name == roi_folder:  # a mask without an image is a case that fails
      unused += [path for stem, path in matched.items() if stem not in by_name]
    problems = wrong | problems
  rois = partners[1] if roi_folder else {}
  cases = [
    Files(
      name,
      by_name.get(name, folder / 'images' / name),
      partners[0].get(name, folder / mask_folder / name),
      rois.get(name),
      problems.get(name, ''),
    )
    for name in sorted({*by_name, *partners[0]})
  ]
  return cases, unused


def names_of_case(stem: str) -> list[str]:
  """Returns what the case of a mask may be called, the likeliest first."""
  names = [stem]
  for suffix in MASK_SUFFIXES:
    if stem.lower().endswith(suffix):
      bare = stem[: -len(suffix)]
      names += [bare, *(bare + end for end in _OF_DRIVE.get(suffix, ()))]
  return names


def _match_masks(
  names: dict[str, pathlib.Path],
  image_folder: pathlib.Path,
  masks: list[pathlib.Path],
  strict: bool,
) -> tuple[dict[str, pathlib.Path], dict[str, str]]:
  """Returns the mask of each name, and what is wrong, by name.

  Nothing is, where `strict`: each must have exactly one then.
  """
  mask_folder = masks[0].parent
  matches = collections.defaultdict(list)
  alone = {}
  extra = []
  for path in masks:
    candidates = names_of_case(_name(path))
    match = next((name for name in candidates if name in names), None)
    if match is None:
      extra.append(path.name)
      alone[candidates[:2][-1]] = path
    else:
      matches[match].append(path.name)
  wrong = {
    name: f'{mask_folder}: {" and ".join(found)} are both masks of '
    f'{names[name].name}; allowed is one'
    for name, found in matches.items()
    if len(found) > 1
  }
  if wrong and strict:
    raise InputError(next(iter(wrong.values())))
  missing = [path.name for name, path in names.items() if name not in matches]
  if strict and (missing or extra):
    problems = []
    if missing:
      problems.append(
        f'{len(missing)} of {counted(len(names), "image")} without a mask '
        f'({images.name_some(missing, 3)})'
      )
    if extra:
      problems.append(
        f'{counted(len(extra), "mask")} without an image '
        f'({images.name_some(extra, 3)})'
      )
    raise InputError(
      f'{mask_folder}: {" and ".join(problems)} in {image_folder}; allowed is '
      f'one mask for each image, with its stem or that and one of '
      f'{", ".join(MASK_SUFFIXES)}'
    )
  wrong |= {
    name: f'{path}: an image without its mask in {mask_folder}'
    for name, path in names.items()
    if name not in matches
  }
  wrong |= {
    name: f'{path}: a mask without its image in {image_folder}'
    for name, path in alone.items()
  }
  matched = {name: mask_folder / found[0] for name, found in matches.items()}
  return alone | matched, wrong


def _name(path: pathlib.Path) -> str:
  # macOS writes accents as separate characters; the same name must match.
  return unicodedata.normalize('NFC', path.stem)
