"""Convolutions of images `[B, *S, C]` of any rank.

Everywhere but on CPU they are XLA's own. On CPU these run at 5 to 40 % of the
machine's rate in 3-D, where channels are few, and for the gradient with respect
to the kernel. There oneDNN computes the convolution and the gradient with
respect to the image, which is a convolution, too, at 50 to 100 %, and the
kernel's gradient is a sum of matrix products over blocks of voxels that stay in
the caches, at 40 to 80 %. Where channels are many, half of the products are
saved (`cpu/winograd.py`).
"""

import functools
import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.models import resampling
from medseg_jax.models.cpu import onednn, winograd

# Of a block with all that its taps see: 2 to 8 MB are alike, less is slower.
_BLOCK_BYTES = 2**22


def conv(features: int, kernel: Sequence[int], stride: Sequence[int], **kwargs):
  """Returns an `nn.Conv` that divides every axis by its stride exactly.

  Padding is symmetric for odd kernels, also with a stride, as in PyTorch.
  """
  return nn.Conv(
    features,
    tuple(kernel),
    tuple(stride),
    padding=[((k - 1) // 2, k // 2) for k in kernel],
    conv_general_dilated=_convolve,
    **kwargs,
  )


def _convolve(x, kernel, strides, padding, **kwargs):
  """Returns what `lax.conv_general_dilated` does, which Flax calls so."""
  if _on_one_cpu():
    return convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))
  return lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)


def matmul(x: jax.Array, matrix: jax.Array) -> jax.Array:
  """Returns `x @ matrix`, `[B, *S, C]` x `[C, F]`: a convolution by one tap."""
  if not _on_one_cpu():
    return x @ matrix
  ones = (1,) * (x.ndim - 2)
  return convolve(
    x, matrix.reshape(*ones, *matrix.shape), ones, ((0, 0),) * len(ones)
  )


def _on_one_cpu():
  # XLA knows how to share its own convolution among several devices.
  mesh = jax.sharding.get_abstract_mesh()
  several = not mesh.empty and mesh.size > 1
  return jax.default_backend() == 'cpu' and not several and onednn.usable()


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the transposed convolution with stride = kernel size.

  Every voxel becomes a cell of voxels, each by a matrix of its own, which is a
  1x1 convolution and `depth_to_space`.

  Args:
    x: `[B, *S, C]`.
    kernel: `[*factors, C, features]`.

  Returns:
    `[B, *(S*factors), features]`.
  """
  matrix = jnp.moveaxis(kernel, -2, 0).reshape(x.shape[-1], -1)
  return resampling.depth_to_space(matmul(x, matrix), kernel.shape[:-2])


def convolve(x, kernel, strides, padding):
  """Returns the convolution `[B, *S, C]` x `[*taps, C, F]`, fast on CPU.

  Computed in float32, returned in the dtype of `x`. Reverse-mode gradients
  only.
  """
  y = _convolve_float32(
    x.astype(jnp.float32), kernel.astype(jnp.float32), strides, padding
  )
  return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_float32(x, kernel, strides, padding):
  # A program that is lowered on a CPU for another platform has no oneDNN.
  settings = dict(strides=strides, padding=padding)
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(_fast, **settings),
    default=functools.partial(_own, **settings),
  )


def _fast(x, kernel, strides, padding, *, swapped=False):
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


def _is_one_tap(kernel_shape, strides, padding):
  """Returns whether slices along the first axis are images of their own.

  Not where all axes have one tap, as one product serves these.
  """
  return (
    kernel_shape[0] == strides[0] == 1
    and tuple(padding[0]) == (0, 0)
    and math.prod(kernel_shape[: len(strides)]) > 1
  )


def _slices(x):
  """Returns the slices along the first axis as examples of a batch."""
  return x.reshape(-1, *x.shape[2:])


def _own(x, kernel, strides, padding):
  axes = 'XYZ'[: len(strides)]
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    dimension_numbers=(f'N{axes}C', f'{axes}IO', f'N{axes}C'),
  )


def _forward(x, kernel, strides, padding):
  return _convolve_float32(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, saved, cotangent):

  def gradients(x, kernel, cotangent):
    return (
      _image_gradient(x.shape, kernel, cotangent, strides, padding),
      _kernel_gradient(x, kernel.shape, cotangent, strides, padding),
    )

  def own(x, kernel, cotangent):
    _, vjp = jax.vjp(
      lambda x, kernel: _own(x, kernel, strides, padding), x, kernel
    )
    return vjp(cotangent)

  return lax.platform_dependent(*saved, cotangent, cpu=gradients, default=own)


_convolve_float32.defvjp(_forward, _backward)


def _image_gradient(shape, kernel, cotangent, strides, padding):
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


def _kernel_gradient(x, shape, cotangent, strides, padding):
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


def _all_products(x, shape, cotangent, strides, padding):
  """Returns the gradient with respect to the kernel, of size `shape`.

  For every voxel of a block, what its taps see on `x` lies side by side, and so
  do the voxels of the cotangent that see it along the first axis: that way 12
  copies serve the 27 taps of a volume. The sum over the block is one product.
  """
  *taps, channels, features = shape
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

  def product(i, buffers):
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

  def add_blocks(i, carry):
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


def _window(x, corner, size, padding):
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


def _side_by_side(buffer, arrays):
  """Returns `arrays` joined along the last axis, in the memory of `buffer`.

  XLA turns a concatenation of slices into a loop that asks for every number
  from which of them it comes; these updates are plain copies.
  """
  for i, array in enumerate(arrays):
    buffer = lax.dynamic_update_slice_in_dim(
      buffer, array, i * array.shape[-1], -1
    )
  return buffer


def _block(size, voxels):
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
