"""DICOM series as other programs read them: their places, their values."""

import itertools
import pathlib
import subprocess

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_cases import values, write
from scipy.spatial.transform import Rotation

from medseg_jax.data.formats.dicom import reading

MADE = ('oblique', 'fine', 'sagittal', 'slopes', 'padded', 'unsigned')
REAL = ('ct_series', *(f'mr_hippocampus_studies/Study{i}' for i in (1, 2, 3)))


def files(folder):
  return [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]


def make(name, folder):
  """Writes an intact series."""
  stored, more = values((7, 16, 12)), {}
  if name in ('oblique', 'fine'):
    row, column, normal = Rotation.from_euler(
      'xyz', [20, -12, 5], degrees=True
    ).as_matrix().T  # fmt: skip
    more = dict(step=2.5 * normal, directions=(*row, *column))
  if name == 'fine':
    more['spacing'] = (0.5, 1.25)
  if name == 'sagittal':
    more = dict(step=(-3, 0, 0), directions=(0, 1, 0, 0, 0, -1))
  if name == 'slopes':
    more = dict(Modality='PT', RescaleSlope=[1, 2, 4, 3, 1, 5, 2])
    more['RescaleIntercept'] = 0
  if name == 'padded':
    stored[:, :3] = -2000
    more = dict(PixelPaddingValue=-2000)
  if name == 'unsigned':
    stored = (stored.astype(int) + 40000).astype(np.uint16).view(np.int16)
    more = dict(PixelRepresentation=0)
  write(folder, stored, **more)


@pytest.fixture(params=[*MADE, *REAL])
def folder(request, tmp_path):
  if request.param in REAL:
    return request.getfixturevalue('real_data') / 'dicom' / request.param
  make(request.param, tmp_path / 'made')
  return tmp_path / 'made'


def ours(folder):
  """Yields array and affine of each series, in the order of its own axes."""
  found = reading.read_files(files(folder))
  assert found.series
  for series in found.series:
    volume = reading.read_volume(series)
    native = reading.to_native(volume.array[..., 0], series)
    yield series, native.transpose(2, 1, 0), volume.grid.readings[0]


def assert_same(array, affine, expected, there):
  """Compares volumes of which one may run the other way along its axes."""
  assert array.shape == expected.shape
  steps = np.rint(np.linalg.solve(there[:3, :3], affine[:3, :3])).astype(int)
  assert np.abs(np.diag(steps)).tolist() == [1, 1, 1]
  for corner in itertools.product(*((0, n - 1) for n in array.shape)):
    other = [
      i if step > 0 else n - 1 - i
      for i, n, step in zip(corner, array.shape, np.diag(steps), strict=True)
    ]
    np.testing.assert_allclose(
      (affine @ [*corner, 1])[:3], (there @ [*other, 1])[:3], atol=1e-3
    )
  turned = expected[tuple(slice(None, None, s) for s in np.diag(steps))]
  np.testing.assert_allclose(array, turned, rtol=1e-6, atol=0)


def without_padding(array, name):
  return np.where(array == -1024, -3000, array) if name == 'padded' else array


def test_as_dcm2niix_has_them(folder, tmp_path, request):
  dcm2niix = pytest.importorskip('dcm2niix', reason='pip install dcm2niix')
  name = request.node.callspec.params['folder']
  out = tmp_path / 'out'
  out.mkdir()
  subprocess.run(
    [
      dcm2niix.bin, '-z', 'n', '-b', 'n', '-f', '%j_%s', '-o', out, folder,
    ],
    check=True, capture_output=True,
  )  # fmt: skip
  found = [nibabel.load(path) for path in sorted(out.glob('*.nii'))]
  series = list(ours(folder))
  assert len(found) == len(series)
  for _, array, affine in series:
    [image] = [image for image in found if image.shape == array.shape]
    assert_same(
      without_padding(array, name), affine, image.get_fdata(), image.affine
    )


def test_as_simpleitk_has_them(folder, request):
  name = request.node.callspec.params['folder']
  for series, array, affine in ours(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(frame.path) for frame in series.frames])
    image = reader.Execute()
    there = np.eye(4)
    directions = np.reshape(image.GetDirection(), (3, 3))
    there[:3, :3] = directions * image.GetSpacing()
    there[:3, 3] = image.GetOrigin()
    expected = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert_same(
      without_padding(array, name),
      affine,
      expected,
      np.diag([-1, -1, 1, 1]) @ there,
    )
