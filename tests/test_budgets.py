"""What compiled steps may take (benchmarks/budgets.py), by TPUs' compiler."""

import os
import subprocess
import sys

import pytest
from conftest import HANG_S, ROOT


@pytest.fixture
def budgets(monkeypatch):
  """Returns the module of `budgets.py`."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import budgets

  return budgets


def test_what_is_more_is_named(budgets):
  most = {'kernels': 10, 'bytes moved': 1000, 'convolutions in bfloat16': 4}
  assert not list(budgets.exceeded(most, most))
  assert not list(budgets.exceeded({**most, 'bytes moved': 1009}, most))
  found = {
    'kernels': 11,
    'bytes moved': 1011,
    'convolutions in bfloat16': 3,
    'convolutions in float32': 1,
  }
  assert list(budgets.exceeded(found, most)) == [
    'kernels: 11, where the budget is 10',
    'bytes moved: 1,011, where the budget is 1,000',
    'convolutions in float32: 1, where the budget is 0',
  ]


def test_without_a_compiler_it_says_so(budgets, monkeypatch, capsys):
  reason = "needs the compiler for it: pip install 'jax[tpu]'"
  monkeypatch.setattr(budgets, 'missing', lambda name: reason)
  monkeypatch.setattr(sys, 'argv', ['budgets.py', 'tpu_small'])
  assert budgets.main() == 0
  assert capsys.readouterr().out == f'tpu_small: skipped: {reason}\n'


def test_the_step_of_a_tpu_is_within_its_budget(budgets):
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')
  if reason := budgets.another_version('tpu_small'):
    pytest.skip(reason)
  done = subprocess.run(  # which needs another environment
    [sys.executable, str(ROOT / 'benchmarks' / 'budgets.py'), 'tpu_small'],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stdout + done.stderr
