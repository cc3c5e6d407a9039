"""One image or mask file to an array and back: what Pillow and tifffile read.

A file means what a person sees on opening it: palettes, inverted greys and the
EXIF orientation of a camera are applied, transparency is dropped, of an
animation the first frame counts. Samples keep their depth: Pillow alone would
cut 16-bit colour to 8 bits.
"""

import io
import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from medseg_jax.runtime.errors import InputError, shorten
from medseg_jax.runtime.files import write_atomically

# By name, since Pillow's own list has PDF, video and other surprises.
IMAGE_SUFFIXES = (
  '.bmp', '.gif', '.j2k', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm',
  '.png', '.pnm', '.ppm', '.tga', '.tif', '.tiff', '.webp',
)  # fmt: skip
_CONVERSIONS = {
  'CMYK': 'RGB', 'YCbCr': 'RGB', 'LAB': 'RGB', 'HSV': 'RGB',
  'La': 'LA', 'RGBa': 'RGBA',
}  # fmt: skip
# TIFF photometric interpretations.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_PLAIN = (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
_ORIENTATION_TAG = 0x0112
# JPEG keeps grey grey up to the rounding of its colour transform.
_JPEG_COLOUR_TOLERANCE = 16


class _Pixels(NamedTuple):
  """Samples as stored: grey or palette index `[H, W]`, or RGB `[H, W, 3]`."""

  samples: np.ndarray
  alpha: np.ndarray | None
  palette: np.ndarray | None
  lossy: bool


def list_images(folder: str | os.PathLike) -> list[pathlib.Path]:
  """Returns the image files directly in `folder`, sorted by name.

  Hidden files and files that are no images (by suffix) are left out.

  Raises:
    InputError: no such folder, no image in it, or two images with one stem.
  """
  folder = pathlib.Path(folder)
  entries = list_folder(folder)
  images = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES]
  images = [path for path in images if path.is_file()]
  if not images:
    raise InputError(
      f'{folder}: no image files; found {name_some(p.name for p in entries)}; '
      f'allowed are {" ".join(IMAGE_SUFFIXES)}'
    )
  for before, path in itertools.pairwise(sorted(images, key=lambda p: p.stem)):
    if before.stem == path.stem:
      raise InputError(
        f'{folder}: {before.name} and {path.name} have the same stem; allowed '
        'is one file for each stem'
      )
  return images


def list_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what is in `folder`, sorted by name, without hidden files.

  Raises:
    InputError: no such folder, or not readable; says what is there instead.
  """
  if not os.path.isdir(folder):  # False for names that no file can have, too
    parent = folder.absolute()
    while not os.path.isdir(parent):
      parent = parent.parent
    there = sorted(p.name for p in parent.iterdir() if p.name[0] != '.')
    raise InputError(
      f'{shorten(str(folder), 200)}: no such folder; the nearest that exists '
      f'is {parent}, which holds {name_some(there)}'
    )
  try:
    entries = [p for p in folder.iterdir() if not p.name.startswith('.')]
  except OSError as error:
    raise InputError(
      f'{folder}: cannot be listed ({error.strerror}); it must be readable'
    ) from error
  return sorted(entries, key=lambda path: path.name)


def name_some(names, limit: int = 5) -> str:
  """Returns the first few names, and how many there are where that is more."""
  names = [' '.join(str(name).split()) for name in names]
  text = ', '.join(shorten(name, 60) for name in names[:limit]) or 'nothing'
  return text if len(names) <= limit else f'{text}, ... ({len(names)} in all)'


def read_image(path: str | os.PathLike) -> np.ndarray:
  """Returns the image as `[H, W, C]`, C = 1 for grey and 3 for RGB.

  The dtype is the file's: uint8, uint16 or float32 (also for other integers
  and floats). 1-bit images become 0 and 255; 2- and 4-bit greys fill 0 to 255.

  Raises:
    InputError: missing, damaged, a stack of pages, or neither grey nor RGB.
  """
  pixels = _decode(pathlib.Path(path))
  image = pixels.samples
  if pixels.palette is not None:
    image = pixels.palette[image]
    if _is_grey(pixels.palette):
      image = image[..., 0]
  if image.dtype not in (np.uint8, np.uint16):
    image = image.astype(np.float32)
  return image[..., None] if image.ndim == 2 else image


def image_channels(path: str | os.PathLike) -> int:
  """Returns the channels that `read_image` gives, from the header: 1 or 3."""
  path = pathlib.Path(path)
  try:
    if _is_tiff(path):
      with tifffile.TiffFile(path) as file:
        page = _only_page(path, file)
        if page.photometric != _PALETTE:
          return 3 if _is_colour_page(page) else 1
    with Image.open(path) as file:
      palette = _palette(file)
      if palette is not None:
        return 1 if _is_grey(palette) else 3
      if _raw_mode(file).startswith('LA;'):  # Pillow widens it to RGBA.
        return 1
      return 1 if Image.getmodebase(file.mode) == 'L' else 3
  except InputError:
    raise
  except Exception as error:
    raise _unreadable(path, error) from error


def read_mask(path: str | os.PathLike) -> np.ndarray:
  """Returns the values of a mask file, `[H, W]` integers.

  The grey level that a person sees, 0 or 255 for 1-bit files, and the index
  where the file has a palette with colours. 16-bit masks keep their values.

  Raises:
    InputError: as `read_image`; also coloured without a palette, not whole
      numbers, or a mask that is in the transparency only.
  """
  return decode_mask(path)[0]


def decode_mask(path: str | os.PathLike) -> tuple[np.ndarray, bool]:
  """Returns what `read_mask` does, and whether the file is JPEG-compressed."""
  path = pathlib.Path(path)
  pixels = _decode(path)
  values = pixels.samples
  if pixels.palette is not None and _is_grey(pixels.palette):
    values = pixels.palette[values, 0]
  if values.ndim == 3:
    values = _grey_of_rgb(path, values, pixels.lossy)
  if pixels.alpha is not None and np.ptp(values) == 0 < np.ptp(pixels.alpha):
    raise InputError(
      f'{path}: every pixel has the value {values.flat[0]} and only the '
      'transparency varies; allowed are masks whose grey level is the label'
    )
  whole = np.isfinite(values) & (values == np.rint(values))
  if values.dtype.kind == 'f' and not whole.all():
    raise InputError(
      f'{path}: the mask holds values that are not whole numbers, from '
      f'{values.min():g} to {values.max():g}; allowed are whole numbers'
    )
  dtype = np.int64 if values.dtype.itemsize > 2 else np.int32
  return values.astype(dtype), pixels.lossy


def write_mask(
  path: str | os.PathLike, label: np.ndarray, label_values: tuple[int, ...]
) -> None:
  """Writes `label` as a grey PNG that `read_mask` reads as `label_values`.

  8-bit, or 16-bit where a value is above 255. The file appears complete or
  not at all.

  Args:
    path: file to write or replace, `.png`.
    label: `[H, W]` class indices.
    label_values: value of each class on disk, 0 to 65535.
  """
  path = pathlib.Path(path)
  if path.suffix.lower() != '.png' or np.ndim(label) != 2:
    shape = np.shape(label)
    raise ValueError(f'need .png and a label [H, W], got {path.name}, {shape}')
  if min(label_values) < 0 or max(label_values) > 65535:
    raise ValueError(f'PNG holds values 0 to 65535, got {label_values}')
  low, high = np.min(label), np.max(label)
  if low < 0 or high >= len(label_values):
    last = len(label_values) - 1
    raise ValueError(f'label must be 0 to {last}, got {low} to {high}')
  dtype = np.uint16 if max(label_values) > 255 else np.uint8
  values = np.asarray(label_values, dtype)[np.asarray(label)]
  png = io.BytesIO()
  Image.fromarray(values).save(png, format='PNG')
  write_atomically(path, png.getvalue())


def _decode(path: pathlib.Path) -> _Pixels:
  try:
    decode = _decode_tiff if _is_tiff(path) else _decode_with_pillow
    return decode(path)
  except InputError:
    raise
  except Exception as error:  # Pillow's plugins raise whatever they meet.
    raise _unreadable(path, error) from error


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
  if isinstance(error, FileNotFoundError):
    return InputError(f'{path}: no such file; an image file is needed')
  if isinstance(error, UnidentifiedImageError):
    error = 'unknown format or damaged header'
  reason = ' '.join(str(error).split()) or type(error).__name__
  return InputError(
    f'{path}: cannot be read ({reason}); allowed are complete image files'
  )


def _is_tiff(path: pathlib.Path) -> bool:
  with open(path, 'rb') as file:
    return file.read(4) in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')


def _decode_tiff(path: pathlib.Path) -> _Pixels:
  # Pillow knows the compressions and colour spaces, tifffile the sample types.
  with tifffile.TiffFile(path) as file:
    page = _only_page(path, file)
    deep = page.bitspersample > 8 or page.sampleformat != 1
    if not deep or page.photometric not in _PLAIN:
      return _decode_with_pillow(path)
    try:
      samples = page.asarray()
    except Exception:  # A compression that tifffile needs imagecodecs for.
      return _decode_with_pillow(path)
    if page.samplesperpixel > 1 and page.planarconfig == 2:
      samples = np.moveaxis(samples, 0, -1)
    if page.photometric == _WHITE_IS_ZERO and samples.dtype.kind == 'u':
      samples = np.iinfo(samples.dtype).max - samples
    tag = page.tags.get(_ORIENTATION_TAG)
    return _pixels(samples, orientation=int(tag.value) if tag else 1)


def _only_page(path: pathlib.Path, file: tifffile.TiffFile):
  # Bits 1 and 4 mark previews and transparency masks of another page.
  pages = [page for page in file.pages if not page.subfiletype & 0b101]
  if not pages:
    raise ValueError('no page with an image')
  if len(pages) > 1:
    raise InputError(
      f'{path}: a TIFF stack of {len(pages)} pages; allowed is one page (one '
      'file for each section)'
    )
  page = pages[0]
  ends = zip(page.dataoffsets, page.databytecounts, strict=True)
  if max((sum(end) for end in ends), default=0) > path.stat().st_size:
    raise InputError(f'{path}: truncated; allowed are complete image files')
  extra = page.samplesperpixel - (3 if _is_colour_page(page) else 1)
  alpha = page.photometric == _RGB or set(page.extrasamples) <= {1, 2}
  if page.photometric in _PLAIN and extra > (1 if alpha else 0):
    raise InputError(
      f'{path}: {page.samplesperpixel} channels; allowed are 1 and 3 (RGB)'
    )
  return page


def _is_colour_page(page) -> bool:
  if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
    return page.samplesperpixel == 3
  return page.photometric != _PALETTE


def _decode_with_pillow(path: pathlib.Path) -> _Pixels:
  # From a stream: by name, Pillow maps the file and then scrambles plain TIFF
  # files with the orientations 5 to 8.
  with open(path, 'rb') as stream, Image.open(stream) as file:
    palette = _palette(file)
    samples = _deep_samples(path, file)
    if samples is None:
      if (file.format, file.mode) == ('BMP', '1') and path.read_bytes()[28] > 1:
        _set_raw_mode(file, '1;8')  # Pillow takes 8-bit pixels for 1-bit ones.
      file.load()
      mode = _CONVERSIONS.get(file.mode)
      samples = np.asarray(file.convert(mode) if mode else file)
    if file.mode == 'I' and file.format in ('PNG', 'PPM'):
      samples = samples.astype(np.uint16)  # 16-bit greys, widened by Pillow.
    # Pillow turns TIFF files by itself, and then removes the tag.
    orientation = file.getexif().get(_ORIENTATION_TAG, 1)
    lossy = file.format in ('JPEG', 'MPO') or (
      'jpeg' in str(file.info.get('compression'))
    )
  return _pixels(samples, orientation, palette=palette, lossy=lossy)


def _deep_samples(path: pathlib.Path, file) -> np.ndarray | None:
  """Returns uint16 samples of 16-bit colour, or None for other files.

  Pillow unpacks them to their high bytes. A second pass with the unpacker of
  the other byte order yields the low bytes.
  """
  raw_mode = _raw_mode(file)
  if not raw_mode.startswith(('RGB;16', 'RGBA;16', 'RGBX;16', 'LA;16')):
    return None
  if raw_mode == 'LA;16B':  # Four bytes a pixel, which RGBA takes as they are.
    bytes_ = _unpack(path, 'RGBA').astype(np.uint16)
    return bytes_[..., ::2] << 8 | bytes_[..., 1::2]
  other = raw_mode[:-1] + ('L' if raw_mode.endswith('B') else 'B')
  high = _unpack(path, raw_mode).astype(np.uint16)
  return high << 8 | _unpack(path, other)


def _raw_mode(file) -> str:
  if not file.tile:
    return ''
  args = file.tile[0].args
  return args if isinstance(args, str) else str((args or [''])[0])


def _unpack(path: pathlib.Path, raw_mode: str) -> np.ndarray:
  with open(path, 'rb') as stream, Image.open(stream) as file:
    _set_raw_mode(file, raw_mode)
    file.load()
    return np.asarray(file)


def _set_raw_mode(file, raw_mode: str) -> None:
  args = file.tile[0].args
  args = raw_mode if isinstance(args, str) else (raw_mode, *args[1:])
  file.tile = [tile._replace(args=args) for tile in file.tile]


def _palette(file) -> np.ndarray | None:
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


def _is_grey(colours: np.ndarray) -> bool:
  return bool((colours == colours[:, :1]).all())


def _grey_of_rgb(path: pathlib.Path, rgb: np.ndarray, lossy: bool):
  low, high = rgb.min(axis=-1), rgb.max(axis=-1)
  coloured = high - low > (_JPEG_COLOUR_TOLERANCE if lossy else 0)
  if coloured.any():
    example = tuple(rgb[coloured][0].tolist())
    raise InputError(
      f'{path}: a coloured mask without palette, pixel value {example}; '
      'allowed are grey levels (also as RGB) and palette files'
    )
  return rgb[..., 1]


def _pixels(samples, orientation, palette=None, lossy=False) -> _Pixels:
  if samples.dtype == bool:
    samples = samples.astype(np.uint8) * np.uint8(255)
  samples = samples.astype(samples.dtype.newbyteorder('='))
  samples = _orient(samples, orientation)
  alpha = None
  if samples.ndim == 3 and samples.shape[-1] in (2, 4):
    samples, alpha = samples[..., :-1], samples[..., -1]
  if samples.ndim == 3 and samples.shape[-1] == 1:
    samples = samples[..., 0]
  return _Pixels(np.ascontiguousarray(samples), alpha, palette, lossy)


def _orient(samples: np.ndarray, orientation: int) -> np.ndarray:
  """Returns the samples as seen, by the EXIF orientation 1 to 8."""
  if orientation in (5, 6, 7, 8):
    samples = samples.swapaxes(0, 1)
  if orientation in (3, 4, 7, 8):
    samples = samples[::-1]
  if orientation in (2, 3, 6, 7):
    samples = samples[:, ::-1]
  return samples
