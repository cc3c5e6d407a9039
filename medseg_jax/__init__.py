"""Medical image segmentation in JAX and Flax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from medseg_jax.experiment.loaded_model import LoadedModel

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
