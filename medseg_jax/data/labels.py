"""From the values of masks to classes, and the names of the classes."""

from collections.abc import Sequence

import numpy as np

from medseg_jax.runtime.errors import InputError, counted, quote

# More values than this are the numbers of single objects; and more than the
# second with most of them loose are a picture.
MAX_CLASSES = 256
MAX_LOOSE_CLASSES = 32
_LARGEST_IN_TABLE = 2**16


def unknown_values(
  where,
  values: Sequence[int],
  label_values: tuple[int, ...],
  *,
  counts: Sequence[int] = (),
  files: str = '',
) -> InputError:
  """Returns the error for a mask with values that no class has.

  Args:
    where: the mask's file.
    values: those values.
    label_values: of the classes.
    counts: of the pixels of each value; empty where they are not known.
    files: how many other masks have them, in words.
  """
  texts = [str(int(value)) for value in values[:8]]
  if counts:
    texts = [
      f'{text} ({counted(n, "pixel")})'
      for text, n in zip(texts, counts, strict=False)
    ]
  more = f', ... ({len(values)} in all)' if len(values) > 8 else ''
  return InputError(
    f'{where}: label values of no class: {", ".join(texts)}{more}{files}; '
    f'allowed are data.label_values {_few(label_values)}'
  )


def to_classes(mask: np.ndarray, label_values: tuple[int, ...]) -> np.ndarray:
  """Returns int32 class indices: of the nearest label value, or the lower."""
  order = np.argsort(label_values)
  ascending = np.asarray(label_values, np.float64)[order]
  middles = (ascending[1:] + ascending[:-1]) / 2
  order = order.astype(np.int32)
  if mask.size and mask.dtype.kind in 'iu':
    low, high = int(mask.min()), int(mask.max())
    if max(-low, high) < _LARGEST_IN_TABLE:  # quicker than to search
      table = order[np.searchsorted(middles, np.arange(low, high + 1))]
      return table[mask.astype(np.int64) - low]
  return order[np.searchsorted(middles, mask)]


def name_classes(
  classes: Sequence[str], label_values: Sequence[int], where: str
) -> tuple[str, ...]:
  """Returns `classes`, or default names where empty, one for each value.

  Raises:
    InputError: label values or names that repeat, fewer than two values, or
      another number of classes.
  """
  if len(label_values) < 2 or len(set(label_values)) < len(label_values):
    raise InputError(
      f'config.data.label_values is {_few(label_values)}; allowed are two or '
      'more different integers, the background first'
    )
  if not classes:
    if len(label_values) == 2:
      return ('background', 'foreground')
    numbered = [f'class_{i}' for i in range(1, len(label_values))]
    return ('background', *numbered)
  if len(classes) != len(label_values):
    raise InputError(
      f'{where}: config.data.classes is {_few(classes)}, of '
      f'{counted(len(classes), "class", "classes")}, but there are '
      f'{len(label_values)} label values, {_few(label_values)}; allowed is one '
      'class for each value (data.label_values may name values that are absent)'
    )
  repeated = [name for name in classes if list(classes).count(name) > 1]
  if repeated:  # scores are told apart by the names
    raise InputError(
      f'{where}: data.classes {_few(classes)} has {quote(repeated[0])} more '
      'than once; allowed is a name of its own for each class'
    )
  return tuple(classes)


def _few(items: Sequence) -> str:
  """Returns a tuple as text, its middle left out where it is long."""
  return quote(tuple(items), 90)
