"""Planar contours around the voxels of a mask.

A contour runs where a mask of 0 and 1, linear between the centres of pixels, is
one half: marching squares (Lorensen and Cline 1987), by contourpy. Contours
through the centres of the outer pixels would lose a third of a small area.
"""

import contourpy
import numpy as np


def of_slice(mask: np.ndarray) -> list[np.ndarray]:
  """Returns the closed contours of a slice, each `[n, 2]` (row, column).

  Outer ones and those of holes alike, in pixels from the centre of the first;
  the last point is not the first one again.

  Args:
    mask: `[rows, columns]` bool.
  """
  if not mask.any():
    return []
  # What touches the border is closed, too.
  padded = np.pad(mask, 1).astype(np.float64)
  lines = contourpy.contour_generator(
    z=padded, name='serial', line_type=contourpy.LineType.Separate
  ).lines(0.5)
  found = []
  for line in lines:
    points = np.asarray(line)[:-1, ::-1] - 1  # (x, y) to (row, column)
    if len(points) >= 3:
      found.append(points)
  return found
