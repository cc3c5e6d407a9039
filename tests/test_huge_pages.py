"""A program that starts anew with huge pages, and does so once."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from medseg_jax import huge_pages

PROGRAM = """
import os, sys
print(os.getpid(), flush=True)
from medseg_jax import huge_pages
huge_pages.restart()
print(os.environ.get('GLIBC_TUNABLES'), sys.argv[1:], __name__)
"""


def on_request(tmp_path, monkeypatch, text='always [madvise] never\n'):
  file = tmp_path / 'enabled'
  file.write_text(text)
  monkeypatch.setattr(huge_pages, '_SYSTEM', file)


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
  wanted = huge_pages.with_huge_pages(environment).get('GLIBC_TUNABLES')
  assert len(starts) == (2 if wanted else 1)
  assert len(set(starts)) == 1  # the same process
  assert last == f"{wanted} ['--a=b c', '\"'] __main__"


def test_nothing_is_left_to_do_after_the_restart(tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch)
  once = huge_pages.with_huge_pages({'A': 'b'})
  assert once == {'A': 'b', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  assert huge_pages.with_huge_pages(once) == once
  other = {'GLIBC_TUNABLES': 'glibc.cpu.x86_shstk=off'}
  assert huge_pages.with_huge_pages(other)['GLIBC_TUNABLES'] == (
    'glibc.cpu.x86_shstk=off:glibc.malloc.hugetlb=1'
  )


@pytest.mark.parametrize('name, value', [
  ('MALLOC_ARENA_MAX', '1'), ('GLIBC_TUNABLES', 'glibc.malloc.top_pad=1'),
])
def test_what_the_user_has_set_up_stays(name, value, tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch)
  assert huge_pages.with_huge_pages({name: value}) == {name: value}


@pytest.mark.parametrize('text', ['[always] madvise never\n', ''])
def test_where_the_system_decides_nothing_is_done(text, tmp_path, monkeypatch):
  on_request(tmp_path, monkeypatch, text)
  assert huge_pages.with_huge_pages({}) == {}
  monkeypatch.setattr(huge_pages, '_SYSTEM', tmp_path / 'hidden')
  assert huge_pages.with_huge_pages({}) == {}
