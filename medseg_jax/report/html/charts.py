"""Charts as SVG, whose points are the cases that a click opens."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BELOW = 66, 24, 10, 40
_ROW = 30  # the height of one class in `strips`
_NAME = 120  # the width of its name


class Point(NamedTuple):
  """A case: its number in the page, where it lies, and what is told of it."""

  case: int
  x: float
  y: float
  text: str


class Axis(NamedTuple):
  """What an axis is of.

  Attributes:
    label: with its unit.
    low: its lower end, None for that of the data.
    high: likewise.
    log: whether it is logarithmic; then all values are above 0.
  """

  label: str
  low: float | None = None
  high: float | None = None
  log: bool = False


class Level(NamedTuple):
  """A horizontal line and its name."""

  y: float
  text: str


def plot(
  title: str,
  x: Axis,
  y: Axis,
  *,
  points: Sequence[Point] = (),
  curve: Sequence[tuple[float, float]] = (),
  levels: Sequence[Level] = (),
) -> Markup:
  """Returns a chart of points, a curve and levels."""
  xs = [p.x for p in points] + [a for a, _ in curve]
  ys = [p.y for p in points] + [b for _, b in curve]
  across, x_ticks = _scale(x, xs, _LEFT, _WIDTH - _RIGHT)
  up, y_ticks = _scale(
    y, ys + [level.y for level in levels], _HEIGHT - _BELOW, _TOP
  )
  inside = [
    _line('grid', _LEFT, up(tick), _WIDTH - _RIGHT, up(tick))
    + _text(_LEFT - 6, up(tick) + 4, short(tick), 'end')
    for tick in y_ticks
  ]
  inside += [
    _line('tick', across(tick), _HEIGHT - _BELOW, across(tick), _HEIGHT - 36)
    + _text(across(tick), _HEIGHT - 24, short(tick), 'middle')
    for tick in x_ticks
  ]
  inside.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 6, x.label, 'middle'))
  turned = f'translate(13 {(_HEIGHT - _BELOW) / 2:.0f}) rotate(-90)'
  inside.append(
    Markup('<text text-anchor="middle" transform="{}">{}</text>').format(
      turned, y.label
    )
  )
  for level in levels:
    place = up(level.y)
    inside.append(_line('level', _LEFT, place, _WIDTH - _RIGHT, place))
    inside.append(_text(_WIDTH - _RIGHT, place - 4, level.text, 'end'))
  if curve:
    corners = ' '.join(f'{across(a):.1f},{up(b):.1f}' for a, b in curve)
    inside.append(Markup('<polyline points="{}"/>').format(corners))
    if len(curve) == 1:
      inside.append(_dot(across(curve[0][0]), up(curve[0][1]), 'end'))
  inside += [_case(p, across(p.x), up(p.y)) for p in points]
  return _svg(title, _WIDTH, _HEIGHT, inside)


class Row(NamedTuple):
  """One class: its name, its cases (`y` is not used), mean and interval."""

  name: str
  points: Sequence[Point]
  mean: float | None
  interval: Sequence[float] | None


def strips(title: str, x: Axis, rows: Sequence[Row]) -> Markup:
  """Returns a chart with a row of points for each class.

  A box stands for the middle half of the cases, a line in it for the median; a
  diamond for the mean, with its interval.
  """
  height = _TOP + _ROW * len(rows) + _BELOW
  bottom = height - _BELOW
  values = [p.x for row in rows for p in row.points]
  across, ticks = _scale(x, values, _NAME + 8, _WIDTH - _RIGHT)
  inside = [
    _line('grid', across(tick), _TOP, across(tick), bottom)
    + _text(across(tick), bottom + 16, short(tick), 'middle')
    for tick in ticks
  ]
  inside.append(_text((_WIDTH + _NAME) / 2, height - 6, x.label, 'middle'))
  for i, row in enumerate(rows):
    middle = _TOP + _ROW * (i + 0.5)
    name = row.name if len(row.name) < 18 else row.name[:16] + '…'
    label = _text(_NAME, middle + 4, name, 'end')
    inside.append(label)
    if not row.points:
      inside.append(_text(_NAME + 14, middle + 4, 'no case', 'start'))
      continue
    found = [p.x for p in row.points]
    low, median, high = (across(q) for q in np.percentile(found, (25, 50, 75)))
    box = '<rect class="box" x="{}" y="{}" width="{}" height="{}"/>'
    size = (f'{low:.1f}', f'{middle - 10:.1f}', f'{max(high - low, 1):.1f}', 20)
    inside.append(Markup(box).format(*size))
    inside.append(_line('median', median, middle - 10, median, middle + 10))
    # Points that lie side by side would hide each other: a fixed scatter.
    inside += [
      _case(p, across(p.x), middle + 7 * math.sin(2.4 * k))
      for k, p in enumerate(row.points)
    ]
    if row.mean is not None:
      at = across(row.mean)
      if row.interval:
        ends = [across(end) for end in row.interval]
        inside.append(_line('mean', ends[0], middle, ends[1], middle))
      path = f'M{at:.1f} {middle - 6:.1f}l5 6-5 6-5-6z'
      inside.append(Markup('<path class="mean" d="{}"/>').format(path))
  return _svg(title, _WIDTH, height, inside)


def _scale(
  axis: Axis, values: Sequence[float], first: float, last: float
) -> tuple[Callable[[float], float], list[float]]:
  """Returns the place of a value, and the values to mark."""
  low = min(values, default=0.0) if axis.low is None else axis.low
  high = max(values, default=1.0) if axis.high is None else axis.high
  if axis.log:
    ends = math.log10(low), math.log10(high)
    if ends[1] - ends[0] < 0.1:
      ends = ends[0] - 0.1, ends[1] + 0.1
    decades = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    marks = (1, 2, 5) if len(decades) < 4 else (1,)
    ticks = [m * 10.0**d for d, m in itertools.product(decades, marks)]
    ticks = [t for t in ticks if ends[0] - 1e-9 <= math.log10(t) <= ends[1]]
    ticks = ticks or [low]
  else:
    if high - low < 1e-12 * max(abs(high), 1e-300):  # one value
      low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
    step = _step(high - low)
    if axis.low is None:
      low = step * math.floor(low / step + 1e-9)
    if axis.high is None:
      high = step * math.ceil(high / step - 1e-9)
    ends = low, high
    first_tick, last_tick = math.ceil(low / step - 1e-9), high / step + 1e-9
    ticks = [k * step for k in range(first_tick, math.floor(last_tick) + 1)]

  def place(value: float) -> float:
    at = math.log10(value) if axis.log else value
    return first + (last - first) * (at - ends[0]) / (ends[1] - ends[0])

  return place, ticks


def _step(span: float) -> float:
  """Returns a round distance that parts a span in 3 to 6."""
  power = 10.0 ** math.floor(math.log10(span))
  return next(
    power * m for m in (0.2, 0.5, 1.0, 2.0) if span / (power * m) <= 6
  )


def short(value: float, sign: str = '') -> str:
  """Returns a number of some three digits; '-' or '+' tells the sign, too."""
  for least, unit in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= least:
      scale = 1e3 if unit == 'k' else least
      return f'{value / scale:{sign}.4g}{unit}'
  if value and abs(value) < 1e-3:
    return f'{value:{sign}.1e}'.replace('.0e', 'e').replace('e-0', 'e-')
  return f'{value:{sign}.4g}'


def _case(point: Point, x: float, y: float) -> Markup:
  return Markup(
    '<circle class="case" data-case="{}" cx="{}" cy="{}" r="4.5" '
    'role="button" tabindex="-1" aria-label="{}"><title>{}</title></circle>'
  ).format(point.case, f'{x:.1f}', f'{y:.1f}', point.text, point.text)


def _dot(x: float, y: float, kind: str) -> Markup:
  text = '<circle class="{}" cx="{}" cy="{}" r="3"/>'
  return Markup(text).format(kind, f'{x:.1f}', f'{y:.1f}')


def _line(kind: str, *ends: float) -> Markup:
  text = '<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>'
  return Markup(text).format(kind, *(f'{end:.1f}' for end in ends))


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
  return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
    f'{x:.1f}', f'{y:.1f}', anchor, text
  )


def _svg(
  title: str, width: int, height: int, inside: Sequence[Markup]
) -> Markup:
  return Markup(
    '<figure class="chart"><figcaption>{}</figcaption>'
    '<svg viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg></figure>'
  ).format(title, width, height, title, Markup('').join(inside))
