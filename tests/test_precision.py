"""Half precision where it loses nothing, in training and prediction alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cache_cases import Fixed, case
from test_device_cache import compile_read

from medseg_jax.data import cache as caches
from medseg_jax.data import normalize, sampling
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Channel, Preprocessing, preprocess
from medseg_jax.inference.cases import predict_cases
from medseg_jax.runtime import sharding
from medseg_jax.training import device_cache

NONE = Preprocessing(channels=(Channel('none'),))
CT = Preprocessing(channels=(Channel('ct', -1000, 1000, 50, 200),))
WIDE = Preprocessing('window', (-1000.0, 3000.0))
RNG = np.random.default_rng(0)


def column(values, dtype):
  return np.asarray(values, dtype).reshape(-1, 1, 1)


def levels(count, dtype=np.uint16, first=0):
  return column(np.arange(first, first + count), dtype)


# A scan, its preprocessing, and what it needs.
SCANS = {
  'a photograph': (levels(256, np.uint8), Preprocessing('scale'), 16),
  'a photograph, by its statistics': (
    levels(256, np.uint8),
    Preprocessing('zscore'),
    16,
  ),
  'a mask': (column([0, 1, 1], np.uint8), NONE, 16),
  '11 bits as they are': (levels(2049), NONE, 16),
  'one level more': (levels(2050), NONE, 32),
  'whole numbers in float': (levels(2050, np.float32), NONE, 32),
  'beyond the largest': (column([0, 1e6], np.float32), NONE, 32),
  'fractions as they are': (column([0, 0.1], np.float32), NONE, 32),
  'eighths as they are': (column([0, 0.125, 7], np.float32), NONE, 16),
  '16 bits': (levels(65536), Preprocessing('scale'), 32),
  '16 bits that are dark': (levels(256), Preprocessing('scale'), 16),
  '16 bits over a bright ground': (
    levels(50, first=60000),
    Preprocessing('scale'),
    32,
  ),
  '32 bits that are dark': (levels(256, np.uint32), Preprocessing('scale'), 32),
  'a tenth of 16 bits, by its statistics': (
    levels(1500, first=60000),
    Preprocessing('zscore'),
    16,
  ),
  '16 bits, by their statistics': (levels(65536), Preprocessing('zscore'), 32),
  'a hot voxel': (
    column([*range(1000)] * 5 + [10**8], np.int32),
    Preprocessing('zscore'),
    32,
  ),
  'soft tissue': (
    levels(1400, np.int16, -1000),
    Preprocessing('window', (-160.0, 240.0)),
    16,
  ),
  'a wide window': (levels(4000, np.int16, -1000), WIDE, 32),
  'a CT': (levels(3000, np.int16, -1000), CT, 16),
  'fractions by their statistics': (
    column(RNG.normal(100, 30, 4000), np.float32),
    Preprocessing('zscore'),
    16,
  ),
  'fractions in a window': (
    column(RNG.normal(100, 300, 4000), np.float32),
    WIDE,
    16,
  ),
  'fractions of 1': (
    column(RNG.random(4000), np.float32),
    Preprocessing('scale'),
    16,
  ),
  'fractions close to 1': (
    column(0.9 + 1e-4 * RNG.random(4000), np.float32),
    Preprocessing('scale'),
    32,
  ),
  'fractions close to 0': (
    column(1e-9 * RNG.random(4000), np.float32),
    Preprocessing('scale'),
    32,
  ),
  'one value': (column([0.3, 0.3], np.float32), Preprocessing('zscore'), 16),
}


def scan(image, name='scan'):
  return case(name, image, np.zeros(image.shape[:-1], int))


@pytest.mark.parametrize('name', SCANS)
def test_no_level_is_lost_and_nothing_wasted(name):
  image, settings, bits = SCANS[name]
  prepared = preprocess(scan(image), settings)
  got = compact(prepared.image, prepared.slack)
  assert got.dtype == f'f{bits // 8}'
  assert np.isfinite(got).all()
  if image.dtype.kind in 'iu':  # each level that was apart still is
    assert len(np.unique(got)) == len(np.unique(prepared.image))
  reach = np.ptp(prepared.image)
  assert np.abs(got - prepared.image).max() <= reach / 2048


def test_one_channel_decides_for_all():
  image = np.concatenate([levels(3000), levels(3000) % 200], -1)
  for channels, dtype in ((image, np.float32), (image[..., 1:], np.float16)):
    schemes = (Channel('none'),) * channels.shape[-1]
    prepared = preprocess(scan(channels), Preprocessing(channels=schemes))
    assert compact(prepared.image, prepared.slack).dtype == dtype


def test_it_is_decided_block_by_block(monkeypatch):
  monkeypatch.setattr(normalize, '_BLOCK', 7)
  image = np.zeros((50, 3, 1), np.float32)
  assert compact(image, (0.5,)).dtype == np.float16
  image[-1, -1] = 70_000.0
  assert compact(image, (0.5,)).dtype == np.float32
  view = image.transpose(1, 0, 2)
  assert compact(view, (0.5,)).flags.c_contiguous
  assert compact(view, (1e9,)).flags.c_contiguous


@pytest.mark.parametrize('name', SCANS)
def test_the_network_sees_a_scan_as_training_saw_it(tmp_path, name):
  image, settings, _ = SCANS[name]
  image = np.resize(image, (16, 300, 1))
  cache = caches.prepare(Fixed((scan(image),), []), settings, root=tmp_path)
  seen = []

  def remember(tiles):
    seen.append(np.asarray(tiles))
    return jnp.asarray(tiles)

  for _ in predict_cases(
    remember,
    [scan(image)],
    preprocessing=settings,
    channels=1,
    patch_size=image.shape[:2],
    overlap=0.5,
    batch_size=1,
  ):
    pass
  np.testing.assert_array_equal(seen[0][0], cache.images[0])


def mixed_cache(folder):
  cases = (
    scan(RNG.integers(0, 200, (12, 14, 1)), 'coarse'),
    scan(RNG.integers(0, 60_000, (13, 12, 1)), 'fine'),
  )
  return caches.prepare(
    Fixed(cases, []), NONE, root=folder, with_locations=True
  )


def test_cases_of_both_kinds_are_trained_on_as_they_are(tmp_path):
  cache = mixed_cache(tmp_path)
  assert cache.dtypes == (np.float16, np.float32)
  settings = dict(seed=3, batch_size=8, patch_size=(8, 8))
  mesh = sharding.create_mesh()
  data = device_cache.place(cache, mode='on', mesh=mesh)
  assert data.image.dtype == np.float32
  bare = cache._replace(voxels=None)
  assert (
    device_cache.measure(bare).num_bytes() == 6 * len(data.image) // mesh.size
  )
  read = compile_read(mesh, read_size=(8, 8), **settings)
  for step in range(3):
    chosen = sampling.choose_patches(step=step, shapes=cache.shapes, **settings)
    host = sampling.read_batch(
      cache.images, cache.labels, chosen, (8, 8), dtype=cache.image_dtype
    )
    assert host[0].dtype == np.float32 and len({*chosen.cases}) == 2
    with jax.set_mesh(mesh):
      device = read(data, jnp.int32(step))
    np.testing.assert_array_equal(device['image'], host[0])


def test_batches_from_the_host_hold_both_kinds(tmp_path):
  pytest.importorskip('tensorflow')
  from medseg_jax.training.input_pipeline import create_batches

  cache = mixed_cache(tmp_path)
  batches = create_batches(
    cache,
    seed=3,
    first_step=0,
    num_steps=4,
    batch_size=8,
    patch_size=(12, 12),
    mesh=sharding.create_mesh(),
  )
  for batch in batches:
    image = np.asarray(batch['image'])
    assert image.dtype == np.float32
    assert sorted(image.max((1, 2, 3)) > 2048) == [False] * 4 + [True] * 4
    assert (image == np.rint(image)).all()


def test_the_choice_does_not_depend_on_other_cases(tmp_path):
  both = mixed_cache(tmp_path / 'both')
  alone = Fixed((scan(np.asarray(both.images[0], np.uint8), 'coarse'),), [])
  got = caches.prepare(alone, NONE, root=tmp_path / 'alone')
  assert got.image_dtype == np.float16
  np.testing.assert_array_equal(got.images[0], both.images[0])
