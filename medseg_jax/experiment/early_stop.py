"""Brings the end of a training forward where its validation stands still.

The learning rate still goes all the way down: most of what the last steps gain
comes of that. From the evaluation that decides on, the rest of the schedule is
compressed into a share of the steps made so far; a fifth is where Hägele et al.
2024, "Scaling laws and compute-optimal training beyond fixed training
durations" (arXiv:2405.18392) found longer declines to gain little more.

The decision follows from the validation lines of `metrics.jsonl` alone, so a
run that goes on decides alike; what was decided is a part of the state.
"""

import contextlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import build, ensemble, model_folder
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.metric_writer import read_lines
from medseg_jax.state import TrainState

# Of the moving average of Dice: what stays of the one before, as in nnU-Net,
# and the least rise that counts. An average creeps towards a Dice that stands
# still for ever.
DECAY, MARGIN = 0.9, 0.001


def check(config: ConfigDict, sources: Mapping[str, Source]) -> None:
  """Raises InputError where early stopping has nothing to go by."""
  if not (patience := config.stop.patience):
    return
  key = f'config.stop.patience is {patience}'
  if 'val' not in sources:
    raise InputError(
      f'{key}, but there is no validation split to go by; allowed is 0 then'
    )
  if not config.eval_every:
    raise InputError(
      f'{key}, but config.eval_every is 0, so nothing is evaluated before the '
      'end; allowed are 1 or more there, or patience 0'
    )


def stands_still(dices: Sequence[float | None], patience: int) -> bool:
  """Returns whether the average of Dice has not risen for too long.

  Where it has never risen above nothing, nothing has been learnt yet.

  Args:
    dices: of the evaluations so far, in their order; None where undefined,
      which leaves the average as it is.
    patience: for how many evaluations it may not rise.
  """
  average, best, waited = None, 0.0, 0
  for dice in dices:
    if dice is not None:
      average = (
        dice if average is None else DECAY * average + (1 - DECAY) * dice
      )
    if average is not None and average > best + MARGIN:
      best, waited = average, 0
    else:
      waited += 1
  return best > 0 and waited >= patience


def due(workdir: pathlib.Path, step: int, config: ConfigDict) -> int:
  """Returns the step to end at instead, 0 for as planned; for all processes.

  Args:
    workdir: of the run.
    step: that was evaluated last.
    config: resolved.
  """

  def decide() -> int:
    if not config.stop.patience:
      return 0
    # Of patches that grow: networks of smaller ones stand still earlier.
    begin = build.stages_of(config)[-1].first_step
    lines = read_lines(workdir, 'val')
    dices = [values.get('dice') for at, values in lines if begin < at <= step]
    if not stands_still(dices, config.stop.patience):
      return 0
    end = step + max(1, math.ceil(config.stop.anneal * step))
    return end if end < config.num_steps else 0

  return multihost.from_primary(decide)


def with_end(
  state: TrainState, step: int, end: int, config: ConfigDict
) -> TrainState:
  """Returns the state of `step` with the rest of its schedule compressed."""
  return _with_anneal(state, step, end, config.num_steps)


def going_on(state: TrainState, config: ConfigDict) -> TrainState:
  """Returns a restored state with its end as the config has it now.

  Without patience a training whose end was brought forward goes on as planned.
  """
  begin, end, _ = _anneal(state)
  if not end:
    return state
  if not config.stop.patience:
    return _with_anneal(state, 0, 0, 0)
  end = min(end, config.num_steps)
  return _with_anneal(state, begin, end, config.num_steps)


def end_of(state: TrainState, config: ConfigDict) -> int:
  """Returns the step that a training ends at. Reads the device."""
  _, end, _ = _anneal(state)
  return min(end or config.num_steps, config.num_steps)


def describe(state: TrainState, config: ConfigDict) -> dict[str, Any] | None:
  """Returns what summaries say of an early end, None where there was none."""
  begin, end, _ = _anneal(state)
  if not end:
    return None
  return {
    'by': 'val',
    'decided_at': begin,
    'step': end,
    'num_steps': config.num_steps,
    'patience': config.stop.patience,
  }


def of_workdir(
  workdir: pathlib.Path, model: pathlib.Path | None = None
) -> dict[str, Any] | None:
  """Returns what the model of a training says, see `describe`.

  Args:
    workdir: of the training.
    model: a model folder or its zip, in place of the workdir's.
  """
  folder = model or workdir / 'model'
  if model is None and not (folder / model_folder.DESCRIPTION).exists():
    return None  # the training goes on
  with contextlib.suppress(InputError):  # told where the model is needed
    training = ensemble.read(folder).first.description['training']
    return training.get('stopped_early')
  return None


def of_folds(workdirs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
  """Returns, by title, what those trainings say that have ended early."""

  def look() -> dict[str, Any]:
    found = {title: of_workdir(path) for title, path in workdirs.items()}
    return {title: stopped for title, stopped in found.items() if stopped}

  return multihost.from_primary(look)


def note(stopped: Mapping[str, Any], split: str) -> str:
  """Returns a line for people on an early end.

  Args:
    stopped: see `describe`.
    split: that is reported.
  """
  text = (
    f'the val split ended the training at step {stopped["step"]} of '
    f'{stopped["num_steps"]}'
  )
  if split == 'val':
    text += ': its own numbers are too good for new images'
  return f'note      {text}'


def _anneal(state: TrainState) -> tuple[int, int, int]:
  begin, end, last = (int(x) for x in jax.device_get(state.anneal))
  return begin, end, last


def _with_anneal(state: TrainState, *numbers: int) -> TrainState:
  values = np.array(numbers, np.int32)
  return state.replace(
    anneal=sharding.to_devices(state.anneal.sharding, values)
  )
