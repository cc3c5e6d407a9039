"""The data set in device memory: whether it fits, and how it lies there.

All cases lie one after the other in flat buffers. Each device holds them whole
where they fit; otherwise as few neighbours as it takes hold one copy together,
each an equal part of the voxels, whatever case they belong to.
`device_batches` cuts the batches out of it.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from medseg_jax.data.cache import Cache
from medseg_jax.data.sampling import ANNOTATED
from medseg_jax.runtime import host_memory, multihost, sharding
from medseg_jax.runtime.errors import InputError

MODES = ('auto', 'on', 'off')
# Of the memory of an accelerator, or of the host where that is the device.
DEVICE_SHARE = 0.3
HOST_SHARE, HOST_BYTES = 0.1, 2e9
MOST = 0.8  # that mode 'on' may take
# Devices that hold a copy together in mode 'auto'. Each of them cuts and sends
# as many patches for every one of its own; the host had better read then.
MOST_MEMBERS = 16
MAX_VOXELS = 2**31 - 1  # of a device and of a case: indices are int32
_ELSEWHERE = -(2**31)  # with any place in a case on top it is negative


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeviceData:
  """A data set of `N` cases, a copy on each group of neighbouring devices.

  There are `D` devices, in the order of their mesh, row by row. Each has `P`
  voxels, of `C` channels.

  Attributes:
    image: `[D * P, C]` float16, or float32 where a case needs it.
    label: `[D * P]` uint8 or int16.
    first: `[D, N]` int32, first voxel of each case, counted from the device's
      own first; the least int32 where the device has nothing of the case.
    shapes: `[N, R]` int32, on every device.
    voxels: to centre patches on, on every device; None where patches may lie
      anywhere.
    members: how many devices hold a copy together.
  """

  image: jax.Array
  label: jax.Array
  first: jax.Array
  shapes: jax.Array
  voxels: Voxels | None
  members: int = dataclasses.field(metadata={'static': True})


def specs(members: int) -> DeviceData:
  """Returns how the arrays of a `DeviceData` are spread over the mesh."""
  spread = PartitionSpec(sharding.AXES)
  everywhere = PartitionSpec()
  return DeviceData(spread, spread, spread, everywhere, everywhere, members)


# Whether it fits.


def place(cache: Cache, *, mode: str, mesh: Mesh) -> DeviceData | None:
  """Returns the data set on the devices of `mesh`, None where it is not to be.

  Prints where it lies.

  Args:
    cache: of the training split.
    mode: 'auto' where it fits a share of the memory, 'on', or 'off'.
    mesh: each device holds a whole copy, or else groups of them.

  Raises:
    InputError: `mode` is 'on', and the memory does not suffice.
  """
  if mode == 'off':
    return None
  # Hosts may have different memory, and are to come to one answer.
  room = min(multihost.gather(_room(mode, mesh)))
  members, why_not = _choose(cache, mode, room, mesh)
  if why_not:
    print(f'patches   read on the host: {why_not}', flush=True)
    return None
  data = _put(cache, members, mesh)
  size, where = _size(bytes_of_device(data)), 'device'
  if members > 1:
    where = f'devices, {members} of which share a copy'
  print(f'patches   from the data set on the {where}: {size}', flush=True)
  return data


def abstract(
  cache: Cache, *, mode: str, mesh: Mesh, memory: float
) -> DeviceData | None:
  """Returns the shapes of what `place` returns, for devices that are not here.

  Args:
    cache: likewise; mode and mesh, too.
    memory: bytes of each device.
  """
  if mode == 'off':
    return None
  room = (DEVICE_SHARE if mode == 'auto' else MOST) * memory
  members, why_not = _choose(cache, mode, room, mesh)
  if why_not:
    return None
  spread, everywhere = sharding.each(mesh), sharding.replicated(mesh)
  length = _part_length(_num_voxels(cache), members)

  def shape(layout, dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=layout)

  num_cases, rank = len(cache.shapes), len(cache.shapes[0])
  channels = cache.images[0].shape[-1]
  return DeviceData(
    image=shape(spread, cache.image_dtype, mesh.size * length, channels),
    label=shape(spread, _label_dtype(cache), mesh.size * length),
    first=shape(spread, np.int32, mesh.size, num_cases),
    shapes=shape(everywhere, np.int32, num_cases, rank),
    voxels=jax.tree.map(
      lambda x: shape(everywhere, x.dtype, *x.shape), _flatten_voxels(cache)
    ),
    members=members,
  )


def bytes_of_device(data: DeviceData | None) -> int:
  """Returns what the data set, or its shapes, take on each device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(data)
  )


class Size(NamedTuple):
  """What of a data set takes memory.

  Attributes:
    voxels: of all cases.
    largest_case: its voxels.
    bytes_each: the most that a voxel may take.
    points: voxels to centre patches on, which every device has.
  """

  voxels: int
  largest_case: int
  bytes_each: int
  points: int

  def num_bytes(self, members: int = 1) -> int:
    """Returns the most that a device needs, `members` of which share a copy."""
    part = _part_length(self.voxels, members)
    return self.bytes_each * part + 4 * self.points  # int32


def _part_length(voxels: int, members: int) -> int:
  """Returns how many voxels each of the devices has that share a copy."""
  return -(-voxels // members)


def measure(cache: Cache) -> Size:
  """Returns the size of a data set."""
  channels = cache.images[0].shape[-1]
  points = 0
  for case in cache.voxels or ():
    points += sum(map(len, case.values()))
  return Size(
    voxels=_num_voxels(cache),
    largest_case=max(map(math.prod, cache.shapes)),
    bytes_each=cache.image_dtype.itemsize * channels + 2,  # int16 labels
    points=points,
  )


def _num_voxels(cache: Cache) -> int:
  return sum(map(math.prod, cache.shapes))


def _choose(
  cache: Cache, mode: str, room: float, mesh: Mesh
) -> tuple[int, str]:
  """Returns how many devices hold a copy together, and why it does not fit.

  Raises:
    InputError: it does not fit, but has to.
  """
  size, why_not = measure(cache), ''
  most = min(mesh.size, MOST_MEMBERS) if mode == 'auto' else mesh.size
  for members in range(1, most + 1):
    if mesh.size % members == 0:
      why_not = _why_not(size, members, mode, room)
      if not why_not:
        return members, ''
  if mode == 'on':
    raise InputError(
      f'config.data.device_cache is on, but {why_not}; auto or off reads the '
      'batches on the host'
    )
  return 0, why_not


def _why_not(size: Size, members: int, mode: str, room: float) -> str:
  """Returns why the data set is not put on the devices; '' where it is."""
  shared = f', shared by {members} devices' if members > 1 else ''
  for count, what in (
    (
      _part_length(size.voxels, members),
      f'the data set has {size.voxels} voxels{shared}',
    ),
    (size.largest_case, f'a case has {size.largest_case} voxels'),
    (size.points, f'the data set has {size.points} voxels of its classes'),
  ):
    if count > MAX_VOXELS:
      return f'{what}, more than {MAX_VOXELS}'
  if size.num_bytes(members) <= room:
    return ''
  wanted = 'for that' if mode == 'auto' else 'at the most'
  return (
    f'the data set takes {_size(size.num_bytes(members))} on each device'
    f'{shared}, and there are {_size(room)} {wanted}'
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


# Putting it there.


class _Part(NamedTuple):
  """What one device of a group has, on the host: see `DeviceData`."""

  image: np.ndarray
  label: np.ndarray
  first: np.ndarray


def _put(cache: Cache, members: int, mesh: Mesh) -> DeviceData:
  """Returns the data set on the devices of `mesh`.

  A process reads what its own devices hold, the part of one after the other.
  """
  layout, everywhere = sharding.each(mesh), sharding.replicated(mesh)
  dtype = _label_dtype(cache)
  devices: dict[int, list[jax.Device]] = {}
  places = layout.addressable_devices_indices_map((mesh.size,))
  for device, (index,) in places.items():
    number = index.indices(mesh.size)[0]
    devices.setdefault(number % members, []).append(device)
  parts: list[_Part] = []
  with jax.transfer_guard('allow'):  # transfers on purpose, guard or not
    for member, owners in devices.items():
      part = _part_of(cache, dtype, members, member)
      copies = [jax.device_put(part, device) for device in owners]
      parts += jax.block_until_ready(copies)

  def joined(*arrays):
    shape = mesh.size * arrays[0].shape[0], *arrays[0].shape[1:]
    return jax.make_array_from_single_device_arrays(shape, layout, arrays)

  whole = jax.tree.map(joined, *parts)
  shapes, voxels = jax.tree.map(
    functools.partial(sharding.to_devices, everywhere),
    (np.asarray(cache.shapes, np.int32), _flatten_voxels(cache)),
  )
  return DeviceData(*whole, shapes, voxels, members)


def _part_of(cache: Cache, dtype: np.dtype, members: int, member: int) -> _Part:
  """Returns what the devices have that are of this number in their group."""
  length = _part_length(_num_voxels(cache), members)
  channels = cache.images[0].shape[-1]
  image = np.zeros((length, channels), cache.image_dtype)
  label = np.zeros(length, dtype)
  first = np.full((1, len(cache.shapes)), _ELSEWHERE, np.int32)
  begin = -member * length
  for i, count in enumerate(map(math.prod, cache.shapes)):
    low, high = max(begin, 0), min(begin + count, length)
    if low < high:
      own = slice(low - begin, high - begin)
      image[low:high] = cache.images[i].reshape(count, channels)[own]
      label[low:high] = cache.labels[i].reshape(count)[own]
      first[0, i] = begin
    begin += count
  return _Part(image, label, first)


def _label_dtype(cache: Cache) -> np.dtype:
  """Returns the type that holds every label; each process looks at some."""
  own = multihost.share(range(len(cache.names)))
  dtypes = multihost.gather({cache.labels[i].dtype for i in own})
  return np.result_type(*set().union(*dtypes))


def _flatten_voxels(cache: Cache) -> Voxels | None:
  if cache.voxels is None:
    return None
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
