"""Masks as DICOM objects: read back, checked by others, in their place."""

import json
import shutil
import subprocess
import sys

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from data_cases import assert_one_line
from dicom_cases import change, enhanced, values, write
from matplotlib.path import Path
from pydicom.sr.coding import Code

from medseg_jax.clinic import (
  codes,
  contours,
  measurements,
  numbers,
  segmentation,
  structure_set,
  structured_report,
)
from medseg_jax.data.formats.dicom import label_objects, reading
from medseg_jax.runtime.errors import InputError

CLASSES = ('background', 'liver', 'tumour', 'nowhere')
MEANINGS = codes.meanings(CLASSES, (('liver', '10200004', 'Liver'),))
OF = dict(meanings=MEANINGS, model='some model', version='1.2')
MODULES = {'seg': segmentation, 'rtstruct': structure_set}


def complete(paths):
  """Gives made slices what a scanner's have."""
  for i, path in enumerate(paths):
    change(
      path, FrameOfReferenceUID='1.2.9', PatientID='p', PatientName='Some^Body',
      StudyID='1', StudyDate='20200101', StudyTime='120000', InstanceNumber=i,
    )  # fmt: skip


def series_of(folder, shape=(5, 9, 11), **more):
  complete(write(folder, values(shape), **more))
  [series] = reading.read_files(list(folder.iterdir())).series
  return series


def read_mask(path, series, names):
  """Returns the mask of a structure set."""
  mask, overlapping = label_objects.read(
    label_objects.look(path), series, names
  )
  assert not overlapping
  return mask


def noise(shape=(5, 9, 11)):
  """Returns a mask with holes, single voxels and diagonal contacts."""
  return np.random.default_rng(0).integers(0, 3, shape)


def assert_valid(path, *but):
  """Checks that dciodvfy finds no error, but for those with these words."""
  if shutil.which('dciodvfy') is None:
    pytest.skip('dciodvfy (Debian: dicom3tools) is not installed')
  done = subprocess.run(
    ['dciodvfy', '-new', path], capture_output=True, text=True
  )
  lines = (done.stdout + done.stderr).splitlines()
  errors = [line for line in lines if line.startswith('Error')]
  assert not [e for e in errors if not any(words in e for words in but)]


@pytest.mark.parametrize('degrees', [0, 10, 25])
@pytest.mark.parametrize('labelmap', [False, True])
def test_segments_are_on_their_slices_also_of_a_shear(
  tmp_path, degrees, labelmap
):
  shear = 2.5 * np.tan(np.radians(degrees))
  series = series_of(tmp_path / 'in', step=(0, shear, 2.5))
  mask, path = noise(), tmp_path / 'seg.dcm'
  segmentation.write(path, mask, series, labelmap=labelmap, **OF)
  found = hd.seg.segread(path)
  assert [s.SegmentLabel for s in found.SegmentSequence][-3:] == [*CLASSES[1:]]
  read = found.get_pixels_by_source_instance(
    [frame.instance for frame in series.frames],
    segment_numbers=[1, 2, 3],
    assert_missing_frames_are_empty=True,
  )
  np.testing.assert_array_equal(read, mask[..., None] == [1, 2, 3])
  places = {tuple(np.round(frame.position, 4)) for frame in series.frames}
  for group in found.PerFrameFunctionalGroupsSequence:
    place = group.PlanePositionSequence[0].ImagePositionPatient
    assert min(np.abs(np.subtract(place, p)).max() for p in places) < 1e-4


@pytest.mark.parametrize('kind', MODULES)
@pytest.mark.parametrize('empty', [False, True])
def test_objects_are_valid_and_the_same_each_time(tmp_path, kind, empty):
  series = series_of(tmp_path / 'in')
  mask = noise() * (not empty)
  paths = [tmp_path / name for name in 'ab']
  for path in paths:
    MODULES[kind].write(path, mask, series, **OF)
  assert paths[0].read_bytes() == paths[1].read_bytes()
  found = pydicom.dcmread(paths[0])
  assert found.PatientName == 'Some^Body' and found.StudyInstanceUID == '1.2.3'
  assert found.FrameOfReferenceUID == '1.2.9'
  assert found.SeriesInstanceUID != series.first.series
  assert found.ManufacturerModelName == 'some model'
  if kind == 'seg' and empty:  # a slice of each class is enough to say it
    assert len(found.SegmentSequence) == 3 and found.NumberOfFrames == 3
  MODULES[kind].write(paths[1], 1 - np.minimum(mask, 1), series, **OF)
  other = pydicom.dcmread(paths[1])
  assert other.SOPInstanceUID != found.SOPInstanceUID
  assert other.SeriesInstanceUID == found.SeriesInstanceUID
  assert_valid(paths[0])


def measured_of(mask, series):
  """Returns what is told of each class of a mask of native slices."""
  volume = reading.read_volume(series)
  label = mask.astype(np.int16)  # axial: z, y, x are slices, rows, columns
  found = []
  for i, meaning in enumerate(MEANINGS):
    measured = measurements.measure(
      label, volume.array, volume.affine, indices=(i + 1,),
      lesions=meaning.lesion,
    )  # fmt: skip
    bounds = (measured.volume / 2, measured.volume * 3) if i == 0 else ()
    found.append(numbers.Structure(meaning, measured, bounds))
  return found


@pytest.mark.parametrize('empty', [False, True])
def test_measurements_refer_to_the_segments_and_are_read_back(tmp_path, empty):
  series = series_of(tmp_path / 'in')
  mask = noise() * (not empty)
  segmentation.write(tmp_path / 'seg.dcm', mask, series, **OF)
  segments = pydicom.dcmread(tmp_path / 'seg.dcm')
  paths = [tmp_path / name for name in 'ab']
  structures = measured_of(mask, series)
  for path in paths:
    structured_report.write(path, structures, mask, series, **OF)
  assert paths[0].read_bytes() == paths[1].read_bytes()
  # Another interval is another report of the same mask.
  wider = [structures[0]._replace(interval=(0.0, 99.0)), *structures[1:]]
  structured_report.write(paths[1], wider, mask, series, **OF)
  report, other = map(hd.sr.srread, paths)
  assert report.SOPInstanceUID != other.SOPInstanceUID
  assert report.PatientName == 'Some^Body' and report.VerificationFlag
  content, tumour = report.content, structures[1].measured
  groups = content.get_volumetric_roi_measurement_groups()
  assert [group.tracking_identifier for group in groups] == [*CLASSES[1:]]
  for i, group in enumerate(groups):
    refers = group.referenced_segment
    assert refers.referenced_sop_instance_uid == segments.SOPInstanceUID
    assert np.ravel(refers.referenced_segment_numbers).tolist() == [i + 1]
    told = assert_tells(group, structures[i].measured)
    if i == 1:
      assert told['Quantity'] == len(tumour.lesions)
  lesions = content.get_image_measurement_groups()
  assert len(lesions) == len(tumour.lesions) and bool(lesions) != empty
  for i, group in enumerate(lesions):
    assert group.tracking_identifier == f'tumour {i + 1}'
    assert_tells(group, tumour.lesions[i])
    [line] = group.get_measurements(name=Code('103339001', 'SCT', ''))
    [ends] = line.referenced_coordinates
    np.testing.assert_allclose(ends.value, tumour.lesions[i].ends[:2], 1e-5)
  kinds = {item.ReferencedSOPInstanceUID for item in _referenced(report)}
  assert segments.SOPInstanceUID in kinds and len(kinds) == 1 + len(mask)
  assert_valid(paths[0])


def assert_tells(group, measured):
  """Returns the values of a group by name, which are those measured."""
  values = {}
  for item in group.get_measurements():
    derived = f' {item.derivation.meaning}' if item.derivation else ''
    values[f'{item.name.meaning}{derived}'] = item.value
  assert values['Volume'] == pytest.approx(measured.volume, rel=1e-5)
  assert ('Long axis' in values) == bool(measured.voxels)
  if measured.voxels:
    longest = measured.diameters.longest
    assert values['Long axis'] == pytest.approx(longest, rel=1e-5)
    mean = values['Attenuation Coefficient Mean']
    assert mean == pytest.approx(measured.intensity[0].mean, rel=1e-4)
  return values


def test_dcmqi_reads_the_segments_and_the_measurements(tmp_path):
  """Frames of 51x35 pixels do not end where a byte does."""
  pytest.importorskip('dcmqi')
  series = series_of(tmp_path / 'in', (5, 35, 51))
  mask = noise((5, 35, 51))
  segmentation.write(tmp_path / 'seg.dcm', mask, series, **OF)
  structured_report.write(
    tmp_path / 'sr.dcm', measured_of(mask, series), mask, series, **OF
  )
  (tmp_path / 'out').mkdir()
  for name, *options in (
    ('segimage2itkimage', 'seg.dcm', '--outputDirectory', 'out'),
    ('tid1500reader', 'sr.dcm', '--outputMetadata', 'sr.json'),
  ):
    of = [sys.executable, '-c', f'import dcmqi; dcmqi.{name}()']
    options.insert(0, '--inputDICOM')
    subprocess.run([*of, *options], cwd=tmp_path, check=True)
  for i in range(3):
    read = sitk.ReadImage(tmp_path / 'out' / f'{i + 1}.nrrd')
    found = sitk.GetArrayFromImage(read) > 0
    np.testing.assert_array_equal(found, mask == i + 1)
  groups = json.loads((tmp_path / 'sr.json').read_text())['Measurements']
  volumes = {
    group['TrackingIdentifier']: float(item['value'])
    for group in groups
    for item in group['measurementItems']
    if item['quantity']['CodeMeaning'] == 'Volume'
  }
  voxel = abs(np.linalg.det(series.affine[:3, :3])) / 1000
  for i, name in enumerate(CLASSES[1:]):
    expected = (mask == i + 1).sum() * voxel
    assert volumes[name] == pytest.approx(expected, rel=1e-4)


def _referenced(report):
  for study in report.CurrentRequestedProcedureEvidenceSequence:
    for of in study.ReferencedSeriesSequence:
      yield from of.ReferencedSOPSequence


def test_codes_and_colours_of_segments(tmp_path):
  series, path = series_of(tmp_path / 'in'), tmp_path / 'seg.dcm'
  segmentation.write(path, noise(), series, **OF)
  segments = pydicom.dcmread(path).SegmentSequence
  kinds = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments]
  assert kinds == ['Liver', 'Lesion', 'Organ']
  assert [m.generic for m in MEANINGS] == [False, True, True]
  assert all(s.SegmentAlgorithmType == 'AUTOMATIC' for s in segments)
  assert all('RecommendedDisplayCIELabValue' in s for s in segments)
  with pytest.raises(InputError, match='config.clinic.codes') as error:
    codes.meanings(CLASSES, (('spleen', '1', 'Spleen'),))
  assert_one_line(error)


@pytest.mark.parametrize('spacing', [(1, 1), (0.5, 1.0)])
def test_contours_come_back_as_the_same_mask(tmp_path, spacing):
  c, s = np.cos(0.4), np.sin(0.4)
  series = series_of(
    tmp_path / 'in', spacing=spacing, directions=(1, 0, 0, 0, c, s),
    step=(0, -2.5 * s, 2.5 * c),
  )  # fmt: skip
  mask, path = noise(), tmp_path / 'rt.dcm'
  structure_set.write(path, mask, series, **OF)
  read = read_mask(path, series, CLASSES[1:])
  np.testing.assert_array_equal(read, mask)
  # A point lies half a pixel beside the centre of a pixel, in the plane.
  found = pydicom.dcmread(path)
  contour = found.ROIContourSequence[0].ContourSequence[0]
  assert max(len(str(x)) for x in contour.ContourData) <= 16
  instance = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
  [frame] = [f for f in series.frames if f.instance == instance]
  offset = np.reshape(np.float64(contour.ContourData), (-1, 3)) - frame.position
  assert np.abs(offset @ np.cross(frame.row_direction, frame.column_direction)
    ).max() < 0.01  # fmt: skip
  at = np.stack(
    [
      offset @ frame.column_direction / spacing[0],
      offset @ frame.row_direction / spacing[1],
    ],
    -1,
  )
  halves = np.abs(np.abs(at - np.round(at)) - 0.5).min(1)
  np.testing.assert_allclose(halves, 0, atol=0.01)


def test_what_differs_has_another_identity(tmp_path):
  """Of echoes of one series, forms and names; of no other type of number."""
  stored = values((5, 9, 11))
  complete(write(tmp_path / 'in', stored, EchoTime=10.0))
  complete(write(tmp_path / 'in' / 'b', stored, EchoTime=20.0))
  paths = [p for p in (tmp_path / 'in').rglob('*') if p.is_file()]
  one, other = reading.read_files(paths).series
  empty = np.zeros((5, 9, 11), int)
  renamed = codes.meanings(('background', 'liver', 'tumour', 'nothing'))

  def uid(kind, series, mask, **more):
    path = tmp_path / 'x.dcm'
    MODULES[kind].write(path, mask, series, **(OF | more))
    return pydicom.dcmread(path).SOPInstanceUID

  for kind in MODULES:
    first = uid(kind, one, empty)
    assert uid(kind, one, empty.astype(np.uint8)) == first
    others = [uid(kind, other, empty), uid(kind, one, empty, meanings=renamed)]
    if kind == 'seg':
      others.append(uid(kind, one, empty, labelmap=True))
    assert len({first, *others}) == 1 + len(others)
    with pytest.raises(ValueError, match='for slices'):
      uid(kind, one, empty.transpose(0, 2, 1))


def test_names_of_any_letters_stay_apart(tmp_path):
  names = ('肝臓', 'Läsion', 'a\\b', 'kidney left upper', 'kidney left upper2')
  meanings = codes.meanings(('background', *names))
  series, mask = series_of(tmp_path / 'in'), noise()
  own = OF | {'meanings': meanings}
  for kind, module in MODULES.items():
    path = tmp_path / f'{kind}.dcm'
    module.write(path, mask, series, **own)
    found = pydicom.dcmread(path)
    if kind == 'seg':
      labels = [str(s.SegmentLabel) for s in found.SegmentSequence]
    else:
      labels = [str(r.ROIName) for r in found.StructureSetROISequence]
      short = [
        str(o.ROIObservationLabel) for o in found.RTROIObservationsSequence
      ]
      assert len(set(short)) == 5 and max(map(len, short)) <= 16
    assert labels == [name.replace('\\', '/') for name in names]
  assert_valid(tmp_path / 'rtstruct.dcm')
  assert_valid(tmp_path / 'seg.dcm')


def test_a_contour_may_be_longer_than_64_kb(tmp_path):
  series = series_of(tmp_path / 'in', (2, 90, 400))
  mask = np.zeros((2, 90, 400), int)
  mask[:, 5:80, 5:395:2] = mask[:, 5, 5:395] = 1  # a comb
  path = tmp_path / 'rtstruct.dcm'
  structure_set.write(path, mask, series, **OF)
  [drawn, *_] = pydicom.dcmread(path).ROIContourSequence
  assert max(len(c.ContourData) for c in drawn.ContourSequence) * 6 > 65536
  np.testing.assert_array_equal(read_mask(path, series, CLASSES[1:]), mask)


def test_a_damaged_structure_set_is_one_line(tmp_path):
  series, path = series_of(tmp_path / 'in'), tmp_path / 'rt.dcm'
  structure_set.write(path, noise(), series, **OF)
  dataset = pydicom.dcmread(path)
  contour = dataset.ROIContourSequence[0].ContourSequence[0]
  contour.ContourData = contour.ContourData[:-1]
  dataset.save_as(path)
  with pytest.raises(InputError, match='masks cannot be read') as error:
    read_mask(path, series, CLASSES[1:])
  assert_one_line(error)


def test_the_area_of_a_disc_is_that_of_its_pixels():
  grid = np.mgrid[-20:21, -20:21]
  for radius in (3, 6, 12):
    disc = (grid**2).sum(0) <= radius**2
    [points] = contours.of_slice(disc)
    x, y = points.T
    area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
    assert area == pytest.approx(disc.sum(), rel=0.02)


def test_rasterising_is_that_of_even_and_odd():
  rng = np.random.default_rng(1)
  shapes = [rng.uniform(-2, 22, (7, 2)) for _ in range(3)]
  centres = np.stack(np.mgrid[:20, :20], -1).reshape(-1, 2)
  expected = np.zeros(400, bool)
  for points in shapes:
    # Matplotlib fills by winding; a triangle fan has each once.
    for a, b in zip(points[1:], points[2:], strict=False):
      expected ^= Path([points[0], a, b]).contains_points(centres)
  found = label_objects.rasterise(shapes, (20, 20))
  assert (
    found.ravel() != expected
  ).mean() < 0.005  # on an edge either is right


def test_frames_of_one_file_are_referred_to(tmp_path):
  stored = values((4, 9, 11))
  path = tmp_path / 'all'
  enhanced(path, stored, (2, 0, 3, 1))
  complete([path])
  [series] = reading.read_files([path]).series
  mask = noise((4, 9, 11))
  structure_set.write(tmp_path / 'rt.dcm', mask, series, **OF)
  read = read_mask(tmp_path / 'rt.dcm', series, CLASSES[1:])
  np.testing.assert_array_equal(read, mask)


def test_a_series_that_is_nobodys_is_one_line(tmp_path):
  paths = write(tmp_path, values())
  for path in paths:
    change(path, SOPInstanceUID=None)
  [series] = reading.read_files(paths).series
  for module in MODULES.values():
    with pytest.raises(InputError) as error:
      module.write(tmp_path / 'x', noise((5, 6, 7)), series, **OF)
    assert_one_line(error, 'FrameOfReferenceUID', 'SOPInstanceUID')
