"""All slices of a volume as one picture, which a page holds as text."""

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image


def columns(number: int) -> int:
  """Returns how many slices lie side by side in a picture of all."""
  return math.ceil(math.sqrt(number))


def encode(
  volume: npt.NDArray[np.uint8], form: str, **options: object
) -> bytes:
  """Returns a picture of all slices.

  Args:
    volume: `[z, y, x]`, or `[z, y, x, 3]` in colour.
    form: 'JPEG' or 'PNG'.
    **options: of Pillow's writer.
  """
  number, rows, wide, *colours = volume.shape
  across = columns(number)
  down = math.ceil(number / across)
  tiles = np.zeros((down * across, rows, wide, *colours), np.uint8)
  tiles[:number] = volume
  picture = tiles.reshape(down, across, rows, wide, *colours).swapaxes(1, 2)
  picture = picture.reshape(down * rows, across * wide, *colours)
  file = io.BytesIO()
  Image.fromarray(picture).save(file, form, **options)
  return file.getvalue()


def address(content: bytes) -> str:
  """Returns a picture as the address of an image in a page."""
  kind = 'png' if content.startswith(b'\x89PNG') else 'jpeg'
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def largest_in_blocks(
  label: npt.NDArray[np.integer], steps: Sequence[int]
) -> npt.NDArray[np.integer]:
  """Returns the highest class of each block: small lesions stay."""
  return _reduced(label, steps, np.maximum)


def mean_in_blocks(image: npt.NDArray, steps: Sequence[int]) -> npt.NDArray:
  """Returns the mean of each block, `[*S, C]` float32.

  Args:
    image: `[*S, C]`.
    steps: the size of a block along each of `S`.
  """
  total = _reduced(image, steps, np.add)
  for axis, step in enumerate(steps):
    size = image.shape[axis]
    counts = np.full(total.shape[axis], step, np.float32)
    counts[-1] = size - step * (len(counts) - 1)
    shape = [1] * total.ndim
    shape[axis] = -1
    total /= counts.reshape(shape)
  return total


def _reduced(
  array: npt.NDArray, steps: Sequence[int], ufunc: np.ufunc
) -> npt.NDArray:
  """Goes slab by slab: a whole volume as float32 may be gigabytes."""
  rows = []
  for start in range(0, len(array), steps[0]):
    slab = array[start : start + steps[0]]
    if ufunc is np.add:
      slab = slab.astype(np.float32)
    part = ufunc.reduce(slab, axis=0)
    for axis, step in enumerate(steps[1:]):
      part = _joined(part, step, axis, ufunc)
    rows.append(part)
  return np.stack(rows)


def _joined(
  array: npt.NDArray, step: int, axis: int, ufunc: np.ufunc
) -> npt.NDArray:
  """Returns blocks along an axis as one; the last one may be shorter.

  Several times as fast as `ufunc.reduceat`, which goes block by block.
  """
  along = np.moveaxis(array, axis, 0)
  joined = along[::step].copy()
  for k in range(1, step):
    other = along[k::step]
    ufunc(joined[: len(other)], other, out=joined[: len(other)])
  return np.moveaxis(joined, 0, axis)
