"""A run at Weights & Biases, or in its folder where WANDB_MODE=offline."""

import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from medseg_jax.runtime.files import write_atomically
from medseg_jax.runtime.run_logs import Service

_ID = 'wandb_run.txt'


def start(
  project: str,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  *,
  going_on: bool,
) -> Service:
  """Returns the run; the arguments are those of `RunLogs.begin`.

  Where it goes to is for the environment to say, as wandb has it: WANDB_MODE,
  WANDB_ENTITY, WANDB_API_KEY, WANDB_BASE_URL.
  """
  offline = os.environ.get('WANDB_MODE') in ('offline', 'disabled')
  if offline:  # it would report its own errors
    os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
  import wandb

  if not offline and not wandb.api.api_key:  # it would ask for it
    raise RuntimeError('not logged in; `wandb login`, or WANDB_MODE=offline')
  path = workdir / _ID
  known = path.read_text().strip() if going_on and path.exists() else ''
  name = known or uuid.uuid4().hex[:12]
  write_atomically(path, f'{name}\n'.encode())
  run = wandb.init(
    project=project,
    id=name,
    name=str(workdir),
    dir=str(workdir),
    config=dict(config),
    resume=None if offline else 'allow',
    # The terminal is the program's, and code is nobody's business.
    settings=wandb.Settings(console='off', silent=True, save_code=False),
  )
  # A run that goes on from a checkpoint counts steps that it counted before.
  run.define_metric('*', step_metric='step')

  def log(step: int, values: Mapping[str, float]) -> None:
    run.log({'step': step, **values})

  def finish(summary: Mapping[str, float], failed: bool) -> None:
    run.summary.update({f'final/{key}': v for key, v in summary.items()})
    run.finish(exit_code=int(failed))

  return Service(log, finish)
