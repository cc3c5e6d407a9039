"""What lies in a folder: images, and what is none of them."""

import itertools
import os
import pathlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from medseg_jax.runtime.errors import InputError, explain, shorten

# By name, since Pillow's own list has PDF, video and other surprises.
IMAGE_SUFFIXES = (
  '.apng', '.bmp', '.dib', '.gif', '.j2c', '.j2k', '.jfif', '.jp2', '.jpc',
  '.jpe', '.jpeg', '.jpf', '.jpg', '.jpx', '.pbm', '.pgm', '.png', '.pnm',
  '.ppm', '.tga', '.tif', '.tiff', '.webp',
)  # fmt: skip
# What systems leave in folders, beside names that begin with a dot.
_LEFTOVERS = ('desktop.ini', 'ehthumbs.db', 'thumbs.db', '__macosx')
# What describes a data set, and what other parts of a run read or write there.
_DESCRIPTIONS = (
  'changelog', 'citation', 'copying', 'licence', 'license', 'readme',
)  # fmt: skip
_TEXTS = ('', '.cff', '.htm', '.html', '.md', '.pdf', '.rst', '.txt')
_OWN = ('dataset.json', 'plan.json', 'splits.json')
_LONGEST_NAME = 60


class Listing(NamedTuple):
  """What a folder holds, each sorted by name.

  Attributes:
    images: the image files.
    unused: the other files, and the folders, but for what is no news there
      (see `find_strays`).
  """

  images: list[pathlib.Path]
  unused: list[pathlib.Path]


def find_images(folder: str | os.PathLike) -> Listing:
  """Returns the image files directly in `folder`, and what else is there.

  Raises:
    InputError: no such folder, no image in it, or two images with one stem.
  """
  folder = pathlib.Path(folder)
  entries = list_folder(folder)
  images = [
    path
    for path in entries
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
  ]
  if not images:
    raise InputError(
      f'{folder}: no image files; found {name_some(p.name for p in entries)}; '
      f'allowed are {" ".join(IMAGE_SUFFIXES)}'
    )
  for before, path in itertools.pairwise(sorted(images, key=lambda p: p.stem)):
    if before.stem == path.stem:
      raise InputError(
        f'{folder}: {before.name} and {path.name} have the same stem; allowed '
        'is one file for each stem'
      )
  return Listing(images, find_strays(folder, set(images)))


def find_strays(
  folder: pathlib.Path, used: Collection[pathlib.Path]
) -> list[pathlib.Path]:
  """Returns what is in a folder of a data set beside what is used of it.

  Not what is no news: hidden files, the leftovers of operating systems, texts
  that describe the data, and the JSON files that belong to it.
  """
  return [
    path
    for path in list_folder(folder)
    if path not in used and not _is_no_news(path)
  ]


def _is_no_news(path: pathlib.Path) -> bool:
  name = path.name.lower()
  describes = (
    path.stem.lower() in _DESCRIPTIONS and path.suffix.lower() in _TEXTS
  )
  return name in _LEFTOVERS or (
    (describes or name in _OWN) and not path.is_dir()
  )


def list_images(folder: str | os.PathLike) -> list[pathlib.Path]:
  """Returns the images of `find_images`, and says nothing of the rest."""
  return find_images(folder).images


def list_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what is in `folder`, sorted by name, without hidden files.

  Raises:
    InputError: no such folder, or not readable; says what is there instead.
  """
  try:
    if os.path.isdir(folder):  # False for names that no file can have, too
      entries = [p for p in folder.iterdir() if not p.name.startswith('.')]
      return sorted(entries, key=lambda path: path.name)
    if os.path.exists(folder):
      raise InputError(f'{folder}: a file; allowed is a folder')
    parent = folder.absolute()
    while not os.path.isdir(parent):
      parent = parent.parent
    there = sorted(p.name for p in parent.iterdir() if p.name[0] != '.')
  except OSError as error:
    raise InputError(explain(error, 'list the folder', folder)) from error
  raise InputError(
    f'{one_line(folder, 250)}: no such folder; the nearest that exists is '
    f'{one_line(parent, 250)}, which '
    f'holds {name_some(there)}'
  )


def name_some(names: Iterable, limit: int = 5) -> str:
  """Returns the first few names, and how many there are where that is more."""
  names = [str(name) for name in names]
  text = ', '.join(one_line(name, _LONGEST_NAME) for name in names[:limit])
  text = text or 'nothing'
  return text if len(names) <= limit else f'{text}, ... ({len(names)} in all)'


def one_line(text: object, longest: int = 150) -> str:
  """Returns a text on one line of printable characters, shortened."""
  line = ' '.join(str(text).split())
  line = ''.join(char if char.isprintable() else '?' for char in line)
  return shorten(line, longest)
