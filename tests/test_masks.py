"""Masks: files read and written, and the label values of sets of them."""

import numpy as np
import pytest
import tifffile
from data_cases import BINARY, assert_one_line, save, save_palette, save_png16
from PIL import Image

from medseg_jax.data import labels
from medseg_jax.data.formats import images
from medseg_jax.data.label_inference import (
  check_label_values,
  infer_label_values,
  num_snapped,
)
from medseg_jax.data.mask_values import count_values
from medseg_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)


def disc(size, radius, value=255):
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  return np.where(np.hypot(y, x) < radius, value, 0).astype(np.uint8)


def smooth_disc(size=64, radius=20):
  large = Image.fromarray(disc(4 * size, 4 * radius))
  return np.asarray(large.resize((size, size), Image.Resampling.BILINEAR))


# Files.


def test_plain_masks_keep_their_values(tmp_path):
  path = save(tmp_path / 'a.png', np.array([[0, 1, 7]], np.uint8))
  assert images.read_mask(path).tolist() == [[0, 1, 7]]
  path = save(tmp_path / 'b.png', np.array([[0, 1, 70, 60000]], np.uint16))
  assert images.read_mask(path).tolist() == [[0, 1, 70, 60000]]
  tifffile.imwrite(tmp_path / 'c.tif', np.array([[0, 1], [2, 0]], np.float32))
  assert images.read_mask(tmp_path / 'c.tif').tolist() == [[0, 1], [2, 0]]
  tifffile.imwrite(tmp_path / 'd.tif', np.array([[0, 3]], np.int32))
  assert images.read_mask(tmp_path / 'd.tif').tolist() == [[0, 3]]


@pytest.mark.parametrize('name', ['a.gif', 'a.png', 'a.tif', 'a.bmp'])
def test_one_bit_masks_are_0_and_255(tmp_path, name):
  path = save(tmp_path / name, BINARY, '1')
  mask = images.read_mask(path)
  assert mask.dtype.kind == 'i' and mask.tolist() == BINARY.tolist()


@pytest.mark.parametrize('name', ['a.gif', 'a.png', 'a.tif', 'a.bmp'])
def test_grey_palettes_count_by_their_grey_level(tmp_path, name):
  index = [[0, 1], [1, 0]]
  black_first = save_palette(tmp_path / name, index, [[0] * 3, [255] * 3])
  assert images.read_mask(black_first).tolist() == [[0, 255], [255, 0]]
  inverted = save_palette(tmp_path / name, index, [[255] * 3, [0] * 3])
  assert images.read_mask(inverted).tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize('name', ['a.gif', 'a.png', 'a.tif', 'a.bmp'])
def test_colour_palettes_count_by_index(tmp_path, name):
  # Grey is a class of its own in the palette of Pascal VOC.
  colours = [[255] * 3, [128, 0, 0], [128] * 3]
  index = [[0, 1], [2, 0]]
  path = save_palette(tmp_path / name, index, colours)
  assert images.read_mask(path).tolist() == index
  empty = save_palette(tmp_path / name, [[0, 0], [0, 0]], colours)
  if name != 'a.gif':  # Pillow writes only the colours that a GIF uses.
    assert images.read_mask(empty).tolist() == [[0, 0], [0, 0]]


def test_grey_rgb_masks_are_grey(tmp_path):
  values = np.array([[0, 255, 3]], np.uint8)
  rgb = np.repeat(values[..., None], 3, axis=-1)
  path = save(tmp_path / 'rgb.png', rgb)
  assert images.read_mask(path).tolist() == [[0, 255, 3]]
  alpha = np.array([[[0], [255], [9]]], np.uint8)
  path = save(tmp_path / 'rgba.png', np.concatenate([rgb, alpha], axis=-1))
  assert images.read_mask(path).tolist() == [[0, 255, 3]]
  deep = np.repeat(np.array([[0, 1, 2]], np.uint16)[..., None], 3, axis=-1)
  path = save_png16(tmp_path / 'deep.png', deep, colour_type=2)
  assert images.read_mask(path).tolist() == [[0, 1, 2]]


def test_coloured_masks_are_errors(tmp_path):
  rgb = np.zeros((2, 2, 3), np.uint8)
  rgb[0, 1] = 255, 0, 0
  path = save(tmp_path / 'a.png', rgb)
  with pytest.raises(InputError) as error:
    images.read_mask(path)
  assert_one_line(error, path, '(255, 0, 0)', 'allowed are grey levels')


def test_masks_in_the_transparency_or_in_fractions_are_errors(tmp_path):
  rgba = np.full((2, 2, 4), 255, np.uint8)
  rgba[0, 0, 3] = 0
  path = save(tmp_path / 'a.png', rgba)
  with pytest.raises(InputError) as error:
    images.read_mask(path)
  assert_one_line(error, path, 'value 255', 'transparency')
  path = tmp_path / 'b.tif'
  for value in (0.5, np.nan):
    tifffile.imwrite(path, np.array([[0, value]], np.float32))
    with pytest.raises(InputError) as error:
      images.read_mask(path)
    assert_one_line(error, path, 'whole numbers')


@pytest.mark.parametrize(
  ('label_values', 'mode'),
  [((0, 255), 'L'), ((255, 0), 'L'), ((0, 3, 7), 'L'), ((0, 300), 'I;16')],
)
def test_written_masks_come_back(tmp_path, label_values, mode):
  label = RNG.integers(0, len(label_values), (6, 9))
  path = tmp_path / 'out [1].png'
  images.write_mask(path, label, label_values)
  with Image.open(path) as file:
    assert (file.mode, file.format) == (mode, 'PNG')
  expected = np.array(label_values)[label]
  np.testing.assert_array_equal(images.read_mask(path), expected)
  back = labels.to_classes(images.read_mask(path), label_values)
  np.testing.assert_array_equal(back, label)
  assert list(tmp_path.iterdir()) == [path]


def test_write_mask_rejects_misuse_and_leaves_the_old_file(tmp_path):
  path = save(tmp_path / 'a.png', BINARY)
  label = np.zeros((2, 3), int)
  for bad_path, bad_label, values in [
    (path, label + 2, (0, 255)),
    (path, label - 1, (0, 255)),
    (path, label[0], (0, 255)),
    (path, label, (0, 70000)),
    (tmp_path / 'a.jpg', label, (0, 255)),
  ]:
    with pytest.raises(ValueError):
      images.write_mask(bad_path, bad_label, values)
  np.testing.assert_array_equal(images.read_mask(path), BINARY)
  assert list(tmp_path.iterdir()) == [path]


# Label values of sets of masks.


def count(*masks, lossy=False):
  return [
    count_values(f'{i}.png', np.asarray(mask, np.int64), lossy=lossy)
    for i, mask in enumerate(masks)
  ]


def count_jpeg(folder, *masks, quality=75):
  result = []
  for i, mask in enumerate(masks):
    path = save(folder / f'{i}.jpg', mask, quality=quality)
    values, lossy = images.decode_mask(path)
    assert lossy and len(np.unique(values)) > 2
    result.append(count_values(path, values, lossy=lossy))
  return result


def test_solid_counts_against_a_loop():
  mask = RNG.integers(0, 3, (9, 11)) + 70000 * RNG.integers(0, 2, (9, 11))
  solid = dict.fromkeys(np.unique(mask).tolist(), 0)
  for y in range(9):
    for x in range(11):
      corners = [(y + dy, x + dx) for dy in (-1, 0) for dx in (-1, 0)]
      solid[int(mask[y, x])] += any(
        i >= 0 and j >= 0 and mask[i : i + 2, j : j + 2].size == 4
        and (mask[i : i + 2, j : j + 2] == mask[y, x]).all()
        for i, j in corners
      )  # fmt: skip
  found = count(mask)[0]
  assert dict(zip(found.values, found.solid, strict=True)) == solid
  np.testing.assert_array_equal(
    found.counts, np.unique(mask, return_counts=True)[1]
  )


def test_values_of_plain_masks():
  assert infer_label_values(count([[0, 1]], [[0, 0]])) == (0, 1)
  assert infer_label_values(count([[0, 0]], [[7, 255]])) == (
    0,
    7,
    255,
  )
  assert infer_label_values(count([[0, 0]])) == (0, 255)
  random = RNG.integers(0, 20, (64, 64))  # No area, and yet not smooth.
  assert infer_label_values(count(random)) == tuple(range(20))


def test_many_organs_are_no_smooth_mask():
  organs = np.kron(np.arange(100).reshape(10, 10), np.ones((6, 6), int))
  assert infer_label_values(count(organs)) == tuple(range(100))


@pytest.mark.parametrize('scale', [2, 4, 5])
def test_masks_reduced_by_averaging_are_smooth(scale):
  large = Image.fromarray(disc(64 * scale, 20 * scale))
  masks = count(np.asarray(large.reduce(scale)))
  assert 5 <= len(masks[0].values) <= 27
  assert infer_label_values(masks) == (0, 255)
  check_label_values(masks, (0, 255))


def test_small_and_thin_classes_are_no_strays():
  organs = np.kron(np.arange(100).reshape(10, 10), np.ones((6, 6), int))
  organs[30, 1::6] = 100 + np.arange(10)  # Single pixels.
  organs[5:9, 5:9] = 250
  assert infer_label_values(count(organs)) == (*range(110), 250)
  rim = np.asarray(disc(64, 20), int) - 127 * (disc(64, 20) > disc(64, 19))
  assert infer_label_values(count(rim)) == (0, 128, 255)


def test_values_of_smooth_masks():
  masks = count(smooth_disc(), smooth_disc(radius=9), np.zeros((8, 8)))
  assert len(masks[0].values) > 10
  assert infer_label_values(masks) == (0, 255)
  check_label_values(masks, (0, 255))


def test_values_of_smooth_masks_of_three_classes():
  large = np.maximum(disc(256, 100, 128), disc(256, 40, 255))
  small = Image.fromarray(large).resize((64, 64), Image.Resampling.BICUBIC)
  masks = count(np.asarray(small))
  assert infer_label_values(masks) == (0, 128, 255)
  with pytest.raises(InputError) as error:
    check_label_values(masks, (0, 255))
  assert_one_line(error, '0.png', 'values of no class: 128 (', '(0, 255)')


@pytest.mark.parametrize('quality', [30, 75, 95])
def test_values_of_jpeg_masks(tmp_path, quality):
  masks = count_jpeg(tmp_path, disc(64, 20), disc(64, 5), quality=quality)
  assert infer_label_values(masks) == (0, 255)
  check_label_values(masks, (0, 255))
  with pytest.raises(InputError) as error:
    check_label_values(masks, (0, 128))
  assert_one_line(error, '0.jpg', '255', '(0, 128)')


def test_values_of_jpeg_masks_of_three_classes(tmp_path):
  large = np.maximum(disc(128, 50, 128), disc(128, 20, 255))
  masks = count_jpeg(tmp_path, large, quality=90)
  assert infer_label_values(masks) == (0, 128, 255)


def test_plain_masks_decide_for_the_jpegs_among_them(tmp_path):
  masks = count_jpeg(tmp_path, disc(64, 20, 85)) + count([[0, 85, 170]])
  assert infer_label_values(masks) == (0, 85, 170)


def test_sets_without_classes_are_errors(tmp_path):
  with pytest.raises(InputError) as error:
    infer_label_values(
      [mask._replace(path=tmp_path / 'a.png') for mask in count([[3, 3]])]
    )
  assert_one_line(
    error, tmp_path, 'one label value only, 3, in 1 mask;', 'two or more'
  )
  picture = RNG.integers(0, 256, (64, 64))
  with pytest.raises(InputError) as error:
    infer_label_values(count(picture))
  assert_one_line(error, '0.png', '256 values', 'picture')


def test_areas_that_no_class_has_are_errors():
  area = np.zeros((32, 32))
  area[3:7, 3:7] = 7
  with pytest.raises(InputError) as error:
    check_label_values(count(np.zeros((32, 32)), area), (0, 255))
  assert_one_line(
    error, '1.png', 'values of no class: 7 (16 pixels)', '(0, 255)'
  )
  with pytest.raises(InputError) as error:  # Outside, however smooth.
    check_label_values(count(smooth_disc()), (0, 200))
  assert_one_line(error, '0.png', '(0, 200)')


def test_nearest_class_and_share_of_snapped_pixels():
  mask = np.array([[0, 60, 70, 200, 255, 128]])
  assert labels.to_classes(mask, (255, 0, 128)).tolist() == [[1, 1, 2, 0, 0, 2]]
  assert num_snapped(count(mask)[0], (255, 0, 128)) == 3


@pytest.mark.parametrize('kind', ['i1', 'u1', 'i2', 'u2', 'i4', 'i8', 'u8'])
@pytest.mark.parametrize('values', [(255, 0, 128), (-1, 0, 7), (5, 3, 70000)])
def test_every_whole_number_goes_to_the_nearest_class(kind, values):
  info, rng = np.iinfo(kind), np.random.default_rng(0)
  for low, high in ((-5, 300), (info.min, info.max)):
    low, high = max(low, info.min), min(high, info.max)
    mask = rng.integers(low, high, (9, 8), kind, endpoint=True)
    mask.flat[:2] = low, high
    far = [[abs(int(x) - v) for v in values] for x in mask.flat]
    by_value = sorted(range(len(values)), key=lambda i: values[i])
    nearest = [min(by_value, key=d.__getitem__) for d in far]
    found = labels.to_classes(mask, values)
    assert found.dtype == np.int32
    assert found.ravel().tolist() == nearest


def test_names_of_classes():
  assert labels.name_classes((), (0, 9), 'x') == ('background', 'foreground')
  names = labels.name_classes((), (0, 1, 2), 'x')
  assert names == ('background', 'class_1', 'class_2')
  assert labels.name_classes(['a', 'b'], (0, 1), 'x') == ('a', 'b')
  with pytest.raises(InputError) as error:
    labels.name_classes(('a', 'b', 'c'), (0, 1), 'DATA')
  assert_one_line(error, 'DATA', "('a', 'b', 'c'), of 3 classes", '(0, 1)')
  with pytest.raises(InputError) as error:
    labels.name_classes(('a', 'b', 'a'), (0, 1, 2), 'DATA')
  assert_one_line(error, 'DATA', "'a' more than once", 'a name of its own')
  for values in ((0,), (0, 0)):
    with pytest.raises(InputError, match='data.label_values'):
      labels.name_classes((), values, 'x')
