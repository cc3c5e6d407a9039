"""What the header of an image claims, before memory is asked for.

A damaged header may claim any size. No compression stores more than so many
pixels in a byte, so a small file cannot hold a large image; and what it can
hold must fit in the memory that there is.
"""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

from medseg_jax.runtime import host_memory
from medseg_jax.runtime.errors import InputError

# Bits of samples in one stored byte, at most, by what Pillow calls the format.
# Those of PNG (deflate) and GIF (LZW) are the bounds of their algorithms.
DEFLATE, LZW, PACKBITS = 1032 * 8, 2731 * 8, 64 * 8
# A block of 8x8 samples takes two bits or, where blocks without detail come
# in runs, one.
JPEG = 512 * 8 * 2
# No bounds, but more than what is seen: blank images written by OpenJPEG and
# libwebp hold up to 60,000 and 26,000 samples of 8 bits in a byte.
JPEG_2000, WEBP = 65536 * 8, 32768 * 8
# Nothing is known of the algorithm; blank images have up to 2,500 in ZSTD.
OTHER = 8192 * 8
FORMATS = {
  'BMP': 128 * 8, 'DIB': 128 * 8, 'GIF': LZW, 'JPEG': JPEG,
  'JPEG2000': JPEG_2000, 'MPO': JPEG, 'PNG': DEFLATE, 'PPM': 8,
  'TGA': PACKBITS, 'WEBP': WEBP,
}  # fmt: skip
# Where the algorithm has no bound, this many pixels are always believed.
_BELIEVED = 4096 * 4096
_UNBOUNDED = (JPEG_2000, WEBP, OTHER)
# Smaller needs are not worth a look at the memory.
_SMALL = 64 * 2**20

_memory = threading.Condition()
_held = []  # bytes, one number for each large image that is being read


def check_claim(
  path: pathlib.Path,
  *,
  size: tuple[int, int],
  bits: int,
  bits_per_byte: int,
  stored_size: tuple[int, int] | None = None,
) -> None:
  """Checks that a file can hold the image that its header claims.

  Args:
    path: the file.
    size: height and width.
    bits: of all samples of a pixel.
    bits_per_byte: bits of samples that a byte of the file holds, at most.
    stored_size: height and width with the margins of tiles, without the tiles
      that a sparse file leaves out; default `size`.

  Raises:
    InputError: the image has no pixels, or is too large for the file.
  """
  height, width = size
  if height <= 0 or width <= 0:
    raise InputError(
      f'{path}: an image of {height} x {width} pixels (height x width); '
      'allowed is at least one pixel'
    )
  rows, columns = stored_size or size
  claimed = rows * columns
  believed = _BELIEVED if bits_per_byte in _UNBOUNDED else 0
  file_size = path.stat().st_size
  if claimed > believed and claimed * bits > file_size * bits_per_byte:
    raise InputError(
      f'{path}: damaged or truncated, its header claims {height} x {width} '
      f'pixels (height x width), more than {file_size} bytes can hold; allowed '
      'are complete image files'
    )


@contextlib.contextmanager
def memory_for(
  path: pathlib.Path, *, size: tuple[int, int], channels: int, itemsize: int
) -> Iterator[None]:
  """Waits until there is memory to read an image, and holds it meanwhile.

  Threads that read large images do so one after the other where the memory is
  not enough for all of them.

  Args:
    path: the file, for the message.
    size: height and width.
    channels: samples of a pixel.
    itemsize: bytes of a sample.

  Raises:
    InputError: there is not enough for this one; says how much it takes and
      how much there is.
  """
  # The decoder's own copy (Pillow's of colour has four bytes a pixel), that of
  # the samples, that of the turned ones, and the integers of a mask.
  pixel = max(4 if channels > 1 else 1, itemsize) + 2 * channels * itemsize
  needed = size[0] * size[1] * (pixel + 4)
  if needed < _SMALL:
    yield
    return
  with _memory:
    while True:
      available = host_memory.available()
      if needed + sum(_held) <= available:
        break
      if not _held:
        raise InputError(
          f'{path}: {size[0]} x {size[1]} pixels (height x width) need '
          f'{needed / 1e9:.3g} GB of memory to read, and '
          f'{available / 1e9:.3g} GB are available; allowed is what fits: free '
          'memory, or cut the image into smaller ones'
        )
      _memory.wait()
    _held.append(needed)
  try:
    yield
  finally:
    with _memory:
      _held.remove(needed)
      _memory.notify_all()
