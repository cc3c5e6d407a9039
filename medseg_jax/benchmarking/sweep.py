"""Which batch size is quickest, and the largest that fits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.benchmarking import machine
from medseg_jax.experiment import build
from medseg_jax.experiment.compiled_steps import compile_step
from medseg_jax.runtime import sharding
from medseg_jax.state import TrainState

MOST_DOUBLINGS = 16
SLOWER = 0.9  # of the best rate; two sizes below that end the measurements
LONG_STEP = 10.0  # seconds; larger batches are not measured
MOST_TRIALS = 12  # of larger sizes, after those that are measured


class Row(NamedTuple):
  """A batch size that fits.

  Attributes:
    batch_size: over all devices.
    seconds: of a step; None where it was not measured.
    memory_bytes: that the step takes on a device; None where not told.
  """

  batch_size: int
  seconds: float | None
  memory_bytes: int | None

  @property
  def images_per_s(self) -> float:
    return self.batch_size / self.seconds if self.seconds else 0.0


class Sweep(NamedTuple):
  """What a sweep found.

  Attributes:
    rows: of the sizes measured, ascending.
    best: size with the most images a second; None where not even one fits.
    largest: that was found to fit.
    limited: whether a larger one was found not to fit; else the search ended
      at `largest`.
  """

  rows: list[Row]
  best: int | None
  largest: int | None
  limited: bool


def search(
  attempt: Callable[[int, bool], Row | None],
  unit: int,
  limit_bytes: int | None,
  most_doublings: int = MOST_DOUBLINGS,
) -> Sweep:
  """Returns the sizes measured, the quickest and the largest that fits.

  Doubles the size from `unit` on until it does not fit, two sizes after one
  another are slower than 0.9 of the best rate, or a step takes 10 s. Then looks
  for the largest that fits without measuring: where the memory of a step is
  known, on the line through the two largest sizes, else halfway.

  Args:
    attempt: `(batch_size, measure) -> Row`, None where it does not fit.
    unit: the smallest size, of which all others are multiples.
    limit_bytes: of memory on a device; None where not told.
    most_doublings: the search ends with this many.
  """
  rows, too_large, size = [], None, unit
  most = unit * 2**most_doublings
  while size <= most:
    row = attempt(size, True)
    if row is None:
      too_large = size
      break
    rows.append(row)
    best = max(row.images_per_s for row in rows)
    slow = [row.images_per_s < SLOWER * best for row in rows[-2:]]
    if (len(slow) == 2 and all(slow)) or row.seconds > LONG_STEP:
      break
    size *= 2
  if not rows:
    return Sweep([], None, None, True)
  best = max(rows, key=lambda row: row.images_per_s).batch_size
  largest, limited = find_largest(
    lambda size: attempt(size, False), rows, too_large, unit, limit_bytes, most
  )
  return Sweep(rows, best, largest, limited)


def find_largest(
  attempt: Callable[[int], Row | None],
  rows: list[Row],
  too_large: int | None,
  unit: int,
  limit_bytes: int | None,
  most: int,
) -> tuple[int, bool]:
  """Returns the largest size found to fit, and whether a larger one did not.

  Args:
    attempt: `batch_size -> Row`, None where it does not fit.
    rows: of sizes that fit, ascending, at least one.
    too_large: a size that does not; None where none is known.
    unit: of which all sizes are multiples.
    limit_bytes: of memory on a device; None where not told.
    most: the largest size to try.
  """
  fitting, limited = list(rows), False
  for _ in range(MOST_TRIALS):
    size = _next_size(fitting, too_large, unit, limit_bytes, most)
    if size is None:
      limited = fitting[-1].batch_size < most
      break
    row = attempt(size)
    if row is None:
      too_large = size
    else:
      fitting.append(row)
  return fitting[-1].batch_size, limited or too_large is not None


def _next_size(
  fitting: list[Row],
  too_large: int | None,
  unit: int,
  limit_bytes: int | None,
  most: int,
) -> int | None:
  """Returns the size to try next; None where little more can be found."""
  last = fitting[-1]
  low = last.batch_size
  high = most + unit if too_large is None else too_large
  size = min(2 * low, most) if too_large is None else (low + high) // 2
  if limit_bytes and len(fitting) > 1 and last.memory_bytes:
    before = fitting[-2]
    more = last.memory_bytes - before.memory_bytes
    if more > 0:
      each = more / (low - before.batch_size)
      predicted = low + (limit_bytes - last.memory_bytes) / each
      if predicted < high:
        size = high = int(predicted)
  if high - low <= max(unit, low // 32):
    return None
  return size // unit * unit


def sweep(
  config: ConfigDict,
  train_step: Callable,
  state: TrainState,
  mesh: Mesh,
  min_seconds: float,
) -> Sweep:
  """Returns what batch sizes the step of `config` can have on this machine.

  Args:
    config: resolved; its batch size is ignored.
    train_step: not yet compiled.
    state: in host memory.
    mesh: of the devices.
    min_seconds: of each measurement.
  """
  limit = machine.free_memory(mesh)
  unit = mesh.shape['data'] * config.batch_splits

  def attempt(batch_size, measure):
    changed = ConfigDict(config.to_dict())
    changed.batch_size = batch_size
    row = None
    try:
      row = _attempt(
        changed, train_step, state, mesh, limit, min_seconds, measure
      )
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
    found = 'fits' if row else 'does not fit'
    if row and row.seconds:
      found = f'{row.images_per_s:.4g} images/s'
    print(f'batch     {batch_size}: {found}', flush=True)
    return row

  return search(attempt, unit, limit)


def _attempt(
  config: ConfigDict,
  train_step: Callable,
  state: TrainState,
  mesh: Mesh,
  limit: int | None,
  min_seconds: float,
  measure: bool,
) -> Row | None:
  """Returns the row of the config's batch size; None where it does not fit."""
  state = jax.tree.map(
    lambda x: sharding.to_devices(sharding.replicated(mesh), x), state
  )
  compiled = compile_step(train_step, state, config, mesh)
  memory = memory_bytes(compiled)
  if limit is not None and memory is not None and memory > limit:
    return None
  if not measure and mesh.devices.flat[0].platform == 'cpu':
    return Row(config.batch_size, None, memory)  # a trial could take minutes
  batch = random_batch(config, mesh)

  def once():
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready((state, metrics))

  once()
  seconds = machine.median_seconds(once, min_seconds) if measure else None
  return Row(config.batch_size, seconds, memory)


def memory_bytes(compiled: Any) -> int | None:
  """Returns what a compiled program takes on a device, None where not told."""
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  return (
    stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes  # donated: outputs in the place of arguments
    + stats.temp_size_in_bytes
  )


def random_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.Array]:
  """Returns a random batch on the devices, of the config's shape."""
  rng = np.random.default_rng(config.seed)
  patches = build.patch_settings(config)
  shape = (patches['batch_size'], *patches['read_size'])
  layout = sharding.patches(mesh)
  image = rng.standard_normal((*shape, config.data.channels), np.float32)
  num_classes = len(config.data.classes) or 1  # none where there are no labels
  label = rng.integers(0, num_classes, shape, np.int16)
  return {
    'image': sharding.to_devices(layout, image.astype(np.float16)),
    'label': sharding.to_devices(layout, label),
  }
