"""Damaged image files: each is read, or refused in one short line.

Neither takes more time or memory than a file of its size may.
MEDSEG_FUZZ=N tries N mutations of each file in place of a few.
"""

import io
import pathlib
import time

import numpy as np
import pytest
import tifffile
from mutations import mutate, num_mutations
from PIL import Image

from medseg_jax.data import labels
from medseg_jax.data.formats import images
from medseg_jax.data.label_inference import (
  check_label_values,
  infer_label_values,
)
from medseg_jax.data.mask_values import count_values
from medseg_jax.runtime.errors import InputError

LONGEST_MESSAGE = 400  # characters
MOST_SECONDS = 2.0  # of the processor; the slowest here takes 0.05
MOST_MEGABYTES = 400

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:24, :20]
MASK = np.where(np.hypot(Y - 12, X - 10) < 7, 255, 0).astype(np.uint8)
DEEP = MASK.astype(np.uint16) * 200
GREY_RGB = np.repeat(MASK[..., None], 3, axis=-1)
RGB = RNG.integers(0, 256, (24, 20, 3), dtype=np.uint8)


def by_pillow(array, form, mode=None, **options):
  image = Image.fromarray(array)
  if mode == 'colours':
    image = Image.fromarray(array // 255)
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
  elif mode:
    image = image.convert(mode)
  file = io.BytesIO()
  image.save(file, format=form, **options)
  return file.getvalue()


def by_tifffile(array, **options):
  file = io.BytesIO()
  tifffile.imwrite(file, array, **options)
  return file.getvalue()


def turned():
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def files_of(kind):
  """Returns good files of a kind."""
  if kind == 'tif':
    return [
      by_pillow(MASK, 'TIFF'),
      by_pillow(GREY_RGB, 'TIFF'),
      by_pillow(MASK, 'TIFF', 'colours'),
      by_pillow(MASK, 'TIFF', compression='tiff_lzw'),
      by_pillow(MASK, 'TIFF', compression='packbits'),
      by_pillow(RGB, 'TIFF', compression='jpeg'),
      by_pillow(MASK, 'TIFF', '1', compression='group4'),
    ]
  if kind == 'deep tif':
    return [
      by_tifffile(DEEP),
      by_tifffile(MASK, tile=(16, 16)),
      by_tifffile(DEEP, bigtiff=True, byteorder='>'),
      by_tifffile(MASK.astype(np.float32), compression='zlib', tile=(16, 16)),
      by_tifffile(
        np.moveaxis(RGB, -1, 0).astype(np.uint16),
        photometric='rgb',
        planarconfig='separate',
      ),
    ]
  return {
    'png': [
      by_pillow(MASK, 'PNG'),
      by_pillow(DEEP, 'PNG'),
      by_pillow(GREY_RGB, 'PNG', exif=turned()),
      by_pillow(MASK, 'PNG', 'colours'),
      by_pillow(MASK, 'PNG', '1'),
      by_pillow(MASK, 'PNG', 'LA'),
    ],
    'gif': [by_pillow(MASK, 'GIF'), by_pillow(MASK, 'GIF', 'colours')],
    'jpg': [
      by_pillow(MASK, 'JPEG'),
      by_pillow(RGB, 'JPEG', exif=turned()),
      by_pillow(MASK, 'JPEG', progressive=True),
    ],
    'jp2': [
      by_pillow(MASK, 'JPEG2000'),
      by_pillow(RGB, 'JPEG2000', irreversible=True),
    ],
    'bmp': [
      by_pillow(MASK, 'BMP'),
      by_pillow(RGB, 'BMP'),
      by_pillow(MASK, 'BMP', '1'),
    ],
    'webp': [
      by_pillow(GREY_RGB, 'WEBP', lossless=True, exif=turned()),
      by_pillow(RGB, 'WEBP'),
    ],
    'tga': [
      by_pillow(MASK, 'TGA'),
      by_pillow(RGB, 'TGA', compression='tga_rle'),
    ],
    'pgm': [
      by_pillow(MASK, 'PPM'),
      b'P5 20 24 65535\n' + DEEP.astype('>u2').tobytes(),
      b'P2 20 24 255\n' + b' '.join(b'%d' % value for value in MASK.ravel()),
    ],
  }[kind]


def read_as_mask(path):
  mask, lossy = images.decode_mask(path)
  counts = [count_values(path, mask, lossy=lossy)]
  check_label_values(counts, (0, 255))
  labels.to_classes(mask, infer_label_values(counts))


def memory(key):
  """Returns VmRSS, in use, or VmHWM, the most that was, in megabytes."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(key):
      return int(line.split()[1]) / 1024
  return 0


def try_to_read(read, path):
  """Returns the message; asserts what every reading must keep."""
  forget = pathlib.Path('/proc/self/clear_refs')
  try:
    forget.write_text('5')  # The most memory is from now on.
    before = memory('VmRSS')
  except OSError:  # Not Linux, or not allowed.
    before = None
  started = time.process_time()
  message = ''
  try:
    read(path)
  except InputError as error:
    message = str(error)
  assert time.process_time() - started < MOST_SECONDS
  if before is not None:
    assert memory('VmHWM') - before < MOST_MEGABYTES
  assert '\n' not in message and len(message) <= LONGEST_MESSAGE
  # What concerns the set of masks names their folder.
  assert not message or message.startswith((f'{path}: ', f'{path.parent}: '))
  return message


@pytest.mark.parametrize(
  'kind',
  ['png', 'tif', 'deep tif', 'gif', 'jpg', 'jp2', 'bmp', 'webp', 'tga', 'pgm'],
)
@pytest.mark.filterwarnings('ignore')
def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch, kind):
  monkeypatch.chdir(tmp_path)  # Short names leave room in the messages.
  path = pathlib.Path(f'a.{kind[-3:]}')
  messages = set()
  for data in files_of(kind):
    path.write_bytes(data)
    assert not try_to_read(images.read_image, path)
    for seed in range(num_mutations(80)):
      path.write_bytes(mutate(data, seed))
      try:
        for read in (images.read_image, read_as_mask):
          messages.add(try_to_read(read, path))
      except Exception as error:
        error.add_note(f'seed {seed} of a file of {len(data)} bytes')
        raise
  assert len(messages) > 2  # Some are refused, for various reasons.
