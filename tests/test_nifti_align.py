"""Bringing arrays of one space onto one grid, and refusing other spaces."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_all_in, assert_one_line
from scipy.spatial.transform import Rotation

from medseg_jax.data.formats import nifti
from medseg_jax.runtime.errors import InputError

TILT = Rotation.from_euler('xyz', (25, -14, 33), degrees=True).as_matrix()


def test_all_orders_align(tmp_path):
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
    aligned = nifti.align(
      np.asarray(other.dataobj), other.affine, array.shape, affine,
      what='a', where='b',
    )  # fmt: skip
    np.testing.assert_array_equal(aligned, array)
    channels = np.asarray(other.dataobj)[..., None]
    aligned = nifti.align(
      channels, other.affine, array.shape, affine, what='a', where='b'
    )
    np.testing.assert_array_equal(aligned[..., 0], array)


def test_alignment_allows_a_thousandth_of_a_voxel():
  array = np.zeros((50, 4, 5), np.uint8)
  affine = np.diag([0.5, 2.0, 3.0, 1.0])
  for shift, good in ((0.9e-3, True), (1.1e-3, False)):
    moved = affine.copy()
    moved[0, 3] = shift * 0.5
    # A larger spacing, with that error at the last voxel.
    grown = affine.copy()
    grown[0, 0] += shift * 0.5 / 49
    for other in (moved, grown):
      if good:
        nifti.align(array, other, array.shape, affine, what='a', where='b')
      else:
        with pytest.raises(ValueError, match='0.0011 voxels'):
          nifti.align(array, other, array.shape, affine, what='a', where='b')


def test_a_real_label_flipped_in_y(real_data):
  label = nifti.read_label(real_data / 'dicom' / 'ct_series_label.nii.gz')
  assert nib.aff2axcodes(label.affine) == ('S', 'P', 'L')
  other = label.affine.copy()  # as the label's file has it: y to Anterior
  other[:, 3] += other[:, 1] * (label.array.shape[1] - 1)
  other[:, 1] *= -1
  aligned = nifti.align(
    label.array, label.affine, label.array.shape, other, what='a', where='b'
  )
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
    (shifted, ('4 mm', '2 voxels', 'origin 0 -4 0')),
    (smaller, ('7.5 mm', '2.5 voxels', 'spacing 1.5x2x1 mm')),
    (turned, ('mm', 'voxels', 'direction')),
  ):
    with pytest.raises(InputError) as error:
      nifti.align(
        array, other, (6, 5, 4), affine, what='label.nii', where='image.nii'
      )
    assert_one_line(error, 'label.nii', 'image.nii', '0.001', *difference)
    assert_all_in(str(error.value), 'spacing 3x2x1 mm', 'shape 6x5x4')
  with pytest.raises(InputError) as error:
    nifti.align(array, affine, (6, 5, 7), affine, what='a', where='b')
  assert_one_line(error, 'shape 6x5x4', 'shape 6x5x7', '3 mm', '3 voxels')
