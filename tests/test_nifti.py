"""NIfTI files of every orientation and kind, read, aligned and written."""

import gzip
import itertools
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.nifti_align import align, gap_between

ORDERS = list(
  itertools.product(
    itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
  )
)
TILT = Rotation.from_euler('xyz', (25, -14, 33), degrees=True).as_matrix()
SPL = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])  # columns in R, A, S
RNG = np.random.default_rng(0)


def signed(order, signs, spacing=(0.7, 1.5, 4.0), tilt=None):
  """Returns an affine whose file axis i runs along world axis order[i]."""
  affine = np.eye(4)
  affine[:3, :3] = 0
  for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
    affine[axis, i] = sign * spacing[i]
  if tilt is not None:
    affine[:3, :3] = tilt @ affine[:3, :3]
  affine[:3, 3] = (-31.5, 12.25, 100)
  return affine


def save(path, array, affine=None, header=None, **fields):
  affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
  image = nib.Nifti1Image(array, affine, header, dtype=array.dtype)
  for name, value in fields.items():
    image.header[name] = value
  nib.save(image, path)
  return path


def position(array, affine, value):
  (index,) = np.argwhere(array == value)
  return affine[:3, :3] @ index + affine[:3, 3]


@pytest.mark.parametrize('tilt', [None, TILT], ids=['straight', 'oblique'])
def test_round_trip_of_all_orders(tmp_path, tilt):
  array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
  for axes, ways in ORDERS:
    affine = signed(axes, ways, tilt=tilt)
    path = save(tmp_path / 'a.nii', array, affine)
    stored = nib.load(path)
    volume = nifti.read_image(path)
    image = volume.array[..., 0]

    # z to Superior, y to Posterior, x to Left, as closely as any order.
    if tilt is None:
      codes = nib.aff2axcodes(volume.affine)
      assert codes == ('S', 'P', 'L'), (axes, ways)
    directions = volume.affine[:3, :3] / volume.spacing
    closeness = [
      np.trace(SPL.T @ directions[:, list(order)] * signs)
      for order, signs in ORDERS
    ]
    assert np.argmax(closeness) == ORDERS.index(((0, 1, 2), (1, 1, 1)))
    canonical = np.asarray(nib.as_closest_canonical(stored).dataobj)
    np.testing.assert_array_equal(image, canonical.T[:, ::-1, ::-1])
    assert volume.affine.dtype == np.float64
    for marked in (0, 17, 118):
      np.testing.assert_allclose(
        position(image, volume.affine, marked),
        position(array, stored.affine, marked),
        atol=1e-6,
      )
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(volume.spacing, sizes, rtol=1e-6)
    assert sorted(np.round(volume.spacing, 4)) == [0.7, 1.5, 4.0]

    grid = nifti.read_header(path)
    assert (grid.shape, grid.channels) == (image.shape, 1)
    assert grid.spacing == volume.spacing
    np.testing.assert_array_equal(grid.affine, volume.affine)

    nifti.write_label(tmp_path / 'b.nii', image, path)
    label = nib.load(tmp_path / 'b.nii')
    np.testing.assert_array_equal(np.asarray(label.dataobj), array)
    np.testing.assert_array_equal(label.affine, stored.affine)
    np.testing.assert_array_equal(
      nifti.read_label(tmp_path / 'b.nii').array, image
    )
    channels = np.stack([image, -image], axis=-1)
    nifti.write_volume(tmp_path / 'c.nii', channels, path)
    both = nib.load(tmp_path / 'c.nii')
    assert both.get_data_dtype() == np.float32
    np.testing.assert_array_equal(
      both.get_fdata(), np.stack([array, -array], axis=-1)
    )
    np.testing.assert_array_equal(both.affine, stored.affine)
    np.testing.assert_array_equal(
      nifti.read_image(tmp_path / 'c.nii').array, channels
    )


@pytest.mark.parametrize(
  'dtype', [np.uint8, np.int16, np.uint16, np.int32, '>i2', '>u2']
)
def test_integers_keep_their_dtype(tmp_path, dtype):
  array = RNG.integers(0, 200, (3, 4, 5)).astype(dtype)
  header = nib.Nifti1Header(endianness=array.dtype.str[0].replace('|', '<'))
  path = save(tmp_path / 'a.nii.gz', array, np.diag([-1, -1, 1, 1]), header)
  image = nifti.read_image(path).array
  assert image.dtype == np.dtype(dtype).newbyteorder('=')
  assert image.dtype.isnative
  np.testing.assert_array_equal(image[..., 0], array.T)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, '>f4'])
def test_floats_become_float32(tmp_path, dtype):
  array = RNG.normal(size=(3, 4, 5)).astype(dtype)
  path = save(tmp_path / 'a.nii', array, np.diag([-1, -1, 1, 1]))
  image = nifti.read_image(path).array
  assert image.dtype == np.float32
  np.testing.assert_array_equal(image[..., 0], array.T.astype(np.float32))


def test_scaled_integers(tmp_path):
  array = RNG.integers(-1000, 3000, (3, 4, 5)).astype(np.int16)
  path = save(tmp_path / 'a.nii', array)
  raw = bytearray(path.read_bytes())
  raw[112:120] = np.array([0.25, -1024], '<f4').tobytes()
  path.write_bytes(raw)
  image = nifti.read_image(path).array
  assert image.dtype == np.float32
  canonical = nib.as_closest_canonical(nib.load(path)).get_fdata()
  np.testing.assert_allclose(image[..., 0], canonical.T[:, ::-1, ::-1])
  assert image.min() < -1024


def test_reading_holds_nothing_twice(tmp_path):
  array = RNG.integers(-1000, 3000, (96, 128, 128)).astype(np.int16)
  path = save(tmp_path / 'a.nii', array)
  raw = bytearray(path.read_bytes())
  raw[112:120] = np.array([1, -1024], '<f4').tobytes()
  path.write_bytes(raw)
  del raw
  tracemalloc.start()
  image = nifti.read_image(path).array
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1.2 * image.nbytes


@pytest.mark.parametrize('shape', [(3, 4, 5, 2), (3, 4, 5, 1, 2)])
def test_channels_of_one_file(tmp_path, shape):
  array = RNG.integers(0, 99, shape).astype(np.uint8)
  path = save(tmp_path / 'a.nii.gz', array, np.diag([-1, -1, 1, 1]))
  volume = nifti.read_image(path)
  assert volume.array.shape == (5, 4, 3, 2)
  expected = array.reshape(3, 4, 5, 2).transpose(2, 1, 0, 3)
  np.testing.assert_array_equal(volume.array, expected)
  grid = nifti.read_header(path)
  assert (grid.shape, grid.channels) == ((5, 4, 3), 2)


def test_channels_of_several_files(tmp_path):
  array = RNG.integers(0, 99, (3, 4, 5, 2)).astype(np.int16)
  affine = np.diag([2.0, 1, 1, 1])
  first = save(tmp_path / 'a_0000.nii.gz', array[..., 0], affine)
  flipped = affine @ np.diag([-1, 1, 1, 1])
  flipped[0, 3] = affine[0, 0] * 2
  second = save(tmp_path / 'a_0001.nii.gz', array[::-1, ..., 1], flipped)
  volume = nifti.read_channels([first, second])
  expected = array.transpose(2, 1, 0, 3)[:, ::-1, ::-1]
  np.testing.assert_array_equal(volume.array, expected)
  assert volume.array.dtype == np.int16
  assert volume.spacing == (1, 1, 2)
  mixed = save(tmp_path / 'a_0002.nii', array[..., 0] * np.float32(0.5), affine)
  volume = nifti.read_channels([first, mixed])
  assert volume.array.dtype == np.float32
  np.testing.assert_array_equal(volume.array[..., 1] * 2, volume.array[..., 0])
  alone = nifti.read_channels([first])
  np.testing.assert_array_equal(alone.array, expected[..., :1])


@pytest.mark.parametrize('kind', [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize('packed', [False, True])
def test_both_versions_under_either_name(tmp_path, kind, packed):
  array = RNG.integers(0, 99, (3, 4, 5)).astype(np.uint8)
  affine = signed((2, 0, 1), (1, -1, 1), tilt=TILT)
  image = kind(array, affine)
  image.set_qform(affine, 1)
  data = image.to_bytes()
  # Whether it is packed is in the file, whatever the name says.
  path = tmp_path / ('a.nii' if packed else 'a.nii.gz')
  path.write_bytes(gzip.compress(data) if packed else data)
  volume = nifti.read_image(path)
  nifti.write_label(tmp_path / 'b.nii.gz', volume.array[..., 0], path)
  written = kind.from_filename(tmp_path / 'b.nii.gz')
  np.testing.assert_array_equal(np.asarray(written.dataobj), array)
  np.testing.assert_array_equal(written.affine, image.affine)


def test_the_sform_wins_and_both_stay(tmp_path):
  array = np.zeros((3, 4, 5), np.int16)
  image = nib.Nifti1Image(array, signed((0, 1, 2), (-1, -1, 1)))
  image.set_qform(signed((1, 2, 0), (1, 1, 1)), 1)
  image.set_sform(signed((0, 1, 2), (-1, -1, 1)), 3)
  image.header.set_xyzt_units('mm', 'sec')
  nib.save(image, tmp_path / 'a.nii.gz')
  volume = nifti.read_image(tmp_path / 'a.nii.gz')
  np.testing.assert_allclose(volume.spacing, (4, 1.5, 0.7), rtol=1e-6)
  label = np.zeros((5, 4, 3), np.int64)
  nifti.write_label(tmp_path / 'b.nii', label, tmp_path / 'a.nii.gz')
  before, after = (nib.load(tmp_path / n).header for n in ('a.nii.gz', 'b.nii'))
  for name in ('qform', 'sform'):
    old = getattr(before, f'get_{name}')(coded=True)
    new = getattr(after, f'get_{name}')(coded=True)
    np.testing.assert_array_equal(old[0], new[0])
    assert old[1] == new[1]
  assert after.get_xyzt_units() == ('mm', 'sec')
  np.testing.assert_array_equal(before['pixdim'][:4], after['pixdim'][:4])


def test_the_qform_alone_and_zooms_alone(tmp_path):
  array = RNG.integers(0, 99, (3, 4, 5)).astype(np.uint8)
  affine = signed((0, 2, 1), (1, -1, 1), tilt=TILT)
  for name, q, code in (('q.nii', affine, 1), ('none.nii', None, 0)):
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((0.7, 1.5, 4.0))
    image.set_qform(q, code)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / name)
    stored = nib.load(tmp_path / name)
    volume = nifti.read_image(tmp_path / name)
    canonical = np.asarray(nib.as_closest_canonical(stored).dataobj)
    np.testing.assert_array_equal(
      volume.array[..., 0], canonical.T[:, ::-1, ::-1]
    )
    corner = stored.affine @ nib.orientations.inv_ornt_aff(
      nib.io_orientation(stored.affine), array.shape
    )  # voxels in the order R, A, S to world
    last = np.array(canonical.shape) - 1
    np.testing.assert_allclose(
      volume.affine[:3, 3], (corner @ [*last[:2], 0, 1])[:3], atol=1e-5
    )


@pytest.mark.parametrize(('unit', 'mm'), [('micron', 1e-3), ('meter', 1e3)])
def test_spacing_is_in_mm(tmp_path, unit, mm):
  image = nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([2, 3, 4, 1]))
  image.header.set_xyzt_units(unit)
  nib.save(image, tmp_path / 'a.nii')
  volume = nifti.read_image(tmp_path / 'a.nii')
  np.testing.assert_allclose(volume.spacing, np.array([4, 3, 2]) * mm)
  np.testing.assert_allclose(volume.affine[:3, 3], [4 * mm, 9 * mm, 0])
  nifti.write_label(
    tmp_path / 'b.nii', np.zeros((5, 4, 3), int), tmp_path / 'a.nii'
  )
  written = nifti.read_header(tmp_path / 'b.nii')
  np.testing.assert_array_equal(written.affine, volume.affine)


@pytest.mark.parametrize(
  ('dtype', 'ids', 'smallest'),
  [
    (np.uint8, (0, 2), np.uint8),
    (np.int16, (0, 255), np.uint8),
    (np.int32, (0, 256), np.uint16),
    (np.int64, (0, 70000), np.int32),
    (np.int16, (-1, 117), np.int8),
    (np.int32, (-1, 200), np.int16),
    (np.float32, (0, 3), np.uint8),
    (np.float64, (0, 1000), np.uint16),
  ],
)
def test_labels_are_the_smallest_integers(tmp_path, dtype, ids, smallest):
  array = RNG.choice(ids, (3, 4, 5)).astype(dtype)
  path = save(tmp_path / 'a.nii.gz', array[..., None], np.diag([-1, -1, 1, 1]))
  label = nifti.read_label(path).array
  assert label.dtype == smallest
  np.testing.assert_array_equal(label, array.T)


def test_labels_that_nibabel_scaled(tmp_path):
  array = RNG.integers(0, 4, (3, 4, 5))
  for dtype in (np.uint8, np.int16):
    image = nib.Nifti1Image(array.astype(np.float64), np.diag([-1, -1, 1, 1]))
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / 'a.nii')
    assert nib.load(tmp_path / 'a.nii').dataobj.slope not in (0, 1)
    label = nifti.read_label(tmp_path / 'a.nii').array
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, array.T)


def test_written_labels_are_plain_and_small(tmp_path):
  image = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
  like = save(tmp_path / 'a.nii.gz', image, descrip=b'somebody', cal_max=9)
  label = RNG.integers(0, 2, (5, 4, 3))
  for ids, dtype in ((1, np.uint8), (300, np.uint16), (70000, np.uint32)):
    nifti.write_label(tmp_path / 'new' / 'b.nii.gz', label * ids, like)
    written = nib.load(tmp_path / 'new' / 'b.nii.gz')
    assert written.get_data_dtype() == dtype
    assert written.shape == (3, 4, 5)
    assert (written.dataobj.slope, written.dataobj.inter) == (1, 0)
    assert (written.header['cal_max'], written.header['descrip']) == (0, b'')
    np.testing.assert_array_equal(
      np.asarray(written.dataobj), ids * label[:, ::-1, ::-1].T
    )
  first = (tmp_path / 'new' / 'b.nii.gz').read_bytes()
  nifti.write_label(tmp_path / 'new' / 'c.nii.gz', label * ids, like)
  assert (tmp_path / 'new' / 'c.nii.gz').read_bytes() == first
  nifti.write_label(tmp_path / 'bool.nii', label > 0, like)
  np.testing.assert_array_equal(
    nifti.read_label(tmp_path / 'bool.nii').array, label
  )


def test_real_hippocampus(real_data, tmp_path):
  folder = real_data / 'hippocampus' / 'Task04_Hippocampus'
  names = sorted(path.name for path in folder.glob('labelsTr/[!.]*.nii.gz'))
  assert len(names) == 260
  for name in names[::40]:
    image = nifti.read_image(folder / 'imagesTr' / name)
    label = nifti.read_label(folder / 'labelsTr' / name)
    stored = nib.load(folder / 'labelsTr' / name)
    assert stored.shape == label.array.shape[::-1]
    assert label.array.dtype == np.uint8
    names = dict(what=name, where=name)
    aligned = align(label.array, label.grid, image.grid, **names)
    assert not gap_between(label.grid, image.grid, **names)
    assert label.grid.oddities == image.grid.oddities == ()
    assert set(np.unique(aligned)) == {0, 1, 2}
    assert image.spacing == (1, 1, 1)
    # Anterior lies in front of posterior: y runs to Posterior.
    front, back = (np.argwhere(aligned == k)[:, 1].mean() for k in (1, 2))
    assert front < back
    like = folder / 'imagesTr' / name
    nifti.write_label(tmp_path / name, aligned, like)
    again = nib.load(tmp_path / name)
    np.testing.assert_array_equal(again.get_fdata(), stored.get_fdata())
    np.testing.assert_array_equal(again.affine, nib.load(like).affine)


@pytest.mark.parametrize('name', ['example_ct_sm', 'example_mr_sm'])
def test_real_ct_and_mr(real_data, name):
  path = real_data / 'ct_mr' / 'images' / f'{name}.nii.gz'
  image = nifti.read_image(path)
  label = nifti.read_label(real_data / 'ct_mr' / 'labels' / f'{name}.nii.gz')
  assert image.array.dtype == np.int16 and label.array.dtype == np.uint8
  assert nib.aff2axcodes(image.affine) == ('S', 'P', 'L')
  align(label.array, label.grid, image.grid, what='label', where='image')
  canonical = nib.as_closest_canonical(nib.load(path)).get_fdata()
  np.testing.assert_array_equal(image.array[..., 0], canonical.T[:, ::-1, ::-1])


def test_stems():
  names = ('a.1.nii.gz', 'b.nii', 'c.NII.GZ')
  assert [nifti.stem(name) for name in names] == ['a.1', 'b', 'c']
  assert nifti.stem('x/y/dataset.json') == 'dataset.json'
