"""Segmentation losses, one value per example.

Layout: `logits [B, *S, C]` of any float dtype, with any number of spatial axes
S. The softmax losses take `labels [B, *S]`, integers in [0, C), where 0 is the
background; the sigmoid losses, for regions that may overlap, take
`labels [B, *S, C]` of 0 and 1, where every channel is a region of its own.

`where`, bool [B, *S], leaves out the voxels where it is False, whatever logits
and labels hold there. The softmax losses leave out labels outside [0, C) too.

All return float32 [B], computed in float32, finite and with finite gradients
for any finite logits, also with classes absent or no voxel left. Logits beyond
+-1e9, where softmax and sigmoid are long constant, count as +-1e9. A loss
raises ValueError where shapes do not fit.

Labels meet logits by comparison and sums over classes, never by a gather, whose
gradient is a slow scatter on some devices.

`create_loss` makes the weighted sum that a network is trained on.
"""

from medseg_jax.losses.compound import create_loss, uses_sigmoid
from medseg_jax.losses.formulas import (
  LOSSES,
  cross_entropy,
  dice_loss,
  focal_loss,
  generalized_dice_loss,
  jaccard_loss,
  sigmoid_cross_entropy,
  sigmoid_dice_loss,
  sigmoid_focal_loss,
  sigmoid_generalized_dice_loss,
  sigmoid_jaccard_loss,
  sigmoid_tversky_loss,
  tversky_loss,
)

__all__ = [
  'LOSSES',
  'create_loss',
  'cross_entropy',
  'dice_loss',
  'focal_loss',
  'generalized_dice_loss',
  'jaccard_loss',
  'sigmoid_cross_entropy',
  'sigmoid_dice_loss',
  'sigmoid_focal_loss',
  'sigmoid_generalized_dice_loss',
  'sigmoid_jaccard_loss',
  'sigmoid_tversky_loss',
  'tversky_loss',
  'uses_sigmoid',
]
