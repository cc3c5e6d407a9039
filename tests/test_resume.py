"""Interrupted runs: killed, stopped, diverged, or out of disk space."""

import json
import resource
import signal
import subprocess
import sys
import time

import compiled_once
import jax
import numpy as np
import pytest
from conftest import HANG_S, ROOT
from orbax.checkpoint import v1 as ocp
from small import load, shrink, step_that_meets_nan

from medseg_jax.data import sampling
from medseg_jax.programs import train
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError, Stopped

# Runs the small configuration in a process of its own, which can be killed.
RUNNER = """
import sys
sys.path += [{tests!r}]
import jax
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.device_count = lambda: 2
import pathlib
from test_resume import config_of
from medseg_jax.programs import train
from medseg_jax.runtime.checkpoint import Checkpoints
{extra}
train.run(config_of({cache!r}), pathlib.Path({workdir!r}))
"""

# Holds the run at a step, so that whoever stops it before its end may be slow.
HOLD = """
save = Checkpoints.save
def save_and_hold(self, which, step, *args):
  save(self, which, step, *args)
  if step >= {step}:
    self.wait()
    sys.stdin.readline()
Checkpoints.save = save_and_hold
"""


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  """Trains on two: JAX keeps their programs, which all these runs share."""
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  compiled_once.share(monkeypatch)


def config_of(cache, num_steps=18):
  config = shrink(load('unet'), num_steps=num_steps)
  config.augment.noise_prob = 0.5  # that there is chance in each step
  config.data.cache_dir = str(cache)
  config.data.phantom.num_val, config.data.phantom.num_test = 2, 0
  config.eval_every = 6
  return config


def start(workdir, cache, extra):
  """Starts the run in `workdir` and returns its process."""
  code = RUNNER.format(
    tests=str(ROOT / 'tests'),
    cache=str(cache),
    workdir=str(workdir),
    extra=extra,
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def latest(workdir) -> int:
  folder = workdir / 'checkpoints' / 'latest'
  steps = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
  return max(steps, default=0)


def wait_for_step(workdir, step, process):
  """Returns once a checkpoint of at least `step` exists."""
  for _ in range(10 * HANG_S):
    if latest(workdir) >= step:
      return
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.1)
  raise AssertionError(f'no checkpoint of step {step}')


def arrays(workdir):
  """Returns every array of the newest checkpoint."""
  with ocp.training.Checkpointer(workdir / 'checkpoints' / 'latest') as saved:
    return jax.tree.leaves(saved.load(saved.latest.step))


def without_clocks(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  clocks = ('images_per_s', 'data_wait_frac')
  return [
    {k: v for k, v in json.loads(line).items() if k not in clocks}
    for line in lines
  ]


def test_killed_or_stopped_and_resumed_it_equals_an_uninterrupted_run(
  tmp_path, monkeypatch, capsys
):
  whole, broken, cache = (tmp_path / x for x in ('whole', 'broken', 'cache'))
  train.run(config_of(cache), whole)

  process = start(broken, cache, HOLD.format(step=8))
  wait_for_step(broken, 6, process)
  process.kill()
  process.communicate()
  assert 6 <= latest(broken) < 18

  save, begun = Checkpoints.save, latest(broken)

  def save_and_ask_to_stop(self, which, step, *args):
    save(self, which, step, *args)
    if which == LATEST and step == begun + 4:
      signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'save', save_and_ask_to_stop)
    with pytest.raises(Stopped, match='SIGTERM at step .*: saved'):
      train.run(config_of(cache), broken)
  assert f'going on from step {begun}' in capsys.readouterr().out
  stopped = latest(broken)
  assert begun + 4 <= stopped < 18

  train.run(config_of(cache), broken)
  assert f'going on from step {stopped}' in capsys.readouterr().out
  for a, b in zip(arrays(whole), arrays(broken), strict=True):
    np.testing.assert_array_equal(a, b)
  strict = [x for x in without_clocks(whole) if x['split'] == 'val']
  assert [x for x in without_clocks(broken) if x['split'] == 'val'] == strict


def test_a_loss_that_is_not_finite_saves_and_names_step_and_cases(
  tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  config = config_of(tmp_path / 'cache', num_steps=40)
  config.log_every = 20  # later than a checkpoint and an evaluation are due
  config.checkpoint_every = 6
  config.eval_every = 8
  with monkeypatch.context() as patch:
    step_that_meets_nan(patch, bad=3)
    with pytest.raises(InputError) as caught:
      train.run(config, workdir)
  words = str(caught.value)
  assert 'the loss is not finite at step 3, in a batch of the cases' in words
  order = sampling.choose_patches(
    seed=0, step=3, batch_size=8, shapes=[(16, 16)] * 12, patch_size=(16, 16)
  )
  named = words.split('cases ')[1].split(';')[0].split(', ')
  assert named == sorted(f'train_{i:04d}' for i in set(order.cases))
  # What is saved is the state before that step, and it can go on from there.
  assert latest(workdir) == 3
  assert all(np.isfinite(array).all() for array in arrays(workdir))
  config.num_steps = 6
  assert train.run(config, workdir)['step'] == 6


@pytest.mark.usefixtures('capsys')  # what is printed goes to no file, too
def test_a_full_disk_costs_nothing_that_was_saved(tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  config = config_of(tmp_path / 'cache', num_steps=4)
  config.data.phantom.num_test = 1
  train.run(config, workdir)
  before = arrays(workdir)
  config.num_steps = 8
  config.data.phantom.num_val = 0  # its pictures would fail first
  config.log_every = config.checkpoint_every = 0
  real = train.compile_steps
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def compile_and_fill_the_disk(*args):
    feed = real(*args)
    # No file may grow beyond 2 kB: writing fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    return feed

  monkeypatch.setattr(train, 'compile_steps', compile_and_fill_the_disk)
  try:
    with pytest.raises(InputError) as caught:
      train.run(config, workdir)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert 'cannot save the latest checkpoint' in str(caught.value)
  assert 'step 4 is kept' in str(caught.value)
  assert latest(workdir) == 4
  for a, b in zip(arrays(workdir), before, strict=True):
    np.testing.assert_array_equal(a, b)


def test_looking_at_a_training_does_not_disturb_its_saving(tmp_path):
  folder = tmp_path / 'checkpoints'
  writer = Checkpoints(folder, writes=True)
  writer.save(LATEST, 1, {'a': jax.numpy.zeros(3)}, {})
  writer.wait()
  half = folder / 'latest' / '2.orbax-checkpoint-tmp'
  half.mkdir()
  reader = Checkpoints(folder)
  assert reader.step(LATEST) == 1
  reader.close()
  assert half.exists()
  writer.close()
  # The next training does clear what an earlier one was killed over.
  again = Checkpoints(folder, writes=True)
  again.save(LATEST, 3, {'a': jax.numpy.zeros(3)}, {})
  again.wait()
  again.close()
  for _ in range(10 * HANG_S):  # it clears in the background
    if not half.exists():
      return
    time.sleep(0.1)
  raise AssertionError('what was half written is still there')
