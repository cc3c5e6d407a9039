"""One image or mask file to an array and back: what Pillow and tifffile read.

A file means what a person sees on opening it: palettes, inverted greys and the
EXIF orientation of a camera are applied, transparency is dropped, of an
animation the first frame counts. Samples keep their depth: Pillow alone would
cut 16-bit colour to 8 bits. Size is limited by the memory that there is.
"""

from medseg_jax.data.formats.images.listing import (
  IMAGE_SUFFIXES,
  Listing,
  find_images,
  find_strays,
  list_folder,
  list_images,
  name_some,
  one_line,
)
from medseg_jax.data.formats.images.masks import (
  decode_mask,
  read_mask,
  write_mask,
)
from medseg_jax.data.formats.images.reading import read_image

__all__ = [
  'IMAGE_SUFFIXES',
  'Listing',
  'decode_mask',
  'find_images',
  'list_folder',
  'list_images',
  'find_strays',
  'name_some',
  'read_image',
  'read_mask',
  'one_line',
  'write_mask',
]
