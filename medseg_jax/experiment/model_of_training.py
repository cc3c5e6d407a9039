"""The model folder that a training leaves in its workdir."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.experiment import cascade, held_out, model_folder
from medseg_jax.experiment.held_out import Record
from medseg_jax.runtime.files import read_json


def write(
  workdir: pathlib.Path,
  variables: Any,
  *,
  config: ConfigDict,
  sources: Mapping[str, Source],
  record: Record | None,
  step: int,
  checkpoint: str,
  scores: dict[str, Any] | None,
  stopped: dict[str, Any] | None = None,
) -> None:
  """Writes the model that a training ended with to `workdir/model`.

  Args:
    workdir: of the training.
    variables: that predict.
    config: resolved.
    sources: the cases by split.
    record: of the cases that trained and were held out, where it is known.
    step: number of updates that made the weights.
    checkpoint: 'best' or 'latest'.
    scores: the summary of the held-out split, or None.
    stopped: of an early end, see `early_stop.describe`.
  """
  plan = None
  if config.data.source in VOLUMES:
    plan = read_json(workdir / 'plan.json', 'as --mode=plan writes it')
  description = model_folder.describe(
    config,
    channel_names=sources['train'].channel_names,
    plan=plan,
    num_cases={split: len(source) for split, source in sources.items()},
    record=None if record is None else held_out.to_dict(record),
    step=step,
    checkpoint=checkpoint,
    scores=scores,
  )
  if stopped:
    description['training']['stopped_early'] = stopped
  previous = None
  if cascade.is_asked(config):
    previous = workdir / model_folder.PREVIOUS
    first = model_folder.read_description(previous)
    description['previous_stage'] = {
      'folder': model_folder.PREVIOUS,
      'weights_sha256': first['weights']['sha256'],
    }
  model_folder.write(workdir / 'model', description, variables, previous)
  print(f'model     {workdir}/model', flush=True)
