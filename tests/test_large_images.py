"""Images that are large, and files whose headers claim that they are."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from data_cases import BINARY, assert_one_line, save
from PIL import Image

from medseg_jax.data.formats import images
from medseg_jax.data.formats.images import pillow
from medseg_jax.runtime import host_memory
from medseg_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_the_limit_of_pillow_is_none_and_stays_its_own(tmp_path, monkeypatch):
  path = save(tmp_path / 'a.png', RGB)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4)
  np.testing.assert_array_equal(images.read_image(path), RGB)
  assert Image.MAX_IMAGE_PIXELS == 4


def test_large_images_are_copied_in_bands(tmp_path, monkeypatch):
  monkeypatch.setattr(pillow, '_BAND', 16)
  for array in (GREY, RGB):
    path = save(tmp_path / 'a.png', array)
    np.testing.assert_array_equal(images.read_image(path).squeeze(), array)
  path = save(tmp_path / 'b.png', BINARY, '1')
  np.testing.assert_array_equal(images.read_mask(path), BINARY)


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_an_image_that_does_not_fit_says_how_much_it_takes(
  tmp_path, monkeypatch, name
):
  path = tmp_path / name
  large = np.zeros((4000, 4500), np.uint16)
  if name == 'a.tif':
    tifffile.imwrite(path, large, compression='zlib')
  else:
    save(path, large)
  monkeypatch.setattr(host_memory, 'available', lambda: 1e8)
  with pytest.raises(InputError) as error:
    images.read_image(path)
  assert_one_line(
    error, path, '4000 x 4500 pixels', 'need 0.18 GB', '0.1 GB are available'
  )
  monkeypatch.setattr(host_memory, 'available', lambda: 1e12)
  assert images.read_image(path).shape == (4000, 4500, 1)


@pytest.mark.parametrize('kind', ['png', 'bmp', 'gif', 'tif', 'zlib tif'])
def test_a_header_cannot_claim_more_than_the_file_holds(tmp_path, kind):
  # The width stands at a known place in each; the memory is not asked for.
  path = tmp_path / f'a.{kind[-3:]}'
  if kind == 'zlib tif':
    tifffile.imwrite(path, GREY.astype(np.float32), compression='zlib')
  elif kind == 'tif':
    tifffile.imwrite(path, GREY)
  else:
    save(path, GREY)
  data = bytearray(path.read_bytes())
  if kind.endswith('tif'):
    for tag in (256, 257, 278):  # Width, height, rows of a strip.
      entry = data.find(struct.pack('<HH', tag, 4))
      if entry < 0:
        entry = data.index(struct.pack('<HH', tag, 3))
      data[entry + 2 : entry + 4] = struct.pack('<H', 4)
      data[entry + 8 : entry + 12] = struct.pack('<I', 60000)
  elif kind == 'png':
    data[16:24] = struct.pack('>II', 60000, 60000)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  elif kind == 'bmp':
    data[18:26] = struct.pack('<II', 60000, 60000)
  else:
    data[6:10] = struct.pack('<HH', 60000, 60000)
  path.write_bytes(data)
  with pytest.raises(InputError) as error:
    images.read_image(path)
  assert_one_line(
    error, path, 'claims 60000 x 60000 pixels', f'{len(data)} bytes can hold'
  )


def test_blank_images_are_believed(tmp_path):
  blank = np.zeros((1024, 1500), np.uint8)
  for name, options in {
    'a.png': {}, 'a.gif': {}, 'a.jpg': {}, 'a.jp2': {}, 'a.bmp': {},
    'a.webp': {'lossless': True}, 'a.tga': {'compression': 'tga_rle'},
    'a.tif': {'compression': 'tiff_adobe_deflate'},
    'b.tif': {'compression': 'tiff_lzw'}, 'c.tif': {'compression': 'packbits'},
  }.items():  # fmt: skip
    path = save(tmp_path / name, blank, **options)
    assert not images.read_mask(path).any()
  path = save(tmp_path / 'd.tif', blank, '1', compression='group4')
  assert not images.read_mask(path).any()


def test_images_without_pixels_are_errors(tmp_path):
  tifffile.imwrite(tmp_path / 'a.tif', GREY)
  data = bytearray((tmp_path / 'a.tif').read_bytes())
  entry = data.find(struct.pack('<HH', 257, 3))
  entry = entry if entry >= 0 else data.index(struct.pack('<HH', 257, 4))
  data[entry + 8 : entry + 12] = bytes(4)
  (tmp_path / 'a.tif').write_bytes(data)
  (tmp_path / 'b.pgm').write_bytes(b'P5 0 5 255\n')
  for name in ('a.tif', 'b.pgm'):
    for read in (images.read_image, images.read_mask):
      with pytest.raises(InputError) as error:
        read(tmp_path / name)
      assert_one_line(error, tmp_path / name, 'allowed')
