"""A node of a Slurm cluster dies, and a training goes on on the spare one.

`python benchmarks/lost_node.py [n0|n1|n2]`, as root, where slurmctld, slurmd,
munge and unshare are installed; else it says so and ends. Four nodes, all of
them on this machine: a slurmd each, in a namespace of its own, so that it can
be killed with all that runs on it. `launch/slurm.sh` trains on three of them;
once there are checkpoints one node is killed. The last line is what was
measured, as JSON; the exit status is 0 where the weights are those of a run
that nobody disturbed, on as many devices.

Everything lies in a temporary folder, /etc/hosts is another only for what is
started here, and whatever was started dies with this program.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ('slurmctld', 'slurmd', 'munged', 'unshare')
NODES = ('n0', 'n1', 'n2', 'n3')
TRAINING = 3  # of them
# Slurm counts a node as lost after so many seconds of silence; its own default
# is 300, and most of the time until the training goes on.
NODE_TIMEOUT = 30
LIMIT = 900  # seconds for anything: what takes longer hangs
KILL_AT = 40  # steps
FLAGS = (
  '--config=configs/unet.py',
  *(
    f'--config.{key}={value}'
    for key, value in {
      'num_steps': 300,
      'batch_size': 6,
      'patch_size': '(32, 32)',
      'model.depth': 2,
      'model.features': 4,
      'data.phantom.num_train': 12,
      'data.phantom.num_val': 2,
      'data.phantom.num_test': 2,
      'log_every': 20,
      'eval_every': 0,
      'checkpoint_every': 20,
    }.items()
  ),
)
CONFIG = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort=17000
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
SlurmdTimeout={timeout}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PlugStackConfig=/dev/null
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=n[0-3] NodeHostname={host} Port=[17001-17004] CPUs=4
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# A namespace ends with its first process, and all that runs in it.
NODE = ('unshare', '--pid', '--fork', '--kill-child', '--mount', '--mount-proc')
CLUSTER = (*NODE, sys.executable, __file__)


def main() -> int:
  os.environ['PATH'] = os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ['PATH'], '/usr/sbin', '/sbin']
  )
  missing = [name for name in PROGRAMS if not shutil.which(name)]
  if missing:
    print(f'skipped: {", ".join(missing)} not installed')
    return 0
  if os.geteuid() != 0:
    print('skipped: only root can start Slurm and namespaces')
    return 0
  lost = sys.argv[1] if len(sys.argv) > 1 else 'n1'
  if lost not in NODES[:TRAINING]:
    print(f'{lost!r} does not train; allowed are {", ".join(NODES[:TRAINING])}')
    return 1
  if len(sys.argv) < 3:  # not yet in a namespace of its own
    with tempfile.TemporaryDirectory(prefix='slurm-') as folder:
      return subprocess.call([*CLUSTER, lost, folder])
  folder = pathlib.Path(sys.argv[2])
  os.environ.update(
    NPROC='4',  # threads that share a sum, alike in all runs
    JAX_PLATFORMS='cpu',
    JAX_DISABLE_MOST_OPTIMIZATIONS='1',
    PYTHONPATH=str(ROOT),
    SLURM_CONF=str(folder / 'slurm.conf'),
    XDG_CACHE_HOME=str(folder / 'cache'),
  )
  found = measure(lost, folder)
  print(json.dumps(found))
  return 0 if found['bit_equal'] else 1


def measure(lost: str, folder: pathlib.Path) -> dict:
  """Returns the seconds since the death of `lost`, and how it all ended."""
  undisturbed = folder / 'undisturbed'
  print('a run that nobody disturbs', flush=True)
  subprocess.run(
    [sys.executable, '-m', 'medseg_jax.main', *FLAGS]
    + [f'--workdir={undisturbed}'],
    # One of many, though alone: sums among devices are the same ones then.
    env=os.environ
    | {
      'JAX_NUM_CPU_DEVICES': str(TRAINING),
      'JAX_COORDINATOR_ADDRESS': 'localhost:16999',
      'JAX_NUM_PROCESSES': '1',
      'JAX_PROCESS_ID': '0',
    },
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
  )
  nodes = start_cluster(folder)
  workdir, log = folder / 'run', folder / 'log.txt'
  job = call(
    *('sbatch', '--parsable', f'--nodes={TRAINING}', '--cpus-per-task=4'),
    *(f'--output={log}', 'launch/slurm.sh', *FLAGS, f'--workdir={workdir}'),
  )
  wait('the checkpoints', log, lambda: newest(workdir) >= KILL_AT)
  before, spare = newest(workdir), hosts(job)
  nodes[lost].kill()
  began = time.monotonic()
  print(f'{lost} of {spare} is killed, after step {before}', flush=True)

  def since(what, reached) -> float:
    wait(what, log, reached)
    seconds = round(time.monotonic() - began, 1)
    print(f'{seconds:6.1f} s  {what}', flush=True)
    return seconds

  found = {
    'lost': lost,
    'slurmd_timeout_s': NODE_TIMEOUT,
    'others_gone_s': since('the others have gone', lambda: not training()),
    'requeued_s': since('requeued', lambda: state(job) == 'PENDING'),
    'started_s': since('started again', lambda: state(job) == 'RUNNING'),
    'nodes': hosts(job),
    'step_before': before,
    'next_checkpoint_s': since(
      'the next checkpoint', lambda: newest(workdir) > before
    ),
    'end_s': since('the end', lambda: state(job) in ('COMPLETED', 'FAILED')),
    'state': state(job),
  }
  if found['state'] != 'COMPLETED' or lost in found['nodes']:
    print(log.read_text())
    return found | {'bit_equal': False}
  weights = 'model/model.safetensors'
  ours, others = load_file(workdir / weights), load_file(undisturbed / weights)
  found['largest_difference'] = max(
    float(np.abs(ours[k].astype(float) - others[k]).max()) for k in others
  )
  # The first logged step whose loss is another; None without any.
  found['first_other_loss'] = next(
    (
      step
      for step, loss in losses(undisturbed).items()
      if losses(workdir).get(step) != loss
    ),
    None,
  )
  found['bit_equal'] = ours.keys() == others.keys() and all(
    np.array_equal(ours[k], others[k]) for k in others
  )
  return found


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """Returns the losses of training, by step."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').open())
  return {x['step']: x['loss'] for x in lines if x['split'] == 'train'}


def start_cluster(folder: pathlib.Path) -> dict[str, subprocess.Popen]:
  """Returns the nodes of a cluster that is up, by name."""
  host = socket.gethostname()
  hosts_file = folder / 'hosts'
  known = pathlib.Path('/etc/hosts').read_text()
  hosts_file.write_text(f'{known}\n127.0.0.1 {host} {" ".join(NODES)}\n')
  subprocess.run(['mount', '--bind', hosts_file, '/etc/hosts'], check=True)
  (folder / 'state').mkdir()
  (folder / 'slurm.conf').write_text(
    CONFIG.format(host=host, folder=folder, timeout=NODE_TIMEOUT)
  )
  folder.chmod(0o755)  # munged asks for it
  key = folder / 'munge.key'
  key.write_bytes(os.urandom(128))
  key.chmod(0o600)
  subprocess.run(
    ['munged', '--force', f'--key-file={key}']
    + [
      f'--{kind}-file={folder}/munge.{kind}' for kind in ('pid', 'log', 'seed')
    ]
    + [f'--socket={folder}/munge.socket'],
    check=True,
    stderr=subprocess.DEVNULL,
  )
  subprocess.run(['slurmctld'], check=True)
  nodes = {}
  for name in NODES:
    (folder / f'spool-{name}').mkdir()
    # The shell is there for processes that have lost their parents.
    nodes[name] = subprocess.Popen(
      [*NODE, 'sh', '-c', f'slurmd -D -N {name}; exit'],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
  wait(
    'the cluster',
    folder / 'slurmctld.log',
    lambda: call('sinfo', '-h', '-t', 'idle', '-o', '%D') == str(len(NODES)),
  )
  return nodes


def call(*command: str) -> str:
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  return done.stdout.strip()


def state(job: str) -> str:
  return call('squeue', '-h', '-t', 'all', '-j', job, '-o', '%T')


def hosts(job: str) -> str:
  return call('squeue', '-h', '-t', 'all', '-j', job, '-o', '%N')


def newest(workdir: pathlib.Path) -> int:
  """Returns the step of the newest checkpoint, 0 without any."""
  folder = workdir / 'checkpoints' / 'latest'
  steps = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
  return max(steps, default=0)


def training() -> list[int]:
  """Returns the processes that train."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().split(b'\0')
    except OSError:  # it has gone meanwhile
      continue
    if b'medseg_jax.main' in words and b'python' in os.path.basename(words[0]):
      found.append(int(path.parent.name))
  return found


def wait(what: str, log: pathlib.Path, reached) -> None:
  end = time.monotonic() + LIMIT
  while not reached():
    if time.monotonic() > end:
      text = log.read_text() if log.exists() else ''
      sys.exit(f'{text}\nno sign of {what} in {LIMIT} s')
    time.sleep(0.2)


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  sys.exit(main())
