"""What the config may ask of DICOM objects, and a copy of a series."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
from data_cases import assert_one_line
from dicom_cases import enhanced, values, write
from test_clinic import (
  CLASSES,
  OF,
  assert_valid,
  measured_of,
  noise,
  read_mask,
  series_of,
)

from medseg_jax.clinic import (
  contours,
  identity,
  repair,
  segmentation,
  structure_set,
  structured_report,
)
from medseg_jax.data.formats.dicom import label_objects, reading
from medseg_jax.data.sources import dicom_series
from medseg_jax.runtime.errors import InputError

RINGS = np.zeros((2, 21, 23), int)
RINGS[:, 1:20, 1:22] = 1
RINGS[:, 3:9, 3:9] = RINGS[:, 4:7, 12:20] = RINGS[:, 12:18, 4:19] = 0
RINGS[:, 13:17, 6:17] = 1  # an island in a hole
RINGS[:, 9, 9] = RINGS[:, 10, 10] = 0  # holes that touch at corners
RINGS[:, 15, 10] = 0  # a hole in the island

_NO_LABEL_MAP = ('Information Object Not found', 'with SegmentNumber of 0')
_NO_SEGMENTATION = 'Shall not be present for Referenced SOP Class that is not'


@pytest.mark.parametrize('labelmap', [False, True])
@pytest.mark.parametrize('empty', [False, True])
def test_the_report_tracks_what_the_segments_are_called(
  tmp_path, labelmap, empty
):
  series, mask = series_of(tmp_path / 'in'), noise() * (not empty)
  own = OF | {'labelmap': labelmap}
  structures = measured_of(mask, series)
  paths = [tmp_path / name for name in ('seg', 'sr', 'seg2', 'sr2')]
  for seg, report in (paths[:2], paths[2:]):
    segmentation.write(seg, mask, series, **own)
    structured_report.write(report, structures, mask, series, **own)
  for one, other in zip(paths[:2], paths[2:], strict=True):
    assert one.read_bytes() == other.read_bytes()
  segments, report = pydicom.dcmread(paths[0]), hd.sr.srread(paths[1])
  assert segments.SegmentationType == ('LABELMAP' if labelmap else 'BINARY')
  named = {
    segment.SegmentNumber: (str(segment.TrackingID), segment.TrackingUID)
    for segment in segments.SegmentSequence
    if segment.SegmentNumber  # 0: a label map's background
  }
  assert [*named] == [1, 2, 3]
  content = report.content
  for group in content.get_volumetric_roi_measurement_groups():
    refers = group.referenced_segment
    assert refers.referenced_sop_class_uid == segments.SOPClassUID
    assert refers.referenced_sop_instance_uid == segments.SOPInstanceUID
    [number] = np.ravel(refers.referenced_segment_numbers)
    tracked = group.tracking_identifier, group.tracking_uid
    assert tracked == named[number]
  lesions = content.get_image_measurement_groups()
  assert len(lesions) == len(structures[1].measured.lesions)
  uids = {group.tracking_uid for group in lesions}
  assert len(uids) == len(lesions)
  assert not uids & {uid for _, uid in named.values()}
  found = label_objects.look(paths[0])
  read, _ = label_objects.read(found, series, CLASSES[1:])
  np.testing.assert_array_equal(read, mask)
  # dciodvfy (of 2022) knows no label maps, and takes them for no segmentation.
  assert_valid(paths[0], *_NO_LABEL_MAP * labelmap)
  assert_valid(paths[1], *[_NO_SEGMENTATION] * labelmap)


@pytest.mark.parametrize('name', ['rings', 'noise', 'dense'])
def test_a_keyhole_is_one_contour_of_the_same_pixels(tmp_path, name):
  rng = np.random.default_rng(3)
  dense = (rng.random((4, 21, 23)) < 0.8).astype(int)
  mask = {'rings': RINGS, 'noise': noise(), 'dense': dense}[name]
  series = series_of(tmp_path / 'in', mask.shape, spacing=(0.5, 1.0))
  path, plain = tmp_path / 'rt.dcm', tmp_path / 'plain.dcm'
  structure_set.write(path, mask, series, keyhole=True, **OF)
  np.testing.assert_array_equal(read_mask(path, series, CLASSES[1:]), mask)
  structure_set.write(plain, mask, series, **OF)
  np.testing.assert_array_equal(read_mask(plain, series, CLASSES[1:]), mask)
  sets = [pydicom.dcmread(p) for p in (path, plain)]
  assert sets[0].SOPInstanceUID != sets[1].SOPInstanceUID
  drawn = [len(s.ROIContourSequence[0].ContourSequence) for s in sets]
  assert drawn[0] < drawn[1] or name == 'noise'
  assert_valid(path)
  if name == 'rings':  # the ring and the island, which is a ring, too
    assert drawn[0] == 2 * 2
  for plane in mask == 1:
    # Each turns around its pixels once, its holes the other way round.
    areas = [area(points) for points in contours.of_slice(plane, keyhole=True)]
    turned = [area(points) for points in contours.of_slice(plane)]
    assert sum(areas) == pytest.approx(sum(turned))
    assert len({np.sign(one) for one in areas}) == 1


def area(points):
  """Returns the signed area that a contour encloses."""
  x, y = points.T
  return 0.5 * (x @ np.roll(y, 1) - y @ np.roll(x, 1))


def test_targets_are_gross_tumour_volumes(tmp_path):
  series, path = series_of(tmp_path / 'in'), tmp_path / 'rt.dcm'
  structure_set.write(path, noise(), series, targets=('tumour',), **OF)
  observed = pydicom.dcmread(path).RTROIObservationsSequence
  kinds = [str(one.RTROIInterpretedType) for one in observed]
  assert kinds == ['ORGAN', 'GTV', 'ORGAN']
  assert_valid(path)


def copied(series, folder):
  """Returns the paths of a copy."""
  folder.mkdir()
  names, paths = repair.names_of(series), []
  for i, source in enumerate(names.instances):
    paths.append(folder / f'{i}.dcm')
    repair.write(paths[-1], source, series, names)
  return paths


def assert_repaired(paths, folder):
  """Returns the copy of a series, which is the same, but for its names."""
  before = {path: path.read_bytes() for path in paths}
  series = dicom_series.only(paths)
  with pytest.raises(InputError, match='repair_identity'):
    identity.check(series)
  made = copied(series, folder / 'copy')
  again = copied(series, folder / 'again')
  assert [p.read_bytes() for p in made] == [p.read_bytes() for p in again]
  copy = dicom_series.only(made)
  identity.check(copy)
  known = repair.renamed(series, repair.names_of(series))
  for one, other in zip(copy.frames, known.frames, strict=True):
    assert one[-4:-1] == other[-4:-1]  # study, series, instance
    place = one.header.FrameOfReferenceUID
    assert place == other.header.FrameOfReferenceUID
  ours, theirs = reading.read_volume(copy), reading.read_volume(series)
  np.testing.assert_array_equal(ours.array, theirs.array)
  np.testing.assert_array_equal(ours.affine, theirs.affine)
  assert {path: path.read_bytes() for path in paths} == before
  return copy


def test_a_copy_has_the_names_that_a_real_series_lacks(real_data, tmp_path):
  paths = sorted((real_data / 'dicom' / 'ct_series').glob('*'))[:4]
  copy = assert_repaired(paths, tmp_path)
  assert_valid(copy.first.path)
  mask = np.zeros((4, 512, 512), int)
  mask[:, 200:230, 180:240], mask[1:, 300:310, 220:225] = 1, 2
  segmentation.write(tmp_path / 'seg.dcm', mask, copy, **OF)
  structure_set.write(tmp_path / 'rt.dcm', mask, copy, **OF)
  found = hd.seg.segread(tmp_path / 'seg.dcm')
  read = found.get_pixels_by_source_instance(
    [frame.instance for frame in copy.frames],
    segment_numbers=[1, 2, 3],
    assert_missing_frames_are_empty=True,
  )
  np.testing.assert_array_equal(read, mask[..., None] == [1, 2, 3])
  for name in ('seg.dcm', 'rt.dcm'):
    assert_valid(tmp_path / name)


def test_a_copy_keeps_what_is_there_and_of_frames_in_one_file(tmp_path):
  paths = write(tmp_path / 'in', values())
  copy = assert_repaired(paths, tmp_path)  # it lacks the frame of reference
  assert copy.first.study == '1.2.3' and copy.first.series != '1.2.3.4'
  (tmp_path / 'frames').mkdir()
  enhanced(tmp_path / 'all', values((4, 9, 11)), (2, 0, 3, 1))
  copy = assert_repaired([tmp_path / 'all'], tmp_path / 'frames')
  assert len({frame.instance for frame in copy.frames}) == 1


def test_what_no_copy_can_mend_is_one_line(tmp_path):
  for path in (paths := write(tmp_path, values(), Modality='XX')):
    dataset = pydicom.dcmread(path)
    del dataset.SOPClassUID
    del dataset.file_meta.MediaStorageSOPClassUID
    dataset.save_as(path, enforce_file_format=False)
  series = dicom_series.only(paths)
  with pytest.raises(InputError) as error:
    repair.check(series)
  assert_one_line(error, "Modality 'XX'", 'CT, MR, PT')
