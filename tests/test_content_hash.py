"""Hashes of what files hold: right after every change, and read once."""

import concurrent.futures
import os
import pathlib
import subprocess
import sys

import pytest
from data_cases import assert_one_line

from medseg_jax.runtime import files
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import content_hash


@pytest.fixture
def reads(monkeypatch):
  """Lists what is read to be hashed, where every file counts as settled."""
  read = []
  digest = files.hashlib.file_digest

  def listed(file, kind):
    read.append(file.name)
    return digest(file, kind)

  monkeypatch.setattr(files.hashlib, 'file_digest', listed)
  monkeypatch.setattr(files, 'UNSETTLED_NS', -(10**18))
  return read


def forget():
  """Makes this process know no more than the next one will."""
  files._known_hashes.cache_clear()


def store():
  return pathlib.Path(os.environ['XDG_CACHE_HOME']) / 'medseg_jax'


def write(path, content, like=None):
  path.write_bytes(content)
  if like is not None:
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
  return path


def test_the_same_bytes_have_the_same_hash_wherever_they_lie(tmp_path):
  (tmp_path / 'in').mkdir()
  one = write(tmp_path / 'one.png', b'a' * 100_000)
  two = write(tmp_path / 'in' / os.fsdecode(b'\xff.nii'), b'a' * 100_000)
  other = write(tmp_path / 'other', b'a' * 99_999 + b'b')
  assert content_hash(one) == content_hash(str(two)) != content_hash(other)
  assert len(content_hash(one)) == 32
  assert len({content_hash(write(tmp_path / 'x', x)) for x in (b'', b'0')}) == 2


def test_a_file_is_read_once_also_by_the_next_run(tmp_path, reads):
  paths = [write(tmp_path / f'{i}', bytes([i])) for i in range(3)]
  found = [content_hash(path) for path in paths]
  assert len(set(found)) == 3
  for _ in range(2):
    assert [content_hash(path) for path in paths] == found
    assert len(reads) == 3
    forget()


@pytest.mark.parametrize('how', ['in place', 'replaced', 'by a link'])
def test_the_same_size_and_time_hide_no_change(tmp_path, reads, how):
  path, other = tmp_path / 'label.png', tmp_path / 'other.png'
  real = write(tmp_path / 'real.png', b'one')
  if how == 'by a link':
    path.symlink_to(real)
  else:
    real.rename(path)
  status = path.stat()
  before = content_hash(path)
  if how == 'in place':
    while path.stat().st_ctime_ns == status.st_ctime_ns:  # a clock that ticks
      write(path, b'two', like=status)
  else:
    write(other, b'two', like=status)
  if how == 'replaced':
    os.replace(other, path)
  elif how == 'by a link':
    path.unlink()
    path.symlink_to(other)
  assert (path.stat().st_size, path.stat().st_mtime_ns) == (
    status.st_size,
    status.st_mtime_ns,
  )
  assert content_hash(path) == content_hash(other if other.exists() else path)
  assert content_hash(path) != before


def test_a_file_written_a_moment_ago_is_read_every_time(tmp_path, reads):
  path = write(tmp_path / 'fresh', b'one')
  files.UNSETTLED_NS = 10**18  # undone by the fixture
  found = content_hash(path)
  assert content_hash(path) == found and len(reads) == 2
  assert not (store() / files.REMEMBERED).exists()


def test_what_is_spoiled_of_the_memory_is_read_again(tmp_path, reads):
  paths = [write(tmp_path / f'{i}', bytes([i])) for i in range(3)]
  found = [content_hash(path) for path in paths]
  memory = store() / files.REMEMBERED
  lines = memory.read_bytes().splitlines(keepends=True)
  lines[1] = bytes(len(lines[1]))  # zeros, as a crash of the machine leaves
  memory.write_bytes(b''.join(lines)[:-5])  # and a write that was cut off
  forget()
  assert [content_hash(path) for path in paths] == found
  assert [pathlib.Path(read).name for read in reads[3:]] == ['1', '2']
  forget()
  assert [content_hash(path) for path in paths] == found
  assert len(reads) <= 6  # of the two one may have joined the rest of a line


def test_a_memory_that_grew_too_long_begins_anew(tmp_path, reads, monkeypatch):
  path = write(tmp_path / 'a', b'a')
  found = content_hash(path)
  monkeypatch.setattr(files, 'MOST_REMEMBERED', 60)
  forget()
  assert content_hash(path) == found and len(reads) == 2
  assert (store() / files.REMEMBERED).stat().st_size == 66


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path, reads):
  path = write(tmp_path / 'a', b'a')
  store().parent.mkdir(parents=True, exist_ok=True)
  store().write_text('a file in the place of the folder')
  assert content_hash(path) == content_hash(path)
  assert len(reads) == 1


def test_without_a_home_folder_contents_are_read_once_a_process(tmp_path):
  path = write(tmp_path / 'a', b'a')
  program = """
    import os, pwd, sys
    def nobody(uid):
      raise KeyError(uid)
    pwd.getpwuid = nobody
    from medseg_jax.runtime.files import content_hash
    print(content_hash(sys.argv[1]))
  """
  environment = {
    k: v for k, v in os.environ.items() if k not in ('HOME', 'XDG_CACHE_HOME')
  }
  here = str(pathlib.Path(__file__).parent.parent)
  environment['PYTHONPATH'] = here
  run = subprocess.run(
    [sys.executable, '-c', program.replace('\n    ', '\n'), str(path)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.stdout.strip() == content_hash(path), run.stderr


def test_threads_share_what_is_known(tmp_path, reads):
  paths = [write(tmp_path / f'{i}', bytes([i])) for i in range(50)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(content_hash, paths))
  assert len(set(found)) == 50
  forget()
  assert list(map(content_hash, paths)) == found and len(reads) == 50


def test_what_has_no_content_is_one_line(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path, found in (
    (tmp_path / 'gone.nii', 'no longer there'),
    (tmp_path, 'not a file'),
    (tmp_path / 'pipe', 'not a file'),
  ):
    with pytest.raises(InputError) as error:
      content_hash(path)
    assert_one_line(error, path, found)
