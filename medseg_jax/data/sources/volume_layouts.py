"""Where a data set's volumes lie: the usual folders, or a list of files.

Folders are `imagesTr` with `labelsTr`, `images` with `labels` or `masks`, or
the latter in `train` and `test`. A list, that of `dataset.json`, names files
below the data set's folder, and nothing else is read for it.
"""

import os
import pathlib
from collections.abc import Sequence

from medseg_jax.data.formats.images import list_folder, name_some
from medseg_jax.data.sources.dataset_json import Entry
from medseg_jax.data.sources.folder_files import MASK_FOLDERS
from medseg_jax.data.sources.volume_files import (
  Layout,
  VolumeFiles,
  by_stem,
  case_name,
  group_channels,
  match_folder,
  same_name,
)
from medseg_jax.runtime.errors import InputError, counted, quote

_LAYOUTS = (
  'imagesTr with labelsTr, images with labels or masks, or the latter in train '
  'and test'
)


def find_layouts(
  root: pathlib.Path, training: Sequence[Entry] | None
) -> dict[str, Layout]:
  """Returns the layout of `train` and, where it has labels, of `test`.

  A folder with nothing but `test` is one to evaluate on.

  Args:
    root: the data set's folder.
    training: the training files that its `dataset.json` lists, or None.

  Raises:
    InputError: no such folder, none of the layouts, or no files.
  """
  folders = _find_folders(root, training is not None)
  unused = []
  # Without labels they are for prediction.
  for folder in folders.get('test', ()):
    if not by_stem(folder, [], required=False):
      folders.pop('test', None)
      unused.append(
        f'{folder}: no NIfTI files, so there is no test split; found '
        f'{name_some(path.name for path in list_folder(folder))}'
      )
  layouts = {split: match_folder(*pair) for split, pair in folders.items()}
  if training is not None:
    layouts['train'] = _match_listed(root, training)
  first = next(iter(layouts.values()))
  oddities = (*first.oddities, *unused)
  return layouts | {next(iter(layouts)): first._replace(oddities=oddities)}


def _find_folders(
  root: pathlib.Path, listed: bool
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Returns the folders of images and labels, of `train` unless `listed`."""
  there = {path.name for path in list_folder(root) if os.path.isdir(path)}
  folders = {}
  test = root / 'imagesTs', root / 'labelsTs'
  if 'test' in there and _label_folder(root / 'test', required=False):
    test = root / 'test/images', root / 'test' / _label_folder(root / 'test')
  if all(os.path.isdir(folder) and list_folder(folder) for folder in test):
    folders['test'] = test
  if not listed and (there & {'imagesTr', 'images', 'train'} or not folders):
    folders = {'train': _train_folders(root, there), **folders}
  return folders


def _train_folders(
  root: pathlib.Path, there: set[str]
) -> tuple[pathlib.Path, pathlib.Path]:
  if 'imagesTr' in there:
    if 'labelsTr' not in there:
      raise InputError(
        f'{root}: imagesTr without labelsTr; found {name_some(sorted(there))}'
      )
    return root / 'imagesTr', root / 'labelsTr'
  if 'images' in there and 'train' in there:
    raise InputError(f'{root}: both images and train; allowed is one of them')
  if 'val' in there:
    raise InputError(
      f'{root}: a folder val; allowed are train and test: of volumes the folds '
      'of train are held out (for a split of your own put all cases into train '
      'and name those of val in splits.json)'
    )
  if not there & {'images', 'train'}:
    names = [path.name for path in list_folder(root)]
    raise InputError(
      f'{root}: no folder of volumes; found {name_some(names)}; allowed is '
      f'{_LAYOUTS}'
    )
  folder = root if 'images' in there else root / 'train'
  return folder / 'images', folder / _label_folder(folder)


def _label_folder(folder: pathlib.Path, required: bool = True) -> str:
  inside = [path.name for path in list_folder(folder)]
  found = [name for name in MASK_FOLDERS if name in inside]
  if len(found) == 2:
    raise InputError(f'{folder}: both labels and masks; allowed is one of them')
  if not found and required:
    raise InputError(
      f'{folder}: no labels; found {name_some(inside)}; allowed is a folder '
      'labels or masks beside images'
    )
  return found[0] if found else ''


def _match_listed(root: pathlib.Path, training: Sequence[Entry]) -> Layout:
  """Returns the cases that `dataset.json` lists."""
  where = root / 'dataset.json'
  problems, oddities = [], []
  files, listed = {}, set()
  outside = [
    file for entry in training for file in entry if not _is_below(root, file)
  ]
  problems += [_leaves(where, file, root) for file in dict.fromkeys(outside)]
  training = [entry for entry in training if not set(entry) & set(outside)]
  folders = {(root / entry.image).parent for entry in training}
  stems = {
    folder: by_stem(folder, problems, required=False)
    if os.path.isdir(folder)
    else {}
    for folder in sorted(folders)
  }
  groups = {folder: group_channels(found) for folder, found in stems.items()}
  for entry in training:
    image, label = root / entry.image, root / entry.label
    name = case_name(image)
    paths = (image,)
    # nnU-Net lists CASE.nii.gz for CASE_0000.nii.gz.
    if not os.path.isfile(image):
      group = groups[image.parent].get(name, {})
      paths = tuple(stems[image.parent][stem] for stem in group.values())
    missing = [entry.image] * (not paths) + [entry.label] * (
      not os.path.isfile(label)
    )
    problems += [
      f'{where}: lists {quote(file, 100)}, which is not there; allowed are '
      f'files below {root}'
      for file in missing
    ]
    listed.update(paths)
    left = [path for path in paths if not _is_below(root, path)]
    if left:  # a channel that is a link
      problems.append(_leaves(where, left[0], root))
      continue
    if name in files:
      problems.append(same_name(image, files[name]))
    elif not missing:
      files[name] = VolumeFiles(name, paths, label)
  for folder, found in stems.items():
    extra = [path.name for path in found.values() if path not in listed]
    if extra:
      oddities.append(
        f'{folder}: left out, as {where} does not list them: '
        f'{counted(len(extra), "file")} ({name_some(extra)})'
      )
  cases = tuple(files[name] for name in sorted(files))
  return Layout(cases, tuple(problems), tuple(oddities))


def _is_below(root: pathlib.Path, file: str | os.PathLike) -> bool:
  """Returns whether a listed file lies below `root`, also when links count."""
  try:
    return root.resolve() in (root / file).resolve().parents
  except (OSError, ValueError, RuntimeError):  # no file can be named so:
    return True  # it is told as one that is not there


def _leaves(
  where: pathlib.Path, file: str | os.PathLike, root: pathlib.Path
) -> str:
  return (
    f'{where}: lists {quote(str(file), 100)}, which is not below {root}; '
    'allowed are files that are, links included'
  )
