"""The least time of a compiled program, kernel by kernel.

A kernel takes its bytes over the bandwidth of the memory or its operations over
the peak, whichever is longer; a collective what its bytes take on the links and
the network of its group. One after the other: what XLA lets overlap would take
less, what misses the peaks, as all real kernels do, takes more.
"""

from typing import NamedTuple

from medseg_jax.hardware.chips import Chip
from medseg_jax.hardware.costs import KINDS, Kernel


class LeastTime(NamedTuple):
  """Of one run of a program on a device.

  Attributes:
    seconds: in all.
    shares: kind of kernel -> its part of `seconds`; they add up to 1.
    bandwidth_share: part of `seconds` that waits for the memory.
  """

  seconds: float
  shares: dict[str, float]
  bandwidth_share: float


def least_time(
  found: list[Kernel], chip: Chip, linked_devices: int
) -> LeastTime:
  """Returns the least time of the kernels.

  Args:
    found: of a program.
    chip: that runs it.
    linked_devices: see `collective_seconds`.
  """
  by_kind = dict.fromkeys(KINDS, 0.0)
  waiting = 0.0
  for kernel in found:
    if kernel.collective:
      seconds = collective_seconds(kernel, chip, linked_devices)
    else:
      memory = kernel.num_bytes / chip.bandwidth
      products = sum(
        count / _peak(chip, dtype) for dtype, count in kernel.flops.items()
      )
      seconds = max(memory, products)
      if memory >= products:
        waiting += kernel.times * memory
    by_kind[kernel.kind] += kernel.times * seconds
  total = sum(by_kind.values())
  whole = total or 1.0
  return LeastTime(
    seconds=total,
    shares={kind: seconds / whole for kind, seconds in by_kind.items()},
    bandwidth_share=waiting / whole,
  )


def _peak(chip: Chip, dtype: str) -> float:
  """Returns the rate of products; of a dtype not listed the slowest one."""
  return chip.peak.get(dtype, min(chip.peak.values()))


def collective_seconds(
  kernel: Kernel, chip: Chip, linked_devices: int
) -> float:
  """Returns the least seconds of a collective, in the slowest of its groups.

  Args:
    kernel: that is one; its groups are of positions, of which as many in a row
      are linked as `linked_devices` says.
    chip: that runs it.
    linked_devices: GPUs of a host, chips of a slice.
  """
  if not kernel.groups:  # not told: of so many that one more is no matter
    return group_seconds(
      kernel.collective, kernel.num_bytes, chip, linked=2**20, groups=1
    )
  seconds = []
  for group in kernel.groups:
    groups = len({device // linked_devices for device in group})
    seconds.append(
      group_seconds(
        kernel.collective,
        kernel.num_bytes,
        chip,
        linked=-(-len(group) // groups),
        groups=groups,
      )
    )
  return max(seconds)


def group_seconds(
  collective: str, num_bytes: float, chip: Chip, *, linked: int, groups: int
) -> float:
  """Returns the least seconds of a collective among `groups` x `linked` chips.

  Of n linked chips each sends (n - 1) / n of the bytes to the next one, and of
  an all-reduce twice that, once for the sums and once for their way back. The
  network carries of each chip its n-th part alone, likewise: of sums what all
  of its group have added up, of what is gathered what it has itself.

  Args:
    collective: its kind.
    num_bytes: the larger of what goes into a device and what comes out of it.
    chip: for its links and its network.
    linked: chips that have links of their own among them.
    groups: of such chips, between which is a network.
  """
  if collective == 'collective-permute':
    return num_bytes / (chip.network if groups > 1 else chip.link)
  share = num_bytes if collective.endswith('to-all') else num_bytes / linked
  seconds = (linked - 1) / linked * num_bytes / chip.link
  seconds += (groups - 1) / groups * share / chip.network
  return 2 * seconds if collective == 'all-reduce' else seconds
