"""A training that ends where its validation stands still, annealed."""

import json
import pathlib
import signal

import compiled_once
import jax
import many
import numpy as np
import optax
import pytest
from data_cases import assert_one_line
from test_resume_loop import arrays, config_of, lines

from medseg_jax.experiment import early_stop, step_sums
from medseg_jax.experiment.restored_state import restore_state
from medseg_jax.optim import create_optimizer, create_schedule
from medseg_jax.programs import evaluate, train, validation
from medseg_jax.runtime.checkpoint import LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError, Stopped
from medseg_jax.runtime.sharding import create_mesh
from medseg_jax.state import TrainState, abstract_state
from medseg_jax.studies import fold_runs
from medseg_jax.studies.fold_runs import FoldRun


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
  """Trains on two: JAX keeps their programs, which all these runs share."""
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  compiled_once.share(monkeypatch)


def first_stop(dices, patience):
  """Returns after how many evaluations it stops, None for never."""
  for count in range(1, len(dices) + 1):
    if early_stop.stands_still(dices[:count], patience):
      return count
  return None


def test_it_waits_for_as_many_evaluations_as_it_has_patience():
  assert first_stop([0.5] * 9, 3) == 4
  assert first_stop([0.5] * 9, 5) == 6
  assert first_stop([0.5] * 3, 3) is None
  # Nothing has been learnt, or nothing is defined: no reason to end.
  assert first_stop([0.0] * 20, 2) is None
  assert first_stop([None] * 20, 2) is None
  assert first_stop([0.0] * 5 + [0.5] * 50, 2) > 20  # the average still rises


def test_the_average_decides_and_not_the_last_dice():
  rng = np.random.default_rng(0)
  rising = list(np.linspace(0.3, 0.8, 60) + rng.uniform(-0.05, 0.05, 60))
  assert first_stop(rising, 8) is None
  falling = [0.8] * 10 + [0.7] * 10
  assert first_stop(falling, 12) == 13
  # An average that follows a jump: by hand, 0.9 of the old and 0.1 of the new.
  average, best, waited, expected = 0.2, 0.2, 0, None
  for count in range(2, 80):
    average = 0.9 * average + 0.1 * 0.6
    best, waited = (
      (average, 0) if average > best + 0.001 else (best, waited + 1)
    )
    if waited == 3 and expected is None:
      expected = count
  assert first_stop([0.2] + [0.6] * 78, 3) == expected


def state_at(step, anneal):
  return TrainState(
    step=np.int32(step),
    params={},
    batch_stats={},
    opt_state=(),
    ema_params=None,
    ema_batch_stats=None,
    halted=np.zeros((), bool),
    anneal=np.array(anneal, np.int32),
  )


def test_the_rest_of_the_schedule_is_run_through_faster():
  schedule = create_schedule(name='cosine', learning_rate=1.0, num_steps=1000)
  for step in (0, 7, 999):
    assert state_at(step, (0, 0, 0)).position == step
  anneal = (200, 240, 1000)
  for step, place in ((200, 200), (201, 220), (220, 600), (240, 1000)):
    assert state_at(step, anneal).position == place
    expected = 0.5 * (1 + np.cos(np.pi * place / 1000))
    found = schedule(state_at(step, anneal).position)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw'])
def test_the_optimizer_is_told_the_place_in_the_schedule(name):
  schedule = create_schedule(name='poly', learning_rate=0.1, num_steps=10)
  ours = create_optimizer(
    name=name, learning_rate=schedule, weight_decay=0.01, grad_clip_norm=1.0
  )
  params = {'a': np.array([0.5, -2.0], np.float32)}
  grads = {'a': np.array([0.3, 0.1], np.float32)}
  state = ours.init(params)
  at_0, new = ours.update(grads, state, params)
  at_5, _ = ours.update(grads, state, params, position=5.0)
  np.testing.assert_allclose(at_5['a'], at_0['a'] * 0.5**0.9, rtol=1e-6)
  # By itself it counts, as Optax's own does; checkpoints hold the same state.
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    *([] if name == 'adamw' else [optax.add_decayed_weights(0.01)]),
    {
      'sgd': lambda: optax.sgd(schedule, 0.9, nesterov=True),
      'adam': lambda: optax.adam(schedule),
      'adamw': lambda: optax.adamw(schedule, weight_decay=0.01),
    }[name](),
  )
  other = theirs.init(params)
  assert jax.tree.structure(state) == jax.tree.structure(other)
  for _ in range(3):
    found, state = ours.update(grads, state, params)
    wanted, other = theirs.update(grads, other, params)
    np.testing.assert_allclose(found['a'], wanted['a'], rtol=1e-6)


def stopping_config(cache):
  """Returns a config whose training ends at step 6 of 20, decided at 4."""
  config = config_of(cache, num_steps=20)
  config.schedule.name, config.schedule.warmup_fraction = 'cosine', 0.0
  config.stop.patience, config.stop.anneal = 1, 0.5
  return config


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Returns workdir and summary of a run that ended early."""
  folder = tmp_path_factory.mktemp('stopped')
  with pytest.MonkeyPatch.context() as patch:
    still(patch)
    compiled_once.share(patch)
    summary = train.run(stopping_config(folder / 'cache'), folder / 'run')
  return folder / 'run', summary


def still(patch):
  """Makes validation say 0.5 at every evaluation."""
  patch.setattr(jax, 'device_count', lambda: 2)
  original = evaluate.summarize

  def summarize(*args, **named):
    summary = original(*args, **named)
    summary['mean']['dice'] = 0.5
    return summary

  patch.setattr(validation.evaluate, 'summarize', summarize)


def rates(workdir):
  return [
    line['learning_rate'] for line in lines(workdir) if line['split'] == 'train'
  ]


def test_it_ends_early_with_the_learning_rate_at_its_end(whole, capsys):
  workdir, summary = whole
  assert arrays(workdir, LATEST)[0] == 6
  peak = stopping_config(workdir).optimizer.learning_rate
  # Steps 0 to 4 as planned, and 5 half way from 4 to 20.
  places = np.array([0, 1, 2, 3, 4, 12])
  expected = peak * 0.5 * (1 + np.cos(np.pi * places / 20))
  np.testing.assert_allclose(rates(workdir), expected, rtol=1e-4)
  stopped = {
    'by': 'val',
    'decided_at': 4,
    'step': 6,
    'num_steps': 20,
    'patience': 1,
  }
  assert summary['stopped_early'] == stopped and summary['step'] == 6
  text = (workdir / 'evaluation' / 'val' / 'summary.json').read_text()
  assert json.loads(text)['stopped_early'] == stopped
  description = json.loads((workdir / 'model' / 'model.json').read_text())
  assert description['training']['stopped_early'] == stopped
  vals = [line['step'] for line in lines(workdir) if line['split'] == 'val']
  assert vals == [2, 4, 6]
  config = train.opening.open_run(
    stopping_config(workdir.parent / 'cache'), workdir
  )[0]
  capsys.readouterr()
  assert evaluate.run(config, workdir)['stopped_early'] == stopped
  assert 'too good for new images' in capsys.readouterr().out


def test_stopped_anywhere_it_ends_alike(whole, tmp_path):
  config = stopping_config(whole[0].parent / 'cache')
  left, original = [], step_sums.rows

  def rows(*args):
    if left and left.pop() == 'last':
      raise Stopped('killed', 9)
    return original(*args)

  with pytest.MonkeyPatch.context() as patch:
    still(patch)
    patch.setattr(step_sums, 'rows', rows)
    # After the steps 3, 4, 5 and 6, of which 2 and 4 are saved: the third step
    # of the first run, the second of the one that goes on from 2, and so on.
    for calls in (3, 2, 3, 2):
      left[:] = ['last', *['more'] * (calls - 1)]
      with pytest.raises(Stopped):
        train.run(config, tmp_path / 'run')
    summary = train.run(config, tmp_path / 'run')
  assert summary == whole[1]
  assert lines(tmp_path / 'run') == lines(whole[0])
  for a, b in zip(
    arrays(tmp_path / 'run', LATEST)[1], arrays(whole[0], LATEST)[1],
    strict=True,
  ):  # fmt: skip
    np.testing.assert_array_equal(a, b)


def test_a_signal_where_it_would_be_decided_only_puts_it_off(whole, tmp_path):
  config = stopping_config(whole[0].parent / 'cache')
  original = train.MetricWriter.scalars

  def scalars(writer, step, split, values):
    original(writer, step, split, values)
    if step == 3:
      signal.raise_signal(signal.SIGTERM)

  with pytest.MonkeyPatch.context() as patch:
    still(patch)
    with pytest.MonkeyPatch.context() as inner:
      inner.setattr(train.MetricWriter, 'scalars', scalars)
      with pytest.raises(Stopped, match='at step 4'):
        train.run(config, tmp_path / 'run')
    vals = [x['step'] for x in lines(tmp_path / 'run') if x['split'] == 'val']
    assert vals == [2]

    def killed(*args, **named):
      raise Stopped('killed', 9)

    with pytest.MonkeyPatch.context() as inner:
      # Once it has decided, and before that is saved.
      inner.setattr(train, 'train', killed)
      with pytest.raises(Stopped, match='killed'):
        train.run(config, tmp_path / 'run')
    vals = [x['step'] for x in lines(tmp_path / 'run') if x['split'] == 'val']
    assert vals == [2, 4]
    summary = train.run(config, tmp_path / 'run')
  assert summary == whole[1]
  found, wanted = (arrays(w, LATEST)[1] for w in (tmp_path / 'run', whole[0]))
  for a, b in zip(found, wanted, strict=True):
    np.testing.assert_array_equal(a, b)


ONE_DECIDES = """
import os
from medseg_jax.experiment import early_stop
first = os.environ['JAX_PROCESS_ID'] == '0'
early_stop.stands_still = lambda dices, patience: first and len(dices) == 2
"""


def test_one_process_decides_for_all(tmp_path):
  keys = {'num_steps': 12, 'stop.patience': 1, 'stop.anneal': 0.25}
  for name in ('warp', 'brightness', 'contrast', 'noise'):  # to compile sooner
    keys[f'augment.{name}_prob'] = 0.0
  workdir = tmp_path / 'run'
  text, _ = many.run(workdir, processes=2, before=ONE_DECIDES, **keys)
  # Decided at step 4; a quarter of that more.
  assert 'ends at step 5 in place of 12' in text
  assert 'the val split ended the training at step 5 of 12' in text
  assert 'too good' not in text  # the test split ended nothing
  summary = workdir / 'evaluation' / 'test' / 'summary.json'
  assert json.loads(summary.read_text())['stopped_early']['decided_at'] == 4
  steps = [path.name for path in (workdir / 'checkpoints/latest').iterdir()]
  assert max(map(int, steps)) == 5


def test_a_fold_that_ended_early_is_done(whole):
  workdir = whole[0]
  config = stopping_config(workdir.parent / 'cache')
  resolved = train.opening.open_run(config, workdir)[0]
  run = FoldRun('2d', 0, workdir, config, resolved)
  assert fold_runs.is_done(run)
  assert early_stop.of_folds({'2d/fold_0': workdir})['2d/fold_0']['step'] == 6
  resolved.stop.patience = 0
  assert not fold_runs.is_done(run)


def test_what_has_nothing_to_go_by_is_one_line(tmp_path):
  config = stopping_config(tmp_path)
  config.eval_every = 0
  with pytest.raises(InputError) as caught:
    train.run(config, tmp_path / 'run')
  assert_one_line(caught, 'config.stop.patience is 1', 'config.eval_every is 0')
  config.eval_every, config.data.phantom.num_val = 2, 0
  config.data.fold = 'all'
  with pytest.raises(InputError) as caught:
    train.run(config, tmp_path / 'run')
  assert_one_line(caught, 'config.stop.patience is 1', 'no validation split')
  config.stop.anneal = 0.0
  with pytest.raises(InputError, match='config.stop.anneal is 0.0'):
    train.run(config, tmp_path / 'run')


def test_a_checkpoint_from_before_is_read(whole, tmp_path):
  config = stopping_config(whole[0].parent / 'cache')
  config = train.opening.open_run(config, whole[0])[0]
  mesh = create_mesh()
  model = train.build.model_of(config, mesh)
  tx, _ = train.build.optimizer_of(config)
  arguments = train.build.state_arguments(config, model, tx, mesh)
  abstract = abstract_state(**arguments)
  before = Checkpoints(whole[0] / 'checkpoints')
  state, _ = restore_state(before, abstract)
  assert early_stop.end_of(state, config) == 6
  old = Checkpoints(pathlib.Path(tmp_path), writes=True)
  old.save(LATEST, 6, state.replace(anneal=None), {})
  old.wait()
  state, _ = restore_state(old, abstract)
  assert early_stop.end_of(state, config) == 20
  assert early_stop.describe(state, config) is None
  for each in (before, old):
    each.close()


def test_without_patience_it_goes_on_as_planned(whole, tmp_path):
  config = stopping_config(tmp_path)
  state = state_at(6, (4, 6, 20))
  state = state.replace(
    anneal=jax.device_put(
      state.anneal, jax.sharding.NamedSharding(
        create_mesh(), jax.sharding.PartitionSpec()
      )
    )
  )  # fmt: skip
  config.num_steps = 30
  kept = early_stop.going_on(state, config)
  np.testing.assert_array_equal(kept.anneal, [4, 6, 30])
  assert early_stop.end_of(kept, config) == 6
  config.stop.patience = 0
  freed = early_stop.going_on(state, config)
  assert early_stop.end_of(freed, config) == 30 and freed.position == 6
