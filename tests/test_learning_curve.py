"""Dice against the number of training cases, in one command."""

import json

import numpy as np
import pytest
from conftest import write_pairs
from data_cases import assert_one_line
from PIL import Image
from small import load, shrink
from test_crossval import config_for

from medseg_jax.inference import cases
from medseg_jax.programs import train
from medseg_jax.report.learning_plot import Fitted, learning_plot
from medseg_jax.runtime.errors import InputError, Stopped
from medseg_jax.studies import learning_curve, learning_results

NAMES = [f'case {i:02d}' for i in range(16)]


def test_each_share_lies_in_the_next_and_keeps_groups_together():
  alone = {name: name for name in NAMES}
  shares = (1.0, 0.125, 0.5, 0.25)
  found = learning_curve.nested(NAMES, alone, shares, seed=3)
  assert [len(names) for names in found] == [2, 4, 8, 16]
  for small, large in zip(found, found[1:], strict=False):
    assert set(small) < set(large)
  again = learning_curve.nested(NAMES[::-1], alone, shares, seed=3)
  assert again == found
  assert learning_curve.nested(NAMES, alone, shares, seed=4) != found
  # Three of a patient, and one: drawn as a whole.
  patients = {name: str(i // 3) for i, name in enumerate(NAMES)}
  for names in learning_curve.nested(NAMES, patients, shares, seed=0):
    for patient in set(patients.values()):
      own = {name for name in NAMES if patients[name] == patient}
      assert own <= set(names) or not own & set(names)


def test_shares_of_as_many_cases_are_one():
  names = NAMES[:3]
  alone = {name: name for name in names}
  found = learning_curve.nested(names, alone, (0.1, 0.3, 0.6, 1), seed=0)
  assert [len(each) for each in found] == [1, 2, 3]


@pytest.mark.parametrize('shares', [(), (0.0, 1.0), (2.0,), (True, 'a'), 0.5])
def test_no_shares_are_one_line(shares, tmp_path):
  config = config_for()
  with config.ignore_type():
    config.learning_curve.shares = shares
  with pytest.raises(InputError) as caught:
    learning_curve.run(config, tmp_path)
  assert_one_line(caught, 'config.learning_curve.shares is', 'up to 1')


def test_what_has_no_curve_is_one_line(tmp_path):
  config = load('pretrain')
  with pytest.raises(InputError) as caught:
    learning_curve.run(config, tmp_path)
  assert_one_line(caught, 'config.pretrain.mask_share', 'no labels')
  # Of eight cases one has foreground, and a share of one is another.
  write_pairs(tmp_path / 'data', 10)
  for i in range(1, 10):
    path = tmp_path / 'data' / 'labels' / f'case {i:02d}.png'
    Image.new('L', Image.open(path).size).save(path)
  config = shrink(load('unet'), path=tmp_path / 'data')
  config.data.source = 'folder'
  config.learning_curve.shares = (0.125,)
  with pytest.raises(InputError) as caught:
    learning_curve.run(config, tmp_path / 'run')
  assert_one_line(caught, 'learning_curve.shares', 'in the 1 case that')


def test_one_command_trains_scores_and_fits(tmp_path, monkeypatch, capsys):
  config = config_for()
  config.data.phantom.num_train = 6
  config.learning_curve.shares = (0.3, 0.6, 1.0)
  trained, original = [], train.run

  def run(config, workdir, **named):
    if len(trained) == 1 and trained != ['killed']:
      trained[:] = ['killed']
      raise Stopped('killed', 9)
    trained.append(workdir.name)
    return original(config, workdir, **named)

  monkeypatch.setattr(train, 'run', run)
  with pytest.raises(Stopped):
    learning_curve.run(config, tmp_path)
  trained[:] = []
  first = tmp_path / 'learning_curve' / '1_cases'
  weights = (first / 'model' / 'model.safetensors').read_bytes()
  monkeypatch.setattr(
    train, 'run',
    lambda c, w, **n: trained.append(w.name) or original(c, w, **n),
  )  # fmt: skip
  result = learning_curve.run(config, tmp_path)
  assert trained == ['2_cases', '3_cases']
  assert (first / 'model' / 'model.safetensors').read_bytes() == weights
  # Trained on what belongs to the fold, scored on what it holds out.
  fold = json.loads((tmp_path / 'splits.json').read_text())[0]
  seen = set()
  for point, number in zip(result['points'], (1, 2, 3), strict=True):
    workdir = tmp_path / point['workdir']
    record = json.loads((workdir / 'held_out.json').read_text())
    names = set(record['trained'].values())
    assert len(names) == number == point['cases'] and seen <= names
    assert names <= set(fold['train'])
    assert set(record['held_out']['val']) == set(fold['val'])
    seen = names
    summary = json.loads(
      (workdir / 'evaluation' / 'val' / 'summary.json').read_text()
    )
    assert point['dice'] == pytest.approx(summary['mean']['dice'])
  file = tmp_path / 'learning_curve' / 'summary.json'
  assert json.loads(file.read_text()) == result
  assert result['num_held_out'] == 3 and 'three numbers' in result['notes'][-1]
  picture = Image.open(tmp_path / 'learning_curve' / 'curve.png')
  assert picture.mode == 'RGB'
  assert 'twice the cases would gain' in capsys.readouterr().out
  # Done, it only reads; another seed would be of other cases.
  trained[:] = []
  assert learning_curve.run(config, tmp_path) == result and not trained
  # Somebody has scored other weights: those of the model are scored anew.
  scores = first / 'evaluation' / 'val'
  kept = (scores / 'cases.csv').read_bytes()
  summary = json.loads((scores / 'summary.json').read_text())
  other = json.dumps(summary | {'checkpoint': 'best', 'step': 1})
  (scores / 'summary.json').write_text(other)
  (scores / 'cases.csv').write_text('case,class\n')
  assert learning_curve.run(config, tmp_path) == result
  assert trained == ['1_cases']
  assert (scores / 'cases.csv').read_bytes() == kept
  config.seed = 5
  with pytest.raises(InputError, match='not the cases that are drawn') as error:
    learning_curve.run(config, tmp_path)
  assert_one_line(error, '_cases/splits.json', 'config.seed')


def test_a_case_that_cannot_be_scored_costs_itself_alone(tmp_path, monkeypatch):
  config = config_for()
  config.data.phantom.num_train = 6
  config.learning_curve.shares = (0.3, 1.0)
  # The same number of steps for each, also where epochs are what is asked for.
  config.num_epochs = 2
  original, lost = cases.match_channels, []

  def match_channels(case, channels):
    lost[:] = lost or [case.name]
    if case.name in lost:
      raise InputError(f'{case.name}: cannot be predicted')
    return original(case, channels)

  monkeypatch.setattr(cases, 'match_channels', match_channels)
  with pytest.raises(InputError, match='not scored: 1 case') as error:
    learning_curve.run(config, tmp_path)
  assert_one_line(error, lost[0])
  path = tmp_path / 'learning_curve' / 'summary.json'
  result = json.loads(path.read_text())
  assert result['failed'] == lost and result['num_held_out'] == 2
  assert len({point['num_steps'] for point in result['points']}) == 1
  assert all(point['dice'] is not None for point in result['points'])


class _Run:
  """As much of a training as the results ask for."""

  def __init__(self, tmp_path, name):
    self.workdir = tmp_path / name
    self.title = f'learning_curve/{name}'
    self.resolved = config_for()


def described(tmp_path, numbers, dice):
  runs = [_Run(tmp_path, f'{n}_cases') for n in numbers]
  return learning_results.describe(numbers, np.array(dice), runs)


def test_what_doubling_gives_is_that_of_the_law(tmp_path):
  numbers, cases = (10, 20, 40, 80), np.linspace(-0.04, 0.04, 9)[:, None]
  errors = [0.1 + 0.8 * n**-0.5 for n in numbers]
  result = described(tmp_path, numbers, [1 - e + cases for e in errors])
  gain = 0.8 * (80**-0.5 - 160**-0.5)
  assert result['doubled']['gain'] == pytest.approx(gain, abs=1e-6)
  low, high = result['doubled']['gain_ci95']
  assert low <= gain <= high and high - low < 1e-3  # the cases shift all alike
  assert result['fit']['c'] == pytest.approx(0.5) and not result['notes']
  low, high = result['points'][0]['dice_ci95']
  deviation = cases.std() / 3
  assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_what_cannot_be_told_is_said(tmp_path):
  cases = np.linspace(0.5, 0.6, 5)[:, None]
  result = described(tmp_path, (1, 2), [cases, cases + 0.1])
  assert result['fit'] is None and 'three sizes' in result['notes'][0]
  assert 'three sizes' in learning_results.table(result)
  falling = [cases, cases - 0.1, cases - 0.2, cases - 0.3]
  result = described(tmp_path, (1, 2, 4, 8), falling)
  assert 'does not rise' in result['notes'][0]
  assert result['doubled']['gain'] == 0
  result = described(tmp_path, (1, 2, 4), [cases, cases + 0.1, cases + 0.15])
  assert result['doubled']['gain_ci95'] is None
  # Points about a level say little of what is beyond, also where all held-out
  # cases agree.
  uneven = [cases, cases + 0.005, cases + 0.007, cases + 0.001]
  result = described(tmp_path, (3, 6, 12, 24), uneven)
  low, high = result['doubled']['gain_ci95']
  assert 'no power law' in result['notes'][0] and high > 0.005 and low >= 0
  undefined = np.full((3, 5, 1), np.nan)
  result = described(tmp_path, (1, 2, 4), undefined)
  assert result['points'][0]['dice'] is None and result['fit'] is None


def test_points_lie_where_their_numbers_say():
  sheet = learning_plot(
    (10, 100), (0.5, 0.7), (None, None), None, title='of two'
  )
  blue = (sheet[:380] == np.array((0, 114, 178))).all(-1)
  y, x = np.nonzero(blue)
  left, right = x < x.mean(), x > x.mean()
  # Dice 0.5 lies at the bottom of the square, 0.7 at its top, 320 higher.
  assert y[left].mean() - y[right].mean() == pytest.approx(320, abs=2)
  assert x[right].mean() - x[left].mean() == pytest.approx(0.94 * 520, abs=2)
  at = np.array([10.0, 100.0, 200.0])
  law = Fitted(at, at / 400, at / 400 - 0.1, at / 400 + 0.1)
  wide = learning_plot((10, 100), (0.1, 0.2), ((0, 0.3), None), law, title='')
  assert (wide == np.array((213, 94, 0))).all(-1).any()
