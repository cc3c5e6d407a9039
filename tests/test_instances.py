"""Masks that number single objects: one rule for images and for volumes."""

import numpy as np
import pytest
import tifffile
from data_cases import assert_all_in, assert_one_line, save
from small import load
from volume_cases import error_of, image_array, write_json
from volume_cases import save as save_volume

from medseg_jax.data import instances, numbered_objects
from medseg_jax.data.formats import nifti
from medseg_jax.data.mask_values import count_values
from medseg_jax.data.sources.folder import open_folder
from medseg_jax.data.sources.inspection import describe_classes, inspect_case
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.experiment import opening

COUNTS = (12, 30, 9, 20)


def cells(count, *, seed=0, side=6, ids=None, shape=None):
  """Returns discs anywhere, numbered from 1 or by `ids`, 4 voxels apart.

  In two dimensions; or balls in three, if `shape` has three numbers.
  """
  rng = np.random.default_rng([seed, count])
  shape = shape or (4 * side + 1, 4 * side + 1)
  places = np.stack(
    np.meshgrid(*(range(2, n - 1, 4) for n in shape), indexing='ij'), -1
  ).reshape(-1, len(shape))
  ids = range(1, count + 1) if ids is None else ids
  mask = np.zeros(shape, np.int32)
  for value, at in zip(ids, rng.permutation(places)[:count], strict=True):
    mask[tuple(slice(i - 1, i + 2) for i in at)] = value
  return mask


def with_gaps(rng, count):
  """Returns `count` ids from 1 on of which a third was deleted."""
  every = np.arange(1, 3 * count // 2 + 1)
  return rng.choice(every, count, replace=False)


def judge(masks):
  found = [
    count_values(f'{i}.png', m, lossy=False) for i, m in enumerate(masks)
  ]
  return instances.judge(
    [mask.values for mask in found], [mask.objects for mask in found]
  )


def write(root, kind, masks, dtype=None):
  for i, mask in enumerate(masks):
    if kind == 'images':
      save(root / 'images' / f'{i}.png', np.uint8(mask))
      (root / 'masks').mkdir(exist_ok=True)
      tifffile.imwrite(root / 'masks' / f'{i}.tif', mask.astype(dtype or 'u1'))
    else:
      image = image_array(i, mask.shape)
      save_volume(root / 'images' / f'{i}.nii.gz', image)
      save_volume(root / 'labels' / f'{i}.nii.gz', mask.astype(dtype or 'u1'))


def open_set(root, kind, **options):
  opener = open_folder if kind == 'images' else open_volumes
  return opener(root, **options)['train']


def told(source, caplog):
  lines = [record.getMessage() for record in caplog.records]
  return [*lines, *getattr(source, 'oddities', ())]


def shape_of(kind):
  return (25, 25) if kind == 'images' else (21, 17, 13)


# The rule.


def test_numbered_objects_are_recognised():
  masks = [cells(count, shape=(25, 33)) for count in (*COUNTS, 3, 0)]
  assert judge(masks) == instances.SURE
  rng = np.random.default_rng(0)
  same = [np.kron(rng.permutation(25).reshape(5, 5), np.ones((6, 6), int))]
  same += [np.rot90(same[0]), np.fliplr(same[0]) + 0]
  assert judge(same) == instances.SURE  # As many in each, and anywhere.
  few = [cells(8, seed=i) for i in range(4)]
  assert judge(few) == instances.PERHAPS  # So might eight classes.


def test_objects_numbered_row_by_row_are_recognised():
  masks = []
  for count in (30, 22, 40, 35):
    mask = cells(count, side=8)
    order = np.argsort(
      [np.argwhere(mask == value).min(0)[0] for value in range(1, count + 1)]
    )
    rank = np.concatenate([[0], np.argsort(order) + 1])
    masks.append(rank[mask])
  assert judge(masks) == instances.SURE


@pytest.mark.parametrize('count', [25, 300])
def test_gaps_in_the_numbers_are_allowed_where_there_are_many(count):
  rng = np.random.default_rng(0)
  masks = [
    cells(n, side=20, ids=with_gaps(rng, n))
    for n in (count, count - 3, count // 2, count - 9)
  ]
  assert judge(masks) == instances.SURE
  # Numbers that go on from file to file.
  starts = (1, 41, 81)
  masks = [cells(40, side=8, ids=range(i, i + 40)) for i in starts]
  assert judge(masks) == instances.SURE
  few = [cells(9, ids=with_gaps(rng, 9)) for _ in range(4)]
  assert judge(few) == ''


def test_organs_are_no_numbered_objects():
  organs = np.kron(np.arange(24).reshape(4, 6), np.ones((9, 9), int))
  assert judge([organs] * 3) == ''
  spine = [np.where(organs <= last, organs, 0) for last in (9, 11, 8, 12)]
  assert judge(spine) == ''  # Cut off anywhere, but each in its place.
  gaps = [np.where(organs == 3 + i, 0, organs) for i in range(3)]
  assert judge(gaps) == ''
  mirrored = [organs, organs[:, ::-1], organs[:, 9:]]
  assert judge(mirrored) == ''  # As of left and right hands.
  assert judge([cells(4, seed=i) for i in range(5)]) == ''


@pytest.mark.parametrize('step', [1, 5])
def test_organs_of_scans_that_begin_anywhere_are_no_objects(step):
  # A body of 120 organs, of which each scan shows a part, at its own scale.
  rng = np.random.default_rng(0)
  ids = step * (1 + rng.permutation(120)).reshape(10, 4, 3)
  masks = []
  for first, last, scale in [(0, 10, 3), (3, 9, 4), (5, 10, 3), (1, 6, 5)]:
    part = ids[first:last, : 4 - first % 2]
    masks.append(np.kron(part, np.ones((scale, 3, 3), int)))
  assert judge(masks) == ''
  assert judge(masks[:1]) != instances.SURE


def test_a_spine_that_begins_anywhere_is_no_set_of_objects():
  masks = []
  for first, last in [(1, 24), (8, 20), (15, 25), (1, 9)]:
    mask = np.zeros((4 * (last - first), 9, 9), int)
    for i, value in enumerate(range(first, last)):
      mask[4 * i : 4 * i + 3, 3 + value % 2 : 6 + value % 2, 2:6] = value
    masks.append(mask)
  assert judge(masks) == ''


def test_values_that_lie_all_over_the_mask_are_no_blobs():
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 400, (64, 64)) for _ in range(3)]
  assert judge(noise) == ''
  values = np.unique(noise[0])
  assert numbered_objects.find_objects(noise[0], values) is None


def test_what_is_found_in_a_mask():
  for ids in (range(1, 8), (2, 3, 5, 70_000, 2**31 - 9, 2**31 - 2, 2**31 - 1)):
    for shape in ((25, 25), (13, 9, 9)):
      mask = cells(7, ids=ids, shape=shape)
      found = numbered_objects.find_objects(mask, np.unique(mask))
      assert found.values.tolist() == list(ids)
      centres = [np.argwhere(mask == v).mean(0) + 0.5 for v in ids]
      np.testing.assert_allclose(found.centres, centres / np.array(shape))
      assert found.blobs.all() and numbered_objects.are_blobs([found])
      assert numbered_objects.are_in_place([found]) is None
      assert numbered_objects.are_in_place([found, found])
  scattered = cells(24, ids=[1 + i % 6 for i in range(24)])
  found = numbered_objects.find_objects(scattered, range(7))
  assert not numbered_objects.are_blobs([found])
  assert not numbered_objects.may_number([0, 1, 2, 3, 4, 5])
  assert not numbered_objects.may_number([-1, 1, 2, 3, 4, 5, 6, 7])
  assert numbered_objects.may_number(range(7))


def test_organs_of_real_scans_are_no_objects(real_data):
  folder = real_data / 'ct_mr' / 'labels'
  files = sorted(folder.glob('example_ct*'))
  masks = [nifti.read_label(path).array for path in files]
  values = [np.unique(mask) for mask in masks]
  objects = list(map(numbered_objects.find_objects, masks, values))
  assert [len(each.values) for each in objects] == [61, 41]
  assert numbered_objects.are_in_place(objects)
  assert instances.judge(values, objects) == ''


# Both sources.


@pytest.mark.parametrize('kind', ['images', 'volumes'])
def test_numbered_objects_become_foreground_and_that_is_told(
  tmp_path, caplog, kind
):
  masks = [cells(count, shape=shape_of(kind)) for count in COUNTS]
  write(tmp_path, kind, masks)
  with caplog.at_level('WARNING'):
    source = open_set(tmp_path, kind)
  assert (source.label_values, source.instances) == ((0, 1), 'foreground')
  assert source.classes == ('background', 'foreground')
  for case, mask in zip(source, masks, strict=True):
    assert case.label.max() == 1
    assert case.label.sum() == np.count_nonzero(mask)
  (line,) = told(source, caplog)
  assert_all_in(
    line, tmp_path, 'number single objects, up to 30 in a file',
    'all become one class', "='classes'", 'data.label_values',
  )  # fmt: skip
  named = open_set(tmp_path, kind, classes=('other', 'cell'))
  assert (named.classes, named.instances) == (('other', 'cell'), 'foreground')
  # As the config of the run has it from then on.
  config = load('auto_cpu' if kind == 'volumes' else 'unet')
  config = opening.resolve(config, source)
  assert config.data.instances == 'foreground'
  again = open_set(
    tmp_path, kind, instances='foreground',
    label_values=config.data.label_values, classes=config.data.classes,
  )  # fmt: skip
  assert again.case_key(0) == source.case_key(0)
  np.testing.assert_array_equal(again[0].label, source[0].label)


@pytest.mark.parametrize('kind', ['images', 'volumes'])
def test_what_the_user_says_of_numbered_objects_wins(tmp_path, caplog, kind):
  masks = [cells(count, shape=shape_of(kind)) for count in COUNTS]
  write(tmp_path, kind, masks)
  values = tuple(range(31))
  for options in (
    dict(instances='classes'),
    dict(label_values=values),
    dict(classes=[f'c{value}' for value in values]),
  ):
    source = open_set(tmp_path, kind, **options)
    assert (source.label_values, source.instances) == (values, '')
    assert source[1].label.max() == 30
    assert told(source, caplog) == []
  for options, part in [
    (dict(instances='each'), "data.instances is 'each'; allowed are ''"),
    (dict(instances='foreground', label_values=(0, 1, 2)), 'allowed are two'),
  ]:
    with pytest.raises(ValueError) as error:
      open_set(tmp_path, kind, **options)
    assert_one_line(error, part)


@pytest.mark.parametrize('kind', ['images', 'volumes'])
@pytest.mark.parametrize('dtype', [np.uint16, np.int32])
def test_more_objects_than_classes_can_be(tmp_path, caplog, kind, dtype):
  shape = (89, 89) if kind == 'images' else (41, 33, 29)
  rng = np.random.default_rng(0)
  most = 2000 if dtype == np.uint16 else 2**20
  masks = [
    cells(n, ids=rng.choice(most, n, replace=False) + 1, shape=shape)
    for n in (340, 280, 310)
  ]
  write(tmp_path, kind, masks, dtype)
  with caplog.at_level('WARNING'):
    source = open_set(tmp_path, kind)
  assert source.instances == 'foreground'
  for case, mask in zip(source, masks, strict=True):
    assert case.label.sum() == np.count_nonzero(mask)
  (line,) = told(source, caplog)
  assert 'up to 340 in a file' in line
  assert "='classes'" not in line  # nobody could do that
  with pytest.raises(ValueError) as error:
    open_set(tmp_path, kind, instances='classes')
  assert_one_line(error, tmp_path, 'allowed')
  if kind == 'volumes':
    assert not any(inspect_case(source, i).errors for i in range(3))
    assert describe_classes(source, [inspect_case(source, 0)])[1] == (
      'foreground (1): 9,180 voxels in 1 of 1 label'
    )


@pytest.mark.parametrize('kind', ['images', 'volumes'])
def test_one_file_alone_may_hold_either(tmp_path, caplog, kind):
  mask = cells(9, shape=shape_of(kind))
  write(tmp_path, kind, [mask])
  source = open_set(tmp_path, kind)
  assert (source.label_values, source.instances) == (tuple(range(10)), '')
  (line,) = told(source, caplog)
  assert_all_in(
    line, 'perhaps number single objects', 'a class of its own',
    "data.instances='foreground'",
  )  # fmt: skip
  caplog.clear()
  source = open_set(tmp_path, kind, instances='classes')
  assert told(source, caplog) == []


def test_jpeg_masks_beside_numbered_objects_have_no_ringing(tmp_path):
  mask = np.kron(cells(9), np.ones((5, 5), int))
  save(tmp_path / 'images' / '0.png', np.uint8(mask))
  save(tmp_path / 'masks' / '0.jpg', np.uint8(255 * (mask > 0)), quality=60)
  source = open_folder(tmp_path, instances='foreground', label_values=(0, 1))
  np.testing.assert_array_equal(source['train'][0].label, mask > 0)


def test_one_volume_of_more_objects_than_classes_is_one_of_objects(tmp_path):
  ids = np.arange(300).reshape(10, 6, 5).astype(np.int16)
  write(tmp_path, 'volumes', [ids], np.int16)
  source = open_volumes(tmp_path)['train']
  assert source.instances == 'foreground' and source[0].label.sum() == 299


def test_objects_where_dataset_json_knows_one_class_are_told(tmp_path):
  write(tmp_path, 'volumes', [cells(12, shape=(17, 17, 13))])
  (tmp_path / 'images').rename(tmp_path / 'imagesTr')
  (tmp_path / 'labels').rename(tmp_path / 'labelsTr')
  write_json(
    tmp_path,
    labels={'background': 0, 'cell': 1},
    channel_names={'0': 'light'},
    file_ending='.nii.gz',
  )
  (tmp_path / 'imagesTr' / '0.nii.gz').rename(
    tmp_path / 'imagesTr' / '0_0000.nii.gz'
  )
  (line,) = inspect_case(open_volumes(tmp_path)['train'], 0).errors
  assert_all_in(
    line, 'label ids of no class: 2 (27', "data.instances='foreground' makes"
  )
  source = open_volumes(tmp_path, instances='foreground')['train']
  assert source[0].label.sum() == 12 * 27


def test_ids_that_are_no_classes_and_no_objects_are_errors(tmp_path):
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 400, (10, 6, 8)) for _ in range(2)]
  write(tmp_path, 'volumes', noise, np.int16)
  assert_one_line(
    error_of(tmp_path), tmp_path, 'ids in the labels, as of single objects',
    '256 at most', "data.instances='foreground'",
  )  # fmt: skip


def test_a_value_to_write_may_be_chosen_for_the_objects_of_volumes(tmp_path):
  write(tmp_path, 'volumes', [cells(9, shape=(13, 13, 13))])
  source = open_volumes(
    tmp_path, instances='foreground', classes=('other', 'cell'),
    label_values=(0, 255),
  )['train']  # fmt: skip
  assert source.classes == ('other', 'cell')
  assert source.label_values == (0, 255)
  assert_one_line(
    error_of(tmp_path, instances='foreground', label_values=(1, 2)),
    'config.data.label_values is (1, 2) beside data.instances',
  )


def test_organs_of_volumes_are_classes(tmp_path):
  # Each lies in its place; some cases lack one, and none is exactly alike.
  organs = cells(9, seed=1, shape=(21, 17, 13))
  masks = [
    np.where(organs > 9 - i % 2, 0, np.roll(organs, (i % 2, i % 3 - 1), (0, 1)))
    for i in range(6)
  ]
  write(tmp_path, 'volumes', masks)
  source = open_volumes(tmp_path)['train']
  assert source.label_values == tuple(range(10)) and source.oddities == ()
  assert source.instances == ''
