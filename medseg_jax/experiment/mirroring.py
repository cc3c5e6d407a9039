"""Along which axes training mirrors, and prediction therefore may.

The config counts the axes of an image as its source hands it out, of volumes
(z, y, x) towards superior, posterior and left. The plan may put them in another
order, and a network of slices sees only the last two of that order.
"""

import re
from collections.abc import Iterable, Sequence

from ml_collections import ConfigDict

from medseg_jax.runtime.errors import InputError

_SIDES = ('left', 'right')
# Short for a side only where the other side is there, too: L1 is a vertebra.
_SHORT = {'l': 'r', 'lt': 'rt', 'lh': 'rh'}


def in_training(config: ConfigDict) -> tuple[int, ...]:
  """Returns the axes of a patch that training mirrors, counted from 0.

  Args:
    config: resolved.

  Raises:
    InputError: `config.augment.flip_axes` has what is no axis of the images.
  """
  order = _order(config)
  chosen = _chosen(config, len(order))
  if not config.augment.flip_prob:
    return ()
  seen = order[len(order) - len(config.patch_size) :]
  return tuple(i for i, axis in enumerate(seen) if axis in chosen)


def in_prediction(config: ConfigDict) -> tuple[int, ...]:
  """Returns the axes of a tile whose mirrorings are averaged.

  A network that never saw mirrored images says nothing sensible of them.
  """
  return in_training(config) if config.inference.mirror else ()


def describe(config: ConfigDict) -> str:
  """Returns what of the mirroring that was asked for is not done, or ''."""
  if not config.inference.mirror:
    return ''
  axes = in_prediction(config)
  if len(axes) == len(config.patch_size):
    return ''
  if not axes:
    return ', predictions not mirrored, as training mirrors no axis'
  order = _order(config)
  names = _names(order[len(order) - len(config.patch_size) + i] for i in axes)
  return f', predictions mirrored along {names} alone, as in training'


def side_warning(config: ConfigDict) -> str:
  """Returns a line where sides have names, but training swaps them, or ''."""
  order = _order(config)
  across = len(order) - 1  # x
  seen = order[len(order) - len(config.patch_size) :]
  mirrored = [seen[i] for i in in_training(config)]
  names = [*config.data.classes, *(name for name, _ in config.data.regions)]
  sided = sided_names(names)
  if not sided or across not in mirrored:
    return ''
  more = f' and {len(sided) - 2} more' if len(sided) > 2 else ''
  others = sorted(set(mirrored) - {across})
  instead = f'augment.flip_axes={",".join(map(str, others))}'
  return (
    f'warning   {", ".join(sided[:2])}{more}: named by their side, but '
    f'training mirrors left and right (axis {across}), so they may be mixed '
    f'up; --config.{instead if others else "augment.flip_prob=0"} leaves that '
    'axis alone'
  )


def sided_names(names: Sequence[str]) -> list[str]:
  """Returns those of the names that say left or right."""
  words = {name: _words(name) for name in names}
  swapped = {**_SHORT, **{right: left for left, right in _SHORT.items()}}
  known = list(words.values())

  def is_sided(found: list[str]) -> bool:
    if any(word.startswith(_SIDES) for word in found):
      return True
    other = [swapped.get(word, word) for word in found]
    return other != found and other in known

  return [name for name in words if is_sided(words[name])]


def _words(name: str) -> list[str]:
  """Returns the words of 'kidney_left', 'LeftKidney' or 'kidney L'."""
  apart = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name)
  return re.findall(r'[^\W\d_]+|\d+', apart.lower())


def _order(config: ConfigDict) -> tuple[int, ...]:
  """Returns the axes of an image in the order in which they are learnt."""
  return tuple(config.data.axes) or tuple(range(len(config.patch_size)))


def _chosen(config: ConfigDict, rank: int) -> tuple[int, ...]:
  """Returns the checked `config.augment.flip_axes`, all where it is ()."""
  axes = tuple(config.augment.get('flip_axes', ()))  # older configs have none
  if not set(axes) <= set(range(rank)) or len(set(axes)) < len(axes):
    raise InputError(
      f'config.augment.flip_axes is {axes}; allowed are some of '
      f'{_names(range(rank))}, each once, or () for all'
    )
  return axes or tuple(range(rank))


def _names(axes: Iterable[int]) -> str:
  return ', '.join(map(str, axes))
