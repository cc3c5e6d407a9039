"""Saving and restoring a pytree of arrays with Orbax: the latest and the best.

Orbax writes a checkpoint beside its place and renames it when it is whole, so
a run that is killed while saving, or a full disk, costs nothing older.
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from medseg_jax.runtime.errors import InputError

LATEST, BEST = 'latest', 'best'


class Checkpoints:
  """The checkpoints of one run, under `directory/latest` and `/best`.

  Args:
    directory: made when the first checkpoint is saved.
    keep: how many of the latest are kept.
    writes: whether this process trains. It clears what an earlier run was
      killed over; one that only reads leaves a running training alone.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    keep: int = 2,
    writes: bool = False,
  ):
    self._directory = pathlib.Path(directory).absolute()
    self._writes = writes
    self._keep = {LATEST: keep, BEST: 1}
    self._open: dict[str, ocp.training.Checkpointer] = {}

  def step(self, which: str) -> int | None:
    """Returns the step of the latest or the best checkpoint, None without."""
    if not (self._directory / which).is_dir():
      return None
    newest = self._checkpointer(which).latest
    return None if newest is None else newest.step

  def metadata(self, which: str) -> dict[str, Any]:
    """Returns the `metadata` that was saved with the checkpoint."""
    checkpointer = self._checkpointer(which)
    return checkpointer.metadata(self.step(which)).custom_metadata or {}

  def save(
    self, which: str, step: int, state: Any, metadata: dict[str, Any]
  ) -> None:
    """Saves `state` while the caller goes on; errors come up in `wait`.

    Args:
      which: LATEST or BEST.
      step: does nothing where this step is saved already.
      state: pytree of arrays.
      metadata: a small JSON-like dict to keep with it.
    """
    if self.step(which) == step:
      return
    self.wait()
    try:
      with jax.transfer_guard('allow'):  # the copy to the host is on purpose
        self._checkpointer(which).save_async(
          step, state, force=True, custom_metadata=metadata
        )
    except Exception as error:
      raise self._failed(which, error) from error

  def wait(self) -> None:
    """Waits for saves under way; raises InputError where one has failed."""
    for which, checkpointer in self._open.items():
      try:
        checkpointer.wait()
      except Exception as error:
        raise self._failed(which, error) from error

  def parts(self, which: str) -> frozenset[str]:
    """Returns the names of the state's parts that hold arrays."""
    saved = self._checkpointer(which).metadata(self._step(which)).metadata
    return frozenset(path.split('/')[0] for path in shapes_of(saved))

  def restore(
    self, which: str, abstract_state: Any, *, parts: Iterable[str] = ()
  ) -> Any:
    """Returns the state of the latest or the best checkpoint.

    Args:
      which: LATEST or BEST.
      abstract_state: pytree of jax.ShapeDtypeStruct with shardings.
      parts: names of the parts that `abstract_state`, then a dict, asks for;
        nothing else is read. All of the state by default.

    Raises:
      InputError: there is none, or it belongs to another model.
    """
    step, parts = self._step(which), frozenset(parts)
    checkpointer = self._checkpointer(which)
    saved = shapes_of(checkpointer.metadata(step).metadata)
    if parts:
      saved = {k: v for k, v in saved.items() if k.split('/')[0] in parts}
    check_shapes(saved, shapes_of(abstract_state), self._directory / which)
    context = ocp.Context()
    context.pytree.loading.partial_load = bool(parts)
    try:
      with context:
        return checkpointer.load(step, abstract_state)
    except Exception as error:
      raise InputError(
        f'cannot read the checkpoint {self._directory / which}/{step}: '
        + _first_line(error)
      ) from error

  def close(self) -> None:
    """Ends the background work; saves must have been waited for."""
    while self._open:
      with contextlib.suppress(Exception):  # told by `wait` where it matters
        self._open.popitem()[1].close()

  def _step(self, which: str) -> int:
    step = self.step(which)
    if step is None:
      raise InputError(
        f'no {which} checkpoint in {self._directory}; train with this '
        '--workdir first'
      )
    return step

  def _checkpointer(self, which: str) -> ocp.training.Checkpointer:
    if which not in self._open:
      _silence_orbax()
      policies = ocp.training.preservation_policies
      self._open[which] = ocp.training.Checkpointer(
        self._directory / which,
        preservation_policy=policies.LatestN(self._keep[which]),
        cleanup_tmp_directories=self._writes,
      )
    return self._open[which]

  def _failed(self, which: str, error: Exception) -> InputError:
    # A checkpointer that failed repeats its error at every call, so the next
    # call opens another one.
    with contextlib.suppress(Exception):
      self._open.pop(which).close()
    kept = self.step(which)
    older = 'there is no older one' if kept is None else f'step {kept} is kept'
    return InputError(
      f'cannot save the {which} checkpoint in {self._directory}: '
      f'{_first_line(error)}; {older}; the same command goes on from there '
      'once the folder can be written (is the disk full?)'
    )


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array by its path, without container types."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    '/'.join(_key_name(key) for key in path): tuple(leaf.shape)
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


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _silence_orbax() -> None:
  """Keeps Orbax's worker threads from printing a failure's traceback.

  The failure itself is raised in the main thread and reported there once.
  """
  logger = logging.getLogger('absl')
  if _not_orbax not in logger.filters:
    logger.addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname
