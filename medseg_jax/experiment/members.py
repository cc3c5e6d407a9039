"""The weights of a trained model, one or several, before they are compiled."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from medseg_jax.experiment import build, cascade, ensemble, model_folder
from medseg_jax.experiment.calibrated import Calibration
from medseg_jax.experiment.ensemble import Member
from medseg_jax.postprocessing import Step
from medseg_jax.runtime.checkpoint import BEST, LATEST
from medseg_jax.runtime.checkpoint_files import check_shapes, shapes_of
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import abstract_variables


class Part(NamedTuple):
  """One configuration of a model.

  Attributes:
    name: '' for a single model.
    config: resolved, with the user's changes.
    variables: of each member.
    previous: of a cascade, its first network, of each member.
  """

  name: str
  config: ConfigDict
  variables: tuple[Any, ...]
  previous: 'Weights | None' = None


class Weights(NamedTuple):
  """A trained model.

  Attributes:
    parts: its configurations, one unless it is an ensemble.
    step: number of updates that made the weights, the most of any member.
    which: 'best' or 'latest'; 'best' where one member's are.
    postprocessing: the steps that are applied to its masks, see
      `postprocessing.apply`; those of an ensemble, where it has such.
    calibration: of an ensemble, where it has such.
  """

  parts: tuple[Part, ...]
  step: int
  which: str
  postprocessing: tuple[Step, ...] = ()
  calibration: Calibration = Calibration()

  @property
  def num_members(self) -> int:
    return sum(len(part.variables) for part in self.parts)


def load(
  configurations: Mapping[str, Sequence[Member]],
  config: ConfigDict,
  before: ConfigDict,
  mesh: Mesh,
) -> Weights:
  """Returns the weights of all members, on the host.

  Args:
    configurations: the members of each, by name.
    config: of the first of all members, with the user's changes.
    before: the same without them; they hold for all configurations.
    mesh: that will predict.

  Raises:
    InputError: a member is damaged, or not of its configuration.
  """
  parts, step, which = [], 0, LATEST
  for name, members in configurations.items():
    own = config
    if parts:
      own = model_folder.config_of(members[0].description)
      _change_alike(own, before, config, name)
    wanted = shapes_of(abstract_variables_of(own, mesh))
    variables = []
    for member in members:
      stored = model_folder.read(member.path, member.at)
      check_shapes(shapes_of(stored.variables), wanted, member.where)
      variables.append(stored.variables)
      step = max(step, stored.step)
      which = BEST if BEST in (which, stored.checkpoint) else LATEST
    previous = None
    if cascade.is_asked(own):
      at = model_folder.PREVIOUS
      places = [(m.path, model_folder.join(m.at, at)) for m in members]
      for member, (path, inside) in zip(members, places, strict=True):
        _check_previous(member, model_folder.read_description(path, inside))
      previous = load_previous(places, config, before, mesh)
    parts.append(Part(name, own, tuple(variables), previous))
  return Weights(tuple(parts), step, which)


def _check_previous(member: Member, first: dict[str, Any]) -> None:
  """Raises InputError unless a cascade has the first network it learnt with."""
  with model_folder.damages(member.where, 'model.json is damaged'):
    wanted = member.description['previous_stage']['weights_sha256']
    found = first['weights']['sha256']
  if found != wanted:
    raise InputError(
      f'{member.where / model_folder.PREVIOUS}: not the first network that the '
      f'cascade learnt with (sha256 {found[:12]}..., expected '
      f'{str(wanted)[:12]}...); allowed is a model as medseg_jax wrote it'
    )


def load_previous(
  places: Sequence[tuple[pathlib.Path, str]],
  config: ConfigDict,
  before: ConfigDict,
  mesh: Mesh,
) -> Weights:
  """Returns the first network of a cascade, an ensemble where it has folds.

  Args:
    places: of its models, see `model_folder.read`.
    config: see `load`.
    before: likewise.
    mesh: likewise.

  Raises:
    InputError: one is missing or damaged.
  """
  found = [
    Member(path, at, model_folder.read_description(path, at))
    for path, at in places
  ]
  own = model_folder.config_of(found[0].description)
  _change_alike(own, before, config, cascade.FIRST)
  return load({cascade.FIRST: found}, own, own, mesh)


def load_together(
  models: Mapping[str, Sequence[pathlib.Path]], mesh: Mesh
) -> Weights:
  """Returns the weights of models that need not lie in one folder.

  They predict as an ensemble of them would, one alone as it does by itself.

  Args:
    models: of each configuration, by name, model folders or zips of them.
    mesh: that will predict.

  Raises:
    InputError: one is damaged, or does not go with the others.
  """
  found = ensemble.gather(models)
  first = next(iter(found.values()))[0]
  config = model_folder.config_of(first.description)
  return load(found, config, config, mesh)


def _change_alike(
  config: ConfigDict, before: ConfigDict, after: ConfigDict, name: str
) -> None:
  """Changes in `config` what differs between two others.

  Raises:
    InputError: it has no such key.
  """
  old, new = (
    traverse_util.flatten_dict(c.to_dict(), sep='.') for c in (before, after)
  )
  for key, value in new.items():
    if key in old and old[key] == value:
      continue
    *sections, last = key.split('.')
    section = config
    for part in sections:
      section = section.get(part, ConfigDict())
    if last not in section:
      raise InputError(
        f'config.{key}: the configuration {name} of the ensemble has no such '
        'key; allowed are changes that all its configurations know'
      )
    with section.ignore_type():
      section[last] = value


def abstract_variables_of(config: ConfigDict, mesh: Mesh) -> Any:
  """Returns the shapes and the layout of what predicts on `mesh`."""
  return abstract_variables(
    model=build.model_of(config, mesh),
    image_shape=build.image_shape(config),
    mesh=mesh,
  )


def stack(variables: Sequence[Any]) -> Any:
  """Returns the members' arrays with a first axis for the members, NumPy.

  Those of one member are left as they are, wherever they lie.
  """
  if len(variables) == 1:
    return variables[0]
  return jax.tree.map(lambda *arrays: np.stack(arrays), *variables)


def fit(variables: Sequence[Any], mesh: Mesh) -> bool:
  """Returns whether a device holds all members and the network's own arrays.

  These may need as much as what is left, so the members get half of what is
  free. A single member has to fit. Where a device does not tell its memory,
  as CPUs do not, they do.
  """
  if len(variables) == 1:
    return True
  stats = mesh.local_devices[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return True
  needed = sum(array.nbytes for array in jax.tree.leaves(list(variables)))
  return needed <= (stats['bytes_limit'] - stats.get('bytes_in_use', 0)) / 2


def one_after_the_other(
  predict_fn: Callable[[Any, Any], jax.Array],
  variables: Sequence[Any],
  layout: NamedSharding,
) -> Callable[[np.ndarray], jax.Array]:
  """Returns tiles to the mean of the members' logits, one on the device.

  Args:
    predict_fn: `(variables, image [N, *tile, C]) -> logits`, compiled.
    variables: of each member, on the host.
    layout: of the variables on the device.
  """

  def predict(image: np.ndarray) -> jax.Array:
    total: Any = 0
    for member in variables:
      total = total + predict_fn(jax.device_put(member, layout), image)
    return total / len(variables)

  return predict
