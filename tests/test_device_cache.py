"""The data set on the device gives the host's batches, to the bit."""

import functools
import json
import os
import signal
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import assert_one_line
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp
from small import load, shrink, step_that_meets_nan

from medseg_jax.data import sampling
from medseg_jax.data.cache import Cache
from medseg_jax.experiment import compiled_steps
from medseg_jax.programs import train
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError, Stopped
from medseg_jax.training import device_batches, device_cache

SHAPES_2D = ((20, 31), (9, 40), (33, 12), (16, 16), (24, 24), (8, 9), (50, 17))
SHAPES_3D = ((9, 20, 18), (12, 16, 16), (7, 25, 14), (5, 6, 7), (9, 9, 30))


def cache_of(shapes, *, channels=1, lowest=0):
  """Returns a cache in memory; case 1 has no foreground, case 2 one class."""
  rng = np.random.default_rng(0)
  labels = []
  for i, shape in enumerate(shapes):
    classes = {1: [0], 2: [0, 7]}.get(i, [lowest, 0, 2, 300 if lowest else 7])
    labels.append(
      rng.choice(classes, shape).astype(np.int16 if lowest else np.uint8)
    )
  return Cache(
    folder='',
    names=tuple('abcdefg'[: len(shapes)]),
    images=[
      rng.normal(size=(*shape, channels)).astype(np.float16) for shape in shapes
    ],
    labels=labels,
    shapes=shapes,
    dtypes=(np.dtype(np.float16),) * len(shapes),
    voxels=[sampling.sample_voxels(label, name='x') for label in labels],
  )


def host_batch(cache, step, *, read_size, **settings):
  chosen = sampling.choose_patches(
    step=step, shapes=cache.shapes, voxels=cache.voxels, **settings
  )
  return sampling.read_batch(
    cache.images, cache.labels, chosen, settings['patch_size'], read_size
  )


def assert_same(batch, expected):
  for key, array in zip(('image', 'label'), expected, strict=True):
    assert batch[key].dtype == array.dtype
    np.testing.assert_array_equal(jax.device_get(batch[key]), array)


def compile_read(mesh, **settings):
  return jax.jit(
    functools.partial(
      device_batches.read_batch, layout=sharding.patches(mesh), **settings
    )
  )


@pytest.mark.parametrize(
  ('shapes', 'lowest', 'channels', 'patch_size', 'read_size', 'share'),
  [
    (SHAPES_2D, 0, 3, (16, 16), (16, 16), 0.0),
    (SHAPES_2D, -1, 1, (16, 24), (22, 35), 1 / 3),
    (SHAPES_3D, 0, 1, (8, 16, 16), (8, 16, 16), 0.0),
    (SHAPES_3D, -1, 2, (8, 16, 12), (12, 24, 24), 1 / 3),
    (SHAPES_3D, 0, 1, (8, 8, 8), (9, 9, 9), 1.0),
    (SHAPES_3D, -1, 1, (16, 16), (24, 20), 0.5),  # slices
    (SHAPES_3D[:1], 0, 1, (4, 30, 4), (4, 30, 4), 0.0),
  ],
)
def test_the_batches_are_those_of_the_host(
  shapes, lowest, channels, patch_size, read_size, share
):
  cache, mesh = cache_of(shapes, channels=channels, lowest=lowest), one_device()
  if not share:
    cache = cache._replace(voxels=None)
  data = device_cache.place(cache, mode='on', mesh=mesh)
  assert data.label.dtype == (np.int16 if lowest else np.uint8)
  for seed in (0, 2**40 + 5):
    settings = dict(
      seed=seed,
      batch_size=6,
      patch_size=patch_size,
      read_size=read_size,
      foreground_share=share,
    )
    with jax.set_mesh(mesh):
      read = compile_read(mesh, **settings)
      for step in [*range(25), 12_345, 2**31 - 2]:
        assert_same(
          read(data, np.int32(step)), host_batch(cache, step, **settings)
        )


def one_device():
  return jax.make_mesh(
    (1, 1),
    ('data', 'spatial'),
    devices=jax.devices()[:1],
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def test_every_device_cuts_its_own_part():
  cache, mesh = cache_of(SHAPES_3D), sharding.create_mesh(data=4, spatial=2)
  data = device_cache.place(cache, mode='on', mesh=mesh)
  settings = dict(
    seed=1,
    batch_size=8,
    patch_size=(8, 16, 16),
    read_size=(10, 20, 20),
    foreground_share=0.33,
  )
  with jax.set_mesh(mesh):
    compiled = compile_read(mesh, **settings).lower(data, np.int32(0)).compile()
    for step in range(5):
      batch = compiled(data, jnp.int32(step))
      assert_same(batch, host_batch(cache, step, **settings))
      for array in batch.values():
        assert array.sharding.shard_shape(array.shape)[:2] == (2, 5)
  # Nothing is looked up twice and nothing is sent around.
  text = compiled.as_text()
  for collective in ('all-gather', 'all-reduce', 'collective-permute'):
    assert collective not in text
  assert 'f16[2,5,20,20,1]' in text and 'f16[8,10,20,20,1]' not in text


def test_nothing_labelled_anywhere():
  cache = cache_of(SHAPES_2D)
  cache = cache._replace(voxels=[{}] * len(SHAPES_2D))
  mesh = one_device()
  data = device_cache.place(cache, mode='on', mesh=mesh)
  settings = dict(
    seed=1,
    batch_size=4,
    patch_size=(8, 8),
    read_size=(8, 8),
    foreground_share=0.5,
  )
  with jax.set_mesh(mesh):
    assert_same(
      compile_read(mesh, **settings)(data, np.int32(3)),
      host_batch(cache, 3, **settings),
    )


class State(NamedTuple):
  step: jax.Array
  total: jax.Array


def test_many_steps_in_one_call_are_the_same_steps():
  traces = []

  def train_step(state, batch):
    traces.append(1)
    new = State(state.step + 1, state.total * 31 + batch)
    return new, {'loss': batch}

  def steps(max_count):
    return jax.jit(
      device_batches.create_steps(
        train_step, read_fn=lambda data, step: data[step], max_count=max_count
      )
    )

  data = jnp.asarray(np.random.default_rng(0).integers(99, size=12), jnp.int32)
  states, one = [State(jnp.int32(0), jnp.int32(1))], steps(1)
  for _ in range(12):
    state, metrics = one(states[-1], data, jnp.int32(1))
    np.testing.assert_array_equal(metrics['loss'], data[len(states) - 1, None])
    states.append(state)
  state, several, step = states[0], steps(5), 0
  several(state, data, jnp.int32(3))
  traces.clear()
  for count in (1, 5, 2, 4):
    state, metrics = several(state, data, jnp.int32(count))
    np.testing.assert_array_equal(
      metrics['loss'][:count], data[step : step + count]
    )
    step += count
    assert int(state.step) == step
    np.testing.assert_array_equal(state.total, states[step].total)
  assert not traces  # compiled once, whatever the count


class Device:
  """A device of `limit` bytes."""

  def __init__(self, platform, limit=None):
    self.platform, self.limit = platform, limit

  def memory_stats(self):
    return self.limit and {'bytes_limit': self.limit}


@pytest.mark.parametrize(
  ('device', 'host', 'fits'),
  [  # The data set takes 12,520 bytes.
    (Device('gpu', 42_000), np.inf, True),
    (Device('gpu', 41_000), np.inf, False),
    (Device('gpu', 42_000), 15_000, False),  # it is put together there
    (Device('gpu'), np.inf, False),  # it does not tell
    (Device('cpu'), 126_000, True),
    (Device('cpu'), 125_000, False),
  ],
)
def test_auto_is_on_where_it_fits(device, host, fits, monkeypatch, capsys):
  cache, mesh = cache_of(SHAPES_2D)._replace(voxels=None), one_device()
  assert device_cache.measure(cache).num_bytes() == 12_520
  monkeypatch.setattr(Mesh, 'local_devices', property(lambda mesh: [device]))
  monkeypatch.setattr(device_cache.host_memory, 'available', lambda: host)
  data = device_cache.place(cache, mode='auto', mesh=mesh)
  words = capsys.readouterr().out
  assert (data is not None) == fits and words.count('\n') == 1
  if fits:  # the labels are bytes after all
    assert 'from the data set on the device: 9.5 kB' in words
  else:
    assert 'read on the host' in words and 'takes 12.5 kB' in words
  assert device_cache.place(cache, mode='off', mesh=mesh) is None
  assert not capsys.readouterr().out


def test_many_steps_a_call_are_for_meshes_of_accelerators():
  for platform, count in (('cpu', 1), ('gpu', 50), ('tpu', 50)):
    devices = np.array([[Device(platform)]])
    assert device_batches.max_steps(types.SimpleNamespace(devices=devices)) == (
      count
    )


def test_on_says_what_it_takes_where_it_does_not_fit(monkeypatch):
  cache, mesh = cache_of(SHAPES_3D)._replace(voxels=None), one_device()
  monkeypatch.setattr(device_cache.host_memory, 'available', lambda: 1e4)
  with pytest.raises(InputError) as error:
    device_cache.place(cache, mode='on', mesh=mesh)
  assert_one_line(error, 'config.data.device_cache is on', ' 45.6 kB', '8.0 kB')
  monkeypatch.undo()
  monkeypatch.setattr(device_cache, 'MAX_VOXELS', 1000)
  with pytest.raises(InputError) as error:
    device_cache.place(cache, mode='on', mesh=mesh)
  assert_one_line(error, 'voxels, more than 1000')


def test_only_three_words_are_allowed(tmp_path):
  config = shrink(load('unet'))
  config.data.device_cache = 'yes'
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path)
  assert_one_line(error, 'config.data.device_cache', "'yes'", 'auto, on, off')


# In the loop.


def run(workdir, *, num_steps=9, mode='on'):
  """Returns the arrays of the newest checkpoint, and the lines of training."""
  config = shrink(load('unet'), num_steps=num_steps)
  config.log_every, config.checkpoint_every, config.eval_every = 3, 4, 0
  config.data.phantom.num_test = config.data.phantom.num_val = 0
  config.data.device_cache = mode
  train.run(config, workdir)
  text = (workdir / 'metrics.jsonl').read_text()
  return newest(workdir)[1], [json.loads(line) for line in text.splitlines()]


def newest(workdir):
  """Returns the step and the arrays of the newest checkpoint."""
  with ocp.training.Checkpointer(workdir / 'checkpoints' / 'latest') as saved:
    step = saved.latest.step
    return step, jax.tree.leaves(saved.load(step))


def test_the_loop_trains_as_with_batches_from_the_host(
  tmp_path, capsys, monkeypatch
):
  pytest.importorskip('tensorflow')
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  with monkeypatch.context() as patch:
    patch.setattr(compiled_steps, 'create_batches', None)  # not to be called
    _, lines = run(tmp_path / 'device')
  words = capsys.readouterr().out
  assert 'patches   from the data set on the device: 9.4 kB' in words
  _, other = run(tmp_path / 'host', mode='off')
  assert 'the data set' not in capsys.readouterr().out
  for key in ('loss', 'grad_norm', 'learning_rate'):
    np.testing.assert_allclose(
      # Another program, so other rounding, but the same batches.
      [line[key] for line in lines],
      [line[key] for line in other],
      rtol=1e-4,
    )


@pytest.fixture
def counts(monkeypatch):
  """Returns the list of how many steps each call makes, many at a time."""
  made, compile_steps = [], train.compile_steps

  def counting(*args):
    feed = compile_steps(*args)

    def advance(state, data, count):
      made.append(count)
      return feed.advance(state, data, count)

    return feed._replace(advance=advance)

  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  monkeypatch.setattr(train, 'compile_steps', counting)
  monkeypatch.setattr(train, 'SECONDS_A_CALL', 1e9)
  monkeypatch.setattr(device_batches, 'max_steps', lambda mesh: 50)
  return made


def test_stopped_amid_long_calls_it_goes_on_to_the_same_result(
  tmp_path, counts, monkeypatch
):
  whole, lines = run(tmp_path / 'whole', num_steps=30)
  # Logs every 3 steps and checkpoints every 4; how long a step takes is known
  # after three calls.
  assert counts == [1] * 3 + [1, 2, 2, 1, 3] + [3, 1, 2, 2, 1, 3] + [3, 1, 2]
  assert [line['step'] for line in lines] == [*range(3, 31, 3)]
  counts.clear()
  advance = train.Progress.advance

  def stop(self, n):
    advance(self, n)
    if sum(counts) == 9:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(train.Progress, 'advance', stop)
    with pytest.raises(Stopped, match='SIGTERM at step 9: saved'):
      run(tmp_path / 'broken', num_steps=30)
  counts.clear()
  arrays, resumed = run(tmp_path / 'broken', num_steps=30)
  assert counts[:3] == [1, 1, 1] and sum(counts) == 21
  for a, b in zip(arrays, whole, strict=True):
    np.testing.assert_array_equal(a, b)
  assert [line['loss'] for line in resumed[4:]] == [
    line['loss'] for line in lines[4:]
  ]


def test_the_bad_step_amid_a_long_call_is_found(tmp_path, counts, monkeypatch):
  step_that_meets_nan(monkeypatch, bad=7)
  config = shrink(load('unet'), num_steps=40)
  config.log_every = config.checkpoint_every = config.eval_every = 20
  config.data.phantom.num_test = config.data.phantom.num_val = 0
  with pytest.raises(InputError, match='not finite at step 7, in a batch'):
    train.run(config, tmp_path)
  assert counts == [1, 1, 1, 17]
  assert newest(tmp_path)[0] == 7
  assert all(np.isfinite(array).all() for array in newest(tmp_path)[1])
