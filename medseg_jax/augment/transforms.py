"""Random transforms of one example: draw the numbers, call the kernel.

Each is `(key, image [*S, C], label [*S], *, prob, ...) -> (image, label)`, and
with probability 1 - prob the input itself. Meant for vmap, where a cond would
compute both branches anyway: hence `where` throughout.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from medseg_jax.augment import kernels, lookup
from medseg_jax.augment.lookup import Pair

Range = tuple[float, float]
# (swap, flips) of `kernels.reorient`; swap is None where no axes are swapped.
Turn = tuple[jax.Array | None, jax.Array]


class Warp(NamedTuple):
  """A warp, flips and turns as drawn.

  Attributes:
    drawn: scalar, whether the warp moves anything at all.
    matrix: `[R, R]`, from the grid to where it is looked up, about the centre.
    noise: `[R, *grid]`, displacement of control points in voxels, or None.
    turn: of the result; None where there are no flips and turns.
  """

  drawn: jax.Array
  matrix: jax.Array
  noise: jax.Array | None = None
  turn: Turn | None = None


def random_move(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  flip_prob: float = 0.0,
  flip_axes: Sequence[int] | None = None,
  rot90_prob: float = 0.0,
  patch_size: tuple[int, ...] | None = None,
) -> Pair:
  """Returns image and label moved alike: cropped, turned, flipped; exact.

  Args:
    key: random key.
    image: float `[*S, C]`.
    label: int `[*S]`.
    flip_prob: of each of flip_axes independently.
    flip_axes: of S, counted from 0; None for all.
    rot90_prob: of a turn by a random multiple of 90 degrees.
    patch_size: of the result, the middle of the input; None for all of it.
  """
  shape = patch_size or label.shape
  turn = _random_turn_and_flips(key, shape, flip_prob, flip_axes, rot90_prob)
  swap, flips = turn

  def moved(x: jax.Array) -> jax.Array:
    x = kernels.crop(x, shape)
    return kernels.reorient(x, _planes(turn, shape), swap, flips)

  return moved(image), moved(label)


def draw_warp(
  key: jax.Array,
  shape: tuple[int, ...],
  *,
  prob: float,
  rotation_prob: float = 1.0,
  rotation_degrees: float = 0.0,
  scale_prob: float = 1.0,
  scale_range: Range = (1.0, 1.0),
  in_plane: bool = False,
  elastic_std: float = 0.0,
  elastic_spacing: float = 32.0,
  flip_prob: float = 0.0,
  flip_axes: Sequence[int] | None = None,
  rot90_prob: float = 0.0,
) -> Warp:
  """Returns a random warp of a patch of `shape`, with flips and turns.

  With probability 1 - prob, and where neither rotation nor scale nor elastic is
  drawn, it moves nothing: its coordinates are whole numbers.
  """
  rank = len(shape)
  turn = None
  if flip_prob > 0 or rot90_prob > 0:
    turn = _random_turn_and_flips(key, shape, flip_prob, flip_axes, rot90_prob)
  key = jax.random.split(key, 3)[2]
  # The axes that rotation and scale act on.
  turned = range(1 if in_plane and rank == 3 else 0, rank)
  draw_key, angle_key, scale_key, elastic_key = jax.random.split(key, 4)
  identity = jnp.eye(rank)
  matrix = jnp.eye(len(turned))
  drawn = jnp.zeros((), bool)
  if rotation_degrees > 0 and rotation_prob > 0:
    limit = math.radians(rotation_degrees)
    angles = jax.random.uniform(
      angle_key, (math.comb(len(turned), 2),), minval=-limit, maxval=limit
    )
    rotates = jnp.ones((), bool)
    if rotation_prob < 1:
      rotates = _also(angle_key, rotation_prob)
      angles = jnp.where(rotates, angles, 0)
    drawn |= rotates
    matrix = kernels.rotation_matrix(angles)
  if scale_range != (1, 1) and scale_prob > 0:
    # The grid is where the output looks up the input: it shrinks to magnify.
    scale = _log_uniform(scale_key, (), scale_range)
    scales = jnp.ones((), bool)
    if scale_prob < 1:
      scales = _also(scale_key, scale_prob)
      scale = jnp.where(scales, scale, 1)
    drawn |= scales
    matrix = matrix / scale
  if len(turned) < rank:
    matrix = identity.at[1:, 1:].set(matrix)
  draw = jax.random.bernoulli(draw_key, prob)
  matrix = jnp.where(draw, matrix, identity)
  if elastic_std == 0:
    return Warp(draw & drawn, matrix, turn=turn)
  noise = random_points(elastic_key, shape, elastic_spacing)
  return Warp(draw, matrix, jnp.where(draw, elastic_std * noise, 0), turn)


def warp_coords(warp: Warp, shape: tuple[int, ...]) -> jax.Array:
  """Returns the coordinates `[R, *shape]` where a warp looks up a patch.

  Between control points the displacement is interpolated cubically, where its
  deviation is lower. Flips and turns cost nothing here: they move coordinates,
  and at whole ones interpolation is exact.
  """
  coords = kernels.affine_coords(warp.matrix, shape)
  if warp.noise is not None:
    coords = coords + kernels.between_points(warp.noise, shape)
  if warp.turn is not None:
    planes = _planes(warp.turn, shape)
    coords = kernels.reorient_coords(coords, planes, *warp.turn)
  return coords


def apply_warp(
  warp: Warp,
  voxels: lookup.Lookup,
  rows: lookup.Rows | None = None,
  *,
  patch_size: tuple[int, ...] | None = None,
) -> Pair:
  """Returns image and label of an example, moved alike.

  Args:
    warp: as drawn.
    voxels: of the example.
    rows: of the result that are wanted, where examples are mapped one after the
      other: there one that is not warped is looked up voxel by voxel. None for
      all of it, under `vmap`, which would compute both.
    patch_size: of the result, the middle of what is read; None for all of it.
  """
  shape = patch_size or voxels.shape

  def coords(warp: Warp) -> jax.Array:
    coords = warp_coords(warp, shape)
    if shape != voxels.shape:
      margin = jnp.array(kernels.margins(voxels.shape, shape))
      coords += jnp.expand_dims(margin, range(1, coords.ndim))
    if rows is not None and rows[1] < shape[0]:
      coords = lax.dynamic_slice_in_dim(coords, *rows, axis=1)
    return coords

  if rows is None:
    return lookup.linear(voxels, coords(warp))
  unmoved = Warp(warp.drawn, jnp.eye(len(shape)), turn=warp.turn)
  return lax.cond(
    warp.drawn,
    lambda: lookup.linear(voxels, coords(warp)),
    lambda: lookup.exact(voxels, coords(unmoved)),
  )


def random_noise(
  key: jax.Array, image: jax.Array, label: jax.Array, *, prob: float, std: float
) -> Pair:
  """Returns an image plus noise whose sigma is uniform in 0..std."""
  draw_key, sigma_key, noise_key = jax.random.split(key, 3)
  sigma = jax.random.uniform(sigma_key, maxval=std)
  noisy = image + sigma * jax.random.normal(noise_key, image.shape)
  draw = jax.random.bernoulli(draw_key, prob)
  return jnp.where(draw, noisy, image), label


def random_blur(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  prob: float,
  sigma_range: Range,
  channel_prob: float = 1.0,
) -> Pair:
  """Returns a blurred image, sigma uniform in sigma_range voxels."""
  draw_key, value_key = jax.random.split(key)
  lo, hi = sigma_range
  sigma = jax.random.uniform(value_key, minval=lo, maxval=hi)
  blurred = kernels.gaussian_blur(image, sigma, radius=math.ceil(4 * hi))
  draw = jax.random.bernoulli(draw_key, prob)
  if channel_prob < 1:
    draw &= _also(draw_key, channel_prob, image.shape[-1:])
  return jnp.where(draw, blurred, image), label


def random_brightness(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  prob: float,
  std: float = 0.0,
  factor_range: Range = (1.0, 1.0),
) -> Pair:
  """Returns an image with each channel times a factor plus an offset."""
  draw_key, value_key = jax.random.split(key)
  changed = image
  if factor_range != (1, 1):
    factor_key = jax.random.fold_in(value_key, 0)
    changed *= _log_uniform(factor_key, image.shape[-1:], factor_range)
  if std > 0:
    changed += std * jax.random.normal(value_key, image.shape[-1:])
  draw = jax.random.bernoulli(draw_key, prob)
  return jnp.where(draw, changed, image), label


def random_contrast(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  prob: float,
  factor_range: Range,
  clip: bool = False,
) -> Pair:
  """Returns an image with each channel scaled about its mean.

  With clip no value leaves the range that the channel had before.
  """
  draw_key, value_key = jax.random.split(key)
  factor = _log_uniform(value_key, image.shape[-1:], factor_range)
  axes = tuple(range(label.ndim))
  mean = image.mean(axis=axes)
  changed = mean + factor * (image - mean)
  if clip:
    changed = jnp.clip(changed, image.min(axis=axes), image.max(axis=axes))
  draw = jax.random.bernoulli(draw_key, prob)
  return jnp.where(draw, changed, image), label


def random_low_resolution(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  prob: float,
  zoom_range: Range,
  channel_prob: float = 1.0,
  in_plane: bool = False,
) -> Pair:
  """Returns an image sampled down and up, zoom uniform for each channel."""
  draw_key, value_key = jax.random.split(key)
  lo, hi = zoom_range
  channels = image.shape[-1:]
  zoom = jax.random.uniform(value_key, channels, minval=lo, maxval=hi)
  draw = jax.random.bernoulli(draw_key, prob)
  if channel_prob < 1:
    draw &= _also(draw_key, channel_prob, channels)
  axes = range(1 if in_plane and label.ndim == 3 else 0, label.ndim)
  coarse = kernels.low_resolution(image, zoom, axes)
  return jnp.where(draw, coarse, image), label


def random_gamma(
  key: jax.Array,
  image: jax.Array,
  label: jax.Array,
  *,
  prob: float,
  gamma_range: Range,
  invert: bool = False,
  keep_stats: bool = False,
) -> Pair:
  """Returns an image with a power law applied within each channel's range.

  With invert the law holds for the negative of the image; with keep_stats each
  channel gets its mean and standard deviation back.
  """
  draw_key, value_key = jax.random.split(key)
  gamma = _log_uniform(value_key, image.shape[-1:], gamma_range)
  sign = -1 if invert else 1
  changed = sign * kernels.adjust_gamma(sign * image, gamma)
  if keep_stats:
    changed = kernels.restore_stats(changed, image)
  draw = jax.random.bernoulli(draw_key, prob)
  return jnp.where(draw, changed, image), label


def random_points(
  key: jax.Array, shape: tuple[int, ...], spacing: float
) -> jax.Array:
  """Returns a random vector `[R, *grid]` for each control point.

  Standard normal, about `spacing` voxels apart, at least two an axis.
  """
  grid = [min(size, max(2, round(size / spacing))) for size in shape]
  return jax.random.normal(key, (len(shape), *grid))


def _also(
  key: jax.Array, prob: float, shape: tuple[int, ...] = ()
) -> jax.Array:
  """Returns a second draw, independent of what key itself has drawn."""
  return jax.random.bernoulli(jax.random.fold_in(key, 0), prob, shape)


def _log_uniform(
  key: jax.Array, shape: tuple[int, ...], value_range: Range
) -> jax.Array:
  lo, hi = map(math.log, value_range)
  return jnp.exp(jax.random.uniform(key, shape, minval=lo, maxval=hi))


def _random_turn_and_flips(
  key: jax.Array,
  shape: tuple[int, ...],
  flip_prob: float,
  flip_axes: Sequence[int] | None,
  rot90_prob: float,
) -> Turn:
  flip_key, rot90_key, _ = jax.random.split(key, 3)
  swap = None
  flips = jnp.zeros(len(shape), bool)
  if rot90_prob > 0:
    swap, flips = _random_turn(rot90_key, shape, rot90_prob)
  if flip_prob > 0:
    drawn = jax.random.bernoulli(flip_key, flip_prob, flips.shape)
    if flip_axes is not None:
      drawn &= jnp.array([axis in flip_axes for axis in range(len(shape))])
    flips ^= drawn
  return swap, flips


def _random_turn(
  key: jax.Array, shape: tuple[int, ...], prob: float
) -> tuple[jax.Array, jax.Array]:
  """Returns (swap, flips) of `kernels.reorient` for a turn in one plane."""
  draw_key, plane_key, turns_key = jax.random.split(key, 3)
  planes = _equal_planes(shape)
  plane = jax.random.randint(plane_key, (), 0, len(planes))
  turns = jax.random.randint(turns_key, (), 0, 4)
  turns = jnp.where(jax.random.bernoulli(draw_key, prob), turns, 0)
  first, second = jnp.array(planes)[plane]
  axes = jnp.arange(len(shape))
  return kernels.turn_parts(turns, plane, first == axes, second == axes)


def _planes(turn: Turn, shape: tuple[int, ...]) -> Sequence[kernels.Plane]:
  """Returns the planes that a swap is one of."""
  return () if turn[0] is None else _equal_planes(shape)


def _equal_planes(shape: tuple[int, ...]) -> list[kernels.Plane]:
  planes = [
    axes
    for axes in itertools.combinations(range(len(shape)), 2)
    if shape[axes[0]] == shape[axes[1]]
  ]
  if not planes:
    raise ValueError(
      'augment field rot90_prob needs two equally long spatial axes, found a '
      f'patch of {"x".join(map(str, shape))}; set rot90_prob to 0'
    )
  return planes
