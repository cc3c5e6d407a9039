"""Devices that are not there, for the compiler: `v5e:4x4`, `h100:32x8`.

`v5e:4x4:2` are two slices, tori of 4 x 4 that a network connects.

TPUs need the `libtpu` wheel, GPUs that of CUDA; neither needs the hardware.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from medseg_jax.hardware.chips import CHIPS, Chip, target_config
from medseg_jax.runtime.errors import InputError, quote

EXAMPLES = (
  'v5e:4x4, v5p:8x8x16, v5e:16x16:4 (four slices), h100:8 or h100:32x8 (hosts '
  'x GPUs)'
)
MOST_DEVICES = 2**14
# A wheel for each platform, and the extra of jax that brings it.
_WHEELS = {
  'tpu': (('libtpu',), 'jax[tpu]'),
  'cuda': (('jax_cuda12_plugin', 'jax_cuda13_plugin'), 'jax[cuda12]'),
}
_ENVIRONMENT = {
  'tpu': {
    'TPU_SKIP_MDS_QUERY': '1',  # this machine is no TPU's host: ask nobody
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # it takes no chip
    # What asking would tell. Without it a warning is printed, no more.
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  },
  'cuda': {
    'CUDA_VISIBLE_DEVICES': '-1',
    # Where there is no driver, jax 0.12 offers no CUDA topology otherwise.
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
  },
}
# Finding the quickest kernels means running them.
XLA_FLAGS = {'cuda': {'xla_gpu_autotune_level': '0'}, 'tpu': {}}
# The default effort takes the compiler of TPUs many minutes.
OPTIMISATION = {'tpu': 'O0'}


class Topology(NamedTuple):
  """A number of chips and how they are connected.

  Attributes:
    name: as the user gave it.
    kind: a key of `CHIPS`.
    sizes: of a TPU's torus; of GPUs (hosts, devices of each).
    slices: number of such tori.
  """

  name: str
  kind: str
  sizes: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def num_devices(self) -> int:
    return self.slices * math.prod(self.sizes)

  @property
  def linked_devices(self) -> int:
    """Returns how many devices have links of their own among them: the GPUs of
    a host, the chips of a slice."""
    hosts = self.sizes[0] if self.chip.platform == 'cuda' else self.slices
    return self.num_devices // hosts


def parse(name: str) -> Topology:
  """Returns the topology that a name stands for.

  Raises:
    InputError: there is no such topology.
  """
  kind, _, text = name.partition(':')
  if kind not in CHIPS:
    raise InputError(
      f'--topology={quote(name)}: no such chip; there are {", ".join(CHIPS)}, '
      f'as in {EXAMPLES}'
    )
  chip = CHIPS[kind]
  text, colon, slices = text.partition(':')
  if colon and (
    chip.platform != 'tpu' or not re.fullmatch(r'[1-9]\d{0,4}', slices)
  ):
    raise InputError(
      f'--topology={quote(name)}: behind the second colon stands the number of '
      f'slices of TPUs, as in {EXAMPLES}'
    )
  if not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,4})*', text):
    raise InputError(
      f'--topology={quote(name)}: behind {kind}: stand sizes, as in {EXAMPLES}'
    )
  sizes = tuple(int(n) for n in text.split('x'))
  if chip.platform == 'cuda' and len(sizes) == 1:
    sizes = (1, *sizes)
  wanted = chip.axes or 2
  if len(sizes) != wanted:
    what = f'{chip.axes} numbers' if chip.axes else 'GPUs or hosts x GPUs'
    raise InputError(
      f'--topology={quote(name)}: {kind} takes {what}, as in {EXAMPLES}'
    )
  topology = Topology(name, kind, sizes, int(slices or 1))
  if topology.num_devices > MOST_DEVICES:
    raise InputError(
      f'--topology={quote(name)} has {topology.num_devices} devices; at most '
      f'{MOST_DEVICES} are allowed'
    )
  return topology


def prepare_process(topology: Topology) -> dict[str, str]:
  """Sets the environment to compile for the topology; before JAX is imported.

  What the user has set there stays. The process itself runs on the CPU, also
  where it has an accelerator: that may be another program's.

  Returns:
    Flags of XLA to be set, without the leading dashes.

  Raises:
    InputError: the compiler is not installed.
  """
  platform = topology.chip.platform
  wheels, extra = _WHEELS[platform]
  if not any(importlib.util.find_spec(wheel) for wheel in wheels):
    raise InputError(
      f'--topology={topology.name} needs the compiler for it: '
      f"pip install '{extra}'"
    )
  for name, value in _ENVIRONMENT[platform].items():
    os.environ.setdefault(name, value)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return XLA_FLAGS[platform]


def devices(topology: Topology) -> list[Any]:
  """Returns the devices, which compile and do nothing else.

  Raises:
    InputError: the compiler knows no such arrangement.
  """
  from jax.experimental import topologies

  chip = topology.chip
  if chip.card is None:
    torus = 'x'.join(map(str, topology.sizes))
    name = f'{topology.kind}:{torus}'
    settings: dict[str, Any] = dict(
      num_slices=topology.slices,
      # Of a host: two by two chips, or as many as there are.
      chips_per_host_bounds=_host_bounds(topology.sizes),
    )
  else:
    name, (hosts, each) = '', topology.sizes
    settings = dict(
      topology=f'1x{hosts}x{each}', target_config=target_config(chip.card)
    )
  try:
    found = topologies.get_topology_desc(name, chip.platform, **settings)
  except Exception as error:  # of several kinds, by platform and version
    raise InputError(
      f'--topology={topology.name}: the compiler refuses it: {error}'
    ) from error
  return list(found.devices)


def _host_bounds(sizes: tuple[int, ...]) -> tuple[int, int, int]:
  plane = [2 if size % 2 == 0 else 1 for size in sizes[:2]]
  return (plane[0], plane[1], 1)
