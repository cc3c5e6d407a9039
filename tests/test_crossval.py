"""All folds in one command, and the pooled score of what they held out."""

import csv
import json

import numpy as np
import pytest
from data_cases import assert_one_line
from html_cases import data_of
from PIL import Image
from small import load, shrink

from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import all_folds, candidates, crossval
from medseg_jax.studies.candidates import Candidate


def config_for(**keys):
  config = shrink(load('unet'), num_steps=2)
  config.data.phantom.num_train = 5
  config.data.num_folds = 2
  config.eval_every = 0
  return config


def test_the_score_is_the_mean_over_cases_of_folds_of_3_and_2(tmp_path, capsys):
  result = crossval.run(config_for(), tmp_path)
  assert result['num_cases'] == 5 and result['chosen'] == '2d'
  folds = json.loads((tmp_path / 'splits.json').read_text())
  assert [len(fold['val']) for fold in folds] == [3, 2]
  masks = list(tmp_path.glob('2d/fold_*/held_out/*.png'))
  assert len(masks) == 5
  with open(tmp_path / 'crossval' / '2d' / 'cases.csv') as file:
    rows = list(csv.DictReader(file))
  of_class = {}
  for row in rows:
    if row['dice'] and row['class'] != 'background':
      of_class.setdefault(row['class'], []).append(float(row['dice']))
  expected = np.mean([np.mean(values) for values in of_class.values()])
  assert result['candidates'][0]['dice'] == pytest.approx(expected, abs=1e-9)
  page = (tmp_path / 'crossval' / 'report.html').read_text()
  assert data_of(page)['summary']['mean']['dice'] == pytest.approx(expected)
  assert 'Mean Dice by fold' in page and 'reliability plot' in page
  samples = list(tmp_path.glob('2d/fold_*/held_out/*_logits.npz'))
  assert len(samples) == 5
  before = {path: path.read_bytes() for path in (*masks, *samples)}
  masks[0].unlink()
  samples[-1].unlink()
  capsys.readouterr()
  assert crossval.run(config_for(), tmp_path) == result
  assert 'warning' not in capsys.readouterr().out
  assert {path: path.read_bytes() for path in before} == before


def test_a_case_in_two_folds_or_in_none_is_named():
  folds = [{'train': ['b'], 'val': ['a']}, {'train': ['a'], 'val': ['b']}]
  all_folds.check_each_once(folds, ['a', 'b'], 'splits.json')
  with pytest.raises(InputError, match='in no fold: 1 case .*c'):
    all_folds.check_each_once(folds, ['a', 'b', 'c'], 'splits.json')
  twice = [*folds, {'train': ['b'], 'val': ['a']}]
  with pytest.raises(InputError, match="'a' is held out in the folds 0, 2"):
    all_folds.check_each_once(twice, ['a', 'b'], 'splits.json')


def test_what_cannot_be_cross_validated_is_one_line(tmp_path):
  config = config_for()
  config.data.fold = 'all'
  with pytest.raises(InputError, match='nothing is held out'):
    crossval.run(config, tmp_path)
  config = config_for()
  config.patch_size = (8, 8, 8)
  with pytest.raises(InputError, match="'phantom', with volumes; for --mode="):
    crossval.run(config, tmp_path / 'volumes')
  for number, folds in ((6, 10), (1, 5)):
    config = config_for()
    config.data.phantom.num_train = number
    config.data.num_folds = folds
    with pytest.raises(InputError, match=f'cannot make {folds} folds'):
      crossval.run(config, tmp_path / str(number))


def test_ties_go_to_the_first_and_to_singles():
  pair = Candidate('a+b', ('a', 'b'), 0.5)
  a, b = Candidate('a', ('a',), 0.5), Candidate('b', ('b',), 0.5)
  none = Candidate('n', ('n',), None)
  assert candidates.choose([pair, none, b, a]) is b
  assert candidates.choose([a, pair._replace(dice=0.6)]).name == 'a+b'
  assert candidates.choose([none]) is none


def test_a_fold_without_foreground_to_train_on_is_named(tmp_path):
  for folder in ('images', 'masks'):
    (tmp_path / 'data' / folder).mkdir(parents=True)
  for i in range(4):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (32, 32)).astype(np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255 * (i == 0)  # in one case alone
    Image.fromarray(image).save(tmp_path / 'data' / 'images' / f'{i}.png')
    Image.fromarray(mask).save(tmp_path / 'data' / 'masks' / f'{i}.png')
  config = config_for()
  config.data.source, config.data.path = 'folder', str(tmp_path / 'data')
  with pytest.raises(InputError, match='no foreground in any of the') as caught:
    crossval.run(config, tmp_path / 'run')
  assert_one_line(caught, 'splits.json, fold ')
  assert not list((tmp_path / 'run').glob('2d/*/checkpoints'))
