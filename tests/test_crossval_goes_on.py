"""A cross-validation that is stopped, damaged, or in part made elsewhere."""

import json
import shutil
from types import SimpleNamespace

import jax
import pytest
from data_cases import assert_one_line
from test_crossval import config_for

from medseg_jax.experiment import prediction_files
from medseg_jax.programs import evaluate, train
from medseg_jax.runtime.errors import InputError, Stopped
from medseg_jax.studies import all_folds, crossval, fold_budget, fold_runs
from medseg_jax.studies.fold_runs import FoldRun


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Returns the folder of one that nobody stopped."""
  root = tmp_path_factory.mktemp('whole')
  crossval.run(config_for(), root)
  return root


def made(root):
  """Returns what is the same however often it was stopped."""
  paths = [
    *root.glob('2d/fold_*/held_out/*.png'),
    *root.glob('2d/fold_*/held_out/*.npz'),
    *root.glob('crossval/*/cases.csv'),
    *root.glob('model/**/model.safetensors'),
    root / 'crossval' / 'summary.json',
    root / 'crossval' / 'reliability.png',
  ]
  return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def stop_at(patch, module, name, call):
  """Stops the run at the begin of one call of a function."""
  original, calls = getattr(module, name), []

  def stopping(*args, **named):
    calls.append(1)
    if len(calls) == call:
      raise Stopped('stopped', 15)
    return original(*args, **named)

  patch.setattr(module, name, stopping)


def test_stopped_in_training_prediction_and_scoring_it_ends_alike(
  whole, tmp_path
):
  for module, name, call in (
    (train, 'train', 2),
    (prediction_files, 'write', 1),
    (prediction_files, 'write', 2),
    (evaluate, 'score_mask', 3),
  ):
    with pytest.MonkeyPatch.context() as patch:
      stop_at(patch, module, name, call)
      with pytest.raises(Stopped):
        crossval.run(config_for(), tmp_path)
  crossval.run(config_for(), tmp_path)
  found, wanted = made(tmp_path), made(whole)
  assert len(wanted) == 5 + 5 + 1 + 2 + 2
  assert found == wanted


def test_a_fold_that_was_trained_elsewhere_is_taken_up(
  whole, tmp_path, monkeypatch
):
  config = config_for()
  config.data.fold = 1
  config.data.own_splits = False
  train.run(config, tmp_path / '2d' / 'fold_1')
  trained, original = [], train.run

  def counted(config, workdir, **named):
    trained.append(workdir.name)
    return original(config, workdir, **named)

  monkeypatch.setattr(train, 'run', counted)
  crossval.run(config_for(), tmp_path)
  assert trained == ['fold_0']
  assert made(tmp_path) == made(whole)


def test_a_fold_of_another_division_is_refused(tmp_path):
  config = config_for()
  config.data.fold = 0
  config.data.own_splits = False
  config.data.fold_order = 'block'
  train.run(config, tmp_path / '2d' / 'fold_0')
  with pytest.raises(InputError, match='another division of the cases') as it:
    crossval.run(config_for(), tmp_path)
  assert_one_line(it, str(tmp_path / '2d' / 'fold_0'), 'splits.json')


def test_a_fold_that_fits_no_ensemble_is_refused_before_training(
  whole, tmp_path
):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / '2d' / 'fold_1')
  config = config_for()
  config.dtype = 'bfloat16'
  with pytest.raises(InputError, match='network.dtype is "float32"') as caught:
    crossval.run(config, tmp_path)
  assert_one_line(caught, str(tmp_path / '2d' / 'fold_0'), 'bfloat16')
  assert not (tmp_path / '2d' / 'fold_1' / 'checkpoints').exists()
  # Without its model, and beyond what is asked for now.
  shutil.rmtree(tmp_path / '2d' / 'fold_0' / 'model')
  config = config_for()
  config.num_steps = 1
  with pytest.raises(InputError, match='has trained for 2 steps') as caught:
    crossval.run(config, tmp_path)
  assert_one_line(caught, str(tmp_path / '2d' / 'fold_0'), 'num_steps is 1')


def test_a_damaged_model_of_one_fold_is_named_and_the_others_stay(
  whole, tmp_path
):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  before = made(tmp_path)
  weights = tmp_path / '2d' / 'fold_1' / 'model' / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-7])
  with pytest.raises(InputError, match='1 of 2 folds failed') as caught:
    crossval.run(config_for(), tmp_path)
  assert_one_line(caught, str(weights.parent))
  assert made(tmp_path) == before


@pytest.mark.parametrize(
  'error',
  [
    MemoryError('of the host'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nof chips'),
  ],
)
def test_a_fold_without_memory_costs_no_other(tmp_path, monkeypatch, error):
  original = train.run

  def run(config, workdir, **named):
    if workdir.name == 'fold_0':
      raise error
    return original(config, workdir, **named)

  monkeypatch.setattr(train, 'run', run)
  with pytest.raises(InputError, match='1 of 2 folds failed') as caught:
    crossval.run(config_for(), tmp_path)
  assert_one_line(caught, 'fold_0', type(error).__name__, str(error)[:6])
  assert (tmp_path / '2d' / 'fold_1' / 'model').exists()


def test_a_cascade_waits_for_no_fold_that_failed(tmp_path, monkeypatch, capsys):
  runs = [
    FoldRun(name, i, tmp_path / name / f'fold_{i}', None, None)
    for name in ('3d_lowres', '3d_cascade', '2d')
    for i in range(2)
  ]
  source = all_folds.decide(config_for(), tmp_path).source.subset([])
  fold = {'train': [], 'val': []}
  decided = SimpleNamespace(source=source, folds=[fold, fold])
  seen = []

  def shorten(i, runs, decided, times):
    seen.append(runs[i].title)
    return runs[i]

  def fails(run):
    raise InputError(f'{run.title} is damaged')

  monkeypatch.setattr(fold_budget, 'shorten', shorten)
  monkeypatch.setattr(fold_runs, 'is_done', fails)
  with pytest.raises(InputError, match='6 of 6 folds failed'):
    crossval.complete_folds(runs, decided, tmp_path / 'times.json')
  # Nothing of it is measured, and what does not need it has its turn.
  assert seen == [run.title for run in runs if '3d_cascade' not in run.title]
  told = capsys.readouterr().out
  assert told.count('needs a mask of each case by 3d_lowres') == 2


def test_a_training_and_a_cross_validation_do_not_share_a_folder(
  whole, tmp_path
):
  with pytest.raises(InputError, match='holds an ensemble'):
    train.run(config_for(), whole)
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(InputError, match='holds a training'):
    crossval.run(config_for(), tmp_path)


def test_the_model_lists_the_folds_and_what_they_scored(whole):
  description = json.loads((whole / 'model' / 'model.json').read_text())
  [configuration] = description['configurations']
  assert configuration['name'] == '2d'
  places = [member['folder'] for member in configuration['members']]
  assert places == ['2d/fold_0', '2d/fold_1']
  result = json.loads((whole / 'crossval' / 'summary.json').read_text())
  assert description['postprocessing'] == result['postprocessing']['steps']
  assert description['scores']['num_cases'] == 5
  assert description['calibration'] == result['calibration']
  assert result['calibration']['num_voxels'] == 5 * 16 * 16
