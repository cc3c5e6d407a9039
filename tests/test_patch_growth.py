"""Patches that grow while a network trains."""

import json

import compiled_once
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.experiment import (
  build,
  compiled_steps,
  early_stop,
  patch_growth,
)
from medseg_jax.experiment.patch_growth import Stage
from medseg_jax.programs import train
from medseg_jax.runtime.errors import InputError, Stopped


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  """Trains on two: JAX keeps their programs, which all these runs share."""
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  compiled_once.share(monkeypatch)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
  monkeypatch.setattr(patch_growth, 'LEAST_STEPS', 1)


def config_of(**keys):
  config = shrink(load('unet'), num_steps=7)
  config.augment.noise_prob = 0.5  # that there is chance in each step
  config.patch_size = (32, 32)
  config.patch_growth = (0.5, 0.75, 1.0)
  config.eval_every = 0
  config.checkpoint_every = 1
  for key, value in keys.items():
    config[key] = value
  return config


def stages(shares, size, divisor, num_steps=100, spatial=1):
  config = load('unet')
  config.patch_growth, config.patch_size = shares, size
  config.num_steps, config.mesh.spatial = num_steps, spatial
  return patch_growth.stages_of(config, divisor)


def test_stages_are_even_and_suit_network_and_devices():
  assert stages((), (40, 56, 40), (8, 8, 8)) == (Stage(0, 100, (40, 56, 40)),)
  assert stages((0.5, 0.625, 0.75, 1.0), (40, 56, 40), (8, 8, 8), 102) == (
    Stage(0, 25, (16, 32, 16)),  # 20, 28 -> 2.5, 3.5 times 8, to even ones
    Stage(25, 51, (24, 32, 24)),
    Stage(51, 76, (32, 40, 32)),
    Stage(76, 102, (40, 56, 40)),
  )
  # Those of one size are one stage.
  assert stages((0.1, 0.2, 1.0), (32, 64), (8, 16), 9) == (
    Stage(0, 6, (16, 32)),
    Stage(6, 9, (32, 64)),
  )
  [first, last] = stages((0.5, 1.0), (32, 32), (4, 4), spatial=8)
  assert (first.patch_size, last.patch_size) == ((16, 16), (32, 32))
  [first, _] = stages((0.6, 1.0), (32, 32), (4, 4), spatial=8)
  assert first.patch_size == (16, 20)


@pytest.mark.parametrize(
  'shares',
  [(0.5,), (0.5, 0.5, 1.0), (0.0, 1.0), (2.0,), ('a',), (None, 1.0), (True,)],
)
def test_what_does_not_grow_to_the_whole_is_refused(shares):
  with pytest.raises(InputError, match='config.patch_growth') as error:
    build.stages_of(config_of(patch_growth=shares))
  assert_one_line(error)


def test_the_schedule_goes_by_voxels():
  three = (Stage(0, 10, (4,)), Stage(10, 20, (8,)), Stage(20, 30, (12,)))
  moved = patch_growth.by_voxels(lambda position: position, three)
  # Of 240 voxels a step's patches have 4, then 8, then 12.
  seen = np.cumsum([0, *[4] * 10, *[8] * 10, *[12] * 10])
  got = [float(moved(jnp.float32(step))) for step in range(31)]
  np.testing.assert_allclose(got, seen / 240 * 30, rtol=1e-5)
  same = patch_growth.by_voxels(moved, three[:1])
  assert same is moved


def test_short_trainings_have_whole_patches(monkeypatch):
  monkeypatch.setattr(patch_growth, 'LEAST_STEPS', 40)
  shares = (0.5, 1.0)
  short = stages(shares, (32, 32), (4, 4), num_steps=79)
  assert short == (Stage(0, 79, (32, 32)),)
  assert 'fewer than 40 steps' in patch_growth.describe(short, shares)
  assert patch_growth.describe(short, ()) == ''
  long = stages(shares, (32, 32), (4, 4), num_steps=80)
  assert '32x32 from step 40; 62%' in patch_growth.describe(long, shares)


def test_the_smallest_patches_leave_the_norm_two_voxels_along_each_axis():
  first, _ = stages((0.1, 1.0), (16, 40), (4, 8))
  assert first.patch_size == (8, 16)
  # Where the whole patch has one, that is what there is.
  first, _ = stages((0.1, 1.0), (4, 40), (4, 8))
  assert first.patch_size == (4, 16)


def test_an_early_end_is_decided_on_whole_patches(tmp_path):
  config = config_of(num_steps=30)
  config.stop.patience, config.data.classes = 1, ('background', 'disc')
  with open(tmp_path / 'metrics.jsonl', 'w') as file:
    for step in range(2, 29, 2):
      line = {'step': step, 'split': 'val', 'dice': 0.5}
      file.write(json.dumps(line) + '\n')
  # Stages of ten steps: the last begins at 20, and its second evaluation is the
  # first that has not risen.
  ends = {step: early_stop.due(tmp_path, step, config) for step in range(2, 29)}
  assert [step for step, end in ends.items() if end] == [24]


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = map(json.loads, lines)
  return [
    (x['step'], x['loss'], x['learning_rate'])
    for x in found
    if x['split'] == 'train'
  ]


@pytest.mark.parametrize(
  ('device_cache', 'stops'), [('on', (1, 2, 4, 6)), ('off', (4,))]
)
def test_a_run_that_stops_anywhere_goes_on_in_its_stage(
  tmp_path, monkeypatch, device_cache, stops
):
  def config():
    own = config_of(log_every=1)
    own.data.device_cache = device_cache
    own.data.phantom.num_val, own.data.phantom.num_test = 1, 0
    return own

  made, compile_steps = [], compiled_steps.compile_steps

  def noting(train_step, state, cache, own, *rest):
    made.append((tuple(own.patch_size), own.num_steps, len(rest)))
    return compile_steps(train_step, state, cache, own, *rest)

  monkeypatch.setattr(train, 'compile_steps', noting)
  train.run(config(), tmp_path / 'whole')
  sizes = [(16, 16), (24, 24), (32, 32)]
  assert [size for size, *_ in made] == sizes
  assert [end for _, end, _ in made] == [2, 4, 7]
  placed = compiled_steps.device_cache.place
  calls = []
  monkeypatch.setattr(
    compiled_steps.device_cache,
    'place',
    lambda *args, **named: calls.append(1) or placed(*args, **named),
  )
  workdir = tmp_path / 'stopped'
  save = train.Checkpoints.save
  for stop in stops:

    def stopping(self, which, step, *rest, stop=stop):
      save(self, which, step, *rest)
      if which == 'latest' and step == stop:
        self.wait()
        raise Stopped('stopped', 15)

    monkeypatch.setattr(train.Checkpoints, 'save', stopping)
    with pytest.raises(Stopped):
      train.run(config(), workdir)
  monkeypatch.setattr(train.Checkpoints, 'save', save)
  made.clear()
  train.run(config(), workdir)
  assert [size for size, *_ in made] == sizes[-1:]
  assert losses(workdir) == losses(tmp_path / 'whole')
  assert len(losses(workdir)) == 7
  assert len(calls) == len(stops) + 1  # once a run, not once a stage
  model = 'model/model.safetensors'
  whole = (tmp_path / 'whole' / model).read_bytes()
  assert (workdir / model).read_bytes() == whole
