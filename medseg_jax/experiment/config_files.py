"""The config of a run as a file, and whether another one means the same."""

import functools
import importlib.util
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.runtime.errors import InputError, quote, shorten
from medseg_jax.runtime.files import read_json, write_atomically

# Of the form of config.json; keys may be added without another number.
VERSION = 2
# What a resolved config has beside the keys of configs/unet.py.
_RESOLVED = ('data.channels',)
# Beside those of networks and of the augmentation.
_OF_SEVERAL_KINDS = ('data.fold',)

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


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  text = json.dumps({'version': VERSION, **config.to_dict()}, indent=2) + '\n'
  write_atomically(workdir / 'config.json', text.encode())


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns the resolved config that the workdir's model was trained with.

  Raises:
    InputError: there is none, or it is of another form or of a newer program.
  """
  path = workdir / 'config.json'
  if not path.exists():
    raise InputError(
      f'no config.json in {workdir}; train with this --workdir first'
    )
  found = read_json(path, 'as training writes it')
  if not isinstance(found, dict):
    raise InputError(f'{path}: no config; allowed is one that training wrote')
  version = found.pop('version', 1)
  if type(version) is not int or not 1 <= version <= VERSION:
    raise InputError(
      f'{path}: of version {version!r:.20}; this program '
      f'({medseg_jax.__version__}) reads up to {VERSION}'
    )
  return complete(found, path)


def complete(found: dict[str, Any], where: str | pathlib.Path) -> ConfigDict:
  """Returns a config that was read, with what has been added to configs since.

  Keys that it lacks take their defaults, those of configs/unet.py; keys that
  nothing knows are printed and left out.

  Args:
    found: resolved, from JSON.
    where: the file, for messages.

  Raises:
    InputError: a section is none, a key has a value of another kind, or what
      every training knows of its data is missing.
  """
  defaults = _defaults()
  if isinstance(found.get('model'), dict) and (
    found['model'].get('name') != defaults['model']['name']
  ):
    defaults = {k: v for k, v in defaults.items() if k != 'model'}
  elif 'model' not in found:
    raise InputError(f'{where}: no section model; allowed is a whole config')
  config, unknown = dict(found), []
  _complete(config, defaults, '', unknown, where)
  if unknown:
    print(
      f'warning   {where}: keys that this program ({medseg_jax.__version__}) '
      f'does not know are not looked at: {shorten(", ".join(unknown), 200)}'
    )
  labelled = not config['pretrain']['mask_share']
  _check_resolved(config['data'], labelled, where)
  try:
    return ConfigDict(to_tuples(config))
  except (KeyError, TypeError, ValueError) as error:
    # Keys of a network that no config can have, with a dot, say.
    raise InputError(
      f'{where}: {shorten(str(error), 200)}; allowed is a config that training '
      'wrote'
    ) from error


def _complete(config, defaults, prefix, unknown, where) -> None:
  """Fills in what a section lacks, and takes out what nothing knows."""
  for key, default in defaults.items():
    value = config.setdefault(key, default)
    if not isinstance(default, dict):
      _check_kind(f'{prefix}{key}', value, default, where)
      continue
    if not isinstance(value, dict):
      raise InputError(
        f'{where}: {prefix}{key} is {value!r:.40}; allowed is a section'
      )
    config[key] = dict(value)
    _complete(config[key], default, f'{prefix}{key}.', unknown, where)
  for key in list(config):
    name = f'{prefix}{key}'
    if defaults and key not in defaults and name not in (*_RESOLVED, 'model'):
      del config[key]
      unknown.append(name)


def _check_kind(name: str, value: Any, default: Any, where) -> None:
  """Raises InputError where a value is not of the kind of the default one.

  The keys of networks and of the augmentation may have several, and are
  checked by those who take them.
  """
  if default is None or name.startswith(('model.', 'augment.')):
    return
  if name in _OF_SEVERAL_KINDS:
    return
  kinds: dict[type, tuple[Any, str]] = {
    bool: (bool, 'true or false'),
    int: (int, 'a whole number'),
    float: (int | float, 'a number'),
    str: (str, 'a text'),
    list: (list | tuple, 'a list'),
  }
  kind, allowed = kinds[type(default)]
  if not isinstance(value, kind) or (
    isinstance(value, bool) and type(default) is not bool
  ):
    raise InputError(f'{where}: {name} is {quote(value)}; allowed is {allowed}')


def _check_resolved(data: dict[str, Any], labelled: bool, where) -> None:
  """Raises InputError where the data section is not that of a training.

  One without labels, a pretraining, has no classes.
  """
  classes, values = data['classes'], data['label_values']
  channels = data.get('channels')
  for key, value, fits, allowed in (
    (
      'classes',
      classes,
      (len(classes) > 1 and all(isinstance(name, str) for name in classes))
      if labelled
      else not classes,
      'a list of two names or more' if labelled else 'an empty list',
    ),
    (
      'label_values',
      values,
      len(values) == len(classes) and all(type(v) is int for v in values),
      'a list of a whole number for each class',
    ),
    (
      'channels',
      channels,
      type(channels) is int and channels > 0,
      'a whole number above 0',
    ),
  ):
    if not fits:
      raise InputError(
        f'{where}: data.{key} is {quote(value)}; allowed is {allowed}, as '
        'training writes it'
      )


@functools.cache
def _read_defaults() -> str:
  """Returns the default config, that of configs/unet.py, as JSON.

  It lies beside the package, or, where that was installed without its
  repository, in it (see setup.py).
  """
  package = pathlib.Path(medseg_jax.__file__).parent
  installed = package / 'default_config.py'
  path = installed if installed.exists() else package.parent / 'configs/unet.py'
  spec = importlib.util.spec_from_file_location('_default_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config().to_json()


def _defaults() -> dict[str, Any]:
  return json.loads(_read_defaults())


def default_config() -> ConfigDict:
  """Returns the default config, that of configs/unet.py."""
  return ConfigDict(to_tuples(_defaults()))


def check_same_meaning(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises InputError where `config` would reinterpret the workdir's weights.

  Weights of the same shape fit, but mean another thing with another
  normalisation, other classes or another model section.
  """
  if not (workdir / 'config.json').exists():
    return  # the shapes of the weights are checked in any case
  old, new = (
    to_tuples(read_config(workdir).to_dict()),
    to_tuples(config.to_dict()),
  )
  keys = [('model', key) for key in sorted(old['model'] | new['model'])]
  keys += [('data', key) for key in _MEANING_OF_DATA]
  for section, key in keys:
    before, now = old[section].get(key), new[section].get(key)
    if before != now:
      raise InputError(
        f'config.{section}.{key} is {now}, but the checkpoint in {workdir} is '
        f'of another model, with {before}; keep that, or use another --workdir'
      )


def to_tuples(value: Any) -> Any:
  """JSON has lists where the config had tuples."""
  if isinstance(value, dict):
    return {key: to_tuples(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(to_tuples(item) for item in value)
  return value
