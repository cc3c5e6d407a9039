"""The data of a run, opened as its config says."""

import concurrent.futures
import contextlib
import os
import pathlib
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from medseg_jax.data import cache
from medseg_jax.data.cache import num_workers
from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.data.formats.volume_formats import data_files
from medseg_jax.data.sources.bids import open_bids
from medseg_jax.data.sources.dicom_set import open_dicom
from medseg_jax.data.sources.unlabelled import open_unlabelled
from medseg_jax.data.sources.volumes import VolumeSource, open_volumes
from medseg_jax.experiment import pretraining
from medseg_jax.runtime import telling
from medseg_jax.runtime.errors import InputError, InputErrors
from medseg_jax.runtime.files import expand_home

SOURCES = ('phantom', 'folder', *VOLUMES, 'tfds')
_NEEDED = {
  'folder': 'the folder of the images and masks',
  'volumes': 'the folder of the data set',
  'bids': 'the folder of the data set',
  'dicom': 'the folder of the series and their masks',
  'tfds': 'the data set, such as oxford_iiit_pet',
}


def open_all(config: ConfigDict, *, strict: bool = True) -> dict[str, Source]:
  """Returns all cases with masks: 'train', and what there is of val and test.

  Where `data.own_splits` is False 'train' alone. Folds are not made here, see
  `folds`.

  Args:
    config: its section `data`, and the patch size for phantoms.
    strict: whether problems with the files are errors at once; otherwise they
      are left for the survey to list, and to the reading of the case.

  Raises:
    InputError: no such source, no path, or see the source.
  """
  opened = _open_all(config, strict)
  # Later than the first models.
  if not config.data.get('own_splits', True) and 'train' in opened:
    return {'train': opened['train']}
  return opened


def _open_all(config: ConfigDict, strict: bool) -> dict[str, Source]:
  data = config.data
  if pretraining.is_asked(config):
    pretraining.check(config)
  if data.source in _NEEDED and not data.path:
    raise InputError(
      f'config.data.path is empty; with config.data.source={data.source} it '
      f'names {_NEEDED[data.source]}'
    )
  naming = dict(
    classes=_words(data.classes), label_values=tuple(data.label_values)
  )
  instances = data.get('instances', '')  # later than the first models
  known = []
  if data.get('group', '').lower().endswith('.csv'):
    known = [expand_home(data.group, or_set='config.data.group').absolute()]
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

    return open_folder(
      data.path,
      roi=data.roi,
      known=known,
      strict=strict,
      instances=instances,
      **naming,
    )
  if data.source in VOLUMES:
    try:
      if data.source == 'dicom':
        return open_dicom(
          data.path,
          cache=cache.root_folder(data.cache_dir),
          instances=data.instances,
          grid_tolerance=data.grid_tolerance,
          strict=strict,
          allow_gaps=data.get('allow_gaps', False),  # likewise
          assume_hounsfield=data.get('assume_hounsfield', False),
          **naming,
        )
      if data.source == 'bids':
        return open_bids(
          data.path,
          images=_words(data.bids.images),
          label=data.bids.label,
          instances=data.instances,
          grid_tolerance=data.grid_tolerance,
          strict=strict,
          **naming,
        )
      if pretraining.is_asked(config):
        return open_unlabelled(
          data.path, grid_tolerance=data.grid_tolerance, strict=strict
        )
      return open_volumes(
        data.path,
        instances=data.instances,
        grid_tolerance=data.grid_tolerance,
        strict=strict,
        known=known,
        **naming,
      )
    except InputErrors as error:
      if strict:
        raise
      raise listed(error.problems, data.path) from error
  if data.source == 'tfds':
    from medseg_jax.data.sources.tfds import open_tfds

    return open_tfds(
      data.path,
      data_dir=data.tfds.data_dir,
      image_key=data.tfds.image_key,
      mask_key=data.tfds.mask_key,
      instances=instances,
      **naming,
    )
  raise InputError(
    f'config.data.source is {data.source!r}; allowed are ' + ', '.join(SOURCES)
  )


def sizes(source: Source) -> list[int]:
  """Returns the bytes of each case's images; 0 for what is in no files."""
  files = getattr(source, 'files', None)
  if files is None:
    return [0] * len(source)
  return [
    num_bytes(case.images if hasattr(case, 'images') else [case.image])
    for case in files
  ]


def num_bytes(paths: Iterable[pathlib.Path]) -> int:
  """Returns the bytes of files together; 0 for one that is gone."""
  found, paths = 0, list(paths)
  for path in (*paths, *data_files(paths)):
    with contextlib.suppress(OSError):  # told by whoever reads it
      found += path.stat().st_size
  return found


def tell_oddities(opened: Iterable[Source]) -> None:
  """Prints what is odd about the layout and the headers of volumes.

  Once a run, when their files are opened for whatever purpose.
  """
  lines: list[str] = []
  for source in opened:
    if isinstance(source, VolumeSource):
      lines += source.oddities
      with concurrent.futures.ThreadPoolExecutor(num_workers()) as pool:
        for found in pool.map(source.find_oddities, range(len(source))):
          lines += found
  tell(lines)


def tell(lines: Iterable[str]) -> None:
  """Prints each line once, as a warning."""
  for line in dict.fromkeys(lines):
    telling.note(line)
    print(f'warning   {line}', flush=True)


def listed(problems: Sequence[str], where: str | os.PathLike) -> InputError:
  """Returns the error for problems with the data; of several, prints each."""
  if len(problems) == 1:
    return InputError(problems[0])
  for line in problems:
    print(f'error     {line}', flush=True)
  return InputError(
    f'{where}: {len(problems)} errors in the data, listed above'
  )


def check_train(opened: dict[str, Source], data: ConfigDict) -> None:
  """Raises InputError where there is no case to train on."""
  if 'train' not in opened:
    raise InputError(
      f'config.data: no case to train on in {data.path or data.source}; a '
      'train split with at least one case is needed'
    )


def _words(texts: Sequence[str]) -> tuple[str, ...]:
  if len(texts) == 1 and ',' in texts[0]:  # from the command line: a,b,c
    return tuple(text.strip() for text in texts[0].split(','))
  return tuple(texts)
