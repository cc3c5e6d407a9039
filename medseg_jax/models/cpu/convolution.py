"""Convolutions and their gradients on a CPU, by oneDNN, in float32.

XLA's own run on CPU at 5 to 40 % of the machine's rate in 3-D, where channels
are few, and for the gradient with respect to the kernel. oneDNN computes the
convolution and the gradient with respect to the image, which is a convolution,
too, at 50 to 100 %, and the kernel's gradient is a sum of matrix products over
blocks of voxels that stay in the caches, at 40 to 80 %. Where channels are
many, half of the products are saved (`winograd.py`).

In a program for another platform, also one that a CPU compiles, there is
nothing of this: it has XLA's own in the dtype that was asked for.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.models import resampling
from medseg_jax.models.cpu import onednn, winograd

Padding = tuple[tuple[int, int], ...]
# The gradient so far, and the memory of each block that is under way.
Carry = tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]

# Of a block with all that its taps see: 2 to 8 MB are alike, less is slower.
_BLOCK_BYTES = 2**22


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, ...],
  padding: Padding,
) -> jax.Array:
  """Returns the convolution `[B, *S, C]` x `[*taps, C, F]`, fast on CPU.

  Computed in float32 on CPU, elsewhere in the dtype of `x` and `kernel`, which
  is that of the result. Reverse-mode gradients only.
  """

  def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    return _fast(*wide, strides, padding).astype(x.dtype)

  def elsewhere(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _own(x, kernel, strides, padding)

  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _forward(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return convolve(x, kernel, strides, padding), (x, kernel)


def _backward(
  strides: tuple[int, ...],
  padding: Padding,
  saved: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  def on_cpu(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    wide_x, wide_kernel, wide_cotangent = (
      array.astype(jnp.float32) for array in (x, kernel, cotangent)
    )
    of_image = _image_gradient(
      x.shape, wide_kernel, wide_cotangent, strides, padding
    )
    of_kernel = _kernel_gradient(
      wide_x, kernel.shape, wide_cotangent, strides, padding
    )
    return of_image.astype(x.dtype), of_kernel.astype(kernel.dtype)

  def elsewhere(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    own = functools.partial(_own, strides=strides, padding=padding)
    return jax.vjp(own, x, kernel)[1](cotangent)

  return lax.platform_dependent(
    *saved, cotangent, cpu=on_cpu, default=elsewhere
  )


convolve.defvjp(_forward, _backward)


def _own(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array:
  """Returns the convolution by XLA."""
  axes = 'XYZ'[: len(strides)]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=(f'N{axes}C', f'{axes}IO', f'N{axes}C'),
  )


def _fast(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, ...],
  padding: Padding,
  *,
  swapped: bool = False,
) -> jax.Array:
  """Returns the convolution by oneDNN, on CPU, float32, the quicker way.

  If `swapped` the kernel is `[*taps, F, C]`.
  """
  if _is_one_tap(kernel.shape, strides, padding):
    y = _fast(_slices(x), kernel[0], strides[1:], padding[1:], swapped=swapped)
    return y.reshape(*x.shape[:2], *y.shape[1:])
  rows = (x.shape[1] + sum(padding[0]) - kernel.shape[0]) // strides[0] + 1
  if not winograd.pays(x.shape, kernel.shape, strides[0], rows):
    return onednn.convolution(x, kernel, strides, padding, swapped=swapped)
  return winograd.join(
    [
      onednn.convolution(
        part, taps, strides, ((0, 0), *padding[1:]), swapped=swapped
      )
      for part, taps in zip(
        winograd.split(x, padding[0][0], rows),
        winograd.split_kernel(kernel),
        strict=True,
      )
    ],
    rows,
  )


def _is_one_tap(
  kernel_shape: tuple[int, ...], strides: tuple[int, ...], padding: Padding
) -> bool:
  """Returns whether slices along the first axis are images of their own.

  Not where all axes have one tap, as one product serves these.
  """
  return (
    kernel_shape[0] == strides[0] == 1
    and tuple(padding[0]) == (0, 0)
    and math.prod(kernel_shape[: len(strides)]) > 1
  )


def _slices(x: jax.Array) -> jax.Array:
  """Returns the slices along the first axis as examples of a batch."""
  return x.reshape(-1, *x.shape[2:])


def _image_gradient(
  shape: tuple[int, ...],
  kernel: jax.Array,
  cotangent: jax.Array,
  strides: tuple[int, ...],
  padding: Padding,
) -> jax.Array:
  """Returns the gradient with respect to the image, of size `shape`.

  A convolution of the cotangent with the reversed kernel. With strides the
  taps fall into phases, one for each place of a voxel in its cell of `strides`
  voxels: the phases become channels, and these the voxels of the cells.
  """
  channels, features = kernel.shape[-2:]
  rank = len(strides)
  pads, widths, around, cells = [], [], [], []
  for n, m, taps, stride, (low, _) in zip(
    shape[1:-1],
    cotangent.shape[1:-1],
    kernel.shape,
    strides,
    padding,
    strict=False,
  ):
    before = -(-low // stride)
    width = before + -(-(taps - low) // stride)
    cells.append(-(-n // stride))
    widths.append(width)
    pads.append(
      (stride * before - low, stride * (width - before) - (taps - low))
    )
    around.append((width - 1 - before, cells[-1] + before - m))
  kernel = jnp.pad(kernel, [*pads, (0, 0), (0, 0)])
  kernel = kernel.reshape(
    *(n for pair in zip(widths, strides, strict=True) for n in pair),
    channels,
    features,
  )
  kernel = jnp.flip(kernel, range(0, 2 * rank, 2)).transpose(
    *range(0, 2 * rank, 2), *range(1, 2 * rank, 2), 2 * rank, 2 * rank + 1
  )
  kernel = kernel.reshape(*widths, -1, features)
  gradient = _fast(cotangent, kernel, (1,) * rank, tuple(around), swapped=True)
  gradient = resampling.depth_to_space(gradient, strides)
  return gradient[:, *(slice(n) for n in shape[1:-1])]


def _kernel_gradient(
  x: jax.Array,
  shape: tuple[int, ...],
  cotangent: jax.Array,
  strides: tuple[int, ...],
  padding: Padding,
) -> jax.Array:
  """Returns the gradient with respect to the kernel, of size `shape`."""
  if _is_one_tap(shape, strides, padding):
    return _kernel_gradient(
      _slices(x), shape[1:], _slices(cotangent), strides[1:], padding[1:]
    )[None]
  rows = cotangent.shape[1]
  if not winograd.pays(x.shape, shape, strides[0], rows):
    return _all_products(x, shape, cotangent, strides, padding)
  parts = (
    jnp.stack(winograd.split(x, padding[0][0], rows)),
    jnp.stack(winograd.split_cotangent(cotangent)),
  )
  # One tap is left along the first axis.
  gradients = lax.map(
    lambda pair: _all_products(
      _slices(pair[0]), shape[1:], _slices(pair[1]), strides[1:], padding[1:]
    ),
    parts,
  )
  return winograd.join_kernel(gradients)


def _all_products(
  x: jax.Array,
  shape: tuple[int, ...],
  cotangent: jax.Array,
  strides: tuple[int, ...],
  padding: Padding,
) -> jax.Array:
  """Returns the gradient with respect to the kernel, of size `shape`.

  For every voxel of a block, what its taps see on `x` lies side by side, and so
  do the voxels of the cotangent that see it along the first axis: that way 12
  copies serve the 27 taps of a volume. The sum over the block is one product.
  """
  *leading, channels, features = shape
  taps = tuple(leading)
  if math.prod((*taps, *strides)) == 1:
    return onednn.matmul(
      x.reshape(-1, channels), cotangent.reshape(-1, features)
    ).reshape(shape)
  size, shifts, margin = cotangent.shape[1:-1], [0], (0, 0)
  if strides[0] == 1:
    # Along the first axis x is the fixed one, and the cotangent is shifted.
    shifts = list(reversed(range(taps[0])))
    low, n = padding[0][0], x.shape[1]
    margin = (taps[0] - 1 - low, n + low - size[0])
    size, padding = (n, *size[1:]), ((0, 0), *padding[1:])
    taps = (1, *taps[1:])
  # The examples of the batch are one more axis to cut into blocks.
  size, taps, strides = (x.shape[0], *size), (1, *taps), (1, *strides)
  padding = ((0, 0), *padding)
  margins = ((0, 0), margin, *[(0, 0)] * (len(taps) - 2))
  height, width = len(shifts) * features, math.prod(taps) * channels
  block = _block(size, _BLOCK_BYTES // (4 * (height + width)))
  blocks = [n // b for n, b in zip(size, block, strict=True)]
  # What the taps span on x, from the first voxel of the block to its last.
  spans = [(b - 1) * s + 1 for b, s in zip(block, strides, strict=True)]
  seen = [span + k - 1 for span, k in zip(spans, taps, strict=True)]
  over = (block[0], block[1] + len(shifts) - 1, *block[2:])

  def product(
    i: jax.Array, buffers: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    start = [
      n * b for n, b in zip(jnp.unravel_index(i, blocks), block, strict=True)
    ]
    corner = [n * s for n, s in zip(start, strides, strict=True)]
    others = _window(cotangent, start, over, margins)
    others = _side_by_side(
      buffers[0], [others[:, shift : shift + block[1]] for shift in shifts]
    )
    patches = _window(x, corner, seen, padding)
    patches = _side_by_side(
      buffers[1],
      [
        patches[
          tuple(
            slice(t, t + span, stride)
            for t, span, stride in zip(tap, spans, strides, strict=True)
          )
        ]
        for tap in itertools.product(*map(range, taps))
      ],
    )
    return onednn.matmul(
      others.reshape(-1, height), patches.reshape(-1, width)
    ), (others, patches)

  # Copying keeps one core busy, so two blocks at once keep two busy.
  count = math.prod(blocks)
  at_once = 2 if count % 2 == 0 else 1

  def add_blocks(i: jax.Array, carry: Carry) -> Carry:
    gradient, buffers = carry
    results = [product(at_once * i + j, pair) for j, pair in enumerate(buffers)]
    gradient += sum(found for found, _ in results)
    return gradient, [pair for _, pair in results]

  buffers = [
    (jnp.zeros((*block, height)), jnp.zeros((*block, width)))
  ] * at_once
  gradient, _ = lax.fori_loop(
    0, count // at_once, add_blocks, (jnp.zeros((height, width)), buffers)
  )
  gradient = gradient.reshape(len(shifts), features, -1, channels)
  return gradient.transpose(0, 2, 3, 1).reshape(shape)


def _window(
  x: jax.Array,
  corner: Sequence[jax.Array],
  size: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  """Returns the part of `size` at `corner` of `x`, had it a rim of zeros.

  Only the part gets the rim: memory is slower than the caches.
  """
  held = [min(n, m) for n, m in zip(size, x.shape, strict=False)]
  start = [
    jnp.clip(c - low, 0, n - h)
    for c, (low, _), n, h in zip(corner, padding, x.shape, held, strict=False)
  ]
  part = lax.dynamic_slice(x, (*start, 0), (*held, x.shape[-1]))
  part = jnp.pad(part, [*padding, (0, 0)])
  place = [c - s for c, s in zip(corner, start, strict=True)]
  return lax.dynamic_slice(part, (*place, 0), (*size, x.shape[-1]))


def _side_by_side(buffer: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
  """Returns `arrays` joined along the last axis, in the memory of `buffer`.

  XLA turns a concatenation of slices into a loop that asks for every number
  from which of them it comes; these updates are plain copies.
  """
  for i, array in enumerate(arrays):
    buffer = lax.dynamic_update_slice_in_dim(
      buffer, array, i * array.shape[-1], -1
    )
  return buffer


def _block(size: Sequence[int], voxels: int) -> tuple[int, ...]:
  """Returns the size of a block of up to `voxels` voxels that divides `size`.

  As long as they go along the last axes, where memory is contiguous.
  """
  block = []
  for n in reversed(size):
    block.append(
      max(d for d in range(1, n + 1) if n % d == 0 and d <= max(voxels, 1))
    )
    voxels //= block[-1]
  return tuple(reversed(block))
