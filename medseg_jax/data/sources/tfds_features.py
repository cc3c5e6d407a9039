"""Which features of a TFDS data set are image and mask, and their arrays."""

import numpy as np

from medseg_jax.runtime.errors import InputError

MASK_KEYS = ('segmentation_mask', 'label', 'mask', 'segmentation')


def find_mask(info, image_key: str, mask_key: str) -> str:
  """Returns the key of the mask, after a look at the features."""
  features = info.features
  found = ', '.join(f'{k} {features[k].__class__.__name__}' for k in features)

  def is_array(key):
    # The shape of nested features is a dict.
    shape = features[key].shape if key in features else None
    return isinstance(shape, tuple) and len(shape) >= 2

  if not is_array(image_key):
    raise InputError(
      f'{info.full_name}: no image or tensor feature {image_key!r}; found '
      f'{found}; name it in config.data.tfds.image_key'
    )
  candidates = [mask_key] if mask_key else MASK_KEYS
  for key in candidates:
    if key != image_key and is_array(key):
      return key
  raise InputError(
    f'{info.full_name}: no mask feature {" or ".join(map(repr, candidates))} '
    f'that is an image or a tensor; found {found}; name it in '
    'config.data.tfds.mask_key'
  )


def image_and_mask(
  example: dict[str, np.ndarray], keys: tuple[str, str], where: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns image `[*S, C]` and mask `[*S]` of integers."""
  image, mask = (np.asarray(example[key]) for key in keys)
  shapes = f'{keys[0]} {image.shape}, {keys[1]} {mask.shape}'
  same_axes = image.shape[:-1] == mask.shape[:-1]
  if mask.shape[-1] == 1 and (same_axes or mask.ndim == image.ndim + 1):
    mask = mask[..., 0]
  if image.shape == mask.shape:
    image = image[..., None]
  if image.shape[:-1] != mask.shape:
    raise InputError(
      f'{where}: shapes {shapes} do not fit; allowed is an image [*S, C] or '
      '[*S] and a mask [*S] or [*S, 1]'
    )
  check_whole(mask, f'{where}, {keys[1]}')
  return image, mask.astype(np.int64)


def check_whole(mask: np.ndarray, where: str) -> None:
  if mask.dtype.kind == 'f' and (mask % 1 != 0).any():
    broken = mask[mask % 1 != 0].flat[0]
    raise InputError(f'{where}: label {broken}; allowed are whole numbers')
