"""How fast this configuration trains and predicts here: `--mode=benchmark`."""

import functools
import importlib.util
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from medseg_jax import experiment, predictor, segment, sharding, train
from medseg_jax.files import write_atomically
from medseg_jax.input_pipeline import create_batches
from medseg_jax.prepare import prepare
from medseg_jax.state import create_state

MIN_SECONDS = 5.0  # of each measurement
MIN_ROUNDS = 3


def run(config: ConfigDict, workdir: pathlib.Path) -> dict:
  """Measures, writes `benchmark.json`, prints it as the last line.

  The step is timed alone, on one batch that stays on the devices, and end to
  end, with the data pipeline; prediction on whole held-out images. Medians.
  What a backend cannot tell, or what needs a missing TensorFlow, is None.
  """
  config, sources = experiment.open_run(config, workdir)
  mesh, model = experiment.mesh_of(config), experiment.model_of(config)
  experiment.check_shapes(config, sources['train'], mesh)
  tx, schedule = experiment.optimizer_of(config)
  train_step = train.step_of(config, model, tx, schedule)
  state = create_state(
    key=jax.random.key(config.seed),
    **experiment.state_arguments(config, model, tx, mesh),
  )
  begin = time.perf_counter()
  compiled = train.compile_step(train_step, state, config, mesh)
  compile_s = time.perf_counter() - begin

  state, step_s = _time_steps(compiled, state, _fixed_batch(config, mesh))
  peak_memory = _peak_memory()
  state, end_to_end, wait = _time_loop(compiled, state, sources, config, mesh)
  predict_fn = predictor.compile_predict(
    config, model, mesh, state.eval_variables
  )
  inference_rate = _inference_rate(
    functools.partial(predict_fn, state.eval_variables), sources, config, mesh
  )
  flops = (compiled.cost_analysis() or {}).get('flops')
  if flops:
    flops *= mesh.size  # the compiler counts those of one device
  peak = peak_flops_per_s(jnp.dtype(config.dtype)) * mesh.size
  rate = flops / step_s if flops else None
  result = {
    'device': jax.devices()[0].device_kind,
    'num_devices': mesh.size,
    'dtype': config.dtype,
    'batch_size': config.batch_size,
    'patch_size': list(config.patch_size),
    'compile_s': compile_s,
    'step_ms': step_s * 1e3,
    'images_per_s': config.batch_size / step_s,
    'end_to_end_images_per_s': end_to_end,
    'data_wait_frac': wait,
    'flops_per_step': flops,
    'tflops_per_s': rate and rate / 1e12,
    'peak_tflops_per_s': peak / 1e12,
    'mfu': rate and rate / peak,
    'peak_memory_bytes': peak_memory,
    'inference_images_per_s': inference_rate,
  }
  text = json.dumps(result)
  write_atomically(workdir / 'benchmark.json', (text + '\n').encode())
  print(text, flush=True)
  return result


def _fixed_batch(config: ConfigDict, mesh) -> dict[str, jax.Array]:
  """Returns a random batch on the devices, of the config's shape."""
  rng = np.random.default_rng(config.seed)
  patches = experiment.patch_settings(config)
  shape = (patches['batch_size'], *patches['read_size'])
  layout = sharding.patches(mesh)
  image = rng.standard_normal((*shape, config.data.channels))
  label = rng.integers(0, len(config.data.classes), shape)
  return {
    'image': sharding.to_devices(layout, image.astype(np.float16)),
    'label': sharding.to_devices(layout, label.astype(np.int16)),
  }


def _time_steps(compiled, state, batch):
  """Returns the state after, and the median seconds of a step."""
  state, _ = compiled(state, batch)  # the first call touches its memory

  def once():
    nonlocal state
    state, metrics = compiled(state, batch)
    jax.block_until_ready(metrics)

  seconds = _median_seconds(once)
  return state, seconds


def _time_loop(compiled, state, sources, config, mesh):
  """Returns the state after, images a second, and the share of waiting."""
  if importlib.util.find_spec('tensorflow') is None:
    print('no TensorFlow here: the data pipeline is not measured', flush=True)
    return state, None, None
  batches = create_batches(
    prepare(config, {'train': sources['train']}),
    seed=config.seed,
    first_step=0,
    num_steps=1_000_000,
    mesh=mesh,
    **experiment.patch_settings(config),
  )
  state, metrics = compiled(state, next(batches))
  jax.block_until_ready(metrics)
  begin, steps, waited = time.perf_counter(), 0, 0.0
  while steps < MIN_ROUNDS or time.perf_counter() - begin < MIN_SECONDS:
    before = metrics
    asked = time.perf_counter()
    batch = next(batches)
    waited += time.perf_counter() - asked
    state, metrics = compiled(state, batch)
    jax.block_until_ready(before)  # one step ahead, as in training
    steps += 1
  jax.block_until_ready(metrics)
  total = time.perf_counter() - begin
  return state, steps * config.batch_size / total, waited / total


def _inference_rate(predict_fn, sources, config, mesh) -> float:
  """Returns whole images predicted a second, preprocessing included."""
  source = sources.get('test') or sources.get('val') or sources['train']
  case = source[0]
  settings = predictor.prediction_settings(config, mesh)
  count = settings['batch_size']

  def once():
    for _ in segment.predict_cases(predict_fn, [case] * count, **settings):
      pass

  once()  # compiles
  return count / _median_seconds(once)


def peak_flops_per_s(dtype: jnp.dtype, size: int = 4096) -> float:
  """Returns the measured rate of a large matrix product on one device."""
  if jax.default_backend() == 'cpu':
    size = 2048
  a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  product = jax.jit(lambda a: a @ a)
  jax.block_until_ready(product(a))
  seconds = _median_seconds(lambda: jax.block_until_ready(product(a)), 1.0)
  return 2 * size**3 / seconds


def _median_seconds(
  once: Callable[[], None], min_seconds: float | None = None
) -> float:
  min_seconds = MIN_SECONDS if min_seconds is None else min_seconds
  times = []
  while len(times) < MIN_ROUNDS or sum(times) < min_seconds:
    begin = time.perf_counter()
    once()
    times.append(time.perf_counter() - begin)
  return statistics.median(times)


def _peak_memory() -> int | None:
  """Returns the most bytes in use on one device, None where not told."""
  stats = jax.devices()[0].memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None
