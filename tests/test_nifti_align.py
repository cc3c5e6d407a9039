"""Bringing arrays of one space onto one grid, and refusing other spaces."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_all_in, assert_one_line
from scipy.spatial.transform import Rotation

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.nifti_align import align, gap_between
from medseg_jax.data.formats.nifti_geometry import (
  from_file_order,
  grid_of,
  to_file_order,
)
from medseg_jax.runtime.errors import InputError

TILT = Rotation.from_euler('xyz', (25, -14, 33), degrees=True).as_matrix()


def align_files(array, affine, to_shape, to_affine, **options):
  """Aligns arrays in the axes of their files; returns one, and the oddity."""
  grid = grid_of(np.asarray(affine, float), array.shape[:3])
  to = grid_of(np.asarray(to_affine, float), to_shape)
  inside = from_file_order(array, grid)
  options = dict(what='a', where='b', **options)
  aligned = align(inside, grid, to, **options)
  return to_file_order(aligned, to), gap_between(grid, to, **options)


def test_all_orders_align():
  array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
  affine = np.eye(4)
  affine[:3, :3] = TILT * (0.7, 1.5, 4.0)
  affine[:3, 3] = (-31.5, 12.25, 100)
  image = nib.Nifti1Image(array.astype(np.int16), affine)
  orders = itertools.permutations(range(3))
  signs = itertools.product((1, -1), repeat=3)
  for orientation in itertools.product(orders, signs):
    orientation = np.transpose(orientation)
    other = image.as_reoriented(orientation)
    found = np.asarray(other.dataobj)
    aligned, oddity = align_files(found, other.affine, array.shape, affine)
    np.testing.assert_array_equal(aligned, array)
    assert oddity == ''
    aligned, _ = align_files(
      found[..., None], other.affine, array.shape, affine
    )
    np.testing.assert_array_equal(aligned[..., 0], array)


@pytest.mark.parametrize(
  ('shift', 'told', 'refused'),
  [
    (0.9e-3, False, False),
    (1.1e-3, True, False),
    (0.09, True, False),
    (0.11, True, True),
    (0.5, True, True),
  ],
)
def test_a_tenth_of_a_voxel_is_told_and_more_refused(shift, told, refused):
  array = np.zeros((50, 4, 5), np.uint8)
  affine = np.diag([0.5, 2.0, 3.0, 1.0])
  moved = affine.copy()
  moved[0, 3] = shift * 0.5
  # A larger spacing, with that error at the last voxel.
  grown = affine.copy()
  grown[0, 0] += shift * 0.5 / 49
  for other in (moved, grown):
    if refused:
      with pytest.raises(InputError) as error:
        align_files(array, other, array.shape, affine)
      assert_one_line(
        error, 'a: not on the grid of b', f'{shift:g} voxels',
        'data.grid_tolerance, 0.1 voxels',
      )  # fmt: skip
    # A user may allow any distance.
    _, oddity = align_files(array, other, array.shape, affine, tolerance=0.6)
    assert bool(oddity) == told
    if told:
      assert_all_in(oddity, 'a: up to', f'{shift:g} voxels off the grid of b')
  if told:
    with pytest.raises(InputError):
      align_files(array, moved, array.shape, affine, tolerance=0.0)


def test_a_real_label_flipped_in_y(real_data):
  label = nifti.read_label(real_data / 'dicom' / 'ct_series_label.nii.gz')
  assert nib.aff2axcodes(label.affine) == ('S', 'P', 'L')
  other = label.affine.copy()  # as the label's file has it: y to Anterior
  other[:, 3] += other[:, 1] * (label.array.shape[1] - 1)
  other[:, 1] *= -1
  aligned, _ = align_files(label.array, label.affine, label.array.shape, other)
  np.testing.assert_array_equal(aligned, label.array[:, ::-1])


def test_grids_that_differ():
  affine = np.diag([3.0, 2.0, 1.0, 1.0])
  array = np.zeros((6, 5, 4))
  shifted = affine.copy()
  shifted[:3, 3] = (0, -4, 0)
  smaller = np.diag([1.5, 2.0, 1.0, 1.0])
  turned = affine.copy()
  turned[1:3, 1:3] = [[2 * np.cos(0.1), -np.sin(0.1)], [2 * np.sin(0.1), 1]]
  for other, difference in (
    (shifted, ('4 mm, 2 voxels', 'origin 0 -4 0 against 0 0 0')),
    (smaller, ('7.5 mm, 2.5 voxels', 'spacing 1.5x2x1 mm against 3x2x1 mm')),
    (turned, ('mm', 'voxels', 'direction [1 0 0; 0 0.9', 'against [1 0 0; 0')),
  ):
    with pytest.raises(InputError) as error:
      align_files(array, other, (6, 5, 4), affine)
    assert_one_line(error, 'a: not on the grid of b', *difference)
    assert len(str(error.value)) < 300
  with pytest.raises(InputError) as error:
    align_files(array, affine, (6, 5, 7), affine)
  assert_one_line(
    error, 'shape 6x5x4 against 6x5x7', '3 mm, 3 voxels', 'allowed'
  )
