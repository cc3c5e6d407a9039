"""Random augmentation of image and label on the device, in 2-D and 3-D.

`create_augment(**fields)` gives a pure function `(key, batch) -> batch` that
belongs inside the jitted train step. `batch['image']` is `[B, *S, C]` float,
standardised or in 0..1; `batch['label']` is `[B, *S]` int; S has 2 or 3 axes.
Shapes and dtypes stay as they are, and other entries pass through untouched:
what holds one value for each voxel would no longer fit the moved image.

Every example has a key of its own, so its result depends neither on its
neighbours nor on how the batch is sharded. Factors (scale, contrast, gamma) are
drawn log-uniformly: a factor is as likely as its inverse. Brightness, contrast
and gamma are drawn for each channel, everything else for the example.
Lengths are in voxels: rotation and scale treat the voxels as cubes.
"""

import dataclasses
import difflib
import functools
import sys

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.augment import transforms


@dataclasses.dataclass(frozen=True)
class Options:
  """Fields of `create_augment`, in the order in which they are applied.

  A `*_prob` is the probability in [0, 1] that an example gets the transform. A
  `*_range` is (lo, hi) with 0 < lo <= hi. The defaults switch everything off.
  """

  # Exact reversal of each spatial axis, drawn for every axis independently.
  flip_prob: float = 0.0
  # Exact rotation by 0, 90, 180 or 270 degrees, all equally likely, in a
  # random plane of two equally long axes (in 2-D the patch must be square).
  rot90_prob: float = 0.0
  # One linear (label: nearest) interpolation does rotation, scale and elastic
  # deformation together; beyond its edge the image goes on mirrored.
  warp_prob: float = 0.0
  # Angles are uniform in +- this many degrees, in 3-D one about every axis.
  rotation_degrees: float = 0.0
  # Zoom factor of all axes; above 1 things look larger.
  scale_range: tuple[float, float] = (1.0, 1.0)
  # Standard deviation of the control points' displacement along each axis, in
  # voxels. Above about a quarter of the spacing the image begins to fold.
  elastic_std: float = 0.0
  # Distance of the control points in voxels, up to rounding.
  elastic_spacing: float = 32.0
  # Gaussian blur; its sigma is uniform in (lo, hi) voxels, with lo >= 0.
  blur_prob: float = 0.0
  blur_sigma: tuple[float, float] = (0.0, 0.0)
  # Gaussian offset with this standard deviation in image units.
  brightness_prob: float = 0.0
  brightness_std: float = 0.0
  # Factor of the deviation from the channel's mean; nothing is clipped.
  contrast_prob: float = 0.0
  contrast_range: tuple[float, float] = (1.0, 1.0)
  # Exponent on the channel rescaled to 0..1. Minimum and maximum are restored,
  # mean and standard deviation are not.
  gamma_prob: float = 0.0
  gamma_range: tuple[float, float] = (1.0, 1.0)
  # Gaussian noise; its sigma is uniform in 0..noise_std, in image units.
  noise_prob: float = 0.0
  noise_std: float = 0.0


def create_augment(**fields):
  """Returns `augment(key, batch) -> batch`; see `Options` for the fields.

  A transform with probability 0, or that could not change anything, costs
  nothing: no operation is traced for it. Raises ValueError for an unknown field
  or a value that is not allowed; `augment` does so for arrays that do not fit.
  """
  active = _active_transforms(_checked_options(fields))

  def augment_example(key, image, label):
    dtype = image.dtype
    image = image.astype(jnp.promote_types(dtype, jnp.float32))
    for number, transform_fn in active:
      key_number = jax.random.fold_in(key, number)
      # The barrier keeps XLA from fusing one transform into the next, which
      # on CPU computes it again for every value that the next one reads.
      image, label = lax.optimization_barrier(
          transform_fn(key_number, image, label)
      )
    return image.astype(dtype), label

  def augment(key, batch):
    image, label = batch['image'], batch['label']
    _check_batch(image, label)
    if not active:
      return batch
    keys = jax.random.split(key, image.shape[0])
    image, label = jax.vmap(augment_example)(keys, image, label)
    return {**batch, 'image': image, 'label': label}

  return augment


def _active_transforms(o):
  """Returns [(number, (key, image, label) -> (image, label))], in order."""
  coords_fn = None
  if o.warp_prob and (
      o.rotation_degrees or o.scale_range != (1, 1) or o.elastic_std
  ):
    coords_fn = functools.partial(
        transforms.random_coords,
        prob=o.warp_prob,
        rotation_degrees=o.rotation_degrees,
        scale_range=o.scale_range,
        elastic_std=o.elastic_std,
        elastic_spacing=o.elastic_spacing,
    )
  # (whether it is on, transform, its arguments)
  rows = (
      (
          o.flip_prob or o.rot90_prob or coords_fn,
          transforms.random_spatial,
          {
              'flip_prob': o.flip_prob,
              'rot90_prob': o.rot90_prob,
              'coords_fn': coords_fn,
          },
      ),
      (
          o.blur_prob and o.blur_sigma[1],
          transforms.random_blur,
          {'prob': o.blur_prob, 'sigma_range': o.blur_sigma},
      ),
      (
          o.brightness_prob and o.brightness_std,
          transforms.random_brightness,
          {'prob': o.brightness_prob, 'std': o.brightness_std},
      ),
      (
          o.contrast_prob and o.contrast_range != (1, 1),
          transforms.random_contrast,
          {'prob': o.contrast_prob, 'factor_range': o.contrast_range},
      ),
      (
          o.gamma_prob and o.gamma_range != (1, 1),
          transforms.random_gamma,
          {'prob': o.gamma_prob, 'gamma_range': o.gamma_range},
      ),
      (
          o.noise_prob and o.noise_std,
          transforms.random_noise,
          {'prob': o.noise_prob, 'std': o.noise_std},
      ),
  )
  # Numbered before the choice: to switch one transform on or off leaves the
  # random numbers of the others as they were.
  return [
      (number, functools.partial(transform_fn, **arguments))
      for number, (is_on, transform_fn, arguments) in enumerate(rows)
      if is_on
  ]


def _checked_options(fields):
  known = [field.name for field in dataclasses.fields(Options)]
  for name in fields:
    if name not in known:
      closest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
      raise ValueError(
          f'unknown augment field {name!r}; the closest known one is '
          f'{closest!r}, allowed are {", ".join(known)}'
      )
  return Options(**{k: _checked_value(k, v) for k, v in fields.items()})


def _checked_value(name, value):
  """Returns value as a float, for a range as a pair of floats."""
  tiny, huge = sys.float_info.min, sys.float_info.max
  is_pair = name.endswith('_range') or name == 'blur_sigma'
  if name.endswith('_prob'):
    lowest, highest, allowed = 0, 1, 'a number in [0, 1]'
  elif name.endswith('_range'):
    lowest, highest, allowed = tiny, huge, '(lo, hi) with 0 < lo <= hi'
  elif is_pair:
    lowest, highest, allowed = 0, huge, '(lo, hi) with 0 <= lo <= hi'
  elif name == 'rotation_degrees':
    lowest, highest, allowed = 0, 180, 'a number in [0, 180]'
  elif name == 'elastic_spacing':
    lowest, highest, allowed = 1, huge, 'a finite number >= 1'
  else:
    lowest, highest, allowed = 0, huge, 'a finite number >= 0'
  try:
    numbers = [float(x) for x in (value if is_pair else [value])]
  except (TypeError, ValueError):
    numbers = []
  if (
      isinstance(value, str)
      or len(numbers) != 1 + is_pair
      or not all(lowest <= x <= highest for x in numbers)
      or numbers != sorted(numbers)
  ):
    raise ValueError(f'augment field {name} is {value!r}, allowed: {allowed}')
  return tuple(numbers) if is_pair else numbers[0]


def _check_batch(image, label):
  if image.ndim not in (4, 5) or label.shape != image.shape[:-1]:
    raise ValueError(
        'augment needs image [B, *S, C] and label [B, *S] with 2 or 3 spatial '
        f'axes, found image {image.shape} and label {label.shape}'
    )
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(f'augment needs a float image, found {image.dtype}')
  if not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(f'augment needs an integer label, found {label.dtype}')
