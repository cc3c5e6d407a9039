"""The benchmark: its search for a batch size, its tables and a true run."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import BENCHMARK_KEYS, load, shrink

from medseg_jax.benchmarking import machine, sweep
from medseg_jax.benchmarking.sweep import Row
from medseg_jax.benchmarking.table import tables
from medseg_jax.experiment.compiled_steps import CompiledSteps
from medseg_jax.programs import benchmark
from medseg_jax.runtime.sharding import create_mesh


def model_of_a_device(limit, *, each=10, fixed=50, best=64, seconds=None):
  """Returns an attempt, and the list of (size, whether measured) it saw."""
  asked = []

  def attempt(batch_size, measure):
    asked.append((batch_size, measure))
    memory = fixed + each * batch_size
    if memory > limit:
      return None
    # The rate rises up to `best` and falls beyond.
    rate = min(batch_size, best) * min(1, best / batch_size)
    took = seconds or batch_size / rate
    return Row(batch_size, took if measure else None, memory)

  return attempt, asked


@pytest.mark.parametrize('told', [True, False])
@pytest.mark.parametrize('limit', [60, 69, 70, 475, 5000, 123456])
def test_search_finds_the_largest_that_fits(limit, told):
  attempt, asked = model_of_a_device(limit)
  found = sweep.search(attempt, 1, limit if told else None)
  largest = (limit - 50) // 10
  assert largest * 31 / 32 - 1 <= found.largest <= largest
  assert found.limited
  assert len(asked) <= (13 if told else 22)
  assert found.best == min(64, 2 ** int(np.log2(largest)))
  sizes = [row.batch_size for row in found.rows]
  assert sizes == [2**i for i in range(len(sizes))]
  # 64 is the best; 128 and 256 are slower, and nothing beyond is measured.
  assert max(sizes) <= 256
  assert [size for size, measured in asked if measured][: len(sizes)] == sizes


def test_search_takes_multiples_that_the_devices_share():
  attempt, asked = model_of_a_device(5000)
  found = sweep.search(attempt, 8, 5000)
  assert all(size % 8 == 0 for size, _ in asked)
  assert found.largest == 488
  assert found.rows[0].batch_size == 8


def test_search_where_nothing_fits_or_nothing_ends_it():
  attempt, _ = model_of_a_device(10)
  assert sweep.search(attempt, 4, 10) == ([], None, None, True)
  attempt, asked = model_of_a_device(10**12, best=10**9)
  found = sweep.search(attempt, 2, None, most_doublings=5)
  assert (found.best, found.largest, found.limited) == (64, 64, False)
  assert [size for size, _ in asked] == [2, 4, 8, 16, 32, 64]


def test_search_measures_no_endless_steps():
  attempt, asked = model_of_a_device(5000, seconds=11.0)
  found = sweep.search(attempt, 1, 5000)
  assert [size for size, measured in asked if measured] == [1]
  assert len(found.rows) == 1 and found.largest > 16


def test_sweep_takes_only_a_full_device_for_too_large(monkeypatch, capsys):
  config = load('unet')
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:2]).reshape(2, 1), ('data', 'spatial')
  )
  problem = 'RESOURCE_EXHAUSTED: Out of memory'

  def attempt(config, train_step, state, mesh, limit, min_seconds, measure):
    if config.batch_size > 4:
      raise jax.errors.JaxRuntimeError(problem)
    return Row(config.batch_size, 1.0, None)

  monkeypatch.setattr(sweep, '_attempt', attempt)
  found = sweep.sweep(config, None, None, mesh, 0.1)
  assert [row.batch_size for row in found.rows] == [2, 4]
  assert (found.best, found.largest, found.limited) == (4, 4, True)
  assert 'batch     8: does not fit' in capsys.readouterr().out
  problem = 'INTERNAL: something else'
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    sweep.sweep(config, None, None, mesh, 0.1)


def test_memory_of_a_program_is_that_of_its_arrays():
  x = jnp.zeros((256, 256), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  assert sweep.memory_bytes(add.lower(x).compile()) == 2 * x.nbytes
  donated = jax.jit(lambda x: x + 1, donate_argnums=0)
  assert sweep.memory_bytes(donated.lower(x).compile()) == x.nbytes


def test_median_seconds_calls_slow_functions_less_often(monkeypatch):
  clock = iter(np.arange(0, 1000, 5.0))
  monkeypatch.setattr(machine.time, 'perf_counter', lambda: next(clock))
  calls = []
  assert machine.median_seconds(lambda: calls.append(0), 1.0) == 5.0
  assert len(calls) == 1
  assert machine.median_seconds(lambda: calls.append(0), 2.0) == 5.0
  assert len(calls) == 3  # 1 and 2 calls
  machine.median_seconds(lambda: calls.append(0), 23.0)
  assert len(calls) == 8


def test_rates_are_plausible():
  device, dtype = jax.devices()[1], jnp.dtype('float32')
  assert 1e8 < machine.peak_flops_per_s(device, dtype, 0.01) < 1e14
  assert 1e8 < machine.bytes_per_s(device, 0.01) < 1e12
  free = machine.free_memory(create_mesh())
  assert free is None or free > 2**20


def small_config():
  config = shrink(load('unet'))
  config.augment.noise_prob = 0.2
  return config


def check(result, output, workdir):
  assert json.loads(output.splitlines()[-1]) == result
  assert result == json.loads((workdir / 'benchmark.json').read_text())
  assert set(result) >= BENCHMARK_KEYS
  assert max(map(len, tables(result).splitlines())) <= 80
  assert tables(result) in output


def example(**changes):
  """Returns results with long names and large numbers."""
  result = dict.fromkeys(BENCHMARK_KEYS) | {
    'device': 'NVIDIA H100 80GB HBM3',
    'num_devices': 8,
    'dtype': 'bfloat16',
    'batch_size': 1024,
    'patch_size': [128, 128, 128],
    'step_ms': 12345.6,
    'images_per_s': 82.9,
    'end_to_end_images_per_s': 50.0,
    'data_wait_frac': 0.4,
    'flops_per_step': 2e15,
    'tflops_per_s': 162.0,
    'peak_tflops_per_s': 6000.0,
    'mfu': 0.027,
    'bytes_per_step': 5e12,
    'memory_bandwidth_gb_per_s': 20000.0,
    'roofline_ratio': 0.027,
    'breakdown_ms': {
      'reading': 1.0,
      'host_to_device': 0.0,
      'augmentation': 10000.0,
    },
    'breakdown_share': {
      'reading': 0.0001,
      'host_to_device': 0.0,
      'augmentation': 0.9999,
    },
    'inference_breakdown_ms': {'network': 12345.0},
    'inference_breakdown_share': {'network': 1.0},
    'inference_images_per_s': 0.081,
    'program_memory_bytes': None,
    'sweep': None,
    'limit': 'compute',
  }
  return result | changes


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({}, 'compute: the step takes 37 times'),
    ({'program_memory_bytes': 123456789012}, '123.46 GB'),
    ({'limit': 'data'}, 'limited by data'),
    ({'limit': 'memory'}, 'its memory traffic'),
    ({'end_to_end_images_per_s': None, 'data_wait_frac': None}, 'compute'),
    ({'bytes_per_step': None}, 'least time, arithmetic'),
    (
      {
        'sweep': [
          {
            'batch_size': 65536,
            'step_ms': 123456.7,
            'images_per_s': 12345.6,
            'memory_bytes': 123456789012,
          }
        ],
        'best_batch_size': 65536,
        'largest_batch_size': 65536,
        'largest_batch_is_limit': False,
      },
      'fit: 65536, and larger ones may',
    ),
  ],
)
def test_tables_fit_a_terminal(changes, expected):
  text = tables(example(**changes))
  assert expected in text
  assert max(map(len, text.splitlines())) <= 80
  assert 'host to device' not in text


def test_batches_that_piled_up_do_not_hide_slow_data(monkeypatch):
  monkeypatch.setattr(benchmark, 'MIN_SECONDS', 1e-9)
  taken, seen = iter(range(10**6)), []

  def advance(state, data, count):
    seen.append(data)
    return state, {}

  def run(from_host):
    return benchmark._time_training(
      lambda state, batch: (state, {}),
      CompiledSteps(taken, advance, 1),
      0,
      {},
      from_host=from_host,
    )

  state, step_s, loop_s, wait = run(from_host=True)
  assert state == 0 and step_s >= 0 and loop_s > 0 and 0 <= wait <= 1
  assert min(seen) == benchmark.MOST_READ_AHEAD
  assert len(seen) == 2 + benchmark.MIN_STEPS  # one round
  seen.clear()
  run(from_host=False)
  assert len(seen) == benchmark.ROUNDS * (2 + benchmark.MIN_STEPS)
  assert np.all(np.diff(seen) == 1)  # none is thrown away


def test_what_limits_is_the_longest_wait():
  def limit(**changes):
    return benchmark._limit(example(**changes))['limit']

  # 333 ms of arithmetic, 250 ms of memory traffic.
  assert limit(data_wait_frac=0.05) == limit(data_wait_frac=None) == 'compute'
  assert limit(data_wait_frac=0.05, bytes_per_step=8e12) == 'memory'
  assert limit(data_wait_frac=0.05, bytes_per_step=None) == 'compute'
  assert limit() == 'data'


def count_rounds(monkeypatch):
  """Returns a list that grows with every round of the loop."""
  rounds, time_loop = [], benchmark._time_loop
  monkeypatch.setattr(
    benchmark, '_time_loop', lambda *args: rounds.append(0) or time_loop(*args)
  )
  return rounds


def test_a_run_measures_everything(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(benchmark, 'MIN_SECONDS', 0.02)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  config = small_config()
  config.benchmark.sweep_batch = True
  rounds = count_rounds(monkeypatch)
  search = sweep.search
  monkeypatch.setattr(
    sweep, 'search', lambda *args: search(*args, most_doublings=0)
  )
  result = benchmark.run(config, tmp_path)
  check(result, capsys.readouterr().out, tmp_path)

  assert len(rounds) == benchmark.ROUNDS
  assert result['end_to_end_images_per_s'] > 0
  assert 0 <= result['data_wait_frac'] <= 1
  assert result['images_per_s'] == pytest.approx(8e3 / result['step_ms'])
  assert result['mfu'] == pytest.approx(
    result['tflops_per_s'] / result['peak_tflops_per_s']
  )
  least = max(
    result['flops_per_step'] / result['peak_tflops_per_s'] / 1e9,
    result['bytes_per_step'] / result['memory_bandwidth_gb_per_s'] / 1e6,
  )
  assert result['least_step_ms'] == pytest.approx(least)
  assert result['roofline_ratio'] == pytest.approx(least / result['step_ms'])
  for name, parts in [
    (
      '',
      {
        'reading',
        'host_to_device',
        'augmentation',
        'forward',
        'backward',
        'optimizer',
      },
    ),
    ('inference_', {'preprocessing', 'network', 'stitching', 'decoding'}),
  ]:
    times = result[f'{name}breakdown_ms']
    shares = result[f'{name}breakdown_share']
    assert set(times) == set(shares) == parts
    assert sum(shares.values()) == pytest.approx(1)
    assert all(value >= 0 for value in times.values())
  assert result['breakdown_ms']['forward'] > 0
  assert result['inference_breakdown_ms']['network'] > 0
  rows = result['sweep']
  assert [row['batch_size'] for row in rows] == [1]
  assert rows[0]['memory_bytes'] < result['program_memory_bytes']  # of 8
  assert result['best_batch_size'] == result['largest_batch_size'] == 1


def test_eight_devices_fed_by_the_host(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(benchmark, 'MIN_SECONDS', 0.02)
  config = small_config()
  config.data.device_cache = 'off'
  rounds = count_rounds(monkeypatch)
  result = benchmark.run(config, tmp_path)
  check(result, capsys.readouterr().out, tmp_path)
  assert result['num_devices'] == 8
  assert result['breakdown_ms']['host_to_device'] > 0
  assert result['sweep'] is None and result['best_batch_size'] is None
  # TensorFlow reads for the loop, and nothing else.
  has_tensorflow = importlib.util.find_spec('tensorflow') is not None
  assert (result['end_to_end_images_per_s'] is not None) == has_tensorflow
  # A second one would live on batches read while the step ran alone.
  assert len(rounds) == has_tensorflow
