"""Checks the data and plans the network from it: `--mode=plan`."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data.case import VOLUMES
from medseg_jax.experiment import (
  config_bounds,
  fine_tuning,
  mirroring,
  opening,
  pretraining,
  sources,
  volume_plan,
)
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically


def run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
  """Reads every case, lists what is wrong or odd, writes and prints the plan.

  A plan.json that is there already is kept, as somebody may have edited it.

  Raises:
    InputError: the data has errors, each printed on a line of its own.
  """
  config_bounds.check(config)
  if config.data.source not in VOLUMES:
    raise InputError(
      f'config.data.source is {config.data.source!r}; --mode=plan is for '
      f'{", ".join(VOLUMES)}, the other sources need no plan'
    )
  config, origin = fine_tuning.adopt(config, workdir)
  origin = origin or volume_plan.given(config, workdir)
  config.data.path = opening.absolute(config.data)
  opened = sources.open_all(config, strict=False)
  sources.check_train(opened, config.data)
  sources.tell_oddities(opened.values())
  plan = volume_plan.make(config, opened, origin)
  path = workdir / 'plan.json'
  if path.exists():
    planned, plan = (
      plan,
      volume_plan.read(path, config, opened['train'], origin),
    )
    if plan != planned:
      print(
        f'note      {path} is not what the data gives with these settings; it '
        'is kept and obeyed; move it away to plan anew'
      )
  else:
    write_atomically(path, planner.to_json(plan).encode())
  restored = 'the channels, restored' if pretraining.is_asked(config) else ''
  print(planner.describe(plan, outputs=restored))
  resolved = opening.resolve(config, opened['train'], plan)
  if warning := mirroring.side_warning(resolved):
    print(warning)
  print(f'plan      {path} (may be edited; its notes say why)', flush=True)
  return plan
