"""DICOM files of all encodings, with and without a head, and what is none."""

import os
import pathlib
import subprocess
import sys

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from data_cases import assert_one_line
from dicom_cases import change, enhanced, slice_of, values, without_head, write

from medseg_jax.clinic import repair
from medseg_jax.data.formats.dicom import reading
from medseg_jax.data.formats.first_bytes import is_dicom
from medseg_jax.data.sources import dicom_series, to_predict
from medseg_jax.runtime.errors import InputError

UID = pydicom.uid


def native_of(paths):
  [series] = reading.read_files(paths).series
  return reading.to_native(reading.read_volume(series).array[..., 0], series)


def by_gdcm(path, kind):
  """Compresses the pixels of a file by another library."""
  reader = gdcm.ImageReader()
  reader.SetFileName(str(path))
  assert reader.Read()
  change = gdcm.ImageChangeTransferSyntax()
  change.SetTransferSyntax(gdcm.TransferSyntax(kind))
  change.SetInput(reader.GetImage())
  assert change.Change()
  writer = gdcm.ImageWriter()
  writer.SetFile(reader.GetFile())
  writer.SetImage(change.GetOutput())
  writer.SetFileName(str(path))
  assert writer.Write()


def by_pydicom(path, syntax):
  dataset = pydicom.dcmread(path)
  if syntax == UID.ExplicitVRBigEndian:
    pixels = np.frombuffer(dataset.PixelData, '<i2').astype('>i2')
    dataset.PixelData = pixels.tobytes()
    turned = pydicom.Dataset()
    turned.update(dataset)
    turned.file_meta = dataset.file_meta
    turned.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(path, turned, enforce_file_format=True)
    return
  if syntax in (UID.DeflatedExplicitVRLittleEndian, UID.ImplicitVRLittleEndian):
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(
      path,
      implicit_vr=syntax.is_implicit_VR,
      little_endian=True,
      enforce_file_format=True,
    )
    return
  dataset.compress(syntax)
  dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(
  ('syntax', 'encoder'),
  [
    (UID.ImplicitVRLittleEndian, None),
    (UID.ExplicitVRBigEndian, None),
    (UID.DeflatedExplicitVRLittleEndian, None),
    (UID.RLELossless, None),
    (UID.JPEGLSLossless, None),
    (UID.JPEG2000Lossless, None),
    (UID.JPEGLossless, gdcm.TransferSyntax.JPEGLosslessProcess14),
    (UID.JPEGLosslessSV1, gdcm.TransferSyntax.JPEGLosslessProcess14_1),
    (UID.JPEGLSLossless, gdcm.TransferSyntax.JPEGLSLossless),
    (UID.JPEG2000Lossless, gdcm.TransferSyntax.JPEG2000Lossless),
    (UID.RLELossless, gdcm.TransferSyntax.RLELossless),
  ],
  ids=lambda x: getattr(x, 'name', 'pydicom' if x is None else 'gdcm'),
)
@pytest.mark.parametrize('signed', [True, False])
def test_pixels_of_each_encoding_are_the_same(
  tmp_path, syntax, encoder, signed
):
  # Signed ones below 0, unsigned ones that would be below 0 if they were.
  stored = values((3, 64, 48)) - 900
  if not signed:
    stored = stored.astype(np.int32) + 34000
  paths = write(
    tmp_path, stored.astype(np.uint16).view(np.int16), step=(0, 0, 1),
    PixelRepresentation=int(signed),
  )  # fmt: skip
  for path in paths:
    if encoder is None:
      by_pydicom(path, syntax)
    else:
      by_gdcm(path, encoder)
    written = pydicom.dcmread(path, stop_before_pixels=True)
    assert written.file_meta.TransferSyntaxUID == syntax
    assert path.read_bytes().count(stored[0].astype('<i2').tobytes()) == 0 or (
      syntax == UID.ImplicitVRLittleEndian
    )
  found = native_of(paths)
  np.testing.assert_array_equal(found, stored.astype(np.int32) - 1000)
  # As another reader has them.
  image = sitk.ReadImage([str(path) for path in paths])
  np.testing.assert_array_equal(found, sitk.GetArrayFromImage(image))


@pytest.mark.parametrize('syntax', ['implicit', 'explicit', 'big'])
def test_files_without_a_head_are_read(tmp_path, syntax):
  stored = values()
  paths = write(tmp_path, stored)
  for path in paths:
    without_head(path, syntax)
    assert path.read_bytes()[128:132] != b'DICM' and is_dicom(path)
    with pytest.raises(pydicom.errors.InvalidDicomError):
      pydicom.dcmread(path)
  np.testing.assert_array_equal(native_of(paths), stored - 1000)
  [case] = to_predict.find(tmp_path, channels=1).cases
  assert len(case.images) == 5


def test_the_copy_of_a_file_without_a_head_has_one(tmp_path):
  stored = values()
  paths = write(tmp_path / 'a', stored)
  for path in paths:
    without_head(path, 'implicit')
  series = dicom_series.only(paths)
  names = repair.names_of(series)
  copies = [tmp_path / f'{i}' for i in range(len(paths))]
  for copy, frame in zip(copies, series.frames, strict=True):
    repair.write(copy, frame.path, series, names)
  pixels = [pydicom.dcmread(copy).pixel_array for copy in copies]
  np.testing.assert_array_equal(pixels, stored)


def test_a_head_without_the_preamble(tmp_path):
  stored = values()
  paths = write(tmp_path, stored)
  for path in paths:
    path.write_bytes(path.read_bytes()[132:])
    assert is_dicom(path)
  np.testing.assert_array_equal(native_of(paths), stored - 1000)


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'\x08\x00',
    b'\x08\x00' * 400,
    b'\x02\x00\x00\x00UL\x04\x00' + b'text',
    b'P6 8 8 255\n' + bytes(300),
    b'\x08\x00\x05\x00CS\x03\x00abc' + bytes(600),
    bytes(2000),
  ],
)
def test_what_begins_otherwise_is_no_dicom(tmp_path, content):
  (tmp_path / 'a').write_bytes(content)
  assert not is_dicom(tmp_path / 'a')
  assert not is_dicom(tmp_path / 'nothing')


def test_real_volumes_and_pictures_are_no_dicom(real_data):
  for path in [*real_data.rglob('*.nii.gz'), *real_data.rglob('*.png')][:50]:
    assert not is_dicom(path)


def other(path, kind, **attributes):
  """Writes an object that is no image."""
  dataset = slice_of(values()[0], (0, 0, 0))
  for name in ('Rows', 'Columns', 'PixelData'):
    delattr(dataset, name)
  dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
  for name, value in attributes.items():
    setattr(dataset, name, value)
  dataset.save_as(path, enforce_file_format=True)


def test_each_object_that_is_no_slice_has_its_line(tmp_path):
  write(tmp_path / 'series', values())
  odd = tmp_path / 'others'
  odd.mkdir()
  pixels = values()[0]

  def image(name, **attributes):
    slice_of(pixels, (0, 0, 0), **attributes).save_as(
      odd / name, enforce_file_format=True
    )

  other(odd / 'pdf', UID.EncapsulatedPDFStorage, EncapsulatedDocument=b'%PDF')
  other(odd / 'sr', UID.ComprehensiveSRStorage, Modality='SR')
  other(odd / 'plan', UID.RTPlanStorage)
  record = pydicom.Dataset()
  record.DirectoryRecordType = 'PATIENT'
  other(
    odd / 'DICOMDIR', UID.MediaStorageDirectoryStorage,
    DirectoryRecordSequence=[record],
  )  # fmt: skip
  rgb = slice_of(
    pixels, (0, 0, 0), SamplesPerPixel=3, PhotometricInterpretation='RGB'
  )
  rgb.save_as(odd / 'rgb', enforce_file_format=True)
  image('palette', PhotometricInterpretation='PALETTE COLOR')
  image('cine', NumberOfFrames=12, ImagePositionPatient=None)
  image('scout', ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'])
  image('flat', ImagePositionPatient=None)
  image('cut')
  (odd / 'cut').write_bytes((odd / 'cut').read_bytes()[:400])
  (odd / 'pointer').write_text('version https://git-lfs.github.com/spec/v1\n')
  (odd / 'notes.txt').write_text('text')
  found = to_predict.find(tmp_path, channels=1)
  [case] = found.cases
  assert {path.parent.name for path in case.images} == {'series'}
  for name, words in {
    'pdf': 'no image (Encapsulated PDF Storage)',
    'sr': 'no image (Comprehensive SR Storage)',
    'plan': 'no image (RT Plan Storage)',
    'DICOMDIR': 'a list of files (DICOMDIR)',
    'rgb': 'a colour image (RGB)',
    'palette': 'a colour image (PALETTE COLOR)',
    'cine': '12 frames without a position each, as of a film',
    'scout': 'a localizer',
    'flat': 'no ImagePositionPatient, so where it lies cannot be told',
    'notes.txt': 'no DICOM file',
  }.items():
    [line] = [x for x in found.unused if x.startswith(f'others/{name}:')]
    assert words in line and '\n' not in line
  damaged = {failure.name: failure.reason for failure in found.failures}
  assert damaged.keys() == {'cut', 'pointer'}
  assert 'cut off' in damaged['cut'] and 'git-lfs' in damaged['pointer']
  assert len(found.unused) == 10


@pytest.mark.parametrize('syntax', ['plain', 'RLELossless', 'JPEGLosslessSV1'])
def test_a_slice_whose_pixels_are_cut_off_is_one_line(tmp_path, syntax):
  paths = write(tmp_path, values((5, 32, 32)))
  if syntax == 'RLELossless':
    by_pydicom(paths[2], UID.RLELossless)
  elif syntax != 'plain':
    by_gdcm(paths[2], gdcm.TransferSyntax.JPEGLosslessProcess14_1)
  whole = paths[2].read_bytes()
  paths[2].write_bytes(whole[: len(whole) - 700])
  series = dicom_series.only(paths)
  with pytest.raises(InputError) as error:
    reading.read_volume(series)
  assert_one_line(error, paths[2].name, 'pixels cannot be read')


def test_two_phases_in_one_file_are_refused_and_both_are_named(tmp_path):
  stored = values((4, 5, 6))
  enhanced(tmp_path / 'both', stored, (2, 0, 3, 1), echoes=(10.0, 25.0))
  with pytest.raises(InputError) as error:
    to_predict.find(tmp_path, channels=1)
  assert_one_line(
    error, 'both', '2 volumes in one file', 'EchoTime 10', 'EchoTime 25'
  )
  # It costs no other series of the folder; nothing tells these apart.
  enhanced(tmp_path / 'alike', stored, (2, 0, 3, 1), echoes=(10.0, 10.0))
  change(tmp_path / 'alike', SeriesInstanceUID='1.2.3.5')
  found = to_predict.find(tmp_path, channels=1)
  [case] = found.cases
  assert [failure.name for failure in found.failures] == ['both']
  with pytest.raises(InputError, match='same position') as error:
    dicom_series.read('a', case.images)
  assert_one_line(error, 'alike', 'frame')


def test_monochrome1_is_of_the_display_alone(tmp_path):
  """Not as ITK has it, which turns the values themselves over."""
  paths = write(tmp_path, values(), PhotometricInterpretation='MONOCHROME1')
  expected = [
    pydicom.pixels.apply_rescale(dataset.pixel_array, dataset)
    for dataset in map(pydicom.dcmread, paths)
  ]
  np.testing.assert_array_equal(native_of(paths), expected)


def test_a_folder_with_the_name_of_an_old_module_changes_nothing(tmp_path):
  """gdcm imports `dl` where there is one, and uses it."""
  (tmp_path / 'dl').mkdir()
  root = pathlib.Path(__file__).parents[1]
  begin = 'from medseg_jax.runtime import startup; startup.prepare("none");'
  for first in ('', begin):
    done = subprocess.run(
      [sys.executable, '-c', f'{first} import nibabel, pydicom, gdcm'],
      cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(root)},
      capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == bool(first), done.stderr
