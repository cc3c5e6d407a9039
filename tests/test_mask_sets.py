"""What sets of masks say: classes, specks, edges."""

import io

import numpy as np
import pytest
from data_cases import assert_one_line
from PIL import Image

from medseg_jax.data.label_inference import (
  check_label_values,
  describe_snapped,
  infer_label_values,
)
from medseg_jax.data.mask_values import count_values
from medseg_jax.runtime.errors import InputError


def blob(rng, size, radius, centre=None):
  """Returns a bool image of a wavy disc."""
  if centre is None:
    centre = rng.uniform(radius + 3, size - radius - 3, 2)
  y, x = np.mgrid[:size, :size]
  angle = np.arctan2(y - centre[0], x - centre[1])
  wave = 1 + 0.15 * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 6))
  return np.hypot(y - centre[0], x - centre[1]) < radius * wave


def lesions(rng, size, share, count):
  """Returns organs of 255 with a lesion of 128 that takes `share`."""
  masks = []
  for _ in range(count):
    centre = rng.uniform(0.45, 0.55, 2) * size
    mask = 255 * blob(rng, size, 0.3 * size, centre).astype(np.uint8)
    centre += rng.uniform(-0.1, 0.1, 2) * size
    mask[blob(rng, size, size * np.sqrt(share / np.pi), centre)] = 128
    masks.append(mask)
  return masks


def regions(rng, size, values, count):
  """Returns masks without background, cut up by random seeds."""
  y, x = np.mgrid[:size, :size]
  masks = []
  for _ in range(count):
    seeds = rng.uniform(0, size, (3 * len(values), 2))
    nearest = np.hypot(
      y[..., None] - seeds[:, 0], x[..., None] - seeds[:, 1]
    ).argmin(-1)
    masks.append(np.asarray(values, np.uint8)[nearest % len(values)])
  return masks


def lines(rng, size, value, width=1):
  """Returns random walks, `width` wide, on 0."""
  mask = np.zeros((size, size), np.uint8)
  for _ in range(8):
    place, angle = rng.uniform(0, size, 2), rng.uniform(0, 6)
    for _ in range(size):
      angle += rng.normal(0, 0.1)
      place = place + [np.sin(angle), np.cos(angle)]
      row, column = np.clip(place, 0, size - width).astype(int)
      mask[row : row + width, column : column + width] = value
  return mask


def discs(count=10, value=255, size=64):
  rng = np.random.default_rng(0)
  return [(blob(rng, size, size / 4) * value).astype(int) for _ in range(count)]


def jpeg(mask, quality):
  file = io.BytesIO()
  Image.fromarray(mask).save(file, format='JPEG', quality=quality)
  return np.asarray(Image.open(file))


def smooth(mask, scale=4):
  size = (mask.shape[1] // scale, mask.shape[0] // scale)
  image = Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)
  return np.asarray(image)


def counted(masks, lossy=False):
  return [
    count_values(f'{i}.png', np.asarray(mask, np.int32), lossy=lossy)
    for i, mask in enumerate(masks)
  ]


def assert_classes(masks, expected, *, lossy=False):
  found = infer_label_values(counted(masks, lossy))
  assert len(found) == len(expected), found
  # JPEG itself moves the value of an area by a little.
  assert np.abs(np.subtract(found, expected)).max() <= 2, found
  check_label_values(counted(masks, lossy), tuple(expected))


# Lossless masks.


def test_a_stray_pixel_is_no_class_and_is_told():
  masks = discs()
  masks[3][2, 2] = 1
  masks[5][2, 2] = 200
  assert infer_label_values(counted(masks)) == (0, 255)
  text = describe_snapped(counted(masks), (0, 255))
  assert text == '1 (1 pixel of 3.png), 200 (1 pixel of 5.png)'
  check_label_values(counted(masks), (0, 255))
  masks = discs(value=1)
  masks[0][1, 1] = 255
  assert infer_label_values(counted(masks)) == (0, 1)


def test_given_values_win_over_stray_ones():
  masks = discs()
  rng = np.random.default_rng(1)
  masks[2][tuple(rng.integers(0, 64, (2, 20)))] = 3
  check_label_values(counted(masks), (0, 255))
  assert '3 (20 pixels of 2.png)' in describe_snapped(counted(masks), (0, 255))
  masks[3][2, 2] = 9  # A class all the same, where it is given.
  check_label_values(counted(masks), (0, 9, 255))


@pytest.mark.parametrize('lossy', [False, True])
def test_a_forgotten_class_is_refused_with_its_pixels(lossy):
  masks = [disc.astype(np.uint8) for disc in discs()]
  masks[4][40:56, 40:56] = 128
  if lossy:
    masks = [jpeg(mask, 90) for mask in masks]
  with pytest.raises(InputError) as error:
    check_label_values(counted(masks, lossy), (0, 255))
  assert_one_line(
    error, '4.png: label values of no class: 128 (', 'pixels)', '(0, 255)'
  )


def test_a_forgotten_class_of_thin_lines_is_refused():
  rng = np.random.default_rng(0)
  masks = [np.maximum(lines(rng, 64, 7), lines(rng, 64, 20)) for _ in range(4)]
  with pytest.raises(InputError) as error:
    check_label_values(counted(masks), (0, 20))
  assert_one_line(error, 'values of no class: 7 (', '4 of 4 files', '(0, 20)')


def test_tiny_and_thin_classes_stay():
  masks = discs()
  for mask in masks:
    mask[3, 3:5] = 128  # Two pixels in each of ten.
  assert infer_label_values(counted(masks)) == (0, 128, 255)
  masks = discs()
  masks[1][3, 3:13] = 9
  assert infer_label_values(counted(masks)) == (0, 9, 255)
  rng = np.random.default_rng(0)
  values = (50, 100, 150, 200, 255)
  masks = [
    np.maximum.reduce([lines(rng, 96, value) for value in values])
    for _ in range(4)
  ]
  assert infer_label_values(counted(masks)) == (0, *values)


def test_a_border_to_ignore_is_no_edge():
  rng = np.random.default_rng(0)
  masks = []
  for _ in range(15):
    mask = np.zeros((96, 96), int)
    for value in rng.integers(1, 21, 3):
      inside = blob(rng, 96, 14)
      border = inside.copy()
      border[1:] |= inside[:-1]
      border[:, 1:] |= inside[:, :-1]
      mask[border] = 255
      mask[inside] = value
    masks.append(mask)
  expected = np.unique(np.stack(masks))
  assert infer_label_values(counted(masks)) == tuple(expected)


# Masks with edges of many values.


@pytest.mark.parametrize('quality', [50, 75, 95])
@pytest.mark.parametrize('lossy', [True, False])  # False: saved as PNG later.
def test_small_classes_survive_jpeg(quality, lossy):
  rng = np.random.default_rng(0)
  masks = lesions(rng, 256, 0.0017, 6)
  masks = [jpeg(mask, quality) for mask in masks]
  assert_classes(masks, (0, 128, 255), lossy=lossy)


@pytest.mark.parametrize('quality', [50, 75, 95])
@pytest.mark.parametrize('lossy', [True, False])
def test_nine_classes_survive_jpeg(quality, lossy):
  values = np.rint(np.linspace(0, 255, 9)).astype(int).tolist()
  masks = regions(np.random.default_rng(0), 160, values, 3)
  masks = [jpeg(mask, quality) for mask in masks]
  assert_classes(masks, values, lossy=lossy)


@pytest.mark.parametrize('quality', [50, 75, 95])
def test_edges_of_a_jpeg_are_no_classes(quality):
  rng = np.random.default_rng(0)
  for width in (1, 3, 5):
    masks = [jpeg(lines(rng, 128, 255, width), quality) for _ in range(3)]
    if width == 1 and quality == 50:  # No pixel is white any more.
      assert len(infer_label_values(counted(masks, lossy=True))) == 2
    else:
      assert_classes(masks, (0, 255), lossy=True)


@pytest.mark.parametrize('quality', [None, 75])
def test_small_classes_survive_smooth_edges(quality):
  rng = np.random.default_rng(0)
  masks = [smooth(mask) for mask in lesions(rng, 640, 0.002, 5)]
  if quality:
    masks = [jpeg(mask, quality) for mask in masks]
  assert_classes(masks, (0, 128, 255), lossy=bool(quality))
