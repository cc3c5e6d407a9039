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

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.augment import extent, lookup, transforms
from medseg_jax.augment.lookup import Pair, Unread
from medseg_jax.augment.options import Options, Value, checked

Batch = dict[str, jax.Array]
Transform = Callable[[jax.Array, jax.Array, jax.Array], Pair]
Draw = Callable[[jax.Array, tuple[int, ...]], transforms.Warp]
# The number of flips, turns, crop and warp, see `_active_transforms`.
_SPATIAL = 0


def create_augment(
  **fields: Value,
) -> Callable[[jax.Array, Batch | Unread], Batch]:
  """Returns `augment(key, batch) -> batch`; see `Options` for the fields.

  A transform with probability 0, or that could not change anything, costs
  nothing: no operation is traced for it. Where `warps` says so, the batch may
  be one whose voxels have not been read (`lookup.Unread`): the warp looks up
  what it needs of them, the same to the bit, and the result has the image in
  float32 and the label in int32. What comes after the warp is another program
  then, and may round otherwise. Raises ValueError for an unknown field or a
  value that is not allowed; `augment` does so for arrays that do not fit.
  """
  options = checked(fields)
  draw_fn, move_fn = _spatial_transforms(options)
  changes = _active_transforms(options)
  apply_fn = functools.partial(
    transforms.apply_warp, patch_size=options.patch_size
  )

  def warp(draw_fn: Draw, keys: jax.Array, batch: Batch | Unread) -> Pair:
    shape = options.patch_size or ()
    if isinstance(batch, dict):
      shape = shape or batch['label'].shape[1:]
    drawn = jax.vmap(lambda key: draw_fn(key, shape))(keys)
    # The barrier is for the last bit: drawn alike, whatever follows.
    drawn = lax.optimization_barrier(drawn)
    if not isinstance(batch, dict):
      return batch.look_up(apply_fn, drawn)

    def one(drawn: transforms.Warp, image: jax.Array, label: jax.Array) -> Pair:
      return apply_fn(drawn, lookup.of_patch(image, label))

    return jax.vmap(one)(drawn, batch['image'], batch['label'])

  def change(key: jax.Array, image: jax.Array, label: jax.Array) -> Pair:
    for number, transform_fn in changes:
      key_number = jax.random.fold_in(key, number)
      # The barrier keeps XLA from fusing one transform into the next, which
      # on CPU computes it again for every value that the next one reads.
      image, label = lax.optimization_barrier(
        transform_fn(key_number, image, label)
      )
    return image, label

  def augment(key: jax.Array, batch: Batch | Unread) -> Batch:
    rest: Batch = {}
    if isinstance(batch, dict):
      image, label = batch['image'], batch['label']
      _check_batch(image, label, options)
      if not (changes or draw_fn or move_fn):
        return batch
      rest, size, dtype = batch, label.shape[0], image.dtype
    elif draw_fn is None or options.patch_size is None:
      raise ValueError(
        'augment takes a batch that has not been read only for warps, with '
        'field patch_size'
      )
    else:
      size, dtype = batch.batch_size, jnp.dtype(jnp.float32)
    keys = jax.random.split(key, size)
    spatial_keys = jax.vmap(lambda key: jax.random.fold_in(key, _SPATIAL))(keys)
    if draw_fn is not None:
      image, label = lax.optimization_barrier(
        warp(draw_fn, spatial_keys, batch)
      )
    elif move_fn is not None:
      image, label = lax.optimization_barrier(
        jax.vmap(move_fn)(spatial_keys, image, label)
      )
    image = image.astype(jnp.promote_types(dtype, jnp.float32))
    image, label = jax.vmap(change)(keys, image, label)
    return {**rest, 'image': image.astype(dtype), 'label': label}

  return augment


def warps(**fields: Value) -> bool:
  """Returns whether a patch may be rotated, scaled or deformed."""
  return _warps(checked(fields))


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
  o = checked({**fields, 'patch_size': patch_size})
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


def _spatial_transforms(
  o: Options,
) -> tuple[
  Draw | None,
  Transform | None,
]:
  """Returns (`draw_warp`, `random_move`): one of them, or None for both."""
  flip_prob = 0.0 if o.flip_axes == () else o.flip_prob
  if _warps(o):
    warp_fn = functools.partial(
      transforms.draw_warp,
      prob=o.warp_prob,
      rotation_prob=o.rotation_prob,
      rotation_degrees=o.rotation_degrees,
      scale_prob=o.scale_prob,
      scale_range=o.scale_range,
      in_plane=o.in_plane,
      elastic_std=o.elastic_std,
      elastic_spacing=o.elastic_spacing,
      flip_prob=flip_prob,
      flip_axes=o.flip_axes,
      rot90_prob=o.rot90_prob,
    )
    return warp_fn, None
  if not (flip_prob or o.rot90_prob or o.patch_size):
    return None, None
  move_fn = functools.partial(
    transforms.random_move,
    flip_prob=flip_prob,
    flip_axes=o.flip_axes,
    rot90_prob=o.rot90_prob,
    patch_size=o.patch_size,
  )
  return None, move_fn


def _active_transforms(o: Options) -> list[tuple[int, Transform]]:
  """Returns [(number, (key, image, label) -> (image, label))], in order.

  Those of the image's values, which come after `_spatial_transforms`.
  """
  gamma = {'gamma_range': o.gamma_range, 'keep_stats': o.gamma_keep_stats}
  # (number, whether it is on, transform, its arguments). The number decides the
  # random numbers and never changes, neither with the order nor with what else
  # is on. 0 is `_SPATIAL`.
  rows: tuple[
    tuple[int, object, Callable[..., Pair], dict[str, object]], ...
  ] = (
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
