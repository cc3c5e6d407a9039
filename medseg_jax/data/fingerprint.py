"""What a data set is like: shapes, spacings and foreground intensities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import nonzero_box
from medseg_jax.runtime.errors import InputError, counted

# Values a channel that the samples of all cases hold together: 40 MB. (The
# recipe takes ten times as many; the percentiles agree to their noise.)
MAX_SAMPLES = 10_000_000


class CaseFingerprint(NamedTuple):
  """What one case adds to the fingerprint of its data set.

  Attributes:
    name: the case's name, for messages.
    shape: `[R]` sizes after the crop to what is not zero, in voxels.
    spacing: `[R]` mm.
    relative_size: voxels after the crop / voxels before.
    intensities: `[n, C]` float32, a sample of foreground voxels; n is 0 where
      the case has no foreground.
  """

  name: str
  shape: tuple[int, ...]
  spacing: tuple[float, ...]
  relative_size: float
  intensities: np.ndarray


class Fingerprint(NamedTuple):
  """What the planner knows of a data set.

  Attributes:
    num_cases: number of training cases `N`.
    shapes: `[N, R]` sizes after the crop to what is not zero, in voxels.
    spacings: `[N, R]` mm.
    relative_size: median over the cases of voxels after / before that crop.
    intensities: for each channel the mean, median, std, min, max,
      percentile_00_5 and percentile_99_5 of the foreground, in the units of
      the files.
  """

  num_cases: int
  shapes: np.ndarray
  spacings: np.ndarray
  relative_size: float
  intensities: tuple[dict[str, float], ...]


def samples_per_case(num_cases: int) -> int:
  """Returns how many foreground voxels to sample in each of the cases.

  Each case has the same weight, and all together hold at most `MAX_SAMPLES`
  values a channel, which bounds the memory of `merge`.
  """
  return max(1, MAX_SAMPLES // num_cases)


def fingerprint_case(
  case: Case, *, num_samples: int, seed: int
) -> CaseFingerprint:
  """Returns what one case adds to the fingerprint (Isensee 2021).

  The case is cropped to the bounding box of what is not zero. (The recipe
  fills the holes of that mask first, which never changes its box.) Foreground
  voxels (label > 0) are drawn with replacement, the same in every channel. A
  case without a label has no foreground that anybody knows: its voxels that are
  not 0 in every channel take their place.

  Args:
    case: image `[*S, C]`, label `[*S]` or None.
    num_samples: voxels to draw, see `samples_per_case`.
    seed: of the draw; the same seed gives the same sample.

  Raises:
    InputError: a foreground value of the sample is NaN or infinite.
  """
  box = nonzero_box(case.image)
  image = case.image[box]
  label = None if case.label is None else case.label[box]
  values = _sample(image, label, num_samples, np.random.default_rng(seed))
  if not np.isfinite(values).all():
    raise InputError(
      f'{case.name}: image values in the foreground are NaN or infinite; only '
      'finite values are allowed'
    )
  return CaseFingerprint(
    name=case.name,
    shape=image.shape[:-1],
    spacing=tuple(float(s) for s in case.spacing),
    relative_size=image.size / case.image.size,
    intensities=values,
  )


def merge(fingerprints: Sequence[CaseFingerprint]) -> Fingerprint:
  """Returns the fingerprint of the data set of these cases.

  Raises:
    InputError: no case has foreground, or cases differ in their number of
      axes or channels.
    ValueError: there is no case.
  """
  if not fingerprints:
    raise ValueError('a fingerprint needs at least one case')
  first = fingerprints[0]
  for f in fingerprints:
    kind = len(f.shape), f.intensities.shape[1]
    wanted = len(first.shape), first.intensities.shape[1]
    if kind != wanted:
      raise InputError(
        f'{f.name} has {kind[0]} axes and '
        f'{counted(kind[1], "channel")}, {first.name} '
        f'{wanted[0]} and {wanted[1]}; all cases need the same'
      )
  num_values = sum(len(f.intensities) for f in fingerprints)
  if not num_values:
    raise InputError(
      f'no voxel of the foreground in '
      f'{counted(len(fingerprints), "training case")}; at least one label must '
      'hold a class other than the background (where there are no labels, one '
      'image a voxel that is not 0)'
    )
  channels = range(first.intensities.shape[1])
  return Fingerprint(
    num_cases=len(fingerprints),
    shapes=np.array([f.shape for f in fingerprints]),
    spacings=np.array([f.spacing for f in fingerprints], np.float64),
    relative_size=float(np.median([f.relative_size for f in fingerprints])),
    intensities=tuple(
      _statistics(np.concatenate([f.intensities[:, c] for f in fingerprints]))
      for c in channels
    ),
  )


def _sample(
  image: np.ndarray,
  label: np.ndarray | None,
  num_samples: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Returns `[num_samples, C]` float32 of the foreground, or `[0, C]`."""
  channels = image.shape[-1]

  # Ranks among the foreground voxels, then plane by plane: the coordinates of
  # all foreground voxels of a CT would take gigabytes.
  def foreground(i: int) -> np.ndarray:
    return (image[i] != 0).any(-1) if label is None else label[i] > 0

  counts = [np.count_nonzero(foreground(i)) for i in range(len(image))]
  ends = np.cumsum(counts)
  if not ends[-1]:
    return np.zeros((0, channels), np.float32)
  ranks = np.sort(rng.integers(0, ends[-1], num_samples))
  values = np.empty((num_samples, channels), np.float32)
  start = 0
  for i, (count, end) in enumerate(zip(counts, ends, strict=True)):
    stop = np.searchsorted(ranks, end)
    if stop > start:
      voxels = np.flatnonzero(foreground(i))[ranks[start:stop] - (end - count)]
      where = np.unravel_index(voxels, image.shape[1:-1])
      values[start:stop] = image[i][where]
    start = stop
  return values


def _statistics(values: np.ndarray) -> dict[str, float]:
  low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
  return {
    'mean': float(values.mean(dtype=np.float64)),
    'median': float(median),
    # In float64: the squares of large intensities overflow float32.
    'std': float(values.std(dtype=np.float64)),
    'min': float(values.min()),
    'max': float(values.max()),
    'percentile_00_5': float(low),
    'percentile_99_5': float(high),
  }
