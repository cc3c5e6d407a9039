"""Preprocessed cases on disk, memory-mapped: written once, read by patches.

One folder a case: `image.npy`, `label.npy`, where asked for `voxels.npy` (where
the classes are), and `case.json`. A folder is written under another name and
then renamed, so it is there whole or not at all: cases are written in parallel,
and a killed run goes on where it was. The names carry hashes of the
preprocessing and of the data behind the case, so a change of either leads to
another folder and nothing stale is ever read. Splits and folds share cases.
"""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medseg_jax.data import masking
from medseg_jax.data.case import Source
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.data.sampling import voxels_of_source
from medseg_jax.runtime import host_memory
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import expand_home, user_cache_folder

# Raise it whenever the same data and settings would give other arrays.
VERSION = 4
# Half precision halves disk, memory and transfers. Standardised intensities
# need no more: 8-bit levels stay apart. The step computes in float32.
IMAGE_DTYPE = np.float16
IMAGE_LIMIT = np.finfo(IMAGE_DTYPE).max
# Open files of one kind. A process may often have no more than 1024.
MAX_OPEN = 128
# Writing a case takes seconds. What is older was left by a run that was killed.
PARTIAL = 'partial-'
PARTIAL_SECONDS = 3600.0


class Lazy:
  """A sequence whose item `i` is `load(i)`; the latest `MAX_OPEN` are kept."""

  def __init__(self, load: Callable[[int], Any], size: int):
    self._size = size
    self._load = functools.lru_cache(maxsize=MAX_OPEN)(load)

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Any:
    if not -self._size <= index < self._size:
      raise IndexError(index)
    return self._load(int(index) % self._size)


class Cache(NamedTuple):
  """Preprocessed cases of one split; reading item `i` maps, not copies.

  Attributes:
    folder: where it lies.
    names: of the cases.
    images: `images[i]` is `[*S_i, C]` float16.
    labels: `labels[i]` is `[*S_i]` uint8, or int16 where a voxel is ignored
      (-1), lies outside the mask (see `masking.py`) or has an index above 255.
    shapes: `shapes[i]` is `S_i`; known without opening a case.
    voxels: `voxels[i]` is `{key: [n, R]}`, voxels to centre patches on (see
      `sampling.voxels_of_source`); None where not asked for.
  """

  folder: pathlib.Path
  names: tuple[str, ...]
  images: Sequence[np.ndarray]
  labels: Sequence[np.ndarray]
  shapes: tuple[tuple[int, ...], ...]
  voxels: Sequence[Mapping[int, np.ndarray]] | None = None


def num_workers(bytes_each: float = 0.0) -> int:
  """Returns how many threads may read cases that take `bytes_each` in memory.

  One for each CPU that this process may use, but with no more than 60 % of
  the memory that is available.
  """
  if hasattr(os, 'sched_getaffinity'):
    cpus = len(os.sched_getaffinity(0))
  else:
    cpus = os.cpu_count() or 1
  if not bytes_each:
    return cpus
  return int(np.clip(0.6 * host_memory.available() / bytes_each, 1, cpus))


def prepare(
  source: Source,
  preprocessing: Preprocessing,
  *,
  root: str | os.PathLike = '',
  title: str = 'data',
  with_locations: bool = False,
  workers: int = 0,
  on_case: Callable[[], object] = lambda: None,
) -> Cache:
  """Returns the cache of `source`, writing the cases that are missing first.

  Args:
    source: cases with labels.
    preprocessing: applied to every case.
    root: folder of all caches; '' is the user's cache folder.
    title: names the folder for a person who looks for what takes the space.
    with_locations: whether to store voxels to centre patches on.
    workers: threads, each with one case in memory; 0 is `num_workers()`.
    on_case: called, in the caller's thread, after each case that was written.
      Of those that are there already (all but `missing`) nothing is read.

  Raises:
    InputError: a case cannot be read or makes no sense, or the disk is full.
      No further case is begun then; those that were done stay.
  """
  folder = _folder(preprocessing, root, title, with_locations)
  places = _places(source, folder)
  entries = [_read_entry(place) for place in places]
  todo = [i for i, entry in enumerate(entries) if entry is None]
  if todo:
    with _blame_disk(folder):
      folder.mkdir(parents=True, exist_ok=True)
      _remove_old_partials(folder)
    pool = concurrent.futures.ThreadPoolExecutor(
      max_workers=workers or num_workers()
    )
    try:
      futures = {
        pool.submit(
          _write_case, source, i, preprocessing, places[i], with_locations
        ): i
        for i in todo
      }
      for future in concurrent.futures.as_completed(futures):
        entries[futures[future]] = future.result()
        on_case()
    finally:
      pool.shutdown(cancel_futures=True)
  return _open(folder, source.names, places, entries, with_locations)


def missing(
  source: Source,
  preprocessing: Preprocessing,
  *,
  root: str | os.PathLike = '',
  title: str = 'data',
  with_locations: bool = False,
) -> int:
  """Returns how many cases `prepare` with these arguments would write."""
  folder = _folder(preprocessing, root, title, with_locations)
  places = _places(source, folder)
  return sum(_read_entry(place) is None for place in places)


def _folder(preprocessing, root, title, with_locations) -> pathlib.Path:
  key = _hash((VERSION, preprocessing, with_locations))
  return root_folder(root) / f'{_plain(title)}-{key}'


def root_folder(root: str | os.PathLike = '') -> pathlib.Path:
  """Returns the folder of all caches: `root`, where '' is the user's.

  Raises:
    InputError: it is below the home folder, and there is none.
  """
  if root:
    return expand_home(root, or_set='config.data.cache_dir')
  return user_cache_folder()


def _places(source: Source, folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folder of each case."""
  # In threads: what is new or was changed is read for its key.
  with concurrent.futures.ThreadPoolExecutor(num_workers()) as pool:
    keys = pool.map(source.case_key, range(len(source)))
    return [
      folder / f'{_plain(name)}-{_hash((name, key))}'
      for name, key in zip(source.names, keys, strict=True)
    ]


def _hash(parts: tuple) -> str:
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _plain(title: str) -> str:
  """Returns `title` as a part of a file name, of 240 bytes at most."""
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in title[:48])


def _write_case(
  source: Source,
  index: int,
  preprocessing: Preprocessing,
  place: pathlib.Path,
  with_locations: bool,
) -> dict:
  """Writes the folder of one case and returns the content of `case.json`."""
  name = source.names[index]
  image, label, _, mask = preprocess(source[index], preprocessing)
  with np.errstate(over='ignore'):
    image = image.astype(IMAGE_DTYPE, order='C')  # a copy: then in place
  np.clip(image, -IMAGE_LIMIT, IMAGE_LIMIT, out=image)  # infinite: too large
  folded = masking.fold(label, mask)
  small = folded.min() >= 0 and folded.max() <= np.iinfo(np.uint8).max
  folded = folded.astype(np.uint8 if small else np.int16, order='C')
  arrays = {'image': image, 'label': folded}
  counts = []
  if with_locations:
    voxels = voxels_of_source(label, source, name=name)
    counts = [[c, len(where)] for c, where in voxels.items()]
    nowhere = np.zeros((0, label.ndim), np.uint16)
    arrays['voxels'] = np.concatenate([*voxels.values()] or [nowhere])
  entry = {
    'name': name,
    'shape': list(label.shape),
    'voxels': counts,
    'bytes': {},
  }
  with _blame_disk(place), _new_folder(place) as partial:
    for kind, array in arrays.items():
      path = partial / f'{kind}.npy'
      np.save(path, array)
      entry['bytes'][path.name] = path.stat().st_size
    (partial / 'case.json').write_text(json.dumps(entry))
  return entry


def _read_entry(place: pathlib.Path) -> dict | None:
  """Returns the content of `case.json`; None where the case has to be written.

  Files of other sizes than were written (a crash of the machine can leave
  such) count as not there.
  """
  try:
    entry = json.loads((place / 'case.json').read_text())
    for name, size in entry['bytes'].items():
      if (place / name).stat().st_size != size:
        return None
  except (OSError, ValueError):
    return None
  return entry


@contextlib.contextmanager
def _blame_disk(place: pathlib.Path) -> Iterator[None]:
  """Turns an OSError of the block into one line on the cache."""
  try:
    yield
  except OSError as error:
    # NumPy tells a full disk in words, without an error number.
    raise InputError(
      f'cannot write the cache {place}: {error.strerror or error}; free space '
      'there or set config.data.cache_dir to another folder'
    ) from error


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder that becomes `folder` when the block has ended."""
  partial = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder.parent))
  try:
    partial.chmod(0o755)  # mkdtemp hides it from others who share the cache
    yield partial
    try:
      os.replace(partial, folder)
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
        raise
      # Another run was faster and wrote the same, or what lies there is broken.
      if _read_entry(folder) is None:
        shutil.rmtree(folder)
        os.replace(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _remove_old_partials(folder: pathlib.Path) -> None:
  """Removes what killed runs left, but nothing that a live one may write."""
  for partial in folder.glob(f'{PARTIAL}*'):
    with contextlib.suppress(OSError):  # its run has just renamed it
      if time.time() - partial.stat().st_mtime > PARTIAL_SECONDS:
        shutil.rmtree(partial, ignore_errors=True)


def _open(
  folder: pathlib.Path,
  names: Sequence[str],
  places: Sequence[pathlib.Path],
  entries: Sequence[dict],
  with_locations: bool,
) -> Cache:
  def load(kind: str, i: int) -> np.ndarray:
    return np.load(places[i] / f'{kind}.npy', mmap_mode='r')

  def load_voxels(i: int) -> dict[int, np.ndarray]:
    counts = dict(entries[i]['voxels'])
    if not counts:
      return {}  # an empty file cannot be mapped
    ends = np.cumsum([*counts.values()])[:-1]
    return dict(zip(counts, np.split(load('voxels', i), ends), strict=True))

  return Cache(
    folder=folder,
    names=tuple(names),
    images=Lazy(functools.partial(load, 'image'), len(places)),
    labels=Lazy(functools.partial(load, 'label'), len(places)),
    shapes=tuple(tuple(entry['shape']) for entry in entries),
    voxels=Lazy(load_voxels, len(places)) if with_locations else None,
  )
