"""JSON files, good and bad, and keys that follow the files they are of."""

import os
import pathlib

import pytest
from data_cases import assert_one_line, put_another_in_its_place

from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import (
  expand_home,
  files_key,
  read_json,
  user_cache_folder,
)


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path, mark):
  path = tmp_path / 'a.json'
  path.write_bytes(mark + '{"Läsion": [1, 2.5, null]}'.encode())
  assert read_json(path, 'anything') == {'Läsion': [1, 2.5, None]}
  assert read_json(str(path), 'anything') == {'Läsion': [1, 2.5, None]}


@pytest.mark.parametrize(
  ('content', 'found'),
  [
    (None, 'cannot be read (No such file'),
    (b'', 'not JSON'),
    (b'{"a": ', 'not JSON'),
    (b'\xff\xfe\x80', 'not JSON (no UTF-8 at byte 0)'),
    (b'\0' * 100, 'not JSON (Expecting value'),
    (b'{"a": "b\0"}', 'not JSON (Invalid control character'),
    (b'["x\\u0000"]', "not JSON ('x\\x00' has characters that are no text)"),
    (b'["\\ud800"]', 'has characters that are no text'),
    (b'[' * 1_000_000, 'not JSON (nested deeper than 64 levels)'),
    (b'[' * 65 + b']' * 65, 'not JSON (nested deeper than 64 levels)'),
    (b'{"a":' * 1_000_000, 'not JSON (nested deeper than 64 levels)'),
    (b'[1, Infinity]', 'not JSON (the number Infinity is not finite)'),
    (b'-Infinity', 'the number -Infinity is not finite'),
    (b'{"a": NaN}', 'the number NaN is not finite'),
    (b'1e999', 'the number 1e999 is not finite'),
    (b'9' * 100_000, 'not JSON (the number 999999999999999999...'),
    (b'[-9223372036854775809]', 'is beyond 64 bits'),
    (b'"' + b'\\q' * 5000, 'not JSON (Invalid'),
  ],
)
def test_what_is_no_json_is_one_line_with_file_and_form(
  tmp_path, content, found
):
  path = tmp_path / 'a.json'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError) as error:
    read_json(path, 'a list of names')
  assert_one_line(error, f'{path}: ', found, 'a list of names')
  assert len(str(error.value)) < len(str(path)) + 150


def test_what_is_legal_stays_legal(tmp_path):
  path = tmp_path / 'a.json'
  deep = b'[' * 64 + b']' * 64
  for content, value in [
    (b'[18446744073709551615, -1e308]', [2**64 - 1, -1e308]),
    (b'"\\udcff"', os.fsdecode(b'\xff')),  # a file's name may be like that
    (deep, eval(deep)),
  ]:
    path.write_bytes(content)
    assert read_json(path, 'anything') == value


def test_what_is_no_plain_file_is_no_json_file(tmp_path):
  os.mkfifo(tmp_path / 'queue')  # to read it would last for ever
  (tmp_path / 'file').write_text('')
  for path, words in [
    (tmp_path, 'cannot be read (Is a directory)'),
    (tmp_path / 'queue', 'no plain file'),
    (tmp_path / 'file' / 'a', 'cannot be read (Not a directory)'),
    (tmp_path / 'a\0b', 'cannot be read (embedded null byte)'),
  ]:
    with pytest.raises(InputError) as error:
      read_json(path, 'a list')
    assert_one_line(error, f'{path}: {words}', 'a JSON file: a list')


def test_without_a_home_folder_what_to_set_is_said(no_home, monkeypatch):
  with pytest.raises(InputError) as error:
    user_cache_folder()
  assert_one_line(
    error, '~/.cache', 'HOME', 'config.data.cache_dir', 'XDG_CACHE_HOME'
  )
  with pytest.raises(InputError) as error:
    expand_home('~/caches', or_set='config.data.cache_dir')
  assert_one_line(error, '~/caches', 'HOME', 'set config.data.cache_dir')
  assert expand_home('caches', or_set='') == pathlib.Path('caches')
  monkeypatch.setenv('XDG_CACHE_HOME', '/caches')
  assert user_cache_folder() == pathlib.Path('/caches/medseg_jax')


def write(root, words=('one', 'two')):
  paths = [root / 'one.txt', root / 'in' / 'two.txt']
  for path, word in zip(paths, words, strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(word)
  return paths


def test_a_key_is_of_path_content_and_facts(tmp_path):
  facts = ('name', (0, 255))
  paths = write(tmp_path / 'a')
  key = files_key(paths, tmp_path / 'a', facts)
  assert len(key) == 64
  # The same elsewhere, at another time.
  moved = write(tmp_path / 'b')
  os.utime(moved[0], ns=(6, 6))
  assert files_key(moved, tmp_path / 'b', facts) == key
  changed = [
    files_key(paths, tmp_path / 'a', ('name', (255, 0))),
    files_key(paths[:1], tmp_path / 'a', facts),
    files_key(paths[::-1], tmp_path / 'a', facts),
    files_key(paths, tmp_path, facts),
    files_key(write(tmp_path / 'c', ('one', 'six')), tmp_path / 'c', facts),
  ]
  put_another_in_its_place(paths[1])
  changed.append(files_key(paths, tmp_path / 'a', facts))
  assert len({key, *changed}) == 7


def test_a_name_that_is_no_text_has_a_key(tmp_path):
  path = tmp_path / os.fsdecode(b'\xff.txt')
  path.write_text('')
  assert len(files_key([path], tmp_path)) == 64


def test_a_file_that_has_gone_is_an_error(tmp_path):
  with pytest.raises(InputError) as error:
    files_key([tmp_path / 'gone.nii'], tmp_path)
  assert_one_line(error, tmp_path / 'gone.nii', 'no longer there')
