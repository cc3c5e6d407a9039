"""The losses themselves; layout and promises are those of the package."""

from collections.abc import Callable

import jax
from jax.typing import ArrayLike

from medseg_jax.losses import terms
from medseg_jax.losses.terms import ClassWeights


def cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  class_weights: ClassWeights | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
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
  return terms.mean(*terms.softmax_losses(logits, labels, class_weights, where))


def focal_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  gamma: float = 2.0,
  class_weights: ClassWeights | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns the mean over voxels of -(1 - p)^gamma log p, p that of the label.

  Source: Lin et al. 2017, "Focal loss for dense object detection". Arguments
  and the weighted mean are those of `cross_entropy`, which `gamma=0` gives;
  `gamma` is not negative.
  """
  losses, weights = terms.softmax_losses(logits, labels, class_weights, where)
  return terms.mean(terms.focus(losses, gamma), weights)


def dice_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  include_background: bool = True,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
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
  return terms.dice(
    terms.softmax_overlap(
      logits, labels, include_background, squared, batch, where
    ),
    smooth,
  )


def jaccard_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  include_background: bool = True,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns 1 - (sum(p g) + smooth) / (sum(p) + sum(g) - sum(p g) + smooth).

  The rest is as in `dice_loss`.
  """
  return terms.tversky(
    terms.softmax_overlap(
      logits, labels, include_background, squared, batch, where
    ),
    1,
    1,
    smooth,
  )


def tversky_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: float = 0.5,
  beta: float = 0.5,
  include_background: bool = True,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns 1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth).

  TP = sum(p g), FP = sum(p (1 - g)) and FN = sum((1 - p) g); `squared` squares
  the terms of FP and FN. `alpha` weighs false positives, `beta` false
  negatives, neither is negative; 0.5 and 0.5 give the Dice loss (with half its
  smoothing), 1 and 1 the Jaccard loss. The rest is as in `dice_loss`. Source:
  Salehi et al. 2017, "Tversky loss function for image segmentation".
  """
  return terms.tversky(
    terms.softmax_overlap(
      logits, labels, include_background, squared, batch, where
    ),
    alpha,
    beta,
    smooth,
  )


def generalized_dice_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  include_background: bool = True,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns 1 - 2 sum_c w_c TP_c / sum_c w_c (sum(p_c) + sum(g_c)), smoothed.

  w_c = 1 / sum(g_c)^2, and `smooth` is added above and below. The weights are
  scaled so that the rarest class present has 1, which without smoothing changes
  nothing and else keeps `smooth` small beside the sums. An absent class weighs
  as much as the rarest one present. The rest is as in `dice_loss`. Source:
  Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss".
  """
  return terms.generalized_dice(
    terms.softmax_overlap(
      logits, labels, include_background, squared, batch, where
    ),
    smooth,
  )


def sigmoid_cross_entropy(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  class_weights: ClassWeights | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns the mean over voxels and regions of the binary cross-entropy.

  With `class_weights`, one a region, it is the weighted mean.
  """
  return terms.mean(*terms.sigmoid_losses(logits, labels, class_weights, where))


def sigmoid_focal_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  gamma: float = 2.0,
  class_weights: ClassWeights | None = None,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns the mean over voxels and regions of the binary focal loss.

  `gamma` is as in `focal_loss`, the mean as in `sigmoid_cross_entropy`.
  """
  losses, weights = terms.sigmoid_losses(logits, labels, class_weights, where)
  return terms.mean(terms.focus(losses, gamma), weights)


def sigmoid_dice_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns `dice_loss` on sigmoid probabilities of overlapping regions."""
  return terms.dice(
    terms.sigmoid_overlap(logits, labels, squared, batch, where), smooth
  )


def sigmoid_jaccard_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns `jaccard_loss` on sigmoid probabilities of overlapping regions."""
  return terms.tversky(
    terms.sigmoid_overlap(logits, labels, squared, batch, where), 1, 1, smooth
  )


def sigmoid_tversky_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  alpha: float = 0.5,
  beta: float = 0.5,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns `tversky_loss` on sigmoid probabilities of overlapping regions."""
  return terms.tversky(
    terms.sigmoid_overlap(logits, labels, squared, batch, where),
    alpha,
    beta,
    smooth,
  )


def sigmoid_generalized_dice_loss(
  logits: ArrayLike,
  labels: ArrayLike,
  *,
  squared: bool = False,
  batch: bool = False,
  smooth: float = 1e-5,
  where: ArrayLike | None = None,
) -> jax.Array:
  """Returns `generalized_dice_loss` on sigmoid probabilities of regions."""
  return terms.generalized_dice(
    terms.sigmoid_overlap(logits, labels, squared, batch, where), smooth
  )


LOSSES: dict[str, Callable[..., jax.Array]] = {
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
