"""A trained model and how it is to be applied, from the config of its run."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.experiment.build import (
  mesh_of,
  model_of,
  optimizer_of,
  preprocessing_of,
  state_arguments,
  tile_size,
)
from medseg_jax.inference import decoding
from medseg_jax.inference.network import create_predict
from medseg_jax.losses import uses_sigmoid
from medseg_jax.models import Model
from medseg_jax.runtime import process, sharding
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.state import abstract_state


class Predictor(NamedTuple):
  """A trained model, ready to predict.

  Attributes:
    predict_fn: `[N, *tile, C] -> [N, *tile, num_classes]`, compiled.
    step: of the checkpoint.
    which: 'best' or 'latest'.
    seconds: what reading the weights and compiling took.
  """

  predict_fn: Callable[[jax.Array], jax.Array]
  step: int
  which: str
  seconds: dict[str, float]


def load_predictor(
  config: ConfigDict, workdir: pathlib.Path, which: str
) -> Predictor:
  """Returns the model of the workdir's checkpoint.

  Where nothing was held out to choose a best checkpoint by (`data.fold=all`),
  'best' is the latest.
  """
  begin = time.perf_counter()
  mesh, model = mesh_of(config), model_of(config)
  tx, _ = optimizer_of(config)
  with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
    if which == BEST and checkpoints.step(BEST) is None:
      which = LATEST
    state = checkpoints.restore(
      which, abstract_state(**state_arguments(config, model, tx, mesh))
    )
  step = int(state.step)
  loaded = time.perf_counter()
  predict_fn = functools.partial(
    compile_predict(config, model, mesh, state.eval_variables),
    state.eval_variables,
  )
  seconds = {'weights': loaded - begin, 'compile': time.perf_counter() - loaded}
  return Predictor(predict_fn, step, which, seconds)


def compile_predict(
  config: ConfigDict, model: Model, mesh: Mesh, variables: Any
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *tile, C]) -> logits`, compiled on `mesh`.

  Args:
    config: resolved.
    model: of the config.
    mesh: what the tiles are spread over.
    variables: arrays, or their shapes and layouts.
  """
  predict = create_predict(
    model=model,
    sigmoid=uses_sigmoid(config.loss) and not config.data.regions,
    mirror=config.inference.mirror,
  )
  layout = sharding.examples(mesh)
  shape = (_tiles_at_once(config, mesh), *tile_size(config))
  tiles = jax.ShapeDtypeStruct((*shape, config.data.channels), jnp.float32)
  with jax.set_mesh(mesh), process.not_kept(mesh.size):
    compiled = (
      jax.jit(
        predict,
        in_shardings=(sharding.replicated(mesh), layout),
        out_shardings=sharding.replicated(mesh),
      )
      .lower(variables, tiles)
      .compile()
    )

  def predict_on_mesh(variables, image):
    image = np.asarray(image, np.float32)
    return compiled(variables, jax.device_put(image, layout))

  return predict_on_mesh


def prediction_settings(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """Returns the arguments of `predict_cases` that the config tells."""
  settings = dict(
    preprocessing=preprocessing_of(config),
    channels=config.data.channels,
    patch_size=tile_size(config),
    overlap=config.inference.overlap,
    batch_size=_tiles_at_once(config, mesh),
  )
  if config.data.regions:
    settings['decode'] = functools.partial(
      decoding.labels_from_regions, order=tuple(config.data.region_order)
    )
    settings['activate'] = decoding.sigmoid
  return settings


def _tiles_at_once(config: ConfigDict, mesh: Mesh) -> int:
  """Returns the tiles of one batch, as many for each device."""
  size = config.inference.batch_size or config.batch_size
  return sharding.round_up(size, mesh)
