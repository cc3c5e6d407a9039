"""The plan of a run on volumes: read from plan.json, or made from the data."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment import cascade
from medseg_jax.experiment.config_files import to_tuples
from medseg_jax.experiment.sources import listed, tell
from medseg_jax.experiment.survey import survey
from medseg_jax.experiment.transfer import match
from medseg_jax.runtime.errors import InputError, quote_json
from medseg_jax.runtime.files import expand_home, read_json, write_atomically

# What of a configuration trained weights depend on.
_OF_WEIGHTS = (
  'spacing',
  'features',
  'strides',
  'kernel_sizes',
  'convs_per_stage',
  'residual_blocks',
)


class Origin(NamedTuple):
  """The plan of another data set, to be moved to this one.

  Attributes:
    where: the model that a training begins with, or the file.
    plan: of a model with the patch and spacing that it was trained with.
    configuration: the one of the network.
    key: of the config, which names it.
  """

  where: str
  plan: dict[str, Any]
  configuration: str
  key: str = 'config.init_from'


def given(config: ConfigDict, workdir: pathlib.Path) -> Origin | None:
  """Returns the plan that `config.plan.path` names, None where it names none.

  A workdir that has its plan does without the file, where that is gone.

  Raises:
    InputError: it is no plan, or not the one that the config asks for.
  """
  key = 'config.plan.path'
  if not config.plan.path:
    return None
  path = expand_home(config.plan.path, or_set=key)
  if not path.exists() and (workdir / 'plan.json').exists():
    return None
  plan = _read(path)
  _check_asked(plan, path, config)
  name = configuration_name(config, plan['configurations'])
  return Origin(str(path), plan, name, key)


def obtain(
  config: ConfigDict,
  opened: dict[str, VolumeSource],
  workdir: pathlib.Path,
  origin: Origin | None = None,
) -> dict[str, Any]:
  """Returns the workdir's plan, making and writing it where there is none.

  A plan.json that is there is obeyed, whoever edited it.

  Raises:
    InputError: the data has errors, or the plan does not fit data and config,
      or contradicts the one to be taken over.
  """
  path = workdir / 'plan.json'
  if path.exists():
    plan = read(path, config, opened['train'], origin)
    print(f'plan      {path}', flush=True)
    return plan
  plan = make(config, opened, origin)
  write_atomically(path, planner.to_json(plan).encode())
  print(f'plan      written to {path}', flush=True)
  return plan


def make(
  config: ConfigDict,
  opened: dict[str, VolumeSource],
  origin: Origin | None = None,
) -> dict[str, Any]:
  """Returns the plan for the data, after a survey; or `origin`'s, moved to it.

  Prints what is odd about voxels, and how much there is of each class.

  Raises:
    InputError: the one error in the data; of several, each is printed.
  """
  found = survey(opened, root=config.data.cache_dir)
  source = opened['train']
  tell(found.warnings)
  for line in found.classes:
    print(f'class     {line}', flush=True)
  if found.errors:
    raise listed(found.errors, source.root)
  try:
    plan = planner.make_plan(
      found.fingerprint,
      dataset=source.root.name,
      num_classes=_num_outputs(source),
      channel_names=source.channel_names,
      preset=config.plan.preset,
      memory_gb=config.plan.memory_gb,
    )
  except ValueError as error:
    raise InputError(f'config.plan: {error}') from error
  if origin is None:
    return plan
  print(f'note      the plan is that of {origin.where}, moved to this data')
  if new := set(source.channel_names) - set(origin.plan['channel_names']):
    print(
      f'note      not in that plan: {name_some(sorted(new))}; this data says '
      'how they are normalised'
    )
  return _move(origin, plan)


def _move(origin: Origin, planned: dict[str, Any]) -> dict[str, Any]:
  """Returns a plan of elsewhere for this data set.

  As nnU-Net moves plans between data sets, with the intensity statistics of
  their own. A channel that it does not know has those of the new data.

  Args:
    origin: of the model, or of the file.
    planned: what the new data would have by itself.
  """
  moved = origin.plan | {
    key: planned[key] for key in ('dataset', 'num_classes', 'channel_names')
  }
  old, new = origin.plan, planned
  places = match(old['channel_names'], new['channel_names'])

  def take(before: list[Any], now: list[Any]) -> list[Any]:
    return [now[i] if p is None else before[p] for i, p in enumerate(places)]

  moved['normalization'] = take(old['normalization'], new['normalization'])
  moved['fingerprint'] = old['fingerprint'] | {
    'intensities': take(
      old['fingerprint']['intensities'], new['fingerprint']['intensities']
    )
  }
  moved['notes'] = {
    origin.key.removeprefix('config.'): f'moved from data set {old["dataset"]} '
    f'with {origin.where}',
    **(old.get('notes') or {}),
  }
  return moved


def read(
  path: pathlib.Path,
  config: ConfigDict,
  source: VolumeSource,
  origin: Origin | None = None,
) -> dict[str, Any]:
  """Returns a plan, as written or as edited since.

  Raises:
    InputError: it is no JSON, makes no sense, or is one for other data or
      settings.
  """
  plan = _read(path)
  facts = {
    'dataset': source.root.name,
    'channel_names': list(source.channel_names),
    'num_classes': _num_outputs(source),
  }
  for key, value in facts.items():
    if plan[key] != value:
      raise InputError(
        f'{path}: {key} is {quote_json(plan[key])}, but {source.root} has '
        f'{quote_json(value)}; use another --workdir, or move the plan away to '
        'plan anew'
      )
  _check_asked(plan, path, config)
  if origin is not None:
    _check_same_plan(path, plan, origin)
  return plan


def _read(path: pathlib.Path) -> dict[str, Any]:
  plan = read_json(path, 'as --mode=plan writes it')
  try:
    planner.check_plan(plan)
  except ValueError as error:
    raise InputError(f'{path}: {error}') from error
  return plan


def _check_asked(
  plan: dict[str, Any], path: pathlib.Path, config: ConfigDict
) -> None:
  """Raises InputError where a plan was made with other settings."""
  asked = {'preset': config.plan.preset}
  if config.plan.memory_gb:
    asked['memory_gb'] = config.plan.memory_gb
  for key, value in asked.items():
    if plan[key] != value:
      raise InputError(
        f'config.plan.{key} is {value!r}, but {path} was made with '
        f'{plan[key]!r}; use another --workdir, or move the plan away to '
        'plan anew'
      )


def _check_same_plan(
  path: pathlib.Path, plan: dict[str, Any], origin: Origin
) -> None:
  """Raises InputError where a plan is not the one to be taken over.

  It would give trained weights what they never saw.

  Patch and batch may be others.
  """
  old, name = origin.plan, origin.configuration
  places = match(old['channel_names'], plan['channel_names'])
  pairs = [('axes', plan['axes'], old['axes'])]
  pairs += [
    (f'normalization[{i}]', plan['normalization'][i], old['normalization'][p])
    for i, p in enumerate(places)
    if p is not None
  ]
  now, before = plan['configurations'], old['configurations']
  pairs += [
    (f'configurations.{name}.{key}', now.get(name, {}).get(key), value)
    for key, value in before[name].items()
    if key in _OF_WEIGHTS
  ]
  for key, found, wanted in pairs:
    if found != wanted:
      raise InputError(
        f'{path}: {key} is {quote_json(found)}, but {origin.where} '
        f'({origin.key}) has {quote_json(wanted)}; move the plan away to take '
        'that one over, or use another --workdir'
      )


def _num_outputs(source: VolumeSource) -> int:
  # Without labels every channel is restored.
  return len(source.regions) or len(source.classes) or source.channels


def apply(config: ConfigDict, plan: dict[str, Any]) -> None:
  """Fills in what `config` leaves open."""
  chosen = _configuration(config, plan)
  data, model, augment = config.data, config.model, config.augment
  for key in ('normalize', 'window', 'resize', 'axes', 'intensities'):
    if data[key]:
      raise InputError(
        f'config.data.{key} is {data[key]!r}; for volumes the plan says that: '
        'edit plan.json in the workdir (--mode=plan makes it)'
      )
  data.axes = tuple(plan['axes'])
  data.spacing = tuple(data.spacing or chosen['spacing'])
  data.crop = True
  data.intensities = tuple(
    (str(c['scheme']), *(float(c[k]) for k in ('low', 'high', 'mean', 'std')))
    for c in plan['normalization']
  )
  config.batch_size = config.batch_size or chosen['batch_size']
  rotation = chosen['augment']
  if config.patch_size:
    rotation = planner.plan_rotation(tuple(config.patch_size))
  config.patch_size = tuple(config.patch_size or chosen['patch_size'])
  if model.depth and not model.features:
    raise InputError(
      f'config.model.depth is {model.depth}, but features is left to the plan; '
      'set features, strides and kernel_sizes too, or edit plan.json'
    )
  if not model.depth:
    with model.ignore_type():  # numbers for all stages become one for each
      model.depth = len(chosen['strides'])
      model.strides = to_tuples(chosen['strides'])
      model.kernel_sizes = to_tuples(chosen['kernel_sizes'])
      model.convs_per_stage = to_tuples(chosen['convs_per_stage'])
      model.residual_blocks = to_tuples(chosen['residual_blocks']) or 0
      model.features = _features(model, chosen['features'])
  if augment.rotation_degrees is None:
    augment.rotation_degrees = float(rotation['rotation_degrees'])
  if augment.in_plane is None:
    augment.in_plane = bool(rotation['in_plane'])
  if config.overlap.batch is None:
    config.overlap.batch = bool(chosen['batch_dice'])


def _features(model: ConfigDict, planned: Sequence[int]) -> tuple[int, ...]:
  """Returns the features of each stage: the plan's, or in their ratio.

  So that one number serves configurations whose plans end at other widths.
  """
  if isinstance(model.features, tuple):
    return model.features
  first = model.features or planned[0]
  return tuple(
    min(max(round(number * first / planned[0]), 1), model.max_features)
    for number in planned
  )


def _configuration(config: ConfigDict, plan: dict[str, Any]) -> dict[str, Any]:
  known = cascade.with_cascade(plan['configurations'])
  return known[configuration_name(config, known)]


def configuration_name(config: ConfigDict, known: dict[str, Any]) -> str:
  """Returns which of a plan's configurations a config chooses.

  Raises:
    InputError: the plan has no such one.
  """
  name = config.plan.configuration
  if not name:
    flat = len(config.patch_size) == 2 or '3d_fullres' not in known
    name = '2d' if flat else '3d_fullres'
  if name not in known:
    raise InputError(
      f'config.plan.configuration is {name!r}; this data set has '
      + ', '.join(known)
    )
  return name
