"""Which process of how many this one is, as whoever started it says.

Slurm's srun, Open MPI, Kubernetes (an indexed Job, as JobSet makes them), a
Cloud TPU, or plain variables: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID, which win over the others.
"""

import glob
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medseg_jax.runtime.errors import InputError

# In the order in which they are looked at.
_NUMBERS = ('JAX_NUM_PROCESSES', 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
_INDICES = (
  'JAX_PROCESS_ID',
  'SLURM_PROCID',
  'OMPI_COMM_WORLD_RANK',
  'JOB_COMPLETION_INDEX',
)
_LOCAL_INDICES = ('SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
_FIRST_PORT, _PORTS = 61440, 4096


class Place(NamedTuple):
  """The place of a process in its run: arguments of jax's `initialize`.

  All None on a Cloud TPU, which tells JAX itself.

  Attributes:
    coordinator_address: host:port of process 0.
    num_processes: of the run.
    process_id: of this process.
    local_device_ids: the GPUs of this host that are this process's; None for
      all that it sees.
  """

  coordinator_address: str | None
  num_processes: int | None
  process_id: int | None
  local_device_ids: tuple[int, ...] | None

  def describe(self) -> str:
    if self.num_processes is None:
      return 'on a Cloud TPU'
    return (
      f'process {self.process_id} of {self.num_processes}, coordinator '
      f'{self.coordinator_address}'
    )


def find(environment: Mapping[str, str] = os.environ) -> Place | None:
  """Returns the place of this process; None where it is the only one.

  Raises:
    InputError: the variables are incomplete, or make no sense.
  """
  number = _integer(_NUMBERS, environment)
  by_hand = any(
    name in environment
    for name in ('JAX_NUM_PROCESSES', 'JAX_COORDINATOR_ADDRESS')
  )
  if not by_hand and (number is None or number == 1):
    return Place(None, None, None, None) if _on_tpu(environment) else None
  index = _integer(_INDICES, environment)
  address = environment.get('JAX_COORDINATOR_ADDRESS') or _address(environment)
  missing = [
    name
    for name, value in {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': number,
      'JAX_PROCESS_ID': index,
    }.items()
    if value is None
  ]
  if missing:
    raise InputError(
      f'the environment tells of several processes, but not '
      f'{" and ".join(missing)}; needed are JAX_COORDINATOR_ADDRESS=HOST:PORT, '
      'JAX_NUM_PROCESSES and JAX_PROCESS_ID, or a start by srun or mpirun'
    )
  if number < 1 or not 0 <= index < number:
    raise InputError(
      f'process {index} of {number} (JAX_PROCESS_ID, JAX_NUM_PROCESSES); '
      'allowed are 0 to one less than there are'
    )
  if not re.fullmatch(r'.+:\d{1,5}', address):
    raise InputError(
      f'JAX_COORDINATOR_ADDRESS is {address!r}; allowed is HOST:PORT'
    )
  return Place(address, number, index, own_gpus(environment))


def own_gpus(
  environment: Mapping[str, str], there: Sequence[str] | None = None
) -> tuple[int, ...] | None:
  """Returns which GPUs of its host a process has; None for all that it sees.

  The GPUs of a host are divided among its tasks, in their order, unless the
  launcher did that already.

  Args:
    environment: variables of the process.
    there: the GPUs of the host; None to look.
  """
  local = _integer(_LOCAL_INDICES, environment)
  tasks = _tasks_here(environment)
  bound = ('JAX_LOCAL_DEVICE_IDS', 'SLURM_GPUS_PER_TASK')
  if local is None or tasks < 2 or any(name in environment for name in bound):
    return None
  if there is None:
    there = glob.glob('/dev/nvidia[0-9]*')
  visible = environment.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:
    there = [gpu for gpu in visible.split(',') if gpu]
  if len(there) < tasks:  # each task sees its own already
    return None
  share = len(there) // tasks
  return tuple(range(local * share, (local + 1) * share))


def _tasks_here(environment: Mapping[str, str]) -> int:
  """Returns how many tasks of the run are on this host, 1 where untold."""
  if 'OMPI_COMM_WORLD_LOCAL_SIZE' in environment:
    return int(environment['OMPI_COMM_WORLD_LOCAL_SIZE'])
  node = int(environment.get('SLURM_NODEID', 0))
  counts: list[int] = []  # of '4(x2),1'
  text = environment.get('SLURM_STEP_TASKS_PER_NODE', '')
  for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', text):
    counts += [int(count)] * int(times or 1)
  return counts[node] if node < len(counts) else 1


def _address(environment: Mapping[str, str]) -> str | None:
  """Returns HOST:PORT of process 0, as Slurm or Open MPI tell it."""
  port = environment.get('JAX_COORDINATOR_PORT')
  nodes = environment.get('SLURM_STEP_NODELIST')
  if nodes and 'SLURM_JOB_ID' in environment:
    # Steps of one job may share a host.
    step = int(environment.get('SLURM_STEP_ID', 0))
    number = 64 * int(environment['SLURM_JOB_ID']) + step
    return f'{first_node(nodes)}:{port or _FIRST_PORT + number % _PORTS}'
  uri = environment.get('OMPI_MCA_orte_hnp_uri', '')  # Open MPI 4
  host = re.search(r'tcp://([^,:]+)', uri)
  job = int(uri.split('.')[0]) // 4096 if host else os.getppid()
  if host:
    return f'{host[1]}:{port or _FIRST_PORT + job % _PORTS}'
  size = environment.get('OMPI_COMM_WORLD_SIZE')
  if size and size == environment.get('OMPI_COMM_WORLD_LOCAL_SIZE'):
    return f'localhost:{port or _FIRST_PORT + job % _PORTS}'
  return None


def first_node(nodes: str) -> str:
  """Returns the first host of Slurm's list, such as 'a[01-03,7],b'."""
  head, bracket, rest = nodes.partition('[')
  if not bracket or ',' in head:
    return head.split(',')[0]
  inside, _, tail = rest.partition(']')
  return head + re.split('[-,]', inside)[0] + tail.split(',')[0]


def _integer(
  names: Sequence[str], environment: Mapping[str, str]
) -> int | None:
  for name in names:
    if name in environment:
      try:
        return int(environment[name])
      except ValueError:
        raise InputError(
          f'{name} is {environment[name]!r}; allowed is a number'
        ) from None
  return None


def _on_tpu(environment: Mapping[str, str]) -> bool:
  """Returns whether this host has TPUs, of which it may be one of many."""
  platforms = environment.get('JAX_PLATFORMS', '')
  return (
    (not platforms or 'tpu' in platforms)
    and importlib.util.find_spec('libtpu') is not None
    and bool(glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*'))
  )
