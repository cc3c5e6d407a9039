"""Planar contours around the voxels of a mask.

A contour runs where a mask of 0 and 1, linear between the centres of pixels, is
one half: marching squares (Lorensen and Cline 1987), by contourpy. Contours
through the centres of the outer pixels would lose a third of a small area.
"""

import contourpy
import numpy as np


def of_slice(mask: np.ndarray, *, keyhole: bool = False) -> list[np.ndarray]:
  """Returns the closed contours of a slice, each `[n, 2]` (row, column).

  Outer ones and those of holes alike, in pixels from the centre of the first;
  the last point is not the first one again.

  Args:
    mask: `[rows, columns]` bool.
    keyhole: whether to make one contour of an outer one and those of its holes,
      with a cut of no width to each, for readers that take any as filled.
  """
  if not mask.any():
    return []
  # What touches the border is closed, too.
  generator = contourpy.contour_generator(
    z=np.pad(mask, 1).astype(np.float64),
    name='serial',
    line_type=contourpy.LineType.Separate,
    fill_type=contourpy.FillType.OuterOffset,
  )
  if keyhole:
    return [
      _joined(np.split(points[:, ::-1] - 1, offsets[1:-1]))
      for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True)
    ]
  lines = generator.lines(0.5)
  found = []
  for line in lines:
    points = np.asarray(line)[:-1, ::-1] - 1  # (x, y) to (row, column)
    if len(points) >= 3:
      found.append(points)
  return found


def _joined(loops: list[np.ndarray]) -> np.ndarray:
  """Returns one contour of an outer one, which is first, and of holes.

  Each is `[n, 2]`, its last point the first one again. The cut runs from a
  hole's first column back along the row to what is next there, which has a
  point on it: contours cross the rows' centres at nothing else.
  """
  outer, *holes = [loop[:-1] for loop in loops]
  for hole in sorted(holes, key=lambda hole: hole[:, 1].min()):
    begin = int(hole[:, 1].argmin())
    row, column = hole[begin]
    there = np.flatnonzero((outer[:, 0] == row) & (outer[:, 1] < column))
    at = int(there[outer[there, 1].argmax()])
    turned = np.roll(hole, -begin, 0)
    outer = np.concatenate([outer[: at + 1], turned, turned[:1], outer[at:]])
  return outer
