"""Image files and checks of messages that the tests of the data share."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg_jax.data.sources import folder
from medseg_jax.runtime.errors import InputError

RNG = np.random.default_rng(0)
MASK = np.zeros((8, 9), np.uint8)
MASK[2:5, 3:7] = 255
BINARY = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)


def save(path, array, mode=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(path, **options)
  return path


def write_pairs(root, stems, *, mask_folder='labels', mask=MASK, rgb=False):
  shape = mask.shape + ((3,) if rgb else ())
  for stem in stems:
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    save(root / 'images' / f'{stem}.png', image)
    save(root / mask_folder / f'{stem}.png', mask)


def error_line(path, **options):
  """Returns what is said of a folder of images and masks."""
  with pytest.raises(InputError) as error:
    folder.open_folder(path, **options)
  assert_one_line(error)
  return str(error.value)


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


def put_another_in_its_place(path):
  """Replaces the file by one of other bytes, the same size and time."""
  old = path.stat()
  content = path.read_bytes()
  other = path.with_name('another')
  other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
  os.replace(other, path)
  os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
  new = path.stat()
  assert (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)


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
