"""Cases as a page shows them: small enough for a mail, made one by one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_jax.report.html import mosaic
from medseg_jax.report.unlike_training import facts_of

# Bytes of the pictures of all cases: 14 MB as text, so that a report stays
# below 15; and of those of one.
ALL_BYTES, CASE_BYTES, LEAST_BYTES = 10_300_000, 600_000, 16_000
IGNORED = 255  # in the picture of labels, what says nothing
_MOST = {2: 1024, 3: 256}  # voxels along an axis, by their number
_AROUND, _LEAST_AROUND = 0.2, 8  # of what is shown beside both masks
_WINDOW = (0.5, 99.5)  # percentiles, shown from black to white
_QUALITY = 80  # of JPEG


class CaseViews:
  """What a page shows of each case, kept packed while a split is evaluated.

  Args:
    count: cases of the split, which share the room.
  """

  def __init__(self, count: int) -> None:
    share = ALL_BYTES // max(count, 1)
    self._budget = min(CASE_BYTES, max(LEAST_BYTES, share))
    self.found: dict[str, dict[str, Any]] = {}
    self.reason = ''  # why one has no picture; '' where all have

  def add(
    self,
    name: str,
    image: npt.NDArray | None,
    label: npt.NDArray[np.integer],
    pred: npt.NDArray[np.integer],
    spacing: Sequence[float],
  ) -> None:
    """Adds a case, see `facts_of` and `view_of`. Never fails.

    The scores do not need the picture.
    """
    try:
      facts = facts_of(image, label, spacing)
      self.found[name] = {
        'facts': facts,
        'view': view_of(image, label, pred, spacing, budget=self._budget),
      }
    except Exception as error:
      text = ' '.join(str(error).split()) or type(error).__name__
      self.reason = self.reason or f'{name}: {text}'


def within_limit(
  found: Mapping[str, Mapping[str, Any]], worst_first: Iterable[str]
) -> dict[str, Mapping[str, Any]]:
  """Returns the cases without the pictures for which there is no room.

  Args:
    found: of all cases, by name.
    worst_first: their names; the last ones lose their pictures first.
  """
  result, used = dict(found), 0
  for name in worst_first:
    if name not in found or not (view := found[name]['view']):
      continue
    size = sum(len(view[part] or '') for part in ('image', 'masks'))
    if used + size > ALL_BYTES * 4 / 3:
      result[name] = {**found[name], 'view': None}
    else:
      used += size
  return result


def view_of(
  image: npt.NDArray | None,
  label: npt.NDArray[np.integer],
  pred: npt.NDArray[np.integer],
  spacing: Sequence[float],
  *,
  budget: int = CASE_BYTES,
) -> dict[str, Any]:
  """Returns what the page shows of a case, as JSON has it.

  Of a volume the surroundings of both masks, the whole where both are empty;
  in blocks of voxels where that is too much: of the image the mean of each, of
  the masks the highest class.

  Args:
    image: `[*S, C]`, two or three spatial axes, whose first channel is shown,
      of an image of three all; None where there is only the masks.
    label: `[*S]` class indices, -1 where ignored.
    pred: `[*S]` class indices.
    spacing: of each axis.
    budget: bytes that the pictures may take.

  Raises:
    ValueError: a class is beyond what the picture can hold, 254.
  """
  if max(int(label.max(initial=0)), int(pred.max(initial=0))) >= IGNORED:
    raise ValueError(f'classes from {IGNORED} on cannot be shown')
  whole = label.shape
  box = _box(label, pred)
  label, pred = label[box], pred[box]
  if image is not None:
    image = image[box]
    colour = label.ndim == 2 and image.shape[-1] == 3
    image = image if colour else image[..., :1]
  steps = [math.ceil(size / _MOST[label.ndim]) for size in label.shape]
  # JPEG takes a sixth of a byte a voxel, or more.
  _coarsen(steps, label.shape, spacing, 6 * budget)
  while True:
    shown = _small(image, label, pred, steps)
    masks = mosaic.encode(shown.masks, 'PNG', compress_level=6)
    picture = b''
    if shown.image is not None:
      picture = mosaic.encode(
        shown.image, 'JPEG', quality=_QUALITY, subsampling=0
      )
    size, shape = len(masks) + len(picture), shown.masks.shape[:3]
    voxels = math.prod(shape)
    if size <= budget or voxels <= 1:
      break
    _coarsen(steps, label.shape, spacing, 0.95 * voxels * budget / size)
  lead = 3 - label.ndim  # an image is a volume of one slice
  sides = zip(spacing, steps, strict=True)
  return {
    'rank': label.ndim,
    'shape': list(shape),
    'full': [1] * lead + list(whole),
    'origin': [0] * lead + [side.start for side in box],
    'steps': [1] * lead + steps,
    'spacing': [1.0] * lead + [float(mm) * step for mm, step in sides],
    'start': [_fullest(shown.masks[..., :2], axis) for axis in range(3)],
    'columns': mosaic.columns(shape[0]),
    'window': shown.window,
    'image': mosaic.address(picture) if picture else None,
    'masks': mosaic.address(masks),
  }


class _Small(NamedTuple):
  """What is packed.

  Attributes:
    image: uint8 `[z, y, x]`, or in colour `[z, y, x, 3]`; None for none.
    masks: uint8 `[z, y, x, 3]`: label, prediction, 0.
    window: the intensities shown as black and as white.
  """

  image: npt.NDArray[np.uint8] | None
  masks: npt.NDArray[np.uint8]
  window: list[float]


def _small(
  image: npt.NDArray | None,
  label: npt.NDArray[np.integer],
  pred: npt.NDArray[np.integer],
  steps: Sequence[int],
) -> _Small:
  label = mosaic.largest_in_blocks(label, steps)
  pred = mosaic.largest_in_blocks(pred, steps)
  masks = np.zeros((*label.shape, 3), np.uint8)
  masks[..., 0] = np.where(label < 0, IGNORED, label)
  masks[..., 1] = pred
  grey, window = None, [0.0, 255.0]
  if image is not None:
    raw = image.dtype == np.uint8
    image = mosaic.mean_in_blocks(image, steps)
    if not raw:
      finite = image[np.isfinite(image)]
      if finite.size:
        window = [float(x) for x in np.percentile(finite, _WINDOW)]
        if window[0] >= window[1]:
          window = [float(finite.min()), float(finite.max())]
    low, high = window
    image = np.nan_to_num(image, nan=low, posinf=high, neginf=low)
    scaled = (image - low) * (255 / max(high - low, 1e-12))
    grey = np.rint(scaled).clip(0, 255).astype(np.uint8)
    grey = grey if grey.shape[-1] == 3 else grey[..., 0]
    grey = grey if masks.ndim == 4 else grey[None]
  return _Small(grey, masks if masks.ndim == 4 else masks[None], window)


def _box(
  label: npt.NDArray[np.integer], pred: npt.NDArray[np.integer]
) -> tuple[slice, ...]:
  """Returns the part of a case that is shown."""
  whole = tuple(slice(0, size) for size in label.shape)
  if label.ndim == 2:
    return whole
  box = []
  for axis, size in enumerate(label.shape):
    others = tuple(other for other in range(3) if other != axis)
    found = np.flatnonzero(
      (label > 0).any(axis=others) | (pred > 0).any(axis=others)
    )
    if not len(found):
      return whole
    first, last = int(found[0]), int(found[-1]) + 1
    more = max(_LEAST_AROUND, math.ceil(_AROUND * (last - first)))
    box.append(slice(max(first - more, 0), min(last + more, size)))
  return tuple(box)


def _coarsen(
  steps: list[int],
  shape: Sequence[int],
  spacing: Sequence[float],
  voxels: float,
) -> None:
  """Enlarges the blocks, in place, until there are as few as `voxels`.

  Always along the axis where they are smallest, so that they become cubes.
  """

  def number(axis: int) -> int:
    return math.ceil(shape[axis] / steps[axis])

  axes = range(len(shape))
  while math.prod(map(number, axes)) > max(voxels, 1):
    axis = min(
      (axis for axis in axes if number(axis) > 1),
      key=lambda axis: steps[axis] * spacing[axis],
    )
    steps[axis] += 1


def _fullest(masks: npt.NDArray[np.uint8], axis: int) -> int:
  """Returns the slice with the most of the masks, the middle one of none."""
  others = tuple(other for other in range(4) if other != axis)
  counts = np.count_nonzero(masks, axis=others)
  return int(counts.argmax()) if counts.any() else len(counts) // 2
