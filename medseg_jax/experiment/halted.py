"""A training whose loss was not finite: told, and saved unharmed."""

from typing import NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.cache import Cache
from medseg_jax.data.sampling import choose_patches
from medseg_jax.runtime import sharding
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import TrainState


def halted_at(state: TrainState) -> int | None:
  """Returns the step that the state stands still at, None where it goes on."""
  if not jax.device_get(state.halted):
    return None
  return int(jax.device_get(state.step))


def tell(
  state: TrainState,
  bad_step: int,
  sums: dict[str, float],
  config: ConfigDict,
  cache: Cache,
  checkpoints: Checkpoints,
  mesh: Mesh,
) -> NoReturn:
  """Saves, and raises InputError: a loss or gradient was not finite."""
  chosen = choose_patches(
    seed=config.seed,
    step=bad_step,
    batch_size=config.batch_size,
    shapes=cache.shapes,
    patch_size=tuple(config.patch_size),
    voxels=cache.voxels,
    foreground_share=config.data.foreground_share,
  )
  names = sorted({cache.names[i] for i in chosen.cases})
  # Saved, it is free to go on.
  go_on = sharding.to_devices(sharding.replicated(mesh), np.zeros((), bool))
  checkpoints.save(LATEST, bad_step, state.replace(halted=go_on), sums)
  checkpoints.wait()
  raise InputError(
    f'the loss is not finite at step {bad_step}, in a batch of the cases '
    f'{", ".join(names)}; the state before it is saved; look at these cases, '
    'or lower config.optimizer.learning_rate'
  )
