"""A training that begins with the weights of another: `config.init_from`.

The model, a folder or its zip as training leaves it, says what network it is
and what that wants to see: the sections `model` and `plan` of the config, the
normalisation, and of volumes the plan itself are its own. `transfer` has the
rules for other classes and channels. What became of what is printed, and
written to `init_from.json` in the workdir, by which a training that goes on
knows what it began with.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data.case import VOLUMES
from medseg_jax.experiment import (
  begun_with,
  cascade,
  ensemble,
  held_out,
  model_folder,
  pretraining,
  volume_plan,
)
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.experiment.config_files import to_tuples
from medseg_jax.experiment.held_out import Record
from medseg_jax.experiment.transfer import Meaning, transfer
from medseg_jax.experiment.volume_plan import Origin
from medseg_jax.losses import uses_sigmoid
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import InputError, shorten
from medseg_jax.runtime.files import expand_home
from medseg_jax.state import TrainState, create_state, weights_key

_OF_IMAGES = ('normalize', 'window', 'resize')
# What a depth of 0 leaves to the plan.
_PLANNED = (
  'depth',
  'features',
  'max_features',
  'strides',
  'kernel_sizes',
  'convs_per_stage',
  'residual_blocks',
)


def adopt(
  config: ConfigDict, workdir: pathlib.Path
) -> tuple[ConfigDict, Origin | None]:
  """Returns the config with what the model decides, and its plan of volumes.

  Prints which keys were set to something else. Without `init_from` the config
  is as it was.

  Args:
    config: as the user has it.
    workdir: where the model is gone, the record there tells what it decided.

  Raises:
    InputError: there is no such model, or it is one for other kinds of data.
  """
  if not config.init_from:
    return config, None
  path = expand_home(config.init_from, or_set='config.init_from').absolute()
  settings, origin = multihost.from_primary(
    lambda: _read_settings(path, config, workdir)
  )
  changed, told = config.to_dict(), []
  changed['init_from'] = str(path)
  planned = not changed['model'].get('depth', 1)
  for section, values in settings.items():
    own = changed[section]
    if section == 'model':  # another network has other keys
      free = [k for k in model_folder.OF_TRAINING if k in own and k in values]
      values = values | {k: own[k] for k in free}
    for key, value in values.items():
      before = to_tuples(own.get(key))
      if before and before != value and not (planned and key in _PLANNED):
        told.append(f'config.{section}.{key} is {value}, not {before}')
    changed[section] = values if section == 'model' else own | values
  if told:
    print(f'note      {path} decides: {", ".join(told)}', flush=True)
  return ConfigDict(changed), origin


def _read_settings(
  path: pathlib.Path, config: ConfigDict, workdir: pathlib.Path
) -> tuple[dict[str, dict[str, Any]], Origin | None]:
  """Returns keys of the config by section, and the plan, of the model."""
  if not path.exists() and (record := begun_with.read_any(workdir)) is not None:
    print(
      f'note      {path} is gone; {begun_with.FILE} in {workdir} tells what '
      'training began with'
    )
    return to_tuples(record['settings']), None
  with _blame(path):
    _refuse_ensemble(path)
    description = model_folder.read_description(path)
    before = model_folder.config_of(description)
    cascade.refuse(before, f'config.init_from: {path}')
    plan = description['plan']
  volumes = config.data.source in VOLUMES
  if volumes != (plan is not None):
    has = {True: 'on volumes, with a plan', False: 'on images, without a plan'}
    raise InputError(
      f'config.init_from: {path} was trained {has[plan is not None]}, but '
      f'config.data.source is {config.data.source!r}; allowed is a model of '
      'the same kind of data'
    )
  settings = _settings(before, plan)
  return settings, _origin(path, before, plan) if volumes else None


def _settings(before: ConfigDict, plan: Any) -> dict[str, dict[str, Any]]:
  """Returns what the model decides of a config, by section."""
  data = before.data.to_dict()
  settings = {'model': before.model.to_dict()}
  if plan is None:
    settings['data'] = {key: data[key] for key in _OF_IMAGES}
  else:
    name = volume_plan.configuration_name(before, plan['configurations'])
    settings['data'] = {'spacing': data['spacing']}
    settings['plan'] = before.plan.to_dict()
    settings['plan'] |= {'configuration': name, 'path': ''}
  return to_tuples(settings)


def _origin(path: pathlib.Path, before: ConfigDict, plan: Any) -> Origin:
  """Returns the plan that the model was really trained by."""
  with _blame(path):
    planner.check_plan(plan)
    name = volume_plan.configuration_name(before, plan['configurations'])
    chosen, patch = plan['configurations'][name], list(before.patch_size)
    # The config of its training may have decided otherwise.
    own = {'patch_size': patch, 'spacing': list(before.data.spacing)}
    if patch != chosen['patch_size']:
      own['augment'] = planner.plan_rotation(patch)
    configurations = plan['configurations'] | {name: chosen | own}
    plan = plan | {'configurations': configurations}
    planner.check_plan(plan)
  return Origin(str(path), plan, name)


def _refuse_ensemble(path: pathlib.Path) -> None:
  if model_folder.read_json(path)['format'] == ensemble.FORMAT:
    member = ensemble.read(path).first.at
    raise InputError(
      f'{path} is an ensemble; allowed is one model, such as its member '
      f'{member}'
    )


@contextlib.contextmanager
def _blame(path: pathlib.Path) -> Iterator[None]:
  """Turns what a damaged model leads to into one line that names the key."""
  try:
    yield
  except InputError as error:
    raise InputError(f'config.init_from: {error}') from error
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise InputError(
      f'config.init_from: {path}: {model_folder.DESCRIPTION} is damaged '
      f'({type(error).__name__}: {shorten(str(error), 200)}); allowed is a '
      'model that medseg_jax wrote'
    ) from error


def check_unseen(
  config: ConfigDict, digests: Mapping[str, str], *, why: str
) -> None:
  """Raises InputError unless the model to begin with has seen no case.

  Args:
    config: with what the model decides.
    digests: of all cases, by name.
    why: that is not allowed, for the message.
  """
  path = pathlib.Path(config.init_from)
  if not config.init_from or not path.exists():
    return  # of one that is gone, looked at when the first training began
  with _blame(path):
    if (record := held_out.of_model(path)) is None:
      raise InputError(
        f'{path} has no record of the cases that trained it, and {why}; '
        'allowed is a model that has'
      )
    held_out.check_beginning(
      record,
      {'val': dict(digests)},
      path,
      back=f'{why}: begin with a model of other cases',
    )


def seen_by_source(config: ConfigDict, digests: Digests) -> Record | None:
  """Returns the record of the model to begin with; None where there is none.

  Args:
    config: with what the model decides.
    digests: of the cases of the new training, by split.

  Raises:
    InputError: the model was trained on a case that is to be held out.
  """
  if not config.init_from:
    return None
  path = pathlib.Path(config.init_from)
  with _blame(path):
    record = held_out.of_model(path)
    if record is None:
      print(
        f'warning   {path} has no record of the cases that trained it: whether '
        'it has seen the cases held out now cannot be told, now or later'
      )
    else:
      held_out.check_beginning(record, digests, path)
  return record


def first_state(
  config: ConfigDict,
  channel_names: Sequence[str],
  arguments: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Any] | None]:
  """Returns the state of step 0, and what `write` takes of its origin.

  Weights, statistics and their averages are those that the model predicts
  with; the optimizer begins anew.

  Args:
    config: resolved.
    channel_names: of the images.
    arguments: of `state.create_state`, but for its key.

  Raises:
    InputError: the model is damaged, or does not fit the network.
  """
  state = create_state(key=weights_key(config.seed), **arguments)
  if not config.init_from:
    return state, None
  path, mesh = pathlib.Path(config.init_from), arguments['mesh']
  with _blame(path):
    stored = multihost.primary_first(lambda: model_folder.read(path))
    sha256 = stored.description['weights']['sha256']
    if sha256 != multihost.from_primary(lambda: sha256):
      raise InputError(f'{path}: not the same file on every host')
    before = _meaning(stored.config, stored.description['channel_names'])
    settings = _settings(stored.config, stored.description['plan'])
  fresh = {'params': state.params, 'batch_stats': state.batch_stats}
  fresh = jax.device_get(sharding.local_copy(fresh, sharding.own_part(mesh)))
  found = transfer(
    _flat(stored.variables),
    _flat(fresh),
    before=before,
    after=_meaning(config, channel_names),
    where=str(path),
  )
  variables = traverse_util.unflatten_dict(found.arrays, sep='/')
  for name in ('params', 'batch_stats'):
    for field in (name, f'ema_{name}'):
      if (old := getattr(state, field)) is not None:
        new = jax.tree.map(_in_place_of, old, variables.get(name, {}))
        state = state.replace(**{field: new})
  report = {
    'version': begun_with.VERSION,
    'path': str(path),
    'sha256': sha256,
    'step': stored.step,
    'checkpoint': stored.checkpoint,
    'settings': settings,
    **found.report,
  }
  print(begun_with.describe(report), flush=True)
  return state, report


def _flat(variables: Any) -> dict[str, np.ndarray]:
  return traverse_util.flatten_dict(variables, sep='/')


def _in_place_of(old: jax.Array, new: np.ndarray) -> jax.Array:
  # A copy: the averages must not share memory with what they are of.
  return sharding.to_devices(old.sharding, np.array(new, old.dtype))


def _meaning(config: ConfigDict, channel_names: Sequence[str]) -> Meaning:
  """Returns what outputs and channels of a resolved config's network are."""
  if pretraining.is_asked(config):
    outputs = pretraining.output_names(channel_names)
    return Meaning(outputs, background=False, channels=tuple(channel_names))
  regions = tuple(name for name, _ in config.data.regions)
  return Meaning(
    classes=regions or tuple(config.data.classes[1:]),
    background=not regions and not uses_sigmoid(config.loss),
    channels=tuple(channel_names),
  )


def check_resuming(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises InputError where a training goes on that began with other weights.

  The model may have moved, or be gone: its weights count.
  """
  record, path = begun_with.read(workdir), pathlib.Path(config.init_from)
  advice = 'or use another --workdir'
  if record is None:
    if config.init_from:
      raise InputError(
        f'config.init_from is {path}, but the training in {workdir} began with '
        f'weights of its own and goes on with them; leave it out, {advice}'
      )
    return
  began = f'{record.get("path")} (sha256 {record["sha256"][:12]})'
  if not config.init_from:
    raise InputError(
      f'config.init_from is not given, but the training in {workdir} began '
      f'with {began}; give it again, {advice}'
    )
  if not path.exists():
    return  # told already
  with _blame(path):
    found = model_folder.read_description(path)['weights']['sha256']
  if found != record['sha256']:
    raise InputError(
      f'config.init_from is {path} (sha256 {str(found)[:12]}), but the '
      f'training in {workdir} began with {began}; give that again, {advice}'
    )
