"""What a training run carries from step to step."""

from collections.abc import Container
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from medseg_jax.runtime.sharding import replicated

# What one seed serves; each has keys that the others cannot meet.
_WEIGHTS, _STEPS, _HIDDEN, _SPOILT = 1, 2, 3, 4


class TrainState(struct.PyTreeNode):
  """The state of a run, the whole of what a checkpoint holds.

  Attributes:
    step: number of updates made, int32 scalar.
    params: weights, float32.
    batch_stats: running statistics of batch norm, {} for other norms.
    opt_state: the optimizer's.
    ema_params: moving average of `params`; None where it is not kept.
    ema_batch_stats: likewise of `batch_stats`: those of the weights of one
      step would not suit an average of weights.
    halted: set once a loss or gradient was not finite; from then on the step
      leaves everything as it was before that batch.
    anneal: how the rest of the schedule is compressed, int32 `[3]`: the step
      that it began at, the one that it ends at, and where the whole schedule
      ends; zeros where it is not.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema_params: Any
  ema_batch_stats: Any
  halted: jax.Array
  anneal: jax.Array

  @property
  def position(self) -> jax.Array:
    """Returns the place in the schedule, float32 scalar: mostly the step.

    From `anneal` on it moves evenly, and faster, to the schedule's end.
    """
    begin, end, last = self.anneal.astype(jnp.float32)
    step = self.step.astype(jnp.float32)
    pace = (last - begin) / jnp.maximum(end - begin, 1)
    return jnp.where(end > 0, begin + (step - begin) * pace, step)

  @property
  def eval_variables(self) -> dict[str, Any]:
    """Returns the variables to predict with: the average where it is kept."""
    params, stats = self.params, self.batch_stats
    if self.ema_params is not None:
      params, stats = self.ema_params, self.ema_batch_stats
    # Like the network's own, which has no such part where it is empty.
    return {'params': params, **({'batch_stats': stats} if stats else {})}


def weights_key(seed: int) -> jax.Array:
  """Returns the key that the weights of a run are drawn with."""
  return jax.random.fold_in(jax.random.key(seed), _WEIGHTS)


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of a step of a run, scalar int32."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _STEPS), step
  )


def hiding_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of what a step of a run hides, scalar int32."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _HIDDEN), step
  )


def spoiling_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of how a step of a run spoils masks, scalar int32."""
  return jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), _SPOILT), step
  )


def create_state(
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: tuple[int, ...],
  mesh: Mesh,
  ema: bool = False,
) -> TrainState:
  """Returns the state of step 0, born on every device of `mesh`.

  Args:
    model: initialised on an image of zeros.
    tx: the optimizer.
    key: for the weights.
    image_shape: `[B, *S, C]`; only ranks and channels shape the weights.
    mesh: where the state lives.
    ema: whether to keep a moving average of the weights.
  """
  init = _init_fn(model=model, tx=tx, image_shape=image_shape, ema=ema)
  # It runs once: on CPU optimising it takes four times as long as leaving it.
  return jax.jit(
    init,
    out_shardings=replicated(mesh),
    compiler_options={'xla_backend_optimization_level': 0},
  )(key)


def abstract_state(
  *,
  model: nn.Module,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  mesh: Mesh,
  ema: bool = False,
) -> TrainState:
  """Returns the shapes and layout of a state, without computing one."""
  init = _init_fn(model=model, tx=tx, image_shape=image_shape, ema=ema)
  place = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    jax.eval_shape(init, jax.random.key(0)),
  )


def eval_part(name: str, saved: Container[str]) -> str:
  """Returns which part of a state predicts, see `TrainState.eval_variables`.

  Args:
    name: 'params' or 'batch_stats'.
    saved: names of the parts that hold arrays. A state that was saved before
      the statistics were averaged has those of the last step alone.
  """
  average = f'ema_{name}'
  return average if average in saved else name


def abstract_variables(
  *, model: nn.Module, image_shape: tuple[int, ...], mesh: Mesh
) -> dict[str, Any]:
  """Returns the shapes and layout of what predicts, see `abstract_state`."""
  place = replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    jax.eval_shape(
      lambda key: model.init(key, jnp.zeros(image_shape), train=False),
      jax.random.key(0),
    ),
  )


def _init_fn(*, model, tx, image_shape, ema):
  def init(key):
    variables = model.init(key, jnp.zeros(image_shape), train=False)
    params = variables['params']
    batch_stats = variables.get('batch_stats', {})
    # Copies: two names for one buffer could not both be donated.
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=batch_stats,
      opt_state=tx.init(params),
      ema_params=jax.tree.map(jnp.copy, params) if ema else None,
      ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if ema else None,
      halted=jnp.zeros((), bool),
      anneal=jnp.zeros(3, jnp.int32),
    )

  return init
