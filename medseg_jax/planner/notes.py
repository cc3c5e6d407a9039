"""Why each number of a plan was chosen: one plain sentence each."""

from collections.abc import Sequence

import numpy as np

from medseg_jax.planner.topology import (
  BASE_FEATURES,
  MAX_FEATURES,
  MIN_BATCH,
  MIN_EDGE,
  START_EDGE,
  Network,
  Preset,
)


def times(values: Sequence[float]) -> str:
  """Returns the numbers joined by x, to three digits after the point."""
  return 'x'.join(f'{v:.3f}'.rstrip('0').rstrip('.') for v in values)


def axes(order: Sequence[int], target: np.ndarray) -> str:
  """Says which axis comes first."""
  if list(order) == sorted(order):
    return (
      f'as in the files: axis 0 of the target spacing {times(target)} mm is '
      'the coarsest, or all are alike'
    )
  return (
    f'axis {order[0]} of the target spacing {times(target)} mm is the '
    'coarsest, so it comes first'
  )


def spacing(target: np.ndarray, median: np.ndarray) -> str:
  """Says where the target spacing comes from."""
  if np.array_equal(target, median):
    return f'the median spacing of the cases, {times(median)} mm'
  axis = int(np.argmax(target != median))
  return (
    f'the median spacing of the cases, {times(median)} mm, but '
    f'{target[axis]:.3f} along axis {axis}, which is more than 3 times as '
    'coarse as the others with less than a third of their voxels: the 10th '
    'percentile of the cases there, no finer than the other axes'
  )


def normalization(
  names: Sequence[str], schemes: Sequence[dict], relative_size: float
) -> str:
  """Says why each channel has its scheme."""
  reasons = {
    'ct': 'CT intensities mean the same in every scan: clipped to the 0.5 and '
    '99.5 percentile of the foreground, minus its mean, by its deviation',
    'scale': 'colours are divided by 255',
    'none': 'is left as it is, as its name asks',
    'zscore': 'mean 0 and deviation 1 in each volume, as its intensities have '
    'no unit',
    'zscore_nonzero': 'mean 0 and deviation 1 in each volume inside what is '
    f'not zero, whose box is {relative_size:.0%} of the median case, under 75%',
  }
  return '; '.join(
    f'{name}: {reasons[entry["scheme"]]}'
    for name, entry in zip(names, schemes, strict=True)
  )


def lowres(share: float, factor: float, limit: float, *, kept: bool) -> str:
  """Says why there is a low resolution or none."""
  covered = 'all' if share >= 1 else f'{share:.1%}'
  patch = f'the patch at full resolution covers {covered} of the median case'
  if share >= limit:
    return f'none: {patch}, at least {limit:.0%}'
  if kept:
    return (
      f'{patch}, under {limit:.0%}; coarsened in steps of 3% until a patch '
      f'covers that much, which leaves {1 / factor:.1%} of the voxels'
    )
  return (
    f'none: {patch}, under {limit:.0%}, but covering that much would still '
    f'take {1 / factor:.1%} of the voxels, more than half'
  )


def batch_dice(name: str, *, over_batch: bool) -> str:
  """Says over what the Dice loss sums."""
  if not over_batch:
    return 'over each patch, which sees enough of a case'
  if name == '2d':
    return 'over the batch, as many slices are without some of the classes'
  return (
    'over the batch, as there is a low resolution: patches at full resolution '
    'see little of a case, and are often without some of the classes'
  )


def network(
  name: str,
  spacing: Sequence[float],
  median_shape: Sequence[float],
  network: Network,
  preset: Preset,
  memory_gb: float,
) -> dict[str, str]:
  """Returns the notes of one configuration, by the key they belong to."""
  t = network.topology
  rank, num_stages = len(t.patch_size), len(t.strides)
  cube = f'{"square" if rank == 2 else "cube"} of {START_EDGE[rank]}'
  fitted = 'it fits the memory as it is'
  if network.shrunk:
    fitted = (
      'the axis that covers most of the case shrank until '
      f'{memory_gb:g} GB were enough'
    )
  if network.data_batch < min(MIN_BATCH, network.memory_batch):
    batch = (
      f'the least, as {preset.coverage:.0%} of the voxels of the data set are '
      f'{network.data_batch} patches'
    )
  elif network.memory_batch < MIN_BATCH:
    batch = f'the least; {memory_gb:g} GB hold {network.memory_batch} samples'
  elif network.data_batch < network.memory_batch:
    batch = (
      f'{preset.coverage:.0%} of the voxels of the data set are '
      f'{network.data_batch} patches; {memory_gb:g} GB would hold '
      f'{network.memory_batch}'
    )
  else:
    batch = (
      f'a sample has {network.cost / 1e6:.1f} million feature-map elements, '
      f'and {memory_gb:g} GB hold {network.memory_batch} samples; '
      f'{preset.coverage:.0%} of the voxels of the data set are '
      f'{network.data_batch} patches'
    )
  kernels = (
    f'3 along every axis, as voxels of {times(spacing)} mm are alike within a '
    'factor of 2'
  )
  if any(1 in kernel for kernel in t.kernel_sizes):
    kernels = (
      f'3, but 1 along an axis that is at least twice as coarse as the finest '
      f'of {times(spacing)} mm, until the strides have made them alike'
    )
  bottom = [p // d for p, d in zip(t.patch_size, t.divisor, strict=True)]
  poolings = [d.bit_length() - 1 for d in t.divisor]
  return {
    f'{name}.patch_size': (
      f'a {cube} voxels, made as long in mm on each axis and cut to the '
      f'median shape {times(median_shape)}, is {times(network.start)}; '
      f'{fitted}; rounded up to a multiple of {times(t.divisor)}'
    ),
    f'{name}.batch_size': batch,
    f'{name}.strides': (
      f'{times(poolings)} halvings take {times(t.patch_size)} to '
      f'{times(bottom)}, no pooled edge under {MIN_EDGE}; an axis waits while '
      'its voxels are at least twice as long as the finest'
    ),
    f'{name}.kernel_sizes': kernels,
    f'{name}.features': (
      f'{BASE_FEATURES}, doubled at each of {num_stages} stages, at most '
      f'{MAX_FEATURES[rank]}'
    ),
  }
