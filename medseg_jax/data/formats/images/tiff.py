"""TIFF files: tifffile knows the sample types, Pillow the colour spaces."""

import contextlib
import logging
import pathlib
import threading
from collections.abc import Iterator

import numpy as np
import tifffile

from medseg_jax.data.formats.images import claims, pillow
from medseg_jax.data.formats.images.pixels import (
  ORIENTATION_TAG,
  Pixels,
  channel_error,
  make_pixels,
)
from medseg_jax.runtime.errors import InputError

# TIFF photometric interpretations.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_YCBCR = 6
_PLAIN = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
# TIFF compressions. Fax codes take a bit for a line that is as the one before.
_NONE, _FAX, _LZW, _PACKBITS = 1, (2, 3, 4), 5, 32773
_JPEG, _DEFLATE = (6, 7), (8, 32946, 50013)
# A stack may have thousands of pages; one more than allowed is enough to know.
_MOST_PAGES = 64

_reading = threading.local()


class _QuietWhileReading(logging.Filter):
  """Keeps tifffile's own lines on damaged files from people's screens."""

  def filter(self, record: logging.LogRecord) -> bool:
    return not getattr(_reading, 'now', False)


logging.getLogger('tifffile').addFilter(_QuietWhileReading())


def is_tiff(path: pathlib.Path) -> bool:
  """Returns whether the file begins as a TIFF does."""
  with open(path, 'rb') as file:
    return file.read(4) in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def decode(path: pathlib.Path) -> Pixels:
  """Returns the samples of a TIFF of one page.

  Raises:
    InputError: a stack, damaged, too large, or of other channels.
    Exception: whatever the decoders meet.
  """
  with _open_page(path) as (page, index):
    deep = page.bitspersample > 8 or page.sampleformat != 1
    bits_per_byte = _bits_per_byte(page)
    if deep and page.photometric in _PLAIN:
      with (
        claims.memory_for(
          path,
          size=(page.imagelength, page.imagewidth),
          channels=page.samplesperpixel,
          itemsize=-(-page.bitspersample // 8),
        ),
        # Of compressions that tifffile needs imagecodecs for.
        contextlib.suppress(Exception),
      ):
        return _decode_deep(page)
  return pillow.decode(path, frame=index, bits_per_byte=bits_per_byte)


def _decode_deep(page: tifffile.TiffPage) -> Pixels:
  samples = page.asarray()
  if page.samplesperpixel > 1 and page.planarconfig == 2:
    samples = np.moveaxis(samples, 0, -1)
  if page.photometric == _WHITE_IS_ZERO and samples.dtype.kind == 'u':
    samples = np.iinfo(samples.dtype).max - samples
  return make_pixels(samples, orientation=_orientation(page))


@contextlib.contextmanager
def _open_page(path: pathlib.Path) -> Iterator[tuple[tifffile.TiffPage, int]]:
  """Yields the only page with an image, and its place among all pages."""
  _reading.now = True
  try:
    with tifffile.TiffFile(path) as file:
      page, index = _only_page(path, file)
      _check_page(path, page)
      yield page, index
  finally:
    _reading.now = False


def _only_page(
  path: pathlib.Path, file: tifffile.TiffFile
) -> tuple[tifffile.TiffPage, int]:
  found = []
  for index, page in enumerate(file.pages):
    # Bits 1 and 4 mark previews and transparency masks of another page.
    if not page.subfiletype & 0b101:
      found.append((page, index))
    if len(found) > _MOST_PAGES:
      break
  if not found:
    raise ValueError('no page with an image')
  if len(found) > 1:
    many = f'more than {_MOST_PAGES}' * (len(found) > _MOST_PAGES)
    raise InputError(
      f'{path}: a TIFF stack of {many or len(found)} pages; allowed is one '
      'page (one file for each section)'
    )
  return found[0]


def _check_page(path: pathlib.Path, page: tifffile.TiffPage) -> None:
  extra = page.samplesperpixel - (3 if _is_colour(page) else 1)
  alpha = page.photometric == _RGB or set(page.extrasamples) <= {1, 2}
  if page.photometric in _PLAIN and extra > (1 if alpha else 0):
    raise channel_error(path, page.samplesperpixel)
  height, width = size = page.imagelength, page.imagewidth
  claims.check_claim(path, size=size, bits=0, bits_per_byte=1)
  if page.is_tiled:
    rows, columns = page.tilelength, page.tilewidth
  else:
    rows, columns = min(page.rowsperstrip, height), width
  if min(rows, columns) <= 0:
    raise ValueError(f'tiles or strips of {rows} x {columns} pixels')
  separate = page.samplesperpixel > 1 and page.planarconfig == 2
  planes = page.samplesperpixel if separate else 1
  expected = -(-height // rows) * -(-width // columns) * planes
  ends = list(zip(page.dataoffsets, page.databytecounts, strict=True))
  if len(ends) < expected or max(map(sum, ends)) > path.stat().st_size:
    raise InputError(f'{path}: truncated; allowed are complete image files')
  # Sparse files leave out tiles that are 0; all are as large as they are.
  stored = rows * sum(1 for _, count in ends[:expected] if count)
  if not page.is_tiled:  # The last strip may be smaller.
    stored = min(stored, height * planes)
  claims.check_claim(
    path,
    size=size,
    bits=page.bitspersample * page.samplesperpixel // planes,
    bits_per_byte=_bits_per_byte(page),
    stored_size=(stored, columns),
  )


def _bits_per_byte(page: tifffile.TiffPage) -> int:
  compression = int(page.compression)
  if compression in _FAX:
    return 8 * page.imagewidth
  # Colour may be stored at half the resolution.
  known = {
    _NONE: 16 if page.photometric == _YCBCR else 8,
    _LZW: claims.LZW,
    _PACKBITS: claims.PACKBITS,
  }
  known |= dict.fromkeys(_JPEG, claims.JPEG)
  known |= dict.fromkeys(_DEFLATE, claims.DEFLATE)
  return known.get(compression, claims.OTHER)


def _is_colour(page: tifffile.TiffPage) -> bool:
  if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
    return page.samplesperpixel == 3
  return page.photometric != _PALETTE


def _orientation(page: tifffile.TiffPage) -> int:
  tag = page.tags.get(ORIENTATION_TAG)
  return int(tag.value) if tag else 1
