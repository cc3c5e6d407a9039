"""Samples as a file stores them, turned as a person sees them."""

import pathlib
from typing import NamedTuple

import numpy as np

from medseg_jax.data.formats.images.listing import one_line
from medseg_jax.runtime.errors import InputError, explain

ORIENTATION_TAG = 0x0112


class Pixels(NamedTuple):
  """Samples as stored: grey or palette index `[H, W]`, or RGB `[H, W, 3]`."""

  samples: np.ndarray
  alpha: np.ndarray | None
  palette: np.ndarray | None
  lossy: bool


def make_pixels(samples, orientation, palette=None, lossy=False) -> Pixels:
  """Returns decoded samples in the order, and with the parts, of `Pixels`.

  Raises:
    ValueError: the decoder gave no pixels, or more axes than an image has.
  """
  if not samples.size or samples.ndim not in (2, 3):
    raise ValueError(f'decoded to an array of the shape {samples.shape}')
  if samples.dtype == bool:
    samples = samples.astype(np.uint8) * np.uint8(255)
  samples = samples.astype(samples.dtype.newbyteorder('='), copy=False)
  samples = _orient(samples, orientation)
  alpha = None
  if samples.ndim == 3 and samples.shape[-1] in (2, 4):
    samples, alpha = samples[..., :-1], samples[..., -1]
  if samples.ndim == 3 and samples.shape[-1] == 1:
    samples = samples[..., 0]
  if samples.ndim == 3 and samples.shape[-1] != 3:
    raise ValueError(f'decoded to {samples.shape[-1]} channels')
  return Pixels(np.ascontiguousarray(samples), alpha, palette, lossy)


def channel_error(path: pathlib.Path, found: int) -> InputError:
  return InputError(
    f'{path}: {found} channels; allowed are 1 (grey) and 3 (RGB)'
  )


def unreadable(path: pathlib.Path, error: Exception) -> InputError:
  """Returns the error for a file that a decoder gave up."""
  if isinstance(error, FileNotFoundError):
    return InputError(f'{path}: no such file; an image file is needed')
  if isinstance(error, MemoryError):
    return InputError(
      f'{path}: there is not enough memory to read it; allowed is what fits'
    )
  if isinstance(error, OSError) and error.errno:
    return InputError(explain(error, 'read the image', path))
  return InputError(
    f'{one_line(path, 250)}: cannot be read '
    f'({one_line(error) or type(error).__name__}); allowed are complete image '
    'files'
  )


def _orient(samples: np.ndarray, orientation: int) -> np.ndarray:
  """Returns the samples as seen, by the EXIF orientation 1 to 8."""
  if orientation in (5, 6, 7, 8):
    samples = samples.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    samples = samples[::-1]
  if orientation in (2, 3, 6, 7):
    samples = samples[:, ::-1]
  return samples
