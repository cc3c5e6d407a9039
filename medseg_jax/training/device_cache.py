"""The data set in device memory, and steps that read their batches from it.

All cases lie one after the other in flat buffers. Which patches make a batch
and the patches themselves are computed inside the compiled step, and a compiled
loop makes many steps, so the host has nothing to do between them. The batches
are those of `input_pipeline`, to the bit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from medseg_jax.data import sampling
from medseg_jax.data.cache import Cache
from medseg_jax.data.masking import NOWHERE
from medseg_jax.data.sampling import ANNOTATED, Patches
from medseg_jax.runtime import host_memory, multihost, sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import TrainState

MODES = ('auto', 'on', 'off')
# Of the memory of an accelerator, or of the host where that is the device.
DEVICE_SHARE = 0.3
HOST_SHARE, HOST_BYTES = 0.1, 2e9
MOST = 0.8  # that mode 'on' may take
MAX_VOXELS = 2**31 - 1  # indices are int32
MAX_STEPS = 50  # of one call on an accelerator


class Voxels(NamedTuple):
  """Voxels of all cases to centre patches on.

  Attributes:
    points: `[M]` int32, places in the flattened case.
    first: `[N, 1 + K]` int32, where in `points` the annotated voxels of a case
      begin, then the k-th class (or region) that is present in it, in ascending
      order.
    counts: `[N, 1 + K]` int32, how many there are; 0 beyond the last class
      present, and where annotated voxels were not asked for.
  """

  points: jax.Array | np.ndarray
  first: jax.Array | np.ndarray
  counts: jax.Array | np.ndarray


class DeviceData(NamedTuple):
  """A data set of `N` cases as flat buffers, `V` voxels in all.

  Attributes:
    image: `[V, C]` float16, or float32 where a case needs it.
    label: `[V]` uint8 or int16.
    offsets: `[N]` int32, first voxel of each case.
    shapes: `[N, R]` int32.
    voxels: to centre patches on; None where patches may lie anywhere.
  """

  image: jax.Array | np.ndarray
  label: jax.Array | np.ndarray
  offsets: jax.Array | np.ndarray
  shapes: jax.Array | np.ndarray
  voxels: Voxels | None = None


# Putting the data set on the device.


def place(cache: Cache, *, mode: str, mesh: Mesh) -> DeviceData | None:
  """Returns the data set on every device of `mesh`, None where it is not to be.

  Prints where it lies.

  Args:
    cache: of the training split.
    mode: 'auto' where it fits a share of the memory, 'on', or 'off'.
    mesh: every device holds a whole copy.

  Raises:
    InputError: `mode` is 'on', and the memory does not suffice.
  """
  if mode == 'off':
    return None
  size = num_bytes(cache)
  # Hosts may have different memory, and are to come to one answer.
  answers = multihost.gather(_why_not(cache, size, mode, _room(mode, mesh)))
  why_not = next(filter(None, answers), '')
  _check(why_not, mode)
  if why_not:
    print(f'patches   read on the host: {why_not}', flush=True)
    return None
  layout = sharding.replicated(mesh)
  data = jax.tree.map(
    functools.partial(sharding.to_devices, layout), flatten(cache)
  )
  size = sum(array.nbytes for array in jax.tree.leaves(data))
  print(f'patches   from the data set on the device: {_size(size)}', flush=True)
  return data


def num_bytes(cache: Cache) -> int:
  """Returns the most that the data set may take on a device."""
  channels = cache.images[0].shape[-1]
  each = cache.image_dtype.itemsize * channels + 2  # int16 labels
  size = each * _num_voxels(cache)
  if cache.voxels is not None:
    size += sum(
      12 * len(points) for case in cache.voxels for points in case.values()
    )
  return size


def _num_voxels(cache: Cache) -> int:
  return sum(int(np.prod(shape)) for shape in cache.shapes)


def abstract(
  cache: Cache, *, mode: str, mesh: Mesh, memory: float
) -> DeviceData | None:
  """Returns the shapes of what `place` returns, for devices that are not here.

  Args:
    cache: likewise; mode and mesh, too.
    memory: bytes of each device.
  """
  room = (DEVICE_SHARE if mode == 'auto' else MOST) * memory
  if mode == 'off':
    return None
  why_not = _why_not(cache, num_bytes(cache), mode, room)
  _check(why_not, mode)
  if why_not:
    return None
  layout = sharding.replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
    _empty(cache),
  )


def _check(why_not: str, mode: str) -> None:
  if why_not and mode == 'on':
    raise InputError(
      f'config.data.device_cache is on, but {why_not}; auto or off reads the '
      'batches on the host'
    )


def _why_not(cache: Cache, size: int, mode: str, limit: float) -> str:
  """Returns why `size` bytes are not put on the device; '' where they are."""
  if (count := _num_voxels(cache)) > MAX_VOXELS:
    return f'the data set has {count} voxels, more than {MAX_VOXELS}'
  if size <= limit:
    return ''
  room = 'for that' if mode == 'auto' else 'at the most'
  return (
    f'the data set takes {_size(size)} on each device, and there are '
    f'{_size(limit)} {room}'
  )


def _room(mode: str, mesh: Mesh) -> float:
  """Returns the bytes of a device of `mesh` that a data set may take."""
  host = host_memory.available()
  devices = mesh.local_devices
  if devices[0].platform == 'cpu':
    most = min(HOST_SHARE * host, HOST_BYTES) if mode == 'auto' else MOST * host
    return most / len(devices)  # these share the memory of the host
  limit = (devices[0].memory_stats() or {}).get('bytes_limit', 0)
  share = DEVICE_SHARE if mode == 'auto' else MOST
  # The buffers are put together on the host.
  return min(share * limit, MOST * host)


def _size(count: float) -> str:
  for unit, scale in (('GB', 1e9), ('MB', 1e5)):
    if count >= scale:
      return f'{count / max(scale, 1e6):.1f} {unit}'
  return f'{count / 1e3:.1f} kB'


def flatten(cache: Cache) -> DeviceData:
  """Returns the data set as flat buffers on the host."""
  data = _empty(cache)
  for i, begin in enumerate(data.offsets):
    image, label = cache.images[i], cache.labels[i]
    data.image[begin : begin + label.size] = image.reshape(label.size, -1)
    data.label[begin : begin + label.size] = label.reshape(-1)
  return data


def _empty(cache: Cache) -> DeviceData:
  """Returns the buffers, images and labels not filled in: no memory is used."""
  ends = np.cumsum([np.prod(shape) for shape in cache.shapes])
  dtypes = {cache.labels[i].dtype for i in range(len(ends))}
  return DeviceData(
    image=np.empty((ends[-1], cache.images[0].shape[-1]), cache.image_dtype),
    label=np.empty(ends[-1], np.result_type(*dtypes)),
    offsets=np.concatenate([[0], ends[:-1]]).astype(np.int32),
    shapes=np.asarray(cache.shapes, np.int32),
    voxels=None if cache.voxels is None else _flatten_voxels(cache),
  )


def _flatten_voxels(cache: Cache) -> Voxels:
  most = max(len(case.keys() - {ANNOTATED}) for case in cache.voxels)
  counts = np.zeros((len(cache.shapes), 1 + most), np.int32)
  points = [np.zeros(0, np.int32)]
  for i, (case, shape) in enumerate(
    zip(cache.voxels, cache.shapes, strict=True)
  ):
    for k, key in enumerate([ANNOTATED, *sorted(case.keys() - {ANNOTATED})]):
      if key in case:
        counts[i, k] = len(case[key])
        points.append(np.ravel_multi_index(tuple(case[key].T), shape))
  ends = np.cumsum(counts).reshape(counts.shape)
  return Voxels(
    points=np.concatenate(points).astype(np.int32),
    first=(ends - counts).astype(np.int32),
    counts=counts,
  )


# Reading batches inside a compiled program.


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
    data: on the devices; with voxels for a foreground share and for those
      patches that must not lie anywhere.
    step: scalar int32.
    seed: of the order and of the patch positions.
    batch_size: global.
    patch_size: spatial; two numbers for slices of volumes.
    read_size: of what is read around each patch.
    layout: of the batch.
    foreground_share: of the batch, centred on foreground.
  """
  voxel_fn = None
  if data.voxels is not None:
    voxel_fn = functools.partial(_pick_voxels, data)
  chosen = sampling.draw_patches(
    seed=seed,
    step=step,
    batch_size=batch_size,
    num_cases=data.shapes.shape[0],
    rank=data.shapes.shape[1],
    shape_fn=lambda cases: data.shapes[cases],
    voxel_fn=voxel_fn,
    patch_size=patch_size,
    foreground_share=foreground_share,
    xp=jnp,
  )
  # A few numbers, which every device had better compute than be sent.
  chosen = lax.with_sharding_constraint(
    chosen, sharding.replicated(layout.mesh)
  )
  return cut(data, chosen, patch_size, read_size, layout)


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


def cut(
  data: DeviceData,
  patches: Patches,
  patch_size: tuple[int, ...],
  read_size: tuple[int, ...],
  layout: NamedSharding,
) -> dict[str, jax.Array]:
  """Returns the patches, as `sampling.read_batch` does."""
  batch_size, rank = patches.starts.shape
  size = sampling.volume_patch(read_size, rank)
  margin = np.subtract(size, sampling.volume_patch(patch_size, rank)) // 2
  starts = patches.starts - margin.astype(np.int32)
  shapes = data.shapes[patches.cases]
  index = jnp.zeros((batch_size, *size), jnp.int32)
  inside = jnp.ones((batch_size, *size), bool)
  for axis in range(rank):
    along = [-1, *[1] * rank]
    each = [1] * (rank + 1)
    each[axis + 1] = -1
    place = starts[:, axis].reshape(along) + np.arange(
      size[axis], dtype=np.int32
    ).reshape(each)
    length = shapes[:, axis].reshape(along)
    index = index * length + place
    inside &= (place >= 0) & (place < length)
  index = jnp.where(inside, index, 0) + data.offsets[patches.cases].reshape(
    along
  )
  shape = (batch_size, *read_size)
  # Every device of the mesh looks up its own part of the batch.
  index, inside = (
    lax.with_sharding_constraint(x.reshape(shape), layout)
    for x in (index, inside)
  )
  image = data.image.at[index].get(mode='promise_in_bounds')
  label = data.label.at[index].get(mode='promise_in_bounds').astype(jnp.int16)
  return {
    'image': jnp.where(inside[..., None], image, 0),
    'label': jnp.where(inside, label, NOWHERE),
  }


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
