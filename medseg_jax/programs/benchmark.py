"""How fast this configuration trains and predicts here: `--mode=benchmark`."""

import functools
import importlib.util
import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medseg_jax.benchmarking import (
  machine,
  profile_prediction,
  profile_step,
  sweep,
)
from medseg_jax.benchmarking.flops import count_flops
from medseg_jax.benchmarking.table import least_ms, tables
from medseg_jax.experiment import build, cascade, opening, trained_model
from medseg_jax.experiment.compiled_steps import (
  SECONDS_A_CALL,
  CompiledSteps,
  compile_step,
  compile_steps,
)
from medseg_jax.inference.cases import predict_cases
from medseg_jax.programs.prepare import prepare
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically
from medseg_jax.state import create_state, weights_key
from medseg_jax.training.device_cache import DeviceData

MIN_SECONDS = 1.5  # of each measurement
MIN_STEPS = 3  # of a round of the loop with the data pipeline
ROUNDS = 3  # of steps alone and of the loop, in turn
MOST_READ_AHEAD = 8  # batches that `input_pipeline` may hold
WAITING = 0.1  # share of the time from which on the data are the limit


def run(config: ConfigDict, workdir: pathlib.Path) -> dict:
  """Measures, writes `benchmark.json`, prints tables and, last, that JSON.

  The step is timed alone, on one batch that stays on the devices, end to end,
  with the data, and in its parts; prediction on whole held-out images. Medians.
  What a backend cannot tell, or what needs a missing TensorFlow, is None.
  """
  cascade.refuse(config, '--mode=benchmark')
  config, sources, _ = opening.open_run(config, workdir)
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  print(build.describe_network(config, mesh), flush=True)
  build.check_shapes(config, sources['train'], mesh)
  tx, schedule = build.optimizer_of(config)
  train_step = build.train_step_of(config, model, tx, schedule)
  state = create_state(
    key=weights_key(config.seed),
    **build.state_arguments(config, model, tx, mesh),
  )
  begin = time.perf_counter()
  compiled = compile_step(train_step, state, config, mesh)
  compile_s = time.perf_counter() - begin
  cache = prepare(config, {'train': sources['train']})

  _say('the machine')
  device, dtype = mesh.local_devices[0], jnp.dtype(config.dtype)
  peak = machine.peak_flops_per_s(device, dtype, MIN_SECONDS)
  bandwidth = machine.bytes_per_s(device, MIN_SECONDS)
  _say('the training step')
  batch = sweep.random_batch(config, mesh)
  state, _ = jax.block_until_ready(compiled(state, batch))
  peak_memory = machine.peak_memory(device)
  feed = _loop_steps(train_step, state, cache, config, mesh)
  first = next(feed.data) if feed is not None else None
  data = first if isinstance(first, DeviceData) else None
  state, step_s, loop_s, wait = _time_training(
    compiled, feed, state, batch, from_host=data is None
  )
  _say('the parts of the step')
  parts = profile_step.loading_parts(config, cache, data, mesh, MIN_SECONDS)
  parts |= profile_step.step_parts(
    config, train_step, state, batch, mesh, MIN_SECONDS
  )
  _say('prediction')
  predict_fn = functools.partial(
    trained_model.compile_predict(config, model, mesh, state.eval_variables),
    state.eval_variables,
  )
  source = sources.get('test') or sources.get('val') or sources['train']
  case = source[0]
  count = profile_prediction.cases_at_once(case, config, mesh)
  inference_rate = _inference_rate(predict_fn, case, count, config, mesh)
  inference_parts = profile_prediction.prediction_parts(
    predict_fn, case, count, config, mesh, MIN_SECONDS
  )
  result = {
    'device': device.device_kind,
    'num_devices': mesh.size,
    'dtype': config.dtype,
    'batch_size': config.batch_size,
    'patch_size': list(config.patch_size),
    'compile_s': compile_s,
    'step_ms': step_s * 1e3,
    'images_per_s': config.batch_size / step_s,
    'end_to_end_images_per_s': loop_s and config.batch_size / loop_s,
    'data_wait_frac': wait,
    **_rates(
      step_s,
      flops=_flops_of_step(config, mesh, state, batch),
      num_bytes=_bytes_of_step(compiled, mesh),
      peak=peak * mesh.size,
      bandwidth=bandwidth * mesh.size,
    ),
    'peak_memory_bytes': peak_memory,
    'inference_images_per_s': inference_rate,
    'program_memory_bytes': sweep.memory_bytes(compiled),
    **_breakdown('', parts),
    **_breakdown('inference_', inference_parts),
    **_sweep(config, train_step, state, mesh),
  }
  result |= _limit(result)
  text = json.dumps(result)
  write_atomically(workdir / 'benchmark.json', (text + '\n').encode())
  print(f'\n{tables(result)}\n\n{text}', flush=True)
  return result


def _say(what: str) -> None:
  print(f'measuring {what}', flush=True)


def _time_training(compiled, feed, state, batch, *, from_host):
  """Returns the state after, and medians of what the rounds took.

  Seconds of a step alone, of a step in the loop with data, and its share of
  waiting for them; None where there is no feed. In turn, so that what else the
  machine does falls on both. Batches from the host pile up while the step runs
  alone: they are thrown away, in the one round that there is then.
  """
  alone, loop = [], []
  for _ in range(1 if from_host else ROUNDS):
    state, seconds = _time_steps(compiled, state, batch)
    alone.append(seconds)
    if feed is not None:
      for _ in range(MOST_READ_AHEAD if from_host else 0):
        next(feed.data)
      state, *times = _time_loop(feed, state)
      loop.append(times)
  loop_s, wait = np.median(loop, axis=0).tolist() if loop else (None, None)
  return state, statistics.median(alone), loop_s, wait


def _time_steps(compiled, state, batch):
  """Returns the state after, and the median seconds of a step."""
  state, _ = compiled(state, batch)  # the first call touches its memory

  def once():
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)

  seconds = machine.median_seconds(once, MIN_SECONDS)
  return state, seconds


def _loop_steps(train_step, state, cache, config, mesh) -> CompiledSteps | None:
  """Returns what feeds a training run; None where that needs a TensorFlow."""
  config = ConfigDict(config.to_dict())
  config.num_steps = 1_000_000  # as many as time allows
  try:
    return compile_steps(train_step, state, cache, config, mesh)
  except InputError:
    if importlib.util.find_spec('tensorflow') is not None:
      raise
    if config.data.device_cache == 'on':
      raise
    print('no TensorFlow here: the data pipeline is not measured', flush=True)
    return None


def _time_loop(feed, state):
  """Returns the state after, seconds of a step, and the share of waiting."""
  waited = 0.0

  def call(count):
    nonlocal state, waited
    asked = time.perf_counter()
    data = next(feed.data)
    waited += time.perf_counter() - asked
    state, metrics = feed.advance(state, data, count)
    return metrics

  for _ in range(2):  # the first call touches its memory
    begin = time.perf_counter()
    jax.block_until_ready(call(1))
  seconds = time.perf_counter() - begin
  count = int(np.clip(SECONDS_A_CALL / seconds, 1, feed.max_count))
  begin, steps, waited, metrics = time.perf_counter(), 0, 0.0, None
  while steps < MIN_STEPS or time.perf_counter() - begin < 2 * MIN_SECONDS:
    before, metrics = metrics, call(count)
    jax.block_until_ready(before)  # one call ahead, as in training
    steps += count
  jax.block_until_ready(metrics)
  total = time.perf_counter() - begin
  return state, total / steps, waited / total


def _inference_rate(predict_fn, case, count, config, mesh) -> float:
  """Returns whole images predicted a second, preprocessing included."""
  settings = trained_model.prediction_settings(config, mesh)

  def once():
    for _ in predict_cases(predict_fn, [case] * count, **settings):
      pass

  once()  # compiles
  return count / machine.median_seconds(once, MIN_SECONDS)


def _flops_of_step(config, mesh, state, batch) -> int:
  """Returns the work of a step, without what is computed twice for memory."""
  config = ConfigDict(config.to_dict())
  if 'remat' in config.model:
    config.model.remat = False
  tx, schedule = build.optimizer_of(config)
  model = build.model_of(config, mesh)
  step = build.train_step_of(config, model, tx, schedule)
  return count_flops(step, state, batch)


def _bytes_of_step(compiled, mesh) -> float | None:
  """Returns what the program's operations read and write, caches apart."""
  each = (compiled.cost_analysis() or {}).get('bytes accessed')
  return each * mesh.size if each else None  # counted for one device


def _rates(step_s, *, flops, num_bytes, peak, bandwidth) -> dict[str, Any]:
  """Returns the keys on work, rates and the least time of a step."""
  rate = flops / step_s
  result = {
    'flops_per_step': flops,
    'tflops_per_s': rate / 1e12,
    'peak_tflops_per_s': peak / 1e12,
    'mfu': rate / peak,
    'bytes_per_step': num_bytes,
    'memory_bandwidth_gb_per_s': bandwidth / 1e9,
  }
  least = max(least_ms(result).values())
  return result | {
    'least_step_ms': least,
    'roofline_ratio': least / (1e3 * step_s),
  }


def _breakdown(prefix: str, seconds: dict[str, float]) -> dict[str, Any]:
  total = sum(seconds.values())
  return {
    f'{prefix}breakdown_ms': {k: 1e3 * s for k, s in seconds.items()},
    f'{prefix}breakdown_share': {k: s / total for k, s in seconds.items()},
  }


def _limit(result: dict[str, Any]) -> dict[str, str]:
  """Returns what keeps the training from being faster."""
  if (result['data_wait_frac'] or 0) > WAITING:
    return {'limit': 'data'}
  least = least_ms(result)
  return {'limit': max(least, key=least.get)}


def _sweep(config, train_step, state, mesh) -> dict[str, Any]:
  """Returns the keys of the sweep over batch sizes, None where none is due."""
  keys = (
    'sweep',
    'best_batch_size',
    'largest_batch_size',
    'largest_batch_is_limit',
  )
  if not config.benchmark.sweep_batch:
    return dict.fromkeys(keys)
  _say('batch sizes')
  host = jax.device_get(state)
  jax.tree.map(lambda x: x.delete(), state)  # room for the largest batch
  found = sweep.sweep(config, train_step, host, mesh, MIN_SECONDS)
  rows = [
    {
      'batch_size': row.batch_size,
      'step_ms': 1e3 * row.seconds,
      'images_per_s': row.images_per_s,
      'memory_bytes': row.memory_bytes,
    }
    for row in found.rows
  ]
  return dict(
    zip(keys, (rows, found.best, found.largest, found.limited), strict=True)
  )
