"""Masks that number single objects, such as cells, in place of classes.

One rule for images and volumes; what the user says always wins.
"""

from collections.abc import Sequence

import numpy as np

from medseg_jax.data.labels import MAX_CLASSES
from medseg_jax.data.numbered_objects import (
  HANDFUL,
  Objects,
  are_blobs,
  are_in_place,
)
from medseg_jax.runtime.errors import InputError, quote

WISHES = ('', 'foreground', 'classes')  # what data.instances may be
# What objects may be: 'sure', or 'perhaps' for what may be classes as well.
SURE, PERHAPS = 'sure', 'perhaps'
# Up to so many values may be classes where every file has the same.
MANY = 20
# Of the numbers from 1 to the largest so many occur, unless objects were
# deleted. Then more than so many in one file, and more than MANY in all, are
# needed, and files that differ.
_SHARE = 0.9
_WITH_GAPS = 10


def check_wish(wish: str) -> None:
  """Raises InputError for what `data.instances` may not be."""
  if wish not in WISHES:
    raise InputError(
      f'config.data.instances is {quote(wish)}; allowed are '
      f'{", ".join(map(repr, WISHES))}'
    )


def choose(
  values: Sequence[np.ndarray],
  objects: Sequence[Objects | None],
  *,
  wish: str,
  classes: Sequence[str],
  label_values: Sequence[int],
  where: str,
) -> tuple[str, str]:
  """Returns what the values of a set of masks are, and a line to tell.

  'foreground' where they are the numbers of objects, which all become one
  class, else ''. The line is '' where there is nothing to tell.

  Args:
    values: of each mask.
    objects: of some of the masks at least, as for `judge`.
    wish: 'foreground' or 'classes'; '' to look at the masks.
    classes: the names that are given; more than two are of classes.
    label_values: those that are given; they are of classes.
    where: the data set, for messages.

  Raises:
    InputError: another wish, or one that the label values contradict.
  """
  check_wish(wish)
  if wish == 'foreground':
    check_label_values(label_values)
    return wish, ''
  if wish or label_values or len(classes) > 2:
    return '', ''
  verdict = judge(values, objects)
  if not verdict:
    return '', ''
  most = max(len(present) for present in _without_zero(values))
  found = f'number single objects, up to {most} in a file, each one blob'
  if verdict == SURE:
    line = f'{where}: the masks {found}: all become one class, the foreground'
    if not _are_too_many(values):
      line += (
        "; data.instances='classes', or data.label_values, makes a class of "
        'each number'
      )
    return 'foreground', line
  return '', (
    f'{where}: the masks perhaps {found}; each number is a class of its own '
    "unless data.instances='foreground' makes all of them one; 'classes' says "
    'that they are classes'
  )


def judge(
  values: Sequence[np.ndarray], objects: Sequence[Objects | None]
) -> str:
  """Returns SURE or PERHAPS where a set of masks numbers objects, '' elsewhere.

  Objects are more than a handful in one file, nearly each number is one blob,
  and they lie anywhere, where organs lie the same way from each other. It is
  not sure of one file alone, nor where few values are the same in all. Numbers
  with gaps must be more (`_WITH_GAPS`). More values than there can be classes
  are objects, of one file too.

  Args:
    values: of each mask.
    objects: of those masks that may number some (see `numbered_objects`); None
      of those whose values are no blobs, or were not looked at.
  """
  found = [some for some in objects if some is not None]
  if not found or not are_many(values):
    return ''
  if are_in_place(found) or not are_blobs(found):
    return ''
  present = _without_zero(values)
  if _are_too_many(values):
    return SURE
  alike = all(np.array_equal(each, present[0]) for each in present)
  if _have_gaps(present):
    return '' if alike or len(found) == 1 else SURE
  few = alike and len(present[0]) <= MANY
  return PERHAPS if few or len(found) == 1 else SURE


def are_many(values: Sequence[np.ndarray]) -> bool:
  """Returns whether a set of masks has so many values as objects need."""
  present = _without_zero(values)
  if not present or min(each.min() for each in present) < 0:
    return False
  most = max(len(each) for each in present)
  if not _have_gaps(present):
    return most > HANDFUL
  every = np.unique(np.concatenate(present))
  return most > _WITH_GAPS and len(every) > MANY


def check_label_values(label_values: Sequence[int]) -> None:
  """Raises InputError for values that one foreground class cannot have."""
  if label_values and len(label_values) != 2:
    raise InputError(
      f'data.label_values: {quote(tuple(label_values))}, {len(label_values)} '
      "values; allowed are two with data.instances='foreground', of the "
      'background and of all objects, or none'
    )


def _are_too_many(values: Sequence[np.ndarray]) -> bool:
  """Returns whether these are more values than there can be classes."""
  every = np.unique(np.concatenate(_without_zero(values)))
  return len(every) >= MAX_CLASSES  # the background is one, too


def _have_gaps(present: Sequence[np.ndarray]) -> bool:
  return any(len(each) < _SHARE * each.max() for each in present)


def _without_zero(values: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns the values of each mask but 0, of those that have others."""
  present = [np.asarray(each, np.int64) for each in values]
  present = [each[each != 0] for each in present]
  return [each for each in present if len(each)]
