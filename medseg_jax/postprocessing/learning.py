"""Which steps of post-processing pay, by nnU-Net's rules."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medseg_jax.postprocessing.components import classes_of, make_step
from medseg_jax.postprocessing.pieces import (
  Flags,
  Pieces,
  keep_largest,
  remaining,
  score,
)

Floats = npt.NDArray[np.float64]
Scores = dict[str, Any]

FOREGROUND = 'foreground'
# Means of equal values must not differ by the rounding of their divisions.
_ROUNDING = 1e-14


class Learnt(NamedTuple):
  """What was learnt; everything in it can be written as JSON.

  Scores are {'mean': Dice, 'classes': {name: Dice}}, None where undefined.

  Attributes:
    steps: to `apply`, in this order; perhaps none.
    candidates: what was tried, in this order: {'of', 'classes', 'kept': bool,
      'before': scores, 'after': scores, 'cases_changed': int,
      'voxels_removed': int}; `before` is with the steps kept until then.
    before: scores without any step.
    after: scores with all of `steps`.
    num_cases: it was learnt on.
  """

  steps: list[dict[str, Any]]
  candidates: list[dict[str, Any]]
  before: Scores
  after: Scores
  num_cases: int


class NestedGain(NamedTuple):
  """What post-processing gains on cases that it was not learnt on.

  Attributes:
    before: pooled scores without any step, as in `Learnt`.
    after: pooled scores, each fold with the steps learnt on all the others.
    gain: the difference of their means; None where one is undefined.
    steps: of each fold.
    num_cases: of all folds.
  """

  before: Scores
  after: Scores
  gain: float | None
  steps: list[list[dict[str, Any]]]
  num_cases: int


def learn(
  cases: Iterable[Pieces],
  *,
  classes: Sequence[str],
  regions: Sequence[tuple[str, Sequence[int]]] = (),
) -> Learnt:
  """Returns the steps that raise the Dice of these cases, and what each did.

  nnU-Net's rules (Isensee et al. 2021; version 2,
  `nnunetv2/postprocessing/remove_connected_components.py`):

  1. The largest component of the union of all foreground classes is kept as a
     step if the mean foreground Dice rises and no class falls.
  2. With two or more classes, each in its order, on the result of the steps
     kept so far: the largest component of the class is kept as a step if its
     own Dice rises.

  With regions they are what is scored, and what step 2 goes through, in their
  declared order; step 1 is of all foreground classes all the same. A component
  of a region is one of the union of its classes; what is removed becomes
  background, so other regions around lose it too, though only the region's own
  Dice is asked. Both as in nnU-Net.

  Equal Dice keeps nothing. There are no thresholds of size. The Dice of a case
  is undefined, and left out, where prediction and label are both empty; a class
  has the mean over the cases in which it is defined, and the mean is that over
  the classes that have one (nnU-Net: undefined as soon as one class is, so
  that step 1 is never kept then). Where it is undefined nothing is kept.

  Args:
    cases: of each case what `count_pieces` returns: the predictions of models
      that have not seen it. A generator holds one label map at a time.
    classes: names of the classes, background first.
    regions: (name, class indices) of every region, which may overlap.
  """
  cases = list(cases)
  names, groups = _scored(classes, regions)
  members = _members(groups, len(classes))
  there = [np.ones(len(case.sizes), bool) for case in cases]
  dice = _dice(cases, there, members)
  before = _scores(dice, names)
  steps: list[dict[str, Any]] = []
  candidates = []
  tried = [(FOREGROUND, tuple(range(1, len(classes))))]
  if len(names) > 1:
    tried += list(zip(names, groups, strict=True))
  current = before
  for number, (name, group) in enumerate(tried):
    left = [
      keep_largest(case, old, group)
      for case, old in zip(cases, there, strict=True)
    ]
    changed = [
      i for i, new in enumerate(left) if not np.array_equal(new, there[i])
    ]
    new_dice = dice.copy()
    for i in changed:
      new_dice[i] = score(cases[i], left[i], members)
    found = _scores(new_dice, names)
    if number == 0:
      kept = _rises(current['mean'], found['mean']) and not any(
        _falls(current['classes'][of], found['classes'][of]) for of in names
      )
    else:
      kept = _rises(current['classes'][name], found['classes'][name])
    step = make_step(name, group)
    candidates.append(
      {
        'of': name,
        'classes': step['classes'],
        'kept': kept,
        'before': current,
        'after': found,
        'cases_changed': len(changed),
        'voxels_removed': sum(
          int(cases[i].sizes[there[i] & ~left[i]].sum()) for i in changed
        ),
      }
    )
    if kept:
      steps.append(step)
      there, dice, current = left, new_dice, found
  return Learnt(steps, candidates, before, current, len(cases))


def nested_gain(
  folds: Iterable[Iterable[Pieces]],
  *,
  classes: Sequence[str],
  regions: Sequence[tuple[str, Sequence[int]]] = (),
) -> NestedGain:
  """Returns what `learn` gains on cases that it does not see.

  Each fold gets the steps that are learnt on all the others. The cases of all
  folds are pooled: the mean is over cases, never over folds.

  Args:
    folds: the cases of each fold, as `learn` takes them.
    classes: see `learn`.
    regions: see `learn`.

  Raises:
    ValueError: fewer than two folds have cases.
  """
  given = [list(fold) for fold in folds]
  if sum(bool(fold) for fold in given) < 2:
    raise ValueError(
      f'a nested estimate needs two folds with cases, found '
      f'{[len(fold) for fold in given]}'
    )
  names, groups = _scored(classes, regions)
  members = _members(groups, len(classes))
  steps, before, after = [], [], []
  for i, fold in enumerate(given):
    others = [case for j, some in enumerate(given) if j != i for case in some]
    steps.append(learn(others, classes=classes, regions=regions).steps)
    whole = [np.ones(len(case.sizes), bool) for case in fold]
    left = [remaining(case, steps[-1]) for case in fold]
    before.append(_dice(fold, whole, members))
    after.append(_dice(fold, left, members))
  old, new = (_scores(np.concatenate(dice), names) for dice in (before, after))
  gain = None
  if old['mean'] is not None and new['mean'] is not None:
    gain = new['mean'] - old['mean']
  return NestedGain(old, new, gain, steps, sum(map(len, given)))


def describe(learnt: Learnt) -> list[str]:
  """Returns a line for each candidate, for people."""
  return [
    f'{"kept" if tried["kept"] else "not kept"}: the largest component of '
    f'{tried["of"]}, mean Dice {_text(tried["before"]["mean"])} -> '
    f'{_text(tried["after"]["mean"])}'
    + (
      f', its own {_text(tried["before"]["classes"][tried["of"]])} -> '
      f'{_text(tried["after"]["classes"][tried["of"]])}'
      if number
      else ''
    )
    + f' ({tried["cases_changed"]} of {learnt.num_cases} cases changed)'
    for number, tried in enumerate(learnt.candidates)
  ]


def _scored(
  classes: Sequence[str], regions: Sequence[tuple[str, Sequence[int]]]
) -> tuple[list[str], list[tuple[int, ...]]]:
  """Returns names and class indices of what is scored, without background."""
  if not regions:
    return list(classes[1:]), [(i,) for i in range(1, len(classes))]
  for name, group in regions:
    classes_of(make_step(name, group))  # a region of nothing, or of background
    if max(group) >= len(classes):
      raise ValueError(
        f'region {name} has the classes {tuple(group)}, allowed are '
        f'1..{len(classes) - 1}'
      )
  return [name for name, _ in regions], [tuple(group) for _, group in regions]


def _members(groups: Sequence[tuple[int, ...]], num_classes: int) -> Flags:
  members = np.zeros((len(groups), num_classes), bool)
  for row, group in zip(members, groups, strict=True):
    row[list(group)] = True
  return members


def _dice(
  cases: Sequence[Pieces], there: Sequence[Flags], members: Flags
) -> Floats:
  """Returns the Dice of each case and row of `members`, NaN if undefined."""
  dice = np.full((len(cases), len(members)), math.nan)
  for i, (case, left) in enumerate(zip(cases, there, strict=True)):
    dice[i] = score(case, left, members)
  return dice


def _scores(dice: Floats, names: Sequence[str]) -> Scores:
  values = [_mean(column.tolist()) for column in dice.T]
  return {
    'mean': _mean(value for value in values if value is not None),
    'classes': dict(zip(names, values, strict=True)),
  }


def _mean(values: Iterable[float]) -> float | None:
  defined = [value for value in values if not math.isnan(value)]
  return math.fsum(defined) / len(defined) if defined else None


def _rises(old: float | None, new: float | None) -> bool:
  return old is not None and new is not None and new > old + _ROUNDING


def _falls(old: float | None, new: float | None) -> bool:
  # What becomes undefined was 0 wherever it was defined.
  return old is not None and new is not None and new < old - _ROUNDING


def _text(value: float | None) -> str:
  return '-' if value is None else f'{value:.4f}'
