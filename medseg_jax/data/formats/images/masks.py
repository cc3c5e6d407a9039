"""A mask file as integers, and back."""

import io
import os
import pathlib

import numpy as np
from PIL import Image

from medseg_jax.data.formats.images.pillow import is_grey
from medseg_jax.data.formats.images.reading import decode
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically

# JPEG keeps grey grey up to the rounding of its colour transform.
_JPEG_COLOUR_TOLERANCE = 16


def read_mask(path: str | os.PathLike) -> np.ndarray:
  """Returns the values of a mask file, `[H, W]` integers.

  The grey level that a person sees, 0 or 255 for 1-bit files, and the index
  where the file has a palette with colours. 16-bit masks keep their values.

  Raises:
    InputError: as `read_image`; also coloured without a palette, not whole
      numbers, or a mask that is in the transparency only.
  """
  return decode_mask(path)[0]


def decode_mask(path: str | os.PathLike) -> tuple[np.ndarray, bool]:
  """Returns what `read_mask` does, and whether the file is JPEG-compressed."""
  path = pathlib.Path(path)
  pixels = decode(path)
  values = pixels.samples
  if pixels.palette is not None and is_grey(pixels.palette):
    values = pixels.palette[values, 0]
  if values.ndim == 3:
    values = _grey_of_rgb(path, values, pixels.lossy)
  if pixels.alpha is not None and np.ptp(values) == 0 < np.ptp(pixels.alpha):
    raise InputError(
      f'{path}: every pixel has the value {values.flat[0]} and only the '
      'transparency varies; allowed are masks whose grey level is the label'
    )
  if (
    values.dtype.kind == 'f'
    and not (np.isfinite(values) & (values == np.rint(values))).all()
  ):
    raise InputError(
      f'{path}: the mask holds values that are not whole numbers, from '
      f'{values.min():g} to {values.max():g}; allowed are whole numbers'
    )
  dtype = np.int64 if values.dtype.itemsize > 2 else np.int32
  return values.astype(dtype), pixels.lossy


def write_mask(
  path: str | os.PathLike, label: np.ndarray, label_values: tuple[int, ...]
) -> None:
  """Writes `label` as a grey PNG that `read_mask` reads as `label_values`.

  8-bit, or 16-bit where a value is above 255. The file appears complete or
  not at all.

  Args:
    path: file to write or replace, `.png`.
    label: `[H, W]` class indices.
    label_values: value of each class on disk, 0 to 65535.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() != '.png' or np.ndim(label) != 2:
    shape = np.shape(label)
    raise ValueError(f'need .png and a label [H, W], got {path.name}, {shape}')
  if min(label_values) < 0 or max(label_values) > 65535:
    raise ValueError(f'PNG holds values 0 to 65535, got {label_values}')
  low, high = np.min(label), np.max(label)
  if low < 0 or high >= len(label_values):
    last = len(label_values) - 1
    raise ValueError(f'label must be 0 to {last}, got {low} to {high}')
  dtype = np.uint16 if max(label_values) > 255 else np.uint8
  values = np.asarray(label_values, dtype)[np.asarray(label)]
  png = io.BytesIO()
  Image.fromarray(values).save(png, format='PNG')
  write_atomically(path, png.getvalue())


def _grey_of_rgb(path: pathlib.Path, rgb: np.ndarray, lossy: bool):
  low, high = rgb.min(axis=-1), rgb.max(axis=-1)
  coloured = high - low > (_JPEG_COLOUR_TOLERANCE if lossy else 0)
  if coloured.any():
    example = tuple(rgb[coloured][0].tolist())
    raise InputError(
      f'{path}: a coloured mask without palette, pixel value {example}; '
      'allowed are grey levels (also as RGB) and palette files'
    )
  return rgb[..., 1]
