"""What a program in Python calls in place of the command line."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax.experiment import config_files, config_script, overrides
from medseg_jax.experiment.loaded_model import LoadedModel
from medseg_jax.programs import train as program
from medseg_jax.runtime import files


class Trained(NamedTuple):
  """A training that has ended.

  Attributes:
    model: ready to predict.
    summary: what the held-out cases scored, as in `summary.json`.
    workdir: with checkpoints, reports and `model/`.
  """

  model: LoadedModel
  summary: dict[str, Any]
  workdir: pathlib.Path


def train(
  config: ConfigDict | str | os.PathLike | None,
  *,
  workdir: str | os.PathLike | None,
  keys: Mapping[str, Any] | None,
) -> Trained:
  """See `medseg_jax.train`."""
  texts = [(key, str(value)) for key, value in (keys or {}).items()]
  name = 'train'
  if isinstance(config, ConfigDict):
    config = ConfigDict(config.to_dict())  # the caller's stays as it is
    overrides.apply(config, texts)
  elif config is None:
    config = config_files.default_config()
    overrides.apply(config, texts)
  else:
    name = pathlib.Path(os.fspath(config).split(':')[0]).stem
    config = config_script.load(config, texts, what='config ')
  folder = pathlib.Path(workdir or f'runs/{name}')
  files.check_writable(folder)
  summary = program.run(config, folder)
  return Trained(LoadedModel(folder / 'model'), summary, folder)
