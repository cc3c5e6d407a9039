"""Who started this process, and as which one of how many."""

import pytest

from medseg_jax.runtime import launcher
from medseg_jax.runtime.errors import InputError

BY_HAND = {
  'JAX_COORDINATOR_ADDRESS': 'host:1234',
  'JAX_NUM_PROCESSES': '4',
  'JAX_PROCESS_ID': '2',
}
SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_ID': '3',
  'SLURM_STEP_NODELIST': 'gpu[07-08,11],cpu1',
  'SLURM_STEP_NUM_TASKS': '6',
  'SLURM_STEP_TASKS_PER_NODE': '2(x3)',
  'SLURM_NODEID': '1',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '4',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
}


def test_alone():
  # Slurm's own script, one task, one shell in an allocation: no other process.
  for environment in (
    {},
    {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'},
    SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'},
    {'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'},
    {'JOB_COMPLETION_INDEX': '3'},
  ):
    assert launcher.find(environment | {'JAX_PLATFORMS': 'cpu'}) is None


def test_by_hand():
  assert launcher.find(BY_HAND) == ('host:1234', 4, 2, None)
  one = BY_HAND | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}
  assert launcher.find(one) == ('host:1234', 1, 0, None)
  # As in the pods of an indexed Job; and what is set by hand wins.
  pod = {k: v for k, v in BY_HAND.items() if k != 'JAX_PROCESS_ID'}
  assert launcher.find(pod | {'JOB_COMPLETION_INDEX': '3'}).process_id == 3
  assert launcher.find(SLURM | BY_HAND)[:3] == ('host:1234', 4, 2)


def test_slurm():
  place = launcher.find(SLURM)
  assert place[1:3] == (6, 3)
  host, port = place.coordinator_address.split(':')
  assert host == 'gpu07' and 61440 <= int(port) < 65536
  # All tasks of a step meet at one port, those of the next at another.
  other = launcher.find(SLURM | {'SLURM_PROCID': '0', 'SLURM_NODEID': '0'})
  assert other.coordinator_address == place.coordinator_address
  following = launcher.find(SLURM | {'SLURM_STEP_ID': '4'})
  assert following.coordinator_address != place.coordinator_address


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('n1', 'n1'),
    ('n1,n2', 'n1'),
    ('n[003-010]', 'n003'),
    ('n[7,9-11],m2', 'n7'),
    ('a1,n[3-4]', 'a1'),
    ('n[1-2]-ib', 'n1-ib'),
  ],
)
def test_first_node(nodes, first):
  assert launcher.first_node(nodes) == first


def test_open_mpi():
  place = launcher.find(OPEN_MPI)
  assert place[1:3] == (4, 1)
  assert place.coordinator_address.startswith('10.96.0.1:')
  # Open MPI 5 has no such variable; on one host that is no matter.
  bare = {k: v for k, v in OPEN_MPI.items() if 'uri' not in k}
  here = launcher.find(bare | {'OMPI_COMM_WORLD_LOCAL_SIZE': '4'})
  assert here.coordinator_address.startswith('localhost:')
  with pytest.raises(InputError, match='not JAX_COORDINATOR_ADDRESS'):
    launcher.find(bare)


def test_gpus_of_a_host_are_divided():
  eight = [f'/dev/nvidia{i}' for i in range(8)]
  assert launcher.own_gpus(SLURM, eight) == (4, 5, 6, 7)
  assert launcher.own_gpus(SLURM, []) is None
  assert launcher.own_gpus(OPEN_MPI, eight) == (4, 5, 6, 7)
  assert launcher.own_gpus(BY_HAND, eight) is None
  # What the launcher, or the user, has divided stays so.
  assert launcher.own_gpus(SLURM | {'CUDA_VISIBLE_DEVICES': '3'}, eight) is None
  two = SLURM | {'CUDA_VISIBLE_DEVICES': '3,5'}
  assert launcher.own_gpus(two, eight) == (1,)
  assert launcher.own_gpus(two | {'SLURM_GPUS_PER_TASK': '2'}, eight) is None


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'JAX_PROCESS_ID': '4'}, 'process 4 of 4 .* allowed are 0 to'),
    ({'JAX_NUM_PROCESSES': 'four'}, "JAX_NUM_PROCESSES is 'four'; allowed"),
    ({'JAX_COORDINATOR_ADDRESS': 'host'}, "'host'; allowed is HOST:PORT"),
    ({'JAX_PROCESS_ID': None}, 'but not JAX_PROCESS_ID; needed are'),
  ],
)
def test_what_contradicts_itself_is_told(change, words):
  environment = {k: v for k, v in (BY_HAND | change).items() if v is not None}
  with pytest.raises(InputError, match=words):
    launcher.find(environment)
