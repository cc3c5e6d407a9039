"""Gradients of kernels that devices add up when they are as small as kernels.

Where a batch is spread over devices, each finds a part of a kernel's gradient,
and the compiler has them add the parts up right behind the product with the
images, whatever becomes of the sum. In `folding.py` that is of kernels of
blocks, which for cells of n voxels have n^2 times the numbers of the parameter
that they are made of. Here each device takes its part back to the parameter
first. The parts are added up over all devices at once; the compiler for TPUs
would do so along one axis of the mesh after the other, for all of its kernels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from medseg_jax.runtime.sharding import AXES

# Examples are spread along the one, the first axis of each along the other.
_DATA, _SPATIAL = AXES

Padding = tuple[int, int]
# (x, kernel, padding of the first image axis) -> y, linear in x and in kernel.
Product = Callable[[jax.Array, jax.Array, Padding], jax.Array]
_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def product(
  fn: Product, stride: int, padding: Padding, x: jax.Array, kernel: jax.Array
) -> jax.Array:
  """Returns `fn(x, kernel, padding)`, its kernel's gradient added up as above.

  Reverse-mode gradients only.

  Args:
    fn: does the same for every example, and is a convolution of
      `1 + sum(padding)` taps along the first axis of images.
    stride: of the convolution there; divides that axis.
    padding: of that axis with zeros.
    x: `[B, *S, C]`.
    kernel: of any shape.
  """
  return fn(x, kernel, padding)


def _forward(
  fn: Product, stride: int, padding: Padding, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, _Pair]:
  return fn(x, kernel, padding), (x, kernel)


def _backward(
  fn: Product,
  stride: int,
  padding: Padding,
  saved: _Pair,
  cotangent: jax.Array,
) -> _Pair:
  x, kernel = saved
  (of_x,) = jax.vjp(lambda x: fn(x, kernel, padding), x)[1](cotangent)
  # What the first and the last of a device's rows meet beyond them.
  borders = padding[0], max(padding[1] + 1 - stride, 0)
  mesh = jax.sharding.get_abstract_mesh()
  if not _divides(mesh, x, stride, max(borders)):
    return of_x, _of_kernel(fn, padding, x, kernel, cotangent)
  parts = mesh.shape[_SPATIAL]

  def add_up(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
  ) -> jax.Array:
    own_padding = padding
    if parts > 1:
      x, own_padding = _with_borders(x, borders, parts), (0, 0)
    own = _of_kernel(fn, own_padding, x, kernel, cotangent)
    return lax.psum(own, AXES)

  images, everywhere = PartitionSpec(*AXES), PartitionSpec()
  return of_x, jax.shard_map(
    add_up,
    in_specs=(images, everywhere, images),
    out_specs=everywhere,
    check_vma=False,  # which would add up where the blocks meet the images
  )(x, kernel, cotangent)


product.defvjp(_forward, _backward)


def _of_kernel(
  fn: Product,
  padding: Padding,
  x: jax.Array,
  kernel: jax.Array,
  cotangent: jax.Array,
) -> jax.Array:
  return jax.vjp(lambda kernel: fn(x, kernel, padding), kernel)[1](cotangent)[0]


def _divides(
  mesh: AbstractMesh, x: jax.Array, stride: int, border: int
) -> bool:
  """Returns whether the devices of the mesh have equal parts of the images.

  Args:
    mesh: that the program is for; empty where it is for one device.
    x: images.
    stride: that divides the rows of each part.
    border: rows that neighbours lend each other, from one to the next.
  """
  if mesh.axis_names != AXES or mesh.size == 1:
    return False
  if any(of != AxisType.Auto for of in mesh.axis_types):
    return False  # within somebody's own `shard_map` the parts are cut already
  data, spatial = mesh.shape[_DATA], mesh.shape[_SPATIAL]
  if x.shape[0] % data:
    return False
  if spatial == 1:
    return True
  # Of images with one axis cells lie along the only one.
  rows, rest = divmod(x.shape[1], spatial)
  return x.ndim > 3 and not rest and rows % stride == 0 and rows >= border


def _with_borders(x: jax.Array, borders: Padding, parts: int) -> jax.Array:
  """Returns a device's rows between those of its neighbours, 0 where none are.

  Args:
    x: `[B, rows, ...]`.
    borders: number of rows before and after.
    parts: number of devices in a row.
  """
  before, after = borders
  onward = [(i, i + 1) for i in range(parts - 1)]
  back = [(i + 1, i) for i in range(parts - 1)]
  # What nobody sends is 0.
  pieces = [x]
  if before:
    pieces.insert(0, lax.ppermute(x[:, -before:], _SPATIAL, onward))
  if after:
    pieces.append(lax.ppermute(x[:, :after], _SPATIAL, back))
  return jnp.concatenate(pieces, 1)
