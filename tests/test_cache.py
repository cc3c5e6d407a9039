"""The cache gives back what went in, goes on where it was, notices change."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from cache_cases import SCALE, Fixed, case, folders, one, source
from conftest import HANG_S
from data_cases import assert_one_line

from medseg_jax.data import cache
from medseg_jax.data.preprocess import Channel, Preprocessing
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError, Stopped


@pytest.mark.parametrize('sizes', [((4, 6), (5, 3)), ((3, 4, 5), (6, 2, 2))])
def test_cases_of_any_size_and_rank_come_back(tmp_path, sizes):
  data = source(sizes=sizes)
  got = cache.prepare(data, SCALE, root=tmp_path)
  assert got.names == data.names
  assert got.shapes == sizes
  assert got.voxels is None
  assert len(got.images) == len(got.labels) == 2
  for i, expected in enumerate(data.cases):
    np.testing.assert_array_equal(got.labels[i], expected.label)
    # Half precision keeps all 256 levels of 8 bits apart.
    np.testing.assert_array_equal(
      np.round(got.images[i].astype(np.float32) * 255), expected.image
    )
    assert isinstance(got.images[i], np.memmap)
    assert got.images[i].dtype == np.float16
  assert [label.shape for label in got.labels] == list(sizes)
  with pytest.raises(IndexError):
    got.images[2]


@pytest.mark.parametrize(
  ('values', 'dtype'), [((0, 255), 'u1'), ((-1, 2), 'i2'), ((0, 300), 'i2')]
)
def test_labels_are_as_small_as_they_can_be(tmp_path, values, dtype):
  label = np.array([values, values[::-1]], np.int32)
  data = one(np.ones((2, 2, 1), np.float32), label)
  got = cache.prepare(data, SCALE, root=tmp_path).labels[0]
  assert got.dtype == dtype
  np.testing.assert_array_equal(got, label)


def test_cases_that_need_single_precision_have_it(tmp_path):
  label = np.zeros((1, 3), int)
  cases = tuple(
    case(name, np.array([[-1, 0, most]], np.float32)[..., None], label)
    for name, most in (('coarse', 2048), ('fine', 2049), ('large', 1e9))
  )
  as_they_are = Preprocessing(channels=(Channel('none'),))
  got = cache.prepare(Fixed(cases, []), as_they_are, root=tmp_path)
  assert got.dtypes == (np.float16, np.float32, np.float32)
  assert got.image_dtype == np.float32
  for image, dtype, given in zip(got.images, got.dtypes, cases, strict=True):
    assert image.dtype == dtype
    np.testing.assert_array_equal(image, given.image)


def test_rows_are_contiguous_in_whatever_order_the_axes_came(tmp_path):
  data = source(sizes=((3, 4, 5),))
  settings = SCALE._replace(axes=(2, 1, 0))
  got = cache.prepare(data, settings, root=tmp_path)
  assert got.shapes == ((5, 4, 3),)
  assert got.images[0].flags.c_contiguous and got.labels[0].flags.c_contiguous
  np.testing.assert_array_equal(got.labels[0], data.cases[0].label.T)


def test_only_what_is_missing_is_read(tmp_path):
  first, both = source(sizes=((4, 6), (5, 3))), source()
  done = []
  settings = dict(root=tmp_path, on_case=lambda: done.append(1))
  assert cache.missing(first, SCALE, root=tmp_path) == 2
  cache.prepare(first, SCALE, **settings)
  assert sorted(first.read) == [0, 1] and len(done) == 2
  # Another split or fold with the same cases and one more.
  both = dataclasses.replace(both, cases=(*first.cases, both.cases[2]))
  assert cache.missing(both, SCALE, root=tmp_path) == 1
  got = cache.prepare(both, SCALE, **settings)
  assert both.read == [2] and len(done) == 3
  assert got.names == both.names
  np.testing.assert_array_equal(got.labels[2], both.cases[2].label)
  assert cache.missing(both, SCALE, root=tmp_path) == 0
  cache.prepare(both, SCALE, **settings)
  assert both.read == [2] and len(done) == 3


def test_new_data_settings_or_locations_are_prepared_again(tmp_path):
  data = source('one')
  cache.prepare(data, SCALE, root=tmp_path)
  new = dataclasses.replace(data, version='two')
  assert cache.missing(new, SCALE, root=tmp_path) == 3
  cache.prepare(new, SCALE, root=tmp_path)
  assert len(folders(tmp_path)) == 6
  cache.prepare(data, Preprocessing('zscore'), root=tmp_path)
  assert len(folders(tmp_path)) == 9
  cache.prepare(data, SCALE, root=tmp_path, with_locations=True)
  assert len(folders(tmp_path)) == 12


def test_any_name_can_be_a_case(tmp_path):
  names = ['a/b', 'a_b', '..', 'x' * 300, '\udcff', '雪' * 100]
  label = np.zeros((2, 2), int)
  cases = tuple(
    case(name, np.full((2, 2, 1), i, np.uint8), label)
    for i, name in enumerate(names)
  )
  got = cache.prepare(Fixed(cases, []), SCALE, root=tmp_path, title='t/' * 200)
  for i in range(len(names)):
    assert round(float(got.images[i][0, 0, 0]) * 255) == i
  assert len(folders(tmp_path)) == len(names)


def test_a_run_that_is_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
  cancelled = threading.Event()
  shutdown = concurrent.futures.ThreadPoolExecutor.shutdown

  def cancel(pool, wait=True, *, cancel_futures=False):
    shutdown(pool, wait=False, cancel_futures=cancel_futures)
    if cancel_futures:
      cancelled.set()  # however slow this thread is, the third case waited
    shutdown(pool, wait=wait)

  monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, 'shutdown', cancel)

  class Waiting(Fixed):
    def __getitem__(self, index):
      assert index == 0 or cancelled.wait(timeout=HANG_S)
      return super().__getitem__(index)

  given = source()
  data = Waiting(given.cases, given.read)

  def stop():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cache.prepare(data, SCALE, root=tmp_path, workers=1, on_case=stop)
  done = len(folders(tmp_path))
  assert 1 <= done < 3 and len(data.read) == done
  assert not list(tmp_path.glob('*/partial-*'))
  assert len(cache.prepare(data, SCALE, root=tmp_path).names) == 3
  assert sorted(data.read) == [0, 1, 2]


def test_a_run_that_is_killed_leaves_whole_cases_only(tmp_path):
  program = """
    import os, signal, sys
    import numpy as np
    from medseg_jax.data import cache
    from medseg_jax.data.preprocess import Preprocessing
    from cache_cases import source
    saved = []
    def save(path, array, write=np.save):
      saved.append(path)
      write(path, array)
      if len(saved) == 4:  # the label of the second case is still to come
        os.kill(os.getpid(), signal.SIGKILL)
    np.save = save
    cache.prepare(source(), Preprocessing('scale'), root=sys.argv[1],
                  workers=1, with_locations=True)
  """
  here = pathlib.Path(__file__).parent
  paths = [str(here), str(here.parent), os.environ.get('PYTHONPATH', '')]
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
  run = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program), str(tmp_path)],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert run.returncode == -9, run.stderr
  assert len(folders(tmp_path)) == 1
  (partial,) = tmp_path.glob('*/partial-*')
  data = source()
  settings = dict(root=tmp_path, with_locations=True)
  assert len(cache.prepare(data, SCALE, **settings).names) == 3
  assert sorted(data.read) == [1, 2]
  # It is young: for all we know another run is writing it at this moment.
  assert partial.exists()
  os.utime(partial, (time.time() - 7200,) * 2)
  cache.prepare(dataclasses.replace(data, version='two'), SCALE, **settings)
  assert not partial.exists()


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
  data = source(sizes=((6, 6),) * 20)
  results = []

  def run():
    results.append(cache.prepare(data, SCALE, root=tmp_path, workers=2))

  threads = [threading.Thread(target=run) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 3
  assert len(folders(tmp_path)) == 20
  assert not list(tmp_path.glob('*/partial-*'))
  for got in results:
    for label, expected in zip(got.labels, data.cases, strict=True):
      np.testing.assert_array_equal(label, expected.label)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  assert cache.missing(source(), SCALE, root=blocked / 'below') == 3
  with pytest.raises(InputError) as error:
    cache.prepare(source(), SCALE, root=blocked / 'below')
  assert_one_line(error, blocked, 'config.data.cache_dir')


@pytest.mark.parametrize(
  'problem',
  [
    OSError(28, 'No space left on device'),
    OSError('100 requested and 50 written'),  # NumPy's way to say the same
  ],
)
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, problem):
  def full(*args, **kwargs):
    raise problem

  monkeypatch.setattr(np, 'save', full)
  with pytest.raises(InputError) as error:
    cache.prepare(source(), SCALE, root=tmp_path)
  words = problem.strerror or str(problem)
  assert_one_line(error, tmp_path, words, 'config.data.cache_dir')
  assert not list(tmp_path.glob('*/*'))


def test_a_bad_case_is_told_every_time_and_stops_the_rest(tmp_path):
  bad = case('bad', np.full((4, 6, 1), np.nan), np.zeros((4, 6), int))
  good = source(sizes=((4, 6),) * 300).cases
  for cases in ((bad,), (*good[:3], bad, *good[3:])):
    data = Fixed(cases, [])
    with pytest.raises(InputError) as error:
      cache.prepare(data, SCALE, root=tmp_path, workers=2)
    assert_one_line(error, 'bad', '24 of 24')
  assert len(data.read) < 150


def num_open(folder):
  """Returns how many files below a folder this process has open."""
  count = 0
  for link in pathlib.Path('/proc/self/fd').iterdir():
    with contextlib.suppress(OSError):  # other threads close theirs
      count += os.readlink(link).startswith(str(folder))
  return count


def test_few_files_are_open_at_a_time(tmp_path):
  data = source(sizes=((2, 2),) * (cache.MAX_OPEN + 30))
  got = cache.prepare(data, SCALE, root=tmp_path, with_locations=True)
  if not pathlib.Path('/proc/self/fd').is_dir():
    pytest.skip('this system does not list open files')
  before = num_open(tmp_path)
  assert len(got.shapes) == len(data)
  assert num_open(tmp_path) == before
  for i in range(len(data)):
    assert got.labels[i].shape == (2, 2)
  assert before < num_open(tmp_path) <= before + cache.MAX_OPEN
  assert got.labels[0].shape == (2, 2)  # closed in between


def test_locations_are_those_of_the_classes(tmp_path):
  label = np.zeros((3, 40, 30), np.int16)
  label[1, 5:9, 2:4], label[2, 39, 29], label[0, 0, 0] = 1, 3, -1
  image = np.ones((*label.shape, 1), np.float32)
  empty = case('empty', image, np.zeros_like(label))
  data = Fixed((case('full', image, label), empty), [])
  got = cache.prepare(data, SCALE, root=tmp_path, with_locations=True).voxels
  assert sorted(got[0]) == [1, 3] and dict(got[1]) == {}
  for index in (1, 3):
    np.testing.assert_array_equal(
      sorted(got[0][index].tolist()), np.argwhere(label == index)
    )


def test_real_volumes_come_back(tmp_path, real_data):
  nibabel = pytest.importorskip('nibabel')
  task = real_data / 'hippocampus' / 'Task04_Hippocampus'
  cases = []
  for path in sorted((task / 'labelsTr').glob('h*.nii.gz'))[:8]:
    image = nibabel.load(task / 'imagesTr' / path.name).get_fdata(dtype='f4')
    label = np.asarray(nibabel.load(path).dataobj).astype(np.int16)
    cases.append(case(path.name, image[..., None], label))
  data = Fixed(tuple(cases), [])
  got = cache.prepare(
    data, Preprocessing('zscore'), root=tmp_path, with_locations=True
  )
  for i, expected in enumerate(cases):
    np.testing.assert_array_equal(got.labels[i], expected.label)
    image = np.asarray(got.images[i], np.float64)
    assert abs(image.mean()) < 1e-3 and abs(image.std() - 1) < 1e-3
    counts = {c: len(where) for c, where in got.voxels[i].items()}
    expected_counts = np.bincount(expected.label.ravel())
    assert counts == {1: expected_counts[1], 2: expected_counts[2]}
  (entry, *_) = tmp_path.glob('*/*/case.json')
  assert json.loads(entry.read_text())['name'].startswith('hippocampus_')


def test_a_signal_waits_for_no_case(tmp_path):
  begun, may_end = threading.Event(), threading.Event()

  class Slow(Fixed):
    def __getitem__(self, index):
      begun.set()
      may_end.wait(60)
      return super().__getitem__(index)

  def ask():
    begun.wait()
    stop_signal.ask()

  data = Slow(source().cases, [])
  with stop_signal.noted(), pytest.raises(Stopped):
    threading.Thread(target=ask).start()
    cache.prepare(data, SCALE, root=tmp_path, workers=1)
  assert data.read == []
  may_end.set()
  while len(folders(tmp_path)) < 1:  # what was begun is written whole
    time.sleep(0.01)
  assert cache.prepare(data, SCALE, root=tmp_path).names == data.names
  assert sorted(data.read) == [0, 1, 2]
