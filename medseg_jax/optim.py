"""Optimizers and learning-rate schedules, from Optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Arrays of at most as many values are put together before they are reduced.
SMALL = 2**12
OPTIMIZERS = ('sgd', 'adam', 'adamw')
SCHEDULES = ('constant', 'cosine', 'poly')


def create_schedule(
  *,
  name: str = 'constant',
  learning_rate: float,
  num_steps: int,
  warmup_fraction: float = 0.0,
  power: float = 0.9,
) -> optax.Schedule:
  """Returns `step -> learning rate`.

  Args:
    name: 'constant'; 'cosine', down to 0 (Loshchilov 2017, arXiv:1608.03983);
      'poly', `(1 - t / T) ** power` (as in DeepLab and nnU-Net).
    learning_rate: the peak.
    num_steps: T, the length of the run in steps, warm-up included.
    warmup_fraction: share of T for a linear rise from 0 before the schedule.
    power: of 'poly'.

  Raises:
    ValueError: an unknown name or a number out of range.
  """
  if name not in SCHEDULES:
    raise ValueError(f'name is {name!r}; allowed are ' + ', '.join(SCHEDULES))
  if learning_rate < 0:
    raise ValueError(f'learning_rate is {learning_rate}; allowed is 0 or more')
  if not 0 <= warmup_fraction < 1:
    raise ValueError(
      f'warmup_fraction is {warmup_fraction}; allowed is 0 up to below 1'
    )
  warmup_steps = round(warmup_fraction * num_steps)
  rest = max(num_steps - warmup_steps, 1)
  if name == 'constant':
    main = optax.constant_schedule(learning_rate)
  elif name == 'cosine':
    main = optax.cosine_decay_schedule(learning_rate, rest)
  else:
    main = optax.polynomial_schedule(learning_rate, 0.0, power, rest)
  if not warmup_steps:
    return main
  rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([rise, main], [warmup_steps])


def global_norm(tree: Any) -> jax.Array:
  """Returns the Euclidean norm of all values of a tree, a scalar.

  As `optax.tree.norm`, in other order: every large array is reduced to a vector
  and all these, with the small arrays, at once. On a GPU each reduction to a
  scalar is a kernel or two, and most arrays are small.
  """
  squares = [jnp.square(leaf) for leaf in jax.tree.leaves(tree)]
  vectors = [jnp.zeros(0)] + [
    square.ravel()
    if square.size <= SMALL
    else square.sum(range(square.ndim - 1))
    for square in squares
  ]
  # Else XLA makes a sum of sums of it.
  vector = jax.lax.optimization_barrier(jnp.concatenate(vectors))
  return jnp.sqrt(vector.sum())


def _clip_by_global_norm(most: float) -> optax.GradientTransformation:
  """Returns `optax.clip_by_global_norm(most)` with the norm from above.

  One that is computed in another way than the metric would be computed again.
  """

  def update(updates, state, params=None):
    del params
    norm = global_norm(updates)
    within = norm < most

    def clip(x):
      return jnp.where(within, x, x / norm.astype(x.dtype) * most)

    return jax.tree.map(clip, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale_by_learning_rate(
  learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformation:
  """Returns `optax.scale_by_learning_rate`, at a given `position`."""
  if not callable(learning_rate):
    return optax.scale_by_learning_rate(learning_rate)

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params=None, *, position=None, **extra):
    del params, extra
    rate = learning_rate(state.count if position is None else position)
    updates = jax.tree.map(lambda x: jnp.asarray(-rate, x.dtype) * x, updates)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformationExtraArgs(init, update)


def create_optimizer(
  *,
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  nesterov: bool = True,
  weight_decay: float = 0.0,
  grad_clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """Returns the gradient transformation.

  Its `update` takes `position`, the place in the schedule, where that is not
  the number of updates before.

  Args:
    name: 'sgd', 'adam' (Kingma 2015) or 'adamw' (Loshchilov 2019).
    learning_rate: a number or a schedule.
    momentum: of 'sgd'; 0 for none.
    nesterov: whether the momentum looks ahead ('sgd').
    weight_decay: added to the gradient as `weight_decay * param` for 'sgd'
      and 'adam' (L2 regularisation), decoupled from it for 'adamw'.
    grad_clip_norm: largest allowed global norm of the gradient; 0 for no limit.

  Raises:
    ValueError: an unknown name or a negative number.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f'name is {name!r}; allowed are ' + ', '.join(OPTIMIZERS))
  if not 0 <= momentum < 1:
    raise ValueError(f'momentum is {momentum}; allowed is 0 up to below 1')
  for key, value in [
    ('weight_decay', weight_decay),
    ('grad_clip_norm', grad_clip_norm),
  ]:
    if value < 0:
      raise ValueError(f'{key} is {value}; allowed is 0 or more')
  parts = []
  if grad_clip_norm:
    parts.append(_clip_by_global_norm(grad_clip_norm))
  if weight_decay and name != 'adamw':
    parts.append(optax.add_decayed_weights(weight_decay))
  # Nested as Optax's own are: checkpoints hold their states.
  rate = _scale_by_learning_rate(learning_rate)
  if name == 'adamw':
    decay = optax.add_decayed_weights(weight_decay)
    parts.append(optax.chain(optax.scale_by_adam(), decay, rate))
  elif name == 'adam':
    parts.append(optax.chain(optax.scale_by_adam(), rate))
  else:
    first = optax.trace(momentum, nesterov) if momentum else optax.identity()
    parts.append(optax.chain(first, rate))
  return optax.chain(*parts)
