"""Tests of the pictures of image, truth and prediction."""

import numpy as np
import pytest
from PIL import Image

from medseg_jax.report import panels
from medseg_jax.report import summary as report

GAP = 6
CLASSES = ('background', 'organ', 'tumour')


def _tiles(sheet, tile_shape, columns, heading=1, text_size=15):
  """Cuts the tiles of the first row out of a sheet of square-ish tiles."""
  height, width = tile_shape
  top = heading * (text_size + 8)
  return [
    sheet[top : top + height, GAP + i * (width + GAP) :][:, :width]
    for i in range(columns)
  ]


def _ramp(dtype=np.uint8):
  """An image of 64 rows and 64 columns whose grey is 4 times the column."""
  return np.tile(4 * np.arange(64), (64, 1))[..., None].astype(dtype)


def test_small_image_is_enlarged_by_a_whole_factor_without_smoothing():
  label = np.zeros((64, 64), int)
  sheet = panels.panel(_ramp(), label, label, CLASSES)
  assert sheet.dtype == np.uint8 and sheet.shape == (
    23 + 256 + 2 * GAP,
    3 * 256 + 4 * GAP,
    3,
  )
  expected = np.repeat(_ramp()[..., 0], 4, 0).repeat(4, 1)
  for tile in _tiles(sheet, (256, 256), 3):  # Background stays clear.
    np.testing.assert_array_equal(tile, np.stack([expected] * 3, axis=-1))


def test_large_image_is_reduced():
  label = np.zeros((1000, 500), np.uint8)
  label[:, :250] = 1
  image = np.zeros((1000, 500, 3), np.uint8)
  sheet = panels.panel(image, label, label, CLASSES)
  assert sheet.shape[1] == 3 * 384 + 4 * GAP
  _, truth, _ = _tiles(sheet, (768, 384), 3)
  painted = truth.any(axis=-1)
  assert painted[:, :192].all() and not painted[:, 192:].any()


def test_reduced_label_is_read_at_the_middle_of_each_shown_pixel():
  label = np.zeros((2304, 384), np.uint8)
  label[1::3, 1::3] = 1
  image = np.zeros((2304, 384, 1), np.uint8)
  sheet = panels.panel(image, label, 0 * label, CLASSES)
  _, truth, pred = _tiles(sheet, (768, 128), 3)
  assert truth.any(axis=-1).all() and not pred.any()


def test_truth_and_prediction_are_filled_and_outlined_in_the_class_colour():
  image = np.full((64, 64, 1), 100, np.uint8)
  label, pred = np.zeros((2, 64, 64), int)
  label[16:32, 16:32] = 1
  pred[32:48, 32:48] = 2
  sheet = panels.panel(image, label, pred, CLASSES)
  shown, truth, guess = _tiles(sheet, (256, 256), 3)
  colors = panels.class_colors(3).astype(float)
  assert (shown == 100).all()
  for side in (truth[64, 96], truth[127, 96], truth[96, 64], truth[96, 127]):
    np.testing.assert_array_equal(side, colors[1])  # On the outline.
  np.testing.assert_array_equal(guess[128, 160], colors[2])
  blend = np.round(0.55 * 100 + 0.45 * colors)
  np.testing.assert_array_equal(truth[96, 96], blend[1])  # Well inside.
  np.testing.assert_array_equal(guess[160, 160], blend[2])
  assert (truth[63, 64] == 100).all()  # Just outside.
  assert (guess[96, 96] == 100).all()


def test_ignored_pixels_are_hatched_grey():
  image = np.zeros((64, 64, 1), np.uint8)
  label = np.full((64, 64), -1)
  label[:, 32:] = 0
  sheet = panels.panel(image, label, np.zeros_like(label), CLASSES)
  _, truth, _ = _tiles(sheet, (256, 256), 3)
  left, right = truth[:, :128], truth[:, 128:]
  assert set(np.unique(left)) == {64, 115}  # Half, and 0.9, of grey 128.
  assert (left[..., 0] == left[..., 2]).all()
  assert not right.any()


def test_contrast_runs_between_the_percentiles():
  image = np.linspace(-5.0, 5.0, 256 * 256).reshape(256, 256, 1)
  image[0, 0], image[0, 1] = 1e9, np.nan
  label = np.zeros((256, 256), int)
  sheet = panels.panel(image.astype(np.float32), label, label, CLASSES)
  shown = _tiles(sheet, (256, 256), 3)[0][..., 0].astype(float)
  assert shown[0, 0] == 255 and shown[0, 1] == 0
  # Black at 0.5 % and white at 99.5 % of an even spread.
  fraction = (np.arange(256 * 256) / (256 * 256 - 1) - 0.005) / 0.99
  expected = 255 * np.clip(fraction, 0, 1).reshape(256, 256)
  error = np.abs(shown - expected)
  error[0, :2] = 0
  assert error.max() < 1


@pytest.mark.parametrize('value', [0.0, -3.0, np.nan])
def test_constant_image_is_mid_grey(value):
  label = np.zeros((64, 64), int)
  image = np.full((64, 64, 1), value)
  sheet = panels.panel(image, label, label, CLASSES)
  assert (_tiles(sheet, (256, 256), 3)[0] == 127).all()


def test_colour_is_kept_and_of_other_channels_the_first_is_shown():
  label = np.zeros((256, 256), int)
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
  sheet = panels.panel(rgb, label, label, CLASSES)
  np.testing.assert_array_equal(_tiles(sheet, (256, 256), 3)[0], rgb)
  two = rgb[..., :2]
  first = _tiles(panels.panel(two, label, label, CLASSES), (256, 256), 3)[0]
  np.testing.assert_array_equal(first, two[..., [0, 0, 0]])


def test_without_truth_there_are_two_tiles():
  pred = np.zeros((64, 64), int)
  pred[20:40, 20:40] = 1
  sheet = panels.panel(_ramp(), None, pred, CLASSES)
  assert sheet.shape[1] == 2 * 256 + 3 * GAP
  shown, guess = _tiles(sheet, (256, 256), 2)
  assert (shown != guess).any(axis=-1).sum() == 80 * 80


def _has(sheet, color):
  return (sheet == color).all(axis=-1).any()


def test_title_and_legend_take_lines_and_name_only_classes_that_occur():
  label = np.zeros((64, 64), int)
  pred = label.copy()
  plain = panels.panel(_ramp(), label, pred, CLASSES)
  titled = panels.panel(_ramp(), label, pred, CLASSES, title='case 7' * 99)
  assert titled.shape == (plain.shape[0] + 23, *plain.shape[1:])
  assert titled[:23].max() > 200  # White letters.
  pred[10, 10] = 2
  named = panels.panel(_ramp(), label, pred, CLASSES, dice={'tumour': 0.5})
  assert named.shape == titled.shape
  legend = named[plain.shape[0] :]
  _, organ, tumour = panels.class_colors(3)
  assert _has(legend, tumour) and not _has(legend, organ)
  without = panels.panel(_ramp(), label, pred, CLASSES)
  undefined = panels.panel(_ramp(), label, pred, CLASSES, dice={'tumour': None})
  assert (named != without).any() and (named != undefined).any()


def test_long_legend_wraps_within_the_sheet():
  classes = ['background', *(f'a rather long name {i}' for i in range(40))]
  label = np.arange(64 * 64).reshape(64, 64) % 41
  short = panels.panel(_ramp(), label * 0, label * 0, classes)
  sheet = panels.panel(_ramp(), label, label, classes)
  lines = (sheet.shape[0] - short.shape[0]) / 23
  assert lines == int(lines) and lines >= 10
  legend = sheet[short.shape[0] :]
  assert all(_has(legend, c) for c in panels.class_colors(41)[1:])
  assert (sheet[:, -1] == sheet[0, -1]).all()  # Nothing is cut off.


def _rows(sheet, sizes, column=0):
  """Cuts a volume's tiles out of its sheet; each has a line for captions."""
  pitch = max(w for _, w in sizes) + GAP
  top, tiles = 0, []
  for h, w in sizes:
    left = GAP + column * pitch + (pitch - GAP - w) // 2
    top += 23
    tiles.append(sheet[top : top + h, left : left + w])
    top += h + GAP
  return tiles, top


def test_volume_shows_three_planes_the_way_up_radiologists_look_at_them():
  shape = (20, 32, 16)
  image = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8)
  label = np.zeros(shape, int)
  label[2:7, 20:27, 4:9] = 2  # The middle planes are 4, 23 and 6.
  sheet = panels.panel(image, label, label * 0, CLASSES)
  # Axial as it is; the others with the first axis, to superior, upwards.
  planes = [image[4], image[::-1, 23], image[::-1, :, 6]]
  sizes = [(32 * 8, 16 * 8), (20 * 8, 16 * 8), (20 * 8, 32 * 8)]
  tiles, top = _rows(sheet, sizes)
  for tile, plane in zip(tiles, planes, strict=True):
    np.testing.assert_array_equal(tile[::8, ::8, 0], plane[..., 0])
    np.testing.assert_array_equal(tile[7::8, 7::8, 0], plane[..., 0])
  assert _has(sheet[top:], panels.class_colors(3)[2])
  truths, _ = _rows(sheet, sizes, column=1)
  marks = [label[4], label[::-1, 23], label[::-1, :, 6]]
  for tile, plain, mark in zip(truths, tiles, marks, strict=True):
    painted = (tile != plain).any(axis=-1)
    blocks = painted.reshape(mark.shape[0], 8, mark.shape[1], 8)
    np.testing.assert_array_equal(blocks.mean(axis=(1, 3)) > 0.5, mark > 0)


def test_a_volumes_planes_show_as_many_classes_as_they_can():
  label = np.zeros((12, 12, 12), int)
  label[1:9, 1:9, 1:9] = 1
  label[2, 3, 4] = 2  # A small lesion in a large organ.
  image = np.zeros((12, 12, 12, 1), np.uint8)
  sheet = panels.panel(image, label, label, CLASSES)
  truths, _ = _rows(sheet, 3 * [(264, 264)], column=1)
  lesion = panels.class_colors(3)[2]
  # Rows and columns of the lesion; two of the planes are turned upside down.
  for tile, (row, column) in zip(
    truths, [(3, 4), (11 - 2, 4), (11 - 2, 3)], strict=True
  ):
    where = np.argwhere((tile == lesion).all(axis=-1))
    assert (where.min(axis=0) // 22).tolist() == [row, column]
    assert (where.max(axis=0) // 22).tolist() == [row, column]


def test_planes_are_chosen_by_the_prediction_where_nothing_is_labelled():
  image = np.zeros((8, 8, 8, 1), np.uint8)
  label = np.zeros((8, 8, 8), int)
  pred = label.copy()
  pred[6, 1, 2] = 1
  sheet = panels.panel(image, label, pred, CLASSES)
  guesses, _ = _rows(sheet, 3 * [(256, 256)], column=2)
  assert all(_has(tile, panels.class_colors(2)[1]) for tile in guesses)
  only = panels.panel(image, None, pred, CLASSES)
  assert only.shape[1] == 2 * 256 + 3 * GAP


def test_spacing_gives_a_volume_its_true_proportions():
  image = np.zeros((10, 64, 64, 1), np.float32)
  label = np.zeros((10, 64, 64), int)
  even = panels.panel(image, label, label, CLASSES)
  thick = panels.panel(
    image, label, label, CLASSES, spacing=np.array([5.0, 1.0, 1.0])
  )
  # The planes are 64x64 and twice 10x64, enlarged 4 times.
  assert even.shape[0] == 3 * 23 + 256 + 2 * 40 + 4 * GAP
  assert thick.shape[0] == 3 * 23 + 256 + 2 * 200 + 4 * GAP


def test_volume_without_foreground_shows_its_middle():
  image = np.zeros((9, 9, 9, 1), np.uint8)
  image[4, 4, 4] = 200
  label = np.zeros((9, 9, 9), int)
  sheet = panels.panel(image, label, label, CLASSES)
  tiles, _ = _rows(sheet, 3 * [(261, 261)])
  assert [(tile == 200).all(axis=-1).sum() for tile in tiles] == 3 * [29**2]


def test_legend_of_many_classes_is_in_columns_within_the_sheet():
  names = [f'vertebra_or_muscle_{i}' * (1 + i % 2) for i in range(62)]
  classes = ['background', *names]
  label = np.arange(16**3).reshape(16, 16, 16) % 63
  image = np.zeros((16, 16, 16, 1), np.uint8)
  bare = panels.panel(image, label * 0, label * 0, classes)
  sheet = panels.panel(image, label, label, classes, dice={names[0]: 0.9})
  legend = sheet[bare.shape[0] :]
  colors = panels.class_colors(63)[1:]
  lefts = {
    np.argwhere((legend == color).all(axis=-1))[0, 1] for color in colors
  }
  assert len(lefts) == 2 and legend.shape[0] == 31 * 23
  margin = sheet[:, -GAP:]
  assert (margin == margin[0, 0]).all()  # Nothing is cut off.
  huge = panels.panel(image, label, label, ['background', *62 * ['x' * 999]])
  assert huge.shape[1] == sheet.shape[1]
  assert (huge[:, -GAP:] == margin[0, 0]).all()


def test_colours_are_distinct_for_many_classes():
  colors = panels.class_colors(120).astype(int)
  assert colors.shape == (120, 3)
  distance = np.abs(colors[:, None] - colors[None]).sum(axis=-1)
  assert distance[~np.eye(120, dtype=bool)].min() > 0
  assert distance[1:8, 1:8][~np.eye(7, dtype=bool)].min() >= 80
  np.testing.assert_array_equal(panels.class_colors(3), colors[:3])


def test_bad_shapes_and_indices_are_refused():
  label = np.zeros((8, 8), int)
  image = np.zeros((8, 8, 1))
  with pytest.raises(ValueError, match=r'\(8, 8\) and \(8, 8\)'):
    panels.panel(label, label, label, CLASSES)
  with pytest.raises(ValueError, match='label must have the shape of pred'):
    panels.panel(image, label[:4], label, CLASSES)
  with pytest.raises(ValueError, match=r'pred must lie in -1..2, got 3..3'):
    panels.panel(image, label, label + 3, CLASSES)


def test_png_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  array = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
  path = tmp_path / 'panels' / 'best.png'
  panels.save_png(path, array)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
  old = path.read_bytes()

  def fail(*args):
    raise OSError('disk full')

  monkeypatch.setattr(report.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    panels.save_png(path, 255 - array)
  assert path.read_bytes() == old
  assert list(path.parent.iterdir()) == [path]
