"""Slices of both time points on each other, as pictures for a page."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from medseg_jax.clinic import viewer
from medseg_jax.clinic.followup.time_point import Floats, TimePoint, mapped
from medseg_jax.clinic.measurements import Lesions

EARLIER, LATER = (64, 196, 255), (255, 170, 40)  # of outlines
_SIDE = 288  # pixels
_AROUND_MM = 25.0  # beside a lesion, to know where it is
_TILES = 6  # of a chessboard, along a side
_QUALITY = 85  # of JPEG


class Shown(NamedTuple):
  """One time point, and what of it is outlined.

  Attributes:
    point: the time point.
    window: values that are black and white.
    lesions: of which some are outlined; None for a whole structure.
    chosen: their indices, or the classes of the structure.
  """

  point: TimePoint
  window: tuple[float, float]
  lesions: Lesions | None
  chosen: Sequence[int]

  def grey(self, places: Floats) -> npt.NDArray[np.uint8]:
    """Returns the image at mm `[n, 3]`, 0 outside of it."""
    voxels = self.point.to_voxels(places)
    found = ndimage.map_coordinates(
      self.point.image[..., 0], voxels.T, np.float32, 1, mode='nearest'
    )
    low, high = self.window
    scaled = (found - low) * (255 / max(high - low, 1e-6))
    scaled[~self.point.holds(places)] = 0
    return np.rint(scaled).clip(0, 255).astype(np.uint8)

  def mask(self, places: Floats) -> npt.NDArray[np.bool_]:
    """Returns which of mm `[n, 3]` are in what is outlined."""
    if not len(self.chosen):
      return np.zeros(len(places), bool)
    voxels = np.rint(self.point.to_voxels(places)).astype(int)
    values, wanted = self.point.label, list(self.chosen)
    if self.lesions is not None:
      voxels -= [side.start for side in self.lesions.box]
      values, wanted = self.lesions.parts, [i + 1 for i in self.chosen]
    inside = ((voxels >= 0) & (voxels < values.shape)).all(1)
    found = np.zeros(len(places), bool)
    found[inside] = np.isin(values[tuple(voxels[inside].T)], wanted)
    return found


def window_of(point: TimePoint) -> tuple[float, float]:
  """Returns the values that are black and white, see `viewer.window_of`."""
  return viewer.window_of(point.image[..., 0], point.label > 0)


def pair(
  shown: tuple[Shown, Shown],
  motion: Floats,
  *,
  axis: int,
  middle: Floats,
  reach: float,
) -> str:
  """Returns both time points side by side, as the address of an image.

  Args:
    shown: the earlier and the later one.
    motion: see `registration`.
    axis: of the earlier image, across which the slice lies.
    middle: mm `[3]` of the slice's, at the earlier time point.
    reach: mm to either side.
  """
  places = _plane(shown[0].point, axis, middle, reach)
  pictures, outlines = _both(shown, places, motion)
  drawn = [_outlined(picture, outlines) for picture in pictures]
  return _encode(np.concatenate(drawn, 1))


def overview(
  shown: tuple[Shown, Shown], motion: Floats, *, axis: int, middle: Floats
) -> str:
  """Returns earlier, later and a chessboard of both, likewise.

  The slice holds all of the earlier image.
  """
  point = shown[0].point
  sizes = np.linalg.norm(point.affine[:3, :3], axis=0) * point.label.shape
  places = _plane(point, axis, middle, float(np.delete(sizes, axis).max()) / 2)
  pictures, outlines = _both(shown, places, motion)
  tiles = np.indices((_SIDE, _SIDE)) * _TILES // _SIDE
  board = np.where(tiles.sum(0) % 2 == 0, *pictures)
  drawn = [_outlined(picture, outlines) for picture in pictures]
  return _encode(np.concatenate([*drawn, _outlined(board, ())], 1))


def reach_of(places: Floats) -> float:
  """Returns mm to either side that show all of some places `[n, 3]`."""
  return _AROUND_MM + float(np.ptp(places, axis=0).max()) / 2


def _plane(point: TimePoint, axis: int, middle: Floats, reach: float) -> Floats:
  """Returns mm `[side * side, 3]` of the pixels of a slice."""
  rows, columns = (a for a in range(3) if a != axis)
  directions = point.affine[:3, :3] / np.linalg.norm(
    point.affine[:3, :3], axis=0
  )
  steps = (np.arange(_SIDE) - (_SIDE - 1) / 2) * (2 * reach / _SIDE)
  # Across z rows run to the back; in the other planes up is up.
  down = steps if axis == 0 else -steps
  grid = (
    down[:, None, None] * directions[:, rows]
    + steps[None, :, None] * directions[:, columns]
  )
  return np.asarray(grid.reshape(-1, 3) + middle, np.float64)


def _both(
  shown: tuple[Shown, Shown], places: Floats, motion: Floats
) -> tuple[list[npt.NDArray], list[npt.NDArray[np.bool_]]]:
  """Returns the pictures and what is outlined, each `[side, side]`."""
  ways = places, mapped(places, motion)
  square = (_SIDE, _SIDE)
  pictures, outlines = [], []
  for own, there in zip(shown, ways, strict=True):
    pictures.append(own.grey(there).reshape(square))
    mask = own.mask(there).reshape(square)
    outlines.append(ndimage.binary_dilation(mask) & ~mask)
  return pictures, outlines


def _outlined(
  picture: npt.NDArray, outlines: Sequence[npt.NDArray[np.bool_]]
) -> npt.NDArray[np.uint8]:
  """Returns red, green, blue, with a frame to the right."""
  found = np.repeat(picture.astype(np.uint8)[..., None], 3, -1)
  for outline, colour in zip(outlines, (EARLIER, LATER), strict=False):
    found[outline] = colour
  found[:, -3:] = 255
  return found


def _encode(picture: npt.NDArray[np.uint8]) -> str:
  file = io.BytesIO()
  Image.fromarray(picture).save(file, 'JPEG', quality=_QUALITY, subsampling=0)
  text = base64.b64encode(file.getvalue()).decode()
  return f'data:image/jpeg;base64,{text}'
