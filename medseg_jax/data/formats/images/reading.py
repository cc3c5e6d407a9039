"""An image file as an array."""

import os
import pathlib

import numpy as np

from medseg_jax.data.formats.images import pillow, tiff
from medseg_jax.data.formats.images.pixels import Pixels, unreadable
from medseg_jax.runtime.errors import InputError


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Returns the image as `[H, W, C]`, C = 1 for grey and 3 for RGB.

  The dtype is the file's: uint8, uint16 or float32 (also for other integers
  and floats). 1-bit images become 0 and 255; 2- and 4-bit greys fill 0 to 255.

  Raises:
    InputError: missing, damaged, larger than the memory, a stack of pages, or
      neither grey nor RGB.
  """
  pixels = decode(pathlib.Path(path))
  image = pixels.samples
  if pixels.palette is not None:
    image = pixels.palette[image]
    if pillow.is_grey(pixels.palette):
      image = image[..., 0]
  if image.dtype not in (np.uint8, np.uint16):
    image = image.astype(np.float32)
  return image[..., None] if image.ndim == 2 else image


def decode(path: pathlib.Path) -> Pixels:
  """Returns the samples of an image or mask file; raises as `read_image`."""
  try:
    return (tiff if tiff.is_tiff(path) else pillow).decode(path)
  except InputError:
    raise
  except Exception as error:  # Pillow's plugins raise whatever they meet.
    raise unreadable(path, error) from error
