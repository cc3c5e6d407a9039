"""Tilted series through the whole program, with a network that is a threshold.

What is right is known in the patient's coordinates: a ball.
"""

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_cases import write
from scipy.spatial.transform import Rotation
from test_clinic import complete
from test_dicom_predict import hashes, run, untrained

from medseg_jax.experiment import trained_model

SHAPE, SPACING, GAP = (16, 22, 24), (1.1, 0.9), 1.5
CENTRE, RADIUS = np.array([20.0, -30.0, 40.0]), 5.0
DIRECTIONS = Rotation.from_euler('xyz', [20, -12, 5], degrees=True).as_matrix()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return untrained(tmp_path_factory.mktemp('model'))


def origins(degrees):
  """Returns where slices begin, and where pixels lie, in mm, left posterior."""
  row, column, normal = DIRECTIONS.T
  step = GAP * (normal + np.tan(np.radians(degrees)) * column)
  index = np.indices(SHAPE).reshape(3, -1).T
  offsets = index @ np.array([step, SPACING[0] * column, SPACING[1] * row])
  first = CENTRE - offsets.mean(0)
  places = (first + offsets).reshape(*SHAPE, 3)
  return step, places


def inside(places):
  """Returns mm to the surface of the ball, above 0 in it."""
  return RADIUS - np.linalg.norm(places - CENTRE, axis=-1)


def scan(folder, degrees):
  """Writes a series that is above 0 HU in the ball; returns files, places."""
  step, places = origins(degrees)
  stored = np.rint(1000 + 900 * np.tanh(inside(places) / 3)).astype(np.int16)
  row, column, _ = DIRECTIONS.T
  paths = write(
    folder, stored, step=step, origin=places[0, 0, 0], spacing=SPACING,
    directions=(*row, *column),
  )  # fmt: skip
  complete(paths)
  return paths, places, stored.astype(float) - 1000


def use_threshold(monkeypatch, values):
  """Has the program take class 1 where an image is above 0 HU."""
  zero = (0 - values.mean()) / values.std()
  compiled = trained_model.compile_predictor

  def predict(tiles):
    tiles = np.asarray(tiles)
    return np.concatenate([zero - tiles, tiles - zero, 0 * tiles - 9], -1)

  monkeypatch.setattr(
    trained_model,
    'compile_predictor',
    lambda *args, **own: compiled(*args, **own)._replace(predict_fn=predict),
  )


@pytest.mark.parametrize('degrees', [0, 4, 13, 25, -25])
def test_the_mask_and_its_frames_lie_on_the_native_slices(
  model, tmp_path, monkeypatch, degrees
):
  study, out = tmp_path / 'study', tmp_path / 'out'
  _, places, values = scan(study, degrees)
  use_threshold(monkeypatch, values)
  before = hashes(study)
  run(model, study, out, formats=('nifti', 'seg'))
  image = nibabel.load(out / 'study' / 'mask.nii.gz')
  for i in range(SHAPE[0]):
    place = (image.affine @ [0, 0, i, 1])[:3] * [-1, -1, 1]
    np.testing.assert_allclose(place, places[i, 0, 0], atol=1e-4)
  mask = image.get_fdata().transpose(2, 1, 0)
  depth = inside(places)
  clear = np.abs(depth) > 0.1  # mm
  np.testing.assert_array_equal(mask[clear], depth[clear] > 0)
  segments = pydicom.dcmread(out / 'study' / 'seg.dcm')
  groups = segments.PerFrameFunctionalGroupsSequence
  planes = segments.pixel_array.reshape(-1, *SHAPE[1:])
  drawn = np.zeros(SHAPE)
  for group, plane in zip(groups, planes, strict=True):
    own = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    far = np.abs(places[:, 0, 0] - own).max(1)
    assert far.min() < 1e-4
    identity = group.SegmentIdentificationSequence[0]
    if identity.ReferencedSegmentNumber == 1:
      drawn[far.argmin()] = plane
    else:
      assert not plane.any()
  np.testing.assert_array_equal(drawn, mask)
  assert hashes(study) == before


def test_names_and_numbers_of_a_tilted_series_change_no_bit_of_its_mask(
  model, tmp_path
):
  paths, _, _ = scan(tmp_path / 'a' / 'study', 13)
  (tmp_path / 'b' / 'study').mkdir(parents=True)
  order = np.random.default_rng(1).permutation(len(paths))
  for path, i in zip(paths, order, strict=True):
    dataset = pydicom.dcmread(path)
    dataset.InstanceNumber = int(i)
    dataset.SliceLocation = -float(i)
    dataset.AcquisitionTime = f'{120000 + i}'
    dataset.save_as(tmp_path / 'b' / 'study' / f'{i:04d}.dcm')
  for name in 'ab':
    run(model, tmp_path / name / 'study', tmp_path / f'out_{name}')
  masks = [
    nibabel.load(tmp_path / f'out_{name}' / 'study.nii.gz') for name in 'ab'
  ]
  assert len(np.unique(masks[0].get_fdata())) > 1
  np.testing.assert_array_equal(*(mask.get_fdata() for mask in masks))
  np.testing.assert_array_equal(*(mask.affine for mask in masks))
