"""A time budget shortens all folds of a cross-validation alike."""

import json
import time

import pytest
from data_cases import assert_one_line
from small import load, shrink
from test_crossval import config_for
from test_crossval_goes_on import stop_at

from medseg_jax.experiment import early_stop
from medseg_jax.programs import evaluate, train
from medseg_jax.runtime.errors import InputError, Stopped
from medseg_jax.studies import (
  all_folds,
  crossval,
  fold_budget,
  fold_runs,
  fold_times,
  pace,
  time_budget,
)
from medseg_jax.studies.time_budget import Left, Pace

HOURS = 3600


@pytest.mark.parametrize(
  ('text', 'seconds'),
  [
    ('90m', 5400),
    ('8h', 8 * HOURS),
    ('1.5h', 5400),
    ('2d', 48 * HOURS),
    ('.5h', 1800),
  ],
)
def test_budgets_in_words(text, seconds):
  assert time_budget.parse(text) == seconds


@pytest.mark.parametrize('text', ['8', 'h', '8 hours', '-1h', '0h', '1h30m'])
def test_no_budget_is_one_line_before_any_work(text, tmp_path):
  config = config_for()
  config.crossval.time_budget = text
  with pytest.raises(InputError) as caught:
    crossval.run(config, tmp_path)
  assert_one_line(caught, f"config.crossval.time_budget is '{text}'", '1.5h')
  assert not list(tmp_path.iterdir())


def left_of(*cases, eval_every=0, num_steps=10_000, candidates=1):
  return Left(cases, sum(cases), eval_every, num_steps, candidates)


def test_what_is_left_is_divided_evenly_among_the_trainings():
  # 10 h with 1 h spent: 0.95 x 9 h for 2 + 3 trainings.
  steps = time_budget.decide(
    '10h', 'a', Pace(0, 2.1, 0), left_of(3, 3), spent=HOURS, others=3
  )
  assert steps == int(0.95 * 9 * HOURS / 5 / 2.1)


def test_evaluations_and_starts_have_their_share():
  rate, left = Pace(60, 1.0, 5.0), left_of(4, 3, eval_every=100)
  seconds = 7200.0
  steps = time_budget.steps_within(seconds, rate, left)

  def takes(steps):  # as a run would go, event by event
    total = 0.0
    for cases in (4, 3):
      total += 60
      for step in range(1, steps + 1):
        total += 1.0 + 5.0 * cases * (step % 100 == 0 or step == steps)
      total += 5.0 * cases  # the masks
    return total + 5.0 * 7  # the pooled scores

  assert takes(steps) <= seconds < takes(steps + 1)
  pair = left._replace(candidates=2)
  assert time_budget.steps_within(seconds + 5.0 * 7, rate, pair) == steps


def test_a_budget_never_lengthens_and_names_what_it_would_take():
  rate, left = Pace(0, 1.0, 0), left_of(1, 1, num_steps=100)
  arguments = dict(spent=0.0, others=0)
  assert time_budget.decide('2d', 'a', rate, left, **arguments) == 100
  slow = Pace(0, 600.0, 0)
  with pytest.raises(InputError) as caught:
    time_budget.decide('1h', '2d', slow, left, **arguments)
  assert_one_line(caught, 'is 1h', '2 trainings', '5 steps', 'about 106m')
  # 2 x 5 x 600 s / 0.95 are 105.3 min; what it names is enough.
  assert time_budget.decide('106m', '2d', slow, left, **arguments) == 5
  none = left_of(1, 1, num_steps=0)  # a model that is taken over as it is
  assert time_budget.decide('1h', '2d', slow, none, **arguments) == 0


def test_folds_train_alike_also_after_a_stop(tmp_path, monkeypatch, capsys):
  config = config_for()
  config.num_steps = 40
  config.crossval.time_budget = '4h'
  # The folds also end early, each by what it holds out.
  config.eval_every, config.stop.patience = 2, 1
  monkeypatch.setattr(
    early_stop, 'stands_still', lambda dices, patience: len(dices) == 2
  )
  monkeypatch.setattr(pace, 'measure', lambda *_, **__: Pace(0, 600.0, 0))
  with pytest.MonkeyPatch.context() as patch:
    stop_at(patch, train, 'train', 2)
    with pytest.raises(Stopped):
      crossval.run(config, tmp_path)
  assert '11 of 40 steps a fold' in capsys.readouterr().out
  path = tmp_path / 'crossval' / 'budget.json'
  before = path.read_bytes()
  # Another day the machine is quicker: it is decided.
  monkeypatch.setattr(pace, 'measure', lambda *_, **__: Pace(0, 1.0, 0))
  crossval.run(config, tmp_path)
  out = capsys.readouterr().out
  assert 'fold      2d/fold_1: 2 of 2, 11 steps, about ' in out
  assert '2d/fold_1 (2 of 2, about ' in out and ' of the budget): step' in out
  assert path.read_bytes() == before
  entry = json.loads(before)['2d']
  assert (entry['num_steps'], entry['of'], entry['budget']) == (11, 40, '4h')
  for fold in (0, 1):
    model = tmp_path / '2d' / f'fold_{fold}' / 'model' / 'model.json'
    training = json.loads(model.read_text())['training']
    assert training['config']['num_steps'] == 11 and training['step'] == 5
  summary = json.loads((tmp_path / 'crossval/2d/summary.json').read_text())
  assert summary['step'] == 11
  ends = {k: stop['step'] for k, stop in summary['stopped_early'].items()}
  assert ends == {'2d/fold_0': 5, '2d/fold_1': 5}
  assert 'ended the training of 2 folds early' in out
  assert '2d/fold_0 (' not in out  # it was done
  # Folds that have begun decide over another budget, too.
  config.crossval.time_budget = '9h'
  decided = all_folds.decide(config, tmp_path)
  runs = fold_runs.list_runs(decided, tmp_path)
  times = path.with_name(fold_times.FILE)
  kept = 'decided for config.crossval.time_budget 4h and num_steps 40'
  for told in (kept, '11 steps, as folds that'):
    run = fold_budget.shorten(0, runs, decided, times)
    assert run.config.num_steps == run.resolved.num_steps == 11
    assert told in capsys.readouterr().out
    path.unlink()
  # And so over another number of steps, in no silence; where none has begun it
  # is decided anew.
  config.crossval.time_budget, config.num_steps = '4h', 80
  path.write_bytes(before)
  runs = fold_runs.list_runs(all_folds.decide(config, tmp_path), tmp_path)
  run = fold_budget.shorten(0, runs, decided, times)
  out = capsys.readouterr().out
  assert run.config.num_steps == 11 and 'and num_steps 80, but' in out
  monkeypatch.setattr(fold_budget, '_steps_of_begun', lambda own: 0)
  run = fold_budget.shorten(0, runs, decided, times)
  assert run.config.num_steps == 80
  assert json.loads(path.read_text())['2d']['of'] == 80


def test_a_budget_that_is_too_small_trains_nothing(tmp_path, monkeypatch):
  config = config_for()
  config.num_steps = 40
  config.crossval.time_budget = '30m'
  monkeypatch.setattr(pace, 'measure', lambda *_, **__: Pace(0, 600.0, 0))
  with pytest.raises(InputError) as caught:
    crossval.run(config, tmp_path)
  assert_one_line(caught, 'time_budget is 30m', '2 trainings', '2 steps')
  assert not list(tmp_path.glob('2d/*/checkpoints'))
  assert not (tmp_path / 'crossval' / 'budget.json').exists()


def test_the_pace_is_that_of_the_loop(tmp_path, monkeypatch):
  config = shrink(load('unet'))
  config.data.device_cache = 'on'
  compile_steps = pace.compile_steps

  def slower(*args):
    compiled = compile_steps(*args)

    def advance(state, data, count):
      time.sleep(0.3 * count)
      return compiled.advance(state, data, count)

    return compiled._replace(advance=advance)

  def score(*args, **named):
    time.sleep(0.4)

  monkeypatch.setattr(pace, 'compile_steps', slower)
  monkeypatch.setattr(evaluate, 'score_mask', score)
  found = pace.measure(config, tmp_path, seconds=0.0)
  assert 0.3 <= found.step < 5 and 0.4 <= found.case < 20  # on a busy machine
  assert found.setup > 0 and not list(tmp_path.glob('checkpoints'))


def test_calls_last_as_long_as_is_asked_for():
  assert pace.calls_for(30.0, 2.0, 1) == (1, 15)
  assert pace.calls_for(30.0, 0.01, 50) == (50, 60)
  assert pace.calls_for(0.1, 2.0, 1) == (1, pace.LEAST_CALLS)


def test_what_a_killed_training_took_counts_up_to_its_last_metrics(tmp_path):
  path = tmp_path / 'crossval' / fold_times.FILE
  with fold_times.measured(path, '2d/fold_0'):
    killed = json.loads(path.read_text())  # as it lies there while it runs
  killed['2d/fold_0'][2] = time.time() - 1000
  path.write_text(json.dumps(killed))
  (tmp_path / '2d' / 'fold_0').mkdir(parents=True)
  (tmp_path / '2d' / 'fold_0' / 'metrics.jsonl').write_text('')
  assert fold_times.read(path)['2d/fold_0'][0] == pytest.approx(1000, abs=30)
  with fold_times.measured(path, '2d/fold_0'):
    pass
  fold_times.finish(path, '2d/fold_0')
  seconds, ended = fold_times.read(path)['2d/fold_0']
  assert ended and seconds == pytest.approx(1000, abs=30)


def test_what_is_left_is_told_at_every_moment(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(fold_times.time, 'monotonic', lambda: now[0])
  left = fold_times.Remaining(
    {'pace/2d': (60.0, False)},
    '2d/fold_0',
    ['2d/fold_0', '2d/fold_1'],
    planned={'2d': 1800.0},
    budget=7200.0,
  )
  expected = ', about 1 h 0 min left, 1 h 59 min of the budget'
  assert left.words() == expected
  now[0] += 600
  expected = ', about 50 min 0 s left, 1 h 49 min of the budget'
  assert left.words() == expected
  now[0] += 7200  # a fold that takes too long: the other one is still to come
  expected = ', about 30 min 0 s left, 11 min 0 s over the budget'
  assert left.words() == expected
