"""Depth, strides, kernels, patch and batch size of one network.

The rules of nnU-Net (Isensee et al., Nature Methods 2021) and of its
residual-encoder presets ("nnU-Net revisited", 2024). Sizes are in voxels and
spacings in mm, coarsest axis first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}  # by number of axes
MIN_EDGE = 4  # voxels, of the smallest feature map along a pooled axis
START_EDGE = {2: 2048, 3: 256}  # of the first patch, were voxels cubes
MIN_BATCH = 2
# Blocks of the residual encoder's stages; deeper stages have the last.
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6)


class Preset(NamedTuple):
  """A kind of network and the memory that its batch may fill.

  Attributes:
    memory_gb: GB of accelerator memory for which the references hold.
    reference: by number of axes, feature-map elements of one sample where
      that memory holds `REFERENCE_BATCH` samples.
    residual: whether the encoder has residual blocks.
    coverage: largest share of the data set's voxels in one batch.
  """

  memory_gb: float
  reference: dict[int, float]
  residual: bool
  coverage: float


REFERENCE_BATCH = {2: 12, 3: 2}
PRESETS = {
  'plain': Preset(8.0, {2: 85e6, 3: 560e6}, False, 0.05),
  'residual_m': Preset(8.0, {2: 135e6, 3: 680e6}, True, 1.0),
  'residual_l': Preset(24.0, {2: 380e6, 3: 2.1e9}, True, 1.0),
  'residual_xl': Preset(40.0, {2: 560e6, 3: 3.6e9}, True, 1.0),
}


class Topology(NamedTuple):
  """Stages of a U-Net, finest first.

  Attributes:
    patch_size: rounded up to a multiple of `divisor`.
    divisor: product of the strides along each axis.
    strides: of each stage, from the next finer one; the first is 1.
    kernel_sizes: of each stage.
  """

  patch_size: tuple[int, ...]
  divisor: tuple[int, ...]
  strides: tuple[tuple[int, ...], ...]
  kernel_sizes: tuple[tuple[int, ...], ...]


class Network(NamedTuple):
  """A topology that fits the memory, and the numbers that decided on it.

  Attributes:
    topology: of the final patch.
    batch_size: samples in a batch.
    start: the patch before it was fitted to strides and memory.
    shrunk: whether the memory asked for a smaller patch.
    cost: feature-map elements of one sample, see `sample_cost`.
    reference: the largest number of those that the memory allows.
    memory_batch: samples that fit the memory.
    data_batch: samples that hold `coverage` of the data set's voxels.
  """

  topology: Topology
  batch_size: int
  start: tuple[float, ...]
  shrunk: bool
  cost: int
  reference: float
  memory_batch: int
  data_batch: int


def make_topology(
  spacing: Sequence[float], patch_size: Sequence[float]
) -> Topology:
  """Returns the stages for patches of about `patch_size`.

  Axes are pooled while they are long enough, the finest first, until their
  voxels are about as long as those of the coarser axes. A kernel is 1 along
  axes that are still much coarser than the finest.
  """
  rank = len(spacing)
  spacing, size = list(spacing), list(patch_size)
  kernel, divisor = [1] * rank, [1] * rank
  strides, kernels = [(1,) * rank], []
  while True:
    long = [a for a in range(rank) if size[a] >= 2 * MIN_EDGE]
    if not long:
      break
    finest = min(spacing[a] for a in long)
    pooled = [a for a in long if spacing[a] / finest < 2]
    if len(pooled) == 1 and size[pooled[0]] < 3 * MIN_EDGE:
      break
    for axis in range(rank):
      # Once 3 it stays 3, though another axis may become the finest.
      if spacing[axis] / min(spacing) < 2:
        kernel[axis] = 3
    for axis in pooled:
      divisor[axis] *= 2
      spacing[axis] *= 2
      size[axis] = math.ceil(size[axis] / 2)
    kernels.append(tuple(kernel))  # of the stage before the pooling
    strides.append(tuple(2 if a in pooled else 1 for a in range(rank)))
  kernels.append((3,) * rank)
  patch = [
    math.ceil(p / d) * d for p, d in zip(patch_size, divisor, strict=True)
  ]
  return Topology(tuple(patch), tuple(divisor), tuple(strides), tuple(kernels))


def stage_features(num_stages: int, rank: int) -> tuple[int, ...]:
  """Returns the channels of each stage, finest first."""
  cap = MAX_FEATURES[rank]
  return tuple(min(cap, BASE_FEATURES * 2**i) for i in range(num_stages))


def stage_blocks(num_stages: int) -> tuple[int, ...]:
  """Returns the residual blocks of each encoder stage, finest first."""
  last = len(RESIDUAL_BLOCKS) - 1
  return tuple(RESIDUAL_BLOCKS[min(i, last)] for i in range(num_stages))


def sample_cost(topology: Topology, num_classes: int, *, residual: bool) -> int:
  """Returns the feature-map elements of one sample, forward.

  Counted are the outputs of convolutions, which stand for the memory of
  training at any precision.

  Args:
    topology: with its patch.
    num_classes: channels of the logits, the background's among them.
    residual: one of the two encoders that `Preset` tells apart.
  """
  rank, num_stages = len(topology.patch_size), len(topology.strides)
  features = stage_features(num_stages, rank)
  voxels, size = [], list(topology.patch_size)
  for stride in topology.strides:
    size = [n // s for n, s in zip(size, stride, strict=True)]
    voxels.append(math.prod(size))
  maps = [f * v for f, v in zip(features, voxels, strict=True)]
  if residual:
    decoder_convs = 1
    blocks = stage_blocks(num_stages)
    # The stem; two convolutions a block; one more on the skip of each block
    # that changes the size or the channels, the first of all later stages.
    cost = maps[0] + sum(2 * b * m for b, m in zip(blocks, maps, strict=True))
    cost += sum(maps[1:])
  else:
    decoder_convs = 2
    cost = sum(2 * m for m in maps)
  # Of every decoder level the convolutions and the one that upsamples.
  cost += sum((decoder_convs + 1) * m for m in maps[:-1])
  return cost + num_classes * voxels[0]


def fit_network(
  spacing: Sequence[float],
  median_shape: Sequence[float],
  *,
  dataset_voxels: float,
  num_classes: int,
  preset: Preset,
  memory_gb: float,
) -> Network:
  """Returns the network with the largest patch that fits the memory.

  The first patch has the shape of a cube in mm, cut to the median case. The
  axis that covers most of the median case shrinks until the cost of a batch
  of two fits.

  Args:
    spacing: mm per axis.
    median_shape: of the cases at that spacing.
    dataset_voxels: of all training cases at that spacing.
    num_classes: with the background.
    preset: kind of network.
    memory_gb: of the accelerator.

  Raises:
    ValueError: not even a patch of one voxel fits.
  """
  rank = len(spacing)
  ratio = 1 / np.array(spacing)
  edge = (START_EDGE[rank] ** rank / np.prod(ratio)) ** (1 / rank)
  start = tuple(
    min(round(r * edge), m) for r, m in zip(ratio, median_shape, strict=True)
  )
  reference = preset.reference[rank] * memory_gb / preset.memory_gb
  reference_batch = REFERENCE_BATCH[rank]
  # The residual presets compare one sample in place of the smallest batch.
  limit = reference
  if not preset.residual:
    limit *= reference_batch / MIN_BATCH
  topology = first = make_topology(spacing, start)
  cost = sample_cost(topology, num_classes, residual=preset.residual)
  while cost > limit:
    patch = list(topology.patch_size)
    # Of axes that cover the same share the last one shrinks, as in nnU-Net.
    cover = [p / m for p, m in zip(patch, median_shape, strict=True)]
    axis = max(range(rank), key=lambda a: (cover[a], a))
    # A smaller patch may have fewer poolings, hence a finer step.
    trial = list(patch)
    trial[axis] -= topology.divisor[axis]
    patch[axis] -= make_topology(spacing, trial).divisor[axis]
    if patch[axis] < 1:
      raise ValueError(
        f'memory_gb is {memory_gb:g}, too little for a patch of one '
        f'voxel and {num_classes} classes; {preset.memory_gb:g} is the default'
      )
    topology = make_topology(spacing, patch)
    cost = sample_cost(topology, num_classes, residual=preset.residual)
  memory_batch = round(reference / cost * reference_batch)
  share = preset.coverage * dataset_voxels
  data_batch = round(share / math.prod(topology.patch_size))
  return Network(
    topology=topology,
    batch_size=max(MIN_BATCH, min(memory_batch, data_batch)),
    start=start,
    shrunk=topology is not first,
    cost=cost,
    reference=reference,
    memory_batch=memory_batch,
    data_batch=data_batch,
  )
