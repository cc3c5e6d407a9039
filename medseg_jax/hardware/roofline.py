"""The least time of a compiled program, kernel by kernel.

A kernel takes its bytes over the bandwidth of the memory or its operations over
the peak, whichever is longer; a collective what its bytes take on the slowest
link of its group. One after the other: what XLA lets overlap would take less,
what misses the peaks, as all real kernels do, takes more.
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
  found: list[Kernel], chip: Chip, devices_per_host: int = 0
) -> LeastTime:
  """Returns the least time of the kernels.

  Args:
    found: of a program.
    chip: that runs it.
    devices_per_host: of a GPU; 0 where all are linked with each other.
  """
  by_kind = dict.fromkeys(KINDS, 0.0)
  waiting = 0.0
  for kernel in found:
    if kernel.collective:
      seconds = collective_seconds(kernel, chip, devices_per_host)
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
  kernel: Kernel, chip: Chip, devices_per_host: int = 0
) -> float:
  """Returns the least seconds of a collective, by rings in its group.

  Of n devices each sends (n - 1) / n of the bytes, and of an all-reduce twice
  that, once for the sums and once for their way back.
  """
  crosses = devices_per_host and any(
    len({device // devices_per_host for device in group}) > 1
    for group in kernel.groups
  )
  link = chip.network if crosses else chip.link
  if kernel.collective == 'collective-permute':
    return kernel.num_bytes / link
  size = max(map(len, kernel.groups), default=0)
  part = (size - 1) / size if size else 1.0
  rounds = 2 if kernel.collective == 'all-reduce' else 1
  return rounds * part * kernel.num_bytes / link
