"""Planar contours around the voxels of a mask, and back.

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


def to_mask(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
  """Returns the pixels whose centres the contours enclose, `[rows, columns]`.

  A pixel inside an even number of them is outside: a hole.

  Args:
    contours: each `[n, 2]` (row, column).
    shape: rows and columns.
  """
  inside = np.zeros(shape, bool)
  columns = np.arange(shape[1])
  for points in contours:
    following = np.roll(points, -1, axis=0)
    low = np.minimum(points[:, 0], following[:, 0])
    high = np.maximum(points[:, 0], following[:, 0])
    first = max(int(np.ceil(low.min())), 0)
    last = min(int(np.floor(high.max())), shape[0] - 1)
    for row in range(first, last + 1):
      # Half-open, so that a corner on the row's line counts once.
      cut = (low <= row) & (row < high)
      (y0, x0), (y1, x1) = points[cut].T, following[cut].T
      crossings = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
      # Each crossing turns all pixels to its right over.
      inside[row] ^= (np.sum(crossings[:, None] < columns, 0) % 2).astype(bool)
  return inside
