"""Steps, and what they do to a label map."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Step = Mapping[str, Any]
Box = tuple[slice, ...]
Counts = npt.NDArray[np.int64]

NAME = 'keep_largest_component'
_BLOCK = 2**22  # Voxels that are counted at once, which bounds the memory.


def make_step(of: str, classes: Sequence[int]) -> dict[str, Any]:
  """Returns the step that keeps the largest component of some classes."""
  return {'step': NAME, 'of': of, 'classes': [int(c) for c in classes]}


def classes_of(step: Step) -> tuple[int, ...]:
  """Returns the class indices that a step is of.

  Raises:
    ValueError: it is no step.
  """
  classes = step.get('classes') if isinstance(step, Mapping) else None
  right = (
    isinstance(classes, Sequence)
    and not isinstance(classes, str)
    and len(classes) > 0
    and all(type(c) is int and c > 0 for c in classes)
  )
  if not right or step.get('step') != NAME:
    raise ValueError(
      f'{step!r} is no step of post-processing; allowed is '
      f'{make_step("NAME", (1,))}, with class indices from 1 on'
    )
  return tuple(classes or ())


def apply(
  label: npt.NDArray[np.integer], steps: Iterable[Step]
) -> npt.NDArray[np.integer]:
  """Returns a copy of a label map after all steps, in the same dtype.

  Args:
    label: int [*S], class indices, 0 the background; of any rank.
    steps: as `learn` gives them; without any the copy is equal.

  Raises:
    ValueError: something else among the steps, or a negative class index.
  """
  label = np.asarray(label)
  wanted = [classes_of(step) for step in steps]
  label = label.copy()
  if not wanted or not label.size:
    return label
  boxes = find_boxes(label)
  for classes in wanted:
    box = union([boxes[c] for c in classes if c in boxes])
    if not box:
      continue
    part = label[box]
    mask = mask_of(part, classes)
    ids, count = ndimage.label(mask, np.ones((3,) * label.ndim))
    if count < 2:
      continue
    sizes = count_ids(ids, count)
    small = sizes < sizes.max()
    part[small[ids] & mask] = 0
  return label


def find_boxes(label: npt.NDArray[np.integer]) -> dict[int, Box]:
  """Returns the smallest box around each class but 0 that there is.

  Raises:
    ValueError: on a negative index.
  """
  if label.min() < 0:
    raise ValueError(f'class indices must be from 0 on, found {label.min()}')
  found = ndimage.find_objects(label, int(label.max()))
  return {i: box for i, box in enumerate(found, 1) if box is not None}


def union(boxes: Sequence[Box]) -> Box:
  """Returns the smallest box around all, () where there are none."""
  return tuple(
    slice(min(s.start for s in axis), max(s.stop for s in axis))
    for axis in zip(*boxes, strict=True)
  )


def mask_of(
  label: npt.NDArray[np.integer], classes: Sequence[int]
) -> npt.NDArray[np.bool_]:
  """Returns where a label map has one of the classes."""
  if len(classes) == 1:  # many times as fast
    return np.asarray(label == classes[0])
  return np.isin(label, classes)


def count_ids(ids: npt.NDArray[np.integer], count: int) -> Counts:
  """Returns how many voxels the components 1 to `count` have, and 0 at 0."""
  sizes = np.zeros(count + 1, np.int64)
  flat = ids.reshape(-1)
  for start in range(0, flat.size, _BLOCK):
    sizes += np.bincount(flat[start : start + _BLOCK], minlength=count + 1)
  sizes[0] = 0
  return sizes
