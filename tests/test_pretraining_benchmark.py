"""What benchmarks/pretraining.py makes of the scores, and who is scored."""

import argparse
import json
import sys

import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import pretraining

  yield pretraining
  sys.modules.pop('pretraining')


def test_dice_of_a_case_is_that_of_the_classes_that_it_has(benchmark, tmp_path):
  folder = tmp_path / 'evaluation' / 'val'
  folder.mkdir(parents=True)
  (folder / 'cases.csv').write_text(
    'case,class,dice\na,background,1\na,front,0.5\na,back,0.9\n'
    'b,front,\nb,back,0.25\nc,front,\nc,back,\n'
  )
  assert benchmark.dice_of(tmp_path) == pytest.approx({'a': 0.7, 'b': 0.25})


def test_differences_are_paired_and_their_interval_is_of_seeds_and_cases(
  benchmark,
):
  rng = np.random.default_rng(1)
  scratch = rng.uniform(0.2, 0.9, (3, 40))  # cases differ much, ...
  shift = np.array([0.01, 0.03, 0.02])[:, None]
  gap = shift + rng.normal(0, 0.02, scratch.shape)  # ... and the arms little
  pairs = [
    (
      {f'case {i}': float(v) for i, v in enumerate(a + g)},
      {f'case {i}': float(v) for i, v in enumerate(a)} | {'alone': 0.1},
    )
    for a, g in zip(scratch, gap, strict=True)
  ]
  mean, (low, high) = benchmark.difference(pairs)
  assert mean == pytest.approx(gap.mean())
  # The variance of a mean over drawn rows and columns, and 1.96 of it.
  rows, columns = gap.mean(1), gap.mean(0)
  rest = gap - rows[:, None] - columns + gap.mean()
  error = np.sqrt(rows.var() / 3 + columns.var() / 40 + rest.var() / 120)
  assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.12)
  same, interval = benchmark.difference([(pairs[0][1], pairs[0][1])])
  assert (same, interval) == (0, [0, 0])


def test_nobody_trains_on_what_is_scored(benchmark, tmp_path):
  names = [f'case_{i:02d}' for i in range(20)]
  (tmp_path / 'imagesTr').mkdir()
  for name in names:
    (tmp_path / 'imagesTr' / f'{name}.nii.gz').write_text('')
  args = argparse.Namespace(data=tmp_path, scored=3)
  scored, held_out = benchmark.scored_cases(args)
  assert len(scored) == 3 and set(scored) < set(held_out)
  assert len(held_out) == 4 and set(held_out) < set(names)


def test_runs_of_other_lengths_do_not_mix(benchmark, tmp_path):
  args = argparse.Namespace(
    data=tmp_path, out=tmp_path / 'out', steps=5, pretrain_steps=5, scored=3,
    labelled=(1, 2),
  )  # fmt: skip
  benchmark.hold_settings(args)
  args.labelled = (2,)
  benchmark.hold_settings(args)
  args.steps = 6
  with pytest.raises(SystemExit, match='another --out'):
    benchmark.hold_settings(args)
  held = json.loads((tmp_path / 'out' / 'settings.json').read_text())
  assert held['steps'] == 5
