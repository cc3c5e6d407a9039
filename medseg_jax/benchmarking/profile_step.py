"""Where the time of a training step goes, part by part."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.benchmarking.machine import median_seconds
from medseg_jax.data.cache import Cache
from medseg_jax.data.sampling import choose_patches, read_batch
from medseg_jax.experiment import build
from medseg_jax.runtime import process, sharding
from medseg_jax.state import TrainState
from medseg_jax.step import TrainStep, split_batch
from medseg_jax.training import device_batches
from medseg_jax.training.device_cache import DeviceData


def loading_parts(
  config: ConfigDict,
  cache: Cache,
  data: DeviceData | None,
  mesh: Mesh,
  min_seconds: float,
) -> dict[str, float]:
  """Returns the seconds of 'reading' a batch and of its way 'host_to_device'.

  One after the other; from the host training does both while the device works.

  Args:
    config: resolved.
    cache: of the training split.
    data: where the data set lies on the device: patches are cut out there.
    mesh: of the batches.
    min_seconds: of each measurement.
  """
  settings = build.patch_settings(config)
  layout = sharding.patches(mesh)
  steps = itertools.count()  # other cases each time
  if data is not None:
    read_fn = functools.partial(
      device_batches.read_batch, seed=config.seed, layout=layout, **settings
    )
    with jax.set_mesh(mesh):
      _, reading = _timed(
        jax.jit(read_fn, out_shardings=layout),
        lambda: (data, np.int32(next(steps))),
        min_seconds,
      )
    return {'reading': reading, 'host_to_device': 0.0}
  read_size = settings.pop('read_size')
  batch = None

  def read():
    nonlocal batch
    chosen = choose_patches(
      seed=config.seed,
      step=next(steps),
      shapes=cache.shapes,
      voxels=cache.voxels,
      **settings,
    )
    batch = read_batch(
      cache.images,
      cache.labels,
      chosen,
      settings['patch_size'],
      read_size,
      cache.image_dtype,
    )

  def send():
    jax.block_until_ready([sharding.to_devices(layout, x) for x in batch])

  return {
    'reading': median_seconds(read, min_seconds),
    'host_to_device': median_seconds(send, min_seconds),
  }


def step_parts(
  config: ConfigDict,
  train_step: TrainStep,
  state: TrainState,
  batch: dict[str, jax.Array],
  mesh: Mesh,
  min_seconds: float,
) -> dict[str, float]:
  """Returns the seconds of the parts of a training step on the devices.

  Each part is a compiled program of its own: 'augmentation', 'forward' (with
  the loss), 'backward' (what the gradient takes beyond that) and 'optimizer'.
  Between them everything goes through memory, so together they may take longer
  than the whole step.
  """
  steps = itertools.count()  # other random numbers each time
  one, many = sharding.replicated(mesh), sharding.patches(mesh)
  splits = config.batch_splits

  def first_part(batch):
    return jax.tree.map(lambda x: x[0], split_batch(batch, splits))

  with jax.set_mesh(mesh):
    augmented, augmentation = _timed(
      jax.jit(train_step.augment, out_shardings=many),
      lambda: (np.int32(next(steps)), batch),
      min_seconds,
    )
    part = jax.jit(first_part, out_shardings=many)(augmented)
    with process.not_kept(mesh):
      _, forward = _timed(
        jax.jit(train_step.forward, out_shardings=one),
        lambda: (state, part),
        min_seconds,
      )
      gradient, gradient_s = _timed(
        jax.jit(train_step.gradient, out_shardings=one),
        lambda: (state, augmented),
        min_seconds,
      )
    _, optimizer = _timed(
      jax.jit(train_step.update, out_shardings=one),
      lambda: (state, gradient),
      min_seconds,
    )
  forward *= splits
  return {
    'augmentation': augmentation,
    'forward': forward,
    'backward': max(gradient_s - forward, 0.0),
    'optimizer': optimizer,
  }


def _timed(
  fn: Callable, arguments_fn: Callable[[], tuple], min_seconds: float
) -> tuple[Any, float]:
  """Returns what `fn` makes of its arguments, and a call's median seconds."""
  result = jax.block_until_ready(fn(*arguments_fn()))  # compiles
  seconds = median_seconds(
    lambda: jax.block_until_ready(fn(*arguments_fn())), min_seconds
  )
  return result, seconds
