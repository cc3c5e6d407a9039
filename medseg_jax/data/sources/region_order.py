"""Whether labels come back once regions have taken their place.

A network of regions predicts for every voxel in which regions it lies. A label
map is painted from that: each region in its declared order writes its label,
later ones over earlier ones (nnU-Net's `regions_class_order`, as
`inference.decoding.labels_from_regions` does it). A wrong order goes unnoticed
in training and spoils every mask, so it is tried on each label beforehand.
"""

from collections.abc import Sequence
from typing import NamedTuple

Regions = Sequence[tuple[str, Sequence[int]]]


class Change(NamedTuple):
  """A label that does not come back as itself.

  Attributes:
    value: the label.
    regions: names of the regions that it lies in.
    becomes: the label that is painted for it.
    becomes_regions: names of the regions that this one lies in.
  """

  value: int
  regions: tuple[str, ...]
  becomes: int
  becomes_regions: tuple[str, ...]

  @property
  def lossless(self) -> bool:
    """Whether both lie in the same regions: nothing else is predicted.

    The background has to come back as itself, and nothing else as it.
    """
    same = bool(self.regions) and self.regions == self.becomes_regions
    return same and 0 not in (self.value, self.becomes)


def changes(
  values: Sequence[int], regions: Regions, order: Sequence[int]
) -> tuple[Change, ...]:
  """Returns the labels that do not come back, in the order of `values`.

  Args:
    values: all labels, the background 0 among them.
    regions: name and labels of each region.
    order: the label that each region writes.
  """

  def names(value: int) -> tuple[str, ...]:
    return tuple(name for name, inside in regions if value in inside)

  found = []
  for value in values:
    painted = 0
    for (_, inside), label in zip(regions, order, strict=True):
      if value in inside:
        painted = label
    if painted != value:
      found.append(Change(value, names(value), painted, names(painted)))
  return tuple(found)


def error(change: Change, order: Sequence[int]) -> str:
  """Returns what is wrong where a label comes back in other regions."""
  return (
    f'the label {change.value}, {_in(change.regions)}, comes back as '
    f'{change.becomes}, {_in(change.becomes_regions)}, by '
    f'"regions_class_order" {list(order)}; allowed is an order of regions in '
    '"labels", the larger ones first, and for each the label to write, by '
    'which every label comes back'
  )


def oddity(change: Change) -> str:
  """Returns what is odd where a label comes back as one of the same regions."""
  return (
    f'the label {change.value} is in the same regions as {change.becomes} '
    f'({", ".join(change.regions)}): no prediction tells them apart, and masks '
    f'have {change.becomes} for both'
  )


def _in(regions: tuple[str, ...]) -> str:
  return f'in {" and ".join(regions)}' if regions else 'in no region'
