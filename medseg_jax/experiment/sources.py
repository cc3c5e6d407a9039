"""The cases of a run by split, opened as its config says."""

import hashlib
import pathlib

from ml_collections import ConfigDict

from medseg_jax.data import splits
from medseg_jax.data.case import Source
from medseg_jax.runtime.errors import InputError

SOURCES = ('phantom', 'folder', 'volumes', 'tfds')


def open_sources(
  config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Source]:
  """Returns the sources by split: train, and what there is of val and test."""
  sources = _open_sources(config, workdir)
  if 'train' not in sources:
    raise InputError(
      f'config.data: no case to train on in {config.data.source} '
      f'{config.data.path}; a train split with at least one case is needed'
    )
  return sources


def _open_sources(
  config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Source]:
  data = config.data
  folds = dict(
    fold=data.fold, num_folds=data.num_folds, fold_order=data.fold_order
  )
  naming = dict(classes=_classes(data), label_values=tuple(data.label_values))
  if data.source == 'phantom':
    from medseg_jax.data.sources.phantom import open_phantom

    return open_phantom(
      shape=tuple(data.phantom.shape) or tuple(config.patch_size),
      seed=data.phantom.seed,
      num_train=data.phantom.num_train,
      num_val=data.phantom.num_val,
      num_test=data.phantom.num_test,
    )
  if data.source == 'folder':
    from medseg_jax.data.sources.folder import open_folder

    return open_folder(data.path, roi=data.roi, **naming, **folds)
  if data.source == 'volumes':
    return with_folds(open_volumes(config), config, workdir)
  if data.source == 'tfds':
    from medseg_jax.data.sources.tfds import open_tfds

    return open_tfds(
      data.path,
      data_dir=data.tfds.data_dir,
      image_key=data.tfds.image_key,
      mask_key=data.tfds.mask_key,
      **naming,
      **folds,
    )
  raise InputError(
    f'config.data.source is {data.source!r}; allowed are ' + ', '.join(SOURCES)
  )


def open_volumes(
  config: ConfigDict, *, strict: bool = True
) -> dict[str, Source]:
  """Returns all cases with labels as 'train', and 'test' where there is one.

  Unless `strict`, problems with the files are left for the survey to list.
  """
  from medseg_jax.data.sources import volumes

  data = config.data
  return volumes.open_volumes(
    data.path,
    classes=_classes(data),
    label_values=tuple(data.label_values),
    strict=strict,
  )


def with_folds(
  opened: dict[str, Source], config: ConfigDict, workdir: pathlib.Path
) -> dict[str, Source]:
  """Returns the splits, the fold `data.fold` of 'train' held out as 'val'.

  Obeys the folds of splits.json, which a user may have replaced, and writes
  them where there is no such file.
  """
  data, source = config.data, opened['train']
  if data.fold == 'all':
    return opened
  path = workdir / 'splits.json'
  if path.exists():
    folds = splits.read_splits(path, source.names)
    print(f'folds     {path}: {len(folds)}, held out is {data.fold}')
  else:
    folds = splits.all_folds(
      source.names,
      num_folds=data.num_folds,
      fold_order=data.fold_order,
      where=data.path,
    )
    splits.write_splits(path, folds)
  fold = folds[splits.fold_index(data.fold, len(folds))]
  parts = {part: source.subset(fold[part]) for part in ('train', 'val')}
  return {**opened, **parts}


def held_out_key(by_split: dict[str, Source]) -> str:
  """Returns a text that changes with the cases held out, '' without any."""
  if 'val' not in by_split:
    return ''
  names = by_split['val'].names
  return hashlib.sha256('\n'.join(sorted(names)).encode()).hexdigest()[:16]


def _classes(data: ConfigDict) -> tuple[str, ...]:
  names = tuple(data.classes)
  if len(names) == 1 and ',' in names[0]:  # from the command line: a,b,c
    names = tuple(name.strip() for name in names[0].split(','))
  return names
