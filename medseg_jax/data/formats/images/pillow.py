"""What Pillow reads, with samples of 16 bits where it would cut them to 8."""

import contextlib
import pathlib
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from medseg_jax.data.formats.images import claims
from medseg_jax.data.formats.images.pixels import (
  ORIENTATION_TAG,
  Pixels,
  make_pixels,
)

_CONVERSIONS = {
  'CMYK': 'RGB', 'YCbCr': 'RGB', 'LAB': 'RGB', 'HSV': 'RGB',
  'La': 'LA', 'RGBa': 'RGBA',
}  # fmt: skip
# Pixels that are copied at once from Pillow's memory.
_BAND = 2**22
# Damaged EXIF data in a good image is nothing that a person needs to know.
warnings.filterwarnings(
  'ignore', category=UserWarning, module=r'PIL\.\w*ImagePlugin'
)

_lock = threading.Lock()
_limits = []  # of Pillow, one for each image that is open


def decode(
  path: pathlib.Path, *, frame: int = 0, bits_per_byte: int = 0
) -> Pixels:
  """Returns the samples of a frame.

  Args:
    path: the file.
    frame: which page, of TIFF.
    bits_per_byte: see `claims.check_claim`; 0 for that of the format.

  Raises:
    InputError: too large for the file, or for the memory.
    Exception: whatever Pillow's plugins meet.
  """
  # From a stream: by name, Pillow maps the file and then scrambles plain TIFF
  # files with the orientations 5 to 8.
  with open_image(path, frame) as file:
    _check_size(path, file, bits_per_byte)
    palette = _palette(file)
    raw_mode = _raw_mode(file)
    with claims.memory_for(
      path,
      size=file.size[::-1],
      channels=len(file.getbands()),
      itemsize=4 if file.mode in 'IF' else 1 + (';16' in raw_mode),
    ):
      samples = _deep_samples(path, raw_mode)
      if samples is None:
        if (file.format, file.mode) == ('BMP', '1') and _bmp_bits(path) > 1:
          _set_raw_mode(file, '1;8')  # Pillow takes 8-bit pixels for 1-bit.
        file.load()
        mode = _CONVERSIONS.get(file.mode)
        samples = _to_array(file.convert(mode) if mode else file)
    if file.mode == 'I' and file.format in ('PNG', 'PPM'):
      samples = samples.astype(np.uint16)  # 16-bit greys, widened by Pillow.
    # Pillow turns TIFF files by itself, and then removes the tag.
    orientation = _orientation(file)
    lossy = _is_lossy(path, file)
  return make_pixels(samples, orientation, palette=palette, lossy=lossy)


def is_grey(colours: np.ndarray) -> bool:
  """Returns whether all colours of a palette `[K, 3]` are greys."""
  return bool((colours == colours[:, :1]).all())


@contextlib.contextmanager
def open_image(path: pathlib.Path, frame: int = 0) -> Iterator[Image.Image]:
  """Yields the image, its pixels not yet decoded, whatever its size.

  Pillow's limit is the same for all of the process; it is put back when the
  last image that is open here has been closed.
  """
  with _lock:
    _limits.append(Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = None
  try:
    with open(path, 'rb') as stream:
      try:
        file = Image.open(stream)
      except UnidentifiedImageError as error:
        raise ValueError('unknown format or damaged header') from error
      with file:
        if frame:
          file.seek(frame)
        yield file
  finally:
    with _lock:
      limit = _limits.pop()
      if not _limits:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(path: pathlib.Path, file: Image.Image, bits_per_byte: int):
  one_bit = file.mode == '1' or file.mode == 'P'  # P: 1 to 8 bits an index
  depth = 16 if ';16' in _raw_mode(file) else 8
  claims.check_claim(
    path,
    size=file.size[::-1],
    bits=1 if one_bit else depth * len(file.getbands()),
    bits_per_byte=bits_per_byte
    or claims.FORMATS.get(file.format, claims.OTHER),
  )


def _to_array(file: Image.Image) -> np.ndarray:
  """Returns the samples, copied in bands: NumPy's own way takes two copies."""
  width, height = file.size
  if width * height <= _BAND:
    return np.asarray(file)
  rows = max(1, _BAND // width)
  result = None
  for top in range(0, height, rows):
    band = np.asarray(file.crop((0, top, width, min(top + rows, height))))
    if result is None:
      result = np.empty((height, *band.shape[1:]), band.dtype)
    result[top : top + rows] = band
  return result


def _orientation(file: Image.Image) -> int:
  try:
    return file.getexif().get(ORIENTATION_TAG, 1)
  except Exception:  # Damaged EXIF data in an image that is good.
    return 1


def _is_lossy(path: pathlib.Path, file: Image.Image) -> bool:
  """Returns whether the compression changes pixels beside edges."""
  if file.format == 'WEBP':
    with open(path, 'rb') as stream:
      return b'VP8 ' in stream.read(4096)
  if file.format == 'JPEG2000':
    return _is_irreversible(path)
  return file.format in ('JPEG', 'MPO') or (
    'jpeg' in str(file.info.get('compression'))
  )


def _is_irreversible(path: pathlib.Path) -> bool:
  """Returns whether a JPEG 2000 file has the wavelets 9-7 of lossy ones."""
  with open(path, 'rb') as stream:
    head = stream.read(65536)
  at = head.find(b'\xff\x52')  # The marker COD; byte 13 names the wavelets.
  return at >= 0 and head[at + 13 : at + 14] == b'\0'


def _bmp_bits(path: pathlib.Path) -> int:
  with open(path, 'rb') as stream:
    return stream.read(29)[28]


def _deep_samples(path: pathlib.Path, raw_mode: str) -> np.ndarray | None:
  """Returns uint16 samples of 16-bit colour, or None for other files.

  Pillow unpacks them to their high bytes. A second pass with the unpacker of
  the other byte order yields the low bytes.
  """
  if not raw_mode.startswith(('RGB;16', 'RGBA;16', 'RGBX;16', 'LA;16')):
    return None
  if raw_mode == 'LA;16B':  # Four bytes a pixel, which RGBA takes as they are.
    bytes_ = _unpack(path, 'RGBA').astype(np.uint16)
    return bytes_[..., ::2] << 8 | bytes_[..., 1::2]
  other = raw_mode[:-1] + ('L' if raw_mode.endswith('B') else 'B')
  high = _unpack(path, raw_mode).astype(np.uint16)
  return high << 8 | _unpack(path, other)


def _raw_mode(file: Image.Image) -> str:
  if not file.tile:
    return ''
  args = file.tile[0].args
  return args if isinstance(args, str) else str((args or [''])[0])


def _unpack(path: pathlib.Path, raw_mode: str) -> np.ndarray:
  with open_image(path) as file:
    _set_raw_mode(file, raw_mode)
    file.load()
    return _to_array(file)


def _set_raw_mode(file: Image.Image, raw_mode: str) -> None:
  args = file.tile[0].args
  args = raw_mode if isinstance(args, str) else (raw_mode, *args[1:])
  file.tile = [tile._replace(args=args) for tile in file.tile]


def _palette(file: Image.Image) -> np.ndarray | None:
  """Returns the colours of a palette file, `[256, 3]` uint8, or None.

  Entries beyond the file's own repeat its first one, so that they do not make
  a grey palette coloured.
  """
  if file.mode not in ('P', 'PA'):
    return None
  colours = np.reshape(file.getpalette('RGB'), (-1, 3)).astype(np.uint8)
  palette = np.repeat(colours[:1], 256, axis=0)
  palette[: len(colours)] = colours
  return palette
