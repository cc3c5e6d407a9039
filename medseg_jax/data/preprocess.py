"""From a case as read to the arrays that the network sees, on any rank."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.errors import InputError

NORMALIZATIONS = ('scale', 'zscore', 'window')


class Preprocessing(NamedTuple):
  """How images are standardised; a part of every checkpoint's config.

  Attributes:
    normalize: 'scale' divides integer images by the largest value of their
      type (x / 255 for 8 bits) and takes floats from 0 to 1; 'zscore'
      subtracts each channel's mean over the image and divides by its standard
      deviation; 'window' maps `window` to 0 .. 1 and clips.
    window: lower and upper intensity, in the units of the file (HU for CT).
    resize: target size of the spatial axes in pixels, or () for native size.
  """

  normalize: str = 'zscore'
  window: tuple[float, ...] = ()
  resize: tuple[int, ...] = ()


def check(preprocessing: Preprocessing) -> None:
  """Raises InputError where the settings make no sense."""
  p = preprocessing
  if p.normalize not in NORMALIZATIONS:
    raise InputError(
      f'config.data.normalize is {p.normalize!r}; allowed are '
      + ', '.join(NORMALIZATIONS)
    )
  ordered = len(p.window) == 2 and p.window[0] < p.window[1]
  if p.normalize == 'window' and not ordered:
    raise InputError(
      f'config.data.window is {p.window}; the window normalization needs a '
      'lower and a higher intensity, for example (-160.0, 240.0)'
    )
  if any(size < 1 for size in p.resize):
    raise InputError(
      f'config.data.resize is {p.resize}; sizes in pixels are at least 1'
    )


def preprocess_image(case: Case, preprocessing: Preprocessing) -> np.ndarray:
  """Returns the standardised image, `[*S', C]` float32.

  Raises:
    InputError: the image holds NaN or infinite values, or has another number
      of axes than `resize`.
  """
  p = preprocessing
  image = case.image
  if image.dtype.kind == 'f' and not np.isfinite(image).all():
    count = int((~np.isfinite(image)).sum())
    raise InputError(
      f'{case.name}: {count} of {image.size} image values are NaN or infinite; '
      'only finite values are allowed'
    )
  image = _standardise(case, p)
  if p.resize:
    if len(p.resize) != image.ndim - 1:
      raise InputError(
        f'config.data.resize is {p.resize}, but {case.name} has '
        f'{image.ndim - 1} axes'
      )
    image = resize_linear(image, p.resize)
  return image


def preprocess_label(case: Case, preprocessing: Preprocessing) -> np.ndarray:
  """Returns the class indices on the grid of the preprocessed image."""
  if preprocessing.resize:
    return resize_nearest(case.label, preprocessing.resize)
  return case.label


def _standardise(case: Case, p: Preprocessing) -> np.ndarray:
  image = case.image
  if p.normalize == 'scale':
    if image.dtype.kind in 'ui':
      return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    if image.min() < 0 or image.max() > 1:
      raise InputError(
        f'{case.name}: intensities from {image.min():g} to {image.max():g}; '
        "config.data.normalize='scale' takes integers, or floats from 0 to 1; "
        'zscore and window take any'
      )
    return image.astype(np.float32)
  image = image.astype(np.float32)
  if p.normalize == 'window':
    low, high = p.window
    return np.clip((image - low) / (high - low), 0.0, 1.0).astype(np.float32)
  axes = tuple(range(image.ndim - 1))
  # In float64, so that a 16-bit volume's sum of squares keeps its digits.
  mean = image.mean(axes, dtype=np.float64)
  std = image.std(axes, dtype=np.float64)
  # A constant channel becomes zero instead of a division by zero.
  return ((image - mean) / np.maximum(std, 1e-8)).astype(np.float32)


def resize_linear(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns `image` `[*S, C]` on a grid of `shape`, linearly, float32.

  Pixel centres are aligned at half pixels and the corners of the two grids
  coincide. Where an axis shrinks, the triangle widens with the factor, which
  keeps fine texture from aliasing (as Pillow and jax.image do).
  """
  image = np.asarray(image, np.float32)
  for axis, size in enumerate(shape):
    if image.shape[axis] != size:
      weights = _triangle_weights(image.shape[axis], size)
      image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
  return np.ascontiguousarray(image)


def resize_nearest(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns `label` `[*S]` on a grid of `shape`, by the nearest pixel."""
  for axis, size in enumerate(shape):
    old = label.shape[axis]
    if old != size:
      centres = (np.arange(size) + 0.5) * old / size
      label = np.take(label, np.minimum(centres.astype(int), old - 1), axis)
  return np.ascontiguousarray(label)


def _triangle_weights(old: int, new: int) -> np.ndarray:
  """Returns the `[new, old]` matrix of the antialiased linear filter."""
  scale = old / new
  width = max(scale, 1.0)
  centres = (np.arange(new) + 0.5) * scale - 0.5
  distance = np.abs(np.arange(old)[None] - centres[:, None]) / width
  weights = np.maximum(1.0 - distance, 0.0)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
