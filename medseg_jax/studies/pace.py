"""What training and prediction of a configuration take on this machine."""

import functools
import math
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import (
  build,
  cascade,
  opening,
  patch_growth,
  trained_model,
)
from medseg_jax.experiment import sources as experiment_sources
from medseg_jax.experiment.compiled_steps import (
  SECONDS_A_CALL,
  CompiledSteps,
  compile_steps,
)
from medseg_jax.inference.cases import predict_cases
from medseg_jax.programs import evaluate
from medseg_jax.programs.prepare import prepare
from medseg_jax.runtime import multihost, sharding
from medseg_jax.state import TrainState, create_state, weights_key
from medseg_jax.studies.time_budget import Pace
from medseg_jax.training.device_cache import DeviceData

LEAST_CALLS = 5  # of the compiled steps
READ_AHEAD = 8  # batches that `input_pipeline` may hold before the first step
CASES = 3  # that are predicted


def measure(
  config: ConfigDict, workdir: pathlib.Path, *, seconds: float
) -> Pace:
  """Returns the pace, from random weights that are thrown away.

  Preprocesses what is not in the cache yet, which is no part of the pace. Of
  several processes all call it, and all get the same.

  Args:
    config: as the user has it.
    workdir: of a training, laid out; nothing is written there.
    seconds: what the timed steps take about, at least five calls.

  Raises:
    InputError: as when it trains.
  """
  begin = time.perf_counter()
  config, sources, _ = opening.open_run(config, workdir)
  setup = time.perf_counter() - begin
  cache = prepare(config, sources)
  begin = time.perf_counter()
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  build.check_shapes(config, sources['train'], mesh)
  build.check_statistics(config, model)
  tx, schedule = build.optimizer_of(config)
  state = create_state(
    key=weights_key(config.seed),
    **build.state_arguments(config, model, tx, mesh),
  )
  own_mesh = sharding.own_part(mesh)
  variables = sharding.local_copy(state.eval_variables, own_mesh)
  predict_fn = trained_model.compile_predict(config, model, own_mesh, variables)
  setup += time.perf_counter() - begin
  predict = functools.partial(predict_fn, variables)
  case = multihost.from_primary(
    lambda: _seconds_of_case(predict, sources['val'], config, own_mesh)
  )
  step, feed, stages = 0.0, None, build.stages_of(config)
  for stage in stages:
    begin = time.perf_counter()
    own = patch_growth.at(config, stages, stage.first_step)
    endless = ConfigDict(own.to_dict())
    endless.num_steps = 1_000_000  # as many as it takes
    train_step = build.train_step_of(endless, model, tx, schedule)
    feed = compile_steps(train_step, state, cache, endless, mesh, feed)
    setup += time.perf_counter() - begin
    own_step, state = _seconds_of_step(feed, state, seconds / len(stages))
    share = (stage.end - stage.first_step) / max(config.num_steps, 1)
    step += own_step * share
  return multihost.from_primary(lambda: Pace(setup, step, case))


def _seconds_of_step(
  feed: CompiledSteps, state: TrainState, seconds: float
) -> tuple[float, TrainState]:
  """Returns the mean seconds of a step in the loop with its data, and a state.

  How many are timed is decided once, by one process: all make the same calls.
  """

  def call(state, count):
    return feed.advance(state, next(feed.data), count)

  if not isinstance(next(feed.data), DeviceData):
    for _ in range(READ_AHEAD):  # they were made while nothing trained
      next(feed.data)
  took = 0.0
  for _ in range(2):  # the first call touches its memory
    begin = time.perf_counter()
    state, metrics = jax.block_until_ready(call(state, 1))
    took = time.perf_counter() - begin
  count, calls = multihost.from_primary(
    lambda: calls_for(seconds, took, feed.max_count)
  )
  begin = time.perf_counter()
  for _ in range(calls):
    before = metrics
    state, metrics = call(state, count)
    jax.block_until_ready(before)  # one call ahead, as in training
  jax.block_until_ready(metrics)
  return (time.perf_counter() - begin) / (calls * count), state


def calls_for(
  seconds: float, step_seconds: float, max_count: int
) -> tuple[int, int]:
  """Returns steps of a call, and calls, that take about so many seconds.

  Args:
    seconds: see `measure`.
    step_seconds: of one step.
    max_count: the most steps of a call.
  """
  count = int(np.clip(SECONDS_A_CALL / step_seconds, 1, max_count))
  calls = math.ceil(seconds / (count * step_seconds))
  return count, max(calls, LEAST_CALLS)


def _seconds_of_case(predict_fn, source: Source, config, mesh) -> float:
  """Returns the mean seconds to predict and score a case.

  Of three that part the cases, ordered by size, evenly, so that their mean is
  about that of all.
  """
  settings = trained_model.prediction_settings(config, mesh)
  settings |= cascade.stored(source)
  sizes = experiment_sources.sizes(source)
  order = np.argsort(sizes, kind='stable')
  chosen = [
    int(order[(2 * i + 1) * len(order) // (2 * CASES)]) for i in range(CASES)
  ]

  def once(index: int) -> float:
    begin = time.perf_counter()
    for case, pred, *_ in predict_cases(
      predict_fn, [source[index]], **settings
    ):
      evaluate.score_mask(pred, case, config)
    return time.perf_counter() - begin

  once(chosen[0])  # compiles
  return sum(map(once, chosen)) / CASES
