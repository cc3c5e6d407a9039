"""Half precision for the images that the network sees, where it loses nothing.

It halves disk, memory and transfers. Its 11 binary digits keep 8-bit images,
scans of about 2,000 grey levels and standardised fractions; they end at 65,504,
and from 2,048 on only every second whole number has a place. What needs more
(16-bit microscopy, PET, quantitative maps) stays in single precision.

The choice is a function of the case alone, so that prediction sees a scan as
training saw it, whatever the other cases are. Cases of both kinds meet in
single precision, which changes neither.
"""

from collections.abc import Sequence

import numpy as np

from medseg_jax.data.normalize import blocks

HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)


def compact(image: np.ndarray, slack: Sequence[float]) -> np.ndarray:
  """Returns the image in half precision if no value moves by more than `slack`.

  Args:
    image: `[*S, C]` float32, finite.
    slack: for each channel, see `normalize.Standardised`.

  Returns:
    `[*S, C]` in half precision or, as it is, in single; in C order.
  """
  half = np.empty(image.shape, HALF)
  for block in blocks(image):
    with np.errstate(over='ignore'):  # infinite: far beyond the slack
      half[block] = image[block]
    error = half[block].astype(SINGLE)
    error -= image[block]
    if not (np.abs(error, out=error) <= slack).all():
      return np.ascontiguousarray(image, SINGLE)
  return half
