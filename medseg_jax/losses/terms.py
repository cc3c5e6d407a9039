"""What the losses are made of: sums over the voxels that count, and ratios."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# One number a class.
ClassWeights = ArrayLike | Sequence[float]

_LOGIT_BOUND = 1e9
# Below this a denominator says that there is nothing to compare.
_TINY = 1e-7


class Overlap(NamedTuple):
  """Sums over the voxels, each [B, C]; `volume` is sum(g).

  `squared` squares the terms of FP and FN, so that 2 TP + FP + FN is
  sum(p) + sum(g) without it and sum(p^2) + sum(g^2) with it.
  """

  tp: jax.Array
  fp: jax.Array
  fn: jax.Array
  volume: jax.Array


def _softmax_inputs(
  logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns logits, the one-hot labels of voxels that count, and the mask.

  The largest logit of a voxel is 0, so that exp cannot overflow.
  """
  labels = jnp.asarray(labels)
  _check_shape('labels', labels.shape, jnp.shape(logits)[:-1])
  classes = jnp.arange(jnp.shape(logits)[-1])
  mask = _mask(where, labels.shape) & (labels >= 0) & (labels < classes.size)
  mask = mask[..., None]
  one_hot = (labels[..., None] == classes) & mask
  logits = _clean(logits, mask)
  largest = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
  return logits - largest, one_hot, mask


def _sigmoid_inputs(
  logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  labels = jnp.asarray(labels)
  _check_shape('labels', labels.shape, jnp.shape(logits))
  mask = _mask(where, labels.shape[:-1])[..., None]
  return _clean(logits, mask), (labels > 0) & mask, mask


def _check_shape(
  name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
  if found != expected:
    raise ValueError(f'{name} must have shape {expected}, found {found}')


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array:
  if where is None:
    return jnp.ones(shape, bool)
  where = jnp.asarray(where, bool)
  _check_shape('where', where.shape, shape)
  return where


def _clean(logits: ArrayLike, mask: jax.Array) -> jax.Array:
  # Values are replaced before use: a NaN that is multiplied by 0 afterwards is
  # still a NaN, in the value or in the gradient.
  logits = jnp.where(mask, jnp.asarray(logits, jnp.float32), 0)
  return jnp.clip(logits, -_LOGIT_BOUND, _LOGIT_BOUND)


def _weights(
  class_weights: ClassWeights | None, logits: jax.Array
) -> jax.Array:
  """Returns float32 [C] weights."""
  if class_weights is None:
    return jnp.ones(logits.shape[-1], jnp.float32)
  class_weights = jnp.asarray(class_weights, jnp.float32)
  _check_shape('class_weights', class_weights.shape, logits.shape[-1:])
  return class_weights


def softmax_losses(
  logits: ArrayLike,
  labels: ArrayLike,
  class_weights: ClassWeights | None,
  where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns -log softmax(logits)[label] and its weight, each [B, *S]."""
  logits, one_hot, _ = _softmax_inputs(logits, labels, where)
  losses = jnp.log(jnp.sum(jnp.exp(logits), -1)) - jnp.sum(logits * one_hot, -1)
  return losses, jnp.sum(_weights(class_weights, logits) * one_hot, -1)


def sigmoid_losses(
  logits: ArrayLike,
  labels: ArrayLike,
  class_weights: ClassWeights | None,
  where: ArrayLike | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns the binary cross-entropy and its weight, each [B, *S, C]."""
  logits, labels, mask = _sigmoid_inputs(logits, labels, where)
  losses = jax.nn.softplus(jnp.where(labels, -logits, logits))
  return losses, _weights(class_weights, logits) * mask


def mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns the weighted mean over all axes but the first; 0 if no weight."""
  axes = tuple(range(1, losses.ndim))
  total = jnp.sum(weights, axes)
  ratio = jnp.sum(losses * weights, axes) / jnp.where(total > 0, total, 1)
  return jnp.where(total > 0, ratio, 0)


def focus(losses: jax.Array, gamma: float) -> jax.Array:
  """Returns (1 - p)^gamma times losses, which are -log p."""
  # The power has an infinite slope at 0 for gamma < 1.
  return jnp.maximum(-jnp.expm1(-losses), _TINY) ** gamma * losses


def softmax_overlap(
  logits: ArrayLike,
  labels: ArrayLike,
  include_background: bool,
  squared: bool,
  batch: bool,
  where: ArrayLike | None,
) -> Overlap:
  """Returns the sums of the softmax losses."""
  logits, one_hot, mask = _softmax_inputs(logits, labels, where)
  # Written out so that XLA shares it with the cross-entropy of a compound loss.
  exp = jnp.exp(logits)
  probs = exp / jnp.sum(exp, -1, keepdims=True)
  if not include_background:
    if logits.shape[-1] < 2:
      raise ValueError('include_background=False needs at least 2 classes')
    probs, one_hot = probs[..., 1:], one_hot[..., 1:]
  return _overlap(probs, one_hot, mask, squared, batch)


def sigmoid_overlap(
  logits: ArrayLike,
  labels: ArrayLike,
  squared: bool,
  batch: bool,
  where: ArrayLike | None,
) -> Overlap:
  """Returns the sums of the sigmoid losses."""
  logits, labels, mask = _sigmoid_inputs(logits, labels, where)
  return _overlap(jax.nn.sigmoid(logits), labels, mask, squared, batch)


def _overlap(
  probs: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  squared: bool,
  batch: bool,
) -> Overlap:
  power = 2 if squared else 1
  axes = tuple(range(0 if batch else 1, probs.ndim - 1))
  sums = [
    jnp.sum(jnp.where(voxels, values, 0), axes, keepdims=True)
    for voxels, values in (
      (labels, probs),
      (mask & ~labels, probs**power),
      (labels, (1 - probs) ** power),
      (labels, jnp.float32(1)),
    )
  ]
  shape = (probs.shape[0], probs.shape[-1])
  return Overlap(
    *(jnp.broadcast_to(s.reshape(-1, shape[1]), shape) for s in sums)
  )


def dice(overlap: Overlap, smooth: float) -> jax.Array:
  """Returns the Dice loss [B]."""
  tp, fp, fn, _ = overlap
  return jnp.mean(1 - _ratio(2 * tp + smooth, 2 * tp + fp + fn + smooth), -1)


def tversky(
  overlap: Overlap, alpha: float, beta: float, smooth: float
) -> jax.Array:
  """Returns the Tversky loss [B]."""
  tp, fp, fn, _ = overlap
  return jnp.mean(
    1 - _ratio(tp + smooth, tp + alpha * fp + beta * fn + smooth), -1
  )


def generalized_dice(overlap: Overlap, smooth: float) -> jax.Array:
  """Returns the generalized Dice loss [B]."""
  tp, fp, fn, volume = overlap
  present = volume > 0
  rarest = jnp.min(jnp.where(present, volume, jnp.inf), -1, keepdims=True)
  weights = jnp.where(present, rarest / jnp.where(present, volume, 1), 1) ** 2
  return 1 - _ratio(
    jnp.sum(weights * 2 * tp, -1) + smooth,
    jnp.sum(weights * (2 * tp + fp + fn), -1) + smooth,
  )


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """Returns the ratio; 1, full agreement, where there is nothing to compare."""
  defined = denominator > _TINY
  return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 1)
