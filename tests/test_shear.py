"""Sheared volumes come to right angles and back: against what lies in space."""

import nibabel
import numpy as np
import pytest

from medseg_jax.data import shear
from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.preprocess import Preprocessing, prepared_shape, preprocess
from medseg_jax.inference.cases import predict_cases

SHAPE = (20, 40, 32)


def tilted(degrees, *, spacing=(1.5, 1.0, 0.8), more=(0.0, 0.0)):
  """Returns an affine whose first axis leans, as of (z, y, x)."""
  affine = np.diag([*spacing, 1.0])
  affine[1, 0] = spacing[0] * np.tan(np.radians(degrees))
  affine[2, 0], affine[2, 1] = more
  turn = nibabel.eulerangles.euler2mat(0.2, -0.1, 0.3)
  affine[:3, :3] = turn @ affine[:3, :3]
  affine[:3, 3] = (-7, 5, 11)
  return affine


AFFINES = {
  'tilt': tilted(20),
  'back': tilted(-15, more=(0.4, 0)),
  'all': tilted(12, more=(0.5, -0.2)),
}


def places(affine, shape):
  """Returns where voxels lie in mm, `[*shape, 3]`."""
  index = np.stack(np.indices(shape), -1)
  return index @ affine[:3, :3].T + affine[:3, 3]


def wave(mm):
  """Something smooth that differs along all directions."""
  return np.sin(mm @ [0.1, 0.2, 0.25]) + 0.02 * mm @ [1, -2, 3]


def upright(affine, of):
  """Returns the affine of the upright grid, from its definition alone."""
  found = np.eye(4)
  found[:3, :3] = affine[:3, :3] @ np.linalg.inv(of.moves)
  found[:3, 3] = found[:3, :3] @ of.corner + affine[:3, 3]
  return found


@pytest.mark.parametrize('name', AFFINES)
@pytest.mark.parametrize('axes', [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_upright_grid_is_at_right_angles_and_holds_all(name, axes):
  affine = AFFINES[name]
  of = shear.shear_of(affine, axes, SHAPE)
  own = affine[:, [*axes, 3]]
  grid = upright(own, of)
  steps = grid[:3, :3]
  expected = np.diag(np.square(of.spacing))
  np.testing.assert_allclose(steps.T @ steps, expected, atol=1e-9)
  volume = abs(np.linalg.det(affine[:3, :3]))
  assert np.prod(of.spacing) == pytest.approx(volume)
  # Its last axis is as it was, and every voxel lies in it, on its own plane.
  np.testing.assert_allclose(steps[:, 2], own[:3, 2], atol=1e-9)
  index = (places(own, SHAPE) - grid[:3, 3]) @ np.linalg.inv(steps).T
  low, high = index.min((0, 1, 2)), index.max((0, 1, 2))
  assert (low > -1e-6).all() and (high < np.array(of.upright) - 1 + 1e-6).all()
  assert (low < 1).all() and (high > np.array(of.upright) - 2).all()
  np.testing.assert_allclose(
    index[..., 0].T, np.arange(SHAPE[0]) + 0 * index[..., 0].T, atol=1e-6
  )


@pytest.mark.parametrize('name', AFFINES)
def test_values_lie_where_they_were_measured(name):
  affine = AFFINES[name]
  of = shear.shear_of(affine, (0, 1, 2), SHAPE)
  native, true = places(affine, SHAPE), places(upright(affine, of), of.upright)
  image = np.stack([wave(native), -wave(native)], -1).astype(np.float32)
  moved = shear.to_upright(image, of)
  assert moved.shape == (*of.upright, 2) and moved.dtype == np.float32
  index = (true - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
  deep = ((index >= 3) & (index <= np.array(SHAPE) - 4))[..., 1:].all(-1)
  assert deep.sum() > 800
  np.testing.assert_allclose(moved[deep, 0], wave(true)[deep], atol=2e-3)
  np.testing.assert_array_equal(moved[..., 1], -moved[..., 0])
  # And back, in slabs: linearly, so what is linear is as it was.
  line = (true @ [0.3, -1, 2])[..., None].astype(np.float32)
  slabs = [line[:5], line[5:6], line[6:]]
  back = list(shear.from_upright(slabs, of))
  assert [len(slab) for slab in back] == [5, 1, 14]
  np.testing.assert_allclose(
    np.concatenate(back)[..., 0], native @ [0.3, -1, 2], atol=1e-3
  )


def test_labels_come_along_and_are_told_beside_the_planes():
  affine = AFFINES['tilt']
  of = shear.shear_of(affine, (0, 1, 2), SHAPE)
  centre = places(affine, SHAPE).mean((0, 1, 2))

  def ball(mm):
    far = np.linalg.norm(mm - centre, axis=-1)
    return (far < 8).astype(np.int16) + (far < 4)

  moved = shear.label_to_upright(ball(places(affine, SHAPE)), of)
  true = places(upright(affine, of), of.upright)
  index = (true - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
  inside = (index > -0.49) & (index < np.array(SHAPE) - 0.51)
  np.testing.assert_array_equal(moved >= 0, inside.all(-1))
  far = np.linalg.norm(true - centre, axis=-1)
  clear = inside.all(-1) & (np.abs(far - 8) > 0.5) & (np.abs(far - 4) > 0.5)
  np.testing.assert_array_equal(moved[clear], ball(true)[clear])
  assert set(np.unique(moved)) == {-1, 0, 1, 2}


def test_what_is_upright_stays_as_it_is():
  assert shear.shear_of(tilted(0), (0, 1, 2), SHAPE) is None
  assert shear.shear_of(tilted(0.05), (0, 1, 2), SHAPE) is None
  assert shear.shear_of(None, (0, 1, 2), SHAPE) is None
  assert shear.shear_of(tilted(9), (0, 1), SHAPE[:2]) is None
  assert shear.spacing_of(tilted(0)) == pytest.approx((1.5, 1, 0.8))


@pytest.mark.parametrize('axes', [(), (0, 1, 2), (1, 0, 2)])
@pytest.mark.parametrize('spacing', [(), (1.2, 1.0, 1.0)])
def test_a_network_sees_right_angles_and_its_mask_lies_on_the_slices(
  axes, spacing
):
  affine = AFFINES['tilt']
  native = places(affine, SHAPE)
  centre = native.mean((0, 1, 2))

  def ball(mm):
    return 8 - np.linalg.norm(mm - centre, axis=-1)

  image = ball(native)[..., None].astype(np.float32)
  label = (ball(native) > 0).astype(np.int16)
  case = Case('a', image, label, shear.spacing_of(affine), affine)
  settings = Preprocessing(axes=axes, spacing=spacing)
  seen = preprocess(case, settings)
  assert seen.image.shape[:-1] == seen.label.shape
  if spacing:
    assert seen.image.shape[:-1] == prepared_shape(case, settings)
  # A ball is as wide along each axis at right angles, not along leaning ones.
  order = axes or (0, 1, 2)
  of = shear.shear_of(affine, order, [SHAPE[axis] for axis in order])
  mm = np.array(spacing or of.spacing)
  inside = np.argwhere(seen.label == 1) * mm
  spread = np.linalg.eigvalsh(np.cov(inside.T)) ** 0.5
  np.testing.assert_allclose(spread, spread.mean(), rtol=0.03)
  leaning = np.argwhere(label == 1) * np.linalg.norm(affine[:3, :3], axis=0)
  assert np.ptp(np.linalg.eigvalsh(np.cov(leaning.T)) ** 0.5) > 0.6
  # A network that finds the ball by its values.
  zero = (0 - image.mean()) / image.std()
  [found] = predict_cases(
    lambda tiles: np.concatenate([0 * tiles, tiles - zero], -1),
    [case],
    preprocessing=settings,
    channels=1,
    patch_size=(32, 64, 32),
    overlap=0.5,
    batch_size=1,
    probabilities=True,
  )
  assert found.label.shape == SHAPE and found.probs.shape == (*SHAPE, 2)
  clear = np.abs(ball(native)) > 0.5
  np.testing.assert_array_equal(found.label[clear], label[clear])


def test_a_sheared_nifti_has_the_volume_of_its_voxels(tmp_path):
  affine = np.diag([0.8, 1.0, 3.0, 1.0])
  affine[1, 2] = 1.2
  array = np.random.default_rng(0).integers(0, 99, (9, 8, 7), np.int16)
  nibabel.Nifti1Image(array, affine).to_filename(tmp_path / 'a.nii')
  volume = nifti.read_image(tmp_path / 'a.nii')
  assert volume.spacing == pytest.approx((3, 1, 0.8))
  assert np.prod(volume.spacing) == pytest.approx(
    abs(np.linalg.det(volume.affine))
  )
  # What is written on it has its own geometry, lengths of leaning axes too.
  nifti.write_label(
    tmp_path / 'b.nii.gz', volume.array[..., 0], tmp_path / 'a.nii'
  )
  written = nibabel.load(tmp_path / 'b.nii.gz')
  np.testing.assert_allclose(written.affine, affine, atol=1e-6)
  np.testing.assert_array_equal(written.get_fdata(), array)
