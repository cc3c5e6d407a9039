"""What the prediction of one case scores against its label.

The record's keys are listed in `report`. Everything is counted on the host:
one pass over the voxels gives the counts of all classes, exact at any size,
with nothing to compile for each new shape. The ratios are those of `metrics`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

import jax
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_jax import metrics
from medseg_jax.metrics import lesions as lesion_counts
from medseg_jax.metrics import surface

Mask = npt.NDArray[np.bool_]

_BLOCK = 2**22  # Voxels that are counted at once, which bounds the memory.


class CaseScores(TypedDict):
  """Share of right voxels, and by class the scores by name."""

  pixel_accuracy: float
  classes: dict[str, dict[str, float]]


def score_case(
  pred: np.ndarray,
  label: np.ndarray,
  *,
  classes: Sequence[str],
  spacing: Sequence[float],
  regions: Sequence[tuple[str, Sequence[int]]] = (),
  where: np.ndarray | None = None,
  surface_tolerance: float | None = None,
  lesions: bool = False,
) -> CaseScores:
  """Returns a record of `report` but its name.

  The classes are those of `scored_names`. Volumes in ml are given for three
  axes. What is ignored (label -1, or `where` False) counts nowhere; surfaces
  and lesions are those of the masks with these voxels set to background.

  Args:
    pred: int [*S], class indices.
    label: int [*S], class indices; -1 is ignored, a larger one than the last
      class belongs to no class.
    classes: names of the classes, background first.
    spacing: mm, of each axis.
    regions: (name, class indices) of every region, which may overlap. They are
      scored in place of the classes, from the same maps.
    where: bool [*S], the voxels that count; None for all.
    surface_tolerance: mm, of the surface Dice; None leaves the surface metrics
      out.
    lesions: whether to count connected components as well.

  Raises:
    ValueError: on unequal shapes, a spacing of another length, a predicted
      index outside `classes` or a region with an index outside its foreground.
  """
  pred, label = np.asarray(pred), np.asarray(label)
  _check(pred, label, where, spacing, len(classes))
  kept = label >= 0
  if where is not None:
    kept &= np.asarray(where, bool)
  members = _members(len(classes), regions)
  joint = _joint_counts(pred, label, kept, len(classes))
  counts = _confusion(joint, members)
  columns = jax.device_get(
    {
      'dice': metrics.dice_score(counts),
      'iou': metrics.iou(counts),
      'precision': metrics.precision(counts),
      'recall': metrics.recall(counts),
    }
  )
  columns |= {'tp': counts.tp, 'fp': counts.fp, 'fn': counts.fn}
  if pred.ndim == 3:
    ml = float(np.prod(np.asarray(spacing, np.float64))) / 1000
    columns['volume_ml'] = (counts.tp + counts.fp) * ml
    columns['volume_ml_label'] = (counts.tp + counts.fn) * ml
  names = scored_names(classes, regions)
  rows = {
    name: {key: column[i].item() for key, column in columns.items()}
    for i, name in enumerate(names)
  }
  if surface_tolerance is not None or lesions:
    masks = _foreground_masks(pred, label, kept, members[1:])
    for name, (pred_mask, label_mask) in zip(names[1:], masks, strict=True):
      if surface_tolerance is not None:
        rows[name] |= _surface_scores(
          pred_mask, label_mask, spacing, surface_tolerance
        )
      if lesions:
        rows[name] |= _lesion_scores(pred_mask, label_mask)
  hits, total = int(joint.diagonal().sum()), int(joint.sum())
  return {
    'pixel_accuracy': hits / total if total else float('nan'),
    'classes': rows,
  }


def scored_names(
  classes: Sequence[str], regions: Sequence[tuple[str, Sequence[int]]] = ()
) -> tuple[str, ...]:
  """Returns what is scored, as `report.summarize` wants to know it.

  The classes, or, with regions, the background (nothing of any region) and
  the regions.
  """
  if not regions:
    return tuple(classes)
  return (classes[0], *(name for name, _ in regions))


def _check(
  pred: np.ndarray,
  label: np.ndarray,
  where: np.ndarray | None,
  spacing: Sequence[float],
  num_classes: int,
) -> None:
  for name, array in (('label', label), ('where', where)):
    if array is not None and np.shape(array) != pred.shape:
      raise ValueError(
        f'{name} must have the shape of pred {pred.shape}, '
        f'found {np.shape(array)}'
      )
  if len(spacing) != pred.ndim:
    raise ValueError(
      f'spacing must hold {pred.ndim} numbers, found {tuple(spacing)}'
    )
  if pred.size and not 0 <= pred.min() <= pred.max() < num_classes:
    raise ValueError(
      f'pred must lie in 0..{num_classes - 1}, found {pred.min()}..{pred.max()}'
    )


def _members(
  num_classes: int, regions: Sequence[tuple[str, Sequence[int]]]
) -> Mask:
  """Returns which class is in which row, bool [rows, num_classes]."""
  if not regions:
    return np.eye(num_classes, dtype=bool)
  members = np.zeros((1 + len(regions), num_classes), bool)
  for row, (name, indices) in zip(members[1:], regions, strict=True):
    if not all(0 < i < num_classes for i in indices):
      raise ValueError(
        f'region {name} has the classes {tuple(indices)}, '
        f'allowed are 1..{num_classes - 1}'
      )
    row[list(indices)] = True
  members[0] = ~members.any(axis=0)
  return members


def _joint_counts(
  pred: np.ndarray, label: np.ndarray, kept: Mask, num_classes: int
) -> npt.NDArray[np.int64]:
  """Returns the voxels of each label and prediction, int64 [C + 1, C].

  The last row is that of labels that are no class. Counting pairs takes one
  pass however many classes and regions there are.
  """
  pred, label, kept = (np.ravel(array) for array in (pred, label, kept))
  total = np.zeros((num_classes + 1) * num_classes, np.int64)
  for start in range(0, pred.size, _BLOCK):
    block = slice(start, start + _BLOCK)
    pair = np.clip(label[block].astype(np.int64), 0, num_classes)
    pair = pair * num_classes + pred[block]
    total += np.bincount(pair[kept[block]], minlength=total.size)
  return total.reshape(num_classes + 1, num_classes)


def _confusion(
  joint: npt.NDArray[np.int64], members: Mask
) -> metrics.Confusion:
  """Returns the counts of each row of `members`, int64 [rows]."""
  # No row has the labels that are no class.
  rows = np.pad(members, ((0, 0), (0, 1))).astype(np.int64)
  of_label = rows @ joint  # [rows, C]: voxels labelled so, by prediction.
  of_pred = members @ joint.sum(axis=0)
  tp = (of_label * members).sum(axis=1)
  fp, fn = of_pred - tp, of_label.sum(axis=1) - tp
  return metrics.Confusion(tp, fp, fn, joint.sum() - tp - fp - fn)


def _foreground_masks(
  pred: np.ndarray, label: np.ndarray, kept: Mask, members: Mask
) -> Iterator[tuple[Mask, Mask]]:
  """Yields each row's two masks, cut to what of it there is in either."""
  if not kept.all():
    pred, label = (np.where(kept, array, 0) for array in (pred, label))
  # Cutting leaves distances and components as they are and spares passing
  # over the whole volume for every class.
  last = members.shape[1] - 1
  boxes = [ndimage.find_objects(array, last) for array in (pred, label)]
  for row in members:
    indices = np.flatnonzero(row)
    box = _union(
      found[i - 1] for found in boxes for i in indices if found[i - 1]
    )
    yield _cut(pred, box, indices), _cut(label, box, indices)


def _cut(
  array: np.ndarray, box: tuple[slice, ...], indices: npt.NDArray[np.intp]
) -> Mask:
  """Returns the mask of `indices` in the box, one empty voxel for no box."""
  if not box:
    return np.zeros((1,) * array.ndim, bool)
  return np.isin(array[box], indices)


def _union(boxes: Iterable[tuple[slice, ...]]) -> tuple[slice, ...]:
  """Returns the smallest box around all, () where there are none."""
  return tuple(
    slice(min(s.start for s in axis), max(s.stop for s in axis))
    for axis in zip(*boxes, strict=True)
  )


def _surface_scores(
  pred: Mask, label: Mask, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
  scores = surface.surface_metrics(pred, label, spacing, tolerance=tolerance)
  return {
    'hausdorff_95': scores['hausdorff_distance'],
    'average_surface_distance': scores['average_surface_distance'],
    'surface_dice': scores['surface_dice'],
  }


def _lesion_scores(pred: Mask, label: Mask) -> dict[str, float]:
  counts = lesion_counts.count_lesions(pred, label)
  return {
    'lesions_found': counts.found,
    'lesions_missed': counts.missed,
    'lesions_false': counts.false,
    'lesion_f1': lesion_counts.lesion_f1(counts),
  }
