"""Batches from the data set on the devices, inside compiled programs.

Which patches make a batch and the patches themselves are computed inside the
compiled step, and a compiled loop makes many steps, so the host has nothing to
do between them. The batches are those of `input_pipeline`, to the bit. Of an
`UnreadBatch` the augmentation looks up the voxels that it needs, no more.

Where a group of devices holds one copy of the data set together, each cuts out
of its part what the patches of all of them have there, zeros elsewhere, and the
sum hands each its own. The sum is one of bits, so it is exact.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from medseg_jax.augment.lookup import Box, Lookup, Pair, Place, Rows, T
from medseg_jax.data import sampling
from medseg_jax.data.masking import NOWHERE
from medseg_jax.data.sampling import Patches
from medseg_jax.runtime import sharding
from medseg_jax.state import TrainState
from medseg_jax.training import device_cache
from medseg_jax.training.device_cache import DeviceData

MAX_STEPS = 50  # of one call on an accelerator


def read_batch(
  data: DeviceData,
  step: jax.Array,
  *,
  seed: int,
  batch_size: int,
  patch_size: tuple[int, ...],
  read_size: tuple[int, ...],
  layout: NamedSharding,
  foreground_share: float = 0.0,
) -> dict[str, jax.Array]:
  """Returns the batch of a step, as `input_pipeline` yields it.

  `{'image': [B, *read, C], 'label': [B, *read] int16}`

  Args:
    data: on the devices of `layout`; with voxels for a foreground share and for
      those patches that must not lie anywhere.
    step: scalar int32.
    seed: of the order and of the patch positions.
    batch_size: global.
    patch_size: spatial; two numbers for slices of volumes.
    read_size: of what is read around each patch. Its first axis, as the batch,
      has as much for each device that shares it.
    layout: of the batch, that of `sharding.patches`.
    foreground_share: of the batch, centred on foreground.
  """

  def own_part(data, step):
    chosen = _draw(
      data,
      step,
      seed=seed,
      batch_size=batch_size,
      patch_size=patch_size,
      foreground_share=foreground_share,
    )
    image, label = _cut(data, chosen, patch_size, read_size, layout.mesh)
    image, label = _hand_out(image, label, data.members, layout.mesh)
    return {'image': image, 'label': label}

  return jax.shard_map(
    own_part,
    mesh=layout.mesh,
    in_specs=(device_cache.specs(data.members), PartitionSpec()),
    out_specs=layout.spec,
  )(data, step)


@dataclasses.dataclass(frozen=True)
class UnreadBatch:
  """A batch that an augmentation looks up in the data set by itself.

  A warp finds in it what it does in the batch that `read_batch` cuts out, to
  the bit. It takes a whole copy of the data set on every device.

  Attributes: as the arguments of `read_batch`.
  """

  data: DeviceData
  step: jax.Array
  seed: int
  batch_size: int
  patch_size: tuple[int, ...]
  read_size: tuple[int, ...]
  layout: NamedSharding
  foreground_share: float = 0.0

  def look_up(self, fn: Callable[[T, Lookup, Rows], Pair], drawn: T) -> Pair:
    """Returns image `[B, *P, C]` and label `[B, *P]`, see `Unread`."""
    return jax.shard_map(
      functools.partial(self._own_part, fn),
      mesh=self.layout.mesh,
      in_specs=(
        device_cache.specs(1),
        PartitionSpec(),
        PartitionSpec('data'),
      ),
      out_specs=self.layout.spec,
    )(self.data, self.step, drawn)

  def _own_part(self, fn, data, step, drawn) -> Pair:
    chosen = _draw(
      data,
      step,
      seed=self.seed,
      batch_size=self.batch_size,
      patch_size=self.patch_size,
      foreground_share=self.foreground_share,
    )
    share = self.batch_size // self.layout.mesh.shape['data']
    first_row = share * lax.axis_index('data')
    cases, starts = (
      lax.dynamic_slice_in_dim(x, first_row, share) for x in chosen
    )
    count = self.patch_size[0] // self.layout.mesh.shape['spatial']
    rows = count * lax.axis_index('spatial'), count

    def one(example):
      drawn, case, start = example
      return fn(drawn, self._lookup(data, case, start), rows)

    # Not by vmap: it would warp those, too, that are not to be warped.
    return lax.map(one, (drawn, cases, starts))

  def _lookup(self, data, case, start) -> Lookup:
    rank = start.shape[0]
    size = sampling.volume_patch(self.read_size, rank)
    margin = np.subtract(size, sampling.volume_patch(self.patch_size, rank))
    starts, lengths = start - (margin // 2).astype(np.int32), data.shapes[case]
    offset, inside = data.first[0, case], jnp.ones((), bool)
    for axis in range(rank - len(self.read_size)):  # a slice of a volume
      inside &= (starts[axis] >= 0) & (starts[axis] < lengths[axis])
      place = jnp.clip(starts[axis], 0, lengths[axis] - 1)
      offset += place * jnp.prod(lengths[axis + 1 :])
    first = Place(offset, inside)
    axes = slice(rank - len(self.read_size), None)
    return Lookup(
      data.image,
      data.label,
      shape=self.read_size,
      box=Box(first, starts[axes], lengths[axes]),
      beyond=NOWHERE,
    )


def _draw(data: DeviceData, step: jax.Array, **settings) -> Patches:
  """Returns the patches of a batch.

  A few numbers, which every device had better compute than be sent.
  """
  return sampling.draw_patches(
    step=step,
    num_cases=data.shapes.shape[0],
    rank=data.shapes.shape[1],
    shape_fn=lambda cases: data.shapes[cases],
    voxel_fn=data.voxels and functools.partial(_pick_voxels, data),
    xp=jnp,
    **settings,
  )


def _pick_voxels(data, cases, forced, class_bits, voxel_bits):
  """Returns a voxel of a class where forced, else one that is annotated.

  -1 where the case has none.
  """
  points, first, counts = data.voxels
  if not points.shape[0]:
    return jnp.full((cases.shape[0], data.shapes.shape[1]), -1, jnp.int32)
  present = (counts[cases, 1:] > 0).sum(1).astype(jnp.uint32)
  chosen = (class_bits % jnp.maximum(present, 1)).astype(jnp.int32) + 1
  chosen = jnp.where(forced & (present > 0), chosen, 0)
  count = counts[cases, chosen]
  number = voxel_bits % jnp.maximum(count, 1).astype(jnp.uint32)
  number = number.astype(jnp.int32)
  left = points[first[cases, chosen] + number]
  shapes = data.shapes[cases]
  places = []
  for axis in reversed(range(shapes.shape[1])):
    left, place = jnp.divmod(left, shapes[:, axis])
    places.append(place)
  voxel = jnp.stack(places[::-1], -1)
  return jnp.where(count[:, None] > 0, voxel, -1)


def _cut(
  data: DeviceData,
  patches: Patches,
  patch_size: tuple[int, ...],
  read_size: tuple[int, ...],
  mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
  """Returns what this device has of the patches of its group's devices.

  `[members * b, *read, C]` and `[members * b, *read]` int16: one after the
  other what is to lie on each device of the group, 0 where others have it. What
  no case has is cut by the first of the group.
  """
  batch_size, rank = patches.starts.shape
  size = list(sampling.volume_patch(read_size, rank))
  margin = np.subtract(size, sampling.volume_patch(patch_size, rank)) // 2
  starts = patches.starts - margin.astype(np.int32)
  # Of the devices of the group: their rows of the batch, their first voxels.
  number = lax.axis_index(sharding.AXES)
  group = number - number % data.members + np.arange(data.members)
  row, column = jnp.divmod(group.astype(jnp.int32), mesh.shape['spatial'])
  share = batch_size // mesh.shape['data']
  rows = row[:, None] * share + np.arange(share, dtype=np.int32)
  rows, column = rows.reshape(-1), jnp.repeat(column, share)
  first_axis = rank - len(read_size)
  size[first_axis] //= mesh.shape['spatial']
  starts = starts[rows].at[:, first_axis].add(size[first_axis] * column)
  cases = patches.cases[rows]
  shapes = data.shapes[cases]

  index = jnp.zeros((len(rows), *size), jnp.int32)
  inside = jnp.ones(index.shape, bool)
  for axis in range(rank):
    along = [-1, *[1] * rank]
    each = [1] * index.ndim
    each[axis + 1] = -1
    place = starts[:, axis].reshape(along) + np.arange(
      size[axis], dtype=np.int32
    ).reshape(each)
    length = shapes[:, axis].reshape(along)
    index = index * length + place
    inside &= (place >= 0) & (place < length)
  index += data.first[0, cases].reshape(along)
  here = inside & (index >= 0) & (index < data.label.shape[0])
  shape = (len(rows), *size[first_axis:])
  index, inside, here = (
    x.reshape(shape) for x in (jnp.where(here, index, 0), inside, here)
  )
  image = data.image.at[index].get(mode='promise_in_bounds')
  label = data.label.at[index].get(mode='promise_in_bounds').astype(jnp.int16)
  nowhere = jnp.where(~inside & (number == group[0]), NOWHERE, 0)
  return (
    jnp.where(here[..., None], image, 0),
    jnp.where(here, label, nowhere.astype(jnp.int16)),
  )


def _hand_out(image, label, members, mesh) -> tuple[jax.Array, jax.Array]:
  """Returns this device's part of the batch, from what all of its group cut."""
  if members == 1:
    return image, label
  dtype, channels = image.dtype, image.shape[-1]
  groups = np.arange(mesh.size).reshape(-1, members)
  words = lax.psum_scatter(
    _pack(image, label),
    sharding.AXES,
    scatter_dimension=0,
    axis_index_groups=groups.tolist(),
    tiled=True,
  )
  return _unpack(words, dtype, channels)


def _pack(image, label) -> jax.Array:
  """Returns the bits of both in one array: `[B, W, *S]` uint32.

  Sums of floats would lose the sign of zeros, and not every accelerator adds 16
  bits.
  """
  word = jnp.dtype(f'uint{8 * image.dtype.itemsize}')
  bits = lax.bitcast_convert_type(image, word)
  rows = [bits[..., i] for i in range(bits.shape[-1])]
  rows = [row.astype(jnp.uint32) for row in rows]
  rows.append(lax.bitcast_convert_type(label, jnp.uint16).astype(jnp.uint32))
  if word == jnp.uint16:
    low, high = rows[::2], rows[1::2]
    high += [jnp.zeros_like(low[0])] * (len(low) - len(high))
    rows = [a | (b << 16) for a, b in zip(low, high, strict=True)]
  return jnp.stack(rows, 1)


def _unpack(words, dtype, channels) -> tuple[jax.Array, jax.Array]:
  """Returns image and label int16 of what `_pack` returned."""
  word = jnp.dtype(f'uint{8 * dtype.itemsize}')
  rows = [words[:, i] for i in range(words.shape[1])]
  if word == jnp.uint16:
    rows = [half for row in rows for half in (row & 0xFFFF, row >> 16)]
  bits = jnp.stack(rows[:channels], -1).astype(word)
  label = lax.bitcast_convert_type(rows[channels].astype(jnp.uint16), jnp.int16)
  return lax.bitcast_convert_type(bits, dtype), label


# Many steps in one program.


def create_steps(
  train_step: Callable[[TrainState, Any], tuple[TrainState, dict]],
  *,
  read_fn: Callable[[DeviceData, jax.Array], dict[str, jax.Array]],
  max_count: int,
) -> Callable[[TrainState, DeviceData, jax.Array], tuple[TrainState, dict]]:
  """Returns `(state, data, count) -> (state, metrics)`, for the caller to jit.

  It makes `count` steps (scalar int32, 1 .. `max_count`), whatever the number
  compiled once. The metrics are `[max_count]` each, of which the first `count`
  are set.

  Args:
    train_step: `(state, batch) -> (state, metrics)`.
    read_fn: `(data, step) -> batch`.
    max_count: the most steps of a call. With 1 there is no loop.
  """

  @jax.jit  # so that it is traced once, for its shapes and for the loop
  def one(state, data):
    return train_step(state, read_fn(data, state.step))

  def single(state, data, count):
    state, metrics = one(state, data)
    return state, jax.tree.map(lambda value: value[None], metrics)

  def several(state, data, count):
    def body(i, carry):
      state, rows = carry
      state, metrics = one(state, data)
      return state, jax.tree.map(
        lambda row, value: row.at[i].set(value), rows, metrics
      )

    _, metrics = jax.eval_shape(one, state, data)
    rows = jax.tree.map(
      lambda value: jnp.zeros((max_count, *value.shape), value.dtype), metrics
    )
    return lax.fori_loop(0, count, body, (state, rows))

  return single if max_count == 1 else several


def max_steps(mesh: Mesh) -> int:
  """Returns the most steps of one call on `mesh`.

  One on CPU, where launching a step costs nothing and it may take seconds.
  """
  return 1 if mesh.devices.flat[0].platform == 'cpu' else MAX_STEPS
