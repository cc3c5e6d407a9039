"""Masks that number single objects, such as cells, in place of classes."""

from collections.abc import Sequence

import numpy as np
from absl import logging

from medseg_jax.data.numbered_objects import (
  Objects,
  are_at_home,
  are_blobs,
  are_numbered,
)
from medseg_jax.runtime.errors import InputError, quote

WISHES = ('', 'foreground', 'classes')  # what data.instances may be
# Up to so many values may be classes where every file has the same.
MANY = 20


def choose(
  masks: Sequence,
  wish: str,
  classes: Sequence[str],
  label_values: Sequence[int],
  where: str,
) -> str:
  """Returns 'foreground' where all objects are of one class, '' elsewhere.

  Says so where it was not asked for.

  Args:
    masks: `MaskValues` of all masks.
    wish: 'foreground' or 'classes'; '' to look at the masks.
    classes: the names that are given; more than two are of classes.
    label_values: those that are given; they are of classes.
    where: the data set, for messages.

  Raises:
    InputError: another wish, or one that the label values contradict.
  """
  if wish not in WISHES:
    raise InputError(
      f'config.data.instances is {quote(wish)}; allowed are '
      f'{", ".join(map(repr, WISHES))}'
    )
  if wish == 'foreground':
    if label_values and len(label_values) != 2:
      raise InputError(
        f'config.data.label_values is {quote(tuple(label_values))}; allowed '
        "are two values with data.instances='foreground', of the background "
        'and of all objects'
      )
    return wish
  if wish or label_values or len(classes) > 2:
    return ''
  if not are_instances(
    [mask.values for mask in masks], [mask.objects for mask in masks]
  ):
    return ''
  most = max(int(mask.values[-1]) for mask in masks)
  logging.warning(
    '%s: the masks number single objects, up to %d in a file, each one blob: '
    "all become one class, the foreground; data.instances='classes', or "
    'data.label_values, makes a class of each number',
    where, most,
  )  # fmt: skip
  return 'foreground'


def are_instances(
  values: Sequence[np.ndarray], objects: Sequence[Objects | None]
) -> bool:
  """Returns whether a set of masks numbers objects rather than classes.

  So it is where two files or more count up to more than a handful, nearly each
  number is one blob, none is at home in one place (see `numbered_objects`), and
  files have different numbers, or more than there are classes.

  Args:
    values: of each mask, ascending.
    objects: of each mask; None of those that count nothing up.
  """
  found = [some for some in objects if some is not None]
  if len(found) < 2 or not are_numbered([each.tolist() for each in values]):
    return False
  sizes = {len(some.parts) for some in found}
  return (
    (len(sizes) > 1 or min(sizes) > MANY)
    and are_blobs(found)
    and not are_at_home(found, every_axis=True)
  )
