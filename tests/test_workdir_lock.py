"""Two trainings in one workdir: the second is refused, a dead one is no bar."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.programs import train
from medseg_jax.runtime import workdir_lock
from medseg_jax.runtime.errors import InputError

HOLDER = """
import signal, sys
from medseg_jax.runtime import workdir_lock
# A shell that starts the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
with workdir_lock.hold(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Returns a process that holds the lock of `tmp_path / 'run'`."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(tmp_path / 'run')],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.communicate()


def no_locks(monkeypatch):
  """A network drive without locks."""

  def refuse(*args):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', refuse)


@pytest.mark.parametrize('locks', [True, False])
def test_the_second_training_is_refused_and_names_the_first(
  tmp_path, holder, monkeypatch, locks
):
  if not locks:
    no_locks(monkeypatch)
  with pytest.raises(InputError) as error:
    train.run(shrink(load('unet')), tmp_path / 'run')
  assert_one_line(
    error,
    f'{tmp_path}/run: process {holder.pid} on {socket.gethostname()}, since 20',
    'another --workdir',
  )
  # Nothing was touched, and a look at the run is allowed.
  assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


@pytest.mark.parametrize('locks', [True, False])
def test_a_killed_run_bars_nobody(tmp_path, holder, monkeypatch, locks):
  holder.kill()
  holder.wait()
  left = json.loads((tmp_path / 'run' / '.lock').read_text())
  assert left['process'] == holder.pid
  if not locks:
    no_locks(monkeypatch)
  with workdir_lock.hold(tmp_path / 'run'):
    now = json.loads((tmp_path / 'run' / '.lock').read_text())
    assert now['process'] == os.getpid()
  assert list((tmp_path / 'run').iterdir()) == []


def test_a_run_that_ends_in_any_way_lets_go(tmp_path):
  for error in (InputError, KeyboardInterrupt):
    with pytest.raises(error), workdir_lock.hold(tmp_path):
      raise error('x')
    assert list(tmp_path.iterdir()) == []


def test_only_one_of_two_in_one_process(tmp_path):
  with workdir_lock.hold(tmp_path):
    with (
      pytest.raises(InputError, match='trains in this folder'),
      workdir_lock.hold(tmp_path),
    ):
      raise AssertionError
    assert (tmp_path / '.lock').exists()
  with workdir_lock.hold(tmp_path):
    pass


@pytest.mark.parametrize(
  'content', [b'', b'\0' * 100, b'[' * 10_000, b'[1]', b'{"process": "x"}']
)
@pytest.mark.parametrize('locks', [True, False])
def test_a_lock_that_says_nothing(tmp_path, content, locks, monkeypatch):
  (tmp_path / '.lock').write_bytes(content)
  if locks:
    with workdir_lock.hold(tmp_path):  # nobody holds it
      pass
    handle = os.open(tmp_path / '.lock', os.O_RDWR | os.O_CREAT)
    os.write(handle, content)
    fcntl.flock(handle, fcntl.LOCK_EX)
  else:
    no_locks(monkeypatch)
  try:
    if locks or content[:1] == b'{':
      with (
        pytest.raises(InputError, match='trains in this folder'),
        workdir_lock.hold(tmp_path),
      ):
        raise AssertionError
    else:
      with workdir_lock.hold(tmp_path):
        pass
  finally:
    if locks:
      os.close(handle)


def test_without_locks_a_run_elsewhere_counts_and_a_new_number_does_not(
  tmp_path, monkeypatch
):
  no_locks(monkeypatch)
  path = tmp_path / '.lock'
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
  me = workdir_lock._me()
  parent = {
    'process': os.getppid(),
    'started': workdir_lock._started(os.getppid()),
  }
  for change, refused in [
    ({'host': 'elsewhere'}, True),
    # Its node was lost, and the job is started again on another one.
    ({'host': 'elsewhere', 'start_of_job': ['7', '0']}, False),
    ({'host': 'elsewhere', 'start_of_job': ['6', '0']}, True),
    ({'host': 'elsewhere', 'start_of_job': '7'}, True),
    (parent, True),
    (parent | {'started': 'before the last reboot'}, False),
    ({}, False),  # this process, which holds nothing
    ({'process': 10**15}, False),
  ]:
    path.write_text(json.dumps(me | change))
    if not refused:
      with workdir_lock.hold(tmp_path):
        pass
      continue
    with pytest.raises(InputError) as error, workdir_lock.hold(tmp_path):
      raise AssertionError
    assert_one_line(error, f'remove {path}')


def test_what_stands_in_the_way_of_the_lock_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'run' / '.lock').mkdir(parents=True)
  for workdir, words in [
    (tmp_path / 'file', 'File exists'),
    (tmp_path / 'file' / 'run', 'Not a directory'),
    (tmp_path / 'run', f'Is a directory: {tmp_path}/run/.lock'),
    (tmp_path / ('x' * 300), 'File name too long'),
  ]:
    with pytest.raises(InputError) as error, workdir_lock.hold(workdir):
      raise AssertionError
    assert_one_line(error, f'{workdir}: cannot use ({words}')


def test_the_lock_of_a_run_that_is_stopped_is_gone(holder, tmp_path):
  holder.send_signal(signal.SIGINT)
  holder.wait()
  assert list((tmp_path / 'run').iterdir()) == []
