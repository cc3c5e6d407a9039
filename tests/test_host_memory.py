"""What memory is left; a program that starts anew with huge pages, once."""

import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from medseg_jax import host_memory

PROGRAM = """
import os, sys
print(os.getpid(), flush=True)
from medseg_jax import host_memory
host_memory.restart_with_huge_pages()
print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], __name__)
"""


def on_request(tmp_path, monkeypatch, text='always [madvise] never\n'):
  file = tmp_path / 'enabled'
  file.write_text(text)
  monkeypatch.setattr(host_memory, '_WHO_HAS_THEM', file)


def test_a_program_starts_anew_once_with_its_arguments(tmp_path):
  (tmp_path / 'program.py').write_text(PROGRAM)
  environment = {
    name: value for name, value in os.environ.items()
    if name != 'GLIBC_TUNABLES' and not name.startswith('MALLOC_')
  } | {'PYTHONPATH': f'{ROOT}:{tmp_path}'}
  done = subprocess.run(
    [sys.executable, '-m', 'program', '--a=b c', '"'], env=environment,
    capture_output=True, text=True, timeout=60, cwd=tmp_path,
  )
  assert (done.returncode, done.stderr) == (0, '')
  *starts, last = done.stdout.splitlines()
  wanted = host_memory.with_huge_pages(environment).get('GLIBC_TUNABLES')
  assert len(starts) == (2 if wanted else 1)
  assert len(set(starts)) == 1  # the same process
  assert last == f"{wanted} ['--a=b c', '\"'] __main__"


def test_nothing_is_left_to_do_after_the_restart(tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch)
  once = host_memory.with_huge_pages({'A': 'b'})
  assert once == {'A': 'b', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  assert host_memory.with_huge_pages(once) == once
  other = {'GLIBC_TUNABLES': 'glibc.cpu.x86_shstk=off'}
  assert host_memory.with_huge_pages(other)['GLIBC_TUNABLES'] == (
    'glibc.cpu.x86_shstk=off:glibc.malloc.hugetlb=1'
  )


@pytest.mark.parametrize('name, value', [
  ('MALLOC_ARENA_MAX', '1'), ('GLIBC_TUNABLES', 'glibc.malloc.top_pad=1'),
])
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
