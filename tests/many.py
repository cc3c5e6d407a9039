"""Runs of several processes on this machine, for the tests of them."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
from conftest import HANG_S, ROOT
from orbax.checkpoint import v1 as ocp

# A run of seconds, through the command line as users start it.
SMALL = {
  'num_steps': 4,
  'batch_size': 4,
  'patch_size': '(16, 16)',
  'model.depth': 2,
  'model.features': 4,
  'data.phantom.num_train': 6,
  'data.phantom.num_val': 2,
  'data.phantom.num_test': 3,
  'log_every': 2,
  'eval_every': 2,
  'checkpoint_every': 2,
}


_PROGRAM = 'import sys; from medseg_jax import main; sys.exit(main.main())'


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('localhost', 0))
    return found.getsockname()[1]


def start(
  workdir: pathlib.Path,
  *flags: str,
  processes: int,
  devices: int = 1,
  only: tuple[int, str] = (-1, ''),
  before: str = '',
  **keys,
) -> list[subprocess.Popen]:
  """Returns the processes of one run; their output goes to `workdir`-I.txt.

  Args:
    workdir: of the run.
    *flags: of the command line; without any, those of a small training.
    processes: of the run.
    devices: of each process.
    only: a process, and a flag that it has alone.
    before: Python code that each process runs first; JAX_PROCESS_ID in the
      environment tells it which one it is.
    **keys: of the config.
  """
  port = free_port()
  config = SMALL | keys
  program = ['-m', 'medseg_jax.main']
  if before:
    program = ['-c', f'{before}\n{_PROGRAM}']
  command = [sys.executable, *program, f'--workdir={workdir}']
  command += flags or (
    '--config=configs/unet.py',
    *(f'--config.{key}={value}' for key, value in config.items()),
  )
  started = []
  for i in range(processes):
    told = {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(processes),
      'JAX_PROCESS_ID': str(i),
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'NPROC': '4',  # threads that share a sum, whatever is alike otherwise
    }
    with open(output(workdir, i), 'w') as file:
      process = subprocess.Popen(
        command + [only[1]] * (i == only[0]),
        env=os.environ | told,
        cwd=ROOT,
        stdout=file,
        stderr=subprocess.STDOUT,
      )
    started.append(process)
  return started


def output(workdir: pathlib.Path, i: int) -> pathlib.Path:
  """Returns the file of what process `i` of a run printed."""
  return workdir.with_name(f'{workdir.name}-{i}.txt')


def printed(workdir: pathlib.Path, processes: int) -> list[str]:
  """Returns what each process of a run printed."""
  return [output(workdir, i).read_text() for i in range(processes)]


def wait(started: list[subprocess.Popen], seconds: float = HANG_S) -> list[int]:
  """Returns the statuses of all, none of which is left running."""
  try:
    return [process.wait(seconds) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()


def run(workdir: pathlib.Path, *flags: str, **arguments) -> list[str]:
  """Returns what each process printed; all have to end with status 0."""
  started = start(workdir, *flags, **arguments)
  statuses = wait(started)
  texts = printed(workdir, len(started))
  assert not any(statuses), (statuses, texts)
  return texts


def arrays(workdir: pathlib.Path) -> list:
  """Returns every array of the newest checkpoint."""
  folder = workdir / 'checkpoints' / 'latest'
  step = max(int(path.name) for path in folder.iterdir())
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  saved = ocp.metadata(folder / str(step)).metadata
  return jax.tree.leaves(
    ocp.load(
      folder / str(step),
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved
      ),
    )
  )
