"""Preprocessed cases on disk, memory-mapped: written once, read by patches.

One folder a case (`cached_case.py`): cases are written in parallel, and a
killed run goes on where it was. The names carry hashes of the preprocessing and
of the data behind the case, so a change of either leads to another folder and
nothing stale is ever read. Splits and folds share cases.

What lies there is not believed: every file is held against its checksum when a
process first uses the case, and a damaged case is made anew. To check all files
when a run starts would read the whole data set, hundreds of GB perhaps, to see
the same a little earlier.
"""

import concurrent.futures
import functools
import hashlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medseg_jax.data import cached_case, masking, previous_stage
from medseg_jax.data.case import Source
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Preprocessing, preprocess
from medseg_jax.data.sampling import voxels_of_source
from medseg_jax.runtime import host_memory, stop_signal, telling
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import (
  content_hash,
  expand_home,
  user_cache_folder,
)

# Raise it whenever the same data and settings would give other arrays.
VERSION = 6
# Open files of one kind. A process may often have no more than 1024.
MAX_OPEN = 128
# To make a damaged case anew. Other runs that do so at the same time can be in
# the way, each once.
ATTEMPTS = 8


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
    images: `images[i]` is `[*S_i, C]`, float16 or, where that would lose
      something, float32 (see `precision.py`).
    labels: `labels[i]` is `[*S_i]` uint8, or int16 where a voxel is ignored
      (-1), lies outside the mask (see `masking.py`) or has an index above 255;
      of a cascade with the mask of its coarser network (`previous_stage.py`).
    shapes: `shapes[i]` is `S_i`; known without opening a case.
    dtypes: of each image, likewise.
    voxels: `voxels[i]` is `{key: [n, R]}`, voxels to centre patches on (see
      `sampling.voxels_of_source`); None where not asked for.
  """

  folder: pathlib.Path
  names: tuple[str, ...]
  images: Sequence[np.ndarray]
  labels: Sequence[np.ndarray]
  shapes: tuple[tuple[int, ...], ...]
  dtypes: tuple[np.dtype, ...]
  voxels: Sequence[Mapping[int, np.ndarray]] | None = None

  @property
  def image_dtype(self) -> np.dtype:
    """The type that holds every image, which a batch has."""
    return np.result_type(*self.dtypes)


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
    Stopped: a signal was noted. Likewise; cases that were begun are not waited
      for, and each is written whole or not at all.
  """
  folder = _folder(preprocessing, root, title, with_locations)
  places = _places(source, folder)
  entries = [cached_case.read_entry(place) for place in places]
  todo = [i for i, entry in enumerate(entries) if entry is None]
  if todo:
    with cached_case.blame_disk(folder):
      folder.mkdir(parents=True, exist_ok=True)
      cached_case.remove_old_partials(folder)
      _warn_of_damaged([places[i] for i in todo])
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
      for future in stop_signal.as_completed(futures):
        entries[futures[future]] = future.result()
        on_case()
    finally:
      # Whoever asked for the end may not wait for a case that takes long; a
      # process that is alone waits for it when it exits.
      pool.shutdown(wait=not stop_signal.asked(), cancel_futures=True)
  cases = _Cases(source, preprocessing, places, entries)
  return Cache(
    folder=folder,
    names=tuple(source.names),
    images=Lazy(functools.partial(cases.load, 'image'), len(places)),
    labels=Lazy(functools.partial(cases.load, 'label'), len(places)),
    shapes=tuple(tuple(entry['shape']) for entry in entries),
    dtypes=tuple(np.dtype(entry['dtype']) for entry in entries),
    voxels=Lazy(cases.voxels, len(places)) if with_locations else None,
  )


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
  return sum(cached_case.read_entry(place) is None for place in places)


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


def _places(
  source: Source, folder: pathlib.Path, indices: Iterable[int] | None = None
) -> list[pathlib.Path]:
  """Returns the folders of all cases, or of some."""
  if indices is None:
    indices = range(len(source))
  # In threads: what is new or was changed is read for its key.
  with concurrent.futures.ThreadPoolExecutor(num_workers()) as pool:
    keys = pool.map(lambda i: _key(source, i), indices)
    return [folder / f'{_plain(key[0])}-{_hash(key)}' for key in keys]


def _key(source: Source, index: int) -> tuple[str, ...]:
  name = source.names[index]
  key = (name, source.case_key(index))
  masks = getattr(source, 'stage_masks', None)
  return (*key, content_hash(masks[name])) if masks else key


def _warn_of_damaged(places: Sequence[pathlib.Path]) -> None:
  """Says which of the cases that are to be written are there, but spoiled."""
  spoiled = [place.name for place in places if os.path.lexists(place)]
  if spoiled:
    more = f' and {len(spoiled) - 1} more' if len(spoiled) > 1 else ''
    telling.warn(
      f'the cache {places[0].parent} is damaged (case.json, or the size of a '
      f'file) and made anew: {spoiled[0]}{more}'
    )


def _hash(parts: tuple) -> str:
  return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _plain(title: str) -> str:
  """Returns `title` as a part of a file name, of 240 bytes at most."""
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in title[:48])


class _Cases:
  """The arrays of all cases; each file is checked when it is first asked for.

  Once a process: what is found damaged is made anew. Of use in several threads.
  """

  def __init__(
    self,
    source: Source,
    preprocessing: Preprocessing,
    places: Sequence[pathlib.Path],
    entries: Sequence[dict[str, Any]],
  ):
    self._source = source
    self._preprocessing = preprocessing
    self._places = places
    self._entries = list(entries)
    self._checked: set[tuple[str, int]] = set()
    self._locks = [threading.Lock() for _ in places]

  def load(self, kind: str, i: int) -> np.ndarray:
    with self._locks[i]:
      for _ in range(ATTEMPTS):
        try:
          return self._load(kind, i)
        except cached_case.Damaged as damage:
          found = damage
        self._mend(i, found)
      raise InputError(
        f'the cache {self._places[i]} was made anew and is damaged again '
        f'({found}); set config.data.cache_dir to a folder on a sound disk'
      )

  def voxels(self, i: int) -> dict[int, np.ndarray]:
    counts = dict(self._entries[i]['voxels'])
    if not counts:
      return {}
    ends = np.cumsum([*counts.values()])[:-1]
    points = self.load('voxels', i)
    return dict(zip(counts, np.split(points, ends), strict=True))

  def _load(self, kind: str, i: int) -> np.ndarray:
    check = (kind, i) not in self._checked
    array = cached_case.load(
      self._places[i], self._entries[i], kind, check=check
    )
    self._checked.add((kind, i))
    return array

  def _mend(self, i: int, damage: cached_case.Damaged) -> None:
    place, name = self._places[i], self._source.names[i]
    telling.warn(
      f'the cache of {name} is damaged ({damage}) and made anew: {place}'
    )
    if _places(self._source, place.parent, [i]) != [place]:
      raise InputError(
        f'{name}: the cache {place} is damaged, and the files of the case have '
        'changed since this run began; start it again'
      )
    with_locations = 'voxels.npy' in self._entries[i]['files']
    self._entries[i] = _write_case(
      self._source, i, self._preprocessing, place, with_locations
    )
    self._checked -= {(kind, i) for kind in ('image', 'label', 'voxels')}


def _write_case(
  source: Source,
  index: int,
  preprocessing: Preprocessing,
  place: pathlib.Path,
  with_locations: bool,
) -> dict:
  """Writes the folder of one case and returns the content of `case.json`."""
  name = source.names[index]
  prepared = preprocess(source[index], preprocessing)
  image, label = compact(prepared.image, prepared.slack), prepared.label
  folded = label
  if masks := getattr(source, 'stage_masks', None):
    mask = previous_stage.read(masks[name], label.shape)
    folded = previous_stage.fold(label, mask, num_classes=len(source.classes))
  folded = masking.fold(folded, prepared.mask)
  del prepared
  small = folded.min() >= 0 and folded.max() <= np.iinfo(np.uint8).max
  folded = folded.astype(np.uint8 if small else np.int16, order='C')
  arrays = {'image': image, 'label': folded}
  counts = []
  if with_locations:
    voxels = voxels_of_source(label, source, name=name)
    counts = [[c, len(where)] for c, where in voxels.items()]
    nowhere = np.zeros((0, label.ndim), np.uint16)
    arrays['voxels'] = np.concatenate([*voxels.values()] or [nowhere])
  facts = {
    'name': name,
    'shape': list(label.shape),
    'dtype': image.dtype.name,
    'voxels': counts,
  }
  return cached_case.write(place, arrays, facts)
