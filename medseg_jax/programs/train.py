"""Trains a model and evaluates it: `--mode=train`."""

import contextlib
import functools
import pathlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.cache import Cache
from medseg_jax.experiment import (
  begun_with,
  build,
  cascade,
  config_files,
  early_stop,
  ensemble,
  fine_tuning,
  halted,
  held_out,
  model_of_training,
  opening,
  patch_growth,
  stage_masks,
  step_sums,
  trained_model,
)
from medseg_jax.experiment.compiled_steps import (
  SECONDS_A_CALL,
  CompiledSteps,
  compile_steps,
)
from medseg_jax.experiment.failures import Failures
from medseg_jax.experiment.patch_growth import Stage
from medseg_jax.experiment.restored_state import restore_state
from medseg_jax.programs import evaluate
from medseg_jax.programs.prepare import describe, prepare
from medseg_jax.programs.validation import Validation
from medseg_jax.runtime import multihost, run_logs, sharding, workdir_lock
from medseg_jax.runtime.agreement import Agreement
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.errors import Stopped
from medseg_jax.runtime.metric_writer import MetricWriter
from medseg_jax.runtime.progress import Progress, Title
from medseg_jax.runtime.run_logs import RunLogs
from medseg_jax.runtime.stop_signal import stop_on_signal
from medseg_jax.state import TrainState, abstract_state
from medseg_jax.step import TrainStep


def run(
  config: ConfigDict, workdir: pathlib.Path, *, title: Title = 'train'
) -> dict:
  """Trains up to `num_steps`, evaluates, and returns the summary.

  Goes on from the newest checkpoint of `workdir`. At the end `model/` there
  holds the weights that the summary is of.

  Args:
    config: as the user has it.
    workdir: of the training.
    title: what it is called where its progress is shown.

  Raises:
    InputError: the config or the data make no sense, a loss was not finite, or
      another run trains in `workdir`; after all else, that a case could not be
      scored.
    Stopped: SIGTERM or Ctrl-C, after saving.
  """
  with contextlib.ExitStack() as held:

    def hold() -> None:
      ensemble.check_place(workdir, crossval=False)
      run_logs.check(config.loggers)
      held.enter_context(workdir_lock.hold(workdir))

    multihost.from_primary(hold)
    logs = held.enter_context(run_logs.opened())
    return _run(config, workdir, title, logs)


def _run(
  config: ConfigDict, workdir: pathlib.Path, title: Title, logs: RunLogs
) -> dict:
  config, sources, digests = opening.open_run(config, workdir)
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  build.check_shapes(config, sources['train'], mesh)
  build.check_statistics(config, model)
  early_stop.check(config, sources)
  tx, schedule = build.optimizer_of(config)
  stages = build.stages_of(config)
  # What of the config makes no sense is told before the data is prepared.
  train_steps: list[TrainStep] = [
    build.train_step_of(own, model, tx, schedule)
    for own in patch_growth.configs(config, stages)
  ]
  arguments = build.state_arguments(config, model, tx, mesh)
  with contextlib.closing(
    Checkpoints(
      workdir / 'checkpoints', keep=config.checkpoint_keep, writes=True
    )
  ) as checkpoints:
    resuming = checkpoints.step(LATEST) is not None
    seen = multihost.from_primary(
      lambda: (
        opening.seen_before(config, digests, workdir)
        if resuming
        else fine_tuning.seen_by_source(config, digests)
      )
    )
    print(describe(config, sources), flush=True)
    cache = prepare(config, sources)
    if not resuming:
      # Weights that nothing leads on from may have seen what is held out now.
      for step in checkpoints.steps(BEST):
        checkpoints.set_aside(BEST, step, 'of a training that was lost', 0)
      state, origin = fine_tuning.first_state(
        config, sources['train'].channel_names, arguments
      )
      since_log = {}
    else:
      state, since_log = restore_state(checkpoints, abstract_state(**arguments))
      state = early_stop.going_on(state, config)
      if checkpoints.step(BEST) is not None:
        # Damage had better be told now than when it is to be evaluated.
        trained_model.restore_variables(checkpoints, BEST, config)
      print(f'going on from step {int(state.step)} of {workdir}', flush=True)
    record = None
    if seen is not None or not (resuming or config.init_from):
      record = held_out.record_of(config, digests, seen)

    def write() -> None:
      if cascade.is_asked(config):
        stage_masks.write(sources, digests, config, workdir)
      config_files.write_config(config, workdir)
      if not resuming:
        begun_with.write(origin, workdir)
      if record is not None:
        held_out.write(record, workdir)
      elif not resuming:  # that of a training that was lost
        (workdir / held_out.FILE).unlink(missing_ok=True)

    multihost.from_primary(write)
    # Each process predicts cases of its own.
    own_mesh, predict_fn = sharding.own_part(mesh), None
    if sources.keys() & {'val', 'test'}:
      predict_fn = trained_model.compile_predict(
        config,
        model,
        own_mesh,
        sharding.local_copy(state.eval_variables, own_mesh),
      )

    def compile_stage(
      step: int, state: TrainState, before: CompiledSteps | None = None
    ) -> CompiledSteps:
      own = patch_growth.at(config, stages, step)
      train_step = train_steps[patch_growth.index_at(stages, step)]
      return compile_steps(train_step, state, cache, own, mesh, before)

    validation = None
    step = int(state.step)
    logs.begin(config.to_dict(), workdir, step)
    with MetricWriter(workdir, resume_step=step, logs=logs) as writer:
      if 'val' in sources:
        validation = Validation(
          predict_fn,
          sources['val'],
          config=config,
          mesh=own_mesh,
          workdir=workdir,
          writer=writer,
          checkpoints=checkpoints,
          reported='test' not in sources,
          end=early_stop.end_of(state, config),
        )
        state = validation.go_on(state, step, say=print)
      if int(state.step) < early_stop.end_of(state, config):
        state = train(
          state,
          compile_stage,
          cache,
          config=config,
          stages=stages,
          mesh=mesh,
          checkpoints=checkpoints,
          writer=writer,
          validation=validation,
          since_log=since_log,
          title=title,
        )
      checkpoints.wait()
    variables = sharding.local_copy(state.eval_variables, own_mesh)
    step, which = int(state.step), LATEST
    stopped = early_stop.describe(state, config)
    if 'test' in sources and checkpoints.step(BEST) is not None:
      # The validation split chose it. A checkpoint chosen on the very cases
      # that it is then evaluated on would look better than it is.
      which = BEST
      variables, step = trained_model.restore_variables(
        checkpoints, BEST, config, own_mesh
      )
  summary, failures, split = {}, Failures(), ''
  if predict_fn is None:
    print('no split is held out, so nothing is evaluated')
  else:
    split = 'test' if 'test' in sources else 'val'
    summary, failures = evaluate.report_split(
      functools.partial(predict_fn, variables),
      sources[split],
      config=config,
      mesh=own_mesh,
      workdir=workdir,
      split=split,
      digests=digests[split],
      step=step,
      checkpoint=which,
      scored=validation and validation.scored,
      stopped=stopped,
      trained=True,
    )
  multihost.from_primary(
    lambda: model_of_training.write(
      workdir,
      variables,
      config=config,
      sources=sources,
      record=record,
      step=step,
      checkpoint=which,
      scores=summary or None,
      stopped=stopped,
    )
  )
  logs.summary(summary)
  if split:
    failures.tell(len(sources[split]), 'case', 'scored')
  return summary


def train(
  state: TrainState,
  compile_stage: Callable[..., CompiledSteps],
  cache: Cache,
  *,
  config: ConfigDict,
  stages: Sequence[Stage],
  mesh: Mesh,
  checkpoints: Checkpoints,
  writer: MetricWriter,
  validation: Validation | None,
  since_log: Mapping[str, float],
  title: Title = 'train',
) -> TrainState:
  """The loop: log the last steps, evaluate, save, next batch, step.

  Args:
    state: of step k; the loop goes on to `config.num_steps`, or to where
      `validation` brings the end forward to.
    compile_stage: `(step, state, before) -> compiled`, the steps from there on,
      of one stage, and their batches; `before` is of the stage before, or None.
    cache: of the training split.
    config: for the intervals, the seed and the pipeline.
    stages: of patches that grow, mostly one.
    mesh: of the state and the batches.
    checkpoints: where to save.
    writer: of metrics.
    validation: None where nothing is held out for it.
    since_log: saved with `state`, the sums that the next log line begins with.
    title: of the progress.
  """
  first_step, end = int(state.step), early_stop.end_of(state, config)
  step, limit = first_step, 1  # the most steps of the next call
  compiled = compile_stage(step, state)
  agreement = Agreement(mesh)
  multihost.barrier()  # devices give up on those that still compile
  unread: list[tuple[int, dict]] = []  # (count, metrics) of calls not read yet
  sums = {**step_sums.zeros(), **since_log}
  # Of this process since the last log line: steps, seconds, of these waiting.
  timed, busy, waited = 0, 0.0, 0.0
  with (
    stop_on_signal() as stop,
    jax.set_mesh(mesh),
    jax.transfer_guard('disallow'),
    Progress(
      end, first_step, desc=title, effort=patch_growth.effort_of(stages)
    ) as progress,
  ):
    while True:
      # Read once, and agreed: what follows must be of one mind.
      stopping, slowest = agreement.largest(
        (stop.signal or 0, -limit), at_first=(0, -1)
      )
      last = step == end or bool(stopping)
      log, save = (
        step > first_step and (step == end or _due(step, every))
        for every in (config.log_every, config.checkpoint_every)
      )
      evaluation = (
        validation is not None and step > first_step and validation.due(step)
      )
      if unread and (last or log or evaluation or save):
        # Read before anything is evaluated or saved: after a loss that was
        # not finite the state is not that of this step.
        begin = time.perf_counter()
        rows = [row for call in unread for row in step_sums.rows(*call)]
        busy += time.perf_counter() - begin
        unread = []
        halted_at = halted.halted_at(state)
        finite = step if halted_at is None else halted_at
        rows = rows[: len(rows) - (step - finite)]
        timed += len(rows)
        sums = step_sums.add(sums, rows)
        if halted_at is not None:
          own = patch_growth.at(config, stages, halted_at)
          halted.tell(state, halted_at, sums, own, cache, checkpoints, mesh)
      if log:
        values = {
          'loss': sums['loss'] / sums['steps'],
          'grad_norm': sums['grad_norm'] / sums['steps'],
          'learning_rate': float(rows[-1]['learning_rate']),
          'images_per_s': timed * config.batch_size / busy,
          'data_wait_frac': waited / busy,
        }
        writer.scalars(step, 'train', values)
        progress.stats(loss=values['loss'], images_per_s=values['images_per_s'])
        sums = step_sums.zeros()
        timed, busy, waited = 0, 0.0, 0.0
      # Who sent a signal may not wait; the next run makes up for what is due.
      if evaluation and not stopping:
        state = validation.evaluate(state, step, say=progress.write)
        end = validation.end
        progress.ends_at(end)
      if last or save:
        checkpoints.save(LATEST, step, state, sums)
      if last:
        break
      if step > first_step and step in [s.first_step for s in stages]:
        with jax.transfer_guard('allow'):
          compiled = compile_stage(step, state, compiled)
        multihost.barrier()  # devices give up on those that still compile
      count = min(-slowest, _steps_to_next_stop(step, end, stages, config))
      begin = time.perf_counter()
      data = next(compiled.data)
      waited += time.perf_counter() - begin
      state, newest = compiled.advance(state, data, count)
      unread.append((count, newest))
      # At most two calls ahead: batches do not pile up on the device, and slow
      # data shows as a wait.
      if len(unread) > 2:
        made, oldest = unread[-3]
        jax.block_until_ready(oldest)
        pace = made / (time.perf_counter() - begin)  # steps a second
        limit = int(np.clip(SECONDS_A_CALL * pace, 1, compiled.max_count))
      busy += time.perf_counter() - begin
      step += count
      progress.advance(count)
    checkpoints.wait()
    stopping = stopping or (multihost.count() == 1 and stop.signal)
  if stopping:
    multihost.barrier()  # who leaves takes the others along
    name = signal.Signals(stopping).name
    raise Stopped(
      f'{name} at step {step}: saved; the same command goes on from there',
      stopping,
    )
  return state


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _steps_to_next_stop(
  step: int, end: int, stages: Sequence[Stage], config: ConfigDict
) -> int:
  """Returns how far it is to the next log, evaluation, saving, stage or end."""
  intervals = (config.log_every, config.eval_every, config.checkpoint_every)
  ends = [step - step % every + every for every in intervals if every > 0]
  ends += [stage.end for stage in stages if stage.end > step]
  return min([end, *ends]) - step
