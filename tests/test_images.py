"""Images of every kind of file that people have, and lists of them."""

import numpy as np
import pytest
import tifffile
from data_cases import (
  BINARY,
  assert_one_line,
  save,
  save_palette,
  save_png16,
  save_raw_png,
)
from PIL import Image, ImageOps

from medseg_jax.data.formats import images
from medseg_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)


@pytest.mark.parametrize('name', ['a.png', 'a.PNG', 'a.bmp', 'a.tif', 'a.pgm'])
def test_grey_images_are_one_channel(tmp_path, name):
  path = save(tmp_path / name, GREY)
  image = images.read_image(path)
  assert image.dtype == np.uint8
  np.testing.assert_array_equal(image, GREY[..., None])


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.TIF', 'a.ppm', 'a.tga'])
def test_rgb_images_are_three_channels(tmp_path, name):
  path = save(tmp_path / name, RGB)
  np.testing.assert_array_equal(images.read_image(path), RGB)


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


def test_palette_images_are_what_a_person_sees(tmp_path):
  colours = [[255, 0, 0], [0, 255, 0], [7, 7, 7]]
  path = save_palette(tmp_path / 'a.png', [[0, 1], [2, 1]], colours)
  image = images.read_image(path)
  np.testing.assert_array_equal(image, np.array(colours)[[[0, 1], [2, 1]]])
  path = save_palette(tmp_path / 'b.gif', [[0, 1]], [[255] * 3, [9] * 3])
  assert images.read_image(path).tolist() == [[[255], [9]]]


def test_one_bit_and_cmyk_images(tmp_path):
  for name in ('a.png', 'a.tif', 'a.bmp', 'a.pbm'):
    path = save(tmp_path / name, BINARY, '1')
    assert images.read_image(path).dtype == np.uint8
    np.testing.assert_array_equal(images.read_image(path)[..., 0], BINARY)
  flat = np.full((8, 8, 3), (200, 40, 90), np.uint8)
  path = save(tmp_path / 'cmyk.tif', flat, 'CMYK')
  np.testing.assert_array_equal(images.read_image(path), flat)


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
  for read in (images.read_image, images.read_mask):
    with pytest.raises(InputError) as error:
      read(tmp_path / 'a.tif')
    assert_one_line(error, tmp_path / 'a.tif', '6 pages', 'one page')


def test_a_preview_page_is_no_stack(tmp_path):
  with tifffile.TiffWriter(tmp_path / 'a.tif') as writer:
    writer.write(GREY)
    writer.write(GREY[::2, ::2], subfiletype=1)
    writer.write(GREY[1::2, ::2], subfiletype=1)
  with tifffile.TiffWriter(tmp_path / 'b.tif') as writer:
    writer.write(GREY[::2, ::2], subfiletype=1)
    writer.write(GREY)
  for name in ('a.tif', 'b.tif'):
    image = images.read_image(tmp_path / name)
    np.testing.assert_array_equal(image[..., 0], GREY)


def test_five_channels_are_an_error(tmp_path):
  array = np.zeros((8, 9, 5), np.uint16)
  tifffile.imwrite(
    tmp_path / 'a.tif', array, photometric='minisblack', planarconfig='contig'
  )
  with pytest.raises(InputError) as error:
    images.read_image(tmp_path / 'a.tif')
  assert_one_line(error, 'a.tif', '5 channels', 'allowed are 1 (grey)')


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
  for read in (images.read_image, images.read_mask):
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


def test_list_images_reads_jfif_and_names_what_is_unused(tmp_path):
  save(tmp_path / 'a.jfif', GREY, format='JPEG')
  for name in ('b.mha', 'c.nrrd', 'd.dcm', 'Thumbs.db', '.DS_Store'):
    (tmp_path / name).write_text('')
  (tmp_path / 'more').mkdir()
  found = images.find_images(tmp_path)
  assert [path.name for path in found.images] == ['a.jfif']
  assert [path.name for path in found.unused] == [
    'b.mha', 'c.nrrd', 'd.dcm', 'more',
  ]  # fmt: skip
  assert images.read_image(found.images[0]).shape == (5, 7, 1)


def test_names_that_no_system_takes_are_errors(tmp_path):
  for name in ('x' * 300, 'a\0b'):
    for read in (images.list_images, images.read_image):
      with pytest.raises(InputError) as error:
        read(tmp_path / name)
      assert_one_line(error, tmp_path)
      assert len(str(error.value)) < 600 and str(error.value).isprintable()
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='file: a file; allowed is a folder'):
    images.list_images(tmp_path / 'file')
