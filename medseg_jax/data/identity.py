"""Whether two cases are the same image, whatever their names and files.

By the voxels: a copy, a conversion without loss from one format to another, or
a file that was compressed anew is the same image. An image that was resampled
or changed in brightness is not.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def digest(image: np.ndarray) -> str:
  """Returns a hash of an image `[*S, C]`, by its shape and its values.

  Values count in single precision, so that the type of the file does not.
  """
  found = hashlib.sha256(repr(image.shape).encode())
  with np.errstate(over='ignore', invalid='ignore'):
    for plane in image:  # a copy of the whole would not be small
      found.update(np.ascontiguousarray(plane, np.float32) + np.float32(0))
  return found.hexdigest()[:16]


def copies(
  names: Sequence[str], digests: Sequence[str]
) -> dict[str, list[str]]:
  """Returns the names of each image that several cases have, by its digest."""
  found: dict[str, list[str]] = {}
  for name, key in zip(names, digests, strict=True):
    found.setdefault(key, []).append(name)
  return {key: cases for key, cases in found.items() if len(cases) > 1}
