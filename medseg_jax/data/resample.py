"""Images, labels and logits from one grid to another.

Voxel centres are aligned at half voxels and the corners of the two grids
coincide: voxel i of the new grid lies at (i + 0.5) * old / new - 0.5 of the
old. Beyond its edge an image goes on with the value at the edge.

All filters are separable: one `[new, old]` matrix an axis, whose rows are 0 but
for a few neighbours. A matrix product of its bands is several times as fast as
filtering and gathering each line, and needs no copy in double precision.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage, sparse

# Spacings that differ by more than this make a grid anisotropic: interpolating
# along its coarse axis would mix slices that have little to do with each other.
ANISOTROPY = 3.0

# Values worked on at one time: of an image, of logits, of labels.
_CHUNK = 2**22
_SLAB = 2**24
_MIXED = 2**15

# Rows of a banded matrix that are multiplied together.
_ROWS = 64

# The cubic spline's memory fades by 0.27 a voxel, to 1e-7 in this many.
_MARGIN = 12


def output_shape(
  shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]
) -> tuple[int, ...]:
  """Returns the sizes of a grid of `target` spacing that covers the same space.

  Args:
    shape: sizes in voxels.
    spacing: mm, of each axis.
    target: mm, of each axis, or of the last ones; the axes before keep theirs.
  """
  kept = len(shape) - len(target)
  sizes = np.asarray(shape[kept:])
  sizes = np.round(np.divide(spacing[kept:], target) * sizes).astype(int)
  return (*shape[:kept], *(max(1, int(size)) for size in sizes))


def coarse_axis(
  spacing: Sequence[float], target: Sequence[float]
) -> int | None:
  """Returns the axis to resample by the nearest voxel, or None.

  It is the coarsest axis of the case's own spacing where that is anisotropic,
  else of the target's (Isensee 2021). Where two axes are coarsest there is
  none, and none in 2-D.

  Args:
    spacing: mm, of each axis.
    target: mm, of each axis, or of the last ones; the axes before keep theirs.
  """
  spacing = np.asarray(spacing, float)
  if len(spacing) < 3:
    return None
  target = np.append(spacing[: len(spacing) - len(target)], target)
  for each in (spacing, target):
    if each.max() / each.min() > ANISOTROPY:
      coarsest = np.flatnonzero(np.isclose(each, each.max(), rtol=1e-3))
      return int(coarsest[0]) if len(coarsest) == 1 else None
  return None


def resample_image(
  image: np.ndarray,
  shape: Sequence[int],
  *,
  nearest_axis: int | None = None,
  overwrite: bool = False,
) -> np.ndarray:
  """Returns `image` `[*S, C]` on a grid of `shape` by cubic splines, float32.

  Nothing is smoothed before an axis shrinks. An image that has `shape` already
  is returned as it is.

  Args:
    image: `[*S, C]`.
    shape: new sizes of the spatial axes.
    nearest_axis: this axis takes the nearest voxel instead.
    overwrite: whether a float32 image may be worked on in place, which spares
      the memory of a copy; its values are then undefined.
  """
  changes = {}
  sizes = zip(image.shape[:-1], shape, strict=True)
  for axis, (old, new) in enumerate(sizes):
    if axis == nearest_axis:
      changes[axis] = functools.partial(
        np.take, indices=_nearest(old, new), axis=axis
      )
    elif old != new:
      changes[axis] = functools.partial(
        _multiply, weights=_cubic_weights(old, new), axis=axis
      )
  return _change_axes(image, shape, changes, overwrite)


def resize_linear(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns `image` `[*S, C]` on a grid of `shape`, linearly, float32.

  Where an axis shrinks, the triangle widens with the factor, which keeps fine
  texture from aliasing (as Pillow and jax.image do).
  """
  changes = {
    axis: functools.partial(
      _multiply, weights=_triangle_weights(image.shape[axis], size), axis=axis
    )
    for axis, size in enumerate(shape)
    if image.shape[axis] != size
  }
  image = np.asarray(image, np.float32)
  return np.ascontiguousarray(_change_axes(image, shape, changes, False))


def resize_nearest(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns `label` `[*S]` on a grid of `shape`, by the nearest pixel."""
  for axis, size in enumerate(shape):
    if label.shape[axis] != size:
      label = np.take(label, _nearest(label.shape[axis], size), axis)
  return np.ascontiguousarray(label)


def resample_label(
  label: np.ndarray, shape: Sequence[int], *, nearest_axis: int | None = None
) -> np.ndarray:
  """Returns `label` `[*S]` of integers on a grid of `shape`.

  Each voxel takes the value with the largest weight when the one-hot label is
  interpolated linearly; of several, the lowest. Every value counts as a class,
  the -1 of ignored voxels too. The one-hot label is never made: a voxel has
  2**R neighbours at most, however many classes there are, and where they agree
  there is nothing to weigh.

  Args:
    label: `[*S]`.
    shape: new sizes. A label that has them already is returned as it is.
    nearest_axis: this axis takes the nearest voxel instead.
  """
  if label.shape == tuple(shape):
    return label
  lines = []
  for axis, (old, new) in enumerate(zip(label.shape, shape, strict=True)):
    if axis == nearest_axis:
      index = _nearest(old, new)
      lines.append((index, index, np.zeros(new)))
    else:
      lines.append(_linear(old, new))
  result = np.empty(shape, label.dtype)
  step = max(1, _CHUNK // max(1, math.prod(shape[1:])))
  for start in range(0, shape[0], step):
    rows = slice(start, start + step)
    part = [tuple(line[rows] for line in lines[0]), *lines[1:]]
    result[rows] = _vote(label, part)
  return result


def resample_linear_slabs(
  slabs: Iterable[np.ndarray], in_shape: Sequence[int], out_shape: Sequence[int]
) -> Iterator[np.ndarray]:
  """Yields an array on another grid, linearly, slab by slab, float32.

  Nothing is smoothed before an axis shrinks. Only the planes between which the
  current one lies are held.

  Args:
    slabs: `[d, *in_shape[1:], K]`, one after the other along the first axis;
      their d add up to `in_shape[0]`.
    in_shape: `[*S]` sizes of the whole.
    out_shape: `[*S']` sizes of the result, of the same rank.

  Yields:
    `[d', *out_shape[1:], K]` of about 2**24 values, at least one plane; their
    d' add up to `out_shape[0]`.

  Raises:
    ValueError: the slabs do not add up to `in_shape`.
  """
  planes = _planes(slabs, tuple(in_shape))
  matrix = _plane_matrix(in_shape[1:], out_shape[1:])
  low, high, share = _linear(in_shape[0], out_shape[0])
  share = share.astype(np.float32)  # Else the products would be float64.
  held = {}
  taken = 0
  slab = None
  for i, (a, b, t) in enumerate(zip(low, high, share, strict=True)):
    while taken <= b:
      plane = next(planes)
      if taken >= a:
        held[taken] = plane
      taken += 1
    for old in [index for index in held if index < a]:
      del held[old]
    plane = held[a] if t == 0 else (1 - t) * held[a] + t * held[b]
    channels = plane.shape[-1]
    if slab is None:
      size = max(1, math.prod(out_shape[1:]) * channels)
      count = min(max(1, _SLAB // size), out_shape[0] - i)
      slab = np.empty((count, *out_shape[1:], channels), np.float32)
      filled = 0
    if matrix is not None:
      plane = matrix @ plane.reshape(-1, channels)
    slab[filled] = plane.reshape(slab.shape[1:])
    filled += 1
    if filled == len(slab):
      yield slab
      slab = None
  for _ in planes:  # Those after the last one needed, so that they are counted.
    pass


def _planes(slabs, in_shape) -> Iterator[np.ndarray]:
  """Yields the `[*S[1:], K]` float32 planes of consecutive slabs."""
  count = 0
  for slab in slabs:
    if slab.shape[1:-1] != in_shape[1:]:
      raise ValueError(f'a slab of shape {slab.shape} of a whole of {in_shape}')
    count += len(slab)
    if count > in_shape[0]:
      break
    for plane in slab:
      yield np.asarray(plane, np.float32)
  if count != in_shape[0]:
    raise ValueError(f'slabs of {count} planes of a whole of {in_shape}')


def _plane_matrix(old: Sequence[int], new: Sequence[int]):
  """Returns the sparse matrix of linear interpolation of a flattened plane.

  One product with it, 4 terms a value in 3-D, is faster than interpolating
  along each axis and has no intermediate results. None where the sizes agree.
  """
  if tuple(old) == tuple(new):
    return None
  matrix = sparse.identity(1, np.float32, 'csr')
  for a, b in zip(old, new, strict=True):
    low, high, share = _linear(a, b)
    row = np.arange(b)
    line = sparse.coo_matrix(
      (
        np.concatenate([1 - share, share]).astype(np.float32),
        (np.concatenate([row, row]), np.concatenate([low, high])),
      ),
      (b, a),
    )
    line = line.tocsr()
    line.eliminate_zeros()
    matrix = sparse.kron(matrix, line, 'csr')
  return matrix


def _vote(label: np.ndarray, lines) -> np.ndarray:
  """Returns the winners where `lines` (low, high, share; one an axis) meet."""
  least = most = label
  for axis, (low, high, share) in enumerate(lines):
    if share.any():
      least = np.minimum(least.take(low, axis), least.take(high, axis))
      most = np.maximum(most.take(low, axis), most.take(high, axis))
    else:
      least, most = least.take(low, axis), most.take(low, axis)
  result = least
  mixed = np.nonzero(least != most)
  for start in range(0, len(mixed[0]), _MIXED):
    place = tuple(index[start : start + _MIXED] for index in mixed)
    result[place] = _winner(label, lines, place)
  return result


def _winner(label: np.ndarray, lines, place) -> np.ndarray:
  """Returns the value of the largest weight at each of the places."""
  values, weights = [], []
  sides = [(0, 1) if share.any() else (0,) for _, _, share in lines]
  for corner in itertools.product(*sides):
    index = []
    weight = np.ones(len(place[0]))
    for upper, (low, high, share), i in zip(corner, lines, place, strict=True):
      index.append((high if upper else low)[i])
      weight = weight * (share[i] if upper else 1 - share[i])
    values.append(label[tuple(index)])
    weights.append(weight)
  values = np.stack(values)
  total = np.stack(
    [np.sum(np.where(values == v, weights, 0.0), 0) for v in values]
  )
  # Weights that are equal on paper differ in their last digits.
  winners = np.where(total >= total.max(0) - 1e-9, values, values.max())
  return winners.min(0)


def _change_axes(
  image: np.ndarray,
  shape: Sequence[int],
  changes: dict[int, Callable[[np.ndarray], np.ndarray]],
  overwrite: bool,
) -> np.ndarray:
  """Returns the image with each axis changed, those that shrink most first."""
  axes = [a for a in changes if image.shape[a] != shape[a]]
  for axis in sorted(axes, key=lambda a: shape[a] / image.shape[a]):
    image = _change_axis(image, axis, shape[axis], changes[axis], overwrite)
    overwrite = True
  if axes and image.base is not None:
    image = image.copy()  # Lets go of the larger buffer that it lies in.
  return image


def _change_axis(image, axis, size, change, overwrite) -> np.ndarray:
  """Returns the image with `change` done along one axis, in chunks.

  A chunk is a range of another axis, so its result may lie where it came from.
  """
  if overwrite and image.dtype == np.float32 and size <= image.shape[axis]:
    out = image[(slice(None),) * axis + (slice(size),)]
  else:
    new = list(image.shape)
    new[axis] = size
    out = np.empty(new, np.float32)
  other = 1 if axis == 0 else 0
  length = image.shape[other]
  step = max(1, _CHUNK * length // max(1, image.size))
  for start in range(0, length, step):
    part = (slice(None),) * other + (slice(start, start + step),)
    out[part] = change(np.ascontiguousarray(image[part], np.float32))
  return out


def _multiply(image, weights, axis) -> np.ndarray:
  """Returns the banded matrix `weights` `[new, old]` times one axis."""
  new, old = weights.shape
  shape = image.shape
  image = image.reshape(math.prod(shape[:axis]), old, -1)
  # The last axis has few channels behind it; its lines become rows.
  rows = axis == len(shape) - 2
  if rows:
    image = np.ascontiguousarray(image.swapaxes(1, 2))
    kept = image.shape[:2]
    image = image.reshape(-1, old)
    out = np.empty((len(image), new), np.float32)
  else:
    out = np.empty((image.shape[0], new, image.shape[2]), np.float32)
  for start in range(0, new, _ROWS):
    band = weights[start : start + _ROWS]
    used = np.flatnonzero(band.any(0))
    columns = slice(used[0], used[-1] + 1)
    band = np.ascontiguousarray(band[:, columns])
    stop = start + len(band)
    if rows:
      out[:, start:stop] = image[:, columns] @ band.T
    else:
      np.matmul(band, image[:, columns], out=out[:, start:stop])
  if rows:
    out = out.reshape(*kept, new).swapaxes(1, 2)
  return out.reshape(*shape[:axis], new, *shape[axis + 1 :])


def _nearest(old: int, new: int) -> np.ndarray:
  """Returns the old voxel in which each new voxel's centre lies."""
  return (2 * np.arange(new) + 1) * old // (2 * new)


def _linear(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the voxels before and after each new one, the second's share."""
  centres = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
  low = centres.astype(int)
  return low, np.minimum(low + 1, old - 1), centres - low


def _triangle_weights(old: int, new: int) -> np.ndarray:
  """Returns the `[new, old]` matrix of the antialiased linear filter."""
  scale = old / new
  width = max(scale, 1.0)
  centres = (np.arange(new) + 0.5) * scale - 0.5
  distance = np.abs(np.arange(old)[None] - centres[:, None]) / width
  weights = np.maximum(1.0 - distance, 0.0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cubic_weights(old: int, new: int) -> np.ndarray:
  """Returns the `[new, old]` matrix of cubic spline interpolation."""
  edge = np.pad(np.eye(old), ((_MARGIN, _MARGIN), (0, 0)), mode='edge')
  coefficients = ndimage.spline_filter1d(edge, 3, 0, mode='nearest')
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  knots = np.arange(-_MARGIN, old + _MARGIN)
  x = np.abs(knots[None] - centres[:, None])
  basis = np.where(
    x < 1, 2 / 3 - x**2 + x**3 / 2, np.maximum(2 - x, 0.0) ** 3 / 6
  )
  weights = basis @ coefficients
  weights[np.abs(weights) < 1e-7] = 0.0
  return weights.astype(np.float32)
