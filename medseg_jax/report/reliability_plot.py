"""A picture of how far probabilities can be believed, before and after."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _LINE, _TEXT = 260, 28, 22, 14
_COLUMNS = 4
_HEAD, _ROW = 2 * _LINE + _GAP // 2, _SIDE + 2 * _LINE + _GAP // 2
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (205, 205, 205)
_BEFORE, _AFTER = (213, 94, 0), (0, 114, 178)  # of Okabe and Ito
_FINE = 3  # drawn so much larger, then reduced: smooth lines

# (probability, frequency) of the bins, NaN where one is empty.
Curve = tuple[Sequence[float], Sequence[float]]


def reliability_plot(
  curves: Mapping[str, tuple[Curve, Curve]], *, title: str
) -> np.ndarray:
  """Returns one diagram for each class beside the other, uint8 `[h, w, 3]`.

  To the right the mean probability of a bin, upwards the share of its voxels
  that are of the class; on the diagonal both are the same, below it the model
  is too sure.

  Args:
    curves: class name -> its curves before and after calibration, each
      (probability, frequency) of the bins in 0 .. 1.
    title: the heading.

  Raises:
    ValueError: no class.
  """
  if not curves:
    raise ValueError('curves holds no class')
  font = ImageFont.load_default(size=_TEXT * _FINE)
  columns = min(len(curves), _COLUMNS)
  rows = -(-len(curves) // columns)
  width = columns * (_SIDE + _GAP) + _GAP
  below = _HEAD + (rows - 1) * _ROW + _SIDE + _GAP
  height = below + 2 * _LINE + _GAP // 2
  sheet = Image.new('RGB', (width * _FINE, height * _FINE), _PAPER)
  draw = ImageDraw.Draw(sheet)

  def text(x: int, y: int, words: str, color=_INK, anchor='la') -> None:
    draw.text((x * _FINE, y * _FINE), words, color, font, anchor)

  text(_GAP, 10, title)
  for i, (name, pair) in enumerate(curves.items()):
    row, column = divmod(i, columns)
    left, top = _GAP + column * (_SIDE + _GAP), _HEAD + row * _ROW
    text(left, top - _LINE, name)
    _draw_axes(draw, left, top)
    for curve, color in zip(pair, (_BEFORE, _AFTER), strict=True):
      _draw_curve(draw, curve, color, left, top)
    for value in (0, 1):
      text(left + value * _SIDE, top + _SIDE + 3, str(value), anchor='ma')
  text(_GAP, below, 'before', _BEFORE)
  text(_GAP + 60, below, 'after', _AFTER)
  text(_GAP, below + _LINE, 'right: probability, up: share that is so')
  return np.asarray(sheet.resize((width, height), Image.Resampling.BOX))


def _draw_axes(draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
  for step in range(6):
    at = step * _SIDE // 5
    for line in (
      (left + at, top, left + at, top + _SIDE),
      (left, top + at, left + _SIDE, top + at),
    ):
      draw.line([_FINE * x for x in line], _FAINT, _FINE)
  diagonal = (left, top + _SIDE, left + _SIDE, top)
  draw.line([_FINE * x for x in diagonal], (150, 150, 150), 2 * _FINE)


def _draw_curve(
  draw: ImageDraw.ImageDraw,
  curve: Curve,
  color: tuple[int, int, int],
  left: int,
  top: int,
) -> None:
  points = [
    (_FINE * (left + x * _SIDE), _FINE * (top + (1 - y) * _SIDE))
    for x, y in zip(*curve, strict=True)
    if np.isfinite(x) and np.isfinite(y)
  ]
  draw.line(points, color, 2 * _FINE)
  for x, y in points:
    size = 3 * _FINE
    draw.ellipse((x - size, y - size, x + size, y + size), color)
