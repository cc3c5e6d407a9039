"""The state that a training goes on from, out of its checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medseg_jax.runtime import sharding
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.state import TrainState


def restore_state(
  checkpoints: Checkpoints, abstract: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """Returns the newest whole checkpoint: state, free to go on, and metadata.

  Args:
    checkpoints: of a run that trains; damaged ones are set aside.
    abstract: see `state.abstract_state`.

  Raises:
    InputError: none is whole, or it is of another model.
  """
  # Of a dict Orbax reads what is asked for, also of a state with other fields.
  parts: dict[str, Any] = {
    field.name: part
    for field in dataclasses.fields(abstract)
    if jax.tree.leaves(part := getattr(abstract, field.name))
  }
  younger = {'ema_batch_stats', 'anneal'}  # than some checkpoints

  def wanted(saved: frozenset[str]) -> dict[str, Any]:
    return {k: v for k, v in parts.items() if k in saved or k not in younger}

  restored = checkpoints.restore(LATEST, wanted)
  state = abstract.replace(**restored.parts)
  missing = parts.keys() - restored.parts.keys()
  if 'anneal' in missing:  # nothing had brought its end forward
    zeros = np.zeros(abstract.anneal.shape, abstract.anneal.dtype)
    place = abstract.anneal.sharding
    state = state.replace(anneal=sharding.to_devices(place, zeros))
  if 'ema_batch_stats' in missing:
    # The average begins here. A copy: both are donated to the next step.
    state = state.replace(
      ema_batch_stats=jax.tree.map(jnp.copy, state.batch_stats)
    )
  if bool(state.halted):
    return _freed(state, checkpoints), {}
  return state, restored.metadata


def _freed(state: TrainState, checkpoints: Checkpoints) -> TrainState:
  """Returns a state that stood still, free to go on from its own step.

  It met a loss that was not finite and was saved all the same, perhaps under
  steps that it never came to.
  """
  step = int(state.step)
  state = state.replace(
    halted=sharding.to_devices(state.halted.sharding, np.zeros((), bool))
  )
  for later in checkpoints.steps(LATEST):
    if later > step:
      checkpoints.set_aside(
        LATEST,
        later,
        f'of a run whose loss was not finite at step {step}',
        step,
      )
  checkpoints.save(LATEST, step, state, {})
  checkpoints.wait()
  return state
