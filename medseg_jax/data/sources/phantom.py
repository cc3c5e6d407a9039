"""Abdominal CT phantoms: a data set that needs no download."""

import copy
from collections.abc import Sequence

from medseg_jax.data.case import Case, Source
from medseg_jax.data.sources.phantom_anatomy import (
  CLASSES,
  VERSION,
  generate,
  spacing_of,
)
from medseg_jax.runtime.errors import InputError

# Where the examples of a split start, so that splits never share an index and
# changing the size of one leaves the others as they were.
SPLIT_START = {'train': 0, 'val': 10**9, 'test': 2 * 10**9}


class PhantomSource:
  """Phantoms by index, each made when it is asked for; a `Source`."""

  classes = CLASSES
  label_values = (0, 1, 2, 3)
  channels = 1
  channel_names = ('CT',)

  def __init__(self, num_cases, shape, seed, split):
    """Holds the first `num_cases` phantoms of `split`, a key of SPLIT_START.

    Raises:
      InputError: where the shape, the seed or the number is not allowed.
    """
    self._shape = tuple(int(n) for n in shape)
    self._spacing = spacing_of(self._shape)
    for name, value in (('seed', seed), (f'num_{split}', num_cases)):
      if not 0 <= value < 10**9:
        raise InputError(f'phantom {name} is {value}; allowed are 0 to 10^9-1')
    self._seed = int(seed)
    self.names = tuple(f'{split}_{i:04d}' for i in range(num_cases))
    self._indices = tuple(SPLIT_START[split] + i for i in range(num_cases))

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Case:
    name = self.names[index]  # an IndexError ends iteration
    image, label = generate(self._seed, self._indices[index], self._shape)
    return Case(name, image, label, self._spacing)

  def case_key(self, index: int) -> str:
    """Returns a text that changes whenever case `index` does."""
    return (
      f'phantom version={VERSION} seed={self._seed} shape={self._shape}'
      f' index={self._indices[index]}'
    )

  def subset(self, names: Sequence[str]) -> 'PhantomSource':
    """Returns the source of the cases of these names, in this order."""
    by_name = dict(zip(self.names, self._indices, strict=True))
    part = copy.copy(self)
    part.names = tuple(names)
    part._indices = tuple(by_name[name] for name in names)
    return part


def open_phantom(
  *,
  shape: tuple[int, ...],
  seed: int = 0,
  num_train: int = 400,
  num_val: int = 50,
  num_test: int = 100,
) -> dict[str, Source]:
  """Returns the sources 'train', 'val', 'test', but for empty ones."""
  sizes = {'train': num_train, 'val': num_val, 'test': num_test}
  return {k: PhantomSource(n, shape, seed, k) for k, n in sizes.items() if n}
