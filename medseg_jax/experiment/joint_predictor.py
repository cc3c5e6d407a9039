"""A predictor of several models that need not lie in one folder."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.experiment import ensemble, members, model_folder, trained_model
from medseg_jax.experiment.trained_model import Predictor
from medseg_jax.runtime import sharding


class Joint(NamedTuple):
  """Models that predict together.

  Attributes:
    predictor: see `trained_model.Predictor`.
    weights: of all, as `prediction_record.maker_of` takes them.
    config: of the first model.
  """

  predictor: Predictor
  weights: members.Weights
  config: ConfigDict


def join(
  models: Mapping[str, Sequence[pathlib.Path]],
  *,
  change: Callable[[ConfigDict], None] = lambda config: None,
  mesh: Mesh | None = None,
) -> Joint:
  """Returns what an ensemble of these models would predict with, compiled.

  Logits are averaged over the models of one configuration, probabilities over
  configurations; one model predicts as it does by itself.

  Args:
    models: of each configuration, by name, model folders or zips of them.
    change: changes the config of the first of all; the changes hold for all.
    mesh: what the tiles are spread over; None for all devices of this process.

  Raises:
    InputError: one is damaged, or does not go with the others.
  """
  mesh = mesh or sharding.local_mesh()
  found = ensemble.gather(models)
  first = next(iter(found.values()))[0]
  before = model_folder.config_of(first.description)
  config = before.copy_and_resolve_references()
  change(config)
  weights = members.load(found, config, before, mesh)
  return Joint(trained_model.compile_predictor(weights, mesh), weights, config)
