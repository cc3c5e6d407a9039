"""A trained model and how it is to be applied, from the config of its run."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import (
  build,
  config_bounds,
  config_files,
  held_out,
  mirroring,
  model_folder,
)
from medseg_jax.experiment.held_out import Record
from medseg_jax.inference import decoding
from medseg_jax.inference.network import create_predict
from medseg_jax.losses import uses_sigmoid
from medseg_jax.models import Model
from medseg_jax.runtime import multihost, process, sharding, stop_signal
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.checkpoint_files import check_shapes, shapes_of
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json
from medseg_jax.state import abstract_variables, eval_part


class Predictor(NamedTuple):
  """A trained model, ready to predict.

  Attributes:
    predict_fn: `[N, *tile, C] -> [N, *tile, num_classes]`, compiled.
    step: number of updates that made the weights.
    which: 'best' or 'latest'.
  """

  predict_fn: Callable[[np.ndarray], jax.Array]
  step: int
  which: str


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
  """
  plan = None
  if config.data.source == 'volumes':
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
  model_folder.write(workdir / 'model', description, variables)
  print(f'model     {workdir}/model', flush=True)


def find_folder(
  workdir: pathlib.Path | None, model: pathlib.Path | None, checkpoint: str
) -> pathlib.Path | None:
  """Returns the model folder or zip to predict with; None for checkpoints.

  Args:
    workdir: of a training, finished or not.
    model: a model folder or its zip, in place of the workdir.
    checkpoint: 'best' or 'latest' of the workdir's checkpoints; '' for the
      model that its training ended with, which is the one that was scored.

  Raises:
    InputError: both a model and a checkpoint are asked for.
  """
  if model is not None:
    if checkpoint:
      raise InputError(
        f'--checkpoint={checkpoint} is of a --workdir; {model} holds the '
        'weights of one checkpoint only'
      )
    return model
  folder = workdir / 'model'
  finished = not checkpoint and (folder / model_folder.DESCRIPTION).exists()
  return folder if finished else None


def read_config(
  workdir: pathlib.Path | None, model: pathlib.Path | None, checkpoint: str
) -> ConfigDict:
  """Returns the resolved config of the training that made the model.

  But for its mesh, which is that of no other machine: all devices share a
  batch.
  """
  folder = find_folder(workdir, model, checkpoint)
  if folder is None:
    config = config_files.read_config(workdir)
  else:
    config = model_folder.config_of(model_folder.read_description(folder))
  config.mesh.update(data=-1, spatial=1)
  return config


def load_predictor(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  model: pathlib.Path | None = None,
  checkpoint: str = '',
  mesh: Mesh | None = None,
) -> Predictor:
  """Returns the trained model, compiled.

  Args:
    config: resolved; what it says of the network is that of the training.
    workdir: see `find_folder`; likewise the other two. Where the training has
      not ended, '' is the best checkpoint, or the latest where none was chosen.
    mesh: what the tiles are spread over, which need not be the training's;
      None for all devices of this process.

  Raises:
    InputError: there is no such model, it is damaged, or not of this config.
  """
  mesh = mesh or sharding.local_mesh()
  weights = load_variables(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  return compile_predictor(config, weights, mesh)


def compile_predictor(
  config: ConfigDict, weights: tuple[Any, int, str], mesh: Mesh
) -> Predictor:
  """Returns what `load_predictor` does.

  Args:
    config: resolved.
    weights: as `load_variables` returns them.
    mesh: what the tiles are spread over.
  """
  variables, step, which = weights
  variables = jax.device_put(variables, sharding.replicated(mesh))
  network = build.model_of(config, mesh)
  predict_fn = functools.partial(
    compile_predict(config, network, mesh, variables), variables
  )
  return Predictor(predict_fn, step, which)


def load_variables(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  model: pathlib.Path | None = None,
  checkpoint: str = '',
  mesh: Mesh | None = None,
) -> tuple[Any, int, str]:
  """Returns the weights that predict, their step, and which they are.

  Arguments and errors are those of `load_predictor`.
  """
  mesh = mesh or sharding.local_mesh()
  folder = find_folder(workdir, model, checkpoint)
  if folder is None:
    directory = workdir / 'checkpoints'
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
      which = checkpoint or BEST
      if which == BEST and checkpoints.step(BEST) is None:
        which = LATEST
      return *restore_variables(checkpoints, which, config, mesh), which
  stored = model_folder.read(folder)
  wanted = _abstract_variables(config, mesh)
  check_shapes(shapes_of(stored.variables), shapes_of(wanted), folder)
  return stored.variables, stored.step, stored.checkpoint


def restore_variables(
  checkpoints: Checkpoints,
  which: str,
  config: ConfigDict,
  mesh: Mesh | None = None,
) -> tuple[Any, int]:
  """Returns the weights of a checkpoint that predict, and its step.

  The averaged weights where they were kept; nothing of the optimizer is read.
  They lie on `mesh`, by default all devices of this process.
  """
  abstract = _abstract_variables(config, mesh or sharding.local_mesh())

  def wanted(saved):
    return {
      eval_part(name, saved): variables for name, variables in abstract.items()
    }

  restored = checkpoints.restore(which, wanted, whole=False)
  variables = {
    name: restored.parts[eval_part(name, restored.parts)] for name in abstract
  }
  return variables, restored.step


def _abstract_variables(config: ConfigDict, mesh: Mesh) -> Any:
  return abstract_variables(
    model=build.model_of(config, mesh),
    image_shape=build.image_shape(config),
    mesh=mesh,
  )


def predict_fn_of(
  config: ConfigDict, model: Model
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *tile, C]) -> logits`, not yet compiled."""
  return create_predict(
    model=model,
    sigmoid=uses_sigmoid(config.loss) and not config.data.regions,
    mirror_axes=mirroring.in_prediction(config),
  )


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
  if jax.config.jax_disable_jit:  # for debugging, as training does
    return predict_fn_of(config, model)
  layout = sharding.examples(mesh)
  compiled = compile_network(config, model, mesh, variables)

  def predict_on_mesh(variables, image):
    stop_signal.check()  # a large scan takes minutes
    image = np.asarray(image, np.float32)
    return compiled(variables, jax.device_put(image, layout))

  return predict_on_mesh


def compile_network(
  config: ConfigDict, model: Model, mesh: Mesh, variables: Any
) -> jax.stages.Compiled:
  """Returns the program of `compile_predict`, which takes arrays on `mesh`."""
  shape = (_tiles_at_once(config, mesh), *build.tile_size(config))
  tiles = jax.ShapeDtypeStruct((*shape, config.data.channels), jnp.float32)
  with jax.set_mesh(mesh), process.not_kept(mesh):
    jitted = jax.jit(
      predict_fn_of(config, model),
      in_shardings=(sharding.replicated(mesh), sharding.examples(mesh)),
      out_shardings=sharding.replicated(mesh),
    )
    compiled = process.compile_for(mesh, jitted.lower(variables, tiles))
  stop_signal.check()
  return compiled


def prediction_settings(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """Returns the arguments of `predict_cases` that the config tells."""
  config_bounds.check(config, 'inference')
  build.check_overlap(config)
  settings = dict(
    preprocessing=build.preprocessing_of(config),
    channels=config.data.channels,
    patch_size=build.tile_size(config),
    overlap=config.inference.overlap,
    batch_size=_tiles_at_once(config, mesh),
  )
  if config.data.regions:
    settings['decode'] = functools.partial(
      decoding.labels_from_regions, order=tuple(config.data.region_order)
    )
    settings['activate'] = decoding.sigmoid
  elif uses_sigmoid(config.loss):
    settings['activate'] = decoding.sigmoid_of_classes
    settings['has_background'] = True
  return settings


def _tiles_at_once(config: ConfigDict, mesh: Mesh) -> int:
  """Returns the tiles of one batch, as many for each device.

  For a device as many whatever part of all devices `mesh` has: its program, and
  what it computes to the bit, are those of any other division.
  """
  size = config.inference.batch_size or config.batch_size
  return sharding.round_up(-(-size // multihost.count()), mesh)
