"""What is told of a segmented structure and of each of its lesions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_jax.clinic import diameters
from medseg_jax.clinic.diameters import Diameters

# Slices are those along the axis with voxels so much longer than the others;
# where there is none, they are axial.
_COARSE = 1.5

Point = tuple[float, float, float]


class Intensity(NamedTuple):
  """Of the voxels of one object, in one channel."""

  mean: float
  sd: float


class Measured(NamedTuple):
  """One object.

  Attributes:
    voxels: number of them.
    volume: ml.
    diameters: see `clinic.diameters`; None of nothing.
    intensity: of each channel, in the image's own units; () of nothing.
    centroid: mm to the patient's left, posterior, superior; None of nothing.
    at_border: whether it touches the image's border, and may go on beyond it.
    ends: of the longest diameter and of its perpendicular, two each, as the
      centroid; () of nothing.
    lesions: its components by falling volume, where these are asked for;
      voxels that share a face, an edge or a corner hang together.
  """

  voxels: int
  volume: float
  diameters: Diameters | None
  intensity: tuple[Intensity, ...]
  centroid: Point | None
  at_border: bool
  ends: tuple[Point, ...] = ()
  lesions: tuple['Measured', ...] = ()


class Lesions(NamedTuple):
  """The components of some classes.

  Attributes:
    measured: each, by falling volume.
    parts: `[z, y, x]` of a box, the number of each from 1, 0 for none.
    box: in the image.
  """

  measured: tuple[Measured, ...]
  parts: npt.NDArray[np.int32]
  box: tuple[slice, ...]


NOTHING = Measured(0, 0.0, None, (), None, False)


def measure(
  label: npt.NDArray[np.integer],
  image: npt.NDArray,
  affine: npt.NDArray[np.float64],
  *,
  indices: Sequence[int],
  lesions: bool = False,
) -> Measured:
  """Returns what is told of some classes together.

  Args:
    label: `[z, y, x]` class indices.
    image: `[z, y, x, C]`.
    affine: `[4, 4]`, index (z, y, x) to mm right, anterior, superior.
    indices: of the classes.
    lesions: whether to measure its components, too.

  Raises:
    ValueError: shapes that differ.
  """
  if label.ndim != 3 or image.shape[:3] != label.shape or image.ndim != 4:
    raise ValueError(
      f'label must be [z, y, x] and image [z, y, x, C], got {label.shape} and '
      f'{image.shape}'
    )
  if (box := _box_of(label, indices)) is None:
    return NOTHING
  whole = _object(np.isin(label[box], list(indices)), box, image, affine)
  if not lesions:
    return whole
  found = measure_lesions(label, image, affine, indices=indices)
  return whole._replace(lesions=found.measured)


def measure_lesions(
  label: npt.NDArray[np.integer],
  image: npt.NDArray,
  affine: npt.NDArray[np.float64],
  *,
  indices: Sequence[int],
) -> Lesions:
  """Returns the components of some classes together; see `measure`."""
  if (box := _box_of(label, indices)) is None:
    return Lesions((), np.zeros((0, 0, 0), np.int32), (slice(0, 0),) * 3)
  mask = np.isin(label[box], list(indices))
  parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
  found = []
  for i, part in enumerate(ndimage.find_objects(parts)):
    own = tuple(
      slice(side.start + inner.start, side.start + inner.stop)
      for side, inner in zip(box, part, strict=True)
    )
    found.append((_object(parts[part] == i + 1, own, image, affine), i + 1))
  found.sort(key=lambda one: (-one[0].voxels, one[0].centroid))
  numbers = np.zeros(len(found) + 1, np.int32)
  numbers[[number for _, number in found]] = np.arange(len(found)) + 1
  return Lesions(tuple(one for one, _ in found), numbers[parts], box)


def _box_of(
  label: npt.NDArray[np.integer], indices: Sequence[int]
) -> tuple[slice, ...] | None:
  """Returns the box of some classes, None where there is none of them."""
  # Each on its own: a mask of the whole image takes long.
  boxes = ndimage.find_objects(label, max_label=max(indices))
  there = [boxes[i - 1] for i in indices if boxes[i - 1] is not None]
  if not there:
    return None
  return tuple(
    slice(min(b[d].start for b in there), max(b[d].stop for b in there))
    for d in range(3)
  )


def slice_axis(affine: npt.NDArray[np.float64]) -> int:
  """Returns the axis across which diameters are measured.

  The one with the longest voxels, by half as much again at least; else 0, whose
  slices are axial.

  Args:
    affine: see `measure`.
  """
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  longest = int(sizes.argmax())
  others = np.delete(sizes, longest)
  return longest if sizes[longest] >= _COARSE * others.max() else 0


def _object(
  mask: npt.NDArray[np.bool_],
  box: tuple[slice, ...],
  image: npt.NDArray,
  affine: npt.NDArray[np.float64],
) -> Measured:
  """Returns what is told of the voxels of a mask, which has some.

  Args:
    mask: of the box.
    box: in the image.
    image: see `measure`.
    affine: likewise.
  """
  voxels = int(np.count_nonzero(mask))
  corner = np.array([side.start for side in box], np.float64)
  middle = np.array(ndimage.center_of_mass(mask)) + corner
  values = image[box][mask].astype(np.float64)  # [voxels, C]
  axis = slice_axis(affine)
  plane = np.delete(affine[:3, :3], axis, 1)
  found = diameters.measure(np.moveaxis(mask, axis, 0), plane)
  ends: tuple[Point, ...] = ()
  if found is not None:
    found = found._replace(
      slice_index=found.slice_index + box[axis].start,
      ends=found.ends + np.delete(corner, axis),
    )
    in_image = np.insert(found.ends, axis, found.slice_index, axis=1)
    ends = tuple(_patient(end, affine) for end in in_image)
  return Measured(
    voxels,
    voxels * abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
    found,
    tuple(
      Intensity(float(mean), float(sd))
      for mean, sd in zip(values.mean(0), values.std(0), strict=True)
    ),
    _patient(middle, affine),
    any(
      side.start == 0 or side.stop == size
      for side, size in zip(box, image.shape[:3], strict=True)
    ),
    ends,
  )


def _patient(
  voxel: npt.NDArray[np.float64], affine: npt.NDArray[np.float64]
) -> Point:
  """Returns mm to the patient's left, posterior, superior."""
  right, anterior, superior = affine[:3, :3] @ voxel + affine[:3, 3]
  return -float(right), -float(anterior), float(superior)
