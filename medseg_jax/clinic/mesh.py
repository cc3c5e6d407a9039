"""Closed surfaces around the voxels of a mask, in a patient's coordinates.

Marching cubes with Lewiner's tables (2003, "Efficient implementation of
marching cubes' cases with topological guarantees") tell which edges between a
voxel inside and one outside the surface cuts, and how the cuts hang together.
Where it cuts them follows from an iso-level of each component's own, such that
the component's surface encloses the volume of its voxels.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import ndimage, sparse
from skimage import measure

# Cuts stay off the ends of their edges, where several would meet.
_LEAST, _MOST = 0.02, 0.98
# Taubin's (1995, "A signal processing approach to fair surface design"): each
# step inward is followed by a larger one outward.
_INWARD, _OUTWARD, _ROUNDS = 0.67, -0.677, 100
_DEGREE = 40  # of a polynomial that is theirs to 1e-7
# Voxels that smoothing may move a vertex along each axis, and never off the
# ends of its edge: thin parts and small cavities would collapse.
_FARTHEST = 0.45
_WEIGHTS = (1.0, 0.5, 0.25, 0.0)  # of smoothing; small components take less
# Share of its volume that a component may be off, and steps to get there.
_CLOSE, _STEPS = 1e-4, 20
# Below one half, so that no four corners are a tie: voxels that share an edge
# hang together.
_LEVEL = 0.4


class Mesh(NamedTuple):
  """A closed surface.

  Attributes:
    vertices: float64 `[V, 3]`, mm to the patient's left, posterior, superior.
    faces: int64 `[F, 3]` vertices, counter-clockwise from outside.
    normals: float64 `[V, 3]` of length 1, outward.
  """

  vertices: npt.NDArray[np.float64]
  faces: npt.NDArray[np.int64]
  normals: npt.NDArray[np.float64]


def surface_of(
  mask: npt.NDArray[np.bool_],
  affine: npt.NDArray[np.float64],
  *,
  margin: npt.NDArray[np.floating] | None = None,
) -> Mesh:
  """Returns the surface of a mask, without vertices where it is empty.

  Each component, of voxels that share a face, an edge or a corner, encloses the
  volume of its voxels. It is closed where the mask touches the border, too. No
  vertex is farther than a voxel's diagonal from the mask's voxels.

  Args:
    mask: `[i, j, k]`.
    affine: `[4, 4]`, index (i, j, k) to mm right, anterior, superior, as NIfTI
      has it; mirrored ones as well.
    margin: `[i, j, k]`, above 0 inside and below outside, such as a probability
      less that of the best other class: the surface is cut between voxels where
      it is linear between them. None where only the mask is known, whose steps
      are smoothed. Voxels whose sign contradicts the mask lie on its boundary.

  Raises:
    ValueError: shapes that differ, or an affine that is not invertible.
  """
  mask = np.asarray(mask, bool)
  affine = np.asarray(affine, np.float64)
  if mask.ndim != 3 or (margin is not None and margin.shape != mask.shape):
    other = '' if margin is None else f', margin {margin.shape}'
    raise ValueError(f'mask must be [i, j, k], got {mask.shape}{other}')
  if affine.shape != (4, 4) or not abs(np.linalg.det(affine[:3, :3])) > 0:
    raise ValueError(f'affine must be [4, 4] and invertible, got {affine}')
  if not mask.any():
    none = np.zeros((0, 3))
    return Mesh(none, np.zeros((0, 3), np.int64), none)
  # A voxel around it, in which the surface closes.
  [box] = ndimage.find_objects(mask.astype(np.uint8))
  corner = np.array([side.start - 1 for side in box])
  inside = np.pad(mask[box], 1)
  cuts = _cuts(inside)
  cut_at = None if margin is None else _crossings(cuts, inside, margin, corner)
  points = _place(cuts, cut_at) + corner
  to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
  faces = cuts.faces
  if np.linalg.det(to_lps[:3, :3]) < 0:
    faces = faces[:, ::-1]
  vertices = points @ to_lps[:3, :3].T + to_lps[:3, 3]
  return Mesh(vertices, faces, _normals(vertices, faces))


def surfaces_of_classes(
  label: npt.NDArray[np.integer],
  number: int,
  affine: npt.NDArray[np.float64],
  *,
  probs: npt.NDArray[np.floating] | None = None,
) -> list[Mesh]:
  """Returns the surfaces of classes 1 to `number`; see `surface_of`.

  Args:
    label: `[i, j, k]` class indices.
    number: of the classes, the background left out.
    affine: see `surface_of`.
    probs: `[i, j, k, K]` of classes that exclude each other. The surface runs
      between voxels where the class is as probable as the best other one; None
      where only the label map is known.
  """
  found = []
  boxes = ndimage.find_objects(label, max_label=number)
  for index, box in enumerate(boxes, start=1):
    if box is None:
      found.append(surface_of(np.zeros((1, 1, 1), bool), affine))
      continue
    # What is beyond the next voxel says nothing of the surface.
    around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
    margin = None
    if probs is not None:
      others = probs[around].astype(np.float32)
      own = others[..., index].copy()
      others[..., index] = -np.inf
      margin = own - others.max(-1)
    shifted = np.array(affine, np.float64)
    shifted[:3, 3] += shifted[:3, :3] @ [side.start for side in around]
    mask = label[around] == index
    found.append(surface_of(mask, shifted, margin=margin))
  return found


def volume_of(mesh: Mesh) -> float:
  """Returns the volume that a surface encloses, in mm^3."""
  return float(_volumes(mesh.vertices, mesh.faces).sum())


class _Cuts(NamedTuple):
  """Where a surface cuts edges between voxels, and how the cuts hang together.

  Attributes:
    inner: int `[V, 3]`, the voxel inside.
    outer: likewise the one outside.
    faces: int `[F, 3]`, outward in a right-handed grid.
    centres: int `[n]`, vertices within a cube and on none of its edges, whose
      `inner` and `outer` mean nothing.
    components: int `[V]` of each vertex, from 0.
    sizes: int `[components]`, voxels.
  """

  inner: npt.NDArray[np.int64]
  outer: npt.NDArray[np.int64]
  faces: npt.NDArray[np.int64]
  centres: npt.NDArray[np.int64]
  components: npt.NDArray[np.int64]
  sizes: npt.NDArray[np.int64]


def _cuts(inside: npt.NDArray[np.bool_]) -> _Cuts:
  """Returns the cuts of a mask `[i, j, k]` whose border is empty."""
  # Edges have to be told from numbers, so these have to be exact.
  found, faces, *_ = measure.marching_cubes(
    inside.astype(np.float32), _LEVEL, allow_degenerate=True
  )
  low = np.floor(found + 1e-3).astype(np.int64)
  between = found - low > 1e-3
  along = np.argmax(between, 1)
  high = low + np.eye(3, dtype=np.int64)[along]
  low_is_inside = inside[tuple(low.T)][:, None]
  centres = np.flatnonzero(between.sum(1) != 1)
  faces = faces.astype(np.int64)
  labels, _ = ndimage.label(inside, np.ones((3, 3, 3)))
  inner = np.where(low_is_inside, low, high)
  components = labels[tuple(inner.T)].astype(np.int64) - 1
  if len(centres):  # of the component of any neighbour on an edge
    at_centre = np.isin(faces, centres)
    face, corner = np.nonzero(at_centre)
    for shift in (1, 2):
      other = (corner + shift) % 3
      known = ~at_centre[face, other]
      components[faces[face[known], corner[known]]] = components[
        faces[face[known], other[known]]
      ]
  if _volumes(found.astype(np.float64), faces).sum() < 0:
    faces = faces[:, ::-1]
  return _Cuts(
    inner,
    np.where(low_is_inside, high, low),
    faces,
    centres,
    components,
    np.bincount(labels.ravel())[1:],
  )


def _crossings(
  cuts: _Cuts,
  inside: npt.NDArray[np.bool_],
  margin: npt.NDArray[np.floating],
  corner: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
  """Returns the margin inside (0 or more) and outside (0 or less) each cut."""
  last = np.array(margin.shape) - 1

  def at(voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return margin[tuple((voxels + corner).clip(0, last).T)].astype(np.float64)

  within = np.maximum(np.nan_to_num(at(cuts.inner)), 1e-3)
  beyond = np.minimum(np.nan_to_num(at(cuts.outer)), -1e-3)
  # Outside the image nothing is known: as sure as inside.
  there = cuts.outer + corner
  unknown = ((there < 0) | (there > last)).any(1)
  return within, np.where(unknown, -within, beyond)


def _place(
  cuts: _Cuts,
  margins: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
) -> npt.NDArray[np.float64]:
  """Returns the vertices, in voxels, that enclose each component's volume."""
  number = len(cuts.sizes)
  middle = _centring(cuts)
  inner = cuts.inner.astype(np.float64)
  edge = cuts.outer - inner
  # Of every level the same, as all of a component is cut at one share of its
  # edges, and what is linear may be done before that.
  begin, along = (
    _centred(points.copy(), cuts, middle) for points in (inner, edge)
  )
  edge[cuts.centres] = 0
  weight = np.full(number, _WEIGHTS[0])
  if margins is None:
    moved_begin, moved_along = _smoothing(cuts, begin, along)

  def place(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    share = level[cuts.components]
    if margins is not None:
      within, beyond = margins
      share = (within - (1 - 2 * share)) / (within - beyond)
    share = share.clip(_LEAST, _MOST)[:, None]
    if margins is not None:
      return _centred(inner + share * edge, cuts, middle)
    moved = (moved_begin + share * moved_along).clip(-_FARTHEST, _FARTHEST)
    points = begin + share * along + weight[cuts.components, None] * moved
    reached = ((points - inner) * edge).sum(1, keepdims=True)
    return points + (reached.clip(_LEAST, _MOST) - reached) * edge

  component = cuts.components[cuts.faces[:, 0]]

  def excess(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the volume that each component encloses beyond its voxels'."""
    of_face = _volumes(place(level), cuts.faces)
    enclosed = np.bincount(component, of_face, number).astype(np.float64)
    return enclosed - cuts.sizes

  low, high = np.zeros(number), np.ones(number)
  least, most = excess(low), excess(high)
  for smaller in _WEIGHTS[1:] if margins is None else ():
    beyond_reach = (least > 0) | (most < 0)
    if not beyond_reach.any():
      break
    weight = np.where(beyond_reach, smaller, weight)
    least, most = excess(low), excess(high)
  # False position; where one end stays it counts for half ("Illinois").
  level, before = (low + high) / 2, np.zeros(number)
  for _ in range(_STEPS):
    rise = most - least
    line = (low * most - high * least) / np.where(rise > 0, rise, 1)
    level = np.where(rise > 0, line.clip(low, high), low)
    found = excess(level)
    near = (np.abs(found) <= _CLOSE * cuts.sizes) | (high - low <= _CLOSE)
    if near.all():
      break
    side = np.sign(found)
    again = side == before
    small, before = found < 0, side
    most = np.where(small, np.where(again, most / 2, most), found)
    least = np.where(small, found, np.where(again, least / 2, least))
    low, high = np.where(small, level, low), np.where(small, high, level)
  return place(level)


def _centring(cuts: _Cuts) -> sparse.csr_array:
  """Returns `[n, V]`, the mean of the neighbours on edges of each centre."""
  number = len(cuts.inner)
  row = np.full(number, -1)
  row[cuts.centres] = np.arange(len(cuts.centres))
  begin, end = _edges(cuts)
  wanted = (row[begin] >= 0) & (row[end] < 0)
  return _means(row[begin[wanted]], end[wanted], (len(cuts.centres), number))


def _centred(
  points: npt.NDArray[np.float64], cuts: _Cuts, middle: sparse.csr_array
) -> npt.NDArray[np.float64]:
  """Puts vertices within cubes between their neighbours, and returns all."""
  points[cuts.centres] = middle @ points
  return points


def _edges(cuts: _Cuts) -> npt.NDArray[np.int64]:
  """Returns `[2, 3 F]`, the vertices of each edge; its other face turns it."""
  return np.stack([cuts.faces.ravel(), np.roll(cuts.faces, -1, 1).ravel()])


def _means(
  rows: npt.NDArray[np.int64],
  columns: npt.NDArray[np.int64],
  shape: tuple[int, int],
) -> sparse.csr_array:
  """Returns a matrix whose rows are the means of the columns they name."""
  found = sparse.coo_array(
    (np.ones(len(rows)), (rows, columns)), shape=shape
  ).tocsr()
  found.data[:] = 1  # what is named twice counts once
  found.data /= np.repeat(found.sum(1), np.diff(found.indptr))
  return found


def _smoothing(
  cuts: _Cuts, *points: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
  """Returns how far smoothing moves each of several sets of points `[V, 3]`.

  All of Taubin's rounds are one polynomial of the matrix, of a degree of twice
  their number, and nearly one of a low degree: a sum of Chebyshev's.
  """
  number = len(cuts.inner)
  begin, end = _edges(cuts)
  means = _means(begin, end, (number, number))
  # Of `means`, whose eigenvalues are -1 .. 1.
  x = chebyshev.chebpts1(_DEGREE + 1)
  one_round = (1 - _INWARD * (1 - x)) * (1 - _OUTWARD * (1 - x))
  weights = chebyshev.chebfit(x, one_round**_ROUNDS, _DEGREE)
  before = np.concatenate(points, 1)
  last, now = before, means @ before
  after = weights[0] * last + weights[1] * now
  for weight in weights[2:]:
    last, now = now, 2 * (means @ now) - last
    after += weight * now
  return np.split(after - before, len(points), 1)


def _volumes(
  points: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
  """Returns the signed volume between each face and the mean point, `[F]`."""
  if not len(faces):
    return np.zeros(0)
  a, b, c = _corners(points - points.mean(0), faces)
  x, y, z = _cross(b, c)
  return (a[0] * x + a[1] * y + a[2] * z) / 6


def _corners(
  points: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.float64], ...]]:
  """Returns x, y and z, each `[F]`, of the first, second and third corners."""
  axes = [np.ascontiguousarray(axis) for axis in points.T]
  corners = [np.ascontiguousarray(corner) for corner in faces.T]
  return [tuple(axis[corner] for axis in axes) for corner in corners]


def _cross(
  a: tuple[npt.NDArray[np.float64], ...], b: tuple[npt.NDArray[np.float64], ...]
) -> tuple[npt.NDArray[np.float64], ...]:
  """Returns the cross products of vectors by their parts, much as `np.cross`.

  That takes three times as long.
  """
  return (
    a[1] * b[2] - a[2] * b[1],
    a[2] * b[0] - a[0] * b[2],
    a[0] * b[1] - a[1] * b[0],
  )


def _normals(
  vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
  """Returns the mean direction of the faces around each vertex, by area."""
  a, b, c = _corners(vertices, faces)
  one = tuple(y - x for x, y in zip(a, b, strict=True))
  other = tuple(y - x for x, y in zip(a, c, strict=True))
  sums = np.zeros_like(vertices)
  for axis, of_face in enumerate(_cross(one, other)):
    for corner in faces.T:
      sums[:, axis] += np.bincount(corner, of_face, len(vertices))
  lengths = np.linalg.norm(sums, axis=1, keepdims=True)
  return sums / np.where(lengths > 0, lengths, 1)
