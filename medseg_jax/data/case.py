"""What every source of data hands out: one case, by random access."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

# Values of `config.data.source` whose cases are volumes of a patient.
VOLUMES = ('volumes', 'bids', 'dicom')


class Case(NamedTuple):
  """One image with its expert mask, as read, before any preprocessing.

  Attributes:
    name: unique within its source; the file's stem, or the example's key.
    image: `[*S, C]`, in the dtype and the intensity units of the file.
    label: `[*S]` integers, class indices `0 .. num_classes - 1`; None where
      there is no mask.
    spacing: size of a voxel along each spatial axis, in mm, or 1.0 where the
      file does not say (then distances are in pixels).
    affine: `[R + 1, R + 1]` voxel to world, or None where there is none.
    roi: `[*S]` bool, the region that a published protocol evaluates (a retinal
      camera's field of view, say), or None for the whole image.
    measured: bool, of as many axes as the image has of space, where sizes of 1
      stand for all along an axis; what it leaves out was filled in between and
      gets no mask. None for the whole image.
  """

  name: str
  image: np.ndarray
  label: np.ndarray | None
  spacing: tuple[float, ...]
  affine: np.ndarray | None = None
  roi: np.ndarray | None = None
  measured: np.ndarray | None = None


def colour_names(channels: int) -> tuple[str, ...]:
  """Returns the names of the channels of a photograph, grey or RGB."""
  if channels == 3:
    return ('red', 'green', 'blue')
  if channels == 1:
    return ('grey',)
  return tuple(f'channel_{i}' for i in range(channels))


class Source(Protocol):
  """Cases by index. Reading is lazy: `source[i]` touches only case `i`.

  Attributes:
    classes: names of the classes, background first.
    label_values: `label_values[i]` is the value that class `i` has on disk.
    channels: number of image channels `C`, the same for every case.
    channel_names: a name for each.
    names: the name of every case, without reading it.
  """

  classes: tuple[str, ...]
  label_values: tuple[int, ...]
  channels: int
  channel_names: tuple[str, ...]
  names: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Case: ...

  def case_key(self, index: int) -> str:
    """Returns a text that changes whenever case `index`, as it is read, does.

    Cheap, but for the first time after the case's files have changed: what
    they hold is what counts (`runtime.files.content_hash`).
    """
    ...

  def subset(self, names: Sequence[str]) -> 'Source':
    """Returns the source of the cases of these names, all of them known."""
    ...
