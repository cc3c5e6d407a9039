"""One reading of a case serves the survey and the preprocessing."""

import collections
import os

import nibabel
import numpy as np
import pytest
from conftest import write_pairs, write_volumes
from small import load, shrink

from medseg_jax.data.formats import images, nifti
from medseg_jax.data.sources import already_read
from medseg_jax.data.sources.already_read import AlreadyRead
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.experiment import opening
from medseg_jax.programs import prepare


@pytest.fixture
def readings(monkeypatch):
  """Returns how often each image file was read."""
  counts = collections.Counter()
  real = nifti.read_image

  def read(path):
    counts[path.name] += 1
    return real(path)

  monkeypatch.setattr(nifti, 'read_image', read)
  return counts


def prepared(root, workdir):
  config = shrink(load('auto_cpu'), path=root)
  config.data.cache_dir = str(workdir / 'cache')
  config, sources, _ = opening.open_run(config, workdir)
  return prepare.prepare(config, sources), sources


def test_every_image_is_read_once_where_memory_allows(
  tmp_path, readings, monkeypatch
):
  root = write_volumes(tmp_path / 'Balls', 10)
  once, sources = prepared(root, tmp_path / 'once')
  assert set(readings.values()) == {1} and len(readings) == 10
  assert not sources['train'].already_read._cases
  readings.clear()
  monkeypatch.setattr(already_read, 'SHARE', 0.0)
  twice, _ = prepared(root, tmp_path / 'twice')
  assert set(readings.values()) == {2}
  for a, b in zip(once.images, twice.images, strict=True):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(once.labels, twice.labels, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_case_is_handed_out_once_and_only_while_its_files_stay(
  tmp_path, readings
):
  source = open_volumes(write_volumes(tmp_path / 'Balls', 6))['train']
  case = source[2]
  source.already_read.keep(source.case_key(2), case)
  readings.clear()
  assert source.subset(['case_02'])[0] is case
  assert source[2] is not case and sum(readings.values()) == 1
  source.already_read.keep(source.case_key(2), case)
  os.utime(source.files[2].images[0], (0, 0))
  assert source[2] is case
  source.already_read.keep(source.case_key(2), case)
  old = nibabel.load(source.files[2].label)
  empty = nibabel.Nifti1Image(0 * old.get_fdata(), old.affine)
  nibabel.save(empty, source.files[2].label)
  assert not source[2].label.any()


def test_no_more_is_kept_than_there_is_room_for(monkeypatch, tmp_path):
  source = open_volumes(write_volumes(tmp_path / 'Balls', 6))['train']
  case = source[0]
  size = case.image.nbytes + case.label.nbytes
  monkeypatch.setattr(
    already_read.host_memory, 'available', lambda: 2.5 * size / 0.25
  )
  kept = AlreadyRead()
  for key in 'abc':
    kept.keep(key, case)
  found = [kept.take(lambda k=k: k) is case for k in 'abc']
  assert found == [True, True, False]


def test_an_image_is_looked_at_compared_and_prepared_with_two_readings(
  tmp_path, monkeypatch
):
  counts = collections.Counter()
  real = images.read_image

  def read(path):
    counts[path.name] += 1
    return real(path)

  monkeypatch.setattr(images, 'read_image', read)
  write_pairs(tmp_path / 'data', 10)
  config = shrink(load('unet'), path=tmp_path / 'data')
  config.data.source = 'folder'
  caches = {}
  for share, times in ((already_read.SHARE, 2), (0.0, 3)):
    monkeypatch.setattr(already_read, 'SHARE', share)
    config.data.cache_dir = str(tmp_path / f'cache {times}')
    run = opening.open_run(config, tmp_path / f'run {times}')
    caches[times] = prepare.prepare(run.config, run.sources)
    assert set(counts.values()) == {times} and len(counts) == 10
    assert not run.sources['val'].already_read._cases
    counts.clear()
  for part in ('images', 'labels'):
    for a, b in zip(*(getattr(c, part) for c in caches.values()), strict=True):
      np.testing.assert_array_equal(a, b)
