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
from scipy import ndimage, sparse
from skimage import measure

# Cuts stay off the ends of their edges, where several would meet.
_LEAST, _MOST = 0.02, 0.98
# Taubin's (1995, "A signal processing approach to fair surface design"): each
# step inward is followed by a larger one outward.
_INWARD, _OUTWARD, _ROUNDS = 0.67, -0.677, 100
# Voxels that smoothing may move a vertex along each axis, and never off the
# ends of its edge: thin parts and small cavities would collapse.
_FARTHEST = 0.45
_WEIGHTS = (0.0, 0.25, 0.5, 1.0)  # of smoothing; small components take less
_HALVINGS = 14
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


def surface_of_class(
  label: npt.NDArray[np.integer],
  index: int,
  affine: npt.NDArray[np.float64],
  *,
  probs: npt.NDArray[np.floating] | None = None,
) -> Mesh:
  """Returns the surface of one class of a label map; see `surface_of`.

  Args:
    label: `[i, j, k]` class indices.
    index: of the class, from 1.
    affine: see `surface_of`.
    probs: `[i, j, k, K]` of classes that exclude each other. The surface runs
      between voxels where the class is as probable as the best other one; None
      where only the label map is known.
  """
  box = ndimage.find_objects(label, max_label=index)[index - 1]
  if box is None:
    return surface_of(np.zeros((1, 1, 1), bool), affine)
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
  return surface_of(label[around] == index, shifted, margin=margin)


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
  # Of every level the same, as all of a component is cut at one share of its
  # edges, and what is linear may be done before that.
  begin, along = middle @ cuts.inner, middle @ (cuts.outer - cuts.inner)
  moved_begin, moved_along = np.zeros((2, *begin.shape))
  if margins is None:
    moved_begin, moved_along = _smoothing(cuts, begin, along)
  weight = np.zeros(number)
  edge = cuts.outer - cuts.inner
  edge[cuts.centres] = 0

  def place(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    share = level[cuts.components]
    if margins is not None:
      within, beyond = margins
      share = (within - (1 - 2 * share)) / (within - beyond)
    share = share.clip(_LEAST, _MOST)[:, None]
    if margins is not None:
      return middle @ (cuts.inner + share * (cuts.outer - cuts.inner))
    moved = (moved_begin + share * moved_along).clip(-_FARTHEST, _FARTHEST)
    points = begin + share * along + weight[cuts.components, None] * moved
    reached = ((points - cuts.inner) * edge).sum(1, keepdims=True)
    return points + (reached.clip(_LEAST, _MOST) - reached) * edge

  def volumes(level: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    of_face = _volumes(place(level), cuts.faces)
    component = cuts.components[cuts.faces[:, 0]]
    return np.bincount(component, of_face, number).astype(np.float64)

  if margins is None:
    for larger in _WEIGHTS[1:]:
      before, weight = weight, np.full(number, larger)
      least, most = (volumes(np.full(number, end)) for end in (0.0, 1.0))
      within_reach = (least <= cuts.sizes) & (cuts.sizes <= most)
      weight = np.where(within_reach, weight, before)
  low, high = np.zeros(number), np.ones(number)
  for _ in range(_HALVINGS):
    level = (low + high) / 2
    small = volumes(level) < cuts.sizes
    low, high = np.where(small, level, low), np.where(small, high, level)
  return place((low + high) / 2)


def _centring(cuts: _Cuts) -> sparse.csr_array:
  """Returns `[V, V]` that puts vertices within cubes between their neighbours.

  Neighbours on edges, that is, of which each has some.
  """
  number = len(cuts.inner)
  on_edge = np.ones(number)
  on_edge[cuts.centres] = 0
  around = sparse.diags_array(1 - on_edge) @ _adjacency(cuts)
  around = around @ sparse.diags_array(on_edge)
  count = np.maximum(around.sum(1), 1)
  around = sparse.diags_array(1 / count) @ around
  return (around + sparse.diags_array(on_edge)).tocsr()


def _adjacency(cuts: _Cuts) -> sparse.csr_array:
  """Returns `[V, V]`, 1 for vertices that share an edge of a face."""
  number = len(cuts.inner)
  begin = cuts.faces.ravel()
  end = np.roll(cuts.faces, -1, 1).ravel()
  pairs = (np.r_[begin, end], np.r_[end, begin])
  adjacency = sparse.coo_array(
    (np.ones(2 * len(begin)), pairs), shape=(number, number)
  ).tocsr()
  adjacency.data[:] = 1
  return adjacency


def _smoothing(
  cuts: _Cuts, *points: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
  """Returns how far smoothing moves each of several sets of points `[V, 3]`."""
  adjacency = _adjacency(cuts)
  means = (sparse.diags_array(1 / adjacency.sum(1)) @ adjacency).tocsr()
  before = np.concatenate(points, 1)
  after = before
  for _ in range(_ROUNDS):
    for step in (_INWARD, _OUTWARD):
      after = after + step * (means @ after - after)
  return np.split(after - before, len(points), 1)


def _volumes(
  points: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
  """Returns the signed volume between each face and the mean point, `[F]`."""
  if not len(faces):
    return np.zeros(0)
  a, b, c = (points - points.mean(0))[faces].transpose(1, 0, 2)
  return np.einsum('ij,ij->i', a, np.cross(b, c)) / 6


def _normals(
  vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
  """Returns the mean direction of the faces around each vertex, by area."""
  a, b, c = vertices[faces].transpose(1, 0, 2)
  of_face = np.cross(b - a, c - a)
  sums = np.zeros_like(vertices)
  for corner in range(3):
    for axis in range(3):
      sums[:, axis] += np.bincount(
        faces[:, corner], of_face[:, axis], len(vertices)
      )
  lengths = np.linalg.norm(sums, axis=1, keepdims=True)
  return sums / np.where(lengths > 0, lengths, 1)
