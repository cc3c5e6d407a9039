"""An image, its mask and its surfaces, small enough to lie in a web page."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_jax.clinic import mesh
from medseg_jax.report.html import mosaic

_MOST = 256  # voxels along an axis, of what is looked at slice by slice
_MOST_OF_SURFACE = 80  # likewise, of each class, for its surface
_QUALITY = 85  # of JPEG
_AROUND = 0.25  # of a mask's box is looked at to choose the window
_WINDOW = (0.5, 99.5)  # percentiles, shown from black to white


def data_of(
  label: npt.NDArray[np.integer],
  image: npt.NDArray,
  affine: npt.NDArray[np.float64],
  *,
  classes: Sequence[str],
  colours: Sequence[tuple[int, int, int]],
  members: Sequence[Sequence[int]],
) -> dict[str, Any]:
  """Returns what the page shows, as JSON has it.

  Args:
    label: `[z, y, x]` class indices.
    image: `[z, y, x, C]`.
    affine: `[4, 4]`, index (z, y, x) to mm right, anterior, superior.
    classes: but the background.
    colours: of these, red, green, blue, 0..255.
    members: the classes, from 1, of each structure that can be hidden.
  """
  steps = [math.ceil(size / _MOST) for size in label.shape]
  thin = image[tuple(slice(None, None, step) for step in steps)]
  small = mosaic.largest_in_blocks(label, steps).astype(np.uint8)
  pictures = []
  for channel in range(image.shape[-1]):
    grey, window = _grey(thin[..., channel], small > 0)
    pictures.append({'src': _picture(grey, 'JPEG'), 'window': window})
  sizes = np.linalg.norm(affine[:3, :3], axis=0)
  return {
    'shape': list(small.shape),
    'full': list(label.shape),
    'steps': steps,
    'start': [_fullest(small, axis) for axis in range(3)],
    'to_voxel': _to_voxel(affine, steps).tolist(),
    'members': [[index - 1 for index in of] for of in members],
    'spacing': [
      float(size * step) for size, step in zip(sizes, steps, strict=True)
    ],
    'columns': mosaic.columns(len(small)),
    'images': pictures,
    'mask': _picture(small, 'PNG'),
    'classes': [
      {'name': name, 'colour': list(colour)}
      for name, colour in zip(classes, colours, strict=True)
    ],
    **_surfaces(label, affine, len(classes)),
  }


def _fullest(label: npt.NDArray[np.integer], axis: int) -> int:
  """Returns the slice with the most of the mask, the middle one of none."""
  others = tuple(other for other in range(3) if other != axis)
  counts = np.count_nonzero(label, axis=others)
  return int(counts.argmax()) if counts.any() else len(counts) // 2


def _to_voxel(
  affine: npt.NDArray[np.float64], steps: Sequence[int]
) -> npt.NDArray[np.float64]:
  """Returns `[3, 4]`, mm left, posterior, superior to index in the blocks."""
  blocks = np.eye(4)
  blocks[:3, :3] = np.diag(steps)
  blocks[:3, 3] = (np.array(steps) - 1) / 2
  to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ blocks
  return np.asarray(np.linalg.inv(to_lps)[:3], np.float64)


def _grey(
  values: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], list[float]]:
  """Returns them as 0..255, and the values that these two stand for.

  Args:
    values: `[z, y, x]`.
    mask: see `window_of`.
  """
  values = values.astype(np.float32)
  low, high = window_of(values, mask)
  scaled = (values - low) * (255 / max(high - low, 1e-6))
  return np.rint(scaled).clip(0, 255).astype(np.uint8), [low, high]


def window_of(
  values: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> tuple[float, float]:
  """Returns the values that are shown black and white.

  Args:
    values: `[z, y, x]`.
    mask: what lies in and around it has the contrast.
  """
  part = values
  if mask.any():
    [box] = ndimage.find_objects(mask.astype(np.uint8))
    more = [math.ceil(_AROUND * (side.stop - side.start)) for side in box]
    part = values[
      tuple(
        slice(max(side.start - by, 0), side.stop + by)
        for side, by in zip(box, more, strict=True)
      )
    ]
  low, high = map(float, np.percentile(part, _WINDOW))
  if high <= low:
    low, high = float(values.min()), float(values.max())
  return low, high


def _picture(volume: npt.NDArray[np.uint8], form: str) -> str:
  """Returns all slices `[z, y, x]` as the address of an image."""
  options = dict(quality=_QUALITY, optimize=True)
  return mosaic.address(mosaic.encode(volume, form, **options))


def _surfaces(
  label: npt.NDArray[np.integer],
  affine: npt.NDArray[np.float64],
  number: int,
) -> dict[str, Any]:
  """Returns the surface of each class, of blocks of voxels where it is large.

  Vertices are 16 bits of `centre` +- `reach` mm.
  """
  found = []
  boxes = ndimage.find_objects(label, max_label=number)
  for i, box in enumerate(boxes):
    if box is None:
      found.append(mesh.surface_of(np.zeros((1, 1, 1), bool), affine))
      continue
    mask = label[box] == i + 1
    steps = [math.ceil(size / _MOST_OF_SURFACE) for size in mask.shape]
    small = _mostly(mask, steps)
    own = np.eye(4)
    own[:3, :3] = np.diag(steps)
    own[:3, 3] = [
      side.start + (step - 1) / 2 for side, step in zip(box, steps, strict=True)
    ]
    found.append(mesh.surface_of(small, affine @ own))
  vertices = np.concatenate([one.vertices for one in found])
  if not len(vertices):
    return {'centre': [0, 0, 0], 'reach': 1, 'surfaces': []}
  centre = (vertices.min(0) + vertices.max(0)) / 2
  reach = float(np.abs(vertices - centre).max())
  return {
    'centre': centre.tolist(),
    'reach': reach,
    'surfaces': [
      {
        'vertices': _text(
          np.rint((one.vertices - centre) / reach * 32767).astype('<i2')
        ),
        'faces': _text(one.faces.astype('<u4')),
      }
      for one in found
    ],
  }


def _mostly(
  mask: npt.NDArray[np.bool_], steps: Sequence[int]
) -> npt.NDArray[np.bool_]:
  """Returns the blocks of a mask of which half or more is in it."""
  if max(steps) == 1:
    return mask
  share = mask.astype(np.float32)
  for axis, step in enumerate(steps):
    starts = np.arange(0, share.shape[axis], step)
    share = np.add.reduceat(share, starts, axis)
  found = share >= math.prod(steps) / 2
  # Small pieces of which no block is half full are drawn a bit too large.
  pieces, number = ndimage.label(mask, np.ones((3, 3, 3)))
  full = found
  for axis, step in enumerate(steps):
    full = full.repeat(step, axis)
  full = full[tuple(slice(size) for size in mask.shape)]
  lost = np.ones(number + 1, bool)
  lost[np.unique(pieces[full])] = lost[0] = False
  if lost.any():
    found |= mosaic.largest_in_blocks(lost[pieces].astype(np.uint8), steps) > 0
  return found


def _text(content: bytes | npt.NDArray) -> str:
  if not isinstance(content, bytes):
    content = content.tobytes()
  return base64.b64encode(content).decode()
