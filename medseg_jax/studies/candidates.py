"""Which model of several a cross-validation chooses."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

RULE = (
  'the highest mean foreground Dice of the pooled held-out cases, before '
  'post-processing; ties go to the first, single configurations before pairs'
)


class Candidate(NamedTuple):
  """What may be chosen.

  Attributes:
    name: of it.
    configurations: its members' names: one, or two whose probabilities are
      averaged.
    dice: mean over foreground classes of the means over all held-out cases;
      None where no case has any foreground, in label or mask.
  """

  name: str
  configurations: tuple[str, ...]
  dice: float | None


def combinations(names: Sequence[str]) -> list[tuple[str, ...]]:
  """Returns what is compared: each configuration, then each pair of them."""
  return [
    *((name,) for name in names),
    *itertools.combinations(names, 2),
  ]


def name_of(names: Sequence[str]) -> str:
  """Returns what configurations that predict together are called."""
  return '+'.join(names)


def choose(candidates: Sequence[Candidate]) -> Candidate:
  """Returns the best candidate by `RULE`, that of nnU-Net.

  (Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-
  based biomedical image segmentation", Nature Methods 18.)

  Args:
    candidates: one at the least, in the order that decides ties among those of
      as many members.

  Raises:
    ValueError: there are none.
  """
  if not candidates:
    raise ValueError('need one candidate at the least')
  in_order = sorted(candidates, key=lambda each: len(each.configurations))
  defined = [each for each in in_order if each.dice is not None]
  # Of equals `max` returns the first.
  return max(defined, key=lambda each: each.dice, default=in_order[0])
