"""Images with blocks hidden, and what a network misses in filling them in.

Masked autoencoding of volumes (He et al. 2022, arXiv:2111.06377; for U-Nets
Wald et al. 2025, arXiv:2410.23132): a random share of the blocks of an image
becomes 0, the mean of what is standardised, and the network is to give back
what was there. Only hidden voxels count, so the skip connections of a U-Net,
which show it all others at full resolution, have nothing to copy.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from medseg_jax.data.masking import IGNORE

Batch = dict[str, jax.Array]


def num_blocks(size: Sequence[int], block: Sequence[int]) -> int:
  """Returns how many blocks cover an image; those at its end may be cut.

  Args:
    size: `S`, of the image, in voxels.
    block: in voxels, a number for each axis.
  """
  return math.prod(_grid(size, block))


def num_hidden(size: Sequence[int], block: Sequence[int], share: float) -> int:
  """Returns how many of the blocks that cover an image are hidden."""
  return round(share * num_blocks(size, block))


def hidden_voxels(
  key: jax.Array,
  shape: Sequence[int],
  *,
  block: Sequence[int],
  share: float,
) -> jax.Array:
  """Returns `[B, *S]` bool: the voxels of randomly drawn blocks.

  Of each image as many blocks, `num_hidden`; every choice of them is as likely.

  Args:
    key: of the draw.
    shape: `[B, *S]`.
    block: in voxels; blocks lie on a grid that begins with the first voxel.
    share: of the blocks, 0 to 1.
  """
  batch_size, *size = shape
  grid = _grid(size, block)
  # The order of random numbers is a random order, whatever ties there are.
  numbers = jax.random.bits(key, (batch_size, math.prod(grid)))
  order = jnp.argsort(numbers, axis=-1, stable=True)
  hidden = (order < num_hidden(size, block, share)).reshape(-1, *grid)
  for axis, length in enumerate(block, start=1):
    hidden = jnp.repeat(hidden, length, axis)
  return hidden[:, *(slice(n) for n in size)]


def hide(
  key: jax.Array, batch: Batch, *, block: Sequence[int], share: float
) -> Batch:
  """Returns the batch with blocks of its images hidden, and what they were.

  Args:
    key: of the draw.
    batch: `{'image': [B, *S, C] float32, 'label': [B, *S] int}`; of the label
      only `IGNORE` means something: such voxels lie outside of every image.
    block: see `hidden_voxels`.
    share: likewise.

  Returns:
    `{'image': [B, *S, C], 0 where it is hidden, 'label': [B, *S, C + 1]
    float32}`, the whole image and, last, 1 where a voxel counts, 0 elsewhere.
  """
  image, label = batch['image'], batch['label']
  hidden = hidden_voxels(key, label.shape, block=block, share=share)
  counts = (hidden & (label != IGNORE)).astype(image.dtype)
  return {
    'image': jnp.where(hidden[..., None], 0, image),
    'label': jnp.concatenate([image, counts[..., None]], -1),
  }


def squared_error(
  outputs: jax.Array | Sequence[jax.Array], target: jax.Array
) -> jax.Array:
  """Returns `[B]` float32, the mean squared error over voxels that count.

  And over channels, in units of the standardised image; 0 where no voxel
  counts.

  Args:
    outputs: `[B, *S, C]`; with deep supervision a tuple, full resolution first.
      What is coarser has no part in it.
    target: `[B, *S, C + 1]`, as of `hide`.
  """
  first = outputs[0] if isinstance(outputs, tuple | list) else outputs
  image, counts = target[..., :-1], target[..., -1:]
  axes = tuple(range(1, first.ndim))
  errors = jnp.square(first.astype(jnp.float32) - image) * counts
  number = counts.sum(axes) * image.shape[-1]
  return errors.sum(axes) / jnp.maximum(number, 1)


def _grid(size: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
  return tuple(-(-n // b) for n, b in zip(size, block, strict=True))
