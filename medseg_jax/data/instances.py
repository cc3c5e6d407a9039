"""Masks that number single objects, such as cells, in place of classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from scipy import ndimage

from medseg_jax.runtime.errors import InputError, quote

WISHES = ('', 'foreground', 'classes')  # what data.instances may be
# Fewer numbers than this may just as well be classes ...
HANDFUL = 6
# ... and up to this many, where every file has the same.
MANY = 20
# This share of the numbers must be one connected part each.
WHOLE_SHARE = 0.9
# Objects lie anywhere; organs are at home in a place: their positions vary by
# less than this share of the variance of all positions.
AT_HOME = 0.5


class Objects(NamedTuple):
  """What the numbers 1 to n of a mask mark.

  Attributes:
    centres: `[n, 2]`, of their boxes, as shares of height and width.
    parts: `[n]`, connected parts (8 neighbours) of each.
  """

  centres: np.ndarray
  parts: np.ndarray


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
      f'data.instances: {quote(wish)}; allowed are '
      f'{", ".join(map(repr, WISHES))}'
    )
  if wish == 'foreground':
    if label_values and len(label_values) != 2:
      raise InputError(
        f'data.label_values: {len(label_values)} values; allowed are two with '
        "data.instances='foreground', of the background and of all objects"
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


def find_objects(mask: np.ndarray, values: np.ndarray) -> Objects | None:
  """Returns what a mask marks; None where it does not number many objects.

  Args:
    mask: `[H, W]` integers.
    values: its values, ascending.
  """
  numbers = values[values != 0]
  if mask.ndim != 2 or len(numbers) < HANDFUL or not has_no_gaps(values):
    return None
  centres, parts = [], []
  for number, box in enumerate(ndimage.find_objects(mask), 1):
    centres.append([(side.start + side.stop) / 2 for side in box])
    parts.append(ndimage.label(mask[box] == number, np.ones((3, 3)))[1])
  return Objects(np.array(centres) / mask.shape, np.array(parts))


def has_no_gaps(values: np.ndarray) -> bool:
  """Returns whether the ascending `values`, but for 0, are 1, 2, ..., n."""
  numbers = values[values != 0]
  return bool((numbers == np.arange(1, len(numbers) + 1)).all())


def are_instances(
  values: Sequence[np.ndarray], objects: Sequence[Objects | None]
) -> bool:
  """Returns whether a set of masks numbers objects rather than classes.

  So it is where no file has a gap in its numbers, two or more have more than a
  handful, nearly each is one part, a number is not at home in one place, and
  files have different numbers, or more than there are classes.

  Args:
    values: of each mask, ascending.
    objects: see `find_objects`, of each mask.
  """
  found = [some for some in objects if some is not None]
  if len(found) < 2 or not all(map(has_no_gaps, values)):
    return False
  if np.mean(np.concatenate([some.parts for some in found]) == 1) < WHOLE_SHARE:
    return False
  sizes = {len(some.parts) for some in found}
  return (len(sizes) > 1 or min(sizes) > MANY) and not _are_at_home(found)


def _are_at_home(found: Sequence[Objects]) -> bool:
  """Returns whether each number lies in much the same place in all files."""
  centres = np.concatenate([some.centres for some in found])
  numbers = np.concatenate([np.arange(len(some.parts)) for some in found])
  counts = np.bincount(numbers)
  freedom = len(numbers) - len(counts)
  within = np.zeros(2)
  for axis in range(2):
    means = np.bincount(numbers, centres[:, axis]) / counts
    within[axis] = ((centres[:, axis] - means[numbers]) ** 2).sum() / freedom
  total = centres.var(axis=0, ddof=1)
  return bool((within <= AT_HOME * total).all())
