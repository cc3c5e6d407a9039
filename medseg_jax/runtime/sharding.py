"""The device mesh and how arrays lie on it.

One mesh of two axes serves one device, many devices and many hosts: examples
are spread over `data`, the first spatial axis over `spatial` (the compiler
exchanges the borders that convolutions need).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medseg_jax.runtime.errors import InputError, counted


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
  # Auto axes: the compiler chooses the layout of everything in between.
  # Explicit axes, the default, reject vmapped augmentation.
  # Axes of a torus may be split among them: 8 x 8 x 16 chips are 256 x 4, too.
  grid = mesh_utils.create_device_mesh(
    (data, spatial),
    jax.devices()[:num_devices] if devices is None else devices,
    allow_split_physical_axes=True,
  )
  return Mesh(grid, ('data', 'spatial'), axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
  """Returns a mesh of all devices of this process, on the data axis.

  What prediction needs: tiles are independent of each other, and the devices
  are seldom those of the training.
  """
  devices = jax.local_devices()
  return jax.make_mesh(
    (len(devices), 1),
    ('data', 'spatial'),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )


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


def patches(mesh: Mesh) -> NamedSharding:
  """Returns the layout of a training batch: `[B, S_1, ...]`."""
  return NamedSharding(mesh, PartitionSpec('data', 'spatial'))


def examples(mesh: Mesh) -> NamedSharding:
  """Returns the layout of independent examples: `[B, ...]`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def to_devices(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
  """Returns the global array of which this process holds `array`'s rows."""
  with jax.transfer_guard('allow'):  # a transfer on purpose, guard or not
    return jax.make_array_from_process_local_data(sharding, array)
