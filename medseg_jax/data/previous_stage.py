"""The mask of a coarser network, folded into the label.

The second network of a cascade sees what the first one said of an image
(Isensee et al., Nature Methods 2021). In training that mask has to move with
the image exactly as the label does, so it travels in it, through the cache and
on every way to the step: a voxel of label `l`, of which the mask says `p`, has
`l + p * (K + 1)` for `K` classes. Where it says background, as it does beyond
an image, the label is as it was.

A mask lies on the grid of the preprocessed image.
"""

import pathlib
from typing import Any

import numpy as np

from medseg_jax.data.masking import IGNORE
from medseg_jax.runtime.errors import InputError

MAX_CLASSES = 180  # beyond, int16 would not hold both

Array = Any  # of NumPy or of jax.numpy


def fold(
  label: np.ndarray, mask: np.ndarray, *, num_classes: int
) -> np.ndarray:
  """Returns the label with the mask in it, int16.

  Args:
    label: `[*S]` integers, class indices or `IGNORE`.
    mask: `[*S]` integers, class indices.
    num_classes: with the background, at most `MAX_CLASSES`.
  """
  return (label + mask.astype(np.int16) * (num_classes + 1)).astype(np.int16)


def unfold(folded: Array, *, num_classes: int) -> tuple[Array, Array]:
  """Returns label and mask, both of the type of `folded`."""
  # Both operators round down, in NumPy as in JAX.
  shifted = folded - IGNORE
  return shifted % (num_classes + 1) + IGNORE, shifted // (num_classes + 1)


def with_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns an image `[*S, C]` with a mask `[*S]` as its last channel.

  In the image's type, which holds the indices of classes exactly.
  """
  return np.concatenate([image, mask[..., None].astype(image.dtype)], -1)


def to_channels(image: Array, num_labels: int, xp: Any) -> Array:
  """Returns an image `[..., C + 1]` with its last channel, the mask, as many.

  Arguments and result are those of `append`.
  """
  return append(image[..., :-1], image[..., -1], num_labels, xp)


def append(image: Array, mask: Array, num_labels: int, xp: Any) -> Array:
  """Returns an image `[..., C + num_labels]` with the mask in it.

  Args:
    image: `[..., C]` float.
    mask: `[...]`, 0 to num_labels.
    num_labels: without the background; each has a channel of 0 and 1.
    xp: `numpy` or `jax.numpy`.
  """
  labels = xp.arange(1, num_labels + 1)
  channels = (mask[..., None] == labels).astype(image.dtype)
  return xp.concatenate([image, channels], -1)


def write(path: pathlib.Path, mask: np.ndarray) -> None:
  """Writes a mask `[*S]`, class indices below 256; the same gives the same."""
  np.savez_compressed(path, mask=mask.astype(np.uint8))


def read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a mask `[*S]` uint8.

  Args:
    path: of the file.
    shape: of the preprocessed image that it is of.

  Raises:
    InputError: it cannot be read, or is of another shape.
  """
  allowed = 'remove it, and it is made anew'
  try:
    with np.load(path) as file:
      mask = file['mask']
  except Exception as error:  # of zip, of zlib, of NumPy, of the disk
    reason = getattr(error, 'strerror', None) or type(error).__name__
    raise InputError(f'{path}: cannot be read ({reason}); {allowed}') from error
  if mask.shape != tuple(shape) or mask.dtype != np.uint8:
    raise InputError(
      f'{path}: is {mask.dtype} {mask.shape}, but the preprocessed image is '
      f'{tuple(shape)}; {allowed}'
    )
  return mask
