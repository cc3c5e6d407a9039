"""From a config to the objects of a run. Below here there is no config.

The programs (train, evaluate, predict, benchmark) share these steps, each a
plain function of the config or of a section of it.
"""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax import sharding
from medseg_jax.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.data.case import Source
from medseg_jax.data.preprocess import Preprocessing, check
from medseg_jax.errors import InputError
from medseg_jax.files import write_atomically
from medseg_jax.losses import uses_sigmoid
from medseg_jax.models import Model, create_model
from medseg_jax.models.blocks import check_divisible
from medseg_jax.optim import create_optimizer, create_schedule
from medseg_jax.state import abstract_state
from medseg_jax.step import create_predict

SOURCES = ('phantom', 'folder', 'tfds')
SOFT_TISSUE = (-160.0, 240.0)  # HU, the usual window on the abdomen
_MEANING_OF_DATA = (
  'classes', 'label_values', 'channels', 'normalize', 'window', 'resize'
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


def open_sources(config: ConfigDict) -> dict[str, Source]:
  """Returns the sources by split: train, and what there is of val and test."""
  sources = _open_sources(config)
  if 'train' not in sources:
    raise InputError(
      f'config.data: no case to train on in {config.data.source} '
      f'{config.data.path}; a train split with at least one case is needed'
    )
  return sources


def _open_sources(config: ConfigDict) -> dict[str, Source]:
  data = config.data
  folds = dict(
    fold=data.fold, num_folds=data.num_folds, fold_order=data.fold_order
  )
  naming = dict(
    classes=_classes(data), label_values=tuple(data.label_values)
  )
  if data.source == 'phantom':
    from medseg_jax.data.phantom import open_phantom

    return open_phantom(
      shape=tuple(data.phantom.shape) or tuple(config.patch_size),
      seed=data.phantom.seed,
      num_train=data.phantom.num_train,
      num_val=data.phantom.num_val,
      num_test=data.phantom.num_test,
    )
  if data.source == 'folder':
    from medseg_jax.data.folder import open_folder

    return open_folder(data.path, roi=data.roi, **naming, **folds)
  if data.source == 'tfds':
    from medseg_jax.data.tfds_source import open_tfds

    return open_tfds(
      data.path,
      data_dir=data.tfds.data_dir,
      image_key=data.tfds.image_key,
      mask_key=data.tfds.mask_key,
      **naming,
      **folds,
    )
  raise InputError(
    f'config.data.source is {data.source!r}; allowed are ' + ', '.join(SOURCES)
  )


def _classes(data: ConfigDict) -> tuple[str, ...]:
  names = tuple(data.classes)
  if len(names) == 1 and ',' in names[0]:  # from the command line: a,b,c
    names = tuple(name.strip() for name in names[0].split(','))
  return names


def resolve(config: ConfigDict, source: Source) -> ConfigDict:
  """Returns the config with what the data tells filled in."""
  config = ConfigDict(config.to_dict())
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
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def preprocessing_of(config: ConfigDict) -> Preprocessing:
  data = config.data
  settings = Preprocessing(
    normalize=data.normalize,
    window=tuple(data.window),
    resize=tuple(data.resize),
  )
  check(settings)
  return settings


def mesh_of(config: ConfigDict) -> Mesh:
  return sharding.create_mesh(**config.mesh)


def model_of(config: ConfigDict) -> Model:
  """Returns the model of a resolved config, its patch sizes checked."""
  num_classes = len(config.data.classes)
  with blame('loss'):
    if uses_sigmoid(config.loss):
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
  rank = source[0].image.ndim - 1
  for key, size in [
    ('patch_size', config.patch_size),
    ('inference.patch_size', tile_size(config)),
    ('data.resize', config.data.resize or (1,) * rank),
  ]:
    if len(size) != rank:
      raise InputError(
        f'config.{key} is {tuple(size)}, but the images have {rank} axes; '
        f'{rank} numbers are needed'
      )
  sharding.check_batch_size(config.batch_size, mesh)
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


class Predictor(NamedTuple):
  """A trained model, ready to predict.

  Attributes:
    predict_fn: `[N, *tile, C] -> [N, *tile, num_classes]`, compiled once.
    step: of the checkpoint.
    which: 'best' or 'latest'.
  """

  predict_fn: Callable[[jax.Array], jax.Array]
  step: int
  which: str


def load_predictor(
  config: ConfigDict, workdir: pathlib.Path, which: str
) -> Predictor:
  """Returns the model of the workdir's checkpoint.

  Where nothing was held out to choose a best checkpoint by (`data.fold=all`),
  'best' is the latest.
  """
  mesh, model = mesh_of(config), model_of(config)
  tx, _ = optimizer_of(config)
  with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
    if which == BEST and checkpoints.step(BEST) is None:
      which = LATEST
    state = checkpoints.restore(
      which, abstract_state(**state_arguments(config, model, tx, mesh))
    )
  predict_fn = functools.partial(
    compile_predict(config, model, mesh), state.eval_variables
  )
  return Predictor(predict_fn, int(state.step), which)


def compile_predict(config: ConfigDict, model: Model, mesh: Mesh):
  """Returns `(variables, image [N, *tile, C]) -> logits`, jitted on `mesh`."""
  predict = create_predict(
    model=model,
    sigmoid=uses_sigmoid(config.loss),
    mirror=config.inference.mirror,
  )
  layout = sharding.examples(mesh)
  jitted = jax.jit(
    predict,
    in_shardings=(sharding.replicated(mesh), layout),
    out_shardings=sharding.replicated(mesh),
  )

  def predict_on_mesh(variables, image):
    with jax.set_mesh(mesh):
      return jitted(variables, jax.device_put(image, layout))

  return predict_on_mesh


def prediction_settings(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
  """Returns the arguments of `segment.predict_cases` below the config."""
  size = config.inference.batch_size or config.batch_size
  share = mesh.shape['data']
  return dict(
    preprocessing=preprocessing_of(config),
    channels=config.data.channels,
    patch_size=tile_size(config),
    overlap=config.inference.overlap,
    batch_size=-(-size // share) * share,
  )
