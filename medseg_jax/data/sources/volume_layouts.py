"""Where a data set's volumes lie: the usual folders, or a list of files.

Folders are `imagesTr` with `labelsTr`, `images` with `labels` or `masks`, or
the latter in `train` and `test`. A list, that of `dataset.json`, names files
below the data set's folder, and nothing else is read for it.
"""

import os
import pathlib
from collections.abc import Collection, Sequence

from medseg_jax.data.formats.images import (
  find_strays,
  list_folder,
  name_some,
)
from medseg_jax.data.formats.volume_formats import data_files
from medseg_jax.data.sources.dataset_json import Entry
from medseg_jax.data.sources.folder_files import MASK_FOLDERS
from medseg_jax.data.sources.volume_files import (
  Layout,
  Refused,
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
  root: pathlib.Path,
  training: Sequence[Entry] | None,
  known: Collection[pathlib.Path] = (),
) -> dict[str, Layout]:
  """Returns the layout of `train` and, where it has labels, of `test`.

  A folder with nothing but `test` is one to evaluate on.

  Args:
    root: the data set's folder.
    training: the training files that its `dataset.json` lists, or None.
    known: files of the folder that the run uses otherwise.

  Raises:
    InputError: no such folder, none of the layouts, or no files.
  """
  folders = _find_folders(root, training is not None)
  used = {folder for pair in folders.values() for folder in pair}
  oddities = []
  # Without labels they are for prediction.
  for folder in folders.get('test', ()):
    if not by_stem(folder, [], required=False):
      folders.pop('test', None)
      oddities.append(
        f'{folder}: no volumes, so there is no test split; found '
        f'{name_some(path.name for path in list_folder(folder))}'
      )
  layouts = {split: match_folder(*pair) for split, pair in folders.items()}
  if training is not None:
    layouts['train'] = _match_listed(root, training)
    used |= _listed_folders(root, training)
  oddities += _name_strays(root, used, known)
  first = next(iter(layouts.values()))
  oddities = (*first.oddities, *oddities)
  return layouts | {next(iter(layouts)): first._replace(oddities=oddities)}


def _name_strays(
  root: pathlib.Path,
  folders: Collection[pathlib.Path],
  known: Collection[pathlib.Path],
) -> list[str]:
  """Returns a line that names what lies beside the folders that are read."""
  above = {parent for folder in folders for parent in folder.parents}
  around = {path for path in above if path == root or root in path.parents}
  strays = [
    path.relative_to(root)
    for folder in sorted(around - set(folders))
    for path in find_strays(folder, above.union(folders, known))
    if not _is_empty(path)
  ]
  if not strays:
    return []
  return [f'{root}: not used: {name_some(strays)}; what is read is {_LAYOUTS}']


def _is_empty(path: pathlib.Path) -> bool:
  try:
    return path.is_dir() and not list_folder(path)
  except InputError:  # nobody may look into it
    return False


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
    bids = any(name.startswith('sub-') for name in names)
    raise InputError(
      f'{root}: no folder of volumes; found {name_some(names)}; allowed is '
      f'{_LAYOUTS}' + ' (of BIDS: config.data.source=bids)' * bids
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


def _listed_folders(
  root: pathlib.Path, training: Sequence[Entry]
) -> set[pathlib.Path]:
  """Returns the folders below `root` that hold listed files."""
  return {
    pathlib.Path(os.path.normpath(root / file)).parent
    for entry in training
    for file in entry
    if _is_below(root, file)
  }


def _match_listed(root: pathlib.Path, training: Sequence[Entry]) -> Layout:
  """Returns the cases that `dataset.json` lists."""
  where = root / 'dataset.json'
  refused: list[Refused] = []
  files: dict[str, VolumeFiles] = {}
  listed = {_identity(root / file) for entry in training for file in entry}
  outside = [
    file for entry in training for file in entry if not _is_below(root, file)
  ]
  problems = [_leaves(where, file, root) for file in dict.fromkeys(outside)]
  inside = [entry for entry in training if not set(entry) & set(outside)]
  folders = {(root / entry.image).parent for entry in inside}
  stems = {
    folder: by_stem(folder, refused, required=False)
    if os.path.isdir(folder)
    else {}
    for folder in sorted(folders)
  }
  groups = {folder: group_channels(found) for folder, found in stems.items()}
  for entry in inside:
    image, label = root / entry.image, root / entry.label
    name = case_name(image)
    paths = (image,)
    # nnU-Net lists CASE.nii.gz for CASE_0000.nii.gz.
    if not os.path.isfile(image):
      group = groups[image.parent].get(name, {})
      paths = tuple(stems[image.parent][stem] for stem in group.values())
    left = [path for path in paths if not _is_below(root, path)]
    if left:  # a channel that is a link
      problems.append(_leaves(where, left[0], root))
      continue
    missing = [entry.image] * (not paths) + [entry.label] * (
      not os.path.isfile(label)
    )
    case = VolumeFiles(name, paths or (image,), label)
    refused += [
      Refused(
        case,
        f'{where}: lists {quote(file, 100)}, which is not there; allowed are '
        f'files below {root}',
      )
      for file in missing
    ]
    listed.update(map(_identity, (*paths, *data_files((*paths, label)))))
    if name in files:
      refused.append(Refused(case, same_name(image, files[name])))
    elif not missing:
      files[name] = case
  cases = tuple(files[name] for name in sorted(files))
  oddities = _name_unlisted(root, _listed_folders(root, training), listed)
  return Layout(cases, tuple(refused), tuple(problems), tuple(oddities))


def _name_unlisted(
  root: pathlib.Path,
  folders: Collection[pathlib.Path],
  listed: Collection[tuple],
) -> list[str]:
  """Returns a line for each of the folders with what is not listed."""
  lines = []
  used = {*folders, *(above for folder in folders for above in folder.parents)}
  for folder in sorted(filter(os.path.isdir, folders)):
    extra = [
      path.name
      for path in find_strays(folder, used)
      if _identity(path) not in listed
    ]
    if extra:
      lines.append(
        f'{folder}: not used: {name_some(extra)}; '
        f'{counted(len(extra), "file")} that {root / "dataset.json"} does not '
        'list'
      )
  return lines


def _identity(path: pathlib.Path) -> tuple:
  """Returns what two names of one file share, links among them."""
  try:
    status = os.stat(path)
  except (OSError, ValueError):  # is not there, or no file can be named so
    return (os.path.normpath(path),)
  return status.st_dev, status.st_ino


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
