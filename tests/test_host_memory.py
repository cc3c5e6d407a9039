"""What memory is left; a program that starts anew with huge pages, once."""

import math
import os
import subprocess
import sys

import pytest
from conftest import HANG_S, ROOT

from medseg_jax.runtime import host_memory

# Restarts on any machine: what the system says is set beforehand.
PROGRAM = """
import os, pathlib, sys
print(os.getpid(), flush=True)
sys.path.insert(0, {root!r})
from medseg_jax.runtime import host_memory
host_memory._on_request = lambda: True
host_memory._libc_version = lambda: (2, 35)
{before}
if __name__ == '__main__':
  host_memory.restart_with_huge_pages({name})
print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], sys.flags.optimize)
"""
WISH = 'glibc.malloc.hugetlb=1'


def run(folder, *command, before='', name='__file__', stdin=None, **variables):
  """Returns how often the program began, and its last line."""
  text = PROGRAM.format(root=str(ROOT), before=before, name=name)
  (folder / 'program.py').write_text(text)
  kept = {
    name: value
    for name, value in os.environ.items()
    if name != 'GLIBC_TUNABLES' and not name.startswith('MALLOC_')
  }
  done = subprocess.run(
    command,
    env=kept | variables,
    capture_output=True,
    text=True,
    timeout=HANG_S,
    cwd=folder,
    input=stdin and stdin.read_text(),
  )
  assert (done.returncode, done.stderr) == (0, '')
  *starts, last = done.stdout.splitlines()
  assert len(set(starts)) == 1  # the same process
  return len(starts), last


@pytest.mark.parametrize('options', [[], ['-O', '-W', 'ignore', '-X', 'utf8']])
@pytest.mark.parametrize(
  'program, name',
  [
    (['-m', 'program'], "'program'"),
    (['program.py'], '__file__'),
  ],
)
def test_a_program_starts_anew_once_with_its_arguments(
  options, program, name, tmp_path
):
  arguments = ['--a=b c', '"', '-m', 'program']
  command = [sys.executable, *options, *program, *arguments]
  assert run(tmp_path, *command, name=name) == (
    2,
    f'{WISH} {arguments} {int(bool(options))}',
  )
  assert run(tmp_path, *command, name=name, MALLOC_ARENA_MAX='2')[0] == 1


@pytest.mark.parametrize(
  'before',
  [
    # The variable is lost, as in a process with the rights of another user.
    'os.environ.pop("GLIBC_TUNABLES", None)',
    'sys.executable = ""',
    'sys.executable = "/nowhere/python"',
    'sys.settrace(lambda *_: None)',  # a debugger
  ],
)
def test_a_program_that_cannot_start_anew_goes_on(before, tmp_path):
  starts, last = run(tmp_path, sys.executable, 'program.py', before=before)
  assert starts == (2 if 'pop' in before else 1)
  assert last == 'None [] 0'


def test_a_program_that_runs_another_is_not_started_anew(tmp_path):
  host = tmp_path / 'host.py'
  host.write_text(
    "import runpy; runpy.run_module('program', run_name='__main__')"
  )
  for arguments, stdin in ((['host.py'], None), (['-'], host)):
    command = [sys.executable, *arguments]
    assert run(tmp_path, *command, stdin=stdin) == (1, 'None [] 0')


def test_a_closed_stdout_is_no_error(tmp_path):
  run(tmp_path, sys.executable, 'program.py')  # writes it
  subprocess.run(
    ['sh', '-c', f'{sys.executable} program.py >&-'], cwd=tmp_path, check=True
  )


def on_request(tmp_path, monkeypatch, text='always [madvise] never\n'):
  file = tmp_path / 'enabled'
  file.write_text(text)
  monkeypatch.setattr(host_memory, '_WHO_HAS_THEM', file)
  monkeypatch.setattr(host_memory, '_libc_version', lambda: (2, 36))


def test_nothing_is_left_to_do_after_the_restart(tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch)
  once = host_memory.with_huge_pages({'A': 'b'})
  assert once == {'A': 'b', 'GLIBC_TUNABLES': WISH}
  assert host_memory.with_huge_pages(once) == once
  other = {'GLIBC_TUNABLES': 'glibc.cpu.x86_shstk=off'}
  assert host_memory.with_huge_pages(other)['GLIBC_TUNABLES'] == (
    f'glibc.cpu.x86_shstk=off:{WISH}'
  )


@pytest.mark.parametrize(
  'told, version',
  [
    ('glibc 2.34', (2, 34)),
    ('musl 1.2', ()),
    (None, ()),
  ],
)
def test_an_older_or_another_library_is_left_alone(
  told, version, tmp_path, monkeypatch
):
  read = host_memory._libc_version
  on_request(tmp_path, monkeypatch)
  monkeypatch.setattr(host_memory, '_libc_version', read)
  monkeypatch.setattr(os, 'confstr', lambda name: told)
  assert host_memory._libc_version() == version
  assert host_memory.with_huge_pages({}) == {}
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.40')
  assert host_memory.with_huge_pages({}) == {'GLIBC_TUNABLES': WISH}


@pytest.mark.parametrize(
  'name, value',
  [
    ('MALLOC_ARENA_MAX', '1'),
    ('GLIBC_TUNABLES', 'glibc.malloc.top_pad=1'),
  ],
)
def test_what_the_user_has_set_up_stays(name, value, tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch)
  assert host_memory.with_huge_pages({name: value}) == {name: value}


@pytest.mark.parametrize('text', ['[always] madvise never\n', ''])
def test_where_the_system_decides_nothing_is_done(text, tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch, text)
  assert host_memory.with_huge_pages({}) == {}
  monkeypatch.setattr(host_memory, '_WHO_HAS_THEM', tmp_path / 'hidden')
  assert host_memory.with_huge_pages({}) == {}


def test_available_is_what_the_system_says(tmp_path, monkeypatch):
  monkeypatch.setattr(host_memory, '_OWN_CGROUP', tmp_path / 'hidden')
  told = host_memory.available()
  everything = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert 0 < told < everything
  meminfo = tmp_path / 'meminfo'
  monkeypatch.setattr(host_memory, '_MEMINFO', meminfo)
  assert host_memory.available() == everything / 2  # as on macOS
  meminfo.write_text('MemTotal: 90 kB\nMemAvailable:    17 kB\n')
  assert host_memory.available() == 17 * 1024
  meminfo.write_text('MemTotal: 90 kB\n')
  monkeypatch.delattr(os, 'sysconf')  # as on Windows
  assert math.isinf(host_memory.available())


V1_NONE = 9223372036854771712  # how the first version says that there is none


def group(folder, limit, used, *, files=0, version=2):
  """Writes the files of a control group."""
  names = {
    1: ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_'),
    2: ('memory.max', 'memory.current', ''),
  }
  limit_file, used_file, prefix = names[version]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / limit_file).write_text(f'{limit}\n')
  (folder / used_file).write_text(f'{used}\n')
  (folder / 'memory.stat').write_text(
    f'anon 5\n{prefix}inactive_file {files}\n{prefix}active_file 7\n'
  )


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
  """Returns the folder of the groups, and a function that names the own one."""
  root, own = tmp_path / 'cgroup', tmp_path / 'own'
  (tmp_path / 'meminfo').write_text('MemAvailable: 1000 kB\n')
  monkeypatch.setattr(host_memory, '_MEMINFO', tmp_path / 'meminfo')
  monkeypatch.setattr(host_memory, '_CGROUPS', root)
  monkeypatch.setattr(host_memory, '_OWN_CGROUP', own)
  return root, own.write_text


def test_a_container_has_what_its_limit_leaves(cgroups):
  root, in_group = cgroups
  in_group('0::/\n')
  group(root, limit=900, used=400, files=150)
  assert host_memory.available() == 650
  group(root, limit=900, used=1000)
  assert host_memory.available() == 0
  group(root, limit='max', used=400)
  assert host_memory.available() == 1024000
  group(root, limit=10**9, used=400)  # more than the machine has
  assert host_memory.available() == 1024000


def test_the_strictest_of_the_groups_around_counts(cgroups):
  root, in_group = cgroups
  in_group('0::/jobs/12/step\n')
  group(root / 'jobs', limit=5000, used=4800)
  group(root / 'jobs/12', limit=1000, used=100)
  group(root / 'jobs/12/step', limit='max', used=100)
  assert host_memory.available() == 200
  group(root / 'jobs', limit=5000, used=0)
  assert host_memory.available() == 900


@pytest.mark.parametrize('path', ['/', '/slurm/uid_0/job_7', '/../../other'])
def test_the_first_version_of_the_groups(cgroups, path):
  root, in_group = cgroups
  in_group(f'11:cpu,cpuacct:/x\n4:hugetlb,memory:{path}\n1:name=systemd:/\n')
  group(root / 'memory', limit=V1_NONE, used=70, version=1)
  assert host_memory.available() == 1024000
  # Also where the group is called otherwise outside of the container.
  group(root / 'memory', limit=3000, used=1000, files=24, version=1)
  assert host_memory.available() == 2024


@pytest.mark.parametrize('text', ['', 'nonsense', '0:', '3:cpu:/a', '0::/gone'])
def test_groups_that_say_nothing(cgroups, text):
  _, in_group = cgroups
  in_group(text)
  assert host_memory.available() == 1024000
