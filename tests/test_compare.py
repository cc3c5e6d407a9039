"""Two results of the same cases: paired differences, and what belongs so."""

import csv
import itertools
import json
import math
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT, ball, disc, write_pairs
from data_cases import assert_one_line
from PIL import Image
from report_cases import NAN, case_record
from scipy import stats
from small import load, shrink, write_untrained
from volume_cases import save

from medseg_jax import main
from medseg_jax.experiment import config_files
from medseg_jax.programs import compare, evaluate
from medseg_jax.report import comparison
from medseg_jax.report.summary import summarize, write_report
from medseg_jax.report.written import read_report
from medseg_jax.runtime.errors import InputError

CLASSES = ('background', 'organ', 'tumour')


def records_of(seed, count=9):
  """Records of cases whose labels are the same whatever the seed."""
  truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
  records = []
  for i in range(count):
    counts = {}
    for name in CLASSES:
      size = 0 if name == 'tumour' and i % 3 == 0 else truth.integers(50, 90)
      tp = rng.integers(size + 1)
      # A tumour that is nowhere has no Dice, in one of the two perhaps.
      fp = rng.integers(20) * (rng.random() < 0.8)
      counts[name] = (int(tp), int(fp), int(size - tp))
    records.append(case_record(f'case_{i}', rng.random(), **counts))
  return records


def p_by_enumeration(differences):
  """The two-sided signed-rank test from all ways to give the ranks signs."""
  d = np.array([x for x in differences if x])
  ranks = stats.rankdata(abs(d))
  seen = min(ranks[d > 0].sum(), ranks[d < 0].sum())
  sums = [
    ranks[np.array(signs)].sum()
    for signs in itertools.product([False, True], repeat=len(d))
  ]
  return min(1.0, 2 * np.mean([total <= seen for total in sums]))


def test_differences_are_paired():
  first, second = records_of(1), records_of(2)
  found = comparison.compare(first, second, CLASSES)
  for name in CLASSES:
    pairs = [
      (a['classes'][name]['dice'], b['classes'][name]['dice'])
      for a, b in zip(first, second, strict=True)
    ]
    pairs = [pair for pair in pairs if not any(map(math.isnan, pair))]
    d = [b - a for a, b in pairs]
    told = found['classes'][name]['dice']
    assert told['n'] == len(pairs)
    assert told['difference'] == pytest.approx(np.mean(d))
    assert told['second'] - told['first'] == pytest.approx(np.mean(d))
    assert told['p_wilcoxon'] == pytest.approx(p_by_enumeration(d))
    assert told['better'] == sum(x > 0 for x in d)
    assert told['worse'] == sum(x < 0 for x in d)
    assert told['better'] + told['worse'] + told['equal'] == len(d)
    expected = stats.bootstrap(
      (d,), np.mean, method='percentile', n_resamples=20_000, rng=1
    ).confidence_interval
    assert told['difference_ci95'] == pytest.approx(expected, abs=0.02)
  assert found['classes']['tumour']['dice']['n'] < len(first)
  mean = found['mean']['dice']
  own = [found['classes'][name]['dice']['difference'] for name in CLASSES[1:]]
  assert mean['difference'] == pytest.approx(np.mean(own))
  assert mean['n'] == len(first)
  accuracy = [
    b['pixel_accuracy'] - a['pixel_accuracy']
    for a, b in zip(first, second, strict=True)
  ]
  told = found['mean']['pixel_accuracy']
  assert told['difference'] == pytest.approx(np.mean(accuracy))
  back = comparison.compare(second, first, CLASSES)['mean']['dice']
  assert back['difference'] == pytest.approx(-mean['difference'])
  assert (back['better'], back['worse']) == (mean['worse'], mean['better'])


def test_of_distances_less_is_better_and_infinite_ones_are_left_out():
  first, second = records_of(1, count=3), records_of(1, count=3)
  for records, lengths in [(first, (3, 2, 9)), (second, (1, 4, math.inf))]:
    for record, length in zip(records, lengths, strict=True):
      for values in record['classes'].values():
        values |= dict(
          hausdorff_95=length, average_surface_distance=NAN, surface_dice=0.5
        )
  found = comparison.compare(first, second, CLASSES)
  told = found['classes']['organ']['hausdorff_95']
  assert (told['better'], told['worse'], told['n']) == (1, 1, 2)
  assert told['first'] == 2.5 and told['difference'] == 0.0
  nowhere = found['mean']['average_surface_distance']
  assert nowhere['difference'] is None and nowhere['n'] == 0
  equal = found['mean']['surface_dice']
  assert equal['equal'] == 3 and equal['p_wilcoxon'] is None
  json.dumps(found, allow_nan=False)


def test_a_difference_is_told_where_interval_and_test_agree():
  told = dict(difference=-0.1, difference_ci95=[-0.2, -0.01], p_wilcoxon=0.01)
  assert 'worse by 0.1000' in comparison.verdict(told)
  told |= dict(difference=0.1, difference_ci95=[0.05, 0.2])
  assert 'better by 0.1000' in comparison.verdict(told)
  for unsure in (
    dict(difference_ci95=[-0.1, 0.2]),
    dict(difference_ci95=None),
    dict(p_wilcoxon=None),
    dict(p_wilcoxon=0.06),
  ):
    assert 'no difference' in comparison.verdict(told | unsure)


def write(folder, records):
  summary = summarize(records, CLASSES, split='val', step=7)
  write_report(folder, summary, records)
  return folder


def test_a_report_is_read_as_it_was_written(tmp_path):
  records = records_of(3)
  records[2]['roi'] = {k: records[4][k] for k in ('pixel_accuracy', 'classes')}
  summary, found = read_report(write(tmp_path, records))
  assert summary['step'] == 7
  np.testing.assert_equal(found, records)


def test_what_changed_most_comes_first(tmp_path, capsys):
  first, second = records_of(1), records_of(2)
  runs = [write(tmp_path / x, r) for x, r in [('a', first), ('b', second)]]
  found = compare.run(tmp_path / 'out', runs=runs)
  changed = [abs(row['difference']) for row in found['changes']]
  assert changed == sorted(changed, reverse=True) and len(changed) == 9
  assert json.loads((tmp_path / 'out/comparison.json').read_text()) == found
  with open(tmp_path / 'out/comparison.csv') as file:
    rows = {(row['case'], row['class']): row for row in csv.DictReader(file)}
  assert len(rows) == 27
  for a, b in zip(first, second, strict=True):
    for name in CLASSES:
      row = rows[a['case'], name]
      for key, record in [('dice_first', a), ('dice_second', b)]:
        dice = record['classes'][name]['dice']
        assert (row[key] == '') if math.isnan(dice) else float(row[key]) == dice
  out = capsys.readouterr().out
  assert 'foreground mean' in out and 'no pictures' in out


def test_other_cases_and_classes_are_told(tmp_path, capsys):
  first, second = records_of(1), records_of(2)[2:]
  for record in first:
    record['classes']['vessel'] = record['classes']['organ']
  summary = summarize(first, [*CLASSES, 'vessel'], split='val', step=1)
  write_report(tmp_path / 'a', summary, first)
  runs = [tmp_path / 'a', write(tmp_path / 'b', second)]
  found = compare.run(tmp_path / 'out', runs=runs)
  assert found['only_first'] == ['case_0', 'case_1']
  assert set(found['classes']) == set(CLASSES) and found['num_cases'] == 7
  told = capsys.readouterr()
  told = told.out + told.err
  assert 'case_0, case_1' in told and 'vessel' in told


def test_what_cannot_be_compared_is_one_line(tmp_path):
  first, second = records_of(1), records_of(2)
  a, b = write(tmp_path / 'a', first), write(tmp_path / 'b', second)
  with pytest.raises(InputError, match='needs either --runs') as error:
    compare.run(tmp_path / 'out')
  assert_one_line(error)
  with pytest.raises(InputError, match='needs --labels'):
    compare.run(tmp_path / 'out', predictions=[a, b])
  with pytest.raises(InputError, match='evaluation/test or .*val'):
    compare.run(tmp_path / 'out', runs=[tmp_path, b])
  second[4]['classes']['organ']['fn'] += 1
  write(b, second)
  with pytest.raises(InputError, match='case_4 was not scored .* organ has'):
    compare.run(tmp_path / 'out', runs=[a, b])
  for record in second:
    record['case'] += 'x'
  write(b, second)
  with pytest.raises(InputError, match='no case in common'):
    compare.run(tmp_path / 'out', runs=[a, b])
  (b / 'cases.csv').write_text('case,class,region\ncase_1,organ,image\n')
  with pytest.raises(InputError, match='cases.csv: not a report'):
    compare.run(tmp_path / 'out', runs=[a, b])


def test_another_comparison_is_kept(tmp_path):
  a, b, c = (write(tmp_path / x, records_of(i)) for i, x in enumerate('abc'))
  compare.run(tmp_path / 'out', runs=[a, b])
  compare.run(tmp_path / 'out', runs=[a, b])
  before = (tmp_path / 'out/comparison.json').read_bytes()
  with pytest.raises(InputError, match='not of these two'):
    compare.run(tmp_path / 'out', runs=[a, c])
  assert (tmp_path / 'out/comparison.json').read_bytes() == before
  compare.run(tmp_path / 'out', runs=[a, c], overwrite=True)
  assert (tmp_path / 'out/comparison.json').read_bytes() != before


@pytest.mark.parametrize('kind', ['images', 'volumes'])
def test_two_folders_of_masks(kind, tmp_path, monkeypatch, capsys):
  for i in range(7):
    truth = disc(40, i) if kind == 'images' else ball((12, 13, 14), i)
    for folder, shift in [('true', 0), ('good', 1), ('bad', 1 + i)]:
      mask = np.roll(truth, shift, axis=0)
      (tmp_path / folder).mkdir(exist_ok=True)
      if kind == 'images':
        Image.fromarray(mask).save(tmp_path / folder / f'c{i}.png')
      else:
        path = tmp_path / folder / f'c{i}.nii.gz'
        save(path, mask.astype(np.uint8))
  monkeypatch.chdir(tmp_path)
  args = ['--predictions=good,bad', '--labels=true', '--output=out']
  monkeypatch.setattr(sys, 'argv', ['main', '--mode=compare', *args])
  assert main.main() == 0
  out = capsys.readouterr().out
  assert 'B is worse by' in out
  found = json.loads((tmp_path / 'out/comparison.json').read_text())
  assert found['mean']['dice']['worse'] == 6
  assert found['changes'][0]['case'] != 'c0'
  pictures = sorted((tmp_path / 'out/panels').iterdir())
  assert len(pictures) == compare.NUM_PICTURES
  assert all(np.asarray(Image.open(path)).std() > 0 for path in pictures)


def test_workdirs_are_predicted_again_for_the_pictures(tmp_path, capsys):
  write_pairs(tmp_path / 'data', 8)
  runs = []
  for seed in range(2):
    config = shrink(load('unet'), path=tmp_path / 'data')
    config.data.source, config.model.features = 'folder', 4 + seed
    runs.append(tmp_path / f'run{seed}')
    write_untrained(config, runs[-1])
    evaluate.run(config_files.read_config(runs[-1]), runs[-1])
  capsys.readouterr()
  found = compare.run(tmp_path / 'out', runs=runs)
  assert found['num_cases'] and 'pictures' in capsys.readouterr().out
  assert list((tmp_path / 'out/panels').iterdir())
  shutil.rmtree(tmp_path / 'data')  # the numbers need no data
  again = compare.run(tmp_path / 'out', runs=runs)
  assert again == found
  assert 'warning   no pictures' in capsys.readouterr().out


@pytest.mark.parametrize(
  'args, words',
  [
    (['--runs=a'], '--runs=a: allowed are two folders'),
    (['--runs=a,b,c'], '--runs=a,b,c: allowed are two folders'),
    ([], 'needs either --runs=A,B'),
    (['--runs=a,b', '--config=configs/unet.py'], 'needs no model'),
  ],
)
def test_wrong_flags_are_one_line(args, words, refused, tmp_path):
  assert (ROOT / 'configs').exists()
  line = refused('--mode=compare', f'--output={tmp_path}', *args)
  assert words in line and line.count('\n') == 1
