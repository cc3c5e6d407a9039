"""One training step and one prediction, as pure functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from medseg_jax.models import Model
from medseg_jax.state import TrainState

Batch = dict[str, jax.Array]


def create_train_step(
  *,
  model: Model,
  tx: optax.GradientTransformation,
  loss_fn: Callable[[Any, jax.Array], jax.Array],
  augment_fn: Callable[[jax.Array, Batch], Batch],
  schedule: optax.Schedule,
  seed: int,
  ema_decay: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Returns `(state, batch) -> (state, metrics)`, for the caller to jit.

  Args:
    model: applied with `train=True`.
    tx: the optimizer.
    loss_fn: `(logits, labels) -> [B]`; labels of -1 are to be ignored.
    augment_fn: `(key, batch) -> batch`.
    schedule: learning rate by step, for the metrics only; `tx` has its own.
    seed: with the step, the source of all randomness in the step.
    ema_decay: of the weights' moving average.

  The batch is `{'image': [B, *S, C] of any float type, 'label': [B, *S] of any
  integer type}`. The metrics are scalars: `loss` (mean over the batch),
  `grad_norm`, `learning_rate`.
  """

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    augment_key, dropout_key = jax.random.split(key)
    batch = augment_fn(
      augment_key,
      {
        'image': batch['image'].astype(jnp.float32),
        'label': batch['label'].astype(jnp.int32),
      },
    )

    def mean_loss(params):
      logits, updated = model.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        batch['image'],
        train=True,
        rngs={'dropout': dropout_key},
        mutable=['batch_stats'],
      )
      loss = loss_fn(logits, batch['label']).mean()
      return loss, updated.get('batch_stats', {})

    (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
      state.params
    )
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      # The average starts quickly: early weights are of no use in it.
      decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      ema_params = optax.incremental_update(params, ema_params, 1 - decay)
    new_state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema_params=ema_params,
      halted=state.halted,
    )
    # The loop looks at losses only now and then. Until it does, a state that
    # met a non-finite loss stands still, so that it can be saved unharmed.
    bad = state.halted | ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    kept = jax.tree.map(
      lambda new, old: jnp.where(bad, old, new), new_state, state
    )
    metrics = {
      'loss': loss,
      'grad_norm': grad_norm,
      'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
    }
    return kept.replace(halted=bad), metrics

  return train_step


def create_predict(
  *, model: Model, sigmoid: bool = False, mirror: bool = False
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *S, C]) -> logits [N, *S, num_classes]`.

  Args:
    model: applied with `train=False`.
    sigmoid: the model has a logit for each foreground class only; a background
      of 0 is put before them, so that the largest logit wins as elsewhere.
    mirror: average the logits over all mirrorings of the spatial axes.
  """

  def logits_of(variables, image):
    return model.apply(variables, image, train=False).astype(jnp.float32)

  def mirrored(variables, image):
    # A loop, so that the network is compiled once and not for each mirroring.
    sets = flip_sets(image.ndim - 2)
    flips = jnp.array([[a in s for a in sets[-1]] for s in sets])

    def add(total, flip):
      logits = logits_of(variables, _flip_where(image, flip))
      return total + _flip_where(logits, flip), None

    start = jax.eval_shape(logits_of, variables, image)
    total, _ = lax.scan(add, jnp.zeros(start.shape, start.dtype), flips)
    return total / len(sets)

  def predict(variables, image):
    image = image.astype(jnp.float32)
    logits = (mirrored if mirror else logits_of)(variables, image)
    if sigmoid:
      logits = jnp.pad(logits, [(0, 0)] * (image.ndim - 1) + [(1, 0)])
    return logits

  return predict


def _flip_where(x: jax.Array, flip: jax.Array) -> jax.Array:
  """Returns `x` `[N, *S, C]` mirrored along the axes where `flip` is true."""
  for axis in range(1, x.ndim - 1):
    x = jnp.where(flip[axis - 1], jnp.flip(x, axis), x)
  return x


def flip_sets(rank: int) -> list[tuple[int, ...]]:
  """Returns all sets of spatial axes of `[N, *S, C]`: 2 ** rank of them."""
  sets = [()]
  for axis in range(1, rank + 1):
    sets += [(*axes, axis) for axes in sets]
  return sets
