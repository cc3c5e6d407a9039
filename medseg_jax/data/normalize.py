"""Intensities of a case brought to the range that the network is trained on."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from medseg_jax.runtime.errors import InputError

NORMALIZATIONS = ('scale', 'zscore', 'window')
SCHEMES = ('ct', 'zscore', 'zscore_nonzero', 'scale', 'none')
MASKED = 'zscore_nonzero'

# Values that are in double precision at one time.
_BLOCK = 2**20


class Channel(NamedTuple):
  """How one channel is standardised; comes from the plan (Isensee 2021).

  Attributes:
    scheme: 'ct' clips to `low` .. `high`, subtracts `mean` and divides by
      `std`, the same numbers for every case; 'zscore' subtracts the mean of
      this case's channel and divides by its standard deviation;
      'zscore_nonzero' does so with the voxels that are not 0 in every channel
      (holes among them filled) and sets the others to 0; 'scale' divides by
      255, which is for the colours of a photograph; 'none' leaves it alone.
    low: for 'ct', in the units of the file (HU).
    high: likewise.
    mean: likewise.
    std: likewise, above 0.
  """

  scheme: str
  low: float = 0.0
  high: float = 0.0
  mean: float = 0.0
  std: float = 1.0


class Standardised(NamedTuple):
  """An image with standardised intensities.

  Attributes:
    image: `[*S, C]` float32.
    slack: how much each channel may be rounded and loses nothing: half of what
      one grey level more in the file adds, where its values are whole numbers.
      Fractions have no levels: a 2,048th of the range that they take here, or 0
      where the scheme is 'none', which asks for the values themselves.
  """

  image: np.ndarray
  slack: tuple[float, ...]


class _Line(NamedTuple):
  """Clip to low .. high, then (x - shift) / scale."""

  shift: float
  scale: float
  low: float = -np.inf
  high: float = np.inf
  plain: bool = False  # the values themselves are wanted


def standardise(
  image: np.ndarray,
  *,
  normalize: str = 'zscore',
  window: tuple[float, ...] = (),
  channels: tuple[Channel, ...] = (),
  mask: np.ndarray | None = None,
  name: str = 'the image',
) -> Standardised:
  """Returns the image with standardised intensities.

  Computed in double precision block by block, so that a volume needs no more
  memory than itself and the result.

  Args:
    image: `[*S, C]` of any type, finite.
    normalize: 'scale', 'zscore' or 'window' for all channels alike, see
      `data.preprocess.Preprocessing`.
    window: lower and upper intensity for 'window'.
    channels: one for each channel, in place of `normalize`.
    mask: the image's own, by `mask_of`, where that is at hand.
    name: of the case, for messages.

  Raises:
    InputError: the intensities are outside of what 'scale' takes.
  """
  masked = [channel.scheme == MASKED for channel in channels]
  if mask is None:
    mask = mask_of(image, channels)
  if channels:
    lines = [
      _channel_line(image[..., c], channel, mask, name)
      for c, channel in enumerate(channels)
    ]
  else:
    lines = _lines(image, normalize, window, name)
  result = np.empty(image.shape, np.float32)
  for block in blocks(image):
    for c, line in enumerate(lines):
      values = image[block][..., c].astype(np.float64)
      np.clip(values, line.low, line.high, out=values)
      values -= line.shift
      values /= line.scale
      if channels and masked[c]:
        values[~mask[block]] = 0.0
      result[block][..., c] = values
  slack = (
    _slack(image[..., c], result[..., c], line) for c, line in enumerate(lines)
  )
  return Standardised(result, tuple(slack))


def _slack(image: np.ndarray, result: np.ndarray, line: _Line) -> float:
  if _is_whole(image):
    return 0.5 / line.scale
  return 0.0 if line.plain else float(np.ptp(result)) / 2048


def _is_whole(image: np.ndarray) -> bool:
  """Returns whether all values are whole numbers, whatever their type."""
  return image.dtype.kind in 'biu' or all(
    np.array_equal(image[block], np.rint(image[block]))
    for block in blocks(image)
  )


def mask_of(
  image: np.ndarray, channels: tuple[Channel, ...]
) -> np.ndarray | None:
  """Returns the mask `[*S]` of what is not 0 in image `[*S, C]`, holes filled.

  None where no channel is normalised inside it.
  """
  if all(channel.scheme != MASKED for channel in channels):
    return None
  return ndimage.binary_fill_holes((image != 0).any(-1))


def _lines(image, normalize, window, name) -> list[_Line]:
  """Returns what `normalize` does to each channel."""
  channels = range(image.shape[-1])
  if normalize == 'zscore':
    return [_zscore(image[..., c]) for c in channels]
  if normalize == 'window':
    low, high = window
    return [_Line(low, high - low, low, high) for _ in channels]
  if image.dtype.kind in 'ui':
    return [_Line(0.0, np.iinfo(image.dtype).max) for _ in channels]
  low, high = image.min(), image.max()
  if low < 0 or high > 1:
    raise InputError(
      f'{name}: intensities from {low:g} to {high:g}; '
      "config.data.normalize='scale' takes integers, or floats from 0 to 1; "
      'zscore and window take any'
    )
  return [_Line(0.0, 1.0) for _ in channels]


def _channel_line(image, channel: Channel, mask, name) -> _Line:
  """Returns what a channel's scheme does to its image `[*S]`."""
  if channel.scheme == 'ct':
    return _Line(channel.mean, channel.std, channel.low, channel.high)
  if channel.scheme == 'zscore':
    return _zscore(image)
  if channel.scheme == MASKED:
    return _zscore(image, mask)
  if channel.scheme == 'none':
    return _Line(0.0, 1.0, plain=True)
  low, high = image.min(), image.max()
  if low < 0 or high > 255:
    raise InputError(
      f'{name}: intensities from {low:g} to {high:g}; the normalization '
      "'scale' of the plan takes the colours of a photograph, from 0 to 255"
    )
  return _Line(0.0, 255.0)


def _zscore(image: np.ndarray, mask: np.ndarray | None = None) -> _Line:
  """Returns mean and deviation of `[*S]`, over `mask` where there is one."""
  count = image.size if mask is None else np.count_nonzero(mask)
  if not count:
    return _Line(0.0, 1.0)
  mean = sum(x.sum() for x in _values(image, mask)) / count
  # Around the mean, not from the sum of squares: intensities of 1e6 that
  # differ by 1 would lose all their digits.
  variance = sum(((x - mean) ** 2).sum() for x in _values(image, mask)) / count
  # A constant channel becomes zero instead of a division by zero.
  return _Line(mean, max(np.sqrt(variance), 1e-8))


def _values(image, mask) -> Iterator[np.ndarray]:
  for block in blocks(image):
    values = image[block].astype(np.float64)
    yield values if mask is None else values[mask[block]]


def blocks(image: np.ndarray) -> Iterator[slice]:
  """Yields slices of the first axis of about `_BLOCK` values each."""
  step = max(1, _BLOCK * len(image) // max(image.size, 1))
  for start in range(0, len(image), step):
    yield slice(start, start + step)
