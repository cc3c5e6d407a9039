"""Sources of a few cases that the tests of the cache share."""

import dataclasses

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Preprocessing

SCALE = Preprocessing('scale')


@dataclasses.dataclass(frozen=True)
class Fixed:
  """A source of given cases, which remembers what was read."""

  cases: tuple
  read: list
  version: str = 'one'
  classes: tuple = ('background', 'organ')
  label_values: tuple = (0, 1)
  channels: int = 1

  @property
  def names(self):
    return tuple(case.name for case in self.cases)

  def __len__(self):
    return len(self.cases)

  def __getitem__(self, index):
    self.read.append(index)
    return self.cases[index]

  def case_key(self, index):
    return self.version


def case(name, image, label):
  return Case(name, image, label, (1.0,) * label.ndim)


def source(version='one', sizes=((4, 6), (5, 3), (7, 7))):
  rng = np.random.default_rng(0)
  cases = (
    case(
      f'case_{i}',
      rng.integers(0, 256, (*size, 1)).astype(np.uint8),
      rng.integers(0, 2, size).astype(np.uint8),
    )
    for i, size in enumerate(sizes)
  )
  return Fixed(tuple(cases), [], version)


def one(image=None, label=None):
  """Returns a source of one case, of 2 x 3 pixels if nothing is said."""
  image = np.ones((2, 3, 1), np.float32) if image is None else image
  label = np.zeros(image.shape[:-1], int) if label is None else label
  return Fixed((case('one', image, label),), [])


def folders(root):
  """Returns the names of all folders of cases below `root`."""
  return sorted(path.parent.name for path in root.glob('*/*/case.json'))
