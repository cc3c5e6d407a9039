"""How far from its centre a warped patch looks up the image.

The warp of `medseg_jax.augment` turns and scales the grid of a patch about the
patch's centre. A patch that is read exactly as large as it is finds mirrored
image in its corners; one that is read this much larger finds the real one.
"""

import itertools
import math

import numpy as np

# Angles tried between 0 and the largest one in 3-D.
ANGLES = 60
# Voxels by which a coordinate may miss its exact value.
ROUNDING = 1e-6


def read_size(
    patch_size,
    *,
    rotation_degrees=0.0,
    smallest_scale=1.0,
    in_plane=False,
    displacement=0.0,
    turns=False,
):
  """Returns the size `(int, ...)` in which all that a warp looks up lies.

  Larger than patch_size by an even number along each axis.

  Args:
    patch_size: 2 or 3 whole numbers.
    rotation_degrees: largest angle to either side.
    smallest_scale: smallest zoom factor; above 1 it reads no less.
    in_plane: rotation and scale leave the first of three axes alone.
    displacement: along each axis, in voxels, on top of these.
    turns: equally long axes may be swapped.
  """
  half = (np.array(patch_size) - 1) / 2
  first = 1 if in_plane and len(half) == 3 else 0
  reach = half.copy()
  reach[first:] = _rotated(half[first:], math.radians(rotation_degrees))
  reach[first:] /= min(smallest_scale, 1)
  reach += displacement
  if turns:
    reach = [reach[half == size].max() for size in half]
  margin = np.ceil(np.maximum(reach - half - ROUNDING, 0)).astype(int)
  return tuple(int(n + 2 * m) for n, m in zip(patch_size, margin, strict=True))


def _rotated(half, limit):
  """Returns how far a box of half extents reaches along each axis, turned.

  Args:
    half: `[2]` or `[3]`, half extents.
    limit: largest angle in radians, for each of the plane rotations of
      `kernels.rotation_matrix`.
  """
  farthest = np.linalg.norm(half)
  if limit == 0:
    return half
  if len(half) == 2:
    # A corner comes closest to an axis at the angle between the two.
    angles = np.minimum(np.arctan2(half[::-1], half), limit)
    return half * np.cos(angles) + half[::-1] * np.sin(angles)
  # Mirrored axes flip the signs of two angles: two need not be negative.
  angles = np.linspace(-limit, limit, 2 * ANGLES + 1)
  planes = itertools.combinations(range(3), 2)
  tried = angles[ANGLES:], angles[ANGLES:], angles
  turns = map(_plane_rotations, tried, planes)
  matrices = np.einsum('aij,bjk,ckl->abcil', *turns, optimize=True)
  reach = (np.abs(matrices) @ half).max(axis=(0, 1, 2))
  # Between two angles of the grid it can reach this much farther: each of
  # three turns is at most half a step away, and the slope vanishes at a peak.
  missed = farthest * (1.5 * limit / ANGLES) ** 2 / 2
  return np.minimum(reach + missed, farthest)


def _plane_rotations(angles, plane):
  """Returns `[N, 3, 3]`, rotations by angles `[N]` in a plane of two axes."""
  a, b = plane
  matrices = np.tile(np.eye(3), (len(angles), 1, 1))
  matrices[:, a, a] = matrices[:, b, b] = np.cos(angles)
  matrices[:, a, b] = -np.sin(angles)
  matrices[:, b, a] = np.sin(angles)
  return matrices
