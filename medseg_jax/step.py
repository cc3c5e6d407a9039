"""One training step and one prediction, as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from medseg_jax.models import Model
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Gradient(NamedTuple):
  """What a batch says of the weights.

  Attributes:
    loss: mean over the batch, float32 scalar.
    grads: of the loss, with the structure of the weights.
    batch_stats: the running statistics after this batch.
  """

  loss: jax.Array
  grads: Any
  batch_stats: Any


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """`(state, batch) -> (state, metrics)`, for the caller to jit.

  The same as `augment`, `gradient` and `apply` one after the other, of which
  each may be jitted for itself.

  Attributes:
    augment: `(step, batch) -> batch`, with an int32 label and a float32 image.
    forward: `(state, batch) -> (loss, batch_stats)` of an augmented batch,
      which it does not split; only for measuring.
    gradient: `(state, batch) -> Gradient` of an augmented batch.
    apply: `(state, Gradient) -> (state, metrics)`.
  """

  augment: Callable[[jax.Array, Batch], Batch]
  forward: Callable[[TrainState, Batch], tuple[jax.Array, Any]]
  gradient: Callable[[TrainState, Batch], Gradient]
  apply: Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]

  __name__ = 'train_step'  # JAX calls the compiled program by it

  def __call__(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    batch = self.augment(state.step, batch)
    return self.apply(state, self.gradient(state, batch))


def create_train_step(
  *,
  model: Model,
  tx: optax.GradientTransformation,
  loss_fn: Callable[[Any, jax.Array], jax.Array],
  augment_fn: Callable[[jax.Array, Batch], Batch],
  schedule: optax.Schedule,
  seed: int,
  ema_decay: float = 0.0,
  batch_splits: int = 1,
) -> TrainStep:
  """Returns `(state, batch) -> (state, metrics)`, for the caller to jit.

  Args:
    model: applied with `train=True`.
    tx: the optimizer.
    loss_fn: `(logits, labels) -> [B]`; labels of -1 are to be ignored.
    augment_fn: `(key, batch) -> batch`.
    schedule: learning rate by step, for the metrics only; `tx` has its own.
    seed: with the step, the source of all randomness in the step.
    ema_decay: of the weights' moving average.
    batch_splits: number of equal parts of the batch whose gradients are
      computed one after the other and averaged, so that only the activations
      of one part take memory. The augmentation is that of the whole batch, and
      so are loss and gradient, up to rounding; but batch norm and a Dice over
      the batch see a part at a time (the running averages are updated after
      each), and dropout draws other numbers.

  The batch is `{'image': [B, *S, C] of any float type, 'label': [B, *S] of any
  integer type}`. The metrics are scalars: `loss` (mean over the batch),
  `grad_norm`, `learning_rate`.

  Raises:
    ValueError: when traced, if batch_splits does not divide B.
  """

  def keys_of(step):
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))

  def augment(step, batch):
    return augment_fn(
      keys_of(step)[0],
      {
        'image': batch['image'].astype(jnp.float32),
        'label': batch['label'].astype(jnp.int32),
      },
    )

  def mean_loss(params, batch_stats, key, batch):
    logits, updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['image'],
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    loss = loss_fn(logits, batch['label']).mean()
    return loss, updated.get('batch_stats', {})

  def forward(state, batch):
    key = keys_of(state.step)[1]
    return mean_loss(state.params, state.batch_stats, key, batch)

  def part_gradient(params, batch_stats, key, batch):
    (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(
      params, batch_stats, key, batch
    )
    return Gradient(loss, grads, batch_stats)

  def gradient(state, batch):
    key = keys_of(state.step)[1]
    if batch_splits == 1:
      return part_gradient(state.params, state.batch_stats, key, batch)

    def add_part(total, part):
      number, batch = part
      new = part_gradient(
        state.params, total.batch_stats, jax.random.fold_in(key, number), batch
      )
      loss, grads = jax.tree.map(
        lambda sum_, x: sum_ + x / batch_splits, total[:2], new[:2]
      )
      return Gradient(loss, grads, new.batch_stats), None

    zero = Gradient(
      jnp.zeros((), jnp.float32),
      jax.tree.map(jnp.zeros_like, state.params),
      state.batch_stats,
    )
    parts = jnp.arange(batch_splits), split_batch(batch, batch_splits)
    return lax.scan(add_part, zero, parts)[0]

  def apply(state, gradient):
    loss, grads, batch_stats = gradient
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

  return TrainStep(augment, forward, gradient, apply)


def split_batch(batch: Batch, parts: int) -> Batch:
  """Returns arrays `[B, ...]` as `[parts, B / parts, ...]`.

  Part p holds the examples p, p + parts, ...: of those that lie on a device as
  many for each part, so that a batch spread over devices is split where it is.

  Raises:
    ValueError: `parts` does not divide B.
  """

  def split(x):
    if x.shape[0] % parts:
      raise ValueError(
        f'a batch of {x.shape[0]} cannot be split into {parts} equal parts'
      )
    x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    if 'data' not in jax.sharding.get_abstract_mesh().axis_names:
      return x
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)
    return lax.with_sharding_constraint(x, PartitionSpec(None, 'data', *rest))

  return jax.tree.map(split, batch)


def check_batch_splits(batch_size: int, batch_splits: int, mesh: Mesh) -> None:
  """Raises InputError unless each device gets as much of each part."""
  share = mesh.shape['data']
  if batch_splits < 1:
    raise InputError(
      f'config.batch_splits is {batch_splits}; allowed is 1 or more'
    )
  if batch_size % (batch_splits * share):
    raise InputError(
      f'config.batch_splits is {batch_splits}, but config.batch_size '
      f'{batch_size} is not a multiple of {batch_splits} parts x {share} '
      'devices on the data axis'
    )


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
