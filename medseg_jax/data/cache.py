"""Preprocessed cases on disk, memory-mapped: written once, read by patches.

One folder a split: `images.bin` and `labels.bin` hold the cases one after the
other, `index.json` says where each begins. The folder's name carries a hash of
the data's fingerprint and of the preprocessing, so a change of either leads to
another folder and nothing stale is ever read.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from medseg_jax.data.case import Source
from medseg_jax.data.preprocess import (
  Preprocessing,
  preprocess_image,
  preprocess_label,
)
from medseg_jax.errors import InputError

# Raise it whenever the same data and settings would give other arrays.
VERSION = 1
# Half precision halves disk, memory and transfers. Standardised intensities
# need no more (8-bit levels stay apart) and cannot leave its range: a z-score
# over n voxels is at most sqrt(n). The step computes in float32.
IMAGE_DTYPE = np.float16


class Cache(NamedTuple):
  """Preprocessed cases of one split; reading item `i` maps, not copies.

  Attributes:
    folder: where it lies.
    names: of the cases.
    images: `images[i]` is `[*S_i, C]` float16.
    labels: `labels[i]` is `[*S_i]` uint8, or uint16 beyond 256 classes.
  """

  folder: pathlib.Path
  names: tuple[str, ...]
  images: tuple[np.ndarray, ...]
  labels: tuple[np.ndarray, ...]

  @property
  def shapes(self) -> tuple[tuple[int, ...], ...]:
    return tuple(label.shape for label in self.labels)


def default_root() -> pathlib.Path:
  """Returns the user's cache folder for this program."""
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'medseg_jax'


def prepare(
  source: Source,
  preprocessing: Preprocessing,
  *,
  root: str | os.PathLike = '',
  title: str = 'data',
  track: Callable[[range], Iterable[int]] = iter,
) -> Cache:
  """Returns the cache of `source`, writing it first where it is missing.

  Args:
    source: the cases of one split, with labels.
    preprocessing: applied to every case.
    root: folder of all caches; '' is the user's cache folder.
    title: names the folder for a person who looks for what takes the space.
    track: wraps the loop over the cases, to show progress.

  Raises:
    InputError: a case cannot be read or makes no sense, or the disk is full.
  """
  folder = _folder(source, preprocessing, root, title)
  if not (folder / 'index.json').exists():
    with _new_folder(folder) as partial:
      _write(source, preprocessing, partial, track)
  return _open(folder)


def check(
  source: Source,
  preprocessing: Preprocessing,
  *,
  root: str | os.PathLike = '',
  title: str = 'data',
  track: Callable[[range], Iterable[int]] = iter,
) -> None:
  """Reads and preprocesses every case once, and remembers that all are good.

  For splits that are evaluated, on their own grid, from their own files.
  Arguments and errors are those of `prepare`.
  """
  folder = _folder(source, preprocessing, root, title)
  if not folder.exists():
    with _new_folder(folder):
      for i in track(range(len(source))):
        preprocess_image(source[i], preprocessing)


def _folder(source, preprocessing, root, title) -> pathlib.Path:
  root = pathlib.Path(root).expanduser() if root else default_root()
  return root / f'{_plain(title)}-{_key(source, preprocessing)}'


def _key(source: Source, preprocessing: Preprocessing) -> str:
  text = repr((VERSION, source.fingerprint(), preprocessing))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(title: str) -> str:
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in title)


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder that becomes `folder` when the block has ended.

  A run that is killed in the block leaves no half of a cache in its place.
  """
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(
      tempfile.mkdtemp(prefix='partial-', dir=folder.parent)
    )
    partial.chmod(0o755)  # mkdtemp hides it from others who share the cache
    try:
      yield partial
      os.replace(partial, folder)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  except OSError as error:
    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
      raise InputError(
        f'cannot write the cache {folder}: {error.strerror}; free space there '
        'or set config.data.cache_dir to another folder'
      ) from error
    # Another run was faster; what it wrote is the same.


def _write(
  source: Source,
  preprocessing: Preprocessing,
  folder: pathlib.Path,
  track: Callable[[range], Iterable[int]],
) -> None:
  label_dtype = np.uint8 if len(source.classes) <= 256 else np.uint16
  shapes = []
  with (
    open(folder / 'images.bin', 'wb') as images,
    open(folder / 'labels.bin', 'wb') as labels,
  ):
    for i in track(range(len(source))):
      case = source[i]
      image = preprocess_image(case, preprocessing)
      label = preprocess_label(case, preprocessing).astype(label_dtype)
      image.astype(IMAGE_DTYPE).tofile(images)
      label.tofile(labels)
      shapes.append(list(image.shape))
  index = {
    'names': list(source.names),
    'shapes': shapes,
    'label_dtype': np.dtype(label_dtype).name,
  }
  (folder / 'index.json').write_text(json.dumps(index))


def _open(folder: pathlib.Path) -> Cache:
  index = json.loads((folder / 'index.json').read_text())
  shapes = [tuple(shape) for shape in index['shapes']]
  images = np.memmap(folder / 'images.bin', IMAGE_DTYPE, 'r')
  labels = np.memmap(folder / 'labels.bin', index['label_dtype'], 'r')
  return Cache(
    folder=folder,
    names=tuple(index['names']),
    images=_split(images, shapes),
    labels=_split(labels, [shape[:-1] for shape in shapes]),
  )


def _split(flat: np.ndarray, shapes: list[tuple[int, ...]]):
  ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
  parts = np.split(flat, ends[:-1])
  return tuple(
    part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
  )
