"""A trained model as a folder, or a zip of it, that travels.

`model.safetensors` holds the weights that predict, which any framework can
open; `model.json` says all else: what the network is, what it wants to see and
what its outputs mean, how it was trained, on what, and how it scored. Nothing
else is needed to predict, and nothing in it is code. `README.md` tells people
the most of it.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.experiment import cascade, pretraining
from medseg_jax.experiment.config_files import complete
from medseg_jax.experiment.model_card import CARD, of_model
from medseg_jax.experiment.model_files import DESCRIPTION, read_file
from medseg_jax.losses import uses_sigmoid
from medseg_jax.runtime.errors import InputError, doing, quote, shorten
from medseg_jax.runtime.files import flush, flush_names, parse_json, replacing

FORMAT, FORMAT_VERSION = 'medseg_jax model', 1
WEIGHTS = 'model.safetensors'
PREVIOUS = 'previous_stage'  # of a cascade, the folder of its first network

# Of the network, what changes neither its weights nor what it predicts.
OF_TRAINING = ('dropout', 'remat')
# Where the keys of config.data stand in model.json; the rest is under training.
_MEANING = ('classes', 'label_values', 'regions', 'region_order')
_PREPROCESSING = ('normalize', 'window', 'resize', 'axes', 'crop', 'spacing')
_CHANNEL = ('scheme', 'low', 'high', 'mean', 'std')


class StoredModel(NamedTuple):
  """What a model folder holds.

  Attributes:
    config: as the training had it resolved.
    variables: of the network, NumPy float32: 'params' and, where it has such,
      'batch_stats'.
    step: number of updates that made the weights.
    checkpoint: 'best' or 'latest', which of the training they are.
    description: the content of `model.json`.
  """

  config: ConfigDict
  variables: dict[str, Any]
  step: int
  checkpoint: str
  description: dict[str, Any]


def describe(
  config: ConfigDict,
  *,
  channel_names: Sequence[str],
  plan: Mapping[str, Any] | None,
  num_cases: Mapping[str, int],
  record: Mapping[str, Any] | None,
  step: int,
  checkpoint: str,
  scores: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """Returns the content of `model.json`, but for the hash of the weights.

  Every key of the config stands in exactly one place, so that none can
  contradict another; `config_of` puts them together again.

  Args:
    config: resolved.
    channel_names: one for each channel.
    plan: of volumes, else None.
    num_cases: by split.
    record: of the cases, as held_out.json holds it; None where that is lost.
    step: number of updates that made the weights.
    checkpoint: 'best' or 'latest'.
    scores: the summary of the held-out split; None where nothing is held out.
  """
  rest = config.to_dict()
  network, inference = rest.pop('model'), rest.pop('inference')
  data = rest['data']
  meaning = {key: data.pop(key) for key in _MEANING}
  preprocessing = {key: data.pop(key) for key in _PREPROCESSING}
  preprocessing['intensities'] = [
    dict(zip(_CHANNEL, channel, strict=True))
    for channel in data.pop('intensities')
  ]
  return {
    'format': FORMAT,
    'format_version': FORMAT_VERSION,
    'written_by': {
      'medseg_jax': medseg_jax.__version__,
      'jax': jax.__version__,
      'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    },
    'network': network | {'dtype': rest.pop('dtype')},
    'output': pretraining.OUTPUT
    if pretraining.is_asked(config)
    else 'sigmoid'
    if uses_sigmoid(config.loss)
    else 'softmax',
    **meaning,
    'channels': data.pop('channels'),
    'channel_names': list(channel_names),
    'preprocessing': preprocessing,
    'inference': inference
    | {
      'patch_size': inference['patch_size'] or rest['patch_size'],
      'batch_size': inference['batch_size'] or rest['batch_size'],
    },
    'plan': plan,
    'training': {
      'step': step,
      'checkpoint': checkpoint,
      'num_cases': dict(num_cases),
      'cases': record,
      'config': rest,
    },
    'scores': scores,
  }


def config_of(description: Mapping[str, Any]) -> ConfigDict:
  """Returns the config of a `model.json`, as the training had it resolved."""
  return complete(_put_together(description), DESCRIPTION)


def _put_together(description: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sections of a config, as far as `model.json` has them."""
  config = json.loads(json.dumps(description['training']['config']))
  network = dict(description['network'])
  config['dtype'] = network.pop('dtype')
  inference = dict(description['inference'])
  if inference['batch_size'] == config['batch_size']:
    inference['batch_size'] = 0  # that of the training; a CPU may take fewer
  config |= {'model': network, 'inference': inference}
  data = config['data']
  data |= {key: description[key] for key in (*_MEANING, 'channels')}
  preprocessing = dict(description['preprocessing'])
  data['intensities'] = [
    [channel[key] for key in _CHANNEL]
    for channel in preprocessing.pop('intensities')
  ]
  data |= preprocessing
  return config


def write(
  folder: pathlib.Path,
  description: Mapping[str, Any],
  variables: Any,
  previous: pathlib.Path | None = None,
) -> None:
  """Writes a model folder, in the place of one that is there, whole.

  Args:
    folder: made where it does not exist.
    description: see `describe`.
    variables: of the network, on the host or on devices.
    previous: of a cascade, the model folder of its first network.
  """
  flat = traverse_util.flatten_dict(jax.device_get(variables), sep='.')
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  weights = safetensors.numpy.save(arrays, {'format': 'flax'})
  text = json.dumps(
    {
      **description,
      'weights': {
        'file': WEIGHTS,
        'sha256': hashlib.sha256(weights).hexdigest(),
        'num_parameters': sum(
          array.size for name, array in arrays.items() if 'params.' in name
        ),
      },
    },
    indent=2,
    allow_nan=False,
  )
  with replacing_folder(folder) as new:
    (new / WEIGHTS).write_bytes(weights)
    (new / DESCRIPTION).write_text(text + '\n', encoding='utf-8')
    (new / CARD).write_text(of_model(description), encoding='utf-8')
    if previous is not None:
      (new / PREVIOUS).mkdir()
      copy(previous, new / PREVIOUS)


@contextlib.contextmanager
def replacing_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder, which takes the place of `folder`, whole.

  Nothing happens to a folder that is there where the block fails.
  """
  new, old = (
    folder.with_name(f'.{folder.name}.{os.getpid()}.{age}')
    for age in ('new', 'old')
  )
  try:
    with doing('write the model', folder):
      new.mkdir(parents=True)
      yield new
      flush(new)
      if folder.exists():
        os.replace(folder, old)
      try:
        os.replace(new, folder)
      except OSError:
        if old.exists():
          os.replace(old, folder)
        raise
      flush_names(folder.parent)
  finally:
    for path in (new, old):
      shutil.rmtree(path, ignore_errors=True)


def pack(
  folder: pathlib.Path, target: pathlib.Path, places: Sequence[str] = ('',)
) -> None:
  """Writes the zip of a model folder; the same folder gives the same bytes.

  Args:
    folder: see `write`.
    target: the zip.
    places: the models in it, see `read`.

  Raises:
    InputError: `target` is there already, or there is no model.
  """
  if target.exists():
    raise InputError(
      f'{target}: is there already and is not overwritten; name another '
      '--output'
    )
  names = [DESCRIPTION]
  for at in places:
    read_description(folder, at)
    parts = (at, join(at, PREVIOUS)) if has_previous(folder, at) else (at,)
    names += [join(p, name) for p in parts for name in (DESCRIPTION, WEIGHTS)]
  places = dict.fromkeys(pathlib.PurePosixPath(name).parent for name in names)
  cards = [str(place / CARD) for place in places]  # older models have none
  names += [name for name in cards if (folder / name).exists()]
  with replacing(target) as temporary, zipfile.ZipFile(temporary, 'w') as file:
    for name in dict.fromkeys(names):
      # Weights do not compress; a fixed date keeps the bytes the same.
      member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
      with doing('read the model', folder / name):
        file.writestr(member, (folder / name).read_bytes())


def copy(path: pathlib.Path, folder: pathlib.Path, at: str = '') -> None:
  """Writes the model of a folder or a zip to an empty folder, bit for bit.

  Args:
    path: of the folder or the zip.
    folder: to be filled.
    at: see `read`.

  Raises:
    InputError: see `read`.
  """
  weights = _weights(path, at, read_description(path, at))
  (folder / WEIGHTS).write_bytes(weights)
  (folder / DESCRIPTION).write_bytes(read_file(path, join(at, DESCRIPTION)))
  with contextlib.suppress(InputError):  # older models have none
    (folder / CARD).write_bytes(read_file(path, join(at, CARD)))
  if has_previous(path, at):
    (folder / PREVIOUS).mkdir()
    copy(path, folder / PREVIOUS, join(at, PREVIOUS))


def has_previous(path: pathlib.Path, at: str = '') -> bool:
  """Returns whether a model is the second network of a cascade.

  Arguments and errors are those of `read`.
  """
  return cascade.is_asked(config_of(read_description(path, at)))


def read_json(path: pathlib.Path, at: str = '') -> dict[str, Any]:
  """Returns what `model.json` holds, of whatever format, which it names.

  Arguments and errors are those of `read`.
  """
  text = read_file(path, join(at, DESCRIPTION))
  with damages(path / at, f'{DESCRIPTION} is damaged'):
    description = parse_json(text)
    _ = description['format'], description['format_version']
  return description


def check_format(
  description: Mapping[str, Any], path: pathlib.Path, known: tuple[str, int]
) -> None:
  """Raises InputError where a description is not of the (format, version)."""
  found = description['format'], description['format_version']
  if found != known:
    raise InputError(
      f'{path}: {DESCRIPTION} is of {quote(found[0])}, version '
      f'{quote(found[1])}; this medseg_jax ({medseg_jax.__version__}) reads '
      f'{known[0]!r}, version {known[1]}'
    )


def read_description(path: pathlib.Path, at: str = '') -> dict[str, Any]:
  """Returns the content of `model.json` of a model folder or its zip.

  Arguments and errors are those of `read`.
  """
  description = read_json(path, at)
  check_format(description, path / at, (FORMAT, FORMAT_VERSION))
  with damages(path / at, f'{DESCRIPTION} is damaged'):
    _put_together(description)
  return description


def read(path: pathlib.Path, at: str = '') -> StoredModel:
  """Returns the model of a model folder or its zip.

  Args:
    path: of the folder or the zip.
    at: the model folder inside it, as `3d_fullres/fold_0`; '' for itself.

  Raises:
    InputError: it is none, of another format, or damaged.
  """
  description = read_description(path, at)
  weights = _weights(path, at, description)
  with damages(path / at, 'the model is damaged'):
    training = description['training']
    arrays = safetensors.numpy.load(weights)
    return StoredModel(
      config=config_of(description),
      variables=traverse_util.unflatten_dict(arrays, sep='.'),
      step=training['step'],
      checkpoint=training['checkpoint'],
      description=description,
    )


def _weights(
  path: pathlib.Path, at: str, description: Mapping[str, Any]
) -> bytes:
  """Returns the file of the weights that the description was written with."""
  weights = read_file(path, join(at, WEIGHTS))
  found = hashlib.sha256(weights).hexdigest()
  with damages(path / at, 'the model is damaged'):
    wanted = description['weights']['sha256']
    if found != wanted:
      raise InputError(
        f'{path / at}: {WEIGHTS} is not the file that {DESCRIPTION} was '
        f'written with (sha256 {found[:12]}..., expected '
        f'{str(wanted)[:12]}...)'
      )
  return weights


@contextlib.contextmanager
def damages(path: pathlib.Path, what: str) -> Iterator[None]:
  """Turns what files of other content lead to into one line."""
  try:
    yield
  except InputError:
    raise
  except (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    safetensors.SafetensorError,
  ) as error:
    raise InputError(
      f'{path}: {what} ({type(error).__name__}: {shorten(str(error), 200)}); '
      'allowed is a model that medseg_jax wrote'
    ) from error


def join(at: str, name: str) -> str:
  return f'{at}/{name}' if at else name
