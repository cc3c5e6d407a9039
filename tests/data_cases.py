"""Image files and checks of messages that the tests of the data share."""

import struct
import zlib

import numpy as np
from PIL import Image
from scipy import ndimage

BINARY = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)


def save(path, array, mode=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
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


def assert_all_in(text, *parts):
  for part in parts:
    assert str(part) in text, f'{part} is not in: {text}'


def assert_one_line(error, *parts):
  text = str(error.value)
  assert '\n' not in text
  assert_all_in(text, *parts)


def box_oracle(image):
  """Returns the box of the mask with holes filled, by SciPy."""
  mask = ndimage.binary_fill_holes((image != 0).any(-1))
  return ndimage.find_objects(mask.astype(int))[0]
