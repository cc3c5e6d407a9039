"""The digest of every case's image, computed once and remembered.

See `data/identity.py`. A digest needs all voxels, so each is kept in the user's
cache folder under the case's key, which changes when its files do.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

from medseg_jax.data.cache import num_workers, root_folder
from medseg_jax.data.case import Source
from medseg_jax.data.identity import BLANK, digest, is_blank
from medseg_jax.data.sources.already_read import AlreadyRead
from medseg_jax.data.sources.phantom import PhantomSource
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json, write_atomically
from medseg_jax.runtime.progress import Progress

REMEMBERED = 'image_digests.json'
_UNREAD = 'unread'

# Of each split the digest of each case, by name.
Digests = dict[str, dict[str, str]]


def digests_of(
  by_split: Mapping[str, Source],
  *,
  root: str | os.PathLike = '',
  strict: bool = True,
  keep: bool = False,
) -> Digests:
  """Returns the digest of every case of every split.

  Args:
    by_split: the cases.
    root: folder of all caches; '' is the user's cache folder.
    strict: whether a case that cannot be read is an error; otherwise it gets a
      digest that no other case has, see `is_unread`.
    keep: whether cases that are read stay in memory, where there is room, for
      a next reading, that of the preprocessing.

  Raises:
    InputError: a case cannot be read.
  """
  known = _read(root)
  found, new = {}, {}
  for split, source in by_split.items():
    keys = [_key(source, i, strict) for i in range(len(source))]
    if isinstance(source, PhantomSource):  # made, not read: the key says all
      computed = {k: hashlib.sha256(k.encode()).hexdigest()[:16] for k in keys}
    else:
      computed = known
      missing = {i: key for i, key in enumerate(keys) if key not in known}
      kept = getattr(source, 'already_read', None) if keep else None
      fresh = _compute(source, missing, split, strict, kept)
      computed = known | {keys[i]: value for i, value in fresh.items()}
      new |= {
        keys[i]: value for i, value in fresh.items() if not is_unread(value)
      }
    found[split] = {
      name: _of_a_blank(name) if is_blank(computed[key]) else computed[key]
      for name, key in zip(source.names, keys, strict=True)
    }
  if new:
    remember(new, root=root)
  return found


def is_unread(digest: str) -> bool:
  """Returns whether a digest is of a case that could not be read."""
  return digest.startswith(_UNREAD)


def _unread(split: str, name: str) -> str:
  text = f'{split}/{name}'.encode('utf-8', 'surrogateescape')
  return f'{_UNREAD} {hashlib.sha256(text).hexdigest()[:10]}'


def _key(source: Source, index: int, strict: bool) -> str:
  """Returns the key of a case, or where its files are gone one of its own."""
  try:
    return source.case_key(index)
  except (InputError, OSError):
    if strict:
      raise
    return _unread('key', source.names[index])


def _of_a_blank(name: str) -> str:
  """Returns a digest by which blank images differ, as their names do."""
  return f'{BLANK} {hashlib.sha256(name.encode()).hexdigest()[:10]}'


def remember(
  digests: Mapping[str, str], *, root: str | os.PathLike = ''
) -> None:
  """Keeps digests, by case key, for runs to come."""
  # Nothing is lost but time where they cannot be kept.
  with contextlib.suppress(OSError, InputError):
    content = json.dumps(_read(root) | dict(digests), indent=0)
    write_atomically(_place(root), content.encode())


def _read(root: str | os.PathLike) -> dict[str, str]:
  try:
    known = read_json(_place(root), 'digests by key')
  except InputError:
    return {}
  if not isinstance(known, dict):
    return {}
  return {k: v for k, v in known.items() if isinstance(v, str)}


def _place(root: str | os.PathLike) -> pathlib.Path:
  return root_folder(root) / REMEMBERED


def _compute(
  source: Source,
  missing: Mapping[int, str],
  split: str,
  strict: bool,
  kept: AlreadyRead | None,
) -> dict[int, str]:
  """Returns the digests of the cases that are `missing`, reading them.

  Args:
    source: the cases.
    missing: their keys by index.
    split: of the source.
    strict: see `digests_of`.
    kept: takes the cases; None to drop them.
  """
  if not missing:
    return {}

  def read(index: int) -> str:
    try:
      case = source[index]
      value = digest(case.image)
    except (InputError, OSError, MemoryError):
      if strict:
        raise
      return _unread(split, source.names[index])
    if kept is not None:
      kept.keep(missing[index], case)
    return value

  # TFDS reads one case after the other, quickly; threads make it jump.
  workers = num_workers() if hasattr(source, 'files') else 1
  with (
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    Progress(len(missing), unit='case', desc=f'compare {split}') as progress,
  ):
    found = {}
    for index, value in zip(missing, pool.map(read, missing), strict=True):
      found[index] = value
      progress.advance()
  return found
