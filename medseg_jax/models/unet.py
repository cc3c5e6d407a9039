"""U-Net: 2-D, 3-D, residual, with attention gates or deep supervision.

Ronneberger et al., U-Net, 2015; Cicek et al., 3D U-Net, 2016. Strides and
kernel sizes for each stage and axis follow nnU-Net (Isensee et al. 2021; with
residual encoder 2024), whose networks these fields can express.
"""

import dataclasses
import math
from typing import Any

import jax
from flax import linen as nn

from medseg_jax.models import blocks, convolution, norms, resampling

Sizes = int | tuple[int | tuple[int, ...], ...]

_CHOICES = {
  'norm': tuple(norms.NORMS),
  'activation': tuple(blocks.ACTIVATIONS),
  'down': ('max_pool', 'stride'),
  'up': blocks.UP_METHODS,
  'convolutions': convolution.CONVOLUTIONS,
}
_PER_STAGE = (
  'features',
  'convs_per_stage',
  'residual_blocks',
  'kernel_sizes',
  'strides',
)


@dataclasses.dataclass(frozen=True)
class _Resolution:
  """What the stages at one resolution are made of, numbers for each axis."""

  features: int
  num_convs: int
  num_blocks: int  # of the encoder; 0 for plain convolutions
  kernel: tuple[int, ...]
  stride: tuple[int, ...]  # from the next finer resolution


class UNet(nn.Module):
  """A U-Net of `depth` resolutions, `depth - 1` downsamplings.

  A field that takes a value for each stage takes one number for all stages or
  a tuple with `depth` entries, finest first; the decoder uses the same as the
  encoder at that resolution. In `kernel_sizes` and `strides` an entry is one
  number for all axes or a tuple with one for each axis.

  Attributes:
    num_classes: channels of the logits.
    features: channels of the first stage, doubled at each further one up to
      `max_features`; or a tuple with those of each stage.
    depth: number of stages, the bottleneck among them.
    max_features: cap for the doubling.
    convs_per_stage: convolutions in each stage, in encoder and decoder; with
      `residual_blocks` in the decoder.
    kernel_sizes: of the convolutions.
    strides: downsampling on entering a stage. As a tuple, the first entry is
      that of the first stage and must be 1, as logits are at full resolution;
      a single number holds for all stages but the first.
    norm: 'batch' (momentum 0.9), 'instance' or 'group' (8 groups, or as many
      as divide both 8 and the channels).
    activation: 'relu', 'leaky_relu' (slope 0.01), 'gelu' or 'swish'.
    dropout: probability that a whole channel is dropped at the end of a stage.
    down: 'max_pool' before a stage or 'stride' of its first convolution.
    up: 'transpose' (transposed convolution with kernel = stride), 'nearest' or
      'linear'.
    residual: every stage, in encoder and decoder, adds its input to its output.
    residual_blocks: residual blocks of two convolutions in each stage of the
      encoder, after a first convolution at full resolution (the stem); 0 or ()
      for plain convolutions.
    attention: attention gates on the skip connections.
    deep_supervision: in training returns the logits of every decoder stage.
    remat: computes the inside of every stage again in the backward pass
      instead of keeping it: less memory, about a third more time. Of use on
      GPU and TPU; XLA on CPU undoes it.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters, statistics
      and logits are float32.
    convolutions: who computes them: 'xla', or 'onednn', which is faster in
      programs for one CPU, takes reverse-mode gradients only, and is 'xla'
      elsewhere, or 'folded', which is XLA's in a form for TPUs. See
      `convolution.choose`.
  """

  num_classes: int
  features: int | tuple[int, ...] = 32
  depth: int = 5
  max_features: int = 512
  convs_per_stage: int | tuple[int, ...] = 2
  kernel_sizes: Sizes = 3
  strides: Sizes = 2
  norm: str = 'batch'
  activation: str = 'relu'
  dropout: float = 0.0
  down: str = 'max_pool'
  up: str = 'transpose'
  residual: bool = False
  residual_blocks: int | tuple[int, ...] = 0
  attention: bool = False
  deep_supervision: bool = False
  remat: bool = False
  dtype: str = 'float32'
  convolutions: str = convolution.XLA

  def __post_init__(self) -> None:
    # Lists, as JSON has them, would make the module unhashable.
    for field in _PER_STAGE:
      setattr(self, field, _to_tuple(getattr(self, field)))
    self.residual_blocks = self.residual_blocks or 0
    self.dtype = blocks.dtype_name(self.dtype)
    self._check()
    super().__post_init__()

  def _check(self) -> None:
    for field, choices in _CHOICES.items():
      if getattr(self, field) not in choices:
        raise ValueError(
          f'{field}={getattr(self, field)!r} is not allowed: '
          f'one of {", ".join(choices)}'
        )
    for field in ('num_classes', 'depth', 'max_features'):
      if not _is_positive_int(getattr(self, field)):
        raise ValueError(
          f'{field}={getattr(self, field)!r} is not allowed: '
          'a positive whole number'
        )
    if not 0 <= self.dropout < 1:
      raise ValueError(
        f'dropout={self.dropout!r} is not allowed: '
        'a number from 0 up to, not including, 1'
      )
    for field in _PER_STAGE:
      value = getattr(self, field)
      if field == 'residual_blocks' and not value:
        continue
      entries = value if isinstance(value, tuple) else (value,)
      if isinstance(value, tuple) and len(value) != self.depth:
        raise ValueError(
          f'{field}={value!r} is not allowed: as many entries as stages, '
          f'depth={self.depth}'
        )
      per_axis = field in ('kernel_sizes', 'strides')
      for entry in entries:
        numbers = entry if per_axis and isinstance(entry, tuple) else (entry,)
        if not numbers or not all(map(_is_positive_int, numbers)):
          raise ValueError(
            f'{field}={value!r} is not allowed: positive whole numbers'
          )
    if self.residual and self.residual_blocks:
      raise ValueError(
        'residual and residual_blocks are two ways to make the '
        'encoder residual: only one of them is allowed'
      )
    first = self.strides[0] if isinstance(self.strides, tuple) else 1
    if set(first if isinstance(first, tuple) else (first,)) != {1}:
      raise ValueError(
        f'strides={self.strides!r} is not allowed: the first '
        'entry is that of the first stage and must be 1'
      )

  def divisor(self, rank: int) -> tuple[int, ...]:
    """Returns what each of `rank` spatial axes must be a multiple of."""
    strides = [resolution.stride for resolution in self._resolutions(rank)]
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))

  def _resolutions(self, rank: int) -> list[_Resolution]:
    """Returns the stages' make-up, finest first, for `rank` spatial axes."""

    def per_stage(value: Any) -> tuple[Any, ...]:
      return value if isinstance(value, tuple) else (value,) * self.depth

    def per_axis(entry: int | tuple[int, ...], field: str) -> tuple[int, ...]:
      entry = entry if isinstance(entry, tuple) else (entry,) * rank
      if len(entry) != rank:
        raise ValueError(
          f'{field} has the entry {entry}, but the image has '
          f'{rank} spatial axes'
        )
      return entry

    features, strides = self.features, self.strides
    if not isinstance(features, tuple):
      features = tuple(
        min(features * 2**i, self.max_features) for i in range(self.depth)
      )
    if not isinstance(strides, tuple):
      strides = (1,) + (strides,) * (self.depth - 1)
    return [
      _Resolution(f, n, b, per_axis(k, 'kernel_sizes'), per_axis(s, 'strides'))
      for f, n, b, k, s in zip(
        features,
        per_stage(self.convs_per_stage),
        per_stage(self.residual_blocks),
        per_stage(self.kernel_sizes),
        strides,
        strict=True,
      )
    ]

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> jax.Array | tuple[jax.Array, ...]:
    """Returns logits `[B, *S, num_classes]`, float32, of image `[B, *S, C]`.

    With `deep_supervision` and `train` a tuple, those of all the `depth - 1`
    decoder stages, each on the grid of its stage, full resolution first.

    Raises:
      ValueError: where `S` is not a multiple of `divisor(len(S))`.
    """
    rank = image.ndim - 2
    ones = (1,) * rank
    resolutions = self._resolutions(rank)
    blocks.check_divisible(image.shape[1:-1], self.divisor(rank))

    # Not the flag `train`, which must stay a Python value, nor `self`.
    make = (
      nn.remat(blocks.Stage, static_argnums=(2,))
      if self.remat
      else (blocks.Stage)
    )

    def stage(resolution: _Resolution, name: str, **fields: Any) -> nn.Module:
      settings: dict[str, Any] = {
        'num_convs': resolution.num_convs,
        'num_blocks': int(self.residual),
        'stride': ones,
        'dropout': self.dropout,
        **fields,
      }
      return make(
        resolution.features,
        kernel=resolution.kernel,
        norm=self.norm,
        activation=self.activation,
        dtype=self.dtype,
        convolutions=self.convolutions,
        name=name,
        **settings,
      )

    def head(x: jax.Array, i: int) -> jax.Array:
      # In float32: bfloat16 has too few digits for logits and their loss.
      return convolution.head(
        self.num_classes,
        dtype=self.dtype,
        convolutions=self.convolutions,
        name=f'head_{i}',
      )(x)

    x = image.astype(self.dtype)
    skips = []
    if self.residual_blocks:
      x = stage(resolutions[0], 'stem', num_convs=1, dropout=0.0)(x, train)
    for i, resolution in enumerate(resolutions):
      stride = resolution.stride
      if self.down == 'max_pool':
        x, stride = resampling.max_pool(x, stride), ones
      fields = {}
      if self.residual_blocks:
        fields = {'num_convs': 2, 'num_blocks': resolution.num_blocks}
      x = stage(resolution, f'encoder_{i}', stride=stride, **fields)(x, train)
      skips.append(x)

    # The extra heads are needed in training only, but created in any case.
    every_head = self.deep_supervision and (train or self.is_initializing())
    logits = []
    for i in reversed(range(self.depth - 1)):
      factors, resolution = resolutions[i + 1].stride, resolutions[i]
      skip = skips[i]
      if self.attention:
        skip = blocks.AttentionGate(
          factors, self.dtype, self.convolutions, name=f'gate_{i}'
        )(skip, x)
      x = blocks.Up(
        resolution.features,
        factors,
        self.up,
        self.activation,
        self.dtype,
        self.convolutions,
        name=f'up_{i}',
      )(x)
      x = stage(resolution, f'decoder_{i}')(x, train, skip)
      if every_head and i:
        logits.append(head(x, i))
    logits.append(head(x, 0))
    if self.deep_supervision and train:
      return tuple(reversed(logits))
    return logits[-1]


def _to_tuple(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(map(_to_tuple, value))
  return value


def _is_positive_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0
