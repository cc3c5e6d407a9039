"""Whether a plan, perhaps edited by its user, makes sense."""

import math
from collections.abc import Callable
from typing import Any

from medseg_jax.runtime.errors import quote, quote_json

# Beyond these are overflows, of no use as sizes or intensities.
_LARGEST, _LARGEST_INT = 1e30, 2**31 - 1
KEYS = (
  'dataset',
  'preset',
  'memory_gb',
  'num_classes',
  'channel_names',
  'fingerprint',
  'axes',
  'normalization',
  'configurations',
)
FINGERPRINT_KEYS = (
  'num_cases',
  'median_shape',
  'median_spacing',
  'relative_size',
  'intensities',
)
CONFIGURATIONS = ('3d_fullres', '2d', '3d_lowres')
CONFIGURATION_KEYS = (
  'spacing',
  'median_shape',
  'patch_size',
  'batch_size',
  'features',
  'strides',
  'kernel_sizes',
  'convs_per_stage',
  'residual_blocks',
  'batch_dice',
  'augment',
)
AUGMENT_KEYS = ('rotation_degrees', 'in_plane')
SCHEMES = ('ct', 'zscore', 'zscore_nonzero', 'scale', 'none')
SCHEME_KEYS = ('scheme', 'low', 'high', 'mean', 'std')


def check_plan(plan: dict) -> None:
  """Raises ValueError for a plan that makes no sense.

  Its message is one line with the key, what was found and what is allowed.
  The `notes` are there to be read; they may be anything, or missing.
  """
  _check_keys('', plan, KEYS, optional=('notes',))
  for key in ('dataset', 'preset'):
    _check(key, plan[key], lambda v: isinstance(v, str), 'a text')
  _check('memory_gb', plan['memory_gb'], _is_positive, 'GB above 0')
  _check_fingerprint(plan['fingerprint'])
  count = 'a whole number above 0'
  _check('num_classes', plan['num_classes'], _is_int(1), count)
  names = plan['channel_names']
  _check(
    'channel_names',
    names,
    lambda v: _is_list(v) and v and all(isinstance(n, str) for n in v),
    'a list of at least one name',
  )
  axes = plan['axes']
  _check(
    'axes',
    axes,
    lambda v: _is_list_of(_is_int(0), 3)(v) and sorted(v) == [0, 1, 2],
    'the numbers 0, 1 and 2, coarsest axis first',
  )
  _check(
    'normalization',
    plan['normalization'],
    lambda v: _is_list(v) and len(v) == len(names),
    f'a list with an entry for each channel, {len(names)}',
  )
  for i, entry in enumerate(plan['normalization']):
    _check_normalization(f'normalization[{i}]', entry)
  configurations = plan['configurations']
  is_object = isinstance(configurations, dict)
  _check(
    'configurations',
    # Its names only: the rest would fill the terminal.
    list(configurations) if is_object else configurations,
    lambda v: is_object and v and set(v) <= set(CONFIGURATIONS),
    'an object with one or more of ' + ', '.join(CONFIGURATIONS),
  )
  for name, configuration in configurations.items():
    rank = len(axes) - (name == '2d')
    _check_configuration(f'configurations.{name}', configuration, rank)


def _check_fingerprint(found: Any) -> None:
  _check_keys('fingerprint', found, FINGERPRINT_KEYS)
  for key in ('num_cases', 'relative_size'):
    _check(f'fingerprint.{key}', found[key], _is_positive, 'a number above 0')
  for key in ('median_shape', 'median_spacing'):
    valid = _is_list_of(_is_positive, 3)
    _check(f'fingerprint.{key}', found[key], valid, '3 numbers above 0')


def _check_normalization(where: str, entry: Any) -> None:
  _check_keys(where, entry, SCHEME_KEYS)
  _check(
    f'{where}.scheme',
    entry['scheme'],
    lambda v: v in SCHEMES,
    'one of ' + ', '.join(SCHEMES),
  )
  for key in SCHEME_KEYS[1:]:
    _check(f'{where}.{key}', entry[key], _is_number, 'a finite number')
  _check(f'{where}.std', entry['std'], _is_positive, 'above 0')
  if entry['scheme'] == 'ct':
    low = entry['low']
    _check(
      f'{where}.high', entry['high'], lambda v: v > low, f'above low, {low:g}'
    )


def _check_configuration(where: str, c: Any, rank: int) -> None:
  _check_keys(where, c, CONFIGURATION_KEYS)
  for key, is_entry, entries in (
    ('spacing', _is_positive, 'mm above 0'),
    ('median_shape', _is_positive, 'voxels above 0'),
    ('patch_size', _is_int(1), 'whole numbers above 0'),
  ):
    _check(
      f'{where}.{key}', c[key], _is_list_of(is_entry, rank), f'{rank} {entries}'
    )
  for key in ('batch_size', 'convs_per_stage'):
    _check(f'{where}.{key}', c[key], _is_int(1), 'a whole number above 0')

  features = c['features']
  _check(
    f'{where}.features',
    features,
    lambda v: v and _is_list_of(_is_int(1))(v),
    'a whole number above 0 for each stage',
  )
  stages = len(features)
  each_stage = f'each stage ({stages}, as features has)'
  for key in ('strides', 'kernel_sizes'):
    _check(
      f'{where}.{key}',
      c[key],
      _is_list_of(_is_list_of(_is_int(1), rank), stages),
      f'{rank} whole numbers above 0 for {each_stage}',
    )
  _check(
    f'{where}.residual_blocks',
    c['residual_blocks'],
    lambda v: v == [] or _is_list_of(_is_int(1), stages)(v),
    f'[] for a plain network, or a whole number for {each_stage}',
  )
  _check(
    f'{where}.strides[0]',
    c['strides'][0],
    lambda v: set(v) == {1},
    '1 along every axis, as the prediction has the full resolution',
  )
  divisor = [math.prod(axis) for axis in zip(*c['strides'], strict=True)]
  _check(
    f'{where}.patch_size',
    c['patch_size'],
    lambda v: all(p % d == 0 for p, d in zip(v, divisor, strict=True)),
    f'multiples of {divisor}, the product of its strides',
  )

  _check(
    f'{where}.batch_dice',
    c['batch_dice'],
    lambda v: isinstance(v, bool),
    'true or false',
  )
  augment = c['augment']
  _check_keys(f'{where}.augment', augment, AUGMENT_KEYS)
  _check(
    f'{where}.augment.rotation_degrees',
    augment['rotation_degrees'],
    lambda v: _is_number(v) and 0 <= v <= 180,
    'a number from 0 to 180',
  )
  _check(
    f'{where}.augment.in_plane',
    augment['in_plane'],
    lambda v: isinstance(v, bool) and not (v and rank == 2),
    'true or false' if rank == 3 else 'false, as there is one plane only',
  )


def _check(
  key: str, value: Any, is_valid: Callable[[Any], Any], allowed: str
) -> None:
  if not is_valid(value):
    raise ValueError(f'{key} is {quote_json(value)}; allowed: {allowed}')


def _check_keys(
  where: str, found: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
  if not isinstance(found, dict):
    raise ValueError(
      f'{where or "the plan"} is {quote_json(found)}; allowed: an object with '
      + ', '.join(keys)
    )
  prefix = where and f'{where}.'
  for key in keys:
    if key not in found:
      raise ValueError(f'{prefix}{key} is missing')
  for key in found:
    if key not in keys + optional:
      # Ignored, it would seem to have been obeyed.
      raise ValueError(
        f'{quote(prefix + key, 100)} is unknown; allowed: ' + ', '.join(keys)
      )


def _is_list(value: Any) -> bool:
  return isinstance(value, list)


def _is_number(value: Any) -> bool:
  is_real = isinstance(value, int | float) and not isinstance(value, bool)
  return is_real and -_LARGEST <= value <= _LARGEST


def _is_positive(value: Any) -> bool:
  return _is_number(value) and value > 0


def _is_int(low: int) -> Callable[[Any], bool]:
  return lambda v: (
    isinstance(v, int) and not isinstance(v, bool) and low <= v <= _LARGEST_INT
  )


def _is_list_of(
  is_entry: Callable[[Any], bool], length: int | None = None
) -> Callable[[Any], bool]:
  return lambda value: (
    _is_list(value)
    and length in (None, len(value))
    and all(is_entry(entry) for entry in value)
  )
