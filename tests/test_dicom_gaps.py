"""Series with missing slices, or without rescale: refused unless asked for."""

import csv
import json

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
from data_cases import assert_one_line
from dicom_cases import change, values, write
from test_clinic import complete, read_mask
from test_dicom_predict import hashes, run, untrained
from test_dicom_set import opened, study

from medseg_jax.data.formats.dicom import reading
from medseg_jax.data.sources import dicom_series
from medseg_jax.experiment import trained_model
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError, InputErrors

FORMATS = ('nifti', 'seg', 'rtstruct', 'mesh', 'report')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp('model'))


def with_gaps(folder, stored, gone, **more):
  """Writes a series without the slices `gone`; returns the others' files."""
  paths = write(folder, stored, **more)
  complete(paths)
  for i in gone:
    paths[i].unlink()
  return [path for i, path in enumerate(paths) if i not in gone]


@pytest.mark.parametrize('turned', [False, True])
def test_missing_slices_are_filled_between_their_neighbours(tmp_path, turned):
  stored = values((9, 6, 7))
  more = {}
  if turned:  # a sagittal series, tilted
    more = dict(directions=(0, 1, 0, 0, 0, -1), step=(-2.5, 0.4, 0))
  paths = with_gaps(tmp_path / 'a', stored, (3, 5, 6), **more)
  whole = dicom_series.read('b', write(tmp_path / 'b', stored, **more))
  series = dicom_series.only(paths)
  assert series.places == (0, 1, 2, 4, 7, 8) and series.missing == (3, 5, 6)
  with pytest.raises(InputError, match='1 slice missing') as error:
    reading.read_volume(series)
  assert_one_line(error, 'data.allow_gaps=true')
  case = dicom_series.read('a', paths, allow_gaps=True)
  np.testing.assert_allclose(case.affine, whole.affine, atol=1e-9)
  assert case.image.shape == whole.image.shape and case.image.dtype == np.int16
  expected = stored.astype(float) - 1000
  expected[3] = (expected[2] + expected[4]) / 2
  expected[5] = expected[4] * 2 / 3 + expected[7] / 3
  expected[6] = expected[4] / 3 + expected[7] * 2 / 3
  # The whole series' own way from its array to slices.
  there = dicom_series.only(sorted((tmp_path / 'b').iterdir()))
  found = reading.to_native(case.image[..., 0], there)
  np.testing.assert_allclose(found, expected, atol=0.501)
  kept = [0, 1, 2, 4, 7, 8]
  np.testing.assert_array_equal(found[kept], expected[kept])
  np.testing.assert_array_equal(
    reading.to_native(case.image[..., 0], series), found[kept]
  )
  measured = np.broadcast_to(case.measured, case.image.shape[:-1])
  slices = reading.to_native(measured, there).all((1, 2))
  assert slices.tolist() == [i in kept for i in range(9)]
  assert whole.measured is None
  [line] = dicom_series.told_of(series, allow_gaps=True)
  place = ', '.join(f'{x:.2f}' for x in there.frames[3].position)
  assert f'3 slices missing, at ({place})' in line


def test_uneven_slices_are_refused_with_the_key_too(tmp_path):
  paths = write(tmp_path, values())
  change(paths[2], ImagePositionPatient=[-3, 4, 11])
  with pytest.raises(InputError, match='even distances') as error:
    dicom_series.read('a', paths, allow_gaps=True)
  assert_one_line(error)


def settings_of(model, **data):
  config = trained_model.read_config(None, model, '')
  config.data.update(data)
  return config


def test_masks_are_of_native_slices_alone(model, tmp_path, capsys):
  gone = (4, 5, 9)
  study, out = tmp_path / 'study', tmp_path / 'out'
  paths = with_gaps(study, values((14, 15, 13)), gone)
  before = hashes(study)
  with pytest.raises(InputError, match='2 slices missing'):
    run(model, study, tmp_path / 'refused', formats=FORMATS)
  config = settings_of(model, allow_gaps=True)

  def again():
    predict.run(
      config, None, model=model, input_path=study, output_dir=out,
      formats=FORMATS,
    )  # fmt: skip

  again()
  assert '3 slices missing, at (' in capsys.readouterr().out
  folder = out / 'study'
  mask = nibabel.load(folder / 'mask.nii.gz')
  slices = mask.get_fdata().transpose(2, 1, 0).astype(int)
  assert slices.shape == (14, 15, 13) and not slices[[*gone]].any()
  kept = [i for i in range(14) if i not in gone]
  assert all(slices[i].any() for i in kept)
  [series] = reading.read_files(paths).series
  for i, frame in zip(kept, series.frames, strict=True):
    place = mask.affine @ [0, 0, i, 1]
    np.testing.assert_allclose(
      place[:3] * [-1, -1, 1], frame.position, atol=1e-4
    )
  drawn = read_mask(folder / 'rtstruct.dcm', series, ('left', 'right'))
  np.testing.assert_array_equal(drawn, slices[kept])
  segments = hd.seg.segread(folder / 'seg.dcm')
  read = segments.get_pixels_by_source_instance(
    [frame.instance for frame in series.frames],
    segment_numbers=[1, 2],
    assert_missing_frames_are_empty=True,
  )
  np.testing.assert_array_equal(read, slices[kept][..., None] == [1, 2])
  places = {tuple(np.round(frame.position, 3)) for frame in series.frames}
  for group in segments.PerFrameFunctionalGroupsSequence:
    place = group.PlanePositionSequence[0].ImagePositionPatient
    assert tuple(np.round(np.array(place, float), 3)) in places
  report = json.loads((folder / 'report.json').read_text())
  voxels = [part['voxels'] for part in report['structures']]
  assert voxels == [(slices == i).sum() for i in (1, 2)]
  # A second run changes nothing; without the key it is another result.
  written = hashes(out)
  again()
  assert 'kept      1 mask of an earlier run' in capsys.readouterr().out
  assert hashes(out) == written and hashes(study) == before
  config.data.allow_gaps = False
  with pytest.raises(InputError, match='another data.allow_gaps') as error:
    again()
  assert_one_line(error)


def test_a_ct_without_rescale_is_read_where_that_is_asked_for(
  model,
  tmp_path,
  capsys,
):
  study, stored = tmp_path / 'study', values((14, 15, 13)) - 1000
  paths = write(study, stored, RescaleSlope=None, RescaleIntercept=None)
  with pytest.raises(InputError, match='assume_hounsfield=true') as error:
    run(model, study, tmp_path / 'out')
  assert_one_line(error)
  config = settings_of(model, assume_hounsfield=True)
  predict.run(
    config, None, model=model, input_path=study, output_dir=tmp_path / 'out'
  )
  assert 'without RescaleSlope; its values are taken' in capsys.readouterr().out
  case = dicom_series.read('a', paths, assume_hounsfield=True)
  [series] = reading.read_files(paths).series
  np.testing.assert_array_equal(
    reading.to_native(case.image[..., 0], series), stored
  )
  ours = nibabel.load(tmp_path / 'out' / 'study.nii.gz').get_fdata()
  for path in paths:
    change(path, RescaleSlope=1, RescaleIntercept=0)
  run(model, study, tmp_path / 'told')
  told = nibabel.load(tmp_path / 'told' / 'study.nii.gz').get_fdata()
  np.testing.assert_array_equal(ours, told)


@pytest.mark.parametrize('degrees', [0, 25])
def test_volumes_of_the_table_are_those_of_the_report(model, tmp_path, degrees):
  shear = 1.3 * np.tan(np.radians(degrees))
  study, out = tmp_path / 'study', tmp_path / 'out'
  complete(write(study, values((14, 15, 13)), step=(0, shear, 1.3)))
  run(model, study, out, formats=('nifti', 'seg', 'report'))
  report = json.loads((out / 'study' / 'report.json').read_text())
  with open(out / 'volumes.csv', newline='') as file:
    table = {row['class']: float(row['volume']) for row in csv.DictReader(file)}
  mask = nibabel.load(out / 'study' / 'mask.nii.gz')
  label = mask.get_fdata().transpose(2, 1, 0)
  size = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
  assert size == pytest.approx(1.3 / 1000)
  for i, part in enumerate(report['structures']):
    expected = (label == i + 1).sum() * size
    assert part['volume_ml'] == pytest.approx(expected, rel=1e-4)
    assert table[part['name']] == pytest.approx(expected, rel=1e-4)
  # The mask and the segments lie on the slices as they are.
  [series] = reading.read_files([*study.iterdir()]).series
  segments = hd.seg.segread(out / 'study' / 'seg.dcm')
  places = np.array([frame.position for frame in series.frames])
  for group in segments.PerFrameFunctionalGroupsSequence:
    place = group.PlanePositionSequence[0].ImagePositionPatient
    far = np.abs(places - np.array(place, float)).max(1).min()
    assert far < 1e-4
  for i, frame in enumerate(series.frames):
    place = (mask.affine @ [0, 0, i, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(place, frame.position, atol=1e-4)


def test_training_leaves_out_what_was_filled(tmp_path):
  root = tmp_path / 'set'
  masks = [study(root, 'a', 'seg'), study(root, 'b', 'rtstruct', 1)]
  scan = root / 'a' / 'scan'
  [gone] = [
    path
    for path in scan.iterdir()
    if pydicom.dcmread(path).ImagePositionPatient[2] == 10  # the third slice
  ]
  gone.unlink()
  # What the segmentation says of it goes with it.
  path = root / 'a' / 'mask' / 'seg.dcm'
  with pytest.raises(InputErrors, match='1 slice missing'):
    opened(root, tmp_path / 'cache')
  with pytest.raises(InputErrors, match='lies on no slice'):
    opened(root, tmp_path / 'cache', allow_gaps=True)
  dataset = pydicom.dcmread(path)
  groups = dataset.PerFrameFunctionalGroupsSequence
  keep = [
    i
    for i, group in enumerate(groups)
    if abs(group.PlanePositionSequence[0].ImagePositionPatient[2] - 10) > 1
  ]
  pixels = dataset.pixel_array[keep]
  dataset.PerFrameFunctionalGroupsSequence = [groups[i] for i in keep]
  dataset.NumberOfFrames = len(keep)
  dataset.PixelData = np.packbits(pixels.ravel(), bitorder='little').tobytes()
  dataset.PixelData += b'\0' * (len(dataset.PixelData) % 2)
  dataset.save_as(path)
  source = opened(root, tmp_path / 'cache', allow_gaps=True)
  assert any('1 slice missing, at (' in line for line in source.oddities)
  case = source[0]
  to_ours = np.array([0, 1, 3])  # nowhere is between them, see test_dicom_set
  np.testing.assert_array_equal(case.label[2], -np.ones_like(case.label[2]))
  rest = [0, 1, 3, 4]
  np.testing.assert_array_equal(case.label[rest], to_ours[masks[0]][rest])
  image = case.image[..., 0].astype(float)
  np.testing.assert_allclose(image[2], (image[1] + image[3]) / 2, atol=0.501)
  np.testing.assert_array_equal(source[1].label, to_ours[masks[1]])


def test_a_volume_cannot_be_the_mask_of_a_series_with_gaps(tmp_path):
  study(tmp_path / 'set', 'a', 'nifti')
  scan = tmp_path / 'set' / 'a' / 'scan'
  [gone] = [
    path
    for path in scan.iterdir()
    if pydicom.dcmread(path).ImagePositionPatient[2] == 10
  ]
  gone.unlink()
  with pytest.raises(InputErrors, match='allowed are DICOM objects'):
    opened(tmp_path / 'set', tmp_path / 'cache', allow_gaps=True)
