"""Whole numbers of a config, held against what they may be before any work."""

import numbers
from collections.abc import Iterator

from ml_collections import ConfigDict

from medseg_jax.runtime.errors import InputError, quote

_MOST = 2**31 - 1  # what the step counts in
# Seeds make keys of 32 bits; a larger one would silently be another.
_SEED = (0, 2**32 - 1)
_PHANTOM = (0, 10**9 - 1)
# The lowest and the highest that each may be; 0 where a plan or the data tells.
BOUNDS = {
  'seed': _SEED,
  'num_steps': (0, _MOST),
  'num_epochs': (0, _MOST),
  'batch_size': (0, _MOST),
  'batch_splits': (1, _MOST),
  'stop.patience': (0, _MOST),
  'mesh.data': (-1, _MOST),
  'mesh.spatial': (1, _MOST),
  'data.num_folds': (1, _MOST),
  'data.phantom.seed': _PHANTOM,
  'data.phantom.num_train': _PHANTOM,
  'data.phantom.num_val': _PHANTOM,
  'data.phantom.num_test': _PHANTOM,
  'inference.batch_size': (0, _MOST),
  'log_every': (0, _MOST),
  'eval_every': (0, _MOST),
  'checkpoint_every': (0, _MOST),
  'checkpoint_keep': (1, _MOST),
}
# Those that are sizes: each of their numbers.
SIZES = {
  'patch_size': (1, _MOST),
  'data.resize': (1, _MOST),
  'data.phantom.shape': (1, _MOST),
  'inference.patch_size': (1, _MOST),
}


def check(config: ConfigDict, section: str = '') -> None:
  """Raises InputError where a number is no whole one, too small or too large.

  Args:
    config: resolved or not.
    section: name of the only section to look at; '' for all.
  """
  for key, (low, high) in (BOUNDS | SIZES).items():
    if not key.startswith(section):
      continue
    value = _value(config, key)
    for number in _items(value) if key in SIZES else (value,):
      whole = isinstance(number, numbers.Integral) and number is not True
      if not whole or number is False or not low <= number <= high:
        items = 'tuples of ' if key in SIZES else ''
        raise InputError(
          f'config.{key} is {quote(value)}; allowed are {items}whole numbers '
          f'from {low} to {high}'
        )


def _value(config: ConfigDict, key: str) -> object:
  found = config
  for part in key.split('.'):
    found = found[part]
  return found


def _items(value: object) -> Iterator[object]:
  if isinstance(value, tuple | list):
    yield from value
  else:
    yield value
