"""A plain encoder-decoder, the smallest network that segments."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from medseg_jax.models import blocks, convolution, resampling

_FEATURES = (64, 128, 256, 128, 64)
_POOL_AFTER = (0, 1)
_UPSAMPLE_BEFORE = (3, 4)
_STRIDE = 4


class EncoderDecoder(nn.Module):
  """Five 3x3 convolutions with ReLU, 64-128-256-128-64, and one for the logits.

  Max-pooling by 2 after the first two, nearest upsampling by 2 before the
  fourth and the fifth, neither normalisation nor skip connections; weights are
  Glorot-uniform and biases zero, as in Keras. 740,225 parameters for an RGB
  image and one class. For one class the logits go into a sigmoid loss.

  Attributes:
    num_classes: channels of the logits.
    dtype: of the computation, 'float32' or 'bfloat16'; logits are float32.
    convolutions: see `UNet`.
  """

  num_classes: int
  dtype: str = 'float32'
  convolutions: str = convolution.XLA

  def __post_init__(self) -> None:
    self.dtype = blocks.dtype_name(self.dtype)
    super().__post_init__()

  def divisor(self, rank: int) -> tuple[int, ...]:
    """Returns what each of `rank` spatial axes must be a multiple of."""
    return (_STRIDE,) * rank

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Returns logits `[B, *S, num_classes]`, float32, of image `[B, *S, C]`."""
    del train  # the same in training and inference
    rank = image.ndim - 2
    blocks.check_divisible(image.shape[1:-1], self.divisor(rank))

    def conv(features: int, dtype: jax.typing.DTypeLike, name: str) -> nn.Conv:
      return convolution.conv(
        features,
        (3,) * rank,
        (1,) * rank,
        dtype=dtype,
        convolutions=self.convolutions,
        kernel_init=nn.initializers.glorot_uniform(),
        name=name,
      )

    x = image
    for i, features in enumerate(_FEATURES):
      if i in _UPSAMPLE_BEFORE:
        x = resampling.upsample_nearest(x, (2,) * rank)
      x = nn.relu(conv(features, self.dtype, f'conv_{i}')(x))
      if i in _POOL_AFTER:
        x = resampling.max_pool(x, (2,) * rank)
    return conv(self.num_classes, jnp.float32, 'head')(x)
