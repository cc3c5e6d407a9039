"""Preprocessed cases on disk, memory-mapped: written once, read by patches.

One folder a split: `images.bin` and `labels.bin` hold the cases one after the
other, `index.json` says where each begins. The folder's name carries a hash of
the data's fingerprint and of the preprocessing, so a change of either leads to
another folder and nothing stale is ever read.
"""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable
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
# Half precision halves disk, memory and transfers; standardised intensities
# need no more, and 8-bit levels stay apart. The step computes in float32.
IMAGE_DTYPE = np.float16


class Cache(NamedTuple):
  """Preprocessed cases of one split; reading item `i` maps, not copies.

  Attributes:
    names: of the cases.
    images: `images[i]` is `[*S_i, C]` float16.
    labels: `labels[i]` is `[*S_i]` uint8, or uint16 beyond 256 classes.
  """

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
  track: Callable[[Iterable[int]], Iterable[int]] = iter,
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
  root = pathlib.Path(root).expanduser() if root else default_root()
  folder = root / f'{_plain(title)}-{_key(source, preprocessing)}'
  if not (folder / 'index.json').exists():
    _write(source, preprocessing, folder, track)
  return _open(folder)


def _key(source: Source, preprocessing: Preprocessing) -> str:
  text = repr((VERSION, source.fingerprint(), preprocessing))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(title: str) -> str:
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in title)


def _write(
  source: Source,
  preprocessing: Preprocessing,
  folder: pathlib.Path,
  track: Callable[[Iterable[int]], Iterable[int]],
) -> None:
  label_dtype = np.uint8 if len(source.classes) <= 256 else np.uint16
  limit = np.finfo(IMAGE_DTYPE).max
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed when whole: a run that is killed
    # here leaves no half of a cache behind that another would trust.
    partial = tempfile.mkdtemp(prefix='partial-', dir=folder.parent)
  except OSError as error:
    raise InputError(
      f'cannot write the cache under {folder.parent}: {error.strerror}; '
      'set config.data.cache_dir to a folder with space'
    ) from error
  try:
    shapes = []
    with (
      open(os.path.join(partial, 'images.bin'), 'wb') as images,
      open(os.path.join(partial, 'labels.bin'), 'wb') as labels,
    ):
      for i in track(range(len(source))):
        case = source[i]
        image = preprocess_image(case, preprocessing)
        label = preprocess_label(case, preprocessing).astype(label_dtype)
        np.clip(image, -limit, limit).astype(IMAGE_DTYPE).tofile(images)
        label.tofile(labels)
        shapes.append(list(image.shape))
    index = {
      'names': list(source.names),
      'shapes': shapes,
      'label_dtype': np.dtype(label_dtype).name,
    }
    with open(os.path.join(partial, 'index.json'), 'w') as file:
      json.dump(index, file)
    os.replace(partial, folder)
  except OSError as error:
    shutil.rmtree(partial, ignore_errors=True)
    if not (folder / 'index.json').exists():  # else another run was faster
      raise InputError(
        f'cannot write the cache {folder}: {error.strerror}; free space there '
        'or set config.data.cache_dir to another folder'
      ) from error
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _open(folder: pathlib.Path) -> Cache:
  index = json.loads((folder / 'index.json').read_text())
  shapes = [tuple(shape) for shape in index['shapes']]
  images = np.memmap(folder / 'images.bin', IMAGE_DTYPE, 'r')
  labels = np.memmap(folder / 'labels.bin', index['label_dtype'], 'r')
  return Cache(
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
