"""Which lesions of two time points are the same.

Lesions are the nodes of a graph with two sides, and those that lie on each
other in registered space its edges, as in Santoro-Fernandes et al. 2021
(doi:10.1088/1361-6560/ac1457) but that groups of more than two stay whole: a
lesion that has split, or several that have merged.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse, spatial
from scipy.sparse import csgraph

from medseg_jax.clinic.followup.time_point import (
  Floats,
  TimePoint,
  inverse,
  mapped,
)
from medseg_jax.clinic.measurements import Lesions

# Share of the smaller of two that the other covers at the least: neighbours
# that touch each other where the registration is a bit off do so by less, and
# a ball that has moved by its radius, which covers 0.31 of itself, by more.
OVERLAP = 0.1

Places = tuple[Floats, ...]


class Group(NamedTuple):
  """Lesions that belong together.

  Attributes:
    earlier: their indices.
    later: likewise.
    gap: mm between the nearest voxels of the two where they do not overlap,
      else 0.
  """

  earlier: tuple[int, ...]
  later: tuple[int, ...]
  gap: float = 0.0


def places_of(lesions: Lesions, point: TimePoint) -> Places:
  """Returns the voxels `[n, 3]` of each lesion, in mm of its own time point."""
  voxels = np.argwhere(lesions.parts)
  owners = lesions.parts[tuple(voxels.T)]
  order = np.argsort(owners, kind='stable')
  corner = [side.start for side in lesions.box]
  world = point.to_world(voxels[order] + corner)
  ends = np.cumsum(np.bincount(owners, minlength=len(lesions.measured) + 1))
  return tuple(np.split(world, ends[1:-1])) if len(lesions.measured) else ()


def overlaps(places: Places, others: Lesions, point: TimePoint) -> Floats:
  """Returns the share of each lesion that lies on each other one, `[n, m]`.

  Args:
    places: of the lesions, mapped to the others' time point.
    others: the others.
    point: their time point.
  """
  found = np.zeros((len(places), len(others.measured)))
  if not found.size:
    return found
  corner = np.array([side.start for side in others.box])
  shape = np.array(others.parts.shape)
  for i, own in enumerate(places):
    voxels = np.rint(point.to_voxels(own)).astype(int) - corner
    inside = voxels[((voxels >= 0) & (voxels < shape)).all(1)]
    hit = others.parts[tuple(inside.T)]
    counts = np.bincount(hit, minlength=found.shape[1] + 1)[1:]
    found[i] = counts / len(own)
  return found


def match(
  earlier: tuple[Lesions, TimePoint],
  later: tuple[Lesions, TimePoint],
  motion: Floats,
  *,
  match_mm: float,
) -> tuple[Group, ...]:
  """Returns the groups, those of the largest lesions first.

  Args:
    earlier: lesions and their time point.
    later: likewise.
    motion: see `registration`.
    match_mm: how far apart lesions may lie that overlap with none, and count
      as the same if each is the other's nearest.
  """
  own, theirs = places_of(*earlier), places_of(*later)
  there = tuple(mapped(places, motion) for places in own)
  back = inverse(motion)
  here = tuple(mapped(places, back) for places in theirs)
  # Of coarse and of fine voxels: whichever sees more of the overlap.
  share = np.maximum(
    _of_smaller(overlaps(there, *later), own, theirs, earlier[1], later[1]),
    _of_smaller(overlaps(here, *earlier), theirs, own, later[1], earlier[1]).T,
  )
  linked = share >= OVERLAP
  gaps = _nearest(own, here, linked, match_mm)
  for i, j in gaps:
    linked[i, j] = True
  return _groups(linked, gaps)


def _of_smaller(
  share: Floats,
  own: Places,
  others: Places,
  point: TimePoint,
  other_point: TimePoint,
) -> Floats:
  """Returns shares of the smaller of two, of shares of the first, `[n, m]`."""
  if not share.size:
    return share
  volumes = np.array([len(x) for x in own]) * point.voxel_ml
  of_others = np.array([len(x) for x in others]) * other_point.voxel_ml
  smaller = np.minimum(volumes[:, None], of_others[None])
  return np.asarray(share * volumes[:, None] / smaller, np.float64)


def _nearest(
  own: Places, others: Places, linked: npt.NDArray[np.bool_], reach: float
) -> dict[tuple[int, int], float]:
  """Returns the pairs of lesions without a link that are nearest to each other.

  With the mm between them, up to `reach`; both in the same space.
  """
  left = [int(i) for i in np.flatnonzero(~linked.any(1))]
  right = [int(j) for j in np.flatnonzero(~linked.any(0))]
  found: dict[tuple[int, int], float] = {}
  while left and right:
    tree = spatial.cKDTree(np.concatenate([others[j] for j in right]))
    owners = np.repeat(right, [len(others[j]) for j in right])
    pairs: dict[tuple[int, int], float] = {}
    for i in left:
      gaps, at = tree.query(own[i], distance_upper_bound=reach)
      near = int(gaps.argmin())
      if np.isfinite(gaps[near]):
        pairs[i, int(owners[at[near]])] = float(gaps[near])
    if not pairs:
      break
    # The nearest two of all belong together, then the next, as long as none is
    # asked for twice: then whom it goes to is to be looked for anew.
    taken: set[tuple[str, int]] = set()
    for (i, j), gap in sorted(pairs.items(), key=lambda pair: pair[1]):
      if taken & {('own', i), ('other', j)}:
        break
      found[i, j] = gap
      taken |= {('own', i), ('other', j)}
    left = [i for i in left if ('own', i) not in taken]
    right = [j for j in right if ('other', j) not in taken]
  return found


def _groups(
  linked: npt.NDArray[np.bool_], gaps: dict[tuple[int, int], float]
) -> tuple[Group, ...]:
  rows, columns = linked.shape
  edges = np.zeros((rows + columns,) * 2, bool)
  edges[:rows, rows:] = linked
  number, owners = csgraph.connected_components(
    sparse.csr_array(edges), directed=False
  )
  groups = []
  for group in range(number):
    members = np.flatnonzero(owners == group)
    earlier = tuple(int(i) for i in members if i < rows)
    later = tuple(int(j) - rows for j in members if j >= rows)
    gap = 0.0
    if len(earlier) == len(later) == 1:
      gap = gaps.get((earlier[0], later[0]), 0.0)
    groups.append(Group(earlier, later, gap))
  # Their indices are by falling volume.
  return tuple(sorted(groups, key=lambda g: (min(g[0] + g[1]), not g.earlier)))
