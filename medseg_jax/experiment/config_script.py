"""A config file in Python, such as configs/unet.py, and keys set on top."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from medseg_jax.experiment import overrides
from medseg_jax.runtime.errors import InputError

_REPOSITORY = pathlib.Path(__file__).parents[2]


def load(
  path: str | os.PathLike,
  keys: Sequence[tuple[str, str]] = (),
  *,
  what: str = '--config=',
) -> ConfigDict:
  """Returns the config of a file.

  Args:
    path: of the file; `auto.py:2d` calls its `get_config('2d')`.
    keys: (key, text) to set in it, see `overrides.apply`.
    what: names the path in messages.

  Raises:
    InputError: no such file, it does not load, or has no such key or value.
  """
  path = os.fspath(path)
  name, *argument = path.split(':', 1)
  file = pathlib.Path(name)
  if not file.is_file():
    near = sorted(p.name for p in file.parent.glob('*.py'))
    raise InputError(
      f'{what}{path}: no such file'
      + (f'; {file.parent} holds {", ".join(near)}' if near else '')
    )
  # Configs import each other as `from configs import ...`, wherever the
  # command is typed.
  for folder in (file.resolve().parents[1], _REPOSITORY):
    if str(folder) not in sys.path:
      sys.path.append(str(folder))
  spec = importlib.util.spec_from_file_location('_config', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*argument)
  except Exception as error:
    raise InputError(
      f'{what}{path} does not load: {type(error).__name__}: {error}'
    ) from error
  overrides.apply(config, keys)
  return config
