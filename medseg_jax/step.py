"""One training step, as pure functions of state and batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from medseg_jax.augment.lookup import Unread
from medseg_jax.augment.previous_stage import random_changes
from medseg_jax.data import masking, previous_stage
from medseg_jax.models import Model
from medseg_jax.optim import global_norm
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.state import TrainState, hiding_key, spoiling_key, step_key

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# In the compiled program all that augments a batch, and reads it, has this in
# the name of its operation.
AUGMENT_SCOPE = 'augment'


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

  The batch is `{'image': [B, *S, C] of any float type, 'label': [B, *S] of any
  signed integer type}`, the label perhaps with masks in it, see `masking` and
  `previous_stage`; or
  one that is `Unread`, where `augment_fn` takes such.
  The metrics are scalars: `loss` (mean over the batch), `grad_norm`,
  `learning_rate`. Each of the three parts may be jitted for itself.

  Attributes:
    model: applied with `train=True`.
    tx: the optimizer.
    loss_fn: `(logits, labels) -> [B]`; labels of -1 are to be ignored.
    augment_fn: `(key, batch) -> batch`.
    schedule: learning rate by the state's position, for the metrics only; `tx`
      has its own.
    seed: with the step, the source of all randomness in the step.
    ema_decay: of the moving average of the weights and of batch norm's
      statistics.
    masked_channels: channels of the image that are set to 0 outside the mask
      again, after the augmentation.
    batch_splits: number of equal parts of the batch whose gradients are
      computed one after the other and averaged, so that only the activations
      of one part take memory. The augmentation is that of the whole batch, and
      so are loss and gradient, up to rounding; but batch norm and a Dice over
      the batch see a part at a time (the running averages are updated after
      each), and dropout draws other numbers.
    num_labels: of a cascade, in whose labels there is the mask of its coarser
      network: its number of labels without the background. The mask is changed
      at random (`augment.previous_stage`) and becomes channels of the image.
    hide_fn: `(key, batch) -> batch`, after the augmentation, for a network that
      restores images: takes from the image what the label is to ask for.

  Raises:
    ValueError: when traced, if batch_splits does not divide B.
  """

  model: Model
  tx: optax.GradientTransformation
  loss_fn: Callable[[Any, jax.Array], jax.Array]
  augment_fn: Callable[[jax.Array, Batch], Batch]
  schedule: optax.Schedule
  seed: int
  ema_decay: float = 0.0
  masked_channels: tuple[int, ...] = ()
  batch_splits: int = 1
  num_labels: int = 0
  hide_fn: Callable[[jax.Array, Batch], Batch] | None = None

  __name__ = 'train_step'  # JAX calls the compiled program by it

  def __call__(
    self, state: TrainState, batch: Batch | Unread
  ) -> tuple[TrainState, Metrics]:
    """Returns the state after one update, and the metrics of its batch."""
    batch = self.augment(state.step, batch)
    gradient = self.gradient(state, batch)
    return self.update(state, gradient)

  def augment(self, step: jax.Array, batch: Batch | Unread) -> Batch:
    """Returns the batch augmented, image in float32 and label in int32."""
    with jax.named_scope(AUGMENT_SCOPE):
      return self._augment(step, batch)

  def _augment(self, step, batch):
    key, _ = self._keys(step)
    if isinstance(batch, dict):
      batch = {
        'image': batch['image'].astype(jnp.float32),
        'label': batch['label'].astype(jnp.int32),
      }
    batch = self.augment_fn(key, batch)
    label, mask = masking.unfold(batch['label'], jnp)
    image = batch['image']
    if self.masked_channels:
      masked = np.isin(range(image.shape[-1]), self.masked_channels)
      image = jnp.where(masked & ~mask[..., None], 0, image)
    if self.num_labels:
      label, previous = previous_stage.unfold(
        label, num_classes=self.num_labels + 1
      )
      previous = random_changes(
        spoiling_key(self.seed, step), previous, self.num_labels
      )
      image = previous_stage.append(image, previous, self.num_labels, jnp)
    batch = {**batch, 'image': image, 'label': label}
    if self.hide_fn is not None:
      batch = self.hide_fn(hiding_key(self.seed, step), batch)
    return _spread(batch)

  def gradient(self, state: TrainState, batch: Batch) -> Gradient:
    """Returns loss and gradient of an augmented batch."""
    _, key = self._keys(state.step)
    params, batch_stats = state.params, state.batch_stats
    if self.batch_splits == 1:
      return self._part_gradient(params, batch_stats, key, batch)

    def add_part(total, part):
      number, batch = part
      new = self._part_gradient(
        params, total.batch_stats, jax.random.fold_in(key, number), batch
      )
      loss, grads = jax.tree.map(
        lambda sum_, x: sum_ + x / self.batch_splits, total[:2], new[:2]
      )
      return Gradient(loss, grads, new.batch_stats), None

    zero = Gradient(
      jnp.zeros((), jnp.float32),
      jax.tree.map(jnp.zeros_like, params),
      batch_stats,
    )
    numbers = jnp.arange(self.batch_splits)
    parts = numbers, split_batch(batch, self.batch_splits)
    return lax.scan(add_part, zero, parts)[0]

  def update(
    self, state: TrainState, gradient: Gradient
  ) -> tuple[TrainState, Metrics]:
    """Returns the state that has gone a step down the gradient.

    The loop looks at losses only now and then. Until it does, a state that met
    a non-finite loss or gradient stands still, so that it can be saved
    unharmed.
    """
    grad_norm = global_norm(gradient.grads)
    tx = optax.with_extra_args_support(self.tx)
    updates, opt_state = tx.update(
      gradient.grads, state.opt_state, state.params, position=state.position
    )
    params = optax.apply_updates(state.params, updates)
    average = state.ema_params, state.ema_batch_stats
    if state.ema_params is not None:
      # The average starts quickly: early weights are of no use in it.
      decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
      average = optax.incremental_update(
        (params, gradient.batch_stats), average, 1 - decay
      )
    ema_params, ema_batch_stats = average
    new_state = TrainState(
      step=state.step + 1,
      params=params,
      batch_stats=gradient.batch_stats,
      opt_state=opt_state,
      ema_params=ema_params,
      ema_batch_stats=ema_batch_stats,
      halted=state.halted,
      anneal=state.anneal,
    )
    finite = jnp.isfinite(gradient.loss) & jnp.isfinite(grad_norm)
    halted = state.halted | ~finite
    kept = jax.tree.map(
      lambda new, old: jnp.where(halted, old, new), new_state, state
    )
    metrics = {
      'loss': gradient.loss,
      'grad_norm': grad_norm,
      'learning_rate': jnp.asarray(self.schedule(state.position), jnp.float32),
    }
    return kept.replace(halted=halted), metrics

  def forward(self, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
    """Returns loss and running statistics, of an unsplit augmented batch.

    Only for measuring what the forward pass takes.
    """
    _, key = self._keys(state.step)
    return self._mean_loss(state.params, state.batch_stats, key, batch)

  def _part_gradient(self, params, batch_stats, key, batch) -> Gradient:
    mean_loss = jax.value_and_grad(self._mean_loss, has_aux=True)
    (loss, batch_stats), grads = mean_loss(params, batch_stats, key, batch)
    return Gradient(loss, grads, batch_stats)

  def _mean_loss(self, params, batch_stats, key, batch):
    logits, updated = self.model.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['image'],
      train=True,
      rngs={'dropout': key},
      mutable=['batch_stats'],
    )
    loss = self.loss_fn(logits, batch['label']).mean()
    return loss, updated.get('batch_stats', {})

  def _keys(self, step):
    """Returns the step's keys, for the augmentation and for dropout."""
    return jax.random.split(step_key(self.seed, step))


def _spread(batch: Batch) -> Batch:
  """Returns the batch with each device's part of the first image axis.

  After the augmentation the compiler would have every device of the spatial
  axis compute the whole of it, and then the whole network.
  """
  if 'spatial' not in jax.sharding.get_abstract_mesh().axis_names:
    return batch
  return lax.with_sharding_constraint(batch, PartitionSpec('data', 'spatial'))


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
      f'{batch_size} is not a multiple of {counted(batch_splits, "part")} x '
      f'{counted(share, "device")} on the data axis'
    )
