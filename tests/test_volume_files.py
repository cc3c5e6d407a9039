"""Which files make a case: cases to predict, and layouts that are wrong."""

import numpy as np
import pytest
from data_cases import assert_all_in, assert_one_line
from volume_cases import (
  FRONT_BACK,
  LABELS,
  SHAPE,
  error_of,
  image_array,
  label_array,
  save,
  write_decathlon,
  write_json,
  write_nnunet,
  write_pairs,
)

from medseg_jax.data.sources import to_predict
from medseg_jax.data.sources.volumes import VolumeSource, open_volumes
from medseg_jax.runtime.errors import InputError

# Cases to predict.


def find(path, channels):
  return to_predict.find(path, channels=channels)


def test_channels_make_cases(tmp_path):
  for name in ('b_0000', 'b_0001', 'a_0000', 'a_0001'):
    save(tmp_path / f'{name}.nii.gz', image_array())
  both = np.stack([image_array(), image_array()], axis=-1)
  save(tmp_path / 'c.nii', both)
  (tmp_path / '._c.nii').write_bytes(b'macOS')
  (tmp_path / 'notes.txt').write_text('no image')
  (tmp_path / 'd.nii').mkdir()
  cases, failures, unused = find(tmp_path, 2)
  assert failures == ()
  assert unused == ('d.nii/', 'notes.txt', '1 hidden file')
  assert [case.name for case in cases] == ['a', 'b', 'c']
  assert [path.name for path in cases[1].images] == [
    'b_0000.nii.gz', 'b_0001.nii.gz'
  ]  # fmt: skip
  assert all(case.label is None for case in cases)
  for file in ('b_0000.nii.gz', 'b_0001.nii.gz', 'c.nii'):
    found = find(tmp_path / file, 2).cases
    assert found == (cases[1 + (file[0] == 'c')],)
  source = VolumeSource(
    root=tmp_path, files=cases, classes=(), label_values=(), channels=2,
    channel_names=('T1', 'T2'),
  )  # fmt: skip
  assert [case.image.shape for case in source] == [(4, 5, 6, 2)] * 3
  assert source[0].label is None and len(source.case_key(0)) == 64


def test_cases_of_one_channel(tmp_path):
  for name in ('a_0000', 'b', 'scan_0001', 'scan_0002'):
    save(tmp_path / f'{name}.nii.gz', image_array())
  (tmp_path / 'b.nii.gz').rename(tmp_path / 'b.NII.GZ')
  names = [case.name for case in find(tmp_path, 1).cases]
  assert names == ['a', 'b', 'scan_0001', 'scan_0002']
  (case,) = find(tmp_path / 'scan_0002.nii.gz', 1).cases
  assert case.name == 'scan_0002' and len(case.images) == 1
  (case,) = find(tmp_path / 'a_0000.nii.gz', 1).cases
  assert case.name == 'a'


@pytest.mark.parametrize(
  ('files', 'channels', 'parts'),
  [
    (['a', 'a_0000'], 1, ['a.nii.gz', 'also that of', 'a_0000.nii.gz']),
    (['a_0000'], 2, ['case a has no file a_0001', 'a_0000 to a_0001']),
    (['a_0000', 'a_0002'], 2, ['case a has no file a_0001']),
    (['a_0001'], 2, ['a_0001.nii.gz: 1 channel;', '2, in one file or in a_00']),
    (['a_0000', 'a_0001'], 1, ['case a has 2 channel files', 'a_0000']),
    (['a'], 4, ['a.nii.gz: 1 channel;', 'training, 4, in one file']),
  ],
)
def test_wrong_channels_cost_their_case_only(tmp_path, files, channels, parts):
  for name in files:
    save(tmp_path / f'{name}.nii.gz', image_array())
  good = np.stack([image_array()] * channels, axis=-1)
  save(tmp_path / 'good.nii.gz', good[..., 0] if channels == 1 else good)
  found = find(tmp_path, channels)
  assert [case.name for case in found.cases] == ['good']
  (failure,) = found.failures
  assert '\n' not in failure.reason
  assert_all_in(failure.reason, tmp_path, *parts)


def test_nothing_to_predict_is_an_error(tmp_path):
  with pytest.raises(InputError) as error:
    find(tmp_path / 'none', 1)
  assert_one_line(error, tmp_path / 'none', 'no such folder')
  (tmp_path / 'a.png').write_bytes(b'')
  with pytest.raises(InputError) as error:
    find(tmp_path, 1)
  assert_one_line(error, 'no volumes; found a.png')
  for name in ('b.nii', 'b.nii.gz'):
    save(tmp_path / name, image_array())
  (failure,) = find(tmp_path, 1).failures
  assert_all_in(failure.reason, 'b.nii.gz', 'also that of', 'b.nii;')
  save(tmp_path / 'four.nii', np.zeros((*SHAPE, 3), np.int16))
  with pytest.raises(InputError) as error:
    find(tmp_path / 'four.nii', 1)
  assert_one_line(error, 'four.nii: 3 channels; allowed', 'training, 1')


# Layouts that are wrong.


def test_no_folder_or_no_layout(tmp_path):
  assert_one_line(error_of(tmp_path / 'none'), 'none', 'no such folder')
  line = error_of(tmp_path)
  assert_one_line(line, tmp_path, 'found nothing', 'imagesTr with labelsTr')
  (tmp_path / 'Task09').mkdir()
  assert_one_line(error_of(tmp_path), 'found Task09')
  (tmp_path / 'images').mkdir()
  assert_one_line(error_of(tmp_path), 'no labels; found Task09, images;')
  (tmp_path / 'labels').mkdir()
  assert_one_line(error_of(tmp_path), 'images: no volumes; found nothing')
  (tmp_path / 'masks').mkdir()
  assert_one_line(error_of(tmp_path), 'both labels and masks')
  (tmp_path / 'val').mkdir()
  assert_one_line(error_of(tmp_path), 'a folder val', 'splits.json')
  (tmp_path / 'train').mkdir()
  assert_one_line(error_of(tmp_path), 'both images and train')
  (tmp_path / 'imagesTr').mkdir()
  assert_one_line(error_of(tmp_path), 'imagesTr without labelsTr')


def test_wrong_dataset_json(tmp_path):
  write_decathlon(tmp_path)
  (tmp_path / 'dataset.json').write_text('{"labels": ')
  assert_one_line(error_of(tmp_path), 'dataset.json: not JSON')
  write_decathlon(tmp_path, labels={})
  assert_one_line(error_of(tmp_path), 'dataset.json: no "labels"')


def test_listed_files_that_are_not_there(tmp_path):
  write_decathlon(tmp_path, ['a', 'b', 'c'])
  (tmp_path / 'imagesTr' / 'a.nii.gz').unlink()
  (tmp_path / 'labelsTr' / 'b.nii.gz').unlink()
  line = error_of(tmp_path)
  assert_one_line(
    line, "dataset.json: lists './imagesTr/a.nii.gz', which is not there",
    'allowed are files below', '1 more problem;',
  )  # fmt: skip
  source = open_volumes(tmp_path, strict=False)['train']
  assert source.names == ('c',) and len(source.problems) == 2
  assert "lists './labelsTr/b.nii.gz'" in source.problems[1]


def test_nothing_of_what_is_listed_is_there(tmp_path):
  write_json(
    tmp_path, labels=LABELS,
    training=[{'image': 'imagesTr/a.nii.gz', 'label': 'labelsTr/a.nii.gz'}],
  )  # fmt: skip
  for strict in (True, False):
    line = error_of(tmp_path, strict=strict)
    assert_one_line(line, "lists 'imagesTr/a.nii.gz'", '1 more problem')


def test_missing_partners(tmp_path):
  write_pairs(tmp_path, 'abcd')
  (tmp_path / 'labels' / 'b.nii.gz').unlink()
  (tmp_path / 'images' / 'c.nii.gz').unlink()
  save(tmp_path / 'labels' / 'd_mask.nii.gz', label_array())
  assert_one_line(error_of(tmp_path), '1 more problem; --mode=plan lists all')
  source = open_volumes(tmp_path, strict=False)['train']
  assert source.names == ('a', 'd')
  label_alone, twice = source.problems
  assert 'labels/c.nii.gz: a label without its image' in label_alone
  assert 'd_mask.nii.gz: the second label of the case d, after d' in twice
  (image_alone,) = source.oddities
  assert_all_in(
    image_alone, 'images: 1 image without a label in', 'labels is left out (b'
  )


@pytest.mark.parametrize('split', ['Tr', 'Ts'])
def test_images_without_labels_are_left_out_and_counted(tmp_path, split):
  write_pairs(tmp_path, 'ab', images='imagesTr', labels='labelsTr')
  write_pairs(tmp_path, 'cd', images='imagesTs', labels='labelsTs')
  for name in 'xyz':
    save(tmp_path / f'images{split}' / f'{name}.nii.gz', image_array())
  write_json(tmp_path, labels=LABELS, modality={'0': 'CT'})
  sources = open_volumes(tmp_path)
  assert sources['train'].names == ('a', 'b')
  assert sources['test'].names == ('c', 'd')
  (line,) = sources['train'].oddities
  assert_all_in(
    line, f'images{split}: 3 images without a label in',
    f'labels{split} are left out (x.nii.gz, y.nii.gz, z.nii.gz)',
  )  # fmt: skip


@pytest.mark.parametrize(
  'name', ['a' * 300, 'b' * 9000, 'c\0d', '\ud800', '', 'x\ny']
)
def test_names_that_no_file_can_have(tmp_path, name):
  write_decathlon(
    tmp_path, 'ab', training=[{'image': name, 'label': f'labelsTr/{name}'}]
  )
  line = error_of(tmp_path)
  assert_one_line(line, 'dataset.json: ', 'allowed')
  assert len(str(line.value)) < 400
  assert str(line.value).isprintable()


@pytest.mark.parametrize('name', ['n' * 300, 'n' * 9000, 'n\0m'])
def test_a_root_that_no_folder_can_be(tmp_path, name):
  line = error_of(tmp_path / name)
  assert_one_line(line, 'folder')
  assert len(str(line.value)) < 400 + len(str(tmp_path))


def test_a_folder_or_a_lost_link_in_place_of_dataset_json(tmp_path):
  write_pairs(tmp_path, 'ab')
  path = tmp_path / 'dataset.json'
  path.mkdir()
  assert_one_line(error_of(tmp_path), path, 'directory')
  path.rmdir()
  path.symlink_to(tmp_path / 'gone')
  assert_one_line(error_of(tmp_path), path, 'cannot be read')


def test_channels_are_those_of_most_cases(tmp_path):
  write_pairs(tmp_path, 'abcdef')
  both = np.stack([image_array(), image_array()], axis=-1)
  save(tmp_path / 'images' / 'a.nii.gz', both)
  (tmp_path / 'images' / 'b.nii.gz').write_bytes(b'')
  source = open_volumes(tmp_path)['train']
  assert source.channels == 1
  with pytest.raises(InputError) as error:
    source[0]
  assert_one_line(error, 'images/a.nii.gz: 2 channels; allowed is', '1')
  # Or dataset.json is the odd one.
  write_json(tmp_path / 'set', modality={'0': 'T1'}, labels=LABELS)
  for name in 'abc':
    save(tmp_path / 'set' / 'imagesTr' / f'{name}.nii.gz', both)
    save(tmp_path / 'set' / 'labelsTr' / f'{name}.nii.gz', label_array())
  assert_one_line(
    error_of(tmp_path / 'set', strict=False), 'dataset.json: names 1 channel',
    '(T1), but 3 of 3 cases have 2',
  )  # fmt: skip
  for path in (tmp_path / 'images').iterdir():
    path.write_bytes(b'')
  line = error_of(tmp_path, strict=False)
  assert_one_line(line, 'images/a.nii.gz: an empty file', '5 more problems')
  assert len(line.value.problems) == 6


def test_missing_channel_files(tmp_path):
  write_nnunet(
    tmp_path, channel_names={'0': 'T1', '1': 'T2'}, labels=FRONT_BACK
  )
  folder = tmp_path / 'imagesTr'
  (folder / 'b_0001.nii.gz').unlink()
  assert_one_line(
    error_of(tmp_path), 'b_0000.nii.gz: one of 1 channel files of the case b',
    'allowed are 2', 'T1, T2',
  )  # fmt: skip
  (folder / 'a_0000.nii.gz').unlink()
  assert_one_line(error_of(tmp_path), 'case a has no file a_0000')
  save(folder / 'a_0000.nii.gz', image_array())
  save(folder / 'c_0000.nii.gz', image_array())
  save(folder / 'c_0001.nii.gz', image_array())
  source = open_volumes(tmp_path, strict=False)['train']
  (line,) = source.oddities  # both channels of c are one image
  assert_all_in(line, '1 image without a label', 'c_0000.nii.gz')
  with pytest.raises(InputError) as error:
    source[1]
  assert_one_line(error, 'b_0000.nii.gz: 1 channel;', 'T1')


def test_two_cases_of_one_name(tmp_path):
  write_pairs(tmp_path, 'ab')
  save(tmp_path / 'images' / 'a.nii', image_array())
  assert_one_line(error_of(tmp_path), 'a.nii.gz: the name', 'images/a.nii;')
  (tmp_path / 'images' / 'a.nii').unlink()
  save(tmp_path / 'images' / 'b_0000.nii.gz', image_array())
  line = error_of(tmp_path)
  assert_one_line(line, 'b_0000.nii.gz: the name of the case, b,', 'b.nii.gz;')
  write_decathlon(tmp_path / 'listed', 'aba')
  assert_one_line(error_of(tmp_path / 'listed'), 'name of the case, a,')
