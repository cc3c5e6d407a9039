"""Predicted masks, packed, until it is known which of them are shown."""

import zlib

import numpy as np

_MAX_BYTES = 256e6  # masks are packed to a hundredth


class KeptMasks:
  """The masks of the first cases of a split, as far as memory allows.

  Args:
    count: how many are kept at the most.
  """

  def __init__(self, count: int):
    self._count = count
    self._bytes = 0
    self._packed: dict[int, tuple[bytes, np.dtype, tuple[int, ...]]] = {}

  def keep(self, index: int, mask: np.ndarray) -> None:
    """Keeps the mask of a case, class indices of any shape."""
    if index >= self._count or self._bytes > _MAX_BYTES:
      return
    packed = zlib.compress(np.ascontiguousarray(mask), 1)
    self._bytes += len(packed)
    self._packed[index] = packed, mask.dtype, mask.shape

  def __contains__(self, index: int) -> bool:
    return index in self._packed

  def get(self, index: int) -> np.ndarray:
    """Returns the mask of a case that was kept."""
    packed, dtype, shape = self._packed[index]
    return np.frombuffer(zlib.decompress(packed), dtype).reshape(shape)
