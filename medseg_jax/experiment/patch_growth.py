"""Patches that grow while a network trains: `config.patch_growth`.

Steps on small patches take less time and see more of the foreground; a training
that ends with the full patch segments as well in about half the time on most
tasks of the Decathlon (Fischer et al., "Progressive Growing of Patch Size",
MICCAI 2024, arXiv:2407.07853). Each stage has as many steps and as many patches
a step, and is compiled when it begins. The schedule goes by the voxels that
have been seen, not by steps. Prediction has the full patch throughout.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from medseg_jax.runtime.errors import InputError

# Of a stage: fewer are over before its program is compiled.
LEAST_STEPS = 100


class Stage(NamedTuple):
  """Some steps with one size of patches.

  Attributes:
    first_step: the first of them.
    end: the step that the next stage, if any, begins at.
    patch_size: as the config's.
  """

  first_step: int
  end: int
  patch_size: tuple[int, ...]


def check(config: ConfigDict) -> None:
  """Raises InputError where the shares are no growth up to the full patch."""
  shares = tuple(config.patch_growth)
  rising = all(
    isinstance(share, int | float) and not isinstance(share, bool)
    for share in shares
  ) and all(a < b for a, b in zip(shares, shares[1:], strict=False))
  if shares and not (rising and shares[0] > 0 and shares[-1] == 1):
    raise InputError(
      f'config.patch_growth is {shares}; allowed are shares of '
      'config.patch_size above 0, each larger than the one before and the last '
      '1, or () for the full patch throughout'
    )


def stages_of(config: ConfigDict, divisor: Sequence[int]) -> tuple[Stage, ...]:
  """Returns the stages of a training, one where nothing grows.

  The steps are divided evenly among the shares. Sizes are rounded to what the
  network and the devices of the spatial axis divide, and are twice that at the
  least where the whole patch is: of a single voxel at the lowest resolution
  norms have no statistics. Shares that come to the same size are one stage.
  Where a share has fewer than `LEAST_STEPS` nothing grows.

  Args:
    config: resolved.
    divisor: what the network wants each axis to be a multiple of.
  """
  patch = tuple(config.patch_size)
  shares = tuple(config.patch_growth) or (1.0,)
  if config.num_steps < LEAST_STEPS * len(shares):
    shares = (1.0,)
  # The first axis is shared by the devices of the spatial axis.
  divisor = list(divisor)
  divisor[0] = math.lcm(divisor[0], max(config.mesh.spatial, 1))
  stages: list[Stage] = []
  for i, share in enumerate(shares):
    first, end = (j * config.num_steps // len(shares) for j in (i, i + 1))
    size = tuple(
      min(full, max(round(share * full / by), 2) * by)
      for full, by in zip(patch, divisor, strict=True)
    )
    if stages and stages[-1].patch_size == size:
      first = stages.pop().first_step
    if end > first:
      stages.append(Stage(first, end, size))
  return tuple(stages) or (Stage(0, config.num_steps, patch),)


def index_at(stages: tuple[Stage, ...], step: int) -> int:
  """Returns the number of the stage that a step, of updates made, is in."""
  return sum(stage.first_step <= step for stage in stages) - 1


def at(config: ConfigDict, stages: tuple[Stage, ...], step: int) -> ConfigDict:
  """Returns the config of the stage that a step is in, `num_steps` its end.

  Args:
    config: resolved.
    stages: of it.
    step: number of updates made.
  """
  if len(stages) == 1:
    return config
  stage = stages[index_at(stages, step)]
  own = ConfigDict(config.to_dict())
  own.patch_size, own.num_steps = stage.patch_size, stage.end
  return own


def configs(config: ConfigDict, stages: tuple[Stage, ...]) -> list[ConfigDict]:
  """Returns the config of each stage, see `at`."""
  return [at(config, stages, stage.first_step) for stage in stages]


def by_voxels(
  schedule: optax.Schedule, stages: tuple[Stage, ...]
) -> optax.Schedule:
  """Returns a schedule of steps that goes as fast as voxels are seen.

  Args:
    schedule: of the position, from 0 to the number of all steps.
    stages: of the training.
  """
  if len(stages) == 1:
    return schedule
  ends, seen = _voxels(stages)
  places = (seen * ends[-1]).astype(np.float32)

  def scheduled(position: jax.Array) -> jax.Array:
    return schedule(jnp.interp(position, ends, places))

  return scheduled


def effort_of(stages: Sequence[Stage]) -> Callable[[float], float]:
  """Returns the function from a number of steps to the share of all voxels."""
  ends, seen = _voxels(stages)
  return lambda steps: float(np.interp(steps, ends, seen))


def _voxels(stages: Sequence[Stage]) -> tuple[np.ndarray, np.ndarray]:
  """Returns where stages begin and end, and the share that is seen by then."""
  ends = np.array([0, *(stage.end for stage in stages)], np.float32)
  voxels = [math.prod(stage.patch_size) for stage in stages]
  seen = np.cumsum([0, *(np.diff(ends) * voxels)])
  return ends, seen / seen[-1]


def describe(stages: tuple[Stage, ...], shares: Sequence[float]) -> str:
  """Returns a line for people, '' where nothing is to grow.

  Args:
    stages: of a training.
    shares: that were asked for.
  """
  if len(stages) == 1:
    few = stages[0].end < LEAST_STEPS * len(shares)
    told = f'growing   not with fewer than {LEAST_STEPS} steps of a size'
    return told if shares and few else ''
  parts = ', '.join(
    f'{"x".join(map(str, stage.patch_size))} from step {stage.first_step}'
    for stage in stages
  )
  full = math.prod(stages[-1].patch_size) * stages[-1].end
  seen = sum(math.prod(s.patch_size) * (s.end - s.first_step) for s in stages)
  return f'growing   {parts}; {seen / full:.0%} of the voxels'
