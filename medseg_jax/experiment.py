"""From a config to the objects of a run.

With `sources`, `planning` and `predictor` the lowest to know a config. The
programs (train, evaluate, predict, benchmark) share these steps, each a
plain function of the config or of a section of it.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import augment, planning, sources
from medseg_jax.data.case import Source
from medseg_jax.data.preprocess import Channel, Preprocessing, check
from medseg_jax.losses import uses_sigmoid
from medseg_jax.models import Model, create_model
from medseg_jax.models.blocks import check_divisible
from medseg_jax.optim import create_optimizer, create_schedule
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically
from medseg_jax.step import check_batch_splits
from medseg_jax.training import device_cache

SOFT_TISSUE = (-160.0, 240.0)  # HU, the usual window on the abdomen
_MEANING_OF_DATA = (
  'classes',
  'label_values',
  'channels',
  'normalize',
  'window',
  'resize',
  'regions',
  'region_order',
  'axes',
  'crop',
  'spacing',
  'intensities',
)


@contextlib.contextmanager
def blame(key: str) -> Iterator[None]:
  """Turns a constructor's complaint into one that names the config's key."""
  try:
    yield
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    raise InputError(f'config.{key}: {error}') from error


def open_run(
  config: ConfigDict, workdir: pathlib.Path
) -> tuple[ConfigDict, dict[str, Source]]:
  """Returns the config with what data and plan tell, and the sources."""
  if config.data.source != 'volumes':
    by_split = sources.open_sources(config, workdir)
    return resolve(config, by_split['train']), by_split
  # Without a plan the survey lists all problems at once.
  strict = (workdir / 'plan.json').exists()
  opened = sources.open_volumes(config, strict=strict)
  plan = planning.obtain(config, opened, workdir)
  by_split = sources.with_folds(opened, config, workdir)
  given = config.batch_size
  config.data.held_out = sources.held_out_key(by_split)
  config = resolve(config, opened['train'], plan)
  if not given:  # planned for one device
    config.batch_size = sharding.round_up(config.batch_size, mesh_of(config))
  return config, by_split


def resolve(
  config: ConfigDict, source: Source, plan: dict[str, Any] | None = None
) -> ConfigDict:
  """Returns the config with what the data and its plan tell filled in."""
  config = ConfigDict(config.to_dict())
  if plan is not None:
    config.data.regions = _tuples(source.regions)
    config.data.region_order = tuple(source.region_order)
    planning.apply(config, plan)
  if config.data.regions and not uses_sigmoid(config.loss):
    # Overlapping regions have no softmax: its losses change to their twins.
    for name in [n for n in config.loss if not n.startswith('sigmoid_')]:
      config.loss[f'sigmoid_{name}'] = config.loss[name]
      config.loss[name] = 0.0
  config.augment.in_plane = bool(config.augment.in_plane)
  config.overlap.batch = bool(config.overlap.batch)
  config.data.classes = tuple(source.classes)
  config.data.label_values = tuple(int(v) for v in source.label_values)
  config.data.channels = int(source.channels)
  if not config.data.normalize:
    # Phantoms are in Hounsfield units: over a z-score, air and bone would
    # press the organs into a sliver of the range.
    config.data.normalize = 'zscore'
    if config.data.source == 'phantom':
      config.data.normalize, config.data.window = 'window', SOFT_TISSUE
  if config.num_epochs:
    examples = config.num_epochs * len(source)
    config.num_steps = -(-examples // max(config.batch_size, 1))
  return config


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  write_atomically(workdir / 'config.json', text.encode())


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns the resolved config that the workdir's model was trained with."""
  path = workdir / 'config.json'
  try:
    return ConfigDict(_tuples(json.loads(path.read_text())))
  except FileNotFoundError:
    raise InputError(
      f'no config.json in {workdir}; train with this --workdir first'
    ) from None
  except (OSError, ValueError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


def _tuples(value: Any) -> Any:
  """JSON has lists where the config had tuples."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(_tuples(item) for item in value)
  return value


def preprocessing_of(config: ConfigDict) -> Preprocessing:
  data = config.data
  settings = Preprocessing(
    normalize=data.normalize,
    window=tuple(data.window),
    resize=tuple(data.resize),
    channels=tuple(Channel(*channel) for channel in data.intensities),
    axes=tuple(data.axes),
    crop=data.crop,
    spacing=tuple(data.spacing),
  )
  check(settings)
  return settings


def mesh_of(config: ConfigDict) -> Mesh:
  return sharding.create_mesh(**config.mesh)


def model_of(config: ConfigDict) -> Model:
  """Returns the model of a resolved config, its patch sizes checked."""
  num_classes = len(config.data.classes)
  with blame('loss'):
    if config.data.regions:
      num_classes = len(config.data.regions)
    elif uses_sigmoid(config.loss):
      num_classes -= 1
  fields = config.model.to_dict()
  with blame('model'):
    model = create_model(
      fields.pop('name'), num_classes, dtype=config.dtype, **fields
    )
  for key, size in [
    ('patch_size', tuple(config.patch_size)),
    ('inference.patch_size', tile_size(config)),
  ]:
    with blame(key):
      check_divisible(size, model.divisor(len(size)))
  return model


def tile_size(config: ConfigDict) -> tuple[int, ...]:
  """Returns the size of the tiles that whole images are predicted in."""
  return tuple(config.inference.patch_size) or tuple(config.patch_size)


def check_shapes(config: ConfigDict, source: Source, mesh: Mesh) -> None:
  """Raises InputError where patches, data and devices do not fit together."""
  if config.seed < 0:
    raise InputError(f'config.seed is {config.seed}; allowed is 0 or more')
  if len(config.patch_size) not in (2, 3):
    raise InputError(
      f'config.patch_size is {tuple(config.patch_size)}; it has 2 or 3 numbers'
    )
  if config.data.source == 'volumes':
    rank, ranks = 3, {3, 2}  # volumes may be learnt in slices
  else:
    rank = source[0].image.ndim - 1
    ranks = {rank}
  for key, size in [
    ('patch_size', config.patch_size),
    ('inference.patch_size', tile_size(config)),
    ('data.resize', config.data.resize or (1,) * rank),
  ]:
    if len(size) not in ranks:
      raise InputError(
        f'config.{key} is {tuple(size)}, but the images have {rank} axes; '
        f'{rank} numbers are needed'
      )
  if config.data.device_cache not in device_cache.MODES:
    raise InputError(
      f'config.data.device_cache is {config.data.device_cache!r}; allowed are '
      f'{", ".join(device_cache.MODES)}'
    )
  sharding.check_batch_size(config.batch_size, mesh)
  check_batch_splits(config.batch_size, config.batch_splits, mesh)
  shards = mesh.shape['spatial']
  if config.patch_size[0] % shards:
    raise InputError(
      f'config.patch_size is {tuple(config.patch_size)}, whose first axis '
      f'config.mesh.spatial={shards} cannot share evenly'
    )


def check_same_meaning(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises InputError where `config` would reinterpret the workdir's weights.

  Weights of the same shape fit, but mean another thing with another
  normalisation, other classes or another model section.
  """
  if not (workdir / 'config.json').exists():
    return  # the shapes of the weights are checked in any case
  before = read_config(workdir).data
  if (str(before.fold), before.get('held_out', '')) != (
    str(config.data.fold),
    config.data.held_out,
  ):
    raise InputError(
      f'config.data.fold {config.data.fold} holds out other cases than the '
      f'weights in {workdir} were trained without (fold {before.fold}, and '
      'splits.json as it was then); use another --workdir'
    )
  old, new = _tuples(read_config(workdir).to_dict()), _tuples(config.to_dict())
  keys = [('model', key) for key in sorted(old['model'] | new['model'])]
  keys += [('data', key) for key in _MEANING_OF_DATA]
  for section, key in keys:
    before, now = old[section].get(key), new[section].get(key)
    if before != now:
      raise InputError(
        f'config.{section}.{key} is {now}, but the checkpoint in {workdir} is '
        f'of another model, with {before}; keep that, or use another --workdir'
      )


def augment_fields(config: ConfigDict) -> dict[str, Any]:
  """Returns the arguments of `augment.create_augment`."""
  return dict(patch_size=tuple(config.patch_size), **config.augment)


def patch_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns what of the config says which patches are read."""
  with blame('augment'):
    first, *rest = augment.read_size(tuple(config.patch_size), **config.augment)
  # The first axis is shared by the devices of the spatial axis.
  read_size = (first + -first % config.mesh.spatial, *rest)
  return dict(
    batch_size=config.batch_size,
    patch_size=tuple(config.patch_size),
    read_size=read_size,
    foreground_share=config.data.foreground_share,
  )


def optimizer_of(
  config: ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  settings = config.optimizer.to_dict()
  with blame('schedule'):
    schedule = create_schedule(
      learning_rate=settings.pop('learning_rate'),
      num_steps=config.num_steps,
      **config.schedule,
    )
  with blame('optimizer'):
    tx = create_optimizer(learning_rate=schedule, **settings)
  return tx, schedule


def state_arguments(
  config: ConfigDict,
  model: Model,
  tx: optax.GradientTransformation,
  mesh: Mesh,
) -> dict[str, Any]:
  """Returns the arguments of create_state and of abstract_state."""
  return dict(
    model=model,
    tx=tx,
    mesh=mesh,
    image_shape=(1, *config.patch_size, config.data.channels),
    ema=config.ema_decay > 0,
  )
