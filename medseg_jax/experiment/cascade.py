"""The cascade: a network that sees what a coarser one said of the whole image.

Where a plan has `3d_lowres`, whose patch covers more of the body, `3d_cascade`
is its `3d_fullres` with one more channel for each label of the mask that the
model of `3d_lowres` makes (Isensee et al., Nature Methods 2021). The mask of a
case that trains is by a model that has not seen it, see `stage_masks`.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.data import previous_stage
from medseg_jax.data.case import Case, Source
from medseg_jax.runtime.errors import InputError

NAME, FIRST, SECOND = '3d_cascade', '3d_lowres', '3d_fullres'


def is_asked(config: ConfigDict) -> bool:
  """Returns whether a config is for the second network of a cascade."""
  return config.plan.configuration == NAME


def with_cascade(configurations: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the configurations of a plan, with the cascade where it has one."""
  known = dict(configurations)
  if FIRST in known and SECOND in known:
    known[NAME] = known[SECOND]
  return known


def num_labels(config: ConfigDict) -> int:
  """Returns how many labels have a channel; 0 where it is no cascade."""
  return len(config.data.classes) - 1 if is_asked(config) else 0


def check(config: ConfigDict) -> None:
  """Raises InputError where a resolved config is for no training of one."""
  if not is_asked(config):
    return
  asked = f'config.plan.configuration is {NAME!r}'
  if config.init_from:
    raise InputError(
      f'{asked}, but config.init_from is {config.init_from}; allowed is a '
      'cascade that begins anew'
    )
  if config.data.fold == 'all':
    raise InputError(
      f"{asked}, but config.data.fold is 'all': every case would need a mask "
      f'by a model of {FIRST} that has not seen it; allowed are the folds of a '
      'cross-validation'
    )
  if (number := len(config.data.classes)) > previous_stage.MAX_CLASSES:
    raise InputError(
      f'{asked}, and the data has {number} classes; allowed are up to '
      f'{previous_stage.MAX_CLASSES}'
    )


def refuse(config: ConfigDict, what: str) -> None:
  """Raises InputError where something is for single networks only.

  Args:
    config: resolved.
    what: it is, and where.
  """
  if is_asked(config):
    raise InputError(
      f'{what}: the second network of a cascade, which also wants the mask of '
      f'the first; allowed are models of other configurations than {NAME}'
    )


def stored(source: Source) -> dict[str, Any]:
  """Returns what `inference.cases.Settings` needs of masks that are there.

  Args:
    source: its cases are those that are predicted.
  """
  masks: Mapping[str, pathlib.Path] = getattr(source, 'stage_masks', {})
  if not masks:
    return {}

  def previous(case: Case, shape: tuple[int, ...]):
    return previous_stage.read(masks[case.name], shape)

  return {'previous': previous}
