"""From a case as read to the arrays that the network sees, on any rank."""

from typing import NamedTuple

import numpy as np

from medseg_jax.data import normalize
from medseg_jax.data.case import Case
from medseg_jax.data.normalize import Channel
from medseg_jax.data.resample import (
  coarse_axis,
  output_shape,
  resample_image,
  resample_label,
  resize_linear,
  resize_nearest,
)
from medseg_jax.data.shear import label_to_upright, shear_of, to_upright
from medseg_jax.runtime.errors import InputError, counted


class Preprocessing(NamedTuple):
  """How cases are brought to one form; a part of every checkpoint's config.

  Attributes:
    normalize: 'scale' divides integer images by the largest value of their
      type (x / 255 for 8 bits) and takes floats from 0 to 1; 'zscore'
      subtracts each channel's mean over the image and divides by its standard
      deviation; 'window' maps `window` to 0 .. 1 and clips.
    window: lower and upper intensity, in the units of the file (HU for CT).
    resize: target size of the spatial axes in pixels, or () for native size.
    channels: one for each channel, in place of `normalize` (volumes, from the
      plan).
    axes: order of the spatial axes, coarsest first, e.g. (1, 0, 2); () leaves
      them.
    crop: whether to crop to the bounding box of what is not 0.
    spacing: target in mm, in the order after `axes`. One number fewer than
      axes (the plan of a 2-D network) leaves the first axis its own. () for
      native spacing.
  """

  normalize: str = 'zscore'
  window: tuple[float, ...] = ()
  resize: tuple[int, ...] = ()
  channels: tuple[Channel, ...] = ()
  axes: tuple[int, ...] = ()
  crop: bool = False
  spacing: tuple[float, ...] = ()


class Prepared(NamedTuple):
  """A case as the network sees it.

  Attributes:
    image: `[*S', C]` float32.
    label: `[*S']` class indices, -1 where ignored, or None.
    box: the part of the case that was kept, in the case's own axes.
    slack: how much each channel of the image may be rounded, see
      `normalize.Standardised`.
    mask: `[*S']` bool, what is not 0, where there is a label and a channel was
      normalised inside it; else None.
  """

  image: np.ndarray
  label: np.ndarray | None
  box: tuple[slice, ...]
  slack: tuple[float, ...]
  mask: np.ndarray | None = None


def check(preprocessing: Preprocessing) -> None:
  """Raises InputError where the settings make no sense."""
  p = preprocessing
  if p.normalize not in normalize.NORMALIZATIONS:
    raise InputError(
      f'config.data.normalize is {p.normalize!r}; allowed are '
      + ', '.join(normalize.NORMALIZATIONS)
    )
  ordered = len(p.window) == 2 and p.window[0] < p.window[1]
  if p.normalize == 'window' and not ordered:
    raise InputError(
      f'config.data.window is {p.window}; the window normalization needs a '
      'lower and a higher intensity, for example (-160.0, 240.0)'
    )
  if any(size < 1 for size in p.resize):
    raise InputError(
      f'config.data.resize is {p.resize}; sizes in pixels are at least 1'
    )
  if p.resize and p.spacing:
    raise InputError(
      f'config.data.resize is {p.resize}, but the plan resamples to a spacing '
      f'of {p.spacing} mm; allowed is one of the two'
    )
  _check_plan(p)


def _check_plan(p: Preprocessing) -> None:
  """Raises InputError where what comes from a plan makes no sense."""
  for i, channel in enumerate(p.channels):
    where = f'normalization of channel {i} in the plan'
    if channel.scheme not in normalize.SCHEMES:
      raise InputError(
        f'{where} is {channel.scheme!r}; allowed are '
        + ', '.join(normalize.SCHEMES)
      )
    if channel.scheme == 'ct' and not channel.low < channel.high:
      raise InputError(
        f'{where} clips from {channel.low:g} to {channel.high:g}; the second '
        'has to be the larger one'
      )
    if not 0 < channel.std < np.inf:
      raise InputError(
        f'{where} has a std of {channel.std:g}; allowed are numbers above 0'
      )
  if p.axes and sorted(p.axes) != list(range(len(p.axes))):
    raise InputError(
      f'axes of the plan are {p.axes}; allowed is each of 0, 1, ... once'
    )
  if not all(0 < s < np.inf for s in p.spacing):
    raise InputError(
      f'spacing of the plan is {p.spacing}; allowed are numbers of mm above 0'
    )
  if p.axes and p.spacing and len(p.axes) - len(p.spacing) not in (0, 1):
    raise InputError(
      f'spacing of the plan is {p.spacing} for the axes {p.axes}; allowed is '
      'a number for each, or for all but the first'
    )


def preprocess(case: Case, preprocessing: Preprocessing) -> Prepared:
  """Returns the case as the network sees it.

  In this order: axes, crop, intensities, grid. What is sheared comes to right
  angles, see `shear`; beside its planes the label is -1. To a target spacing,
  images are resampled by cubic splines, labels linearly on their one-hot form;
  where the case or the target is anisotropic, the coarse axis takes the nearest
  slice (Isensee 2021). With `resize`, images are resampled linearly and labels
  by the nearest pixel.

  Args:
    case: image `[*S, C]`, left as it is.
    preprocessing: settings that `check` has passed.

  Raises:
    InputError: the image holds NaN or infinite values, or has not the axes or
      channels that the settings are for.
  """
  p = preprocessing
  _check_fits(case, p)
  rank = case.image.ndim - 1
  axes = p.axes or tuple(range(rank))
  box = box_of(case, p)
  image = case.image[box].transpose(*axes, rank)
  mask = normalize.mask_of(image, p.channels)
  image, slack = normalize.standardise(
    image,
    normalize=p.normalize,
    window=p.window,
    channels=p.channels,
    mask=mask,
    name=case.name,
  )
  label = case.label
  if label is None:
    mask = None  # it is there to move with the label
  else:
    label = np.ascontiguousarray(label[box].transpose(axes))
  spacing = tuple(case.spacing[axis] for axis in axes)
  if shear := shear_of(case.affine, axes, image.shape[:-1]):
    spacing = shear.spacing
    image = to_upright(image, shear)
    label = None if label is None else label_to_upright(label, shear)
    if mask is not None:
      mask = label_to_upright(mask.view(np.uint8), shear, outside=0)
      mask = mask.astype(bool)
  if p.resize:
    image = resize_linear(image, p.resize)
    label = None if label is None else resize_nearest(label, p.resize)
    mask = None if mask is None else resize_nearest(mask, p.resize)
  if p.spacing:
    shape = output_shape(image.shape[:-1], spacing, p.spacing)
    nearest = coarse_axis(spacing, p.spacing)
    image = resample_image(image, shape, nearest_axis=nearest, overwrite=True)
    if label is not None:
      label = resample_label(label, shape, nearest_axis=nearest)
    if mask is not None:
      mask = resample_label(mask.view(np.uint8), shape, nearest_axis=nearest)
      mask = mask.astype(bool)
  return Prepared(image, label, box, slack, mask)


def prepared_shape(case: Case, preprocessing: Preprocessing) -> tuple[int, ...]:
  """Returns the shape of the image that `preprocess` makes, without making it.

  Args:
    case: as for `preprocess`.
    preprocessing: of a plan: with a spacing.
  """
  p = preprocessing
  axes = p.axes or tuple(range(case.image.ndim - 1))
  box = box_of(case, p)
  shape = tuple(box[axis].stop - box[axis].start for axis in axes)
  spacing = tuple(case.spacing[axis] for axis in axes)
  if shear := shear_of(case.affine, axes, shape):
    shape, spacing = shear.upright, shear.spacing
  return output_shape(shape, spacing, p.spacing)


def box_of(case: Case, preprocessing: Preprocessing) -> tuple[slice, ...]:
  """Returns the part of a case that is not cropped away."""
  if preprocessing.crop:
    return nonzero_box(case.image)
  return tuple(slice(0, size) for size in case.image.shape[:-1])


def nonzero_box(image: np.ndarray) -> tuple[slice, ...]:
  """Returns the bounding box of the voxels that are not 0 in every channel.

  Args:
    image: `[*S, C]`.

  Returns:
    One slice a spatial axis; the whole image where every voxel is 0.
  """
  rank = image.ndim - 1
  found = [np.zeros(size, bool) for size in image.shape[:-1]]
  # Plane by plane: a mask of a whole CT would need a quarter of a gigabyte.
  for i, plane in enumerate(image):
    mask = (plane != 0).any(-1)
    found[0][i] = mask.any()
    for axis in range(1, rank):
      others = tuple(a for a in range(rank - 1) if a != axis - 1)
      found[axis] |= mask.any(others)
  if not found[0].any():
    return tuple(slice(0, size) for size in image.shape[:-1])
  ends = [np.flatnonzero(line)[[0, -1]] for line in found]
  return tuple(slice(int(a), int(b) + 1) for a, b in ends)


def _check_fits(case: Case, p: Preprocessing) -> None:
  """Raises InputError where a case is not what the settings are for."""
  image = case.image
  rank = image.ndim - 1
  if image.dtype.kind == 'f' and not np.isfinite(image).all():
    count = int((~np.isfinite(image)).sum())
    raise InputError(
      f'{case.name}: {count} of {image.size} image values NaN or infinite; '
      'allowed are finite values'
    )
  if p.resize and len(p.resize) != rank:
    raise InputError(
      f'config.data.resize is {p.resize}, but {case.name} has {rank} axes'
    )
  if p.channels and len(p.channels) != image.shape[-1]:
    raise InputError(
      f'{case.name} has {counted(image.shape[-1], "channel")}; the plan has '
      f'{len(p.channels)}'
    )
  if p.axes and len(p.axes) != rank:
    raise InputError(f'{case.name} has {rank} axes; the plan has {len(p.axes)}')
  if p.spacing and rank - len(p.spacing) not in (0, 1):
    raise InputError(
      f'{case.name} has {rank} axes; the plan is for a spacing of {p.spacing}'
    )
