"""Image and mask files of every kind that people have, and label values."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from medseg_jax.data import images, labels
from medseg_jax.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
BINARY = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)


def save(path, array, mode=None, **options):
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(path, **options)
  return path


def save_palette(path, index, colours):
  image = Image.fromarray(np.asarray(index, np.uint8))
  image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
  assert image.mode == 'P'
  image.save(path)
  return path


def save_raw_png(path, rows, width, bits, colour_type):
  """Writes a PNG by the specification: kinds that Pillow cannot write."""

  def chunk(kind, data):
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check

  header = struct.pack('>IIBBBBB', width, len(rows), bits, colour_type, 0, 0, 0)
  data = zlib.compress(b''.join(b'\0' + row for row in rows))
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', data)
    + chunk(b'IEND', b'')
  )
  return path


def save_png16(path, array, colour_type):
  rows = [row.astype('>u2').tobytes() for row in array]
  return save_raw_png(path, rows, array.shape[1], 16, colour_type)


def disc(size, radius, value=255):
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  return np.where(np.hypot(y, x) < radius, value, 0).astype(np.uint8)


def smooth_disc(size=64, radius=20):
  large = Image.fromarray(disc(4 * size, 4 * radius))
  return np.asarray(large.resize((size, size), Image.Resampling.BILINEAR))


def assert_one_line(error, *parts):
  text = str(error.value)
  assert '\n' not in text
  for part in parts:
    assert str(part) in text, f'{part} is not in: {text}'


# Images.


@pytest.mark.parametrize('name', ['a.png', 'a.PNG', 'a.bmp', 'a.tif', 'a.pgm'])
def test_grey_images_are_one_channel(tmp_path, name):
  path = save(tmp_path / name, GREY)
  image = images.read_image(path)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, GREY[..., None])
  assert images.image_channels(path) == 1


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.TIF', 'a.ppm', 'a.tga'])
def test_rgb_images_are_three_channels(tmp_path, name):
  path = save(tmp_path / name, RGB)
  np.testing.assert_array_equal(images.read_image(path), RGB)
  assert images.image_channels(path) == 3


@pytest.mark.parametrize('compression', ['tiff_lzw', 'tiff_adobe_deflate'])
def test_compressed_tiff(tmp_path, compression):
  path = save(tmp_path / 'a.tif', RGB, compression=compression)
  np.testing.assert_array_equal(images.read_image(path), RGB)


def test_alpha_is_dropped(tmp_path):
  rgba = np.concatenate([RGB, GREY[..., None]], axis=-1)
  path = save(tmp_path / 'rgba.png', rgba)
  np.testing.assert_array_equal(images.read_image(path), RGB)
  grey_alpha = Image.merge('LA', [Image.fromarray(GREY)] * 2)
  grey_alpha.save(tmp_path / 'la.png')
  image = images.read_image(tmp_path / 'la.png')
  np.testing.assert_array_equal(image, GREY[..., None])
  assert images.image_channels(tmp_path / 'la.png') == 1


def test_palette_images_are_what_a_person_sees(tmp_path):
  colours = [[255, 0, 0], [0, 255, 0], [7, 7, 7]]
  path = save_palette(tmp_path / 'a.png', [[0, 1], [2, 1]], colours)
  image = images.read_image(path)
  np.testing.assert_array_equal(image, np.array(colours)[[[0, 1], [2, 1]]])
  assert images.image_channels(path) == 3
  path = save_palette(tmp_path / 'b.gif', [[0, 1]], [[255] * 3, [9] * 3])
  assert images.read_image(path).tolist() == [[[255], [9]]]
  assert images.image_channels(path) == 1


def test_one_bit_and_cmyk_images(tmp_path):
  for name in ('a.png', 'a.tif', 'a.bmp', 'a.pbm'):
    path = save(tmp_path / name, BINARY, '1')
    assert images.read_image(path).dtype == np.uint8
    np.testing.assert_array_equal(images.read_image(path)[..., 0], BINARY)
  flat = np.full((8, 8, 3), (200, 40, 90), np.uint8)
  path = save(tmp_path / 'cmyk.tif', flat, 'CMYK')
  np.testing.assert_array_equal(images.read_image(path), flat)
  assert images.image_channels(path) == 3


def test_sixteen_bit_grey(tmp_path):
  grey = RGB16[..., 0]
  tifffile.imwrite(tmp_path / 'big_endian.tif', grey, byteorder='>')
  save(tmp_path / 'lzw.tif', grey, compression='tiff_lzw')
  save(tmp_path / 'a.png', grey)
  save_png16(tmp_path / 'la.png', RGB16[..., :2], colour_type=4)
  maximum = np.append(grey.ravel()[1:], 65535).reshape(grey.shape)
  (tmp_path / 'a.pgm').write_bytes(
    b'P5 7 5 65535\n' + maximum.astype('>u2').tobytes()
  )
  for name in ('big_endian.tif', 'lzw.tif', 'a.png', 'la.png', 'a.pgm'):
    image = images.read_image(tmp_path / name)
    assert image.dtype == np.uint16 and image.dtype.isnative
    expected = maximum if name == 'a.pgm' else grey
    np.testing.assert_array_equal(image[..., 0], expected)
    assert images.image_channels(tmp_path / name) == 1


def test_sixteen_bit_colour_keeps_its_depth(tmp_path):
  rgba = np.concatenate([RGB16, RGB16[..., :1]], axis=-1)
  save_png16(tmp_path / 'rgb.png', RGB16, colour_type=2)
  save_png16(tmp_path / 'rgba.png', rgba, colour_type=6)
  tifffile.imwrite(tmp_path / 'rgb.tif', RGB16, photometric='rgb')
  tifffile.imwrite(
    tmp_path / 'big_endian.tif', RGB16, photometric='rgb', byteorder='>'
  )
  tifffile.imwrite(
    tmp_path / 'planar.tif',
    np.moveaxis(RGB16, -1, 0),
    photometric='rgb',
    planarconfig='separate',
  )
  paths = sorted(tmp_path.iterdir())
  assert len(paths) == 5
  for path in paths:
    image = images.read_image(path)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, RGB16)
    assert images.image_channels(path) == 3


def test_sixteen_bit_colour_without_a_tifffile_codec(tmp_path, monkeypatch):
  # As with LZW, which OpenCV writes, where imagecodecs is not installed.
  def refuse(self):
    raise ValueError('requires the imagecodecs package')

  path = tmp_path / 'a.tif'
  tifffile.imwrite(path, RGB16, photometric='rgb', compression='zlib')
  monkeypatch.setattr(tifffile.TiffPage, 'asarray', refuse)
  np.testing.assert_array_equal(images.read_image(path), RGB16)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64', 'int16'])
def test_other_sample_types_become_float32(tmp_path, dtype):
  values = np.array([[-1.5, 0, 300], [2, 1000, -7]]).astype(dtype)
  tifffile.imwrite(tmp_path / 'a.tif', values)
  image = images.read_image(tmp_path / 'a.tif')
  assert image.dtype == np.float32
  np.testing.assert_array_equal(image[..., 0], values.astype(np.float32))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_tiff_whose_white_is_zero(tmp_path, dtype):
  tifffile.imwrite(
    tmp_path / 'a.tif', np.array([[0, 1]], dtype), photometric='miniswhite'
  )
  top = np.iinfo(dtype).max
  assert images.read_image(tmp_path / 'a.tif').tolist() == [[[top], [top - 1]]]


def test_four_bit_png_fills_the_range(tmp_path):
  rows = [bytes([0x01, 0x2F])]
  path = save_raw_png(tmp_path / 'a.png', rows, 4, bits=4, colour_type=0)
  assert images.read_image(path)[0, :, 0].tolist() == [0, 17, 34, 255]


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['png', 'tif', '16-bit tif'])
def test_orientation_is_applied(tmp_path, orientation, kind):
  path = tmp_path / ('a.' + kind[-3:])
  exif = Image.Exif()
  exif[0x0112] = orientation
  array = GREY
  if kind == '16-bit tif':
    array = RGB16[..., 0]
    tag = (0x0112, 'H', 1, orientation, True)
    tifffile.imwrite(path, array, extratags=[tag])
  else:
    Image.fromarray(array).save(path, exif=exif)
  tagged = Image.fromarray(array)
  tagged.getexif()[0x0112] = orientation
  expected = np.asarray(ImageOps.exif_transpose(tagged))
  np.testing.assert_array_equal(images.read_image(path)[..., 0], expected)
  np.testing.assert_array_equal(images.read_mask(path), expected)


def test_camera_jpeg_is_turned(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by a quarter, clockwise.
  half = np.zeros((32, 64), np.uint8)
  half[:, 32:] = 255  # Right half white; seen: lower half white.
  path = save(tmp_path / 'a.jpg', half, exif=exif)
  image = images.read_image(path)
  assert image.shape == (64, 32, 1)
  assert image[:24].max() < 16 and image[40:].min() > 240


def test_animations_give_their_first_frame(tmp_path):
  frames = [Image.fromarray(BINARY), Image.fromarray(255 - BINARY)]
  frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
  image = images.read_image(tmp_path / 'a.gif')
  np.testing.assert_array_equal(image[..., 0], BINARY)


def test_a_tiff_stack_is_an_error(tmp_path):
  tifffile.imwrite(tmp_path / 'a.tif', np.zeros((6, 8, 9), np.uint8))
  for read in (images.read_image, images.read_mask, images.image_channels):
    with pytest.raises(InputError) as error:
      read(tmp_path / 'a.tif')
    assert_one_line(error, tmp_path / 'a.tif', '6 pages', 'one page')


def test_a_preview_page_is_no_stack(tmp_path):
  with tifffile.TiffWriter(tmp_path / 'a.tif') as writer:
    writer.write(GREY)
    writer.write(GREY[::2, ::2], subfiletype=1)
  image = images.read_image(tmp_path / 'a.tif')
  np.testing.assert_array_equal(image[..., 0], GREY)


def test_five_channels_are_an_error(tmp_path):
  array = np.zeros((8, 9, 5), np.uint16)
  tifffile.imwrite(
    tmp_path / 'a.tif', array, photometric='minisblack', planarconfig='contig'
  )
  with pytest.raises(InputError) as error:
    images.read_image(tmp_path / 'a.tif')
  assert_one_line(error, 'a.tif', '5 channels', 'allowed are 1 and 3')


@pytest.mark.parametrize('share', [0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize(
  'kind', ['png', 'jpg', 'gif', 'bmp', 'webp', 'pgm', 'tif', 'lzw', 'zlib']
)
def test_truncated_files_are_errors(tmp_path, kind, share):
  noise = RNG.integers(0, 256, (64, 64), dtype=np.uint8)
  path = tmp_path / f'a.{kind}'
  if kind == 'zlib':
    path = path.with_suffix('.tif')
    tifffile.imwrite(path, noise.astype(np.float32), compression='zlib')
  elif kind == 'lzw':
    path = save(path.with_suffix('.tif'), noise, compression='tiff_lzw')
  else:
    save(path, noise)
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(InputError) as error:
    images.read_image(path)
  assert_one_line(error, path, 'allowed')


def test_missing_and_foreign_files_are_errors(tmp_path):
  for read in (images.read_image, images.read_mask, images.image_channels):
    with pytest.raises(InputError) as error:
      read(tmp_path / 'none.png')
    assert_one_line(error, tmp_path / 'none.png', 'no such file')
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(InputError) as error:
      read(tmp_path / 'text.png')
    assert_one_line(error, tmp_path / 'text.png', 'unknown format')


def test_list_images_leaves_out_what_is_none(tmp_path):
  for name in ('b (1) [x].PNG', 'a.tif', 'é ü.jpeg', '.hidden.png', 'a.txt'):
    save(tmp_path / 'new.png', GREY).rename(tmp_path / name)
  (tmp_path / 'Thumbs.db').write_text('')
  (tmp_path / 'folder.png').mkdir()
  names = [path.name for path in images.list_images(tmp_path)]
  assert names == ['a.tif', 'b (1) [x].PNG', 'é ü.jpeg']


def test_list_images_names_what_is_wrong(tmp_path):
  (tmp_path / 'seen').mkdir()
  with pytest.raises(InputError) as error:
    images.list_images(tmp_path / 'gone' / 'deeper')
  assert_one_line(error, tmp_path / 'gone', 'no such folder', 'holds seen')
  with pytest.raises(InputError) as error:
    images.list_images(tmp_path / 'seen')
  assert_one_line(error, tmp_path / 'seen', 'no image files', 'found nothing')
  save(tmp_path / 'seen' / 'a.png', GREY)
  save(tmp_path / 'seen' / 'a.tif', GREY)
  with pytest.raises(InputError) as error:
    images.list_images(tmp_path / 'seen')
  assert_one_line(error, 'a.png and a.tif', 'same stem')


# Masks.


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
    labels.count_values(f'{i}.png', np.asarray(mask, np.int64), lossy=lossy)
    for i, mask in enumerate(masks)
  ]


def count_jpeg(folder, *masks, quality=75):
  result = []
  for i, mask in enumerate(masks):
    path = save(folder / f'{i}.jpg', mask, quality=quality)
    values, lossy = images.decode_mask(path)
    assert lossy and len(np.unique(values)) > 2
    result.append(labels.count_values(path, values, lossy=lossy))
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
  assert labels.infer_label_values(count([[0, 1]], [[0, 0]])) == (0, 1)
  assert labels.infer_label_values(count([[0, 0]], [[7, 255]])) == (0, 7, 255)
  assert labels.infer_label_values(count([[0, 0]])) == (0, 255)
  random = RNG.integers(0, 20, (64, 64))  # No area, and yet not smooth.
  assert labels.infer_label_values(count(random)) == tuple(range(20))


def test_many_organs_are_no_smooth_mask():
  organs = np.kron(np.arange(100).reshape(10, 10), np.ones((6, 6), int))
  assert labels.infer_label_values(count(organs)) == tuple(range(100))


@pytest.mark.parametrize('scale', [2, 4, 5])
def test_masks_reduced_by_averaging_are_smooth(scale):
  large = Image.fromarray(disc(64 * scale, 20 * scale))
  masks = count(np.asarray(large.reduce(scale)))
  assert 5 <= len(masks[0].values) <= 27
  assert labels.infer_label_values(masks) == (0, 255)
  labels.check_label_values(masks, (0, 255))


def test_small_and_thin_classes_are_no_strays():
  organs = np.kron(np.arange(100).reshape(10, 10), np.ones((6, 6), int))
  organs[30, 1::6] = 100 + np.arange(10)  # Single pixels.
  organs[5:9, 5:9] = 250
  assert labels.infer_label_values(count(organs)) == (*range(110), 250)
  rim = np.asarray(disc(64, 20), int) - 127 * (disc(64, 20) > disc(64, 19))
  assert labels.infer_label_values(count(rim)) == (0, 128, 255)


def test_values_of_smooth_masks():
  masks = count(smooth_disc(), smooth_disc(radius=9), np.zeros((8, 8)))
  assert len(masks[0].values) > 10
  assert labels.infer_label_values(masks) == (0, 255)
  labels.check_label_values(masks, (0, 255))


def test_values_of_smooth_masks_of_three_classes():
  large = np.maximum(disc(256, 100, 128), disc(256, 40, 255))
  small = Image.fromarray(large).resize((64, 64), Image.Resampling.BICUBIC)
  masks = count(np.asarray(small))
  assert labels.infer_label_values(masks) == (0, 128, 255)
  with pytest.raises(InputError) as error:
    labels.check_label_values(masks, (0, 255))
  assert_one_line(error, '0.png', 'label values 128 are', '(0, 255)')


@pytest.mark.parametrize('quality', [30, 75, 95])
def test_values_of_jpeg_masks(tmp_path, quality):
  masks = count_jpeg(tmp_path, disc(64, 20), disc(64, 5), quality=quality)
  assert labels.infer_label_values(masks) == (0, 255)
  labels.check_label_values(masks, (0, 255))
  with pytest.raises(InputError) as error:
    labels.check_label_values(masks, (0, 128))
  assert_one_line(error, '0.jpg', '255', '(0, 128)')


def test_values_of_jpeg_masks_of_three_classes(tmp_path):
  large = np.maximum(disc(128, 50, 128), disc(128, 20, 255))
  masks = count_jpeg(tmp_path, large, quality=90)
  assert labels.infer_label_values(masks) == (0, 128, 255)


def test_plain_masks_decide_for_the_jpegs_among_them(tmp_path):
  masks = count_jpeg(tmp_path, disc(64, 20, 85)) + count([[0, 85, 170]])
  assert labels.infer_label_values(masks) == (0, 85, 170)


def test_sets_without_classes_are_errors(tmp_path):
  with pytest.raises(InputError) as error:
    labels.infer_label_values(
      [mask._replace(path=tmp_path / 'a.png') for mask in count([[3, 3]])]
    )
  assert_one_line(error, tmp_path, 'one label value, 3', 'two or more')
  picture = RNG.integers(0, 256, (64, 64))
  with pytest.raises(InputError) as error:
    labels.infer_label_values(count(picture))
  assert_one_line(error, '0.png', '256 values', 'picture')


def test_values_that_no_class_has_are_errors():
  dot = np.zeros((8, 8))
  dot[3, 3] = 7
  with pytest.raises(InputError) as error:
    labels.check_label_values(count(np.zeros((8, 8)), dot), (0, 255))
  assert_one_line(error, '1.png', 'values 7 are of no class', '(0, 255)')
  with pytest.raises(InputError) as error:  # Outside, however smooth.
    labels.check_label_values(count(smooth_disc()), (0, 200))
  assert_one_line(error, '0.png', '(0, 200)')


def test_nearest_class_and_share_of_snapped_pixels():
  mask = np.array([[0, 60, 70, 200, 255, 128]])
  assert labels.to_classes(mask, (255, 0, 128)).tolist() == [[1, 1, 2, 0, 0, 2]]
  assert labels.num_snapped(count(mask)[0], (255, 0, 128)) == 3


def test_names_of_classes():
  assert labels.name_classes((), (0, 9), 'x') == ('background', 'foreground')
  names = labels.name_classes((), (0, 1, 2), 'x')
  assert names == ('background', 'class_1', 'class_2')
  assert labels.name_classes(['a', 'b'], (0, 1), 'x') == ('a', 'b')
  with pytest.raises(InputError) as error:
    labels.name_classes(('a', 'b', 'c'), (0, 1), 'DATA')
  assert_one_line(error, 'DATA', "3 data.classes ('a', 'b', 'c')", '(0, 1)')
  for values in ((0,), (0, 0)):
    with pytest.raises(InputError, match='data.label_values'):
      labels.name_classes((), values, 'x')
