"""Medical image segmentation in JAX and Flax."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from medseg_jax.experiment.loaded_model import LoadedModel
  from medseg_jax.programs.from_python import Trained

__version__ = '0.1.0'


def load_model(path: str | os.PathLike) -> LoadedModel:
  """Returns a trained model whose `predict` takes arrays and files.

  Args:
    path: the folder `model/` of a workdir, or its zip; of one model or of an
      ensemble.

  Raises:
    InputError: it is no model, of another format, or damaged.
  """
  # Late: the parts of the library are of use without a trained model.
  from medseg_jax.experiment.loaded_model import LoadedModel

  return LoadedModel(path)


def train(
  config: ConfigDict | str | os.PathLike | None = None,
  *,
  workdir: str | os.PathLike | None = None,
  keys: Mapping[str, Any] | None = None,
) -> Trained:
  """Trains a model, as `--mode=train` does, and returns it.

  Goes on where a training of the workdir was stopped; of one that has ended the
  held-out cases are scored again. Progress is printed.

  Args:
    config: a config file, such as 'configs/auto.py' ('configs/auto.py:2d'), or
      its content; None for the default one, which is of phantoms.
    workdir: folder of the run; None for runs/NAME, the name of the config file
      or else 'train'.
    keys: of the config, to set on top: {'num_steps': 100, 'data.path': 'mine'}.

  Returns:
    The model, ready to predict, with its summary and workdir.

  Raises:
    InputError: the config or the data make no sense; see `programs.train.run`.
  """
  from medseg_jax.programs import from_python

  return from_python.train(config, workdir=workdir, keys=keys)
