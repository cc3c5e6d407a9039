"""Areas of surface elements: marching cubes and, in 2-D, marching squares."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# A corner of the unit cube or the middle of one of its edges.
Point = tuple[float, ...]
Segment = tuple[Point, Point]


def code_areas(spacing: npt.ArrayLike) -> Floats:
  """Returns the area of the surface element of each neighbourhood code.

  Args:
    spacing: voxel size along each of 2 or 3 axes.

  Returns:
    float64 [2^(2^d)]. Bit k of a code is voxel k of the neighbourhood in
    C order, so bit 0 is the voxel at the lower end of every axis.
  """
  spacing = np.asarray(spacing, np.float64)
  # Scaling space by `spacing` scales an area vector's component along an axis
  # by the spacings of the other axes.
  vectors = _area_vectors(len(spacing)) * (spacing.prod() / spacing)
  return np.linalg.norm(vectors, axis=-1).sum(axis=-1)


@functools.cache
def _area_vectors(rank: int) -> Floats:
  """Returns the facets' area vectors for unit spacing, [codes, facets, d]."""
  corners = list(itertools.product((0, 1), repeat=rank))
  facets = []
  for code in range(2 ** len(corners)):
    inside = {c: bool(code >> bit & 1) for bit, c in enumerate(corners)}
    # Marching cubes leaves open how to cut a face whose diagonals differ. As
    # in the original tables (Lorensen and Cline 1987) the corners of the rarer
    # kind are cut off one by one, which gives a code and its complement the
    # same area.
    rare = sum(inside.values()) <= len(corners) // 2
    segments = [s for f in _faces(rank) for s in _cut(f, inside, rare)]
    if rank == 2:
      facets.append([(q - p)[::-1] * (1, -1) for p, q in np.array(segments)])
    else:
      facets.append([v for loop in _loops(segments) for v in _fan(loop)])
  vectors = np.zeros((len(facets), max(map(len, facets)), rank))
  for code, areas in enumerate(facets):
    vectors[code, : len(areas)] = np.reshape(areas, (-1, rank))
  return vectors


def _faces(rank: int) -> Sequence[Sequence[tuple[int, ...]]]:
  """Returns the 2-D faces of the unit cube as cycles of four corners."""
  cycle = ((0, 0), (0, 1), (1, 1), (1, 0))
  if rank == 2:
    return [cycle]
  return [
    [(*c[:axis], side, *c[axis:]) for c in cycle]
    for axis in range(3)
    for side in (0, 1)
  ]


def _cut(
  face: Sequence[tuple[int, ...]],
  inside: Mapping[tuple[int, ...], bool],
  rare: bool,
) -> list[Segment]:
  """Returns the segments between edge midpoints that part a face's corners."""
  middles = [tuple((np.array(face[k - 1]) + face[k]) / 2) for k in range(4)]
  cut = [k for k in range(4) if inside[face[k - 1]] != inside[face[k]]]
  if len(cut) == 4:
    return [
      (middles[k], middles[(k + 1) % 4])
      for k in range(4)
      if inside[face[k]] == rare
    ]
  if not cut:
    return []
  first, second = cut
  return [(middles[first], middles[second])]


def _loops(segments: Iterable[Segment]) -> list[Floats]:
  """Returns the closed polygons, each an array [N, 3], that segments form."""
  neighbours: dict[Point, list[Point]] = {}
  for p, q in segments:
    neighbours.setdefault(p, []).append(q)
    neighbours.setdefault(q, []).append(p)
  loops = []
  while neighbours:
    loop = [min(neighbours)]
    while ends := neighbours.pop(loop[-1], None):
      loop += [p for p in ends if p in neighbours][:1]
    loops.append(np.array(loop))
  return loops


def _fan(polygon: Floats) -> Floats:
  """Returns the area vectors of the fan of triangles with the largest area.

  A polygon that is not flat has no area of its own; the largest fan is the
  choice of the usual tables.
  """
  fans = []
  for k in range(len(polygon)):
    arms = np.roll(polygon, -k, axis=0)[1:] - polygon[k]
    fans.append(np.cross(arms[:-1], arms[1:]) / 2)
  return max(fans, key=lambda fan: np.linalg.norm(fan, axis=-1).sum())
