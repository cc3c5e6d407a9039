"""Everything runs where TensorFlow cannot be imported, training, too."""

import json
import subprocess
import sys

from conftest import HANG_S, ROOT
from PIL import Image
from small import BENCHMARK_KEYS

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


def test_libraries():
  modules = ('losses', 'metrics', 'surface', 'augment', 'models', 'inference')
  names = ', '.join(f'medseg_jax.{module}' for module in modules)
  assert run(f'import {names}; print("fine")') == 'fine\n'


def test_train_evaluate_predict_and_benchmark(tmp_path):
  workdir = tmp_path / 'run'
  (tmp_path / 'in').mkdir()
  Image.new('L', (20, 30)).save(tmp_path / 'in' / 'scan.png')
  output = run(f"""
import pathlib
from small import load, shrink
from medseg_jax.programs import (benchmark, evaluate, predict, train)
from medseg_jax.experiment import config_files
from medseg_jax.runtime.errors import InputError
benchmark.MIN_SECONDS = 0.1
workdir = pathlib.Path({str(workdir)!r})
folder = pathlib.Path({str(tmp_path)!r})
config = shrink(load('unet'), num_steps=2)
assert train.run(config, workdir)['step'] == 2
config.data.device_cache = 'off'
try:
  train.run(config, folder / 'other')
except InputError as error:
  print(error)
config = config_files.read_config(workdir)
summary = evaluate.run(config, workdir)
assert summary['num_cases'] == 5, summary
predict.run(
  config, workdir, input_path=folder / 'in', output_dir=folder / 'out'
)
config.data.device_cache = 'off'
benchmark.run(config, workdir)
""")
  assert 'from the data set on the device' in output
  assert (
    'TensorFlow is not installed; it reads the batches where the data set '
    'does not lie on the device (config.data.device_cache)'
  ) in output.splitlines()
  assert (tmp_path / 'out' / 'scan.png').exists()
  result = json.loads(output.splitlines()[-1])
  assert result == json.loads((workdir / 'benchmark.json').read_text())
  assert set(result) >= BENCHMARK_KEYS
  assert result['end_to_end_images_per_s'] is None  # that is tf.data's part
  for key in ('step_ms', 'images_per_s', 'mfu', 'inference_images_per_s'):
    assert result[key] > 0, key
