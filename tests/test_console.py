"""The command `medseg-jax`, as pip writes it, is the program."""

import os
import re
import subprocess
import sys

import pytest
from conftest import HANG_S, ROOT

# Python runs this before all else, also in the process that is started anew:
# it notes the process, says that there are huge pages, and sends a signal when
# a module begins to be imported.
AT_IMPORT = """
import os, signal, sys
print(os.getpid(), file=open({starts!r}, 'a'))
from medseg_jax.runtime import host_memory
host_memory._on_request = lambda: True
host_memory._libc_version = lambda: (2, 35)
class Finder:
  def find_spec(self, name, path=None, target=None):
    if name == {module!r}:
      sys.meta_path.remove(self)
      os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""
ERROR = 'error: unknown key config.seeed; did you mean config.seed?\n'


@pytest.fixture
def program(tmp_path):
  """Returns the command of the script that setup.py asks for."""
  module, name = re.search(
    r"'medseg-jax = ([\w.]+):(\w+)'", (ROOT / 'setup.py').read_text()
  ).groups()
  path = tmp_path / 'medseg-jax'
  path.write_text(
    f'import sys\nfrom {module} import {name}\n'
    f"if __name__ == '__main__':\n  sys.exit({name}())\n"
  )
  return [sys.executable, str(path)]


def run(folder, command, *args, module=''):
  """Returns the ended program, and the process of each of its starts."""
  starts = folder / 'starts'
  starts.unlink(missing_ok=True)
  (folder / 'sitecustomize.py').write_text(
    AT_IMPORT.format(starts=str(starts), module=module)
  )
  kept = {
    name: value
    for name, value in os.environ.items()
    if name != 'GLIBC_TUNABLES' and not name.startswith('MALLOC_')
  }
  done = subprocess.run(
    [*command, *args],
    env=kept | {'PYTHONPATH': f'{folder}{os.pathsep}{ROOT}'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  return done, starts.read_text().split()


def test_it_is_the_program_and_gets_huge_pages(program, tmp_path):
  args = ['--config=configs/unet.py', '--config.seeed=1']
  for command in (program, [sys.executable, '-m', 'medseg_jax.main']):
    done, starts = run(tmp_path, command, *args)
    assert (done.returncode, done.stdout, done.stderr) == (1, '', ERROR)
    assert len(starts) == 2 and len(set(starts)) == 1


def test_it_notes_signals_before_all_that_takes_time(program, tmp_path):
  done, _ = run(tmp_path, program, '--config=configs/unet.py', module='absl')
  assert done.returncode == 143
  assert done.stdout == 'stopped by SIGTERM\n'
  assert done.stderr.splitlines() == [
    'SIGTERM: stopping where nothing is lost; a second one ends at once'
  ]
