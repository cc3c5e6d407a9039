"""What a run that goes on makes up for, against an undisturbed one."""

import contextlib
import json
import os
import shutil
import signal

import compiled_once
import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from small import load, shrink, step_that_meets_nan
from test_checkpoint import damage_newest, garbled

from medseg_jax.programs import evaluate, train
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError, Stopped

CLOCKS = ('images_per_s', 'data_wait_frac')


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  """Trains on two: JAX keeps their programs, which all these runs share."""
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  compiled_once.share(monkeypatch)


def config_of(cache, *, num_steps=6):
  """Returns a config that compiles soon, of a state with all its parts."""
  config = shrink(load('unet'), num_steps=num_steps)
  config.log_every = 1
  config.data.phantom.num_test = 0
  config.data.device_cache = 'on'
  config.data.cache_dir = str(cache)
  config.model.norm, config.ema_decay = 'batch', 0.9
  return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Returns workdir, summary and predicted cases of an undisturbed run."""
  folder, predicted = tmp_path_factory.mktemp('whole'), []
  each, for_panels = evaluate.predict_each, evaluate.predict_cases

  def watch(predict_fn, items, **settings):
    for item, prediction in each(predict_fn, items, **settings):
      predicted.append(prediction.case.name)
      yield item, prediction

  def watch_panels(predict_fn, cases, **settings):
    for prediction in for_panels(predict_fn, cases, **settings):
      predicted.append(prediction.case.name)
      yield prediction

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 2)
    compiled_once.share(patch)
    patch.setattr(evaluate, 'predict_each', watch)
    patch.setattr(evaluate, 'predict_cases', watch_panels)
    summary = train.run(config_of(folder / 'cache'), folder / 'run')
  return folder / 'run', summary, predicted


@pytest.fixture
def workdir(whole, tmp_path):
  """Returns a copy of the undisturbed run, to damage."""
  return shutil.copytree(whole[0], tmp_path / 'run')


def go_on(workdir, whole, *, num_steps=6):
  config = config_of(whole[0].parent / 'cache', num_steps=num_steps)
  return train.run(config, workdir)


def lines(workdir):
  """Returns the lines of metrics, without what a clock says."""
  text = (workdir / 'metrics.jsonl').read_text()
  return [
    {k: v for k, v in json.loads(line).items() if k not in CLOCKS}
    for line in text.splitlines()
  ]


def arrays(workdir, which):
  with ocp.training.Checkpointer(workdir / 'checkpoints' / which) as saved:
    step = saved.latest.step
    return step, jax.tree.leaves(saved.load(step))


def assert_same(workdir, summary, whole):
  """Asserts that nothing tells the run in `workdir` from the undisturbed."""
  assert summary == whole[1]
  assert lines(workdir) == lines(whole[0])
  for which in (LATEST, BEST):
    step, expected = arrays(whole[0], which)
    found, got = arrays(workdir, which)
    assert found == step
    for a, b in zip(got, expected, strict=True):
      np.testing.assert_array_equal(a, b)
  for name in ('model/model.safetensors', 'evaluation/val/cases.csv'):
    assert (workdir / name).read_bytes() == (whole[0] / name).read_bytes()


def test_each_held_out_case_is_predicted_once_each_time(whole):
  workdir, summary, predicted = whole
  # Evaluated at the steps 2, 4 and 6, and reported and pictured of step 6.
  assert len(predicted) == 3 * summary['num_cases'] == 9
  assert predicted[:3] == predicted[3:6] == predicted[6:]
  names = {path.stem for path in (workdir / 'panels').glob('*.png')}
  assert names == {'val_best', 'val_median', 'val_worst'}
  vals = [line for line in lines(workdir) if line['split'] == 'val']
  assert [line['step'] for line in vals] == [2, 4, 6]
  assert vals[0].keys() == vals[2].keys()
  assert vals[2]['dice'] == summary['mean']['dice']


def test_it_goes_on_from_the_one_before_a_damaged_checkpoint(
  whole, workdir, capsys
):
  latest = workdir / 'checkpoints' / LATEST
  damage_newest(latest, garbled, 'weights')
  summary = go_on(workdir, whole)
  out = capsys.readouterr().out
  assert f'{latest}/6 is damaged: ' in out and 'going on from step 4' in out
  assert (workdir / 'checkpoints' / 'damaged' / 'latest-6').is_dir()
  assert_same(workdir, summary, whole)


def test_evaluating_uses_the_one_before_and_leaves_all_where_it_is(
  whole, workdir, capsys
):
  damage_newest(workdir / 'checkpoints' / LATEST, garbled, 'weights')
  config = config_of(whole[0].parent / 'cache')
  config = train.opening.open_run(config, workdir)[0]
  summary = evaluate.run(config, workdir, checkpoint=LATEST)
  assert summary['step'] == 4
  assert 'is damaged: ' in capsys.readouterr().out
  assert (workdir / 'checkpoints' / LATEST / '6').is_dir()


def test_a_damaged_best_one_is_told_at_the_start(whole, workdir):
  damage_newest(workdir / 'checkpoints' / BEST, garbled, 'weights')
  with pytest.raises(InputError, match=r'best/\d is damaged: .*; move it away'):
    go_on(workdir, whole)


@pytest.mark.parametrize('lost', ['line', 'best'])
def test_a_validation_lost_at_the_last_step_is_made_up_for(
  lost, whole, workdir
):
  assert Checkpoints(workdir / 'checkpoints').step(BEST) == 6
  shutil.rmtree(workdir / 'checkpoints' / BEST)
  path = workdir / 'metrics.jsonl'
  text = path.read_text().splitlines(keepends=True)
  assert json.loads(text[-1])['split'] == 'val'
  if lost == 'line':
    path.write_text(''.join(text[:-1]))
  assert_same(workdir, go_on(workdir, whole), whole)


def stop_at(patch, *, step):
  """Makes a signal come when `step` has been counted."""
  advance = train.Progress.advance

  def stop(self, n):
    advance(self, n)
    if self._count == step:
      os.kill(os.getpid(), signal.SIGTERM)

  patch.setattr(train.Progress, 'advance', stop)


def test_a_validation_that_a_signal_put_off_is_made_up_for(
  whole, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  with monkeypatch.context() as patch:
    stop_at(patch, step=4)
    with pytest.raises(Stopped, match='SIGTERM at step 4: saved'):
      go_on(workdir, whole)
  assert lines(workdir)[-1] == lines(whole[0])[len(lines(workdir)) - 1]
  assert lines(workdir)[-1]['split'] == 'train'  # it was not waited for
  assert_same(workdir, go_on(workdir, whole), whole)


def test_a_log_line_averages_the_steps_before_the_stop_too(
  whole, tmp_path, monkeypatch
):
  config = config_of(whole[0].parent / 'cache')
  config.log_every, config.checkpoint_every = 5, 3
  config.data.phantom.num_val, config.data.fold = 0, 'all'
  train.run(config, tmp_path / 'whole')
  with monkeypatch.context() as patch:
    stop_at(patch, step=4)
    with pytest.raises(Stopped):
      train.run(config, tmp_path / 'run')
  shutil.copytree(tmp_path / 'run', tmp_path / 'older')
  train.run(config, tmp_path / 'run')
  assert lines(tmp_path / 'run') == lines(tmp_path / 'whole')
  # From the one before, too.
  shutil.rmtree(tmp_path / 'older/checkpoints' / LATEST / '4')
  train.run(config, tmp_path / 'older')
  assert lines(tmp_path / 'older') == lines(tmp_path / 'whole')


class Flips:
  """A request to stop that comes between two looks at it."""

  def __init__(self, looks):
    self._left = looks

  @property
  def signal(self):
    self._left -= 1
    return signal.SIGTERM if self._left < 0 else None

  def __bool__(self):
    return self.signal is not None


def test_a_signal_between_two_looks_saves_no_state_that_stands_still(
  whole, tmp_path, monkeypatch
):
  step_that_meets_nan(monkeypatch, bad=1)
  monkeypatch.setattr(
    train, 'stop_on_signal', lambda: contextlib.nullcontext(Flips(5))
  )
  config = config_of(whole[0].parent / 'cache', num_steps=20)
  config.log_every = config.eval_every = config.checkpoint_every = 20
  with pytest.raises(InputError, match='not finite at step 1'):
    train.run(config, tmp_path)
  assert Checkpoints(tmp_path / 'checkpoints').steps(LATEST) == [1]
  assert not arrays_of_halted(tmp_path)


def arrays_of_halted(workdir):
  with ocp.training.Checkpointer(workdir / 'checkpoints' / LATEST) as saved:
    return bool(saved.load(saved.latest.step)['halted'])


def test_a_saved_state_that_stands_still_is_set_free(whole, workdir, capsys):
  folder = workdir / 'checkpoints'
  with ocp.training.Checkpointer(folder / LATEST) as saved:
    state = saved.load(6)
  checkpoints = Checkpoints(folder, keep=3, writes=True)
  for step in (7, 8):
    checkpoints.save(
      LATEST, step, state | {'halted': jax.numpy.array(True)}, {}
    )
  checkpoints.wait()
  checkpoints.close()
  summary = go_on(workdir, whole, num_steps=9)
  out = capsys.readouterr().out
  for step in (7, 8):
    assert (
      f'{folder}/latest/{step} is of a run whose loss was not finite' in out
    )
  assert summary['step'] == 9 and not arrays_of_halted(workdir)
  assert lines(workdir)[-1]['step'] == 9
