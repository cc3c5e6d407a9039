"""Files that are no good volumes, each with its line."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_one_line
from PIL import Image

from medseg_jax.data.formats import nifti
from medseg_jax.runtime.errors import InputError

NOISE = np.random.default_rng(0).integers(0, 200, (16, 17, 18), np.uint8)
# Where the fields of a NIfTI-1 header begin.
DIM, DATATYPE, PIXDIM, OFFSET, SCALE, QFORM, SFORM, QUATERN, SROW, MAGIC = (
  40, 70, 76, 108, 112, 252, 254, 256, 280, 344,
)  # fmt: skip


def save(path, array=NOISE, affine=None):
  affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
  nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)
  return path


def patch(path, *changes):
  """Overwrites bytes of a `.nii` file: pairs of an offset and an array."""
  data = bytearray(path.read_bytes())
  for offset, value in changes:
    value = value if isinstance(value, bytes) else np.asarray(value).tobytes()
    data[offset : offset + len(value)] = value
  path.write_bytes(data)
  return path


def assert_refused(path, *parts):
  """Images and labels alike, with the same line."""
  lines = set()
  for read in (nifti.read_image, nifti.read_label):
    with pytest.raises(InputError) as error:
      read(path)
    assert_one_line(error, path, 'allowed', *parts)
    lines.add(str(error.value))
  assert len(lines) == 1


def assert_header_refused(path, *parts):
  assert_refused(path, *parts)
  with pytest.raises(InputError) as error:
    nifti.read_header(path)
  assert_one_line(error, path, *parts)


def test_truncated_gzip(tmp_path):
  whole = save(tmp_path / 'whole.nii.gz').read_bytes()
  for keep in (4, len(whole) // 2, len(whole) - 3):
    path = tmp_path / f'{keep}.nii.gz'
    path.write_bytes(whole[:keep])
    assert_refused(path, 'truncated')


def test_truncated_plain_file(tmp_path):
  whole = save(tmp_path / 'whole.nii').read_bytes()
  for keep in (100, 347, 400, len(whole) - 1):
    path = tmp_path / f'{keep}.nii'
    path.write_bytes(whole[:keep])
    assert_refused(path, 'truncated', keep)
  # Truncated before it was packed.
  packed = tmp_path / 'packed.nii.gz'
  packed.write_bytes(gzip.compress(whole[:1000]))
  assert_refused(packed, 'truncated', f'1000 bytes of {len(whole)}')


def test_damaged_gzip(tmp_path):
  whole = bytearray(save(tmp_path / 'whole.nii.gz').read_bytes())
  damaged = bytearray(whole)
  damaged[len(whole) // 2 : len(whole) // 2 + 40] = b'\xff' * 40
  (tmp_path / 'middle.nii.gz').write_bytes(damaged)
  assert_refused(tmp_path / 'middle.nii.gz', 'cannot be read')
  whole[-6] ^= 1  # the checksum
  (tmp_path / 'end.nii.gz').write_bytes(whole)
  assert_refused(tmp_path / 'end.nii.gz', 'cannot be read', 'CRC')


def test_a_header_that_claims_a_terabyte(tmp_path):
  path = save(tmp_path / 'a.nii')
  patch(path, (DIM, np.array([3, 30000, 30000, 3000], '<i2')))
  assert_refused(path, 'truncated', 30000 * 30000 * 3000 + 352)
  packed = tmp_path / 'a.nii.gz'
  packed.write_bytes(gzip.compress(path.read_bytes()))
  assert_refused(packed, 'truncated')


def test_git_lfs_pointer(tmp_path):
  path = tmp_path / 'a.nii.gz'
  path.write_text(
    'version https://git-lfs.github.com/spec/v1\n'
    f'oid sha256:{"4d7a2146" * 8}\n'
    'size 12345\n'
  )
  for read in (nifti.read_image, nifti.read_label, nifti.read_header):
    with pytest.raises(InputError) as error:
      read(path)
    assert_one_line(error, path, 'Git LFS pointer', 'git lfs pull')


def test_no_file_and_empty_file(tmp_path):
  with pytest.raises(InputError) as error:
    nifti.read_image(tmp_path / 'gone.nii.gz')
  assert_one_line(error, tmp_path / 'gone.nii.gz', 'no such file')
  (tmp_path / 'empty.nii.gz').touch()
  with pytest.raises(InputError) as error:
    nifti.read_image(tmp_path / 'empty.nii.gz')
  assert_one_line(error, tmp_path / 'empty.nii.gz', 'empty file')
  (tmp_path / 'folder.nii').mkdir()
  with pytest.raises(InputError) as error:
    nifti.read_image(tmp_path / 'folder.nii')
  assert_one_line(error, tmp_path / 'folder.nii', 'directory')


def test_other_formats(tmp_path):
  Image.fromarray(NOISE[0]).save(tmp_path / 'a.png')
  path = (tmp_path / 'a.png').rename(tmp_path / 'a.nii.gz')
  assert_header_refused(path, 'no NIfTI file', 'PNG')
  for name, data in (
    ('text.nii', b'patient;age\n' * 200),
    ('short.nii', b'hello'),
    ('zeros.nii', bytes(2000)),
    ('packed.nii.gz', gzip.compress(b'hello, this is text ' * 100)),
  ):
    (tmp_path / name).write_bytes(data)
    assert_header_refused(tmp_path / name, 'no NIfTI file')


def test_pairs_of_files(tmp_path):
  nib.save(nib.Nifti1Pair(NOISE, np.eye(4)), tmp_path / 'a.hdr')
  for name in ('a.hdr', 'a.img'):
    assert_header_refused(tmp_path / name, 'pair', '.hdr and .img')
  (tmp_path / 'a.hdr').rename(tmp_path / 'a.nii')
  assert_header_refused(tmp_path / 'a.nii', 'pair')


def test_damaged_headers(tmp_path):
  for offset in (np.nan, np.inf, -np.inf, 1e30, 2**28):
    path = patch(save(tmp_path / 'a.nii'), (OFFSET, np.float32(offset)))
    assert_header_refused(path, 'damaged header', f'byte {offset:g}')
  path = patch(save(tmp_path / 'a.nii'), (DIM + 2, np.int16(-4)))
  assert_header_refused(path, 'shape -4x17x18')
  path = patch(save(tmp_path / 'a.nii'), (SCALE, np.float32([2, np.nan])))
  assert_header_refused(path, 'scl_inter nan', 'scl_slope 2')


def test_colours_and_complex_numbers(tmp_path):
  rgb = np.zeros((4, 5, 6), [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  assert_header_refused(save(tmp_path / 'rgb.nii.gz', rgb), 'RGB', 'code 128')
  path = save(tmp_path / 'complex.nii.gz', np.zeros((4, 5, 6), np.complex64))
  assert_header_refused(path, 'complex64')
  path = patch(save(tmp_path / 'a.nii'), (DATATYPE, np.int16(77)))
  assert_header_refused(path, 'unknown', 'code 77')
  path = patch(save(tmp_path / 'a.nii'), (DATATYPE, np.int16(1)))
  assert_header_refused(path, 'binary')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e38, -2e30])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_absurd_intensities(tmp_path, value, dtype):
  array = NOISE.astype(dtype)
  array[3, 4, 5] = array[9, 1, 2] = value
  path = save(tmp_path / 'a.nii.gz', array)
  with pytest.raises(InputError) as error:
    nifti.read_image(path)
  assert_one_line(error, path, '2 voxels', f'{value:g}', 'allowed are finite')
  with pytest.raises(InputError) as error:
    nifti.read_label(path)
  assert_one_line(error, path, f'{value:g}', 'whole numbers')


def test_values_that_only_float64_holds(tmp_path):
  array = NOISE.astype(np.float64)
  array[0, 0, 0] = 1e300
  path = save(tmp_path / 'a.nii', array)
  with pytest.raises(InputError) as error:
    nifti.read_image(path)
  assert_one_line(error, path, '1 voxel not finite', 'finite intensities')
  # The largest that is allowed stays, and so do scaled integers below it.
  array[0, 0, 0] = 1e30
  assert nifti.read_image(save(path, array)).array.max() == np.float32(1e30)
  path = patch(save(path, NOISE), (SCALE, np.float32([1e36, 0])))
  with pytest.raises(InputError) as error:
    nifti.read_image(path)
  assert_one_line(error, path, f'{np.count_nonzero(NOISE)} voxels')


@pytest.mark.parametrize(
  ('shape', 'text'),
  [
    ((1, 8, 9), '1x8x9'),
    ((8, 9, 1), '8x9x1'),
    ((8, 1, 9), '8x1x9'),
    ((8, 9), '8x9'),
    ((8, 9, 1, 3), '8x9x1x3'),
  ],
)
def test_one_slice(tmp_path, shape, text):
  path = save(tmp_path / 'a.nii.gz', np.zeros(shape, np.uint8))
  assert_header_refused(
    path, 'a single slice', f'shape {text} ', 'data.source=folder'
  )


def test_too_many_axes(tmp_path):
  path = save(tmp_path / 'a.nii.gz', np.zeros((4, 5, 6, 2, 3), np.uint8))
  assert_header_refused(path, 'shape 4x5x6x2x3')


@pytest.mark.parametrize(
  ('zooms', 'text'),
  [
    ((0, 0, 0), '0x0x0'),
    ((1, 0, 1), '1x0x1'),
    ((np.nan, 1, 1), 'nanx1x1'),
    ((1, 1, np.inf), '1x1xinf'),
  ],
)
def test_no_spacing(tmp_path, zooms, text):
  path = save(tmp_path / 'a.nii')
  patch(path, (PIXDIM + 4, np.float32(zooms)), (SFORM, np.int16(0)))
  assert_header_refused(path, f'spacing {text} (pixdim)', 'above 0 mm')


def test_absurd_spacings_and_places(tmp_path):
  for size in (1e-12, 1e7, 1e30):
    path = save(tmp_path / 'a.nii', affine=np.diag([size, 1, 1, 1]))
    assert_header_refused(path, f'spacing {size:g}x1x1 mm', '1e-06 to 10000 mm')
  affine = np.eye(4)
  affine[2, 3] = 1e12
  path = save(tmp_path / 'a.nii', affine=affine)
  assert_header_refused(path, 'first voxel lies at 0x0x1e+12 mm')


def test_unusable_affines(tmp_path):
  rows = np.float32(np.diag([1, 2, 3, 1])[:3])
  for change in ({}, {(1, 1): 0}, {(0, 0): np.nan}, {(2, 3): np.inf}):
    broken = rows.copy() if change else rows * 0
    for place, value in change.items():
      broken[place] = value
    path = patch(save(tmp_path / 'a.nii'), (SROW, broken))
    assert_header_refused(path, 'no usable geometry', 'sform', '[')
  parallel = rows.copy()
  parallel[:, 1] = parallel[:, 0] * 2
  path = patch(save(tmp_path / 'a.nii'), (SROW, parallel))
  assert_header_refused(path, 'span a space')
  path = patch(
    save(tmp_path / 'a.nii'),
    (SFORM, np.int16(0)),
    (QFORM, np.int16(1)),
    (QUATERN, np.float32([3, 3, 3])),
  )
  assert_header_refused(path, 'qform')


def test_labels_of_four_axes_and_of_fractions(tmp_path):
  path = save(tmp_path / 'a.nii.gz', np.zeros((4, 5, 6, 2), np.uint8))
  with pytest.raises(InputError) as error:
    nifti.read_label(path)
  assert_one_line(error, path, 'label', '2 channels', '4x5x6x2', '3 axes')
  array = NOISE.astype(np.float32)
  array[2, 3, 4] = 1.5
  path = save(tmp_path / 'a.nii.gz', array)
  with pytest.raises(InputError) as error:
    nifti.read_label(path)
  assert_one_line(error, path, 'holds 1.5', 'whole numbers')
  path = save(tmp_path / 'a.nii.gz', np.full((4, 5, 6), 2**31, np.uint32))
  with pytest.raises(InputError) as error:
    nifti.read_label(path)
  assert_one_line(error, path, '2.14748e+09', '31 bits')


def test_channel_files_that_do_not_fit(tmp_path):
  first = save(tmp_path / 'a_0000.nii.gz')
  second = save(tmp_path / 'a_0001.nii.gz', np.stack([NOISE, NOISE], axis=-1))
  for paths in ([first, second], [second, first]):
    with pytest.raises(InputError) as error:
      nifti.read_channels(paths)
    assert_one_line(error, second, '2 channels', '2 files')
  second = save(tmp_path / 'a_0001.nii.gz', NOISE[1:])
  with pytest.raises(InputError) as error:
    nifti.read_channels([first, second])
  assert_one_line(error, first, second, '16x17x18', '15x17x18')


def test_writing_refuses_other_grids_and_keeps_what_is_there(tmp_path):
  like = save(tmp_path / 'like.nii.gz')
  label = np.zeros((18, 17, 16), np.uint8)
  out = tmp_path / 'out.nii.gz'
  nifti.write_label(out, label, like)
  before = out.read_bytes()
  for path, array in (
    (out, label[1:]),
    (out, label - 1.0),
    (out, label.astype(int) - 1),
    (out, label[..., None]),
    (tmp_path / 'out.mgz', label),
  ):
    with pytest.raises(ValueError, match='need a'):
      nifti.write_label(path, array, like)
  with pytest.raises(ValueError, match='need an array'):
    nifti.write_volume(out, label[0], like)
  with pytest.raises(InputError, match='no such file'):
    nifti.write_label(out, label, tmp_path / 'gone.nii')

  # One that fails in the middle of the file.
  objects = np.zeros((18, 17, 16, 1), object)
  objects[9, 9, 9, 0] = 'no number'
  with pytest.raises(ValueError, match='no number'):
    nifti.write_volume(out, objects, like)
  assert out.read_bytes() == before
  assert sorted(p.name for p in tmp_path.iterdir()) == ['like.nii.gz', out.name]


def test_a_constant_image_shows_nothing(tmp_path):
  flat = save(tmp_path / 'flat.nii.gz', np.full(NOISE.shape, 17, np.int16))
  with pytest.raises(InputError) as error:
    nifti.read_channels([flat])
  assert_one_line(error, flat, 'constant', '17', 'allowed')
  noise = save(tmp_path / 'noise.nii.gz')
  both = nifti.read_channels([flat, noise])  # one channel that is empty
  assert both.array.shape == (18, 17, 16, 2)
