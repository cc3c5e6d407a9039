"""The set-up of the process: it helps, and never stands in the way."""

import os
import subprocess
import sys

import jax
import pytest
from conftest import HANG_S, ROOT
from model_cases import one_cpu

from medseg_jax.runtime import process

# Compiles a program and says how many came from the disk.
PROGRAM = """
import os, pwd, resource, sys
if 'homeless' in sys.argv:
  del os.environ['HOME'], os.environ['XDG_CACHE_HOME']
  pwd.getpwuid = {}.__getitem__
from medseg_jax.runtime import process
process.set_up()
import jax
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event) if 'cache_hits' in event else None
)
if 'full' in sys.argv:  # every write fails, as on a full disk
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
assert int(jax.jit(lambda x: x + 1)(1)) == 2
print(len(hits))
print(jax.config.jax_compilation_cache_dir)
"""


def run(cache, *args, **environment):
  """Returns what the program wrote to stdout; nothing else is written."""
  kept = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('JAX_')
  }
  environment = (
    kept | {'XDG_CACHE_HOME': str(cache), 'JAX_PLATFORMS': 'cpu'} | environment
  )
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *args],
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0 and done.stderr == '', done.stderr
  return done.stdout.splitlines()


def test_a_second_process_need_not_compile(tmp_path):
  hits, folder = run(tmp_path)
  assert hits == '0'
  assert folder.startswith(str(tmp_path / 'medseg_jax' / 'compiled'))
  assert int(run(tmp_path)[0]) > 0
  for path in (tmp_path / 'medseg_jax' / 'compiled').rglob('*-cache'):
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote
  assert run(tmp_path)[0] == '0'


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
  file = tmp_path / 'file'
  file.write_text('not a folder')
  assert run(file) == ['0', 'None']
  assert run(tmp_path, 'full')[0] == '0'
  assert run(tmp_path, 'homeless', HOME='/')[:2] == ['0', 'None']


def test_the_users_own_folder_stays(tmp_path):
  own = str(tmp_path / 'own')
  assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=own)[1] == own
  assert not (tmp_path / 'medseg_jax').exists()


def test_flags_of_the_user_win(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_b=7 --xla_other')
  process.add_xla_flags({'xla_a': '1', 'xla_b': '2', 'xla_other': 'false'})
  assert os.environ['XLA_FLAGS'] == '--xla_b=7 --xla_other --xla_a=1'
  monkeypatch.delenv('XLA_FLAGS')
  process.add_xla_flags({})
  assert 'XLA_FLAGS' not in os.environ
  process.add_xla_flags({'xla_a': '1'})
  assert os.environ['XLA_FLAGS'] == '--xla_a=1'


def test_the_least_recently_used_go_first(tmp_path):
  for i in range(5):
    path = tmp_path / f'{i % 2}' / f'{i}-cache'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1000 - 10 * i, 500))
  process.remove_oldest(tmp_path, 350)
  assert sorted(p.name for p in tmp_path.rglob('*-cache')) == [
    '0-cache',
    '1-cache',
    '2-cache',
  ]
  process.remove_oldest(tmp_path / 'nowhere', 0)


def test_a_program_that_cannot_be_written_is_not():
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  with pytest.raises(KeyError), process.not_kept(one_cpu()):
    assert getattr(jax.config, name) == float('inf')
    raise KeyError
  assert getattr(jax.config, name) == before
