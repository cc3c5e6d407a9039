"""A trained model and how it is to be applied, from the config of its run."""

import contextlib
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import postprocessing
from medseg_jax.experiment import (
  build,
  cascade,
  config_bounds,
  config_files,
  ensemble,
  members,
  mirroring,
  model_folder,
  pretraining,
)
from medseg_jax.experiment.members import Part, Weights
from medseg_jax.inference import cases, decoding, previous_stage
from medseg_jax.inference.network import create_predict
from medseg_jax.losses import uses_sigmoid
from medseg_jax.models import Model
from medseg_jax.runtime import multihost, process, sharding, stop_signal
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import eval_part

# Of the tiles that a CPU takes at once, unless it is told how many. More are no
# quicker, and a batch of a GPU's size takes more memory than a scan.
_VOXELS_ON_CPU = 2**20


class Predictor(NamedTuple):
  """A trained model, ready to predict.

  Attributes:
    predict_fn: `[N, *tile, C] -> [N, *tile, num_classes]`, compiled.
    step: number of updates that made the weights.
    which: 'best' or 'latest'.
    settings: the arguments of `inference.cases.predict_cases` besides; of an
      ensemble with the networks of its other configurations.
  """

  predict_fn: Callable[[np.ndarray], jax.Array]
  step: int
  which: str
  settings: dict[str, Any]


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
  batch. Of an ensemble it is that of the first member.

  Raises:
    InputError: there is no such model, or it segments nothing.
  """
  folder = find_folder(workdir, model, checkpoint)
  if folder is None:
    config = config_files.read_config(workdir)
  else:
    config = ensemble.config_of(folder)
  pretraining.refuse_as_segmentation(config, folder or workdir)
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
  weights = load_weights(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  return compile_predictor(weights, mesh)


def compile_predictor(
  weights: Weights, mesh: Mesh, *, disagreement: bool = False
) -> Predictor:
  """Returns what `load_predictor` does.

  Args:
    weights: as `load_weights` returns them.
    mesh: what the tiles are spread over.
    disagreement: whether it tells that of its members, too.
  """
  first, *others = weights.parts
  predict_fn, settings = _compile_part(first, mesh, disagreement)
  also = []
  for part in others:
    own_fn, own = _compile_part(part, mesh, disagreement)
    known = cases.Network._fields[1:]
    shared = {key: own[key] for key in known if key in own}
    also.append(cases.Network(own_fn, **shared))
  if also:
    settings['also'] = tuple(also)
  if disagreement:
    settings['disagreement'] = True
  if weights.postprocessing:
    settings['finish'] = functools.partial(
      postprocessing.apply, steps=weights.postprocessing
    )
  if weights.calibration.temperature:
    settings['temperature'] = weights.calibration.temperature
  return Predictor(predict_fn, weights.step, weights.which, settings)


def _compile_part(
  part: Part, mesh: Mesh, disagreement: bool
) -> tuple[Callable[[np.ndarray], jax.Array], dict[str, Any]]:
  """Returns one configuration's `predict_fn` and settings."""
  settings = prediction_settings(part.config, mesh)
  if part.previous is not None:
    first = compile_predictor(part.previous, mesh)
    settings['previous'] = functools.partial(
      previous_stage.mask_of_case,
      first.predict_fn,
      **previous_stage.settings_of(first.settings),
    )
  return _compile_members(part, mesh, disagreement), settings


def _compile_members(
  part: Part, mesh: Mesh, normalised: bool
) -> Callable[[np.ndarray], jax.Array]:
  """Returns `[N, *tile, C] -> logits`, the mean of all members', compiled."""
  config, layout = part.config, sharding.replicated(mesh)
  network = build.model_of(config, mesh)
  if members.fit(part.variables, mesh):
    count = len(part.variables)
    variables = jax.device_put(members.stack(part.variables), layout)
    compiled = compile_predict(
      config, network, mesh, variables, count, normalised
    )
    return functools.partial(compiled, variables)
  shapes = members.abstract_variables_of(config, mesh)
  compiled = compile_predict(config, network, mesh, shapes, 1, normalised)
  return members.one_after_the_other(compiled, part.variables, layout)


def load_weights(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  model: pathlib.Path | None = None,
  checkpoint: str = '',
  mesh: Mesh | None = None,
) -> Weights:
  """Returns the weights that predict, of an ensemble those of all members.

  What was changed in the config, which is that of the first member, is changed
  in those of other configurations, too.

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
      variables, step = restore_variables(checkpoints, which, config, mesh)
      previous = None
      if cascade.is_asked(config):
        place = workdir / model_folder.PREVIOUS
        before = config_files.read_config(workdir)
        previous = members.load_previous([(place, '')], config, before, mesh)
    return Weights((Part('', config, (variables,), previous),), step, which)
  before = read_config(workdir, model, checkpoint)
  stored = ensemble.read(folder)
  if stored.is_ensemble:
    counts = (f'{n} x {len(m)}' for n, m in stored.configurations.items())
    print(f'ensemble  {folder}: {", ".join(counts)}', flush=True)
  weights = members.load(stored.configurations, config, before, mesh)
  steps = stored.description.get('postprocessing', ())
  return weights._replace(
    postprocessing=tuple(steps), calibration=stored.calibration
  )


def load_variables(
  config: ConfigDict,
  workdir: pathlib.Path | None,
  *,
  model: pathlib.Path | None = None,
  checkpoint: str = '',
  mesh: Mesh | None = None,
) -> tuple[Any, int, str]:
  """Returns the weights of a model that is no ensemble, their step, and which.

  Arguments and errors are those of `load_predictor`.
  """
  weights = load_weights(
    config, workdir, model=model, checkpoint=checkpoint, mesh=mesh
  )
  [part] = weights.parts
  [variables] = part.variables
  return variables, weights.step, weights.which


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
  abstract = members.abstract_variables_of(
    config, mesh or sharding.local_mesh()
  )

  def wanted(saved):
    return {
      eval_part(name, saved): variables for name, variables in abstract.items()
    }

  restored = checkpoints.restore(which, wanted, whole=False)
  variables = {
    name: restored.parts[eval_part(name, restored.parts)] for name in abstract
  }
  return variables, restored.step


def predict_fn_of(
  config: ConfigDict,
  model: Model,
  num_members: int = 1,
  normalised: bool = False,
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *tile, C]) -> logits`, not yet compiled.

  Of several members the variables are stacked. Where it is `normalised` the
  logits have one more channel, see `inference.network.create_predict`.
  """
  normaliser = ''
  if normalised:
    normaliser = 'sigmoid' if uses_sigmoid(config.loss) else 'softmax'
  return create_predict(
    model=model,
    sigmoid=uses_sigmoid(config.loss) and not config.data.regions,
    mirror_axes=mirroring.in_prediction(config),
    num_members=num_members,
    num_labels=cascade.num_labels(config),
    normaliser=normaliser,
  )


def compile_predict(
  config: ConfigDict,
  model: Model,
  mesh: Mesh,
  variables: Any,
  num_members: int = 1,
  normalised: bool = False,
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, image [N, *tile, C]) -> logits`, compiled on `mesh`.

  Args:
    config: resolved.
    model: of the config.
    mesh: what the tiles are spread over.
    variables: arrays, or their shapes and layouts.
    num_members: that the variables are stacked of.
    normalised: see `predict_fn_of`.
  """
  if jax.config.jax_disable_jit:  # for debugging, as training does
    return predict_fn_of(config, model, num_members, normalised)
  layout = sharding.examples(mesh)
  compiled = compile_network(
    config, model, mesh, variables, num_members, normalised
  )

  def predict_on_mesh(variables, image):
    stop_signal.check()  # a large scan takes minutes
    image = np.asarray(image, np.float32)
    return compiled(variables, jax.device_put(image, layout))

  return predict_on_mesh


def compile_network(
  config: ConfigDict,
  model: Model,
  mesh: Mesh,
  variables: Any,
  num_members: int = 1,
  normalised: bool = False,
) -> jax.stages.Compiled:
  """Returns the program of `compile_predict`, which takes arrays on `mesh`."""
  shape = (_tiles_at_once(config, mesh), *build.tile_shape(config))
  tiles = jax.ShapeDtypeStruct(shape, jnp.float32)
  with jax.set_mesh(mesh), process.not_kept(mesh):
    jitted = jax.jit(
      predict_fn_of(config, model, num_members, normalised),
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
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  if on_cpu and not config.inference.batch_size:
    fitting = _VOXELS_ON_CPU // math.prod(build.tile_size(config))
    size = min(size, max(1, fitting))
  return sharding.round_up(-(-size // multihost.count()), mesh)
