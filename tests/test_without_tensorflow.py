"""Everything runs where TensorFlow cannot be imported, training, too."""

import json
import subprocess
import sys

import pytest
from conftest import HANG_S, ROOT
from PIL import Image
from small import BENCHMARK_KEYS, load, shrink

from medseg_jax.programs import train

BLOCKER = """
import sys
for name in ('tensorflow', 'tensorflow_datasets'):
  sys.modules[name] = None
sys.path += [{tests!r}, {root!r}]
import jax
jax.config.update('jax_platforms', 'cpu')
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: (
  None if name.startswith('tensorflow') else real(name, *rest))
"""


def run(code):
  head = BLOCKER.format(tests=str(ROOT / 'tests'), root=str(ROOT))
  done = subprocess.run(
    [sys.executable, '-c', head + code],
    cwd=ROOT,
    timeout=HANG_S,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.mark.parametrize(
  'module', ['losses', 'metrics', 'surface', 'augment', 'models', 'inference']
)
def test_libraries(module):
  assert run(f'import medseg_jax.{module}; print("fine")') == 'fine\n'


def test_evaluate_predict_and_benchmark(tmp_path):
  config = shrink(load('unet'), num_steps=2)
  config.mesh.data = 8
  workdir = tmp_path / 'run'
  train.run(config, workdir)
  (tmp_path / 'in').mkdir()
  Image.new('L', (20, 30)).save(tmp_path / 'in' / 'scan.png')
  output = run(f"""
import pathlib
from medseg_jax.programs import (benchmark, evaluate, predict)
from medseg_jax.experiment import config_files
benchmark.MIN_SECONDS = 0.1
workdir = pathlib.Path({str(workdir)!r})
folder = pathlib.Path({str(tmp_path)!r})
config = config_files.read_config(workdir)
config.mesh.data = -1
summary = evaluate.run(config, workdir)
assert summary['num_cases'] == 5, summary
predict.run(
  config, workdir, input_path=folder / 'in', output_dir=folder / 'out'
)
config.data.device_cache = 'off'
benchmark.run(config, workdir)
""")
  assert (tmp_path / 'out' / 'scan.png').exists()
  result = json.loads(output.splitlines()[-1])
  assert result == json.loads((workdir / 'benchmark.json').read_text())
  assert set(result) >= BENCHMARK_KEYS
  assert result['end_to_end_images_per_s'] is None  # that is tf.data's part
  for key in ('step_ms', 'images_per_s', 'mfu', 'inference_images_per_s'):
    assert result[key] > 0, key


def test_training(tmp_path):
  output = run(f"""
import pathlib
from small import load, shrink
from medseg_jax.programs import train
from medseg_jax.runtime.errors import InputError
config = shrink(load('unet'), num_steps=2)
folder = pathlib.Path({str(tmp_path)!r})
assert train.run(config, folder / 'run')['step'] == 2
config.data.device_cache = 'off'
try:
  train.run(config, folder / 'other')
except InputError as error:
  print(error)
""")
  assert 'from the data set on the device' in output
  assert output.splitlines()[-1] == (
    'TensorFlow is not installed; it reads the batches where the data set '
    'does not lie on the device (config.data.device_cache)'
  )
