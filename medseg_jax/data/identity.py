"""Whether two cases are the same image, whatever their names and files.

By the voxels: a copy, a conversion without loss from one format to another, or
a file that was compressed anew is the same image, and so is a grey one that was
saved in colour. An image that was resampled or changed in brightness is not.
Nothing can be told of blank images, which many scans have among their slices.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

BLANK = 'blank'  # begins the digests of images of a single value


def digest(image: np.ndarray) -> str:
  """Returns a hash of an image `[*S, C]`, by its shape and its values.

  Values count in single precision, so that the type of the file does not, and
  channels that are all the same count once. BLANK for an image of one value.
  """
  if all((plane == plane[..., :1]).all() for plane in image):
    image = image[..., :1]
  if image.size and all((plane == image.flat[0]).all() for plane in image):
    return BLANK
  found = hashlib.sha256(repr(image.shape).encode())
  with np.errstate(over='ignore', invalid='ignore'):
    for plane in image:  # a copy of the whole would not be small
      found.update(np.ascontiguousarray(plane, np.float32) + np.float32(0))
  return found.hexdigest()[:16]


def is_blank(digest: str) -> bool:
  """Returns whether a digest is of a blank image."""
  return digest.startswith(BLANK)


def copies(
  names: Sequence[str], digests: Sequence[str]
) -> dict[str, list[str]]:
  """Returns the names of each image that several cases have, by its digest."""
  found: dict[str, list[str]] = {}
  for name, key in zip(names, digests, strict=True):
    if not is_blank(key):
      found.setdefault(key, []).append(name)
  return {key: cases for key, cases in found.items() if len(cases) > 1}
