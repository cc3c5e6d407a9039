"""The losses themselves; layout and promises are those of the package."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_LOGIT_BOUND = 1e9
# Below this a denominator says that there is nothing to compare.
_TINY = 1e-7


def cross_entropy(logits, labels, *, class_weights=None, where=None):
  """Returns the mean over voxels of -log softmax(logits)[label].

  Args:
    logits: [B, *S, C].
    labels: int [B, *S].
    class_weights: C numbers, none negative. The mean is then the weighted one,
      sum(w[label] * loss) / sum(w[label]), as in PyTorch.
    where: bool [B, *S], the voxels that count.

  Returns:
    float32 [B], at least 0; 0 where no voxel is left.
  """
  return _mean(*_softmax_losses(logits, labels, class_weights, where))


def focal_loss(logits, labels, *, gamma=2.0, class_weights=None, where=None):
  """Returns the mean over voxels of -(1 - p)^gamma log p, p that of the label.

  Source: Lin et al. 2017, "Focal loss for dense object detection". Arguments
  and the weighted mean are those of `cross_entropy`, which `gamma=0` gives;
  `gamma` is not negative.
  """
  losses, weights = _softmax_losses(logits, labels, class_weights, where)
  return _mean(_focus(losses, gamma), weights)


def dice_loss(
  logits,
  labels,
  *,
  include_background=True,
  squared=False,
  batch=False,
  smooth=1e-5,
  where=None,
):
  """Returns 1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) + smooth).

  The sums run over voxels, with p the softmax probabilities and g the one-hot
  labels; the mean is over classes. Source: Milletari et al. 2016, "V-Net".

  Args:
    logits: [B, *S, C].
    labels: int [B, *S].
    include_background: whether class 0 has a part in the mean.
    squared: whether p and g are squared in the denominator, as in V-Net.
    batch: whether to sum over the batch too, before the ratio; all examples
      then have the same value.
    smooth: not negative. A class absent from labels and probabilities has loss
      0, also for `smooth=0`.
    where: bool [B, *S], the voxels that count.

  Returns:
    float32 [B] in [0, 1].
  """
  return _dice(
    _softmax_overlap(logits, labels, include_background, squared, batch, where),
    smooth,
  )


def jaccard_loss(
  logits,
  labels,
  *,
  include_background=True,
  squared=False,
  batch=False,
  smooth=1e-5,
  where=None,
):
  """Returns 1 - (sum(p g) + smooth) / (sum(p) + sum(g) - sum(p g) + smooth).

  The rest is as in `dice_loss`.
  """
  return _tversky(
    _softmax_overlap(logits, labels, include_background, squared, batch, where),
    1,
    1,
    smooth,
  )


def tversky_loss(
  logits,
  labels,
  *,
  alpha=0.5,
  beta=0.5,
  include_background=True,
  squared=False,
  batch=False,
  smooth=1e-5,
  where=None,
):
  """Returns 1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth).

  TP = sum(p g), FP = sum(p (1 - g)) and FN = sum((1 - p) g); `squared` squares
  the terms of FP and FN. `alpha` weighs false positives, `beta` false
  negatives, neither is negative; 0.5 and 0.5 give the Dice loss (with half its
  smoothing), 1 and 1 the Jaccard loss. The rest is as in `dice_loss`. Source:
  Salehi et al. 2017, "Tversky loss function for image segmentation".
  """
  return _tversky(
    _softmax_overlap(logits, labels, include_background, squared, batch, where),
    alpha,
    beta,
    smooth,
  )


def generalized_dice_loss(
  logits,
  labels,
  *,
  include_background=True,
  squared=False,
  batch=False,
  smooth=1e-5,
  where=None,
):
  """Returns 1 - 2 sum_c w_c TP_c / sum_c w_c (sum(p_c) + sum(g_c)), smoothed.

  w_c = 1 / sum(g_c)^2, and `smooth` is added above and below. The weights are
  scaled so that the rarest class present has 1, which without smoothing changes
  nothing and else keeps `smooth` small beside the sums. An absent class weighs
  as much as the rarest one present. The rest is as in `dice_loss`. Source:
  Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss".
  """
  return _generalized_dice(
    _softmax_overlap(logits, labels, include_background, squared, batch, where),
    smooth,
  )


def sigmoid_cross_entropy(logits, labels, *, class_weights=None, where=None):
  """Returns the mean over voxels and regions of the binary cross-entropy.

  With `class_weights`, one a region, it is the weighted mean.
  """
  return _mean(*_sigmoid_losses(logits, labels, class_weights, where))


def sigmoid_focal_loss(
  logits, labels, *, gamma=2.0, class_weights=None, where=None
):
  """Returns the mean over voxels and regions of the binary focal loss.

  `gamma` is as in `focal_loss`, the mean as in `sigmoid_cross_entropy`.
  """
  losses, weights = _sigmoid_losses(logits, labels, class_weights, where)
  return _mean(_focus(losses, gamma), weights)


def sigmoid_dice_loss(
  logits, labels, *, squared=False, batch=False, smooth=1e-5, where=None
):
  """Returns `dice_loss` on sigmoid probabilities of overlapping regions."""
  return _dice(_sigmoid_overlap(logits, labels, squared, batch, where), smooth)


def sigmoid_jaccard_loss(
  logits, labels, *, squared=False, batch=False, smooth=1e-5, where=None
):
  """Returns `jaccard_loss` on sigmoid probabilities of overlapping regions."""
  return _tversky(
    _sigmoid_overlap(logits, labels, squared, batch, where), 1, 1, smooth
  )


def sigmoid_tversky_loss(
  logits,
  labels,
  *,
  alpha=0.5,
  beta=0.5,
  squared=False,
  batch=False,
  smooth=1e-5,
  where=None,
):
  """Returns `tversky_loss` on sigmoid probabilities of overlapping regions."""
  return _tversky(
    _sigmoid_overlap(logits, labels, squared, batch, where), alpha, beta, smooth
  )


def sigmoid_generalized_dice_loss(
  logits, labels, *, squared=False, batch=False, smooth=1e-5, where=None
):
  """Returns `generalized_dice_loss` on sigmoid probabilities of regions."""
  return _generalized_dice(
    _sigmoid_overlap(logits, labels, squared, batch, where), smooth
  )


LOSSES: dict[str, Callable] = {
  'cross_entropy': cross_entropy,
  'dice_loss': dice_loss,
  'jaccard_loss': jaccard_loss,
  'tversky_loss': tversky_loss,
  'generalized_dice_loss': generalized_dice_loss,
  'focal_loss': focal_loss,
  'sigmoid_cross_entropy': sigmoid_cross_entropy,
  'sigmoid_dice_loss': sigmoid_dice_loss,
  'sigmoid_jaccard_loss': sigmoid_jaccard_loss,
  'sigmoid_tversky_loss': sigmoid_tversky_loss,
  'sigmoid_generalized_dice_loss': sigmoid_generalized_dice_loss,
  'sigmoid_focal_loss': sigmoid_focal_loss,
}


def _softmax_inputs(logits, labels, where):
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


def _sigmoid_inputs(logits, labels, where):
  labels = jnp.asarray(labels)
  _check_shape('labels', labels.shape, jnp.shape(logits))
  mask = _mask(where, labels.shape[:-1])[..., None]
  return _clean(logits, mask), (labels > 0) & mask, mask


def _check_shape(name, found, expected):
  if found != expected:
    raise ValueError(f'{name} must have shape {expected}, found {found}')


def _mask(where, shape):
  if where is None:
    return jnp.ones(shape, bool)
  where = jnp.asarray(where, bool)
  _check_shape('where', where.shape, shape)
  return where


def _clean(logits, mask):
  # Values are replaced before use: a NaN that is multiplied by 0 afterwards is
  # still a NaN, in the value or in the gradient.
  logits = jnp.where(mask, jnp.asarray(logits, jnp.float32), 0)
  return jnp.clip(logits, -_LOGIT_BOUND, _LOGIT_BOUND)


def _weights(class_weights, logits):
  """Returns float32 [C] weights."""
  if class_weights is None:
    return jnp.ones(logits.shape[-1], jnp.float32)
  class_weights = jnp.asarray(class_weights, jnp.float32)
  _check_shape('class_weights', class_weights.shape, logits.shape[-1:])
  return class_weights


def _softmax_losses(logits, labels, class_weights, where):
  """Returns -log softmax(logits)[label] and its weight, each [B, *S]."""
  logits, one_hot, _ = _softmax_inputs(logits, labels, where)
  losses = jnp.log(jnp.sum(jnp.exp(logits), -1)) - jnp.sum(logits * one_hot, -1)
  return losses, jnp.sum(_weights(class_weights, logits) * one_hot, -1)


def _sigmoid_losses(logits, labels, class_weights, where):
  """Returns the binary cross-entropy and its weight, each [B, *S, C]."""
  logits, labels, mask = _sigmoid_inputs(logits, labels, where)
  losses = jax.nn.softplus(jnp.where(labels, -logits, logits))
  return losses, _weights(class_weights, logits) * mask


def _mean(losses, weights):
  """Returns the weighted mean over all axes but the first; 0 if no weight."""
  axes = tuple(range(1, losses.ndim))
  total = jnp.sum(weights, axes)
  mean = jnp.sum(losses * weights, axes) / jnp.where(total > 0, total, 1)
  return jnp.where(total > 0, mean, 0)


def _focus(losses, gamma):
  """Returns (1 - p)^gamma times losses, which are -log p."""
  # The power has an infinite slope at 0 for gamma < 1.
  return jnp.maximum(-jnp.expm1(-losses), _TINY) ** gamma * losses


def _softmax_overlap(logits, labels, include_background, squared, batch, where):
  logits, one_hot, mask = _softmax_inputs(logits, labels, where)
  # Written out so that XLA shares it with the cross-entropy of a compound loss.
  exp = jnp.exp(logits)
  probs = exp / jnp.sum(exp, -1, keepdims=True)
  if not include_background:
    if logits.shape[-1] < 2:
      raise ValueError('include_background=False needs at least 2 classes')
    probs, one_hot = probs[..., 1:], one_hot[..., 1:]
  return _overlap(probs, one_hot, mask, squared, batch)


def _sigmoid_overlap(logits, labels, squared, batch, where):
  logits, labels, mask = _sigmoid_inputs(logits, labels, where)
  return _overlap(jax.nn.sigmoid(logits), labels, mask, squared, batch)


def _overlap(probs, labels, mask, squared, batch):
  """Returns TP, FP, FN and sum(g), each [B, C].

  `squared` squares the terms of FP and FN, so that 2 TP + FP + FN is
  sum(p) + sum(g) without it and sum(p^2) + sum(g^2) with it.
  """
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
  return [jnp.broadcast_to(s.reshape(-1, shape[1]), shape) for s in sums]


def _dice(overlap, smooth):
  tp, fp, fn, _ = overlap
  return jnp.mean(1 - _ratio(2 * tp + smooth, 2 * tp + fp + fn + smooth), -1)


def _tversky(overlap, alpha, beta, smooth):
  tp, fp, fn, _ = overlap
  return jnp.mean(
    1 - _ratio(tp + smooth, tp + alpha * fp + beta * fn + smooth), -1
  )


def _generalized_dice(overlap, smooth):
  tp, fp, fn, volume = overlap
  present = volume > 0
  rarest = jnp.min(jnp.where(present, volume, jnp.inf), -1, keepdims=True)
  weights = jnp.where(present, rarest / jnp.where(present, volume, 1), 1) ** 2
  return 1 - _ratio(
    jnp.sum(weights * 2 * tp, -1) + smooth,
    jnp.sum(weights * (2 * tp + fp + fn), -1) + smooth,
  )


def _ratio(numerator, denominator):
  """Returns the ratio; 1, full agreement, where there is nothing to compare."""
  defined = denominator > _TINY
  return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 1)
