"""The training steps compiled, with the batches that they take.

Under `jax.disable_jit()`, or JAX_DISABLE_JIT=1 in the environment, nothing is
compiled but what cuts out the batch: a debugger stops inside `step.TrainStep`,
and prints show numbers.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import augment
from medseg_jax.data import precision
from medseg_jax.data.cache import Cache
from medseg_jax.experiment import build
from medseg_jax.runtime import host_memory, process, sharding, stop_signal
from medseg_jax.runtime.progress import format_seconds
from medseg_jax.state import TrainState
from medseg_jax.step import AUGMENT_SCOPE, TrainStep
from medseg_jax.training import device_batches, device_cache
from medseg_jax.training.device_cache import DeviceData
from medseg_jax.training.input_pipeline import create_batches

# What one call of many steps may take: a signal waits for three calls at most.
SECONDS_A_CALL = 1.0


class CompiledSteps(NamedTuple):
  """Where the batches come from, and the compiled steps that take them.

  Attributes:
    data: yields what each call of `advance` takes.
    advance: `(state, data, count) -> (state, metrics)`, compiled: `TrainStep`
      `count` times; the metrics are a row each, or scalars of the one step.
    max_count: the most steps of a call.
    placed: the data set, where it is on the devices.
  """

  data: Iterator[Any]
  advance: Callable[[TrainState, Any, int], tuple[TrainState, dict]]
  max_count: int
  placed: DeviceData | None = None


def compile_steps(
  train_step: TrainStep,
  state: TrainState,
  cache: Cache,
  config: ConfigDict,
  mesh: Mesh,
  before: CompiledSteps | None = None,
) -> CompiledSteps:
  """Returns the steps from `state` on, compiled, and their data.

  With the data set on the device the compiled program chooses patches, cuts
  them out and trains, many steps a call. Otherwise the host sends batches.

  Args:
    train_step: not compiled.
    state: where a run begins or goes on.
    cache: of the training split.
    config: resolved.
    mesh: of the state and the batches.
    before: of smaller patches, whose data set on the devices is used again.

  Raises:
    InputError: there is no place for the data set where it has to be.
  """
  if before is None:
    data = device_cache.place(cache, mode=config.data.device_cache, mesh=mesh)
  else:
    data = before.placed
  placed = data
  if data is None:
    stream = create_batches(
      cache,
      first_step=int(jax.device_get(state.step)),
      num_steps=config.num_steps,
      mesh=mesh,
      seed=config.seed,
      **build.patch_settings(config),
    )
    data, max_count = _abstract_batch(config, mesh, cache.image_dtype), 1
  else:
    stream, max_count = itertools.repeat(data), device_batches.max_steps(mesh)
  if jax.config.jax_disable_jit:
    read_fn = _read_fn(config, mesh, data, look_up=False)
    advance = _not_compiled(train_step, read_fn)
    return CompiledSteps(stream, advance, 1, placed)
  read_fn = _read_fn(config, mesh, data)
  compile_fn = _compile_whole
  if mesh.devices.flat[0].platform == 'cpu' and max_count == 1:
    compile_fn = _compile_parts
  begin = time.perf_counter()
  advance = compile_fn(train_step, read_fn, max_count, state, data, mesh)
  _print_compiled(begin)
  return CompiledSteps(stream, advance, max_count, placed)


def _not_compiled(train_step, read_fn):
  """Returns `advance` as plain Python, operation by operation.

  But for the batch: what is computed device by device takes minutes so.
  """
  read_fn = jax.jit(read_fn)

  def advance(state, data, count):
    del count  # 1
    with jax.disable_jit(False):
      batch = read_fn(data, state.step)
    with jax.transfer_guard('allow'):  # of every number in the code
      return train_step(state, batch)

  return advance


def _compile_whole(train_step, read_fn, max_count, state, data, mesh):
  """Returns `advance` as one program."""
  place = sharding.replicated(mesh)
  steps = device_batches.create_steps(
    train_step, read_fn=read_fn, max_count=max_count
  )
  count = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
  compiled = _compile(
    steps, place, state, data, count, convolves=True, donate_argnums=0
  )

  def advance(state, data, count):
    return compiled(state, data, sharding.to_devices(place, np.int32(count)))

  return advance


def _compile_parts(train_step, read_fn, max_count, state, data, mesh):
  """Returns `advance` as three programs: batch, gradient, update.

  Compiled programs with convolutions cannot be kept on disk for the next run
  on CPU; the others can, which saves it a third of the time.
  """
  del max_count  # 1
  layout, everywhere = sharding.patches(mesh), sharding.replicated(mesh)

  def prepare(step, data):
    return train_step.augment(step, read_fn(data, step))

  prepare = _compile(prepare, layout, state.step, data)
  gradient = _compile(
    train_step.gradient,
    everywhere,
    state,
    _outputs(prepare, layout),
    convolves=True,
  )
  update = _compile(
    train_step.update,
    everywhere,
    state,
    _outputs(gradient, everywhere),
    donate_argnums=0,
  )

  def advance(state, data, count):
    batch = prepare(state.step, data)
    return update(state, gradient(state, batch))

  return advance


def _outputs(compiled, layout):
  """Returns the shapes of what a program returns, for the next one."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
    compiled.out_info,
  )


def compile_step(
  train_step: TrainStep,
  state: TrainState,
  config: ConfigDict,
  mesh: Mesh,
  data: DeviceData | None = None,
) -> jax.stages.Compiled:
  """Returns the step compiled for this state and the config's batches.

  Args:
    train_step: not compiled.
    state: arrays, or their shapes and layouts.
    config: resolved.
    mesh: of the state and the batches.
    data: the data set on the devices, likewise, that the batches are cut out
      of. None where the host sends them; images are in half precision then, as
      most data sets are.
  """
  begin = time.perf_counter()
  source = data or _abstract_batch(config, mesh, precision.HALF)
  read_fn = _read_fn(config, mesh, source)

  def step(state, source):
    return train_step(state, read_fn(source, state.step))

  step.__name__ = train_step.__name__
  compiled = _compile(
    step,
    sharding.replicated(mesh),
    state,
    source,
    convolves=True,
    donate_argnums=0,
  )
  _print_compiled(begin)
  return compiled


def _read_fn(config, mesh, data, look_up=True) -> Callable:
  """Returns `(data, step) -> batch`, for the batch or the data set.

  Where every device has all of the data set, a warp looks up by itself what it
  needs there, unless `look_up` says otherwise.
  """
  if not isinstance(data, DeviceData):
    return lambda batch, step: batch  # the host has read it
  with build.blame('augment'):
    warps = augment.warps(**build.augment_fields(config))
  read_fn = device_batches.read_batch
  if look_up and warps and data.members == 1:
    read_fn = device_batches.UnreadBatch
  read_fn = functools.partial(
    read_fn,
    seed=config.seed,
    layout=sharding.patches(mesh),
    **build.patch_settings(config),
  )
  return jax.named_scope(AUGMENT_SCOPE)(read_fn)


def _abstract_batch(config, mesh, dtype) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and the layout of a batch as the host sends it."""
  settings = build.patch_settings(config)
  shape = (settings['batch_size'], *settings['read_size'])
  layout = sharding.patches(mesh)
  return {
    'image': jax.ShapeDtypeStruct(
      (*shape, config.data.channels), dtype, sharding=layout
    ),
    'label': jax.ShapeDtypeStruct(shape, jnp.int16, sharding=layout),
  }


def _compile(fn, layout, *arguments, convolves=False, **options):
  jitted = jax.jit(fn, out_shardings=layout, **options)
  kept = contextlib.nullcontext()
  if convolves:
    kept = process.not_kept(layout.mesh)
  with jax.set_mesh(layout.mesh), kept:
    compiled = process.compile_for(layout.mesh, jitted.lower(*arguments))
  host_memory.return_freed()
  stop_signal.check()
  return compiled


def _print_compiled(begin: float) -> None:
  took = format_seconds(time.perf_counter() - begin)
  print(f'compiled  the training step in {took}', flush=True)
