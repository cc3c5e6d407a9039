"""The validation split, evaluated while a model trains."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import cascade, early_stop, trained_model
from medseg_jax.programs import evaluate
from medseg_jax.report import summary as report
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.checkpoint import BEST, Checkpoints
from medseg_jax.runtime.metric_writer import MetricWriter, read_line
from medseg_jax.state import TrainState

# What a line of metrics.jsonl has of the mean over the foreground.
_NUMBERS = (*report.METRICS, 'dice_pooled', 'pixel_accuracy')


@dataclasses.dataclass
class Validation:
  """Evaluates states on the validation split, and keeps the best.

  Attributes:
    predict_fn: `(variables, tiles) -> logits`, compiled.
    source: the validation split.
    config: resolved.
    mesh: that `predict_fn` was compiled for, of this process.
    workdir: of the run.
    writer: of metrics.
    checkpoints: for the best state.
    reported: whether this split is also what the run reports at its end; then
      its last evaluation takes all that the report needs.
    end: the step that the training ends at, which an evaluation may bring
      forward.
    scored: what `last_step` scored, for the report; None before.
  """

  predict_fn: Callable
  source: Source
  config: ConfigDict
  mesh: Mesh
  workdir: pathlib.Path
  writer: MetricWriter
  checkpoints: Checkpoints
  reported: bool
  end: int
  scored: evaluate.Scored | None = None

  def due(self, step: int) -> bool:
    """Returns whether the state of `step` is to be evaluated."""
    every = self.config.eval_every
    at_the_end = step == self.end
    return step > 0 and (at_the_end or (every > 0 and step % every == 0))

  def is_lost(self, step: int) -> bool:
    """Returns whether a run was stopped at `step` before it was evaluated.

    Then the line of metrics is missing, or the best checkpoint is.
    """
    if not self.due(step):
      return False
    line = self._line(step)
    if line is None:
      return True
    dice = line.get('dice')
    return self._best() < (evaluate.UNDEFINED if dice is None else dice)

  def go_on(
    self, state: TrainState, step: int, say: Callable[[str], None]
  ) -> TrainState:
    """Returns a restored state as an undisturbed run would have it.

    Makes up for an evaluation that a stop put off, and decides anew on an end
    that was decided after the state was saved.
    """
    if self.is_lost(step):
      return self.evaluate(state, step, say)
    return self._with_end(state, step, say) if self.due(step) else state

  def evaluate(
    self, state: TrainState, step: int, say: Callable[[str], None]
  ) -> TrainState:
    """Evaluates the state of `step`, and saves it where it is the best yet.

    Returns the state to go on with, its schedule compressed where the training
    is to end early, see `early_stop`.

    Args:
      state: of `step`.
      step: number of updates made.
      say: prints a line.
    """
    final = self.reported and step == self.end
    variables = sharding.local_copy(state.eval_variables, self.mesh)
    predict = functools.partial(self.predict_fn, variables)
    settings = trained_model.prediction_settings(self.config, self.mesh)
    settings |= cascade.stored(self.source)
    with jax.transfer_guard('allow'):
      scored = evaluate.score_cases(
        predict,
        self.source,
        config=self.config,
        settings=settings,
        thorough=final,
        keep=len(self.source) if final else 1,
        desc='evaluate val' if final else '',
      )
      # Not every process has it; the one that writes may not.
      first = [0] if 0 in scored.own else []
      pictures = list(evaluate.panels(predict, first, scored, **settings))
      pictures = [p for found in multihost.gather(pictures) for p in found]
    if final:
      self.scored = scored
    summary = evaluate.summarize(scored, self.config, split='val', step=step)
    if self._line(step) is None:
      numbers = {name: summary['mean'][name] for name in _NUMBERS}
      self.writer.scalars(step, 'val', numbers)
      for picture in pictures:
        self.writer.image(step, 'val', 'first_case', picture)
    dice = evaluate.mean_dice(summary)
    say(f'step {step}/{self.end}  val Dice {dice:.4f}')
    if failed := scored.failures.found:
      # Of other cases the same weights have another Dice: no choice by that.
      say(
        f'warning   step {step}: {len(failed)} of {len(self.source)} val cases '
        'could not be scored, so these weights cannot be the best; the first: '
        f'{failed[0].reason}'
      )
    elif dice > self._best():
      self.checkpoints.save(BEST, step, state, {'dice': dice})
    return self._with_end(state, step, say)

  def _with_end(
    self, state: TrainState, step: int, say: Callable[[str], None]
  ) -> TrainState:
    if self.end < self.config.num_steps or step >= self.end:
      return state  # it has been decided, or is over
    if not (end := early_stop.due(self.workdir, step, self.config)):
      return state
    say(
      f'step {step}: val Dice stands still, so the training ends at step {end} '
      f'in place of {self.end}, the learning rate annealed'
    )
    self.end = end
    return early_stop.with_end(state, step, end, self.config)

  def _line(self, step: int) -> dict[str, float | None] | None:
    return multihost.from_primary(lambda: read_line(self.workdir, step, 'val'))

  def _best(self) -> float:
    """Returns the mean Dice of the best checkpoint."""
    self.checkpoints.wait()
    if self.checkpoints.step(BEST) is None:
      return -math.inf
    return self.checkpoints.metadata(BEST)['dice']
