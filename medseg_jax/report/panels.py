"""Pictures of an image, its truth and its prediction side by side.

Labels are drawn as coloured overlays, the background (class 0) left clear.
The first colours are those of Okabe and Ito (2008), which people with any
kind of colour vision can tell apart.
"""

import bisect
import colorsys
import io
import itertools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medseg_jax.runtime.files import write_atomically

_OKABE_ITO = (
  (86, 180, 233),  # Sky blue first: it shows on grey and on a red retina.
  (230, 159, 0),
  (0, 158, 115),
  (240, 228, 66),
  (204, 121, 167),
  (0, 114, 178),
  (213, 94, 0),
)
_MIN_SIDE, _MAX_SIDE = 256, 768
_MIN_COLUMN = 128  # Room for a caption over a slender image.
_FILL = 0.45
_GAP = 6
_PAPER, _INK, _FAINT_INK = (24, 24, 24), (240, 240, 240), (170, 170, 170)


def panel(
  image: np.ndarray,
  label: np.ndarray | None,
  pred: np.ndarray | Mapping[str, np.ndarray],
  classes: Sequence[str],
  *,
  title: str = '',
  dice: Mapping[str, float] | None = None,
  spacing: Sequence[float] | None = None,
) -> np.ndarray:
  """Returns image, truth and prediction side by side, uint8 `[h, w, 3]`.

  A volume, whose axes run to superior, posterior and left, gives three rows:
  an axial, a coronal and a sagittal plane as radiologists look at them,
  anterior or superior up and the patient's right on the left. Of the truth
  (where that is empty, of the prediction) each shows as many foreground classes
  as one plane can, and of these as many voxels. A 2-D image of three channels
  is shown in colour, of others the first channel in grey; intensities other
  than uint8 are stretched between their percentiles 0.5 and 99.5. The legend
  names the classes that occur.

  Args:
    image: `[*S, C]`, two or three spatial axes, any dtype and range.
    label: `[*S]` class indices, -1 where ignored (drawn as hatching); None
      where there is no truth, which leaves its column out.
    pred: `[*S]` class indices; of several predictions each by its caption.
    classes: names of the classes, background first.
    title: the heading, the case's name, say.
    dice: class name -> Dice, shown in the legend; NaN where undefined.
    spacing: size of a voxel along each spatial axis; None for equal sizes.

  Raises:
    ValueError: shapes that do not match, or an index outside `classes`.
  """
  preds = pred if isinstance(pred, Mapping) else {'prediction': pred}
  for pred in preds.values():
    _check(image, label, pred, classes)
  spacing = (1.0,) * pred.ndim if spacing is None else tuple(spacing)
  image = image if image.shape[-1] == 3 and pred.ndim == 2 else image[..., :1]
  low, high = _window(image)
  masks = {} if label is None else {'truth': label}
  masks |= preds
  colors = class_colors(len(classes))
  sides = _shown_sides(pred.shape, spacing)
  rows = []
  for caption, axes, at in _planes(next(iter(masks.values())), pred):
    size = tuple(sides[axis] for axis in axes)
    base = _resize_image(_to_rgb(image[at], low, high), size)
    row = [(caption, base)]
    for name, mask in masks.items():
      label_of_plane = _resize_label(mask[at], size)
      row.append((name, _overlay(base, label_of_plane, colors)))
    rows.append(row)
  present = sum(
    _foreground_counts(mask, len(classes)) for mask in masks.values()
  )
  entries = [
    (_legend_text(name, dice), colors[i])
    for i, name in enumerate(classes)
    if present[i]
  ]
  return _compose(rows, title, entries)


def save_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes an image, uint8 `[H, W, 3]`, as a PNG, whole or not at all."""
  png = io.BytesIO()
  Image.fromarray(array).save(png, format='PNG')
  write_atomically(path, png.getvalue())


def class_colors(num_classes: int) -> np.ndarray:
  """Returns the colour of every class, uint8 `[num_classes, 3]`.

  After the first seven foreground classes the hues follow the golden ratio,
  which keeps neighbours apart however many there are.
  """
  colors = [(0, 0, 0), *_OKABE_ITO]
  for i in range(max(0, num_classes - len(colors))):
    hue = (0.13 + i * (math.sqrt(5) - 1) / 2) % 1.0
    rgb = colorsys.hls_to_rgb(hue, (0.65, 0.45, 0.8)[i % 3], 0.75)
    colors.append(tuple(round(255 * value) for value in rgb))
  return np.array(colors[:num_classes], np.uint8)


def _check(image, label, pred, classes) -> None:
  if pred.ndim not in (2, 3) or image.shape[:-1] != pred.shape:
    raise ValueError(
      'image must be [*S, C] and pred [*S] with two or three spatial axes, '
      f'got {image.shape} and {pred.shape}'
    )
  if label is not None and label.shape != pred.shape:
    raise ValueError(
      f'label must have the shape of pred {pred.shape}, got {label.shape}'
    )
  for name, mask in (('label', label), ('pred', pred)):
    if mask is not None and mask.size:
      low, high = int(mask.min()), int(mask.max())
      if low < -1 or high >= len(classes):
        raise ValueError(
          f'{name} must lie in -1..{len(classes) - 1}, got {low}..{high}'
        )


def _window(image: np.ndarray) -> tuple[float, float]:
  """Returns the intensities shown as black and as white."""
  if image.dtype == np.uint8:
    return 0.0, 255.0
  # A million values tell the percentiles of any volume.
  stride = max(1, round((image.size / 1e6) ** (1 / (image.ndim - 1))))
  sample = image[(slice(None, None, stride),) * (image.ndim - 1)]
  sample = sample.astype(np.float64)
  sample = sample[np.isfinite(sample)]
  if not sample.size:
    return 0.0, 0.0
  low, high = np.percentile(sample, (0.5, 99.5))
  if low == high:  # Nearly constant: black but for a few spots, say.
    low, high = sample.min(), sample.max()
  return float(low), float(high)


def _to_rgb(image: np.ndarray, low: float, high: float) -> np.ndarray:
  """Returns uint8 `[H, W, 3]`, black at `low` and below, white at `high`."""
  image = np.nan_to_num(
    image.astype(np.float64), nan=low, posinf=high, neginf=low
  )
  if low == high:
    return np.full((*image.shape[:-1], 3), 127, np.uint8)
  unit = np.clip((image - low) / (high - low), 0.0, 1.0)
  grey_or_rgb = np.round(255 * unit).astype(np.uint8)
  return np.broadcast_to(grey_or_rgb, (*image.shape[:-1], 3))


def _planes(truth: np.ndarray, pred: np.ndarray) -> list[tuple]:
  """Returns (caption, axes shown, index): one plane in 2-D, three in 3-D."""
  if pred.ndim == 2:
    return [('image', (0, 1), (slice(None), slice(None)))]
  mask = truth if (truth > 0).any() else pred
  planes = []
  for axis, name in enumerate(('axial', 'coronal', 'sagittal')):
    place = _fullest_plane(mask, axis)
    # The first axis runs to superior, which belongs on top.
    at = [slice(None, None, -1), slice(None), slice(None)]
    at[axis] = place
    axes = tuple(a for a in range(3) if a != axis)
    planes.append((f'{name} {place + 1}/{mask.shape[axis]}', axes, tuple(at)))
  return planes


def _fullest_plane(mask: np.ndarray, axis: int) -> int:
  """Returns the plane of the most classes, the middle one of equal ones."""
  contents = []
  for i in range(mask.shape[axis]):
    counts = _foreground_counts(mask.take(i, axis), 1)
    contents.append((np.count_nonzero(counts), int(counts.sum())))
  best = max(contents)
  equal = [i for i, content in enumerate(contents) if content == best]
  return equal[len(equal) // 2]


def _foreground_counts(mask: np.ndarray, min_length: int) -> np.ndarray:
  """Returns the number of voxels of every class, 0 for the background."""
  foreground = mask[mask > 0].astype(np.int64)
  return np.bincount(foreground, minlength=min_length)


def _shown_sides(
  shape: Sequence[int], spacing: Sequence[float]
) -> tuple[int, ...]:
  """Returns the pixels that each axis is shown with, in true proportions."""
  finest = min(spacing)
  sides = [n * size / finest for n, size in zip(shape, spacing, strict=True)]
  scale = max(1, math.ceil(_MIN_SIDE / max(sides)))
  if max(sides) > _MAX_SIDE:
    scale = _MAX_SIDE / max(sides)
  return tuple(max(1, round(side * scale)) for side in sides)


def _resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
  method = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
  resized = Image.fromarray(np.ascontiguousarray(image)).resize(
    size[::-1], method
  )
  return np.asarray(resized)


def _resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  rows, columns = (
    ((np.arange(n) + 0.5) * old / n).astype(int)
    for n, old in zip(size, label.shape, strict=True)
  )
  return label[np.ix_(rows, columns)]


def _overlay(
  base: np.ndarray, label: np.ndarray, colors: np.ndarray
) -> np.ndarray:
  """Returns `base` with filled, outlined classes and hatched ignored pixels."""
  label = label.astype(np.int64)
  alpha = np.where(label > 0, _FILL, 0.0)
  alpha[_edges(label) & (label > 0)] = 1.0
  paint = colors[np.maximum(label, 0)].astype(np.float64)
  ignored = label < 0
  y, x = np.indices(label.shape)
  alpha[ignored] = np.where((x + y) % 8 < 3, 0.9, 0.5)[ignored]
  paint[ignored] = 128
  mixed = (1 - alpha[..., None]) * base + alpha[..., None] * paint
  return np.round(mixed).astype(np.uint8)


def _edges(label: np.ndarray) -> np.ndarray:
  """Returns where a pixel's right, left, lower or upper one differs."""
  edges = np.zeros(label.shape, bool)
  down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
  edges[1:] |= down
  edges[:-1] |= down
  edges[:, 1:] |= right
  edges[:, :-1] |= right
  return edges


def _legend_text(name: str, dice: Mapping[str, float] | None) -> str:
  if dice is None or name not in dice:
    return name
  value = dice[name]
  defined = value is not None and math.isfinite(value)
  return f'{name}  Dice {value:.3f}' if defined else f'{name}  Dice -'


def _compose(
  rows: Sequence[Sequence[tuple[str, np.ndarray]]],
  title: str,
  entries: Sequence[tuple[str, np.ndarray]],
) -> np.ndarray:
  """Returns captioned tiles on one sheet, with heading and legend."""
  columns = len(rows[0])
  tile_width = max(_MIN_COLUMN, *(row[0][1].shape[1] for row in rows))
  text_size = 15 if tile_width < 400 else 20
  font = ImageFont.load_default(size=text_size)
  line = text_size + 8
  width = columns * tile_width + (columns + 1) * _GAP
  room = width - 2 * _GAP - text_size - 6
  entries = [(_shorten(text, font, room), color) for text, color in entries]
  spots, legend_lines = _legend_spots(entries, font, width, line)
  lines = len(rows) + legend_lines + (1 if title else 0)
  heights = [row[0][1].shape[0] + _GAP for row in rows]
  height = lines * line + sum(heights) + _GAP
  sheet = Image.new('RGB', (width, height), _PAPER)
  draw = ImageDraw.Draw(sheet)
  top = 0
  if title:
    text = _shorten(title, font, width - 2 * _GAP)
    draw.text((_GAP, 3), text, _INK, font)
    top = line
  for row, row_height in zip(rows, heights, strict=True):
    for i, (caption, tile) in enumerate(row):
      left = _GAP + i * (tile_width + _GAP) + (tile_width - tile.shape[1]) // 2
      draw.text((left, top + 3), caption, _FAINT_INK, font)
      sheet.paste(Image.fromarray(tile), (left, top + line))
    top += line + row_height
  for (text, color), (x, y) in zip(entries, spots, strict=True):
    box = (x, top + y + 5, x + text_size, top + y + 5 + text_size)
    draw.rectangle(box, tuple(color.tolist()))
    draw.text((x + text_size + 6, top + y + 3), text, _INK, font)
  return np.asarray(sheet)


def _legend_spots(entries, font, width: int, line: int):
  """Returns the (x, y) of every legend entry and the number of lines.

  One line where they fit on it, else columns of equal width.
  """
  needed = [math.ceil(font.getlength(text)) + 2 * line for text, _ in entries]
  if sum(needed) + _GAP <= width:
    ends = itertools.accumulate(needed, initial=_GAP)
    return [(x, 0) for x in ends][: len(entries)], min(len(entries), 1)
  columns = max(1, (width - _GAP) // max(needed))
  pitch = (width - _GAP) // columns
  spots = [
    (_GAP + i % columns * pitch, i // columns * line)
    for i in range(len(entries))
  ]
  return spots, math.ceil(len(entries) / columns)


def _shorten(text: str, font, width: int) -> str:
  """Returns the text, with its middle cut out where it is too wide."""
  if font.getlength(text) <= width:
    return text

  def short(keep):
    return f'{text[:keep]}...{text[-keep:]}'

  keeps = range(1, len(text) // 2 + 1)
  fitting = bisect.bisect_right(
    keeps, width, key=lambda keep: font.getlength(short(keep))
  )
  return short(fitting) if fitting else ''
