"""The config of a run as a file, and whether another one means the same."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically

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
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  write_atomically(workdir / 'config.json', text.encode())


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns the resolved config that the workdir's model was trained with."""
  path = workdir / 'config.json'
  try:
    return ConfigDict(to_tuples(json.loads(path.read_text())))
  except FileNotFoundError:
    raise InputError(
      f'no config.json in {workdir}; train with this --workdir first'
    ) from None
  except (OSError, ValueError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


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
