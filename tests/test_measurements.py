"""Volumes, diameters and intensities, against other programs and by hand."""

import csv
import io
import json

import numpy as np
import pytest
import SimpleITK as sitk
from ml_collections import ConfigDict
from scipy import ndimage, spatial
from skimage import measure

from medseg_jax.clinic import codes, diameters, measurements, numbers
from medseg_jax.experiment import clinic_formats
from medseg_jax.runtime.errors import InputError

AFFINE = np.array(
  [
    [0.1, -0.2, -0.9, 40.0],
    [0.2, -0.8, 0.3, -7.0],
    [2.1, 0.1, 0.1, 300.0],
    [0, 0, 0, 1],
  ]
)


def blobs(seed=0, shape=(14, 31, 27)):
  rng = np.random.default_rng(seed)
  smooth = ndimage.gaussian_filter(rng.normal(size=shape), (1, 2, 2))
  return (smooth > 0.07).astype(np.int16)


def test_each_lesion_is_as_simple_itk_measures_it():
  label = blobs()
  image = np.random.default_rng(1).normal(50, 9, (*label.shape, 2))
  found = measurements.measure(label, image, AFFINE, indices=(1,), lesions=True)
  as_itk = sitk.GetImageFromArray(label)
  parts = sitk.ConnectedComponent(as_itk, True)
  counted = sitk.LabelIntensityStatisticsImageFilter()
  counted.Execute(parts, sitk.GetImageFromArray(image[..., 1]))
  labels = sorted(
    counted.GetLabels(), key=lambda i: -counted.GetNumberOfPixels(i)
  )
  assert len(found.lesions) == len(labels) > 5
  sizes = [counted.GetNumberOfPixels(i) for i in labels]
  assert [lesion.voxels for lesion in found.lesions] == sizes
  voxel = abs(np.linalg.det(AFFINE[:3, :3]))
  assert found.voxels == sum(sizes) == label.sum()
  assert found.volume == pytest.approx(sum(sizes) * voxel / 1000)
  by_size = {size: i for i, size in zip(labels, sizes, strict=True)}
  once = [i for i, size in by_size.items() if sizes.count(i) == 1]
  assert len(once) > 3
  for lesion in found.lesions:
    if lesion.voxels not in once:
      continue
    i = by_size[lesion.voxels]
    n = lesion.voxels
    of = lesion.intensity[1]
    assert of.mean == pytest.approx(counted.GetMean(i))
    if n > 1:  # ITK divides by one less
      sd = counted.GetStandardDeviation(i) * np.sqrt((n - 1) / n)
      assert of.sd == pytest.approx(sd)
    middle = np.array(counted.GetCentroid(i))[::-1]
    right, anterior, superior, _ = AFFINE @ [*middle, 1]
    np.testing.assert_allclose(lesion.centroid, (-right, -anterior, superior))
    at_border = counted.GetNumberOfPixelsOnBorder(i) > 0
    assert lesion.at_border == at_border
  assert {lesion.at_border for lesion in found.lesions} == {True, False}


def test_the_longest_diameter_is_that_of_scikit_images_contours():
  label = blobs(3)
  found = diameters.measure(label > 0, np.eye(3)[:, 1:] * 0.7)
  longest = 0.0
  for section in np.pad(label, 1)[1:-1]:
    for line in measure.find_contours(section.astype(float), 0.5):
      longest = max(longest, spatial.distance.pdist(line).max())
  assert found.longest == pytest.approx(0.7 * longest)
  ends = found.ends * 0.7
  assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(found.longest)
  assert np.linalg.norm(ends[2] - ends[3]) == pytest.approx(found.perpendicular)
  assert (ends[0] - ends[1]) @ (ends[2] - ends[3]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize('turn', [0.0, 0.4, 1.2])
def test_an_ellipse_has_the_diameters_that_it_was_drawn_with(turn):
  """In pixels of another length each way, on the third of five slices."""
  rows, columns = np.indices((160, 120))
  y, x = (rows - 80) * 0.5, (columns - 60) * 0.8
  c, s = np.cos(turn), np.sin(turn)
  inside = ((c * x + s * y) / 25) ** 2 + ((c * y - s * x) / 12) ** 2 < 1
  mask = np.zeros((5, *inside.shape), bool)
  mask[1:4] = inside
  mask[1, 70:90] = mask[3, 70:90] = False
  found = diameters.measure(mask, np.array([[0.5, 0], [0, 0.8], [0, 0]]))
  assert found.slice_index == 2
  assert found.longest == pytest.approx(50, abs=0.8)
  assert found.perpendicular == pytest.approx(24, abs=0.8)


def test_a_chord_stays_within_a_horseshoe():
  mask = np.zeros((1, 40, 40), bool)
  mask[0, 5:35, 5:11] = mask[0, 5:35, 29:35] = mask[0, 29:35, 5:35] = True
  found = diameters.measure(mask, np.eye(3)[:, 1:])
  # By brute force: along lines at right angles, what lies within.
  ends = found.ends
  along = (ends[1] - ends[0]) / found.longest
  across = np.array([-along[1], along[0]])
  steps = np.arange(-60, 60, 0.02)
  best = 0.0
  for t in np.arange(0, found.longest, 0.1):
    line = ends[0] + t * along + steps[:, None] * across
    values = ndimage.map_coordinates(mask[0].astype(float), line.T, order=1)
    runs, count = ndimage.label(values > 0.5)
    if count:
      best = max(best, np.bincount(runs)[1:].max() * 0.02)
  assert found.perpendicular == pytest.approx(best, abs=0.25)


def test_pieces_that_touch_at_a_corner_are_one():
  diagonal = np.eye(10, dtype=bool)[None]
  found = diameters.measure(diagonal, np.eye(3)[:, 1:])
  # From edge to edge of the outer pixels, whose contours are diamonds.
  assert found.longest == pytest.approx(9 * 2**0.5 + 0.7, abs=0.5)
  squares = np.zeros((1, 30, 30), bool)
  squares[0, 2:12, 2:12] = squares[0, 12:22, 12:22] = True
  found = diameters.measure(squares, np.eye(3)[:, 1:])
  assert found.longest == pytest.approx(20 * 2**0.5, abs=1)
  assert found.perpendicular == pytest.approx(10 * 2**0.5, abs=1)
  ring = np.zeros((1, 30, 30), bool)
  ring[0, 2:22, 2:22], ring[0, 6:18, 6:18] = True, False
  whole = np.zeros((1, 30, 30), bool)
  whole[0, 2:22, 2:22] = True
  for found, other in zip(
    *(diameters.measure(m, np.eye(3)[:, 1:]) for m in (ring, whole)),
    strict=True,
  ):
    np.testing.assert_allclose(found, other)


def test_words_that_make_a_lesion():
  names = (
    'background', 'liver tumor', 'kidney_cyst', 'spinal_score', 'encore',
    'gallbladder_cystic_duct', 'masses', 'enhancing core', 'cerebellum',
    'WMH', 'infarct', 'edema',
  )  # fmt: skip
  told = [meaning.name for meaning in codes.meanings(names) if meaning.lesion]
  assert told == [
    'liver tumor', 'kidney_cyst', 'masses', 'enhancing core', 'WMH', 'infarct',
    'edema',
  ]  # fmt: skip
  [meaning] = codes.meanings(('background', 'x'), lesions=('x',))
  assert meaning.lesion
  with pytest.raises(InputError, match="config.clinic.lesions has 'y'"):
    codes.meanings(('background', 'x'), lesions=('y',))


def test_classes_and_regions_share_a_table():
  config = ConfigDict()
  config.data = dict(
    classes=('background', 'core', 'edema'),
    regions=(('whole', (1, 2)), ('core', (1,))),
  )
  config.clinic = dict(codes=(('whole', '1', 'W'),), lesions=('edema', 'whole'))
  of_classes, of_regions = clinic_formats.meanings(config)
  assert [m.lesion for m in of_classes] == [False, True]
  assert [(m.name, m.lesion) for m in of_regions] == [
    ('whole', True), ('core', False)
  ]  # fmt: skip
  assert of_regions[0].kind == ('1', 'W')


def test_single_voxels_and_nothing():
  mask = np.zeros((3, 4, 5), bool)
  assert diameters.measure(mask, np.eye(3)[:, 1:]) is None
  mask[1, 2, 3] = True
  one = diameters.measure(mask, np.eye(3)[:, 1:] * 2)
  assert (one.longest, one.slice_index) == (pytest.approx(2), 1)
  assert one.perpendicular == pytest.approx(2, abs=1e-3)
  nothing = measurements.measure(
    np.zeros((3, 4, 5), int), np.zeros((3, 4, 5, 1)), AFFINE, indices=(1, 2)
  )
  assert nothing == measurements.NOTHING
  with pytest.raises(ValueError, match=r'\[z, y, x\]'):
    measurements.measure(mask, np.zeros((3, 4, 5)), AFFINE, indices=(1,))


@pytest.mark.parametrize(
  ('sizes', 'axis'),
  [((2, 1, 1), 0), ((1, 1, 4), 2), ((1, 4, 1), 1), ((0.6, 0.7, 0.7), 0)],
)
def test_slices_lie_across_the_longest_voxels(sizes, axis):
  assert measurements.slice_axis(np.diag([*sizes, 1.0])) == axis


def test_the_diameter_of_sagittal_slices_lies_in_the_patient():
  label = np.zeros((20, 30, 6), int)
  label[4:14, 10, 3] = 1
  affine = np.zeros((4, 4))  # x to the left, y to the back, z up
  affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 1, -1, -3, 1
  found = measurements.measure(
    label, np.zeros((*label.shape, 1)), affine, indices=(1,)
  )
  assert found.diameters.longest == pytest.approx(10)
  ends = sorted(found.ends[:2], key=lambda end: end[2])
  np.testing.assert_allclose(ends, [(9, 10, 3.5), (9, 10, 13.5)])


def report_of(label, lesion_names=()):
  image = np.random.default_rng(2).normal(size=(*label.shape, 2))
  structures = []
  meanings = codes.meanings(
    ('background', 'liver', 'spot'),
    [('liver', '10200004', 'Liver')],
    lesion_names,
  )
  for i, meaning in enumerate(meanings):
    measured = measurements.measure(
      label, image, AFFINE, indices=(i + 1,), lesions=meaning.lesion
    )
    interval = (1.0, np.inf) if i == 0 else ()
    structures.append(numbers.Structure(meaning, measured, interval))
  return numbers.to_json(
    'case',
    structures,
    channels=('a', 'b'),
    coverage=0.9,
    about={'image': {'shape': label.shape}},
  )


def test_json_and_table_tell_the_same():
  label = blobs(5) * 2
  label[2:5, 3:9, 3:9] = 1
  report = report_of(label, ('spot',))
  assert json.loads(json.dumps(report, allow_nan=False))['format'] == 1
  liver, spot = report['structures']
  assert liver['code'] == {
    'scheme': 'SCT', 'code': '10200004', 'meaning': 'Liver', 'generic': False
  }  # fmt: skip
  assert liver['volume_interval_ml'] == [1.0, None] and 'lesions' not in liver
  assert spot['num_lesions'] == len(spot['lesions']) > 5
  rows = [*csv.DictReader(io.StringIO(numbers.to_csv(report, ('a', 'b'))))]
  assert [row['lesion'] for row in rows] == [
    '', '', *(str(i + 1) for i in range(spot['num_lesions']))
  ]  # fmt: skip
  assert rows[0]['low_ml'] == '1.0' and rows[0]['high_ml'] == ''
  for row, one in zip(rows, [liver, spot, *spot['lesions']], strict=True):
    assert float(row['volume_ml']) == one['volume_ml']
    assert float(row['sd_b']) == one['intensity']['b']['sd']
    place = [float(row[f'{to}_mm']) for to in ('left', 'posterior', 'superior')]
    assert place == one['centroid_lps_mm']


def test_an_empty_mask_has_no_lesions():
  report = report_of(np.zeros((3, 4, 5), int), ('spot',))
  spot = report['structures'][1]
  assert (spot['voxels'], spot['volume_ml'], spot['lesions']) == (0, 0.0, [])
  assert spot['longest_diameter_mm'] is None and spot['num_lesions'] == 0
  rows = [*csv.DictReader(io.StringIO(numbers.to_csv(report, ('a', 'b'))))]
  assert [row['volume_ml'] for row in rows] == ['0.0', '0.0']
