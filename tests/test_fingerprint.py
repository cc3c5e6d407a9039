"""Fingerprints against SciPy, NumPy on all voxels, and real scans."""

import json

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_one_line, box_oracle

from medseg_jax import planner
from medseg_jax.data import fingerprint as fp
from medseg_jax.data.case import Case
from medseg_jax.runtime.errors import InputError


def case(image, label, spacing=None, name='a case'):
  image = np.asarray(image)
  return Case(name, image, label, spacing or (1.0,) * (image.ndim - 1))


def test_a_case_is_cropped_and_sampled_in_its_foreground():
  rng = np.random.default_rng(0)
  image = np.zeros((6, 10, 12, 2), np.int16)
  inner = image[1:5, 2:9, 3:11]
  inner[..., 0] = rng.integers(1, 1000, inner.shape[:-1])
  inner[..., 1] = -3 * inner[..., 0]
  label = np.zeros((6, 10, 12), np.int8)
  label[2:4, 4:8, 5:9] = rng.integers(-1, 3, (2, 4, 4))
  got = fp.fingerprint_case(
    case(image, label, (3.0, 0.5, 0.5)), num_samples=50_000, seed=1
  )
  assert got.shape == (4, 7, 8)
  assert got.spacing == (3.0, 0.5, 0.5)
  assert got.relative_size == 4 * 7 * 8 / (6 * 10 * 12)
  values = got.intensities
  assert values.dtype == np.float32 and values.shape == (50_000, 2)
  np.testing.assert_array_equal(values[:, 1], -3 * values[:, 0])
  # Every foreground voxel about equally often, and no other (-1 is ignored).
  truth, times = np.unique(image[label > 0][:, 0], return_counts=True)
  found, counts = np.unique(values[:, 0], return_counts=True)
  np.testing.assert_array_equal(found, truth)
  expected = 50_000 * times / times.sum()
  assert np.abs(counts - expected).max() < 6 * np.sqrt(expected.max())


def test_the_sample_follows_the_seed():
  rng = np.random.default_rng(3)
  scan = case(rng.normal(size=(5, 6, 7, 1)), rng.integers(0, 2, (5, 6, 7)))
  draw = [
    fp.fingerprint_case(scan, num_samples=30, seed=s).intensities
    for s in (7, 7, 8)
  ]
  np.testing.assert_array_equal(draw[0], draw[1])
  assert (draw[0] != draw[2]).any()


def test_samples_of_all_cases_stay_within_the_cap():
  assert fp.samples_per_case(1) == 10_000_000
  for count in (3, 260, 1251):
    share = fp.samples_per_case(count)
    assert fp.MAX_SAMPLES - count < share * count <= fp.MAX_SAMPLES


def part(name='a', shape=(4, 5, 6), spacing=(1, 1, 1), size=1.0, values=()):
  values = np.asarray(values, np.float32)
  return fp.CaseFingerprint(name, shape, spacing, size, values)


def test_merge_gives_the_statistics_of_all_samples():
  rng = np.random.default_rng(5)
  draws = [rng.normal(40, 12, (n, 2)) * (1, 1e30) for n in (300, 1, 500)]
  parts = [
    part('a', (4, 5, 6), (1, 1, 1), 0.5, draws[0]),
    part('b', (8, 5, 2), (3, 1, 1), 0.7, draws[1]),
    part('no foreground', (8, 9, 9), (3, 2, 1), 0.1, np.zeros((0, 2))),
    part('c', (8, 9, 1), (3, 2, 1), 0.9, draws[2]),
  ]
  got = fp.merge(parts)
  assert got.num_cases == 4
  np.testing.assert_array_equal(
    got.shapes, [[4, 5, 6], [8, 5, 2], [8, 9, 9], [8, 9, 1]]
  )
  np.testing.assert_array_equal(
    got.spacings, [[1, 1, 1], [3, 1, 1], [3, 2, 1], [3, 2, 1]]
  )
  assert got.relative_size == pytest.approx(0.6)
  for found, values in zip(
    got.intensities, np.concatenate(draws).T, strict=True
  ):
    ordered = np.sort(values)
    rank = 0.005 * (len(values) - 1)
    low = ordered[3] + (rank - 3) * (ordered[4] - ordered[3])
    high = ordered[-4] - (rank - 3) * (ordered[-4] - ordered[-5])
    wanted = {
      'mean': values.mean(),
      'median': np.median(values),
      'std': np.sqrt(((values - values.mean()) ** 2).mean()),
      'min': ordered[0],
      'max': ordered[-1],
      'percentile_00_5': low,
      'percentile_99_5': high,
    }
    assert found == pytest.approx(wanted, rel=1e-4)
    json.dumps(found, allow_nan=False)


def test_what_cannot_be_merged_says_why():
  with pytest.raises(InputError) as error:
    fp.merge([part(values=np.zeros((0, 1)))] * 3)
  assert_one_line(error, 'in 3 training cases', 'foreground')
  flat = part('flat', (5, 6), (1, 1), 1.0, [[1.0]])
  with pytest.raises(InputError) as error:
    fp.merge([part('solid', values=[[1.0]]), flat])
  assert_one_line(error, 'flat has 2 axes', 'solid 3')
  two = part('two', values=[[1.0, 2.0]])
  with pytest.raises(InputError) as error:
    fp.merge([part('one', values=[[1.0]]), two])
  assert_one_line(error, 'two has 3 axes and 2 channels', 'one 3 and 1')
  with pytest.raises(ValueError, match='at least one case'):
    fp.merge([])


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_foreground_that_is_not_finite_names_the_case(value):
  image = np.ones((3, 4, 5, 1), np.float32)
  image[1] = value
  with pytest.raises(InputError) as error:
    fp.fingerprint_case(
      case(image, np.ones((3, 4, 5), int)), num_samples=100, seed=0
    )
  assert_one_line(error, 'a case', 'NaN or infinite')


def read(root, images, labels, name):
  """Returns a case with axes (z, y, x), read by nibabel alone."""
  image, label = (nib.load(root / folder / name) for folder in (images, labels))
  return Case(
    name,
    np.asanyarray(image.dataobj).T[..., None],
    np.asanyarray(label.dataobj).T,
    tuple(float(s) for s in image.header.get_zooms()[::-1]),
  )


def test_hippocampus_has_the_known_fingerprint_and_plan(real_data):
  root = real_data / 'hippocampus' / 'Task04_Hippocampus'
  names = sorted(p.name for p in (root / 'labelsTr').glob('hippo*.nii.gz'))
  got = fp.merge(
    [
      fp.fingerprint_case(
        read(root, 'imagesTr', 'labelsTr', name),
        num_samples=fp.samples_per_case(len(names)),
        seed=0,
      )
      for name in names
    ]
  )
  assert got.num_cases == 260
  np.testing.assert_array_equal(np.median(got.shapes, 0), [36, 50, 35])
  np.testing.assert_array_equal(np.median(got.spacings, 0), [1, 1, 1])
  assert got.relative_size > 0.75
  plan = planner.make_plan(
    got, dataset=root.name, num_classes=3, channel_names=['MRI']
  )
  planner.check_plan(plan)
  assert plan['normalization'][0]['scheme'] == 'zscore'
  full, flat = (plan['configurations'][k] for k in ('3d_fullres', '2d'))
  assert (full['patch_size'], full['batch_size']) == ([40, 56, 40], 9)
  assert (flat['patch_size'], flat['batch_size']) == ([56, 40], 366)


def test_the_sample_of_a_real_ct_stands_for_all_its_voxels(real_data):
  scan = read(real_data / 'ct_mr', 'images', 'labels', 'example_ct.nii.gz')
  one = fp.fingerprint_case(scan, num_samples=200_000, seed=0)
  (got,) = fp.merge([one]).intensities
  box = box_oracle(scan.image)
  assert one.shape == scan.label[box].shape
  values = scan.image[box][scan.label[box] > 0].astype(np.float64)
  # Within five standard errors of 200000 independent draws.
  mean, std = values.mean(), values.std()
  kurtosis = ((values - mean) ** 4).mean() / std**4
  error = 5 / np.sqrt(200_000)
  assert got['mean'] == pytest.approx(mean, abs=error * std)
  assert got['std'] == pytest.approx(std, rel=error * np.sqrt(kurtosis) / 2)
  for key, rank in (
    ('percentile_00_5', 0.005),
    ('median', 0.5),
    ('percentile_99_5', 0.995),
  ):
    tolerance = error * np.sqrt(rank * (1 - rank))
    assert (values < got[key]).mean() <= rank + tolerance
    assert (values <= got[key]).mean() >= rank - tolerance
