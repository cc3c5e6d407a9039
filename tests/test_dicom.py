"""DICOM series: in order, in place, with the values that the scanner meant."""

import pathlib
import shutil

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from data_cases import assert_one_line
from dicom_cases import change, enhanced, values, write
from scipy.spatial.transform import Rotation

from medseg_jax.data.formats.dicom import reading
from medseg_jax.data.sources import dicom_series
from medseg_jax.runtime.errors import InputError


def files(folder):
  return [p for p in pathlib.Path(folder).rglob('*') if p.is_file()]


def only(folder):
  [series] = reading.read_files(files(folder)).series
  return series


def by_sitk(paths):
  """Returns array `[z, y, x]` of slices in order, and their affine in RAS."""
  reader = sitk.ImageSeriesReader()
  reader.SetFileNames([str(path) for path in paths])
  image = reader.Execute()
  affine = np.eye(4)
  directions = np.reshape(image.GetDirection(), (3, 3))
  affine[:3, :3] = directions * image.GetSpacing()
  affine[:3, 3] = image.GetOrigin()
  return sitk.GetArrayFromImage(image), np.diag([-1, -1, 1, 1]) @ affine


def assert_as_sitk(series):
  array, affine = by_sitk([frame.path for frame in series.frames])
  volume = reading.read_volume(series)
  # Of the file's own axes; ours run to superior, posterior and left.
  np.testing.assert_allclose(volume.grid.readings[0], affine, atol=1e-3)
  native = reading.to_native(volume.array[..., 0], series)
  np.testing.assert_array_equal(native, array)


STUDIES = [f'mr_hippocampus_studies/Study{i}' for i in (1, 2, 3)]


@pytest.mark.parametrize('folder', ['ct_series', *STUDIES])
def test_real_series_are_as_simpleitk_reads_them(real_data, folder):
  found = reading.read_files(files(real_data / 'dicom' / folder))
  assert len(found.series) == (2 if folder.endswith('3') else 1)
  assert not found.set_aside
  for series in found.series:
    assert_as_sitk(series)


def test_names_and_numbers_say_nothing(real_data, tmp_path):
  source = real_data / 'dicom' / 'ct_series'
  before = reading.read_volume(only(source))
  paths = sorted(files(source))
  order = np.random.default_rng(0).permutation(len(paths))
  for path, i in zip(paths, order, strict=True):
    shutil.copy(path, tmp_path / f'{i}')
    change(tmp_path / f'{i}', InstanceNumber=int(i), SliceLocation=-float(i))
  after = reading.read_volume(only(tmp_path))
  np.testing.assert_array_equal(after.array, before.array)
  np.testing.assert_array_equal(after.affine, before.affine)
  # The slices are 2 mm apart, though 3 mm thick; where the label lies, too.
  assert before.spacing == pytest.approx((2, 0.9765625, 0.9765625))


@pytest.mark.parametrize('degrees', [0, 20])
@pytest.mark.parametrize('spacing', [(1, 1), (0.5, 1.25)])
def test_oblique_pixels_lie_where_the_standard_says(tmp_path, degrees, spacing):
  """PS3.3 C.7.6.2.1.1: the spacing between rows comes first."""
  turn = Rotation.from_euler('xyz', [degrees, -degrees, 5], degrees=True)
  row, column, normal = turn.as_matrix().T
  stored = values()
  write(
    tmp_path, stored, step=2.5 * normal, directions=(*row, *column),
    spacing=spacing,
  )  # fmt: skip
  series = only(tmp_path)
  volume = reading.read_volume(series)
  index = np.array([3, 2, 4])  # slice, row, column
  expected = (
    np.array([-3, 4, 5])
    + index[0] * 2.5 * normal
    + index[1] * spacing[0] * column
    + index[2] * spacing[1] * row
  )
  marked = np.zeros(stored.shape, int)
  marked[tuple(index)] = 1
  native = reading.to_native(volume.array[..., 0], series)
  np.testing.assert_array_equal(native, stored.astype(int) - 1000)
  place = (volume.array[..., 0] == native[tuple(index)]).nonzero()
  found = volume.affine @ [*np.stack(place)[:, 0], 1]
  np.testing.assert_allclose(found[:3], expected * [-1, -1, 1], atol=1e-9)
  assert_as_sitk(series)


def test_a_tilted_gantry_is_a_shear(tmp_path):
  write(tmp_path, values(), step=(0, 2.5 * np.tan(np.radians(15)), 2.5))
  series = only(tmp_path)
  affine = series.affine
  expected = [0, 2.5 * np.tan(np.radians(15)), 2.5]
  np.testing.assert_allclose(affine[:3, 2], expected, atol=1e-6)
  # A voxel's volume is that of the sheared box.
  spacing = reading.grid_of_series(series).spacing
  assert np.prod(spacing) == pytest.approx(2.5)
  [line] = dicom_series.find_oddities([f.path for f in series.frames])
  assert 'tilted by 15 degrees' in line


def test_values_are_rescaled_slice_by_slice_and_padding_is_air(tmp_path):
  stored = values() + 5
  stored[2, :2] = -2000
  paths = write(
    tmp_path, stored, RescaleSlope=[1, 2, 1, 0.5, 1], PixelPaddingValue=-2000
  )
  series = only(tmp_path)
  native = reading.to_native(reading.read_volume(series).array[..., 0], series)
  expected = stored * np.array([1, 2, 1, 0.5, 1])[:, None, None] - 1000
  expected[2, :2] = -1024
  np.testing.assert_array_equal(native, expected)
  assert native.dtype == np.float32
  for path in paths:
    change(path, RescaleSlope=None, RescaleIntercept=None)
  with pytest.raises(InputError, match='Hounsfield') as error:
    reading.read_volume(only(tmp_path))
  assert_one_line(error)
  for path in paths:
    change(path, Modality='PT')
  series = only(tmp_path)
  native = reading.to_native(reading.read_volume(series).array[..., 0], series)
  # Without CT's air nothing is no signal, as beside the body.
  assert native.dtype == np.int16 and native[2, 0, 0] == 0
  # The same bits as an unsigned number; a slice with nothing else.
  stored[1] = -2000
  paths = write(tmp_path / 'b', stored)
  for path in paths:
    dataset = pydicom.dcmread(path)
    dataset.add_new('PixelPaddingValue', 'US', 63536)
    dataset.save_as(path)
  series = only(tmp_path / 'b')
  native = reading.to_native(reading.read_volume(series).array[..., 0], series)
  assert (native[1] == -1024).all() and native.min() == -1024


def test_shuffled_frames_of_one_file(tmp_path):
  stored, order = values((4, 5, 6)), (2, 0, 3, 1)
  enhanced(tmp_path / 'all', stored, order)
  series = only(tmp_path)
  assert [frame.number for frame in series.frames] == [1, 3, 0, 2]
  native = reading.to_native(reading.read_volume(series).array[..., 0], series)
  np.testing.assert_array_equal(native, stored * np.arange(1, 5)[:, None, None])


def test_copies_are_dropped_and_phases_are_split(tmp_path):
  stored = values()
  first, *_ = write(tmp_path / 'a', stored)
  shutil.copy(first, tmp_path / 'a' / 'copy')
  series = only(tmp_path / 'a')
  assert len(series.frames) == 5
  assert 'the same slice as' in series.notes[0]
  # Two echoes of one series.
  write(tmp_path / 'b', stored, EchoTime=10.0)
  write(tmp_path / 'b' / 'more', stored[::-1], EchoTime=20.0)
  found = reading.read_files(files(tmp_path / 'b')).series
  assert [s.phase for s in found] == ['EchoTime 10', 'EchoTime 20']
  assert [len(s.frames) for s in found] == [5, 5]
  # Nothing tells them apart.
  write(tmp_path / 'c', stored)
  write(tmp_path / 'c' / 'more', stored[::-1])
  with pytest.raises(InputError, match='same position') as error:
    reading.read_volume(only(tmp_path / 'c'))
  assert_one_line(error)
  # What each slice has of its own tells no phases apart, what both have does.
  times = [1, 2, 3, 4, 5]
  write(tmp_path / 'd', stored, TriggerTime=times, AcquisitionNumber=1)
  write(
    tmp_path / 'd' / 'more', stored[::-1], AcquisitionNumber=2,
    TriggerTime=times[::-1],
  )  # fmt: skip
  found = reading.read_files(files(tmp_path / 'd')).series
  phases = ['AcquisitionNumber 1', 'AcquisitionNumber 2']
  assert [s.phase for s in found] == phases


def test_gaps_and_slices_that_are_off_are_refused(tmp_path):
  paths = write(tmp_path / 'a', values())
  paths[2].unlink()
  with pytest.raises(InputError, match='1 slice missing') as error:
    reading.read_volume(only(tmp_path / 'a'))
  assert_one_line(error, '(-3.00, 4.00, 10.00)')
  paths = write(tmp_path / 'b', values())
  change(paths[2], ImagePositionPatient=[-3, 4, 10.2])
  with pytest.raises(InputError, match='even distances') as error:
    reading.read_volume(only(tmp_path / 'b'))
  assert_one_line(error)
  paths = write(tmp_path / 'c', values())
  change(paths[2], ImagePositionPatient=[-3, 4.3, 10])
  with pytest.raises(InputError, match='0.3 mm beside') as error:
    reading.read_volume(only(tmp_path / 'c'))
  assert_one_line(error)


def test_what_is_no_slice_is_set_aside_with_a_reason(tmp_path):
  stored = values()
  write(tmp_path, stored)
  others = tmp_path / 'others'
  paths = write(others, stored[:1].repeat(5, 0), step=(0, 0, 9))
  change(paths[0], PhotometricInterpretation='PALETTE COLOR')
  change(paths[1], ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
  rtstruct = pydicom.uid.RTStructureSetStorage
  change(paths[2], Rows=None, Columns=None, SOPClassUID=rtstruct)
  change(paths[3], ImagePositionPatient=None)
  paths[4].write_bytes(paths[4].read_bytes()[:450])
  (others / 'notes.txt').write_text('text')
  (others / 'pointer').write_text('version https://git-lfs.github.com/spec/v1')
  found = reading.read_files(files(tmp_path))
  assert [len(s.frames) for s in found.series] == [5]
  reasons = {x.path.name: (x.reason, x.damaged) for x in found.set_aside}
  assert len(reasons) == 7
  for path, words, damaged in [
    (paths[0], 'colour', False),
    (paths[1], 'localizer', False),
    (paths[2], 'RT Structure Set', False),
    (paths[3], 'ImagePositionPatient', False),
    (paths[4], 'cut off', True),
    (others / 'notes.txt', 'no DICOM', False),
    (others / 'pointer', 'git-lfs', True),
  ]:
    reason, is_damaged = reasons[path.name]
    assert words in reason and '\n' not in reason
    assert damaged == is_damaged


@pytest.mark.parametrize(
  'syntax', ['RLELossless', 'JPEGLSLossless', 'JPEG2000Lossless', 'Deflated']
)
def test_compressed_pixels_are_the_same(tmp_path, syntax):
  stored = values((3, 64, 48))
  paths = write(tmp_path, stored, step=(0, 0, 1))
  uid = {
    'Deflated': pydicom.uid.DeflatedExplicitVRLittleEndian,
  }.get(syntax) or getattr(pydicom.uid, syntax)
  for path in paths:
    dataset = pydicom.dcmread(path)
    if syntax == 'Deflated':
      dataset.file_meta.TransferSyntaxUID = uid
    else:
      dataset.compress(uid)
    dataset.save_as(path, enforce_file_format=True)
  series = only(tmp_path)
  native = reading.to_native(reading.read_volume(series).array[..., 0], series)
  np.testing.assert_array_equal(native, stored - 1000)
