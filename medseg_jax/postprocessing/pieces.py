"""What learning needs to know of one case, in place of its voxels.

A piece is a connected component of one class of the predicted label map. Every
component of a union of classes is made of whole pieces, and so is what any
step removes: pieces, how they touch, and what lies in them tell the result of
any sequence of steps to the voxel. So each case is read once, whatever is tried
later, and what stays of it is a few numbers a piece.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from medseg_jax.postprocessing.components import (
  Counts,
  Step,
  classes_of,
  find_boxes,
  union,
)

Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int32]

_BLOCK = 2**22  # Voxels that are counted at once, which bounds the memory.


class Pieces(NamedTuple):
  """The pieces of one prediction, and the voxels of its label.

  Attributes:
    classes: int64 [P], the class of each piece.
    sizes: int64 [P], its voxels, also those that do not count in scores.
    counts: int64 [P, C + 1], its voxels that count, by class of the label; the
      last column is of labels that are no class.
    contacts: int64 [E, 2], the pieces that touch, each pair once.
    label_counts: int64 [C], voxels of each class of the label.
  """

  classes: Counts
  sizes: Counts
  counts: Counts
  contacts: Counts
  label_counts: Counts


def count_pieces(
  pred: npt.ArrayLike, label: npt.ArrayLike, *, num_classes: int
) -> Pieces:
  """Returns what `learn` needs of one case.

  Args:
    pred: int [*S], predicted class indices, before any post-processing, on the
      case's own grid.
    label: int [*S], class indices; -1 is ignored in scores (but not in what
      hangs together), a larger one than the last class belongs to no class.
    num_classes: C, the background among them.

  Raises:
    ValueError: on unequal shapes, or a predicted index outside 0 to C - 1.
  """
  pred, label = np.asarray(pred), np.asarray(label)
  if pred.shape != label.shape:
    raise ValueError(
      f'label must have the shape of pred {pred.shape}, found {label.shape}'
    )
  if pred.size and not 0 <= pred.min() <= pred.max() < num_classes:
    raise ValueError(
      f'pred must lie in 0..{num_classes - 1}, found {pred.min()}..{pred.max()}'
    )
  boxes = find_boxes(pred) if pred.size else {}
  whole = union(list(boxes.values()))
  empty = np.zeros(0, np.int64)
  classes, sizes = [empty], [empty]
  counts = [np.zeros((0, num_classes + 1), np.int64)]
  ids = np.zeros(pred[whole].shape if whole else (0,), np.int32)
  total = 0
  for index, box in boxes.items():
    mask = pred[box] == index
    own, count = ndimage.label(mask, np.ones((3,) * pred.ndim))
    numbers = own[mask]
    inside = np.clip(label[box][mask].astype(np.int64), -1, num_classes)
    table = _joint(numbers - 1, inside + 1, (count, num_classes + 2))
    classes.append(np.full(count, index))
    sizes.append(table.sum(axis=1))
    counts.append(table[:, 1:])
    place = tuple(
      slice(s.start - w.start, s.stop - w.start)
      for s, w in zip(box, whole, strict=True)
    )
    ids[place][mask] = numbers + total
    total += count
  contacts = np.zeros((0, 2), np.int64)
  if len(boxes) > 1:
    contacts = _contacts(pred[whole], ids, total)
  return Pieces(
    np.concatenate(classes),
    np.concatenate(sizes),
    np.concatenate(counts),
    contacts,
    _label_counts(label, num_classes),
  )


def remaining(pieces: Pieces, steps: Sequence[Step]) -> Flags:
  """Returns which pieces are left after the steps, bool [P]."""
  there = np.ones(len(pieces.sizes), bool)
  for step in steps:
    there = keep_largest(pieces, there, classes_of(step))
  return there


def keep_largest(pieces: Pieces, there: Flags, classes: Sequence[int]) -> Flags:
  """Returns which pieces are left after one more step, bool [P].

  Args:
    pieces: of a case.
    there: bool [P], those that are left before it.
    classes: that the step is of.
  """
  chosen = there & np.isin(pieces.classes, classes)
  if chosen.sum() < 2:
    return there
  first, second = pieces.contacts[chosen[pieces.contacts].all(axis=1)].T
  graph = sparse.coo_array(
    (np.ones(len(first), np.int8), (first, second)), shape=(len(chosen),) * 2
  )
  _, component = csgraph.connected_components(graph, directed=False)
  sizes = np.zeros(len(chosen), np.int64)
  np.add.at(sizes, component[chosen], pieces.sizes[chosen])
  return there & ~(chosen & (sizes[component] < sizes.max()))


def score(pieces: Pieces, there: Flags, members: Flags) -> npt.NDArray:
  """Returns the Dice of each row of classes, float64 [R].

  NaN where prediction and label are both empty.

  Args:
    pieces: of a case.
    there: bool [P], the pieces that are left.
    members: bool [R, C], the classes that are in each row.
  """
  num_classes = members.shape[1]
  joint = np.zeros((num_classes, num_classes + 1), np.int64)
  np.add.at(joint, pieces.classes[there], pieces.counts[there])
  rows = members.astype(np.int64)
  of_pred = rows @ joint  # [R, C + 1]: voxels predicted so, by label
  overlap = (of_pred[:, :-1] * rows).sum(axis=1)
  both = of_pred.sum(axis=1) + rows @ pieces.label_counts
  return np.where(both > 0, 2 * overlap / np.maximum(both, 1), np.nan)


def _joint(
  first: npt.NDArray, second: Counts, shape: tuple[int, int]
) -> Counts:
  """Returns how often each pair of numbers occurs, int64 `shape`."""
  total = np.zeros(shape[0] * shape[1], np.int64)
  for start in range(0, first.size, _BLOCK):
    block = slice(start, start + _BLOCK)
    pair = first[block].astype(np.int64) * shape[1] + second[block]
    total += np.bincount(pair, minlength=total.size)
  return total.reshape(shape)


def _label_counts(label: npt.NDArray, num_classes: int) -> Counts:
  total = np.zeros(num_classes + 2, np.int64)
  flat = label.reshape(-1)
  for start in range(0, flat.size, _BLOCK):
    block = flat[start : start + _BLOCK].astype(np.int64)
    block = np.clip(block, -1, num_classes) + 1
    total += np.bincount(block, minlength=total.size)
  return total[1:-1]


def _contacts(pred: npt.NDArray, ids: Ids, count: int) -> Counts:
  """Returns the pairs of pieces of different classes that touch, [E, 2].

  Args:
    pred: int [*S], class indices.
    ids: int32 [*S], numbers of the pieces from 1 on, 0 in the background.
    count: of pieces.
  """
  # Small integers, and a plane at a time: what lies in the cache is quick.
  pred = pred.astype(np.uint8 if pred.max() < 256 else np.uint16)
  found = [np.zeros(0, np.int64)]
  for plane in range(len(pred)):
    pairs = [
      pair
      for step in (0, 1)
      if plane + step < len(pred)
      for pair in _touching(
        (pred[plane], pred[plane + step]), (ids[plane], ids[plane + step]), step
      )
    ]
    if not pairs:
      continue
    low = np.concatenate([np.minimum(*pair) for pair in pairs])
    high = np.concatenate([np.maximum(*pair) for pair in pairs])
    found.append(np.unique(low.astype(np.int64) * (count + 1) + high))
  codes = np.unique(np.concatenate(found))
  return np.stack(np.divmod(codes, count + 1), axis=1) - 1


def _touching(
  preds: tuple[npt.NDArray, npt.NDArray], ids: tuple[Ids, Ids], step: int
) -> Iterator[tuple[Ids, Ids]]:
  """Yields the numbers of the pieces of neighbouring voxels of two planes.

  Args:
    preds: class indices of both.
    ids: numbers of the pieces of both.
    step: 1 where they lie one after the other; 0 for a plane and itself, where
      each neighbour is met once.
  """
  rank = preds[0].ndim
  for offset in itertools.product((-1, 0, 1), repeat=rank):
    if not step and offset <= (0,) * rank:
      continue
    one = tuple(slice(max(-d, 0), -d if d > 0 else None) for d in offset)
    two = tuple(slice(max(d, 0), d if d < 0 else None) for d in offset)
    first, second = preds[0][one], preds[1][two]
    touch = (first != second) & (first > 0) & (second > 0)
    if touch.any():
      yield ids[0][one][touch], ids[1][two][touch]
