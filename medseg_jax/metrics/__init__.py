"""Segmentation metrics per example and class, from class maps.

`pred` and `labels` are integers [B, *S] with any number of spatial axes S.
`where`, bool [B, *S], leaves out the voxels where it is False; voxels with a
negative label, which means 'ignored', are left out as well. A voxel whose label
is `num_classes` or more belongs to no class, so what is predicted there is a
false positive.

A value that is not defined is NaN. Averaging is a step of its own, `nanmean`.
All functions can be jitted and vmapped.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Confusion(NamedTuple):
  """Voxel counts [B, C], int32, so exact up to 2^31 voxels.

  NumPy's int64 of any size serve as well.
  """

  tp: jax.Array | np.ndarray
  fp: jax.Array | np.ndarray
  fn: jax.Array | np.ndarray
  tn: jax.Array | np.ndarray


def confusion(
  pred: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  where: ArrayLike | None = None,
) -> Confusion:
  """Returns each class's true and false positive and negative voxel counts.

  Args:
    pred: int [B, *S].
    labels: int [B, *S].
    num_classes: a Python int, C; the classes are 0 to C - 1.
    where: bool [B, *S], the voxels that count.

  Raises:
    ValueError: where the shapes differ.
  """
  pred, labels, mask = _inputs(pred, labels, where)
  classes = jnp.arange(num_classes)
  pred = (pred[..., None] == classes) & mask[..., None]
  labels = labels[..., None] == classes
  tp = _count(pred & labels)
  fp = _count(pred) - tp
  fn = _count(labels & mask[..., None]) - tp
  return Confusion(tp, fp, fn, _count(mask[..., None]) - tp - fp - fn)


def dice_score(confusion: Confusion) -> jax.Array:
  """Returns 2 TP / (2 TP + FP + FN), float32 [B, C].

  NaN where the class is in neither mask.
  """
  tp, fp, fn, _ = _float(confusion)
  return _divide(2 * tp, 2 * tp + fp + fn)


def iou(confusion: Confusion) -> jax.Array:
  """Returns TP / (TP + FP + FN), float32 [B, C].

  NaN where the class is in neither mask.
  """
  tp, fp, fn, _ = _float(confusion)
  return _divide(tp, tp + fp + fn)


def precision(confusion: Confusion) -> jax.Array:
  """Returns TP / (TP + FP), float32 [B, C]; NaN where nothing is predicted."""
  tp, fp, _, _ = _float(confusion)
  return _divide(tp, tp + fp)


def recall(confusion: Confusion) -> jax.Array:
  """Returns TP / (TP + FN), float32 [B, C]; NaN where nothing is labelled."""
  tp, _, fn, _ = _float(confusion)
  return _divide(tp, tp + fn)


def pixel_accuracy(
  pred: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
  """Returns the share of voxels with pred == labels, float32 [B].

  NaN where no voxel is left. Arguments and errors are those of `confusion`.
  """
  pred, labels, mask = _inputs(pred, labels, where)
  hits, total = ((pred == labels) & mask)[..., None], mask[..., None]
  hits, total = _float((_count(hits)[..., 0], _count(total)[..., 0]))
  return _divide(hits, total)


def nanmean(
  values: ArrayLike, axis: int | tuple[int, ...] | None = None
) -> jax.Array:
  """Returns the mean of the values that are not NaN; NaN where there is none.

  Args:
    values: float, any shape.
    axis: an int or a tuple of ints, the axes to average over; None for all.
  """
  values = jnp.asarray(values)
  defined = ~jnp.isnan(values)
  return _divide(
    jnp.sum(jnp.where(defined, values, 0), axis), jnp.sum(defined, axis)
  )


def _inputs(
  pred: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  pred, labels = jnp.asarray(pred), jnp.asarray(labels)
  if pred.shape != labels.shape:
    raise ValueError(
      f'pred {pred.shape} and labels {labels.shape} must have one shape'
    )
  mask = labels >= 0
  if where is not None:
    where = jnp.asarray(where, bool)
    if where.shape != labels.shape:
      raise ValueError(
        f'where must have shape {labels.shape}, found {where.shape}'
      )
    mask &= where
  return pred, labels, mask


def _count(hits: jax.Array) -> jax.Array:
  """Returns the number of True over the spatial axes of [B, *S, C]."""
  return jnp.sum(hits, tuple(range(1, hits.ndim - 1)), dtype=jnp.int32)


def _float(counts: Iterable[ArrayLike]) -> Iterator[jax.Array]:
  return (jnp.asarray(count, jnp.float32) for count in counts)


def _divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
  """Returns the ratio of counts; NaN where the denominator is 0."""
  return jnp.where(
    denominator > 0, numerator / jnp.maximum(denominator, 1), jnp.nan
  )
