"""Sums of losses for training: ignored voxels, regions, deep supervision."""

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp

from medseg_jax.losses.formulas import LOSSES
from medseg_jax.runtime.errors import suggest


def uses_sigmoid(weights: Mapping[str, float]) -> bool:
  """Returns whether `weights` name sigmoid losses; errors of `create_loss`."""
  return next(iter(_active(weights))).startswith('sigmoid_')


def create_loss(
  weights: Mapping[str, float],
  *,
  include_background: bool = True,
  batch: bool = False,
  regions: Sequence[Sequence[int]] = (),
) -> Callable[[jax.Array | Sequence[jax.Array], jax.Array], jax.Array]:
  """Returns `loss_fn(logits, labels) -> [B]`, a weighted sum of losses.

  `labels` are int [B, *S]; voxels with a negative label do not count. For
  sigmoid losses `logits` have a channel for each region.

  For deep supervision `logits` is a tuple, full resolution first. The labels of
  a lower level, smaller by a whole factor along each axis, are every factor-th
  voxel, taken nearest to the centre of the voxels it stands for. The levels
  weigh 1, 1/2, 1/4, ..., but where there are several the lowest 0, which is too
  coarse to tell structures apart; scaled to the sum 1.

  Args:
    weights: loss name, a key of `LOSSES`, to weight; 0 switches a loss off.
    include_background: whether the background has a part in the softmax overlap
      losses (Dice, Jaccard, Tversky, generalized Dice).
    batch: whether overlap losses sum over the batch before the ratio.
    regions: for sigmoid losses, the class indices that make up each region;
      they may overlap. None for one region for each foreground class, so that
      channel c is trained on label c + 1.

  Raises:
    ValueError: on an unknown name, a weight that is negative or not finite, no
      positive weight, softmax and sigmoid losses together, or regions that are
      empty, not of foreground classes or not for sigmoid losses; from
      `loss_fn`, where shapes do not fit.
  """
  active = _active(weights)
  sigmoid = uses_sigmoid(weights)
  if regions:
    _check_regions(regions, active)
  options = {'include_background': include_background, 'batch': batch}
  terms = [
    (weight, _with_options(LOSSES[name], options))
    for name, weight in active.items()
  ]

  def level_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    where = labels >= 0
    if sigmoid:
      labels = _memberships(
        labels, regions or [(c,) for c in range(1, logits.shape[-1] + 1)]
      )
    return _sum(
      weight * fn(logits, labels, where=where) for weight, fn in terms
    )

  def loss_fn(
    logits: jax.Array | Sequence[jax.Array], labels: jax.Array
  ) -> jax.Array:
    levels = logits if isinstance(logits, tuple | list) else (logits,)
    shares = [0.5**k for k in range(max(len(levels) - 1, 1))]
    return _sum(
      share / sum(shares) * level_loss(x, _subsample(labels, x.shape))
      for share, x in zip(shares, levels, strict=False)
    )

  return loss_fn


def _active(weights: Mapping[str, float]) -> dict[str, float]:
  """Returns the checked losses of positive weight."""
  for name, weight in weights.items():
    if name not in LOSSES:
      raise ValueError(
        f'unknown loss {name!r}{suggest(name, LOSSES)} (known: '
        f'{", ".join(LOSSES)})'
      )
    if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
      raise ValueError(
        f'the weight of loss {name!r} must be a finite number, '
        f'not negative, found {weight!r}'
      )
  active = {name: weight for name, weight in weights.items() if weight > 0}
  if not active:
    raise ValueError(f'no loss has a positive weight in {dict(weights)}')
  if len({name.startswith('sigmoid_') for name in active}) > 1:
    raise ValueError(
      f'losses must be all sigmoid or all softmax, found {", ".join(active)}'
    )
  return active


def _check_regions(
  regions: Sequence[Sequence[int]], active: Mapping[str, float]
) -> None:
  if not all(name.startswith('sigmoid_') for name in active):
    raise ValueError(
      'regions may overlap, which takes sigmoid losses, found '
      f'{", ".join(active)}'
    )
  for region in regions:
    if not region or not all(
      isinstance(c, numbers.Integral) and c > 0 for c in region
    ):
      raise ValueError(
        'a region must be made of foreground classes, whole '
        f'numbers from 1, found {region!r}'
      )


def _with_options(
  loss: Callable[..., jax.Array], options: Mapping[str, bool]
) -> Callable[..., jax.Array]:
  """Returns `loss` with those of the options that it knows."""
  known = inspect.signature(loss).parameters
  return functools.partial(
    loss, **{key: value for key, value in options.items() if key in known}
  )


def _memberships(
  labels: jax.Array, regions: Sequence[Sequence[int]]
) -> jax.Array:
  """Returns bool [B, *S, R], whether a label is in a region."""
  return jnp.stack(
    [
      functools.reduce(jnp.logical_or, [labels == c for c in region])
      for region in regions
    ],
    -1,
  )


def _subsample(labels: jax.Array, logits_shape: tuple[int, ...]) -> jax.Array:
  sizes, targets = labels.shape[1:], logits_shape[1:-1]
  factors = [n // m for n, m in zip(sizes, targets, strict=False)]
  if sizes != tuple(f * m for f, m in zip(factors, targets, strict=False)):
    raise ValueError(f'logits {logits_shape} do not divide {labels.shape}')
  return labels[:, *(slice((f - 1) // 2, None, f) for f in factors)]


def _sum(losses: Iterable[jax.Array]) -> jax.Array:
  """Returns the sum of at least one loss, without the 0 of `sum`."""
  return functools.reduce(operator.add, losses)
