"""Random augmentation of image and label on the device, in 2-D and 3-D.

`create_augment(**fields)` gives a pure function `(key, batch) -> batch` that
belongs inside the jitted train step. `batch['image']` is `[B, *S, C]` float,
standardised or in 0..1; `batch['label']` is `[B, *S]` int; S has 2 or 3 axes.
Shapes (but see `patch_size`) and dtypes stay as they are, and other entries
pass through untouched: what holds one value for each voxel would no longer fit
the moved image.

Every example has a key of its own, so its result depends neither on its
neighbours nor on how the batch is sharded. Factors (scale, brightness,
contrast, gamma) are drawn log-uniformly: a factor is as likely as its inverse.
The values of brightness, contrast, low resolution and gamma are drawn for each
channel, everything else for the example.
The transforms and their order are those of nnU-Net (Isensee et al. 2021,
arXiv:1904.08128); that mirroring comes first rather than last changes nothing.
Lengths are in voxels: rotation and scale treat the voxels as cubes.
"""

import dataclasses
import functools
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.augment import extent, transforms
from medseg_jax.runtime.errors import suggest

Batch = dict[str, jax.Array]
# What a field may be given as; `Options` says what each of them holds.
Value = float | Sequence[float] | None
Transform = Callable[[jax.Array, jax.Array, jax.Array], transforms.Pair]


@dataclasses.dataclass(frozen=True)
class Options:
  """Fields of `create_augment`, in the order in which they are applied.

  A `*_prob` is the probability in [0, 1] that an example gets the transform. A
  `*_range` is (lo, hi) with 0 < lo <= hi. The defaults switch everything off.
  """

  # Size of the result: the middle of the batch, which the host reads with the
  # margin of `read_size`. None keeps the size of the batch.
  patch_size: tuple[int, ...] | None = None
  # Exact reversal of each of flip_axes, drawn for every axis independently.
  flip_prob: float = 0.0
  # Spatial axes, counted from 0; None for all of them.
  flip_axes: tuple[int, ...] | None = None
  # Exact rotation by 0, 90, 180 or 270 degrees, all equally likely, in a
  # random plane of two equally long axes (in 2-D the patch must be square).
  rot90_prob: float = 0.0
  # One linear (label: nearest) interpolation does rotation, scale and elastic
  # deformation together; beyond its edge the image goes on mirrored.
  warp_prob: float = 0.0
  # Angles are uniform in +- this many degrees, in 3-D one about every axis. Of
  # the warps this share rotates.
  rotation_prob: float = 1.0
  rotation_degrees: float = 0.0
  # Zoom factor of all axes; above 1 things look larger. Of the warps this share
  # scales.
  scale_prob: float = 1.0
  scale_range: tuple[float, float] = (1.0, 1.0)
  # In 3-D: rotation, scale and low resolution leave the first axis alone, for
  # voxels much longer along it.
  in_plane: bool = False
  # Standard deviation of the control points' displacement along each axis, in
  # voxels. Above about a quarter of the spacing the image begins to fold.
  elastic_std: float = 0.0
  # Distance of the control points in voxels, up to rounding.
  elastic_spacing: float = 32.0
  # Gaussian noise; its sigma is uniform in 0..noise_std, in image units.
  noise_prob: float = 0.0
  noise_std: float = 0.0
  # Gaussian blur; its sigma is uniform in (lo, hi) voxels, with lo >= 0. Of the
  # channels of a blurred example this share is blurred.
  blur_prob: float = 0.0
  blur_sigma: tuple[float, float] = (0.0, 0.0)
  blur_channel_prob: float = 1.0
  # Factor, then Gaussian offset with this standard deviation in image units.
  brightness_prob: float = 0.0
  brightness_std: float = 0.0
  brightness_range: tuple[float, float] = (1.0, 1.0)
  # Factor of the deviation from the channel's mean; clipped to the channel's
  # minimum and maximum only if contrast_clip says so.
  contrast_prob: float = 0.0
  contrast_range: tuple[float, float] = (1.0, 1.0)
  contrast_clip: bool = False
  # Sampling down to zoom times the size, by the nearest voxel, and up again
  # linearly; the zoom is uniform in (lo, hi), with 0 < lo <= hi <= 1. Of the
  # channels of such an example this share is coarsened.
  low_resolution_prob: float = 0.0
  low_resolution_zoom: tuple[float, float] = (1.0, 1.0)
  low_resolution_channel_prob: float = 1.0
  # Exponent on the channel rescaled to 0..1, once for the negative of the image
  # (gamma_invert_prob) and once for the image. Minimum and maximum are
  # restored, or, with gamma_keep_stats, mean and standard deviation.
  gamma_invert_prob: float = 0.0
  gamma_prob: float = 0.0
  gamma_range: tuple[float, float] = (1.0, 1.0)
  gamma_keep_stats: bool = False


def create_augment(**fields: Value) -> Callable[[jax.Array, Batch], Batch]:
  """Returns `augment(key, batch) -> batch`; see `Options` for the fields.

  A transform with probability 0, or that could not change anything, costs
  nothing: no operation is traced for it. Raises ValueError for an unknown field
  or a value that is not allowed; `augment` does so for arrays that do not fit.
  """
  options = _checked_options(fields)
  active = _active_transforms(options)

  def augment_example(
    key: jax.Array, image: jax.Array, label: jax.Array
  ) -> transforms.Pair:
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

  def augment(key: jax.Array, batch: Batch) -> Batch:
    image, label = batch['image'], batch['label']
    _check_batch(image, label, options)
    if not active:
      return batch
    keys = jax.random.split(key, image.shape[0])
    image, label = jax.vmap(augment_example)(keys, image, label)
    return {**batch, 'image': image, 'label': label}

  return augment


def read_size(patch_size: Sequence[int], **fields: Value) -> tuple[int, ...]:
  """Returns the size `(int, ...)` to read for the warps of a patch.

  A patch that starts at `start` is read from `start - margin` on, where margin
  = (read size - patch size) // 2; the difference is even along every axis.
  Equal to patch_size where nothing warps.

  As in nnU-Net it holds a rotation in any one plane, by any angle up to the
  limit, at a scale of at least 0.85; in 2-D and in_plane that is every
  rotation. An elastic displacement counts with three standard deviations. What
  a warp reaches beyond is mirrored about the edge of what was read, in image
  and label alike, so that no corner is ever empty. With nnU-Net's warps (one
  in five rotates by up to 30 degrees about each axis, one in five scales by
  0.7..1.4) that is 0.02 to 0.04 % of the voxels, in one patch of 40 to 75, for
  patches of 40 x 56 x 40, 128^3 and 64 x 192 x 160; in 2-D with up to 180
  degrees 0.01 %. If every warp of 128^3 does both, it is 0.9 %.

  Args:
    patch_size: size of the result of `create_augment(patch_size=...)`.
    **fields: the other fields of `create_augment`.
  """
  o = _checked_options({**fields, 'patch_size': patch_size})
  if o.patch_size is None:
    raise ValueError('read_size needs a patch_size, found None')
  if not _warps(o):
    return o.patch_size
  return extent.read_size(
    o.patch_size,
    rotation_degrees=o.rotation_degrees if o.rotation_prob else 0.0,
    smallest_scale=o.scale_range[0] if o.scale_prob else 1.0,
    in_plane=o.in_plane,
    displacement=3 * o.elastic_std,
    turns=o.rot90_prob > 0,
  )


def _warps(o: Options) -> bool:
  return o.warp_prob > 0 and (
    o.rotation_prob * o.rotation_degrees > 0
    or (o.scale_prob > 0 and o.scale_range != (1, 1))
    or o.elastic_std > 0
  )


def _active_transforms(o: Options) -> list[tuple[int, Transform]]:
  """Returns [(number, (key, image, label) -> (image, label))], in order."""
  coords_fn = None
  if _warps(o):
    coords_fn = functools.partial(
      transforms.random_coords,
      prob=o.warp_prob,
      rotation_prob=o.rotation_prob,
      rotation_degrees=o.rotation_degrees,
      scale_prob=o.scale_prob,
      scale_range=o.scale_range,
      in_plane=o.in_plane,
      elastic_std=o.elastic_std,
      elastic_spacing=o.elastic_spacing,
    )
  flip_prob = 0.0 if o.flip_axes == () else o.flip_prob
  gamma = {'gamma_range': o.gamma_range, 'keep_stats': o.gamma_keep_stats}
  # (number, whether it is on, transform, its arguments). The number decides the
  # random numbers and never changes, neither with the order nor with what else
  # is on.
  rows: tuple[
    tuple[int, object, Callable[..., transforms.Pair], dict[str, object]], ...
  ] = (
    (
      0,
      flip_prob or o.rot90_prob or coords_fn or o.patch_size,
      transforms.random_spatial,
      {
        'flip_prob': flip_prob,
        'flip_axes': o.flip_axes,
        'rot90_prob': o.rot90_prob,
        'coords_fn': coords_fn,
        'patch_size': o.patch_size,
      },
    ),
    (
      5,
      o.noise_prob and o.noise_std,
      transforms.random_noise,
      {'prob': o.noise_prob, 'std': o.noise_std},
    ),
    (
      1,
      o.blur_prob and o.blur_sigma[1] and o.blur_channel_prob,
      transforms.random_blur,
      {
        'prob': o.blur_prob,
        'sigma_range': o.blur_sigma,
        'channel_prob': o.blur_channel_prob,
      },
    ),
    (
      2,
      o.brightness_prob and (o.brightness_std or o.brightness_range != (1, 1)),
      transforms.random_brightness,
      {
        'prob': o.brightness_prob,
        'std': o.brightness_std,
        'factor_range': o.brightness_range,
      },
    ),
    (
      3,
      o.contrast_prob and o.contrast_range != (1, 1),
      transforms.random_contrast,
      {
        'prob': o.contrast_prob,
        'factor_range': o.contrast_range,
        'clip': o.contrast_clip,
      },
    ),
    (
      6,
      o.low_resolution_prob
      and o.low_resolution_zoom != (1, 1)
      and o.low_resolution_channel_prob,
      transforms.random_low_resolution,
      {
        'prob': o.low_resolution_prob,
        'zoom_range': o.low_resolution_zoom,
        'channel_prob': o.low_resolution_channel_prob,
        'in_plane': o.in_plane,
      },
    ),
    (
      7,
      o.gamma_invert_prob and o.gamma_range != (1, 1),
      transforms.random_gamma,
      {'prob': o.gamma_invert_prob, 'invert': True, **gamma},
    ),
    (
      4,
      o.gamma_prob and o.gamma_range != (1, 1),
      transforms.random_gamma,
      {'prob': o.gamma_prob, **gamma},
    ),
  )
  return [
    (number, functools.partial(transform_fn, **arguments))
    for number, is_on, transform_fn, arguments in rows
    if is_on
  ]


def _checked_options(fields: Mapping[str, Value]) -> Options:
  known = [field.name for field in dataclasses.fields(Options)]
  for name in fields:
    if name not in known:
      raise ValueError(
        f'unknown augment field {name!r}{suggest(name, known)} (known: '
        f'{", ".join(known)})'
      )
  return Options(**{k: _checked_value(k, v) for k, v in fields.items()})


def _checked_value(name: str, value: Any) -> Any:
  """Returns value, numbers as floats, a range as a pair, a size as a tuple."""
  if name == 'patch_size':
    return _checked_size(value)
  if name == 'flip_axes':
    return _checked_axes(value)
  if isinstance(getattr(Options, name), bool):
    if isinstance(value, bool):
      return value
    raise ValueError(
      f'augment field {name} is {value!r}, allowed: True or False'
    )
  tiny, huge = sys.float_info.min, sys.float_info.max
  is_pair = name.endswith(('_range', '_zoom')) or name == 'blur_sigma'
  if name.endswith('_prob'):
    lowest, highest, allowed = 0.0, 1.0, 'a number in [0, 1]'
  elif name.endswith('_range'):
    lowest, highest, allowed = tiny, huge, '(lo, hi) with 0 < lo <= hi'
  elif name.endswith('_zoom'):
    lowest, highest, allowed = tiny, 1, '(lo, hi) with 0 < lo <= hi <= 1'
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


def _checked_size(value: Any) -> tuple[int, ...] | None:
  if value is None:
    return None
  try:
    size = tuple(map(operator.index, value))
  except TypeError:
    size = ()
  if len(size) not in (2, 3) or min(size) < 1:
    raise ValueError(
      f'augment field patch_size is {value!r}, allowed: 2 or 3 whole numbers '
      '>= 1, or None'
    )
  return size


def _checked_axes(value: Any) -> tuple[int, ...] | None:
  if value is None:
    return None
  try:
    axes = tuple(map(operator.index, value))
  except TypeError:
    axes = (-1,)
  if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
    raise ValueError(
      f'augment field flip_axes is {value!r}, allowed: some of the axes 0, 1 '
      'and, in 3-D, 2, each once, or None for all'
    )
  return axes


def _check_batch(image: jax.Array, label: jax.Array, o: Options) -> None:
  if image.ndim not in (4, 5) or label.shape != image.shape[:-1]:
    raise ValueError(
      'augment needs image [B, *S, C] and label [B, *S] with 2 or 3 spatial '
      f'axes, found image {image.shape} and label {label.shape}'
    )
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(f'augment needs a float image, found {image.dtype}')
  if not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(f'augment needs an integer label, found {label.dtype}')
  shape = label.shape[1:]
  if o.flip_axes and max(o.flip_axes) >= len(shape):
    raise ValueError(
      f'augment field flip_axes is {o.flip_axes}, allowed: axes of the batch, '
      f'which has {len(shape)}'
    )
  if o.patch_size and (
    len(o.patch_size) != len(shape)
    or any(a > b for a, b in zip(o.patch_size, shape, strict=True))
  ):
    raise ValueError(
      f'augment field patch_size is {o.patch_size}, allowed: no larger than '
      f'the batch along any axis, which is {shape}'
    )
