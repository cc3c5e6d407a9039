"""One checkpoint on the disk: what it says of itself, and whether it is whole.

Orbax reads some damage as if it were weights, and stumbles over other damage
with errors that name another reason. So the checksum of every array is taken
from memory when it is saved, kept with the checkpoint, and held against what
is read.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from medseg_jax.runtime import multihost, orbax_messages
from medseg_jax.runtime.errors import InputError

# Orbax's files: what it says of a checkpoint, its arrays, and what is JSON.
_ABOUT, _STATE = '_CHECKPOINT_METADATA', 'state'
_TEXTS = (
  _ABOUT,
  'state/_METADATA',
  'state/_sharding',
  'state/array_metadatas/*',
)
_SEAL = 'checksum'  # in the metadata of a checkpoint, of all that is there
# Words of errors that say nothing about the files.
_NOT_THE_FILES = (
  'RESOURCE_EXHAUSTED',
  'Out of memory',
  'MemoryError',
  'PERMISSION_DENIED',
  'PermissionError',
  'Too many open files',
)


class DamageError(Exception):
  """A checkpoint is not what was saved; says what of it is damaged."""


class Described(NamedTuple):
  """What a checkpoint says of itself.

  Attributes:
    metadata: that was saved with it.
    shapes: of its arrays, by path.
    checksums: of its arrays, by path; None of a checkpoint that was written
      before there were any.
  """

  metadata: dict[str, Any]
  shapes: dict[str, tuple[int, ...]]
  checksums: dict[str, int] | None


def read(
  path: pathlib.Path,
  wanted: Callable[[frozenset[str]], dict[str, Any]],
  *,
  whole: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns parts of the state of a checkpoint, and its metadata.

  Args:
    path: of the checkpoint.
    wanted: see `checkpoint.Checkpoints.restore`.
    whole: likewise.

  Raises:
    DamageError: it is not what was saved.
    InputError: it is whole, and of another model; or the reason lies elsewhere.
  """
  described = describe(path)
  abstract = wanted(frozenset(name.split('/')[0] for name in described.shapes))
  saved, needed = described.shapes, shapes_of(abstract)
  if not whole:
    saved = {k: v for k, v in saved.items() if k.split('/')[0] in abstract}
  if saved != needed:
    # Only of one without damage can it be said that it is of another model.
    _load(path, _as_saved(path), described)
    check_shapes(saved, needed, path)
  return _load(path, abstract, described), described.metadata


def describe(path: pathlib.Path) -> Described:
  """Returns what a checkpoint says of itself; raises DamageError."""
  orbax_messages.silence()
  if not path.is_dir():
    raise DamageError('it is no folder')
  if not any(path.iterdir()):
    raise DamageError('it is an empty folder')
  with _damage(path):
    about = ocp.metadata(path)
  own = about.custom_metadata or {}
  if not isinstance(own, dict):
    raise DamageError(f'{_ABOUT} is not what was saved')
  if _SEAL in own:
    return _unsealed(own)
  # Written before there were checksums, or the file that held them is damaged,
  # of which Orbax says nothing.
  if not _is_json(path / _ABOUT):
    raise DamageError(f'{_ABOUT} cannot be read')
  return Described(own, shapes_of(_tree(path)), None)


def _load(path: pathlib.Path, abstract: Any, described: Described) -> Any:
  """Returns arrays of a checkpoint, which are those that were saved."""
  context = ocp.Context()
  context.pytree.loading.partial_load = True
  if multihost.count() > 1:  # each reads by itself, so that none waits
    context.multiprocessing.primary_host = multihost.index()
    context.multiprocessing.active_processes = {multihost.index()}
  with _damage(path), context:
    state = ocp.load(path, jax.tree.map(_here, abstract))
  if described.checksums is None:
    return state
  wrong = [
    name
    for name, checksum in checksums(state).items()
    if checksum != described.checksums[name]
  ]
  if wrong:
    more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
    raise DamageError(f'{wrong[0]}{more} is not what was saved')
  return jax.tree.map(_as_wanted, state, abstract)


def _here(wanted: Any) -> Any:
  """Returns what an array is first loaded as: by this process alone."""
  if _is_here(wanted):
    return wanted
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(wanted.shape, wanted.dtype, sharding=place)


def _as_wanted(array: Any, wanted: Any) -> Any:
  """Returns the array on the devices of all processes, where it belongs."""
  if _is_here(wanted):
    return array
  whole = np.asarray(array)
  return jax.make_array_from_callback(
    whole.shape, wanted.sharding, lambda index: whole[index]
  )


def _is_here(wanted: Any) -> bool:
  layout = getattr(wanted, 'sharding', None)
  return layout is None or layout.is_fully_addressable


def _tree(path: pathlib.Path) -> Any:
  """Returns the saved pytree, with leaves that have a shape and a dtype."""
  with _damage(path):
    tree = ocp.metadata(path).metadata
  if tree is None:
    raise DamageError('what it says of its arrays cannot be read')
  return tree


def _as_saved(path: pathlib.Path) -> Any:
  """Returns what a checkpoint is loaded by as it is, onto one device."""
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: (
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
      if hasattr(x, 'shape')
      else x
    ),
    _tree(path),
  )


@contextlib.contextmanager
def _damage(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of Orbax into one that says what of the files is damaged."""
  try:
    yield
  except Exception as error:
    chain = _chain(error)
    text = ' '.join(f'{type(link).__name__}: {link}' for link in chain)
    if any(word in text for word in _NOT_THE_FILES):
      raise InputError(
        f'cannot read the checkpoint {path}: {reason(error)}'
      ) from error
    raise DamageError(_named(path, text)) from error


def _named(path: pathlib.Path, text: str) -> str:
  """Returns what is wrong with which file, as far as can be told."""
  if not (path / _STATE).is_dir():
    return f'its folder {_STATE} is missing'
  for name in _TEXTS:
    for file in sorted(path.glob(name)) or [path / name]:
      if not _is_json(file):
        return f'{file.relative_to(path)} cannot be read'
  files = re.findall(f'file "{re.escape(str(path))}/([^"]*[^"/])"', text)
  if not files:
    return f'its arrays, in {_STATE}, cannot be read'
  missing = '' if (path / files[-1]).exists() else ', as it is not there'
  return f'{files[-1]} cannot be read{missing}'


def _is_json(file: pathlib.Path) -> bool:
  try:
    json.loads(file.read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return True


# What is kept with the arrays.


def checksums(state: Any) -> dict[str, int]:
  """Returns the CRC-32 of the bytes of every array, by its path."""
  return {
    name: zlib.crc32(memoryview(np.ascontiguousarray(array)).cast('B'))
    for name, array in _arrays(jax.device_get(state)).items()
  }


def sealed(metadata: dict[str, Any], state: Any) -> dict[str, Any]:
  """Returns `metadata` with the shapes and checksums of the arrays."""
  found = checksums(state)
  arrays = {
    name: [list(shape), found[name]] for name, shape in shapes_of(state).items()
  }
  return {
    'metadata': metadata,
    'arrays': arrays,
    _SEAL: _text_checksum(metadata, arrays),
  }


def _unsealed(own: dict[str, Any]) -> Described:
  try:
    metadata, arrays = own['metadata'], own['arrays']
    whole = own[_SEAL] == _text_checksum(metadata, arrays)
  except KeyError:
    whole = False
  if not whole:
    raise DamageError(f'{_ABOUT} is not what was saved')
  return Described(
    metadata,
    {name: tuple(shape) for name, (shape, _) in arrays.items()},
    {name: checksum for name, (_, checksum) in arrays.items()},
  )


def _text_checksum(*values: Any) -> int:
  return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array by its path, without container types."""
  return {name: tuple(leaf.shape) for name, leaf in _arrays(tree).items()}


def _arrays(tree: Any) -> dict[str, Any]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    '/'.join(_key_name(key) for key in path): leaf
    for path, leaf in leaves
    if hasattr(leaf, 'shape')
  }


def _key_name(key: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def check_shapes(
  saved: dict[str, tuple], wanted: dict[str, tuple], where: pathlib.Path
) -> None:
  """Raises InputError where two trees of shapes differ (see `shapes_of`)."""
  for path in sorted(saved.keys() | wanted.keys()):
    if saved.get(path) != wanted.get(path):
      raise InputError(
        f'the weights in {where} are of another model: {path} has shape '
        f'{saved.get(path, "none")} there and {wanted.get(path, "none")} in '
        'this configuration; use the configuration it was trained with, or '
        'another --workdir'
      )


def reason(error: BaseException) -> str:
  """Returns in a few words why Orbax, or the system below it, has failed."""
  chain = _chain(error)
  for link in chain:
    if isinstance(link, OSError) and link.strerror:
      return link.strerror
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
    if any(os.strerror(number) in str(link) for link in chain):
      return os.strerror(number)
  # The last one is what the others were made of.
  lines = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
  return lines[0][:160]


def _chain(error: BaseException) -> list[BaseException]:
  """Returns an error, and after it the one that it came from, and so on."""
  chain = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
    chain.append(cause)
  return chain
