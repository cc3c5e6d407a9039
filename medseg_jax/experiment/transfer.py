"""Trained weights put into a network of other classes or other channels.

All parameters and statistics are taken as they are, but for two places.

Segmentation layers have a row for each output. The row of a class of the same
name is kept; others are those of the new network. A softmax has a row for the
background, which is the first and is kept as such; a sigmoid has none. From one
to the other, the row of a class goes over as `class - background`, and the
other way the background is 0: of two classes the probabilities stay the same.

The first convolution has a kernel for each channel. That of a channel of the
same name is kept, and other channels take the mean over the channels that there
were. Where no channel is kept, all are multiplied by the old number of channels
over the new one, so that channels that are alike give what as many old ones
gave (as inflated networks do along time: Carreira and Zisserman 2017,
arXiv:1705.07750). Where some are kept they are left alone, and the norm that
follows takes what the others add.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medseg_jax.models.parameters import input_kernels, is_head
from medseg_jax.runtime.errors import InputError

Arrays = Mapping[str, np.ndarray]
_MOST_NAMED = 3


class Meaning(NamedTuple):
  """What the first and the last axes of a network mean.

  Attributes:
    classes: name of each output, without the background.
    background: whether an output before these is the background's (softmax).
    channels: name of each channel.
  """

  classes: tuple[str, ...]
  background: bool
  channels: tuple[str, ...]


class Transferred(NamedTuple):
  """Weights to begin with, and where they come from.

  Attributes:
    arrays: by name, as the new network has them.
    report: JSON: names of the arrays that were 'loaded' as they are, 'adapted',
      'new' and 'left_behind'; and of 'classes' and 'channels' those that were
      'kept', are 'new' and were 'left_behind'.
  """

  arrays: dict[str, np.ndarray]
  report: dict[str, Any]


def match(before: Sequence[str], after: Sequence[str]) -> list[int | None]:
  """Returns where in `before` each name of `after` is, None where it is not.

  Where a name is there several times, the first is the first.
  """
  places: dict[str, list[int]] = {}
  for i, name in enumerate(before):
    places.setdefault(name, []).append(i)
  return [places[n].pop(0) if places.get(n) else None for n in after]


def transfer(
  source: Arrays,
  fresh: Arrays,
  *,
  before: Meaning,
  after: Meaning,
  where: str,
) -> Transferred:
  """Returns the weights of `source` for the network of `fresh`.

  Args:
    source: trained, by name: `params/encoder_0/conv_0/kernel`; kernels are
      `[*taps, channels in, channels out]`.
    fresh: as initialised, of the new network.
    before: of the source.
    after: of the new network.
    where: the source, for messages.

  Raises:
    InputError: anything but segmentation layers and channels differs.
  """
  first = {
    f'params/{name}'
    for name in input_kernels(n.removeprefix('params/') for n in fresh)
  }
  heads = {
    name
    for name in source.keys() | fresh.keys()
    if is_head(name.removeprefix('params/'))
  }
  _check(source, fresh, heads, first, before, where)
  arrays: dict[str, np.ndarray] = {}
  report: dict[str, Any] = {'loaded': [], 'adapted': [], 'new': []}
  for name, new in fresh.items():
    if name in heads and name not in source:
      arrays[name], how = new, 'new'
    elif name in heads:
      arrays[name], how = _head(source[name], new, before, after)
    elif name in first and before.channels != after.channels:
      arrays[name], how = _first(source[name], before, after), 'adapted'
    else:
      arrays[name], how = source[name], 'loaded'
    report[how].append(name)
  report['left_behind'] = sorted(source.keys() - fresh.keys())
  for what in ('classes', 'channels'):
    report[what] = _compare(getattr(before, what), getattr(after, what))
  return Transferred(arrays, report)


def _compare(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
  places = match(before, after)
  return {
    'kept': [n for n, i in zip(after, places, strict=True) if i is not None],
    'new': [n for n, i in zip(after, places, strict=True) if i is None],
    'left_behind': [n for i, n in enumerate(before) if i not in places],
  }


def _head(
  old: np.ndarray, new: np.ndarray, before: Meaning, after: Meaning
) -> tuple[np.ndarray, str]:
  """Returns a segmentation layer `[..., outputs]` and what became of it."""
  if before[:2] == after[:2]:
    return old, 'loaded'
  places = match(before.classes, after.classes)
  if not any(i is not None for i in places) and not (
    before.background and after.background
  ):
    return new, 'new'
  result = np.array(new)
  if after.background:
    result[..., 0] = old[..., 0] if before.background else 0
  for i, place in enumerate(places):
    if place is None:
      continue
    row = old[..., place + before.background]
    if before.background and not after.background:
      row = row - old[..., 0]
    result[..., i + after.background] = row
  return result, 'adapted'


def _first(old: np.ndarray, before: Meaning, after: Meaning) -> np.ndarray:
  """Returns the kernels `[*taps, channels, features]` of the new channels."""
  places = match(before.channels, after.channels)
  mean = old.mean(-2, dtype=np.float64)
  if not any(i is not None for i in places):
    mean *= len(before.channels) / len(after.channels)
  kernels = [mean if i is None else old[..., i, :] for i in places]
  return np.stack(kernels, -2).astype(old.dtype)


def _check(
  source: Arrays,
  fresh: Arrays,
  heads: set[str],
  first: set[str],
  before: Meaning,
  where: str,
) -> None:
  """Raises InputError where what has to match does not."""
  free = -1
  outputs = len(before.classes) + before.background

  def compared(arrays: Arrays, name: str) -> tuple[int, ...] | None:
    if name not in arrays:
      return None
    shape = arrays[name].shape
    if name in heads:
      return (*shape[:-1], free)
    if name in first and len(shape) > 1:
      return (*shape[:-2], free, *shape[-1:])
    return shape

  wrong = []
  for name in sorted(source.keys() | fresh.keys()):
    if name in heads and (name not in source or name not in fresh):
      continue
    there, here = compared(source, name), compared(fresh, name)
    fits = there == here
    if name in source and name in heads:
      fits &= source[name].shape[-1:] == (outputs,)
    if name in source and name in first:
      fits &= source[name].shape[-2:-1] == (len(before.channels),)
    if not fits:
      shapes = [
        f'{arrays[name].shape}' if name in arrays else 'none'
        for arrays in (source, fresh)
      ]
      wrong.append(f'{name} is {shapes[0]} there and {shapes[1]} here')
  if wrong:
    more = len(wrong) - _MOST_NAMED
    raise InputError(
      f'config.init_from: the weights in {where} do not fit this network: '
      + ', '.join(wrong[:_MOST_NAMED])
      + (f', and {more} more' if more > 0 else '')
      + '; all but segmentation layers and channels must be alike: as many '
      'axes of config.patch_size as the model had, on such images; of volumes '
      'the plan of the model, which is taken over where the workdir has none'
    )
