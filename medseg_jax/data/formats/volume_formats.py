"""The formats of volumes: one is read and written by the suffix of its name.

Each gives the bytes of its voxels and the form that NIfTI has, a `File`, so
nobody else has to know which it is.
"""

import contextlib
import gzip
import pathlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import nibabel as nib
import numpy as np

from medseg_jax.data.formats import metaimage, nifti_header, nrrd
from medseg_jax.data.formats.nifti_geometry import Grid
from medseg_jax.data.formats.nifti_header import File
from medseg_jax.data.formats.nifti_stream import Deflating, open_file
from medseg_jax.runtime.errors import InputError

# What is read. Of .nhdr and .mhd the voxels lie in a file beside it.
SUFFIXES = (*nifti_header.SUFFIXES, *nrrd.SUFFIXES, *metaimage.SUFFIXES)
WRITTEN = ('.nii.gz', '.nii', '.nrrd', '.mha')
_LEVEL = 4  # of compression; more takes long and saves little


@contextlib.contextmanager
def open_volume(path: pathlib.Path) -> Iterator[tuple[BinaryIO, File]]:
  """Yields the bytes that hold a file's voxels, and what its header says.

  Raises:
    InputError: as `nifti.read_image`, as far as the header tells; what fails
      inside is one, too.
  """
  if other := _other_format(path):
    with other.open_voxels(path) as opened:
      yield opened
    return
  with open_file(path) as stream:
    yield stream, nifti_header.parse(path, stream)


def mask_suffix(image: pathlib.Path) -> str:
  """Returns the suffix that a mask of this image has: that of its format."""
  other = _other_format(image)
  return other.SUFFIXES[0] if other else WRITTEN[0]


def data_files(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """Returns the files beside some volumes that hold their voxels.

  What cannot be read, or may not be, names none here: reading the volume tells
  it.
  """
  found = []
  for path in paths:
    if other := _other_format(path):
      with contextlib.suppress(InputError):
        if (place := other.find_voxels(path)) != path:
          found.append(place)
  return found


@contextlib.contextmanager
def begin_file(
  stream: BinaryIO,
  name: str,
  grid: Grid,
  shape: tuple[int, ...],
  dtype: np.dtype,
  *,
  like: nib.Nifti1Header | None,
) -> Iterator[BinaryIO | Deflating]:
  """Writes a header; yields what takes the voxels, in the order of the file.

  Args:
    stream: of the new file.
    name: of the file, whose suffix is one of `WRITTEN`.
    grid: where the voxels lie.
    shape: in the order of the file; three axes, of NIfTI also a fourth.
    dtype: of the voxels, little-endian.
    like: of an image in NIfTI its header, to be repeated bit for bit.
  """
  name = name.lower()
  other = _other_format(pathlib.Path(name))
  if other:
    if len(shape) > 3:
      raise ValueError(f'need three axes for {name}, got {shape}')
    stream.write(other.new_header(grid, dtype))
  if other is metaimage:
    with contextlib.closing(Deflating(stream, _LEVEL)) as packed:
      yield packed
    stream.seek(0)
    stream.write(metaimage.new_header(grid, dtype, packed.size))
    return
  with contextlib.ExitStack() as stack:
    if not name.endswith('.nii'):  # no name and time: same bytes
      packed = gzip.GzipFile('', 'wb', _LEVEL, fileobj=stream, mtime=0)
      stream = stack.enter_context(packed)
    if other is None:
      like = nifti_header.header_of(grid) if like is None else like
      header = nifti_header.new_header(like, shape, dtype)
      stream.write(header.binaryblock + b'\0\0\0\0')  # no extensions
    yield stream


def _other_format(path: pathlib.Path):
  """Returns the module of a format that is not NIfTI, or None."""
  for module in (nrrd, metaimage):
    if path.name.lower().endswith(module.SUFFIXES):
      return module
  return None
