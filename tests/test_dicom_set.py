"""A data set of DICOM series with masks as DICOM objects or as volumes."""

import json
import re

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_cases import values, write
from test_clinic import MEANINGS, OF, complete, noise

from medseg_jax.clinic import segmentation, structure_set
from medseg_jax.data.formats.dicom import label_objects, reading
from medseg_jax.data.sources.dicom_set import open_dicom
from medseg_jax.runtime.errors import InputError, InputErrors

SHAPE = (5, 9, 11)


def study(root, name, kind, number=0, classes=(1, 2)):
  """Writes a series and its mask; returns the mask `[n, rows, columns]`."""
  uid = f'1.2.3.{name and sum(map(ord, name))}'
  paths = write(root / name / 'scan', values(SHAPE) + number)
  complete(paths)
  for path in paths:
    dataset = pydicom.dcmread(path)
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = uid
    dataset.SOPInstanceUID = f'{uid}.{dataset.InstanceNumber}'
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path)
  [series] = reading.read_files(paths).series
  mask = np.roll(noise(SHAPE), number, 1)
  mask[~np.isin(mask, classes)] = 0
  place = root / name / 'mask'
  place.mkdir()
  if kind == 'nifti':
    affine = np.diag([-1, -1, 1, 1]) @ series.affine
    image = nibabel.Nifti1Image(mask.transpose(2, 1, 0).astype('u1'), affine)
    image.to_filename(root / name / 'scan_label.nii.gz')
  else:
    module = segmentation if kind == 'seg' else structure_set
    module.write(place / f'{kind}.dcm', mask, series, **OF)
  return mask


def opened(root, cache, **options):
  [(split, source)] = open_dicom(root, cache=cache, **options).items()
  assert split == 'train'
  return source


def test_series_with_segments_and_with_contours(tmp_path):
  root, cache = tmp_path / 'set', tmp_path / 'cache'
  masks = [study(root, 'a', 'seg'), study(root, 'b', 'rtstruct', 1)]
  study(root, 'c', 'seg', 2)
  (root / 'c' / 'mask' / 'seg.dcm').unlink()
  before = {path: path.read_bytes() for path in root.rglob('*.*')}
  source = opened(root, cache)
  assert source.names == ('a', 'b')
  # By name: the model that wrote them had another order.
  assert source.classes == ('background', 'liver', 'nowhere', 'tumour')
  assert source.channel_names == ('CT',)
  assert any('has no mask: not used' in line for line in source.oddities)
  to_ours = np.array([0, 1, 3])
  for i, mask in enumerate(masks):
    case = source[i]
    np.testing.assert_array_equal(case.label, to_ours[mask])
    np.testing.assert_array_equal(case.image[..., 0], values(SHAPE) + i - 1000)
  assert before == {path: path.read_bytes() for path in root.rglob('*.*')}
  # Written once; as a resolved config names the classes, too.
  [folder] = (cache / 'dicom').iterdir()
  first = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  again = opened(root, cache, classes=source.classes, label_values=(0, 1, 2, 3))
  assert again.names == source.names and again.classes == source.classes
  assert [*(cache / 'dicom').iterdir()] == [folder]
  assert first == {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  # Some of the classes, in another order, are another data set.
  some = opened(root, cache, classes=('background', 'tumour'))
  np.testing.assert_array_equal(some[0].label, masks[0] == 2)
  assert any('not in config.data.classes: liver' in o for o in some.oddities)
  notes = json.loads((folder / 'dicom.json').read_text())
  assert set(notes['sources']) == {'a', 'b'}


def test_volumes_are_masks_too(tmp_path):
  masks = [study(tmp_path / 'set', name, 'nifti') for name in 'ab']
  source = opened(tmp_path / 'set', tmp_path / 'cache')
  assert source.classes == ('background', 'label_1', 'label_2')
  np.testing.assert_array_equal(source[1].label, masks[1])


def test_overlapping_and_fractional_segments(tmp_path):
  root = tmp_path / 'set'
  mask = study(root, 'a', 'seg')
  path = root / 'a' / 'mask' / 'seg.dcm'
  dataset = pydicom.dcmread(path)
  assert dataset.SegmentSequence[0].SegmentLabel == MEANINGS[0].name
  # The second segment's frames count for the first one, too.
  dataset.SegmentSequence[1].SegmentLabel = MEANINGS[0].name
  dataset.save_as(path)
  source = opened(root, tmp_path / 'cache')
  np.testing.assert_array_equal(source[0].label, mask > 0)
  [series] = reading.read_files([*(root / 'a' / 'scan').iterdir()]).series
  of = label_objects.look(path)
  found, twice = label_objects.read(
    of._replace(names={1: 'x', 2: 'y'}), series, ('y', 'x')
  )
  np.testing.assert_array_equal(found, np.array([0, 2, 1])[mask])
  assert twice == 0


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    ('nothing', 'no mask of one'),
    ('two', '2 masks for one series'),
    ('lost', 'a mask of no series'),
    ('mixed', 'allowed are those of one kind'),
    ('elsewhere', 'lies on no slice'),
    ('cut', 'scan.*cannot be read|cut off'),
  ],
)
def test_what_is_no_data_set_is_told(tmp_path, change, match):
  root = tmp_path / 'set'
  study(root, 'a', 'seg')
  seg = root / 'a' / 'mask' / 'seg.dcm'
  if change == 'nothing':
    seg.unlink()
  elif change == 'two':
    (root / 'again.dcm').write_bytes(seg.read_bytes())
  elif change == 'lost':
    for path in (root / 'a' / 'scan').iterdir():
      path.unlink()
  elif change == 'mixed':
    study(root, 'b', 'nifti')
  elif change == 'elsewhere':
    dataset = pydicom.dcmread(seg)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
      place = frame.PlanePositionSequence[0]
      place.ImagePositionPatient = [7, 7, 999]
    dataset.save_as(seg)
  else:
    first = next((root / 'a' / 'scan').iterdir())
    first.write_bytes(first.read_bytes()[:400])
  with pytest.raises(InputErrors) as error:
    opened(root, tmp_path / 'cache')
  problems = error.value.problems
  assert any(re.search(match, line) for line in problems), problems
  assert not [*tmp_path.glob('cache/dicom/*')]


def test_unknown_classes_and_folders(tmp_path):
  study(tmp_path / 'set', 'a', 'seg')
  with pytest.raises(InputError, match="'spleen', which no mask.*liver"):
    opened(
      tmp_path / 'set', tmp_path / 'cache', classes=('background', 'spleen')
    )
  with pytest.raises(InputError, match='no folder'):
    opened(tmp_path / 'nowhere', tmp_path / 'cache')
