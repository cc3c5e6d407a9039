"""How many steps a time budget leaves the folds of a cross-validation.

Pure arithmetic on a measured pace; `fold_budget` measures and remembers.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from medseg_jax.runtime.errors import InputError, counted, quote
from medseg_jax.runtime.progress import format_seconds

KEY = 'config.crossval.time_budget'
# Of the budget, what is given out: no fold is as quick as a short measurement.
SHARE = 0.95
# Of config.num_steps, the least that a schedule may be shortened to: a recipe
# that learns for less than a twentieth of its time is another recipe.
LEAST = 0.05

_SECONDS = {'m': 60, 'h': 3600, 'd': 86400}


class Pace(NamedTuple):
  """What the parts of a training take here, in seconds.

  Attributes:
    setup: to open and compile, once a start.
    step: of training, its data included.
    case: to predict and score a held-out case.
  """

  setup: float
  step: float
  case: float


class Left(NamedTuple):
  """The trainings of one configuration, as the budget sees them.

  Attributes:
    cases: that each fold that is left holds out, those of one process.
    all_cases: that all folds hold out, likewise.
    eval_every: steps between evaluations; 0 for one, at the end.
    num_steps: the most that a fold may train for.
    candidates: in how many of the candidates to choose from it predicts: alone,
      and in a pair with each other configuration.
  """

  cases: Sequence[int]
  all_cases: int
  eval_every: int
  num_steps: int
  candidates: int


def parse(text: str) -> float:
  """Returns the seconds of a budget such as '90m', '8h', '1.5h' or '2d'.

  Raises:
    InputError: it is no such text, or no time at all.
  """
  match = re.fullmatch(r'(\d+(?:\.\d+)?|\.\d+)([mhd])', text.strip())
  seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
  if not seconds:
    raise InputError(
      f'{KEY} is {quote(text)}; allowed are a number above 0 with m, h or d '
      "for minutes, hours or days: 90m, 8h, 1.5h, 2d; or '' for no budget"
    )
  return seconds


def seconds_of_fold(
  num_steps: int, cases: int, pace: Pace, eval_every: int
) -> float:
  """Returns what a fold takes, from opening its data to its held-out masks.

  Each evaluation while it trains predicts and scores all that is held out, and
  so does one more, which writes the masks.

  Args:
    num_steps: that it trains for.
    cases: that it holds out.
    pace: of its configuration.
    eval_every: see `Left`.
  """
  every = eval_every or num_steps
  evaluations = -(-num_steps // max(every, 1)) + 1
  return pace.setup + num_steps * pace.step + evaluations * cases * pace.case


def seconds_of_all(num_steps: int, pace: Pace, left: Left) -> float:
  """Returns what is left of a configuration takes, pooled scores and all.

  Once all are trained each candidate that it is a part of predicts, or scores,
  every case once more.
  """
  folds = sum(
    seconds_of_fold(num_steps, cases, pace, left.eval_every)
    for cases in left.cases
  )
  return folds + left.candidates * left.all_cases * pace.case


def steps_within(seconds: float, pace: Pace, left: Left) -> int:
  """Returns the most steps for which all that is left fits; -1 where none do.

  Never more than `left.num_steps`.
  """
  low, high = -1, left.num_steps
  while low < high:
    middle = (low + high + 1) // 2
    if seconds_of_all(middle, pace, left) <= seconds:
      low = middle
    else:
      high = middle - 1
  return low


def decide(
  text: str, name: str, pace: Pace, left: Left, *, spent: float, others: int
) -> int:
  """Returns for how many steps each fold of a configuration trains.

  What is left of the budget is divided evenly among the trainings that are
  left; a later configuration also gets what this one does not need.

  Args:
    text: the budget.
    name: of the configuration.
    pace: of it.
    left: its trainings, one at the least.
    spent: seconds that the cross-validation has taken so far.
    others: how many trainings of later configurations are left.

  Raises:
    InputError: it is less than a twentieth of the schedule; one line says what
      would be needed.
  """
  part = len(left.cases) / (len(left.cases) + others)
  most = SHARE * (parse(text) - spent) * part
  steps = steps_within(most, pace, left)
  least = math.ceil(LEAST * left.num_steps)
  if steps >= least:
    return steps
  need = seconds_of_all(least, pace, left) / part / SHARE + spent
  raise InputError(
    f'{KEY} is {text}, and {format_seconds(spent)} of it are spent: too little '
    f'for {counted(len(left.cases) + others, "training")}; allowed is what '
    f'lets {name} train for {least} steps, a twentieth of config.num_steps='
    f'{left.num_steps}: about {_as_budget(need)} here'
  )


def _as_budget(seconds: float) -> str:
  """Returns a budget, rounded up, that is no shorter."""
  minutes = int(-(-seconds // 60))
  return f'{minutes}m' if minutes < 120 else f'{-(-minutes // 60)}h'
