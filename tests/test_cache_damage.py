"""A cache that lies: what is not as it was written is made anew, and said."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest
from cache_cases import SCALE, Fixed, folders, source
from data_cases import assert_one_line

from medseg_jax.data import cache, cached_case
from medseg_jax.runtime.errors import InputError


@pytest.fixture
def prepared(tmp_path):
  """Returns a source of three cases and a function that opens their cache."""
  data = source(sizes=((40, 60), (50, 30), (70, 70)))

  def open_cache(data=data):
    return cache.prepare(data, SCALE, root=tmp_path, with_locations=True)

  open_cache()
  data.read.clear()
  return data, open_cache


def place_of(root, name='case_1'):
  (place,) = root.glob(f'*/{name}-*')
  return place


def content(place):
  return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def use(got):
  """Reads every array of a cache, as training does; returns copies."""
  return [
    (
      np.array(got.images[i]),
      np.array(got.labels[i]),
      {c: np.array(points) for c, points in got.voxels[i].items()},
    )
    for i in range(len(got.names))
  ]


def assert_same(one, other):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_equal(a[2], b[2])


def zeros_behind_the_header(path):
  whole = path.read_bytes()
  path.write_bytes(whole[:128] + bytes(len(whole) - 128))


def zeros(path):
  path.write_bytes(bytes(path.stat().st_size))


def flipped(path):
  whole = bytearray(path.read_bytes())
  for i in range(200, 700):
    whole[i] ^= 255
  path.write_bytes(whole)


def one_bit(path):
  whole = bytearray(path.read_bytes())
  whole[-1] ^= 1
  path.write_bytes(whole)


def halved(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path):
  path.write_bytes(path.read_bytes() + b'\0')


def another_shape(path):
  array = np.load(path)
  np.save(path, array.reshape(array.shape[1], array.shape[0], *array.shape[2:]))


def another_type(path):
  array = np.load(path)
  np.save(path, array.view(f'V{array.itemsize}').view(f'i{array.itemsize}'))


def a_folder(path):
  path.unlink()
  path.mkdir()
  (path / 'something').write_text('')


def a_link_to_nothing(path):
  path.unlink()
  path.symlink_to(path.parent / 'nothing')


def gone(path):
  path.unlink()


ARRAYS = (
  zeros_behind_the_header,
  zeros,
  flipped,
  one_bit,
  halved,
  longer,
  another_shape,
  another_type,
  a_folder,
  a_link_to_nothing,
  gone,
)


@pytest.mark.parametrize('damage', ARRAYS, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize('kind', ['image', 'label', 'voxels'])
def test_a_damaged_array_is_made_anew_and_said(
  tmp_path, prepared, caplog, damage, kind
):
  data, open_cache = prepared
  good, before = use(open_cache()), content(place_of(tmp_path))
  damage(place_of(tmp_path) / f'{kind}.npy')
  got = open_cache()
  assert_same(use(got), good)
  assert data.read == [1]
  assert content(place_of(tmp_path)) == before
  (record,) = caplog.records
  assert 'case_1' in record.getMessage() and '\n' not in record.getMessage()
  assert 'damaged (' in record.getMessage()
  assert ') and made anew: ' in record.getMessage()
  # Nothing is left to mend, and nothing lies about.
  assert_same(use(got), good)
  assert_same(use(open_cache()), good)
  assert data.read == [1] and len(caplog.records) == 1
  assert len(list(tmp_path.glob('*/*'))) == 3


def changed(**facts):
  """Returns what changes an entry, with a checksum that does not fit."""
  return lambda entry: json.dumps(entry | facts)


def wrong_counts(entry):
  entry['voxels'][0][1] += 5
  return json.dumps(entry)


def without(key):
  return lambda entry: json.dumps({k: v for k, v in entry.items() if k != key})


ENTRIES = {
  'a list': lambda entry: '[]',
  'null': lambda entry: 'null',
  'no keys': lambda entry: '{}',
  'a number': lambda entry: '1e999',
  'a text': lambda entry: '"shape"',
  'nothing': lambda entry: '',
  'half of it': lambda entry: json.dumps(entry)[:50],
  'brackets': lambda entry: '[' * 100_000,
  'braces': lambda entry: '{"a":' * 100_000,
  'no text': lambda entry: '\0' * 300,
  'a huge file': lambda entry: ' ' * 2 * 10**7 + json.dumps(entry),
  'another shape': changed(shape=[50, 31]),
  'no shape': changed(shape='large'),
  'another type': changed(dtype='float64'),
  'no files': changed(files={}),
  'odd files': changed(files=[1, 2]),
  'wrong counts': wrong_counts,
  'without shape': without('shape'),
  'without check': without('check'),
  'a check of another kind': changed(check=[]),
}


@pytest.mark.parametrize('name', ENTRIES)
def test_an_entry_that_makes_no_sense_is_made_anew(
  tmp_path, prepared, caplog, name
):
  data, open_cache = prepared
  good = use(open_cache())
  path = place_of(tmp_path) / 'case.json'
  before = json.loads(path.read_text())
  path.write_text(ENTRIES[name](json.loads(path.read_text())))
  arguments = dict(root=tmp_path, with_locations=True)
  assert cache.missing(data, SCALE, **arguments) == 1
  got = open_cache()
  assert got.shapes == ((40, 60), (50, 30), (70, 70))
  assert_same(use(got), good)
  assert data.read == [1] and json.loads(path.read_text()) == before
  (record,) = caplog.records
  assert 'case_1' in record.getMessage() and '\n' not in record.getMessage()


@pytest.mark.parametrize('what', ['file', 'empty folder', 'link'])
def test_whatever_is_in_the_place_of_a_case_makes_room(
  tmp_path, prepared, what
):
  _, open_cache = prepared
  good, place = use(open_cache()), place_of(tmp_path)
  shutil.rmtree(place)
  if what == 'file':
    place.write_text('something')
  elif what == 'link':
    place.symlink_to(tmp_path / 'nothing')
  else:
    place.mkdir()
  assert_same(use(open_cache()), good)
  assert place.is_dir() and not place.is_symlink()


def test_many_damaged_cases_are_one_line(tmp_path, prepared, caplog):
  _, open_cache = prepared
  for path in tmp_path.glob('*/*/case.json'):
    path.write_text('[]')
  open_cache()
  (record,) = caplog.records
  assert 'case_0' in record.getMessage() and '2 more' in record.getMessage()


def test_arrays_are_checked_once_a_process(tmp_path, prepared, monkeypatch):
  _, open_cache = prepared
  checked = []
  real = cached_case._checksum

  def checksum(path):
    checked.append(path.name)
    return real(path)

  monkeypatch.setattr(cached_case, '_checksum', checksum)
  monkeypatch.setattr(cache, 'MAX_OPEN', 1)
  got = open_cache()
  assert not checked  # opening reads no array
  for _ in range(3):
    use(got)
  assert sorted(checked) == 3 * ['image.npy'] + 3 * ['label.npy'] + (
    3 * ['voxels.npy']
  )


def test_who_has_a_case_mapped_keeps_it_while_it_is_made_anew(
  tmp_path, prepared
):
  _, open_cache = prepared
  running, good = open_cache(), use(open_cache())
  mapped = running.images[1]
  halved(place_of(tmp_path) / 'label.npy')
  next_one = open_cache()
  assert_same(use(next_one), good)
  np.testing.assert_array_equal(mapped, good[1][0])
  assert_same(use(running), good)


def test_runs_that_mend_a_case_at_once_do_not_disturb_each_other(
  tmp_path, prepared
):
  _, open_cache = prepared
  good, got = use(open_cache()), []
  caches = [open_cache() for _ in range(4)]
  for name in ('case_0', 'case_1'):
    flipped(place_of(tmp_path, name) / 'image.npy')
    one_bit(place_of(tmp_path, name) / 'label.npy')
  threads = [
    threading.Thread(target=lambda c=c: got.append(use(c))) for c in caches
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(got) == 4
  for arrays in got:
    assert_same(arrays, good)
  assert len(folders(tmp_path)) == len(list(tmp_path.glob('*/*'))) == 3


def test_a_case_that_changed_meanwhile_is_not_mended_under_its_old_name(
  tmp_path, prepared
):
  data, _ = prepared
  version = ['one']

  @dataclasses.dataclass(frozen=True)
  class Changing(Fixed):
    def case_key(self, index):
      return version[0]

  changing = Changing(data.cases, [])
  got = cache.prepare(changing, SCALE, root=tmp_path, with_locations=True)
  version[0] = 'two'
  flipped(place_of(tmp_path) / 'image.npy')
  with pytest.raises(InputError) as error:
    use(got)
  assert_one_line(error, 'case_1', 'have changed', 'start it again')


def test_a_disk_that_damages_again_is_told(tmp_path, prepared, monkeypatch):
  _, open_cache = prepared
  got = open_cache()
  flipped(place_of(tmp_path) / 'image.npy')
  write = cached_case.write

  def spoil(place, *args):
    entry = write(place, *args)
    flipped(place / 'image.npy')
    return entry

  monkeypatch.setattr(cached_case, 'write', spoil)
  with pytest.raises(InputError) as error:
    got.images[1]
  assert_one_line(error, place_of(tmp_path), 'again', 'config.data.cache_dir')


def test_what_cannot_be_read_is_not_taken_for_damage(
  tmp_path, prepared, monkeypatch
):
  data, open_cache = prepared
  got = open_cache()

  def too_many(*args, **kwargs):
    raise OSError(24, 'Too many open files')

  monkeypatch.setattr(np, 'load', too_many)
  with pytest.raises(InputError) as error:
    got.images[1]
  assert_one_line(error, place_of(tmp_path), 'Too many open files')
  assert not data.read


def test_what_cannot_be_mended_stops_the_batches_in_one_line(
  tmp_path, prepared, monkeypatch
):
  pytest.importorskip('tensorflow')
  from medseg_jax.runtime import sharding
  from medseg_jax.training.input_pipeline import create_batches

  data, open_cache = prepared
  got = open_cache()
  zeros(place_of(tmp_path) / 'image.npy')

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'save', full)
  batches = create_batches(
    got,
    seed=0,
    first_step=0,
    num_steps=9,
    batch_size=8,
    patch_size=(16, 16),
    mesh=sharding.create_mesh(),
  )
  with pytest.raises(InputError) as error:
    list(batches)
  assert_one_line(error, place_of(tmp_path), 'No space left on device')
