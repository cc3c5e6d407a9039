"""Networks that map an image `[B, *S, C]` to logits `[B, *S, num_classes]`.

    model = create_model('unet', num_classes=3, features=16, depth=4)
    variables = model.init(key, image, train=False)
    logits = model.apply(variables, image, train=False)

Flax Linen modules; the number of spatial axes comes from the image. Parameters
and logits are float32 whatever `dtype` the network computes in. In training,
batch normalisation updates the collection 'batch_stats' (make it mutable) and
dropout draws from the random stream 'dropout'. Gradients are reverse-mode only
(`jax.grad`, `jax.vjp`): norms and convolutions have written ones.
"""

import dataclasses
from typing import Any

from flax import linen as nn

from medseg_jax.models.encoder_decoder import EncoderDecoder
from medseg_jax.models.unet import UNet
from medseg_jax.runtime.errors import suggest

Model = nn.Module  # what create_model returns, for those who annotate
MODELS: dict[str, type[UNet] | type[EncoderDecoder]] = {
  'unet': UNet,
  'encoder_decoder': EncoderDecoder,
}


def create_model(name: str, num_classes: int, **fields: Any) -> nn.Module:
  """Returns the network `name` with `num_classes` outputs a voxel.

  Args:
    name: 'unet' or 'encoder_decoder'.
    num_classes: channels of the logits.
    **fields: the fields of that network; lists are taken as tuples.

  Raises:
    ValueError: for an unknown name or field, or a value that is not allowed.
  """
  if name not in MODELS:
    raise ValueError(
      f'unknown model {name!r}{suggest(name, MODELS)} (known: '
      f'{", ".join(sorted(MODELS))})'
    )
  model_cls = MODELS[name]
  # Linen gives every module the fields `parent` and `name`: not the user's.
  known = {field.name for field in dataclasses.fields(model_cls)}
  known -= {'num_classes', 'parent', 'name'}
  for field in fields:
    if field not in known:
      raise ValueError(
        f'unknown field of model {name!r}: {field!r}{suggest(field, known)} '
        f'(known: {", ".join(sorted(known))})'
      )
  return model_cls(num_classes=num_classes, **fields)
