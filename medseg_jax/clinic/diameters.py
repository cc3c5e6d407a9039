"""The longest diameter within the slices of a mask, and its perpendicular.

As the response criteria for solid tumours measure (Eisenhauer et al. 2009,
RECIST 1.1): in the slice where it is longest, and at right angles to it in the
same slice; from edge to edge.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, spatial

from medseg_jax.clinic import contours

Floats = npt.NDArray[np.float64]


class Diameters(NamedTuple):
  """The two diameters of an object.

  Attributes:
    longest: mm.
    perpendicular: mm, the longest chord at right angles to it.
    slice_index: of both.
    ends: `[4, 2]` (row, column), in pixels: of the longest and of the other.
  """

  longest: float
  perpendicular: float
  slice_index: int
  ends: Floats


def measure(mask: npt.NDArray[np.bool_], plane: Floats) -> Diameters | None:
  """Returns the diameters of a mask, None where it is empty.

  Pieces of a slice that share no edge and no corner are measured apart; holes
  are passed over, as a caliper does.

  Args:
    mask: `[slices, rows, columns]`.
    plane: `[3, 2]`, mm that a step of a row and one of a column go.
  """
  # Lengths in the plane, in which the axes need not be at right angles.
  to_mm = np.linalg.cholesky(plane.T @ plane).T  # [2, 2], of equal lengths
  best: tuple[float, int, list[Floats], Floats] | None = None
  for index, section in enumerate(mask):
    if not section.any():
      continue
    [box] = ndimage.find_objects(section.astype(np.uint8))
    corner = np.array([side.start for side in box], np.float64)
    pieces, _ = ndimage.label(section[box], np.ones((3, 3)))
    for number, own in enumerate(ndimage.find_objects(pieces), start=1):
      reach = np.array([side.stop - side.start for side in own])
      if best is not None and (np.abs(to_mm) @ reach).sum() < best[0]:
        continue  # it cannot be longer
      filled = ndimage.binary_fill_holes(pieces[own] == number)
      start = corner + [side.start for side in own]
      outlines = [
        (outline + start) @ to_mm.T for outline in contours.of_slice(filled)
      ]
      length, ends = _farthest(np.concatenate(outlines))
      if best is None or length > best[0]:
        best = length, index, outlines, ends
  if best is None:
    return None
  length, index, outlines, ends = best
  across = _chord(outlines, ends)
  width = float(np.linalg.norm(across[1] - across[0]))
  both = np.linalg.solve(to_mm, np.concatenate([ends, across]).T).T
  return Diameters(length, width, index, both)


def _farthest(points: Floats) -> tuple[float, Floats]:
  """Returns the largest distance between two of `[n, 2]`, and these two."""
  corners = points
  if len(points) > 3:
    corners = points[spatial.ConvexHull(points).vertices]
  distances = spatial.distance.cdist(corners, corners)
  i, j = np.unravel_index(distances.argmax(), distances.shape)
  return float(distances[i, j]), corners[[i, j]]


def _chord(outlines: Sequence[Floats], ends: Floats) -> Floats:
  """Returns the ends of the longest chord at right angles to a diameter.

  Args:
    outlines: each `[n, 2]`, closed, of the pieces that touch at corners.
    ends: `[2, 2]` of the diameter.
  """
  along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
  turned = np.array([along, [-along[1], along[0]]])
  lines = [(points - ends[0]) @ turned.T for points in outlines]
  line = np.concatenate(lines)
  following = np.concatenate([np.roll(each, -1, 0) for each in lines])
  # Between two corners a chord's length is linear, so the longest begins right
  # at one; there it is taken on both sides.
  places = np.unique(line[:, 0])
  if len(places) < 2:
    return ends[[0, 0]]
  near = 1e-6 * np.diff(places)
  best, found = -1.0, np.zeros((2, 2))
  for place in np.concatenate([places[:-1] + near, places[1:] - near]):
    cut = (line[:, 0] <= place) != (following[:, 0] <= place)
    (u0, v0), (u1, v1) = line[cut].T, following[cut].T
    crossings = np.sort(v0 + (place - u0) / (u1 - u0) * (v1 - v0))
    lengths = crossings[1::2] - crossings[::2]
    if len(lengths) and lengths.max() > best:
      best, at = float(lengths.max()), 2 * int(lengths.argmax())
      found = np.array([[place, crossings[at]], [place, crossings[at + 1]]])
  return found @ turned + ends[0]
