"""The cache gives back what went in, and notices every change."""

import os
from typing import NamedTuple

import numpy as np
import pytest

from medseg_jax.data import cache
from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Preprocessing
from medseg_jax.errors import InputError


class Fixed(NamedTuple):
  """A source of given cases."""

  cases: tuple
  version: str = 'one'
  classes: tuple = ('background', 'organ')
  label_values: tuple = (0, 1)
  channels: int = 1

  @property
  def names(self):
    return tuple(case.name for case in self.cases)

  def __len__(self):
    return len(self.cases)

  def __getitem__(self, index):
    return self.cases[index]

  def fingerprint(self):
    return self.version


def source(version='one', sizes=((4, 6), (5, 3), (7, 7))):
  rng = np.random.default_rng(0)
  return Fixed(
    tuple(
      Case(
        f'case_{i}',
        rng.integers(0, 256, (*size, 1)).astype(np.uint8),
        rng.integers(0, 2, size).astype(np.uint8),
        (1.0,) * len(size),
      )
      for i, size in enumerate(sizes)
    ),
    version,
  )


SCALE = Preprocessing('scale')


@pytest.mark.parametrize('sizes', [((4, 6), (5, 3)), ((3, 4, 5), (6, 2, 2))])
def test_cases_of_any_size_and_rank_come_back(tmp_path, sizes):
  data = source(sizes=sizes)
  got = cache.prepare(data, SCALE, root=tmp_path)
  assert got.names == data.names
  assert got.shapes == sizes
  for i, case in enumerate(data.cases):
    np.testing.assert_array_equal(got.labels[i], case.label)
    # Half precision keeps all 256 levels of 8 bits apart.
    np.testing.assert_array_equal(
      np.round(got.images[i].astype(np.float32) * 255), case.image
    )
    assert isinstance(got.images[i], np.memmap)


def test_the_second_time_nothing_is_read(tmp_path):
  seen = []

  def spy(items):
    for item in items:
      seen.append(item)
      yield item

  cache.prepare(source(), SCALE, root=tmp_path, track=spy)
  cache.prepare(source(), SCALE, root=tmp_path, track=spy)
  assert seen == [0, 1, 2]


def test_new_data_or_new_preprocessing_is_prepared_again(tmp_path):
  cache.prepare(source('one'), SCALE, root=tmp_path)
  cache.prepare(source('two'), SCALE, root=tmp_path)
  cache.prepare(source('two'), Preprocessing('zscore'), root=tmp_path)
  assert len(list(tmp_path.iterdir())) == 3


def test_a_run_that_dies_while_writing_leaves_nothing_behind(tmp_path):
  def die(items):
    yield from list(items)[:2]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cache.prepare(source(), SCALE, root=tmp_path, track=die)
  assert list(tmp_path.iterdir()) == []
  assert len(cache.prepare(source(), SCALE, root=tmp_path).names) == 3


def test_a_place_that_cannot_be_written_is_named(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  with pytest.raises(InputError, match='config.data.cache_dir'):
    cache.prepare(source(), SCALE, root=blocked / 'below')


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(InputError, match='No space left on device'):
    cache.prepare(source(), SCALE, root=tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_held_out_cases_are_read_once_and_again_when_they_change(tmp_path):
  seen = []

  def spy(items):
    for item in items:
      seen.append(item)
      yield item

  cache.check(source(), SCALE, root=tmp_path, track=spy)
  cache.check(source(), SCALE, root=tmp_path, track=spy)
  assert seen == [0, 1, 2]
  cache.check(source('two'), SCALE, root=tmp_path, track=spy)
  assert seen == [0, 1, 2] * 2


def test_a_bad_held_out_case_is_told_every_time(tmp_path):
  bad = source().cases[0]._replace(image=np.full((4, 6, 1), np.nan))
  for _ in range(2):
    with pytest.raises(InputError, match='case_0: 24 of 24'):
      cache.check(Fixed((bad,)), SCALE, root=tmp_path)


def test_what_was_only_checked_can_still_be_prepared(tmp_path):
  cache.check(source(), SCALE, root=tmp_path)
  assert len(cache.prepare(source(), SCALE, root=tmp_path).names) == 3
