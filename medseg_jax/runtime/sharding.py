"""The device mesh and how arrays lie on it.

One mesh of two axes serves one device, many devices and many hosts: examples
are spread over `data`, the first spatial axis over `spatial` (the compiler
exchanges the borders that convolutions need).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medseg_jax.runtime.errors import InputError, counted

AXES = ('data', 'spatial')


def create_mesh(
  *,
  data: int = -1,
  spatial: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Returns a `data` x `spatial` mesh; -1 for `data` takes what is left.

  Args:
    data: devices that share a batch.
    spatial: devices that share an image.
    devices: to make it of; None for all there are.

  Raises:
    InputError: the product is not the number of devices.
  """
  num_devices = jax.device_count() if devices is None else len(devices)
  if spatial < 1 or (data < 1 and data != -1):
    raise InputError(
      f'config.mesh is {data} x {spatial}; both are at least 1, or data is -1 '
      'for all devices'
    )
  if data == -1:
    data = max(num_devices // spatial, 1)
  if data * spatial != num_devices:
    raise InputError(
      f'config.mesh is {data} x {spatial} (data x spatial) for '
      f'{counted(num_devices, "device")}; the product has to be {num_devices}'
    )
  if devices is None:
    devices = jax.devices()[:num_devices]
  return _mesh_of(devices, data, spatial)


def _mesh_of(devices: Sequence[jax.Device], data: int, spatial: int) -> Mesh:
  """Returns a `data` x `spatial` mesh of devices, neighbours side by side."""
  num_slices = 1
  if devices[0].platform == 'tpu':  # others have none, or call a host one
    num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if data % num_slices:
    raise InputError(
      f'config.mesh is {data} x {spatial} (data x spatial) for {num_slices} '
      'slices; each has to have as much of the data axis'
    )
  # Axes of a torus may be split among ours: 8 x 8 x 16 chips are 256 x 4, too.
  settings = dict(devices=devices, allow_split_physical_axes=True)
  if num_slices == 1:
    placed = mesh_utils.create_device_mesh((data, spatial), **settings)
  else:  # a network is between them, for the gradient alone
    placed = mesh_utils.create_hybrid_device_mesh(
      (data // num_slices, spatial), (num_slices, 1), **settings
    )
  # Auto axes: the compiler chooses the layout of everything in between.
  # Explicit axes, the default, reject vmapped augmentation.
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
  """Returns a mesh of all devices of this process, on the data axis.

  What prediction needs: tiles are independent of each other, and the devices
  are seldom those of the training.
  """
  return _mesh_of(jax.local_devices(), jax.local_device_count(), 1)


def own_part(mesh: Mesh) -> Mesh:
  """Returns a mesh of those devices of `mesh` that are this process's.

  On the data axis, as `local_mesh`.
  """
  devices = mesh.local_devices
  return _mesh_of(devices, len(devices), 1)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises InputError unless every device of the data axis gets as much."""
  share = mesh.shape['data']
  if batch_size < 1 or batch_size % share:
    down = batch_size // share * share
    near = f'{down} or {down + share}' if down > 0 else f'{share}'
    raise InputError(
      f'config.batch_size is {batch_size}, which {counted(share, "device")} on '
      f'the data axis cannot share; the nearest that they can: {near}'
    )


def round_up(batch_size: int, mesh: Mesh) -> int:
  """Returns the next batch size that the devices can share evenly."""
  share = mesh.shape['data']
  return -(-batch_size // share) * share


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the layout that puts a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def each(mesh: Mesh) -> NamedSharding:
  """Returns the layout that gives each device its own rows: `[B, ...]`."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def patches(mesh: Mesh) -> NamedSharding:
  """Returns the layout of a training batch: `[B, S_1, ...]`."""
  return NamedSharding(mesh, PartitionSpec('data', 'spatial'))


def examples(mesh: Mesh) -> NamedSharding:
  """Returns the layout of independent examples: `[B, ...]`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def to_devices(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
  """Returns `array`, which each process holds as a whole, on the devices."""
  array = np.asarray(array)
  with jax.transfer_guard('allow'):  # a transfer on purpose, guard or not
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )


def own_rows(sharding: NamedSharding, shape: Sequence[int]) -> np.ndarray:
  """Returns which rows of an array lie on devices of this process, ascending.

  Args:
    sharding: of the array.
    shape: of the array.
  """
  places = sharding.addressable_devices_indices_map(tuple(shape)).values()
  rows = np.arange(shape[0])
  return np.unique(np.concatenate([rows[index[0]] for index in places]))


def rows_to_devices(
  sharding: NamedSharding, num_rows: int, own: np.ndarray, array: np.ndarray
) -> jax.Array:
  """Returns an array of `num_rows` rows, of which each process has its own.

  Args:
    sharding: of the array.
    num_rows: of all processes together.
    own: which of them `array` has, as `own_rows` says.
    array: `[len(own), ...]`.
  """

  def part(index: tuple[slice, ...]) -> np.ndarray:
    wanted = np.arange(num_rows)[index[0]]
    first = int(np.searchsorted(own, wanted[0]))
    return array[(slice(first, first + len(wanted)), *index[1:])]

  with jax.transfer_guard('allow'):  # a transfer on purpose, guard or not
    return jax.make_array_from_callback(
      (num_rows, *array.shape[1:]), sharding, part
    )


def local_copy(tree: Any, mesh: Mesh) -> Any:
  """Returns arrays that every device has whole, on the devices of `mesh`.

  Without a transfer where they are there.

  Args:
    tree: of arrays that are replicated.
    mesh: of this process.
  """
  layout = replicated(mesh)
  local = set(mesh.devices.flat)

  def copy(array: jax.Array) -> jax.Array:
    parts = [s.data for s in array.addressable_shards if s.device in local]
    return jax.make_array_from_single_device_arrays(array.shape, layout, parts)

  return jax.tree.map(copy, tree)
