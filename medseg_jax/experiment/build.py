"""From a resolved config to the objects of a run.

The programs share these steps, each a plain function of the config or of a
section of it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import augment
from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.data.normalize import MASKED
from medseg_jax.data.preprocess import Channel, Preprocessing, check
from medseg_jax.experiment import (
  cascade,
  mirroring,
  patch_growth,
  pretraining,
)
from medseg_jax.experiment.patch_growth import Stage
from medseg_jax.losses import create_loss, uses_sigmoid
from medseg_jax.models import Model, convolution, create_model
from medseg_jax.models.blocks import check_divisible
from medseg_jax.models.norms import MAX_GROUPS
from medseg_jax.optim import create_optimizer, create_schedule
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.step import TrainStep, check_batch_splits
from medseg_jax.training import device_cache, reconstruction


@contextlib.contextmanager
def blame(key: str) -> Iterator[None]:
  """Turns a constructor's complaint into one that names the config's key."""
  try:
    yield
  except InputError:
    raise
  except (TypeError, ValueError) as error:
    raise InputError(f'config.{key}: {error}') from error


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


def mesh_of(config: ConfigDict, devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the config's mesh of `devices`, None for all there are."""
  return sharding.create_mesh(**config.mesh, devices=devices)


def model_of(
  config: ConfigDict, mesh: Mesh | None, *, convolutions: str = ''
) -> Model:
  """Returns the model of a resolved config, its patch sizes checked.

  Args:
    config: resolved.
    mesh: of the programs that the model will be a part of. None where
      `convolutions` are given.
    convolutions: who computes them; '' for what is best on `mesh`.
  """
  num_classes = len(config.data.classes)
  with blame('loss'):
    if config.data.regions:
      num_classes = len(config.data.regions)
    elif uses_sigmoid(config.loss):
      num_classes -= 1
  if pretraining.is_asked(config):
    num_classes = config.data.channels
  fields = config.model.to_dict()
  with blame('model'):
    model = create_model(
      fields.pop('name'),
      num_classes,
      dtype=config.dtype,
      convolutions=convolutions or convolution.choose(mesh)[0],
      **fields,
    )
  for key, size in [
    ('patch_size', tuple(config.patch_size)),
    ('inference.patch_size', tile_size(config)),
  ]:
    if len(size) != len(config.patch_size):
      raise InputError(
        f'config.{key} is {size}; allowed is a number for each of the '
        f'{len(config.patch_size)} axes of config.patch_size'
      )
    with blame(key):
      check_divisible(size, model.divisor(len(size)))
  return model


def describe_network(config: ConfigDict, mesh: Mesh) -> str:
  """Returns a line on the network, its convolutions and its mirrorings."""
  convolutions, why = convolution.choose(mesh)
  who = 'oneDNN' if convolutions == convolution.ONEDNN else 'XLA'
  because = f' ({why})' if why else ''
  return (
    f'network   {config.model.name}, convolutions by {who}{because}'
    + mirroring.describe(config)
  )


def tile_size(config: ConfigDict) -> tuple[int, ...]:
  """Returns the size of the tiles that whole images are predicted in."""
  return tuple(config.inference.patch_size) or tuple(config.patch_size)


def stages_of(config: ConfigDict) -> tuple[Stage, ...]:
  """Returns the stages of a training, of patches of one size each."""
  rank, divisor = len(config.patch_size), (1,) * len(config.patch_size)
  if config.patch_growth:
    patch_growth.check(config)
    divisor = model_of(config, None, convolutions='xla').divisor(rank)
  return patch_growth.stages_of(config, divisor)


def check_shapes(config: ConfigDict, source: Source, mesh: Mesh) -> None:
  """Raises InputError where patches, data and devices do not fit together."""
  check_ranges(config)
  check_overlap(config)
  if len(config.patch_size) not in (2, 3):
    raise InputError(
      f'config.patch_size is {tuple(config.patch_size)}; it has 2 or 3 numbers'
    )
  if config.data.source in VOLUMES:
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


def check_ranges(config: ConfigDict) -> None:
  """Raises InputError where a number lets nothing be learnt."""
  rate, share = config.optimizer.learning_rate, config.data.foreground_share
  # A model may be taken over, and scored, as it is.
  steps, tuned = config.num_steps, bool(config.init_from)
  own, anneal = config.fine_tune.learning_rate, config.stop.anneal
  warmup = config.fine_tune.warmup_fraction
  warms = warmup is None or (
    isinstance(warmup, int | float) and 0 <= warmup < 1
  )
  for key, value, fits, allowed in [
    ('num_steps', steps, steps > 0 or tuned, '1 or more'),
    ('optimizer.learning_rate', rate, rate > 0, 'numbers above 0'),
    ('fine_tune.learning_rate', own, own >= 0, '0 or more'),
    ('fine_tune.warmup_fraction', warmup, warms, 'None and 0 to below 1'),
    ('stop.anneal', anneal, 0 < anneal <= 1, 'numbers above 0, up to 1'),
    ('data.foreground_share', share, 0 <= share <= 1, '0 to 1'),
    ('ema_decay', config.ema_decay, 0 <= config.ema_decay < 1, '0 to below 1'),
  ]:
    if not fits:
      raise InputError(f'config.{key} is {value}; allowed are {allowed}')


def check_overlap(config: ConfigDict) -> None:
  """Raises InputError where tiles would not get any further."""
  overlap = config.inference.overlap
  if not 0 <= overlap < 1:
    raise InputError(
      f'config.inference.overlap is {overlap}; allowed are 0 to below 1'
    )


def check_statistics(config: ConfigDict, model: Model) -> None:
  """Raises InputError where the norm has nothing to take its statistics over.

  Of a single value mean and deviation say nothing: what comes out is the same
  for every image, and nothing is learnt from it.
  """
  norm, patch = config.model.get('norm', ''), tuple(config.patch_size)
  if norm not in ('batch', 'instance', 'group'):
    return
  lowest = math.prod(
    size // by
    for size, by in zip(patch, model.divisor(len(patch)), strict=True)
  )
  batch = config.batch_size // config.batch_splits
  values = lowest * batch if norm == 'batch' else lowest
  if values > 1 or (norm == 'group' and _channels_of_a_group(config) > 1):
    return
  more = ', a batch (or part of one) of 2 or more' if norm == 'batch' else ''
  raise InputError(
    f'config.patch_size {patch} leaves a single voxel at the lowest of '
    f'{counted(config.model.depth, "resolution")}, so {norm} norm has one '
    'value to take mean and deviation of, and nothing is learnt; what would '
    f'do: a patch of {tuple(2 * size for size in patch)}, config.model.depth '
    f'{config.model.depth - 1}{more}'
  )


def _channels_of_a_group(config: ConfigDict) -> int:
  model = config.model
  features = model.features
  if isinstance(features, tuple | list):
    channels = features[-1]
  else:
    channels = min(features * 2 ** (model.depth - 1), model.max_features)
  return channels // math.gcd(channels, MAX_GROUPS)


def augment_fields(config: ConfigDict) -> dict[str, Any]:
  """Returns the arguments of `augment.create_augment`."""
  return config.augment.to_dict() | {
    'patch_size': tuple(config.patch_size),
    'flip_axes': mirroring.in_training(config),
  }


def patch_settings(config: ConfigDict) -> dict[str, Any]:
  """Returns what of the config says which patches are read."""
  with blame('augment'):
    first, *rest = augment.read_size(**augment_fields(config))
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
  settings, shape = config.optimizer.to_dict(), config.schedule.to_dict()
  rate = settings.pop('learning_rate')
  if config.init_from:
    rate = config.fine_tune.learning_rate or rate
    if config.fine_tune.warmup_fraction is not None:
      shape['warmup_fraction'] = config.fine_tune.warmup_fraction
  with blame('schedule'):
    schedule = create_schedule(
      learning_rate=rate, num_steps=config.num_steps, **shape
    )
  schedule = patch_growth.by_voxels(schedule, stages_of(config))
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
    image_shape=image_shape(config),
    ema=config.ema_decay > 0,
  )


def train_step_of(
  config: ConfigDict,
  model: Model,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
) -> TrainStep:
  """Returns the train step of a resolved config, not yet compiled."""
  with blame('loss'):
    loss_fn = create_loss(
      config.loss,
      regions=tuple(classes for _, classes in config.data.regions),
      **config.overlap,
    )
  hide_fn = None
  if pretraining.is_asked(config):
    hide_fn = pretraining.hide_fn_of(config, model)
    loss_fn = reconstruction.squared_error
  with blame('augment'):
    augment_fn = augment.create_augment(**augment_fields(config))
  return TrainStep(
    model=model,
    tx=tx,
    loss_fn=loss_fn,
    augment_fn=augment_fn,
    schedule=schedule,
    seed=config.seed,
    ema_decay=config.ema_decay,
    masked_channels=tuple(
      i
      for i, channel in enumerate(config.data.intensities)
      if channel[0] == MASKED
    ),
    batch_splits=config.batch_splits,
    num_labels=cascade.num_labels(config),
    hide_fn=hide_fn,
  )


def image_shape(config: ConfigDict) -> tuple[int, ...]:
  """Returns the shape of an image that the network can be initialised on."""
  channels = config.data.channels + cascade.num_labels(config)
  return (1, *config.patch_size, channels)


def tile_shape(config: ConfigDict) -> tuple[int, ...]:
  """Returns the shape of a tile that is predicted, with its channels.

  Of a cascade the last channel is the mask of the coarser network.
  """
  channels = config.data.channels + cascade.is_asked(config)
  return (*tile_size(config), channels)
