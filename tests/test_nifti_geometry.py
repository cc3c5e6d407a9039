"""Headers at odds with themselves or with their label's: sane, and told."""

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_all_in, assert_one_line

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.nifti_align import align, gap_between
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.data.sources.volume_geometry import find_oddities
from medseg_jax.runtime.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 5, (6, 7, 4)).astype(np.int16)


def save(path, array=ARRAY, *, sform=None, qform=None, pixdim=None, **fields):
  """Writes a file by what its header shall say; None is the code 0."""
  image = nib.Nifti1Image(array, np.eye(4))
  header = image.header
  image.set_qform(qform, 0 if qform is None else 1)
  image.set_sform(sform, 0 if sform is None else 1)
  if pixdim is not None:
    header['pixdim'][1:4] = pixdim
  elif qform is None:
    sizes = np.linalg.norm(np.asarray(sform)[:3, :3], axis=0)
    header['pixdim'][1:4] = sizes
  header['vox_offset'] = 352
  for name, value in fields.items():
    header[name] = value
  path.write_bytes(
    header.binaryblock + b'\0\0\0\0' + image.dataobj.tobytes('F')
  )
  return path


def affine_of(spacing, origin=(0, 0, 0), signs=(1, 1, 1)):
  affine = np.diag([*np.multiply(spacing, signs), 1.0])
  affine[:3, 3] = origin
  return affine


def aligned(label_path, image_path, **options):
  label = nifti.read_label(label_path)
  image = nifti.read_image(image_path)
  names = dict(what='label', where='image', **options)
  array = align(label.array, label.grid, image.grid, **names)
  oddity = gap_between(label.grid, image.grid, **names)
  return array, image.array[..., 0], oddity


def test_sizes_are_those_of_pixdim_where_the_sform_says_others(tmp_path):
  sizes = (1.316, 1.316, 10)
  sform = affine_of((1, 1, 1), (-5, 6, 7), (-1, 1, 1))
  path = save(tmp_path / 'a.nii', sform=sform, pixdim=sizes)
  volume = nifti.read_image(path)
  np.testing.assert_allclose(volume.spacing, sizes[::-1], rtol=1e-6)
  assert nib.aff2axcodes(volume.affine) == ('S', 'P', 'L')
  (line,) = volume.grid.oddities
  assert_all_in(
    line, path, '1x1x1 mm in the sform', '1.316x1.316x10 mm in pixdim'
  )
  # A mask keeps the header as it is, and lies on the image's grid.
  nifti.write_label(tmp_path / 'mask.nii', volume.array[..., 0], path)
  before, after = (nib.load(p).header for p in (path, tmp_path / 'mask.nii'))
  for name in ('srow_x', 'srow_y', 'srow_z', 'sform_code', 'qform_code'):
    np.testing.assert_array_equal(before[name], after[name])
  np.testing.assert_array_equal(before['pixdim'][:4], after['pixdim'][:4])
  label, image, oddity = aligned(tmp_path / 'mask.nii', path)
  np.testing.assert_array_equal(label, image)
  assert oddity == ''


@pytest.mark.parametrize('which', ['sform as stored', 'as it should be'])
def test_labels_by_either_reading_of_their_image_fit(tmp_path, which):
  sizes = (1.316, 1.316, 10)
  stored = affine_of((1, 1, 1), (-5, 6, 7), (-1, -1, 1))
  meant = affine_of(sizes, (-5, 6, 7), (-1, -1, 1))
  image = save(tmp_path / 'a.nii', sform=stored, pixdim=sizes)
  # nib.Nifti1Image(mask, image.affine) has the one, others the other.
  sform = stored if which == 'sform as stored' else meant
  label = save(tmp_path / 'b.nii', sform=sform)
  array, expected, oddity = aligned(label, image)
  np.testing.assert_array_equal(array, expected)
  assert oddity == ''
  other = save(tmp_path / 'c.nii', sform=affine_of((1, 1, 5)))
  with pytest.raises(InputError) as error:
    aligned(other, image)
  assert_one_line(error, 'label: not on the grid of image')


def test_sizes_that_differ_by_rounding_are_the_same(tmp_path):
  sform = affine_of((0.48828125, 0.48828125, 3))
  path = save(tmp_path / 'a.nii', sform=sform, pixdim=(0.4883, 0.4883, 3))
  volume = nifti.read_image(path)
  assert volume.grid.oddities == ()
  assert volume.spacing == (3, 0.48828125, 0.48828125)


def test_sform_and_qform_that_differ_are_told(tmp_path):
  straight = affine_of((1, 1, 2))
  flipped = affine_of((1, 1, 2), (9, 0, 0), (-1, 1, 1))
  moved = affine_of((1, 1, 2), (0, 30, 0))
  for qform, parts in (
    (flipped, ['180 degrees', '9 mm']),
    (moved, ['0 degrees', '30 mm']),
  ):
    path = save(tmp_path / 'a.nii', sform=straight, qform=qform)
    volume = nifti.read_image(path)
    (line,) = volume.grid.oddities
    assert_all_in(
      line, path, 'sform and qform differ', 'sform is taken', *parts
    )
    np.testing.assert_array_equal(
      nifti.read_image(save(tmp_path / 's.nii', sform=straight)).affine,
      volume.affine,
    )
    # A program that takes the qform writes its label by that.
    label = save(tmp_path / 'label.nii', sform=qform, qform=qform)
    array, expected, _ = aligned(label, path)
    np.testing.assert_array_equal(array, expected)
  path = save(tmp_path / 'a.nii', sform=straight, qform=straight)
  assert nifti.read_image(path).grid.oddities == ()


def test_what_is_no_geometry_gives_way_to_what_is(tmp_path):
  good = affine_of((1, 2, 3), (1, 2, 3))
  path = save(tmp_path / 'a.nii', sform=np.zeros((4, 4)), qform=good)
  volume = nifti.read_image(path)
  assert volume.spacing == (3, 2, 1)
  (line,) = volume.grid.oddities
  assert_all_in(line, path, 'its sform [0 0 0 0;', 'the qform is taken')
  path = save(tmp_path / 'a.nii', sform=good, qform=good, quatern_b=3)
  (line,) = nifti.read_image(path).grid.oddities
  assert_all_in(line, path, 'qform is no rotation', 'the sform is taken')


@pytest.mark.parametrize(
  ('pixdim', 'text', 'spacing'),
  [
    ((0, 0, 0), '0x0x0', (3, 2, 1)),
    ((1, np.nan, 3), '1xnanx3', (3, 2, 1)),
    ((1, np.inf, 3), '1xinfx3', (3, 2, 1)),
    ((1, -2, 3), '1x-2x3', (3, 2, 1)),
    ((1, -4, 3), '1x-4x3', (3, 4, 1)),
  ],
)
def test_sizes_in_pixdim_that_are_none(tmp_path, pixdim, text, spacing):
  sform = affine_of((1, 2, 3))
  path = save(tmp_path / 'a.nii', sform=sform, pixdim=pixdim)
  volume = nifti.read_image(path)
  assert volume.spacing == spacing
  assert_all_in(
    volume.grid.oddities[0], path, f'spacing {text} in pixdim', 'taken'
  )


def test_units_other_than_mm_are_told(tmp_path):
  sform = affine_of((2, 3, 4))
  for code, unit, factor in ((1, 'metre', 1000), (3, 'micrometre', 1e-3)):
    path = save(tmp_path / 'a.nii', sform=sform, xyzt_units=code | 8)
    volume = nifti.read_image(path)
    np.testing.assert_allclose(volume.spacing, np.array([4, 3, 2]) * factor)
    (line,) = volume.grid.oddities
    size = f'{2 * factor:g}x{3 * factor:g}x{4 * factor:g} mm'
    assert_all_in(line, path, unit, size)
  for code in (0, 2):
    path = save(tmp_path / 'a.nii', sform=sform, xyzt_units=code)
    assert nifti.read_image(path).grid.oddities == ()
  path = save(tmp_path / 'a.nii', sform=sform, xyzt_units=5)
  (line,) = nifti.read_image(path).grid.oddities
  assert_all_in(line, path, 'no unit has the code 5', 'mm is taken')


def test_axes_off_right_angles_are_told(tmp_path):
  sform = affine_of((1, 1, 2))
  sform[0, 2] = 0.4  # a gantry that is tilted
  volume = nifti.read_image(save(tmp_path / 'a.nii', sform=sform))
  (line,) = volume.grid.oddities
  assert_all_in(line, 'a.nii', '11.3 degrees off right angles')


@pytest.mark.parametrize('signs', [(-1, -1, 1), (1, 1, 1), (-1, 1, -1)])
def test_a_file_without_a_position_beside_one_that_has_it(tmp_path, signs):
  """As SimpleITK writes a label with the information of such an image."""
  without = save(tmp_path / 'a.nii', sform=None, pixdim=(1, 1.5, 2))
  placed = save(
    tmp_path / 'b.nii', sform=affine_of((1, 1.5, 2), (3, 4, 5), signs)
  )
  stored = np.asarray(nib.load(without).dataobj)
  for label, image, blamed in (
    (placed, without, 'header of the latter'),
    (without, placed, 'header of the former'),
  ):
    array, expected, oddity = aligned(label, image)
    np.testing.assert_array_equal(array, expected)
    assert_all_in(oddity, 'label: shape and spacing are those of image', blamed)
  # The mask of an image without a position has none, either.
  array, _, _ = aligned(placed, without)
  nifti.write_label(tmp_path / 'mask.nii', array, without)
  mask = nib.load(tmp_path / 'mask.nii')
  np.testing.assert_array_equal(np.asarray(mask.dataobj), stored)
  assert mask.header['sform_code'] == mask.header['qform_code'] == 0
  # Where neither has a position, nothing is at odds.
  assert aligned(tmp_path / 'mask.nii', without)[2] == ''
  (line,) = find_oddities(VolumeFiles('plain', (without,)))
  assert_all_in(line, without, 'no position', 'Left, Anterior, Superior')


def test_shape_and_spacing_are_compared_without_a_position(tmp_path):
  image = save(tmp_path / 'a.nii', sform=None, pixdim=(1, 1, 2))
  label = save(tmp_path / 'b.nii', sform=affine_of((1, 1, 2.5)))
  with pytest.raises(InputError) as error:
    aligned(label, image)
  assert_one_line(
    error, 'label', '1.5 mm, 0.75 voxels', 'spacing 1x1x2.5 mm against 1x1x2 mm'
  )
  label = save(tmp_path / 'b.nii', ARRAY[1:], sform=affine_of((1, 1, 2)))
  with pytest.raises(InputError) as error:
    aligned(label, image)
  assert_one_line(error, 'label', 'shape 5x7x4 against 6x7x4')
