"""Tests of the reliability diagrams."""

import numpy as np
import pytest

from medseg_jax.report import reliability_plot as plot

ORANGE, BLUE = (213, 94, 0), (0, 114, 178)


def _middle(sheet, color, left, right):
  """Returns the mean place of a colour's pixels, in 0 .. 1 of the square."""
  area = sheet[plot._HEAD : plot._HEAD + plot._SIDE, left:right]
  y, x = np.nonzero((area == np.array(color)).all(axis=-1))
  return x.mean() / plot._SIDE, 1 - y.mean() / plot._SIDE


def test_curves_lie_where_their_numbers_say():
  # One bin each: a single point, the second class's without any.
  curves = {
    'a': (([0.25], [0.75]), ([0.5], [0.25])),
    'b': (([np.nan], [np.nan]), ([], [])),
  }
  sheet = plot.reliability_plot(curves, title='of two classes')
  left = plot._GAP
  assert sheet.dtype == np.uint8
  assert _middle(sheet, ORANGE, left, left + plot._SIDE) == pytest.approx(
    (0.25, 0.75), abs=0.01
  )
  assert _middle(sheet, BLUE, left, left + plot._SIDE) == pytest.approx(
    (0.5, 0.25), abs=0.01
  )
  second = sheet[plot._HEAD :][: plot._SIDE, left + plot._SIDE + plot._GAP :]
  assert not (second == np.array(ORANGE)).all(axis=-1).any()


def test_many_classes_go_on_in_the_next_row():
  one = (([0.5], [0.5]), ([0.5], [0.5]))
  four, nine = (
    plot.reliability_plot({str(i): one for i in range(n)}, title='')
    for n in (4, 9)
  )
  assert four.shape[1] == nine.shape[1]
  assert nine.shape[0] - four.shape[0] == 2 * plot._ROW


def test_nothing_to_draw_is_refused():
  with pytest.raises(ValueError, match='no class'):
    plot.reliability_plot({}, title='')
