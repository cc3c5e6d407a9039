"""Signals at any moment: the program ends where it can, and says so."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import HANG_S, ROOT, write_volumes

from medseg_jax.data.formats import images
from medseg_jax.data.sources import folder
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.experiment import compiled_steps, survey
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import Stopped
from medseg_jax.runtime.progress import Progress

# Python runs this before all else, also in the process that the program starts
# anew with huge pages: it sends a signal when a module begins to be imported.
AT_IMPORT = """
import os, signal, sys
class Finder:
  def find_spec(self, name, path=None, target=None):
    if name == {module!r}:
      sys.meta_path.remove(self)
      os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Finder())
"""


def run(folder, at_import, *args, stdout=subprocess.PIPE):
  """Returns the ended program, that runs code before all its imports."""
  (folder / 'sitecustomize.py').write_text(at_import)
  return subprocess.run(
    [sys.executable, '-m', 'medseg_jax.main', *args],
    env=os.environ | {'PYTHONPATH': f'{folder}{os.pathsep}{ROOT}'},
    cwd=ROOT,
    stdout=stdout,
    stderr=subprocess.PIPE,
    text=True,
    timeout=HANG_S,
  )


@pytest.mark.parametrize(
  ('module', 'name', 'status'),
  [
    ('absl', 'SIGINT', 130),
    ('ml_collections', 'SIGTERM', 143),
    ('jax', 'SIGINT', 130),
    ('medseg_jax.programs.train', 'SIGTERM', 143),
  ],
)
def test_a_signal_during_imports_ends_the_program(
  tmp_path, module, name, status
):
  done = run(
    tmp_path,
    AT_IMPORT.format(module=module, signal=name),
    '--config=configs/unet.py',
    '--config.num_steps=0',
    f'--workdir={tmp_path}/run',
  )
  assert done.returncode == status, done.stderr
  assert done.stdout == f'stopped by {name}\n'
  assert done.stderr.splitlines() == [
    f'{name}: stopping where nothing is lost; a second one ends at once'
  ]
  assert not (tmp_path / 'run').exists()


def send(number):
  """Sends this process a signal and returns when Python has handled it."""
  os.kill(os.getpid(), number)
  signal.getsignal(number)  # handlers run before the next instruction


def test_a_noted_signal_ends_the_next_case_and_not_this_one():
  before = [signal.getsignal(number) for number in stop_signal.SIGNALS]
  with stop_signal.noted():
    stop_signal.check()
    done = []
    with pytest.raises(Stopped) as caught, Progress(3) as progress:
      for case in range(3):
        if case == 1:
          send(signal.SIGTERM)
        done.append(case)
        progress.advance()
    assert done == [0, 1]
    assert caught.value.signal == signal.SIGTERM
    with pytest.raises(Stopped, match='^stopped by SIGTERM$'):
      stop_signal.check()
  stop_signal.check()  # the next program in this process begins anew
  after = [signal.getsignal(number) for number in stop_signal.SIGNALS]
  assert after == before
  assert signal.set_wakeup_fd(-1) == -1
  assert 'signals' not in {thread.name for thread in threading.enumerate()}


def test_no_except_of_errors_swallows_it():
  with stop_signal.noted(), pytest.raises(Stopped):
    send(signal.SIGINT)
    for _ in range(2):
      with contextlib.suppress(Exception):
        stop_signal.check()
    raise AssertionError


def test_a_signal_while_garbage_is_collected_is_not_lost():
  def collecting(phase, info):
    gc.callbacks.remove(collecting)
    send(signal.SIGINT)

  with stop_signal.noted():
    gc.callbacks.append(collecting)
    gc.collect()
    with pytest.raises(Stopped):
      stop_signal.check()


def test_a_loop_that_ends_by_itself_is_not_ended():
  with stop_signal.noted():
    send(signal.SIGINT)
    with stop_signal.stop_on_signal() as stop:
      assert stop and stop.signal == signal.SIGINT  # from before the loop
      stop_signal.check()
      with Progress(2) as progress:
        progress.advance()
    with pytest.raises(Stopped):
      stop_signal.check()
  with stop_signal.stop_on_signal() as stop:  # of a program of somebody else
    assert not stop
    send(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
  assert stop
  stop_signal.check()


def test_other_threads_see_it_and_set_nothing():
  found = []

  def work():
    with stop_signal.stop_on_signal() as stop:
      found.append(bool(stop))
    with stop_signal.noted():
      try:
        stop_signal.check()
      except Stopped as error:
        found.append(error.signal)

  def in_thread():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

  in_thread()
  with stop_signal.noted():
    send(signal.SIGTERM)
    in_thread()
  assert found == [False, True, signal.SIGTERM]


# Busy in one call, and without a look at the flag.
BUSY = """
import signal, sys
from medseg_jax.runtime import stop_signal
stop_signal._SECONDS_OF_ONE = {same}
stop_signal.note()
print('ready', flush=True)
sys.stdin.read()
stop_signal.check()
"""


def busy(same):
  process = subprocess.Popen(
    [sys.executable, '-c', BUSY.format(same=same)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  assert 'a second one ends' in process.stderr.readline()
  return process


def test_the_second_signal_ends_what_does_not_look():
  process = busy(same=0)
  process.send_signal(signal.SIGINT)
  assert process.wait(HANG_S) == 130
  assert process.stderr.read() == 'ended at once\n'
  process.stdin.close()


def test_one_ctrl_c_may_come_twice_or_as_two_kinds():
  process = busy(same=100)
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGTERM)
  assert 'SIGTERM: stopping' in process.stderr.readline()
  _, errors = process.communicate(timeout=HANG_S)
  assert 'Stopped: stopped by SIGINT' in errors


def test_signals_that_come_while_it_starts_anew_are_not_lost(tmp_path):
  (tmp_path / 'program.py').write_text(
    """
import os, signal, sys
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import Stopped
stop_signal.note()
if 'again' not in sys.argv:
  with stop_signal.held():
    os.kill(os.getpid(), signal.SIGTERM)
    assert not stop_signal.asked()
    os.execv(sys.executable, [sys.executable, *sys.argv, 'again'])
try:
  stop_signal.check()
except Stopped as error:
  sys.exit(128 + error.signal)
"""
  )
  done = subprocess.run(
    [sys.executable, 'program.py'],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    cwd=tmp_path,
    timeout=HANG_S,
  )
  assert done.returncode == 143


def test_cases_that_wait_for_a_thread_are_not_read(
  tmp_path, disc_folder, monkeypatch
):
  read = []

  def then_stop(function):
    def read_and_stop(*args):
      read.append(args)
      stop_signal._Process.request.signal = signal.SIGTERM
      return function(*args)

    return read_and_stop

  opened = open_volumes(write_volumes(tmp_path / 'Balls', 5))
  monkeypatch.setattr(survey, 'num_workers', lambda: 1)
  monkeypatch.setattr(survey, 'inspect_case', then_stop(survey.inspect_case))
  with stop_signal.noted(), pytest.raises(Stopped):
    survey.survey(opened)
  assert len(read) == 1
  monkeypatch.setattr(images, 'decode_mask', then_stop(images.decode_mask))
  with stop_signal.noted(), pytest.raises(Stopped):
    folder.open_folder(disc_folder)


def test_what_is_compiled_is_not_begun_to_run():
  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  with stop_signal.noted(), pytest.raises(Stopped):
    send(signal.SIGINT)
    compiled_steps._compile(lambda x: x + 1, layout, np.zeros(3))
