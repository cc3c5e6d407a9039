"""A picture of how Dice rises with the number of training cases."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _LEFT, _TOP, _BELOW, _RIGHT = 520, 320, 64, 44, 92, 28
_TEXT = 14
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (222, 222, 222)
_MEASURED, _FITTED, _BAND = (0, 114, 178), (213, 94, 0), (250, 226, 208)
_FINE = 3  # drawn so much larger, then reduced: smooth lines


class Fitted(NamedTuple):
  """A curve with its 95 % band, each `[P]`."""

  numbers: np.ndarray
  dice: np.ndarray
  low: np.ndarray
  high: np.ndarray


def learning_plot(
  numbers: Sequence[int],
  dice: Sequence[float],
  intervals: Sequence[Sequence[float] | None],
  fitted: Fitted | None,
  *,
  title: str,
) -> np.ndarray:
  """Returns the picture, uint8 `[h, w, 3]`: cases on a log scale, and Dice.

  Args:
    numbers: of training cases.
    dice: at these.
    intervals: [low, high] of each, None where unknown.
    fitted: a law, drawn as far as it goes; None for none.
    title: the heading.
  """
  ends = [value for pair in intervals if pair is not None for value in pair]
  ends += list(dice)
  last = max(numbers)
  if fitted is not None:
    ends += [*fitted.low, *fitted.high]
    last = max(last, fitted.numbers.max())
  step = _step(max(ends) - min(ends))
  low = step * math.floor(min(ends) / step + 1e-9)
  high = max(low + step, step * math.ceil(max(ends) / step - 1e-9))
  first, last = math.log(min(numbers)), math.log(max(last, min(numbers) + 1))

  def place(number: float, value: float) -> tuple[float, float]:
    across = (math.log(number) - first) / (last - first)
    up = (value - low) / (high - low)
    return (
      _FINE * (_LEFT + _WIDTH * (0.03 + 0.94 * across)),
      _FINE * (_TOP + _HEIGHT * (1 - up)),
    )

  size = (_LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BELOW)
  sheet = Image.new('RGB', (size[0] * _FINE, size[1] * _FINE), _PAPER)
  draw = ImageDraw.Draw(sheet)
  font = ImageFont.load_default(size=_TEXT * _FINE)

  def text(x: float, y: float, words: str, color=_INK, anchor='la') -> None:
    draw.text((x, y), words, color, font, anchor)

  text(_LEFT * _FINE, 12 * _FINE, title)
  if fitted is not None:
    over = [place(*p) for p in zip(fitted.numbers, fitted.high, strict=True)]
    under = [place(*p) for p in zip(fitted.numbers, fitted.low, strict=True)]
    draw.polygon([*over, *reversed(under)], _BAND)
  for i in range(round((high - low) / step) + 1):
    _, y = place(numbers[0], low + i * step)
    draw.line((_LEFT * _FINE, y, (_LEFT + _WIDTH) * _FINE, y), _FAINT, _FINE)
    label = f'{low + i * step:.{_digits(step)}f}'
    text((_LEFT - 8) * _FINE, y, label, anchor='rm')
  marks = list(numbers)
  if fitted is not None:
    line = [place(*p) for p in zip(fitted.numbers, fitted.dice, strict=True)]
    draw.line(line, _FITTED, 2 * _FINE)
    marks.append(round(float(fitted.numbers.max())))
  for number in sorted(set(marks)):
    x, y = place(number, low)
    draw.line((x, y, x, y + 5 * _FINE), _INK, _FINE)
    text(x, y + 8 * _FINE, str(number), anchor='ma')
  for number, value, pair in zip(numbers, dice, intervals, strict=True):
    x, y = place(number, value)
    if pair is not None:
      ends_at = [place(number, end)[1] for end in pair]
      draw.line((x, ends_at[0], x, ends_at[1]), _MEASURED, 2 * _FINE)
    radius = 4 * _FINE
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), _MEASURED)
  below = (_TOP + _HEIGHT + 34) * _FINE
  text(_LEFT * _FINE, below, 'right: training cases, up: Dice')
  below += 24 * _FINE
  text(_LEFT * _FINE, below, 'measured, 95 % over cases', _MEASURED)
  if fitted is not None:
    text((_LEFT + 220) * _FINE, below, 'fitted power law, 95 %', _FITTED)
  return np.asarray(sheet.resize(size, Image.Resampling.BOX))


def _step(span: float) -> float:
  """Returns a round distance that parts a span of Dice in 3 to 8."""
  span = max(span, 1e-3)
  power = 10.0 ** math.floor(math.log10(span))
  return next(
    power * m for m in (0.2, 0.5, 1.0, 2.0) if span / (power * m) <= 6
  )


def _digits(step: float) -> int:
  return max(0, -math.floor(math.log10(step) + 1e-9))
