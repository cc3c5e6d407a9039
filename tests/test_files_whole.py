"""Files that appear whole and on the disk; what is said where they cannot."""

import errno
import os
import pathlib
import stat

import pytest
from data_cases import assert_one_line

from medseg_jax.runtime import files
from medseg_jax.runtime.errors import FileError, InputError


@pytest.fixture
def events(monkeypatch):
  """Returns a list of what is flushed, and renamed, in order."""
  events = []
  fsync, replace = os.fsync, os.replace

  def record_fsync(handle):
    events.append(pathlib.Path(os.readlink(f'/proc/self/fd/{handle}')))
    fsync(handle)

  def record_replace(old, new):
    events.append(('rename', pathlib.Path(new)))
    replace(old, new)

  monkeypatch.setattr(os, 'fsync', record_fsync)
  monkeypatch.setattr(os, 'replace', record_replace)
  return events


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, events):
  path = tmp_path / 'in' / 'a.json'
  files.write_atomically(path, b'new')
  temporary = path.with_name(f'.a.json.{os.getpid()}.tmp')
  assert events == [temporary, ('rename', path), path.parent]
  assert path.read_bytes() == b'new'
  assert [p.name for p in path.parent.iterdir()] == ['a.json']
  mode = os.umask(0)
  os.umask(mode)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mode


def test_a_folder_is_on_the_disk_with_all_in_it(tmp_path, events):
  path = tmp_path / 'case'
  with files.replacing(path) as new:
    (new / 'in').mkdir(parents=True)
    (new / 'a').write_bytes(b'a')
    (new / 'in' / 'b').write_bytes(b'b')
    assert not path.exists()
  assert set(events[:4]) == {new, new / 'a', new / 'in', new / 'in' / 'b'}
  assert events[4:] == [('rename', path), tmp_path]
  assert (path / 'in' / 'b').read_bytes() == b'b'


def test_a_disk_that_cannot_flush_is_written_all_the_same(
  tmp_path, monkeypatch
):
  def refuse(handle):
    raise OSError(errno.EINVAL, 'Invalid argument')

  monkeypatch.setattr(os, 'fsync', refuse)
  files.write_atomically(tmp_path / 'a', b'a')
  assert (tmp_path / 'a').read_bytes() == b'a'


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO])
def test_what_fails_halfway_leaves_what_was_there(
  tmp_path, monkeypatch, number
):
  path = tmp_path / 'a'
  files.write_atomically(path, b'old')

  def refuse(handle):
    raise OSError(number, os.strerror(number))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', refuse)
    with pytest.raises(OSError) as error:
      files.write_atomically(path, b'new')
  assert error.value.errno == number
  assert_one_line(error, f'{path}: cannot write ({os.strerror(number)}); ')
  with pytest.raises(KeyError), files.replacing(path) as new:
    new.write_bytes(b'half')
    raise KeyError
  assert path.read_bytes() == b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_names_may_be(tmp_path):
  path = tmp_path / ('ä' * 126 + '.x')  # 254 bytes
  files.write_atomically(path, b'a')
  assert path.read_bytes() == b'a'
  path = path.with_name(path.name + 'xx')
  with pytest.raises(InputError) as error:
    files.write_atomically(path, b'a')
  assert_one_line(error, f'{path}: cannot write (File name too long)', '255')


def test_what_stands_in_the_way_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'folder' / 'full').mkdir(parents=True)
  for path, words in [
    (tmp_path / 'file' / 'a', f'File exists: {tmp_path}/file); a file is in'),
    (tmp_path / 'file' / 'a' / 'b', 'Not a directory'),
    (tmp_path / 'folder', 'Is a directory); a folder is where a file has to'),
  ]:
    with pytest.raises(FileError) as error:
      files.write_atomically(path, b'a')
    assert_one_line(error, f'{path}: cannot write (', words)
