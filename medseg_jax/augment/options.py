"""The fields of the augmentation, and which values they may have."""

import dataclasses
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from medseg_jax.runtime.errors import suggest

# What a field may be given as; `Options` says what each of them holds.
Value = float | Sequence[float] | None


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


def checked(fields: Mapping[str, Value]) -> Options:
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
