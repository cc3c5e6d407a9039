"""How much is read around a patch for its warp to find real image there.

The warp of `medseg_jax.augment` turns and scales the grid of a patch about the
patch's centre. A patch that is read exactly as large as it is finds mirrored
image in its corners; one that is read with a margin finds the real one. A
margin for the farthest corner of every warp would be mostly in vain: for a cube
turned by 30 degrees about all axes, at 0.7 times the size, it is 14 times the
patch. Like nnU-Net (Isensee et al. 2021, arXiv:1904.08128) this one is for a
rotation in one plane at a time and for scales down to `SMALLEST_SCALE`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Below this scale the margin grows no further.
SMALLEST_SCALE = 0.85
# Voxels by which a coordinate may miss its exact value.
ROUNDING = 1e-6


def read_size(
  patch_size: Sequence[int],
  *,
  rotation_degrees: float = 0.0,
  smallest_scale: float = 1.0,
  in_plane: bool = False,
  displacement: float = 0.0,
  turns: bool = False,
) -> tuple[int, ...]:
  """Returns the size `(int, ...)` to read, the patch in its middle.

  Larger than patch_size by an even number along each axis. It holds all that a
  rotation in any one plane looks up at a scale of at least `SMALLEST_SCALE`:
  in 2-D and in_plane every rotation is of that kind. What rotations in several
  planes or a smaller scale reach beyond, a `lookup` mirrors about the edge of
  what was read, image and label alike: no corner is ever empty.

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
  reach[first:] /= max(min(smallest_scale, 1), SMALLEST_SCALE)
  reach += displacement
  if turns:
    reach = np.array([reach[half == size].max() for size in half])
  margin = np.ceil(np.maximum(reach - half - ROUNDING, 0)).astype(int)
  return tuple(int(n + 2 * m) for n, m in zip(patch_size, margin, strict=True))


def _rotated(
  half: npt.NDArray[np.float64], limit: float
) -> npt.NDArray[np.float64]:
  """Returns how far a box reaches along each axis, turned in any one plane.

  Args:
    half: `[R]`, half extents.
    limit: largest angle to either side, in radians.
  """
  reach = half.copy()
  for a, b in itertools.permutations(range(len(half)), 2):
    # A corner comes closest to axis a at the angle between the two.
    angle = min(math.atan2(half[b], half[a]), limit)
    turned = half[a] * math.cos(angle) + half[b] * math.sin(angle)
    reach[a] = max(reach[a], turned)
  return reach
