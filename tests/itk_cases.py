"""Volumes as SimpleITK writes and reads them, which tells what is in them."""

import numpy as np
import SimpleITK as sitk
from volume_cases import image_array

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.nifti_geometry import to_file_order

sitk.ProcessObject_SetGlobalWarningDisplay(False)

SHAPE = (6, 5, 4)  # x, y, z
OBLIQUE = np.linalg.qr(np.array([[9, 2, 1], [-3, 8, 2], [1, -2, 7.0]]))[0]
DIRECTIONS = {
  'straight': np.eye(3),
  'flipped': np.diag([-1.0, 1, -1]),
  'permuted': np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]]),
  'oblique': OBLIQUE,
}


def made(array=None, direction='oblique', vector=False):
  """Returns an image of SimpleITK, of an array (z, y, x)."""
  array = image_array().T if array is None else array
  image = sitk.GetImageFromArray(array, isVector=vector)
  image.SetSpacing((0.7, 1.1, 2.3))
  image.SetOrigin((-12.3456789012345, 20.1, -300.7))
  image.SetDirection(DIRECTIONS[direction].ravel().tolist())
  return image


def save(path, image=None, *, compress=False):
  path.parent.mkdir(parents=True, exist_ok=True)
  sitk.WriteImage(image or made(), str(path), compress)
  return path


def affine_of(image):
  """Returns where SimpleITK has an image, in Right, Anterior, Superior."""
  affine = np.eye(4)
  direction = np.reshape(image.GetDirection(), (3, 3))
  affine[:3, :3] = direction * image.GetSpacing()
  affine[:3, 3] = image.GetOrigin()
  return np.diag([-1, -1, 1, 1]) @ affine


def assert_as_itk(path):
  """Checks values and place against SimpleITK; returns what was read."""
  image = sitk.ReadImage(str(path))
  expected = sitk.GetArrayFromImage(image)
  volume = nifti.read_image(path)
  array = to_file_order(volume.array, volume.grid).transpose(2, 1, 0, 3)
  array = array if expected.ndim == 4 else array[..., 0]
  if expected.dtype == np.float64:  # intensities are of single precision
    expected = expected.astype(np.float32)
  assert array.dtype == expected.dtype
  np.testing.assert_array_equal(array, expected)
  affine = affine_of(image)
  np.testing.assert_allclose(volume.grid.readings[0], affine, atol=1e-6)
  assert nifti.read_header(path).shape == volume.array.shape[:3]
  return volume
