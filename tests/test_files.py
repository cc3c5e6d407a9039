"""JSON files, good and bad, and keys that follow the files they are of."""

import hashlib
import os

import pytest
from data_cases import assert_one_line

from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json, stat_key


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


def write(root, times=(5, 6)):
  paths = [root / 'one.txt', root / 'in' / 'two.txt']
  for path, time in zip(paths, times, strict=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    os.utime(path, ns=(time, time))
  return paths


def test_a_key_is_of_path_size_time_and_facts(tmp_path):
  paths = write(tmp_path / 'a')
  key = stat_key(paths, tmp_path / 'a', ('name', (0, 255)))
  text = "['name', (0, 255), ('one.txt', 7, 5), ('in/two.txt', 7, 6)]"
  assert key == hashlib.sha256(text.encode()).hexdigest()
  # The same elsewhere.
  moved = write(tmp_path / 'b')
  assert stat_key(moved, tmp_path / 'b', ('name', (0, 255))) == key
  changed = [
    stat_key(paths, tmp_path / 'a', ('name', (255, 0))),
    stat_key(paths[:1], tmp_path / 'a', ('name', (0, 255))),
    stat_key(paths[::-1], tmp_path / 'a', ('name', (0, 255))),
    stat_key(write(tmp_path / 'a', (5, 7)), tmp_path / 'a', ('name', (0, 255))),
  ]
  paths[1].write_text('three words here')
  os.utime(paths[1], ns=(6, 6))
  changed.append(stat_key(paths, tmp_path / 'a', ('name', (0, 255))))
  assert len({key, *changed}) == 6


def test_a_name_that_is_no_text_has_a_key(tmp_path):
  path = tmp_path / os.fsdecode(b'\xff.txt')
  path.write_text('')
  assert len(stat_key([path], tmp_path)) == 64


def test_a_file_that_has_gone_is_an_error(tmp_path):
  with pytest.raises(InputError) as error:
    stat_key([tmp_path / 'gone.nii'], tmp_path)
  assert_one_line(error, tmp_path / 'gone.nii', 'no longer there')
