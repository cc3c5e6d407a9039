"""`benchmarks/accelerator.sh`: what fails or is missing stops nothing else."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from conftest import HANG_S, ROOT

SCRIPT = ROOT / 'benchmarks' / 'accelerator.sh'


@pytest.fixture
def accelerator(monkeypatch):
  """Returns the module of `accelerator.py`."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import accelerator

  return accelerator


def run(accelerator, parts, tmp_path, monkeypatch, *flags):
  """Returns (exit status, what was written), with these parts for all."""
  for folder in ('out', 'work'):
    (tmp_path / folder).mkdir()
  argv = [f'--out={tmp_path / "out"}', f'--work={tmp_path / "work"}', *flags]
  monkeypatch.setattr(sys, 'argv', ['accelerator.py', *argv])
  monkeypatch.setattr(accelerator, 'PARTS', parts)
  status = accelerator.main()
  return status, json.loads((tmp_path / 'out/accelerator.json').read_text())


def part(accelerator, name, find, needs=()):
  return accelerator.Part(name, needs, find)


def machine(accelerator):
  return part(
    accelerator, 'machine', lambda run: {'platform': 'cpu', 'num_devices': 1}
  )


def test_it_is_a_program_of_bash():
  subprocess.run(['bash', '-n', str(SCRIPT)], check=True)
  assert os.access(SCRIPT, os.X_OK)
  if shutil.which('shellcheck'):
    subprocess.run(['shellcheck', str(SCRIPT)], check=True)


def test_what_fails_or_is_left_out_keeps_nothing_from_running(
  accelerator, tmp_path, monkeypatch, capsys
):
  def fail(run):
    raise accelerator.Failed('the masks are empty')

  def broken(run):
    raise ZeroDivisionError('by zero')

  rows = [
    {'workload': '2d_gpu', 'kind': 'step', 'ours_ms': 12.34, 'memory': {}},
  ]
  monkeypatch.setattr(accelerator, 'missing_of', lambda modules, _: ['torch'])
  status, found = run(
    accelerator,
    (
      machine(accelerator),
      part(accelerator, 'predict', fail),
      part(accelerator, 'resume', broken),
      part(accelerator, 'other', fail, needs=('torch',)),
      part(
        accelerator, '2d_gpu', lambda run: {'rows': rows, 'small': run.small}
      ),
    ),
    tmp_path,
    monkeypatch,
  )
  assert status == 1
  states = {name: one['ok'] for name, one in found['parts'].items()}
  assert states == {
    'machine': True,
    'predict': False,
    'resume': False,
    'other': None,
    '2d_gpu': True,
  }
  assert found['missing'] == ['torch', 'torch']
  assert found['parts']['2d_gpu']['found']['small']  # on a CPU
  words = capsys.readouterr().out
  for text in (
    'not installed here: torch',
    'the masks are empty',
    'ZeroDivisionError: by zero',
    'left out: torch not installed',
    '| 2d_gpu | step | 12.3 | | | |',
  ):
    assert text in words


def test_what_is_missing_in_another_environment(accelerator):
  modules = ('json', 'no_such_module')
  # Another name of the same, so that a process is asked.
  for python, missing in (
    (sys.executable, ['no_such_module']),
    (f'{os.path.dirname(sys.executable)}/./python', ['no_such_module']),
    ('/nowhere/python', list(modules)),
  ):
    assert accelerator.missing_of(modules, python) == missing


def test_after_the_time_no_part_begins(accelerator, tmp_path, monkeypatch):
  status, found = run(
    accelerator,
    (
      machine(accelerator),
      part(accelerator, 'train', lambda run: pytest.fail('it began')),
    ),
    tmp_path,
    monkeypatch,
    '--seconds=20',
    '--size=full',
  )
  assert status == 0
  assert found['parts']['train']['said'] == 'left out: the time is over'


def test_a_command_that_fails_is_told_by_its_last_error(accelerator, tmp_path):
  import accelerator_parts

  one = accelerator.Run(tmp_path, tmp_path, 'cpu', 1, True, math.inf, '')
  code = (
    'import sys; print("error: no such thing", file=sys.stderr); sys.exit(3)'
  )
  with pytest.raises(accelerator.Failed) as error:
    accelerator_parts.command(one, sys.executable, '-c', code)
  assert 'exit status 3: error: no such thing' in str(error.value)
  log = (tmp_path / 'accelerator.log').read_text()
  assert 'error: no such thing' in log
  with pytest.raises(accelerator.Failed) as error:
    accelerator_parts.command(
      one,
      *(sys.executable, '-c', 'import time; time.sleep(1000)'),
      most_seconds=0.1,
    )
  assert 'stopped after 1 s' in str(error.value)


def test_the_script_finds_machine_and_guard(tmp_path):
  done = subprocess.run(
    [str(SCRIPT), str(tmp_path)],
    env={
      **os.environ,
      'PYTHON': sys.executable,
      'MEDSEG_PARTS': 'transfer_guard,2d_gpu',
      'MEDSEG_WHEELS': str(tmp_path),  # none in it: told, and it goes on
    },
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert f'the wheels of {tmp_path} were not installed' in done.stderr
  found = json.loads((tmp_path / 'accelerator.json').read_text())
  assert set(found['parts']) == {'machine', 'transfer_guard', '2d_gpu'}
  assert found['parts']['machine']['found']['platform'] == 'cpu'
  assert found['parts']['transfer_guard']['ok']
  [step, forward] = found['parts']['2d_gpu']['found']['rows']
  assert step['ours_ms'] > 0 and forward['kind'] == 'forward'
