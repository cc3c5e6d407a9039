"""Saving and restoring a pytree of arrays with Orbax: the latest and the best.

Orbax writes a checkpoint beside its place and renames it when it is whole, so
a run that is killed while saving, or a full disk, costs nothing older.

What was damaged later is told by checksums (`checkpoint_files.py`), never used,
and never deleted.

Of several processes all call every method alike: they save together, the
primary looks at the folder for all, and each reads what the primary has found
whole.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from medseg_jax.runtime import checkpoint_files, multihost, orbax_messages
from medseg_jax.runtime.checkpoint_files import DamageError, reason
from medseg_jax.runtime.errors import InputError

LATEST, BEST = 'latest', 'best'
DAMAGED = 'damaged'  # the folder of what is set aside
# Devices with the same array write a part each where it has as many bytes: to
# cut smaller arrays takes longer than to write them.
_BYTES_A_PART = 1 << 20


class Restored(NamedTuple):
  """A checkpoint as it was saved.

  Attributes:
    parts: of the state, by name.
    step: that it was saved for.
    metadata: that was saved with it.
  """

  parts: dict[str, Any]
  step: int
  metadata: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, under `directory/latest` and `/best`.

  Args:
    directory: made when the first checkpoint is saved.
    keep: how many of the latest are kept.
    writes: whether this process trains. It clears what an earlier run was
      killed over, and sets aside what is damaged; one that only reads leaves
      the folder of a running training alone.
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

  def steps(self, which: str) -> list[int]:
    """Returns the steps of the checkpoints of a kind, whole or not."""
    return multihost.from_primary(lambda: sorted(self._saved(which)))

  def step(self, which: str) -> int | None:
    """Returns the newest of `steps`, None without."""
    return max(self.steps(which), default=None)

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
    self.wait()
    if self.step(which) == step:
      return
    try:
      with jax.transfer_guard('allow'):  # the copy to the host is on purpose
        sealed = checkpoint_files.sealed(metadata, state)
        self._checkpointer(which).save_async(
          step, state, force=True, custom_metadata=sealed
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

  def metadata(self, which: str) -> dict[str, Any]:
    """Returns the `metadata` that was saved with the newest of a kind.

    Raises:
      InputError: it is damaged.
    """

    def read() -> dict[str, Any]:
      saved = self._saved(which)
      newest = max(saved)
      try:
        return checkpoint_files.describe(saved[newest]).metadata
      except DamageError as damage:
        raise self._not_whole(which, {newest: str(damage)}) from damage

    return multihost.from_primary(read)

  def restore(
    self,
    which: str,
    wanted: Callable[[frozenset[str]], dict[str, Any]],
    *,
    whole: bool = True,
  ) -> Restored:
    """Returns the newest whole one of the latest checkpoints, or the best.

    Says which newer ones are damaged; a process that trains sets them aside,
    under another name, once it has found what it goes on from.

    Args:
      which: LATEST or BEST.
      wanted: from the names of the parts of the saved state that hold arrays
        to the parts to read, by name, pytrees of jax.ShapeDtypeStruct with
        shardings.
      whole: whether that must be all the parts that were saved.

    Raises:
      InputError: there is none, none is whole, or it is of another model.
    """
    found: list[Restored] = []

    def look() -> int:
      found.append(self._newest_whole(which, wanted, whole=whole))
      return found[0].step

    step = multihost.from_primary(look)
    if not found:
      path = self._saved(which)[step]
      try:
        parts, metadata = checkpoint_files.read(path, wanted, whole=whole)
      except DamageError as damage:
        raise InputError(
          f'{path} is whole where process 0 reads it, and here: {damage}; all '
          'processes have to see the same disk'
        ) from damage
      found.append(Restored(parts, step, metadata))
    return found[0]

  def _newest_whole(
    self,
    which: str,
    wanted: Callable[[frozenset[str]], dict[str, Any]],
    *,
    whole: bool,
  ) -> Restored:
    saved = self._saved(which)
    newest_first = sorted(saved, reverse=True)
    if which == BEST:
      newest_first = newest_first[:1]  # an older one is not the best
    damaged: dict[int, str] = {}
    for step in newest_first:
      try:
        parts, metadata = checkpoint_files.read(
          saved[step], wanted, whole=whole
        )
      except DamageError as damage:
        damaged[step] = str(damage)
        continue
      for bad, why in damaged.items():
        self.set_aside(which, bad, f'damaged: {why}', step)
      return Restored(parts, step, metadata)
    if not damaged:
      raise InputError(
        f'no {which} checkpoint in {self._directory}; train with this '
        '--workdir first'
      )
    raise self._not_whole(which, damaged)

  def set_aside(self, which: str, step: int, why: str, use: int) -> None:
    """Moves a checkpoint out of the way, says so, and deletes nothing.

    A process that only reads leaves it where it is, and says so.

    Args:
      which: LATEST or BEST.
      step: of the checkpoint.
      why: what it is, after 'PATH is'.
      use: the step that is used in its place.
    """

    def move() -> None:
      path = self._saved(which)[step]
      moved = ''
      if self._writes:
        moved = f'moved to {self._move_away(which, path)}; '
      print(f'note      {path} is {why}; {moved}step {use} is used', flush=True)

    multihost.from_primary(move)

  def close(self) -> None:
    """Ends the background work; saves must have been waited for."""
    while self._open:
      with contextlib.suppress(Exception):  # told by `wait` where it matters
        self._open.popitem()[1].close()

  def _saved(self, which: str) -> dict[int, pathlib.Path]:
    """Returns the paths of the checkpoints by step.

    Orbax itself would look into each of them, and stumble over a damaged one.
    """
    try:
      paths = list((self._directory / which).iterdir())
    except FileNotFoundError:
      return {}
    return {
      int(path.name): path
      for path in paths
      if path.name.isascii() and path.name.isdecimal()
    }

  def _move_away(self, which: str, path: pathlib.Path) -> pathlib.Path:
    """Moves a checkpoint to the damaged ones and returns its new place."""
    with contextlib.suppress(KeyError):
      self._open.pop(which).close()  # it holds a list of the steps
    folder = self._directory / DAMAGED
    folder.mkdir(exist_ok=True)
    name = f'{which}-{path.name}'
    taken = sum(1 for _ in folder.glob(f'{name}*'))
    target = folder / (f'{name}-{taken + 1}' if taken else name)
    with contextlib.suppress(FileNotFoundError):  # another process was first
      path.rename(target)
    return target

  def _not_whole(self, which: str, damaged: dict[int, str]) -> InputError:
    """Returns the error of checkpoints, why each, of which none is whole."""
    (newest, why), *older = sorted(damaged.items(), reverse=True)
    others = f'so are {len(older)} older ones; '
    if len(older) < 2:
      others = 'so is 1 older one; ' if older else ''
    return InputError(
      f'{self._saved(which)[newest]} is damaged: {why}; {others}'
      + _WITHOUT[which]
    )

  def _checkpointer(self, which: str) -> ocp.training.Checkpointer:
    if which not in self._open:
      orbax_messages.silence()
      policies = ocp.training.preservation_policies
      self._open[which] = ocp.training.Checkpointer(
        self._directory / which,
        preservation_policy=policies.LatestN(self._keep[which]),
        cleanup_tmp_directories=self._writes,
        context=_context(),
      )
    return self._open[which]

  def _failed(self, which: str, error: Exception) -> InputError:
    # A checkpointer that failed repeats its error at every call, so the next
    # call opens another one.
    with contextlib.suppress(Exception):
      self._open.pop(which).close()
    kept = max(self._saved(which), default=None)
    older = 'there is no older one' if kept is None else f'step {kept} is kept'
    return InputError(
      f'cannot save the {which} checkpoint in {self._directory}: '
      f'{reason(error)}; {older}; the same command goes on from there '
      'once the folder can be written (is the disk full?)'
    )


def _context() -> ocp.Context:
  saving = ocp.options.ArrayOptions.Saving(
    min_slice_bytes_for_replica_parallel=_BYTES_A_PART
  )
  return ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving))


_WITHOUT = {
  LATEST: (
    'there is no whole one to go on from; use another --workdir, or move the '
    'folder away to begin anew'
  ),
  BEST: (
    'move it away to go on without: the best is chosen anew, among later steps'
  ),
}
