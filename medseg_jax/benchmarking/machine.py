"""What this machine can do, measured: arithmetic, memory traffic, memory."""

import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medseg_jax.runtime import host_memory

MIN_ROUNDS = 3
SHARE_OF_RAM = 0.8  # what of the available one a program may take


def median_seconds(once: Callable[[], object], min_seconds: float) -> float:
  """Returns the median time of a call, which has to wait for its own results.

  Calls for `min_seconds` and at least three times, but slow calls, of which
  three take more than four times `min_seconds`, less often.
  """
  times = []
  while sum(times) < min_seconds or (
    len(times) < MIN_ROUNDS and sum(times) < 4 * min_seconds
  ):
    begin = time.perf_counter()
    once()
    times.append(time.perf_counter() - begin)
  return statistics.median(times)


def peak_flops_per_s(
  device: jax.Device, dtype: jnp.dtype, min_seconds: float
) -> float:
  """Returns the rate of a large matrix product on the device."""
  size = 2048 if device.platform == 'cpu' else 8192
  with jax.default_device(device):
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  product = jax.jit(lambda a: a @ a)
  jax.block_until_ready(product(a))
  seconds = median_seconds(
    lambda: jax.block_until_ready(product(a)), min_seconds
  )
  return 2 * size**3 / seconds


def bytes_per_s(device: jax.Device, min_seconds: float) -> float:
  """Returns the rate of reading and writing a large array on the device.

  Many times as large as the caches. In place: on CPU a new array would measure
  how the system hands out memory.
  """
  rows = 2**16 if device.platform == 'cpu' else 2**18  # of 4 KiB
  array = jnp.zeros((rows, 1024), jnp.float32, device=device)
  increase = jax.jit(lambda x: x + 1, donate_argnums=0)

  def once():
    nonlocal array
    array = jax.block_until_ready(increase(array))

  once()  # compiles
  return 2 * array.nbytes / median_seconds(once, min_seconds)


def peak_memory(device: jax.Device) -> int | None:
  """Returns the most bytes in use on the device, None where not told."""
  stats = device.memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None


def free_memory(mesh: Mesh) -> int | None:
  """Returns the bytes that a device of `mesh` has free, None where not told.

  On CPU they share what the system's memory has available; a fifth of that
  is left for everything else.
  """
  devices = mesh.local_devices
  if devices[0].platform == 'cpu':
    share = SHARE_OF_RAM / len(devices)
    left = host_memory.available() * share
    return int(left) if math.isfinite(left) else None
  stats = devices[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
