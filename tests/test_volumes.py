"""Volumes as cases: every layout, what a case holds, and what goes wrong."""

import nibabel as nib
import numpy as np
import pytest
from data_cases import assert_one_line, put_another_in_its_place
from volume_cases import (
  FRONT_BACK,
  LABELS,
  SHAPE,
  error_of,
  image_array,
  inside,
  label_array,
  save,
  write_decathlon,
  write_json,
  write_nnunet,
  write_pairs,
)

from medseg_jax.data.sources import to_predict
from medseg_jax.data.sources.volume_labels import count_ids
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.runtime.errors import InputError


def error_of_case(source, index=0):
  with pytest.raises(InputError) as error:
    source[index]
  return error


# Layouts.


def test_decathlon(tmp_path):
  write_decathlon(tmp_path, ['b', 'a'], numTraining=77)
  (tmp_path / 'imagesTr' / '._a.nii.gz').write_bytes(b'macOS')
  (tmp_path / 'imagesTs').mkdir()
  sources = open_volumes(tmp_path)
  assert list(sources) == ['train']
  source = sources['train']
  assert source.names == ('a', 'b') and len(source) == 2
  assert source.classes == ('background', 'front', 'back')
  assert source.label_values == (0, 1, 2)
  assert source.channel_names == ('MRI',) and source.channels == 1
  assert source.problems == source.oddities == source.regions == ()
  case = source[1]  # the first to be written
  assert case.name == 'b' and case.roi is None
  np.testing.assert_array_equal(case.image[..., 0], inside(image_array(0)))
  np.testing.assert_array_equal(case.label, inside(label_array()))
  assert case.image.dtype == np.int16 and case.label.dtype == np.int16
  assert case.spacing == (2.0, 1.0, 1.0)
  corner = case.affine @ [0, 0, 0, 1]
  np.testing.assert_allclose(corner, [SHAPE[0] - 1, SHAPE[1] - 1, 0, 1])
  assert [case.name for case in source] == ['a', 'b']


def test_decathlon_with_four_axes_and_without_a_list(tmp_path):
  channels = np.stack([image_array(i) for i in range(2)], axis=-1)
  for folder, name in (('Tr', 'x'), ('Ts', 'y')):
    save(tmp_path / f'images{folder}' / f'{name}.nii.gz', channels)
    save(tmp_path / f'labels{folder}' / f'{name}.nii.gz', label_array())
  write_json(tmp_path, labels=LABELS, modality={'0': 'T2', '1': 'ADC'})
  sources = open_volumes(tmp_path)
  assert {k: s.names for k, s in sources.items()} == {
    'train': ('x',), 'test': ('y',)
  }  # fmt: skip
  for source in sources.values():
    assert source.channel_names == ('T2', 'ADC')
    for channel in range(2):
      np.testing.assert_array_equal(
        source[0].image[..., channel], inside(image_array(channel))
      )


@pytest.mark.parametrize('version', [1, 2])
def test_nnunet_of_both_versions(tmp_path, version):
  names = {'0': 'T1', '1': 'CT'}
  if version == 2:
    write_nnunet(
      tmp_path, channel_names=names, labels=FRONT_BACK, file_ending='.nii.gz'
    )
  else:  # lists files by the name of the case
    training = [
      {'image': f'./imagesTr/{n}.nii.gz', 'label': f'./labelsTr/{n}.nii.gz'}
      for n in 'ba'
    ]
    write_nnunet(tmp_path, modality=names, labels=LABELS, training=training)
  source = open_volumes(tmp_path)['train']
  assert source.names == ('a', 'b') and source.channel_names == ('T1', 'CT')
  assert source.classes == ('background', 'front', 'back')
  assert source.oddities == ()
  for channel in range(2):
    np.testing.assert_array_equal(
      source[1].image[..., channel], inside(image_array(2 + channel))
    )


def test_regions_and_ignored_voxels(tmp_path):
  labels = {'background': 0, 'whole': [2, 5], 'core': 5, 'ignore': 7}
  write_nnunet(
    tmp_path, channel_names={'0': 'T1', '1': 'T2'}, labels=labels,
    regions_class_order=[2, 5],
  )  # fmt: skip
  ids = label_array((0, 2, 5, 7))
  save(tmp_path / 'labelsTr' / 'a.nii.gz', ids)
  source = open_volumes(tmp_path)['train']
  assert source.classes == ('background', 'label_2', 'core')
  assert source.label_values == (0, 2, 5) and source.ignore_value == 7
  assert source.regions == (('whole', (1, 2)), ('core', (2,)))
  assert source.region_order == (1, 2)
  want = np.select([ids == 2, ids == 5, ids == 7], [1, 2, -1], 0)
  np.testing.assert_array_equal(source[0].label, inside(want))
  assert_one_line(
    error_of(tmp_path, label_values=(0, 2)), 'data.label_values', 'without 5'
  )


@pytest.mark.parametrize('labels', ['labels', 'masks'])
def test_plain_folders_with_suffixes_and_channels(tmp_path, labels):
  save(tmp_path / 'images' / 'one_0000.nii', image_array(0))
  save(tmp_path / 'images' / 'one_0001.nii.gz', image_array(1))
  save(tmp_path / labels / 'one.nii.gz', label_array((0, 3)))
  for channel in range(2):
    file = f'two_000{channel}.nii.gz'
    save(tmp_path / 'images' / file, image_array(2 + channel))
  save(tmp_path / labels / 'two_Mask.nii', label_array((0, 9)))
  source = open_volumes(tmp_path)['train']
  assert source.names == ('one', 'two')
  assert source.label_values == (0, 3, 9)
  assert source.classes == ('background', 'label_3', 'label_9')
  assert source.channel_names == ('channel_0', 'channel_1')
  np.testing.assert_array_equal(source[1].label.max(), 2)
  np.testing.assert_array_equal(source[1].image[..., 1], inside(image_array(3)))


def test_cases_may_have_numbers_like_channels(tmp_path):
  write_pairs(tmp_path, ['scan_0000', 'scan_0001', 'scan_0007'])
  source = open_volumes(tmp_path)['train']
  assert source.names == ('scan_0000', 'scan_0001', 'scan_0007')
  assert source.channels == 1


def test_folders_of_splits(tmp_path):
  write_pairs(tmp_path / 'train', 'ab')
  write_pairs(tmp_path / 'test', 'c', labels='masks')
  sources = open_volumes(tmp_path)
  assert {k: s.names for k, s in sources.items()} == {
    'train': ('a', 'b'), 'test': ('c',)
  }  # fmt: skip


def test_two_values_are_foreground_and_names_may_be_given(tmp_path):
  write_pairs(tmp_path, 'ab')
  for name in 'ab':
    save(tmp_path / 'labels' / f'{name}.nii.gz', label_array((0, 4)))
  source = open_volumes(tmp_path)['train']
  assert source.classes == ('background', 'foreground')
  assert source.label_values == (0, 4)
  source = open_volumes(
    tmp_path, classes=['other', 'lung', 'heart'], label_values=[0, 2, 4]
  )['train']
  assert source.classes == ('other', 'lung', 'heart')
  assert set(np.unique(source[0].label)) == {0, 2}


def test_given_values_keep_the_names_of_dataset_json(tmp_path):
  write_decathlon(tmp_path)
  source = open_volumes(tmp_path, label_values=(0, 2, 1))['train']
  assert source.classes == ('background', 'back', 'front')
  ids = label_array()
  want = np.select([ids == 1, ids == 2], [2, 1], 0)
  np.testing.assert_array_equal(source[0].label, inside(want))


# Cases.


def test_a_label_in_other_axes_is_reoriented(tmp_path):
  write_pairs(tmp_path, 'a')
  ids = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
  flipped = nib.Nifti1Image(ids.astype(np.uint8), np.diag([1, 1, 2, 1]))
  flipped = flipped.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
  assert flipped.shape != SHAPE
  nib.save(flipped, tmp_path / 'labels' / 'a.nii.gz')
  case = open_volumes(tmp_path)['train'][0]
  np.testing.assert_array_equal(case.label, inside(ids))


def test_subset_and_case_keys(tmp_path):
  write_decathlon(tmp_path, ['a', 'b', 'c'])

  def keys(**options):
    source = open_volumes(tmp_path, **options)['train']
    return [source.case_key(i) for i in range(3)]

  source = open_volumes(tmp_path)['train']
  part = source.subset(['c', 'a'])
  assert part.names == ('c', 'a') and part.classes == source.classes
  assert [part.case_key(i) for i in range(2)] == keys()[::-2]
  with pytest.raises(ValueError, match='no cases x in'):
    source.subset(['a', 'x'])

  before = keys()
  assert len(set(before)) == 3
  assert not set(before) & set(keys(label_values=(0, 2, 1)))
  for path in (tmp_path / 'imagesTr' / 'b.nii.gz', source.files[1].label):
    put_another_in_its_place(path)
    after = keys()
    assert [a == b for a, b in zip(before, after, strict=True)] == [1, 0, 1]
    before = after
  source.files[1].label.unlink()
  with pytest.raises(InputError) as error:
    source.case_key(1)
  assert_one_line(error, 'labelsTr/b.nii.gz', 'no longer there')


@pytest.mark.parametrize('dtype', [np.uint8, np.int32])
def test_count_ids_is_unique(dtype):
  ids = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
  if dtype == np.int32:
    ids[2, 3] = -5
    ids[4, 0] = 2**30
  values, counts = np.unique(ids, return_counts=True)
  found = count_ids(ids)
  assert list(found) == values.tolist()
  assert list(found.values()) == counts.tolist()


# Errors.


def test_a_label_with_values_of_no_class(tmp_path):
  write_decathlon(tmp_path)
  ids = label_array()
  ids[0, 0, 0], ids[1, 1] = 9, 5
  save(tmp_path / 'labelsTr' / 'a.nii.gz', ids)
  source = open_volumes(tmp_path)['train']  # reads no label
  assert_one_line(
    error_of_case(source), 'labelsTr/a.nii.gz', '5 (4 voxels), 9 (1 voxel)',
    'allowed are 0, 1, 2 (see dataset.json',
  )  # fmt: skip


def test_a_label_on_another_grid(tmp_path):
  write_decathlon(tmp_path)
  label = tmp_path / 'labelsTr' / 'a.nii.gz'
  source = open_volumes(tmp_path)['train']
  save(label, label_array(), spacing=(1.0, 1.0, 2.5))
  line = error_of_case(source)
  assert_one_line(
    line, label, source.files[0].images[0], '1x1x2.5 mm against 1x1x2 mm',
    'up to 1.5 mm, 0.75 voxels',
  )  # fmt: skip
  save(label, label_array(shape=(6, 5, 3)))
  assert_one_line(error_of_case(source), label, '6x5x3 against 6x5x4')


def test_an_image_that_is_not_finite_or_has_other_channels(tmp_path):
  write_decathlon(tmp_path)
  source = open_volumes(tmp_path)['train']
  image = image_array().astype(np.float32)
  image[2, 2, 2] = np.nan
  path = save(tmp_path / 'imagesTr' / 'a.nii.gz', image)
  assert_one_line(error_of_case(source), path, 'not finite')
  save(path, np.stack([image_array()] * 2, -1))
  line = error_of_case(source)
  assert_one_line(line, path, '2 channels; allowed is', '1 (MRI)')


def test_labels_that_make_no_classes(tmp_path):
  write_pairs(tmp_path, 'ab')
  empty = np.zeros(SHAPE, np.uint8)
  paths = [tmp_path / 'labels' / f'{name}.nii.gz' for name in 'ab']
  for path in paths:
    save(path, empty)
  assert_one_line(
    error_of(tmp_path), 'every label is empty (all 0), in 2 files'
  )
  save(paths[1], empty.astype(np.int16) - 1)
  assert_one_line(error_of(tmp_path), paths[1], 'ids from -1 to -1')
  many = 2 * np.resize(np.arange(300, dtype=np.int16), (10, 12, 5))
  save(paths[1], many)
  assert_one_line(error_of(tmp_path), '300 ids', '256 at most')
  for values in ((0, -3), (0, 40000)):
    line = error_of(tmp_path, label_values=values)
    assert_one_line(line, f'data.label_values has {values[1]}', '0 to 32767')
  line = error_of(tmp_path, label_values=(0, 1), classes=['a'])
  assert_one_line(line, 'of 1 class,')


def test_a_damaged_label_stops_the_scan_unless_all_are_to_be_listed(tmp_path):
  write_pairs(tmp_path, 'ab')
  (tmp_path / 'labels' / 'a.nii.gz').write_bytes(b'no NIfTI file at all')
  assert_one_line(error_of(tmp_path), 'labels/a.nii.gz')
  source = open_volumes(tmp_path, strict=False)['train']
  assert source.label_values == (0, 1, 2) and source.names == ('a', 'b')


# Real data.


def test_hippocampus_opens(real_data):
  root = real_data / 'hippocampus' / 'Task04_Hippocampus'
  source = open_volumes(root)['train']
  assert len(source) == len(set(source.names)) == 260
  assert source.classes == ('background', 'Anterior', 'Posterior')
  assert source.channel_names == ('MRI',)
  assert source.problems == source.oddities == ()
  for index in (0, 131, 259):
    case = source[index]
    files = source.files[index]
    image = nib.load(files.images[0])
    np.testing.assert_array_equal(
      case.image[..., 0], inside(np.asarray(image.dataobj))
    )
    label = np.asarray(nib.load(files.label).dataobj)
    np.testing.assert_array_equal(case.label, inside(label))
    assert case.spacing == (1.0, 1.0, 1.0)
  assert len({source.case_key(i) for i in range(260)}) == 260


def test_trunk_ct_and_mr_opens(real_data):
  source = open_volumes(real_data / 'ct_mr')['train']
  assert source.names == ('example_ct', 'example_ct_sm', 'example_mr_sm')
  ids = set()
  for case, files in zip(source, source.files, strict=True):
    stored = np.asarray(nib.load(files.label).dataobj)
    ids |= set(np.unique(stored).astype(int).tolist())
    back = np.array(source.label_values)[case.label]
    assert np.bincount(back.ravel()).tolist() == (
      np.bincount(stored.ravel().astype(int)).tolist()
    )
    assert case.image.shape[:3] == case.label.shape
  assert source.label_values == tuple(sorted(ids))
  assert (
    len(to_predict.find(real_data / 'ct_mr' / 'images', channels=1).cases) == 3
  )
