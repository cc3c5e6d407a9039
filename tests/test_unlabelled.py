"""Volumes without labels as cases, in the layouts that people have."""

import json

import nibabel
import numpy as np
import pytest
from data_cases import assert_one_line
from volume_cases import (
  image_array,
  inside,
  save,
  write_decathlon,
  write_nnunet,
)

from medseg_jax.data.case import Case
from medseg_jax.data.fingerprint import fingerprint_case, merge
from medseg_jax.data.sources.unlabelled import open_unlabelled
from medseg_jax.runtime.errors import InputError, InputErrors


def opened(root, **options):
  source = open_unlabelled(root, **options)
  assert list(source) == ['train']
  return source['train']


def test_a_flat_folder(tmp_path):
  for seed, name in enumerate('ba'):
    save(tmp_path / f'{name}.nii.gz', image_array(seed))
  (tmp_path / 'readme.txt').write_text('')
  (tmp_path / 'later').mkdir()
  (tmp_path / 'old.mgz').write_text('')
  source = opened(tmp_path)
  [line] = source.oddities
  assert 'later, old.mgz; what is read are' in line
  assert source.names == ('a', 'b') and source.channel_names == ('channel_0',)
  assert source.classes == source.label_values == ()
  case = source[0]
  np.testing.assert_array_equal(case.image[..., 0], inside(image_array(1)))
  assert case.label.shape == case.image.shape[:-1] and not case.label.any()
  assert source.subset(['b'])[0].label is not None


def test_labels_of_a_data_set_are_not_read(tmp_path):
  write_decathlon(tmp_path)
  for path in (tmp_path / 'labelsTr').iterdir():
    path.write_bytes(b'no NIfTI')
  save(tmp_path / 'imagesTs' / 'c.nii.gz', image_array(7))
  source = opened(tmp_path)
  assert source.oddities == ()
  save(tmp_path / 'd.nii.gz', image_array(8))
  assert 'not used: d.nii.gz' in opened(tmp_path).oddities[0]
  assert source.names == ('a', 'b', 'c') and source.channel_names == ('MRI',)
  assert not any(source[i].label.any() for i in range(3))


def test_channels_in_files_and_a_dataset_json_of_names_alone(tmp_path):
  write_nnunet(tmp_path, channel_names={'0': 'CT', '1': 'PET'})
  source = opened(tmp_path)
  assert source.names == ('a', 'b') and source.channel_names == ('CT', 'PET')
  assert source[1].image.shape[-1] == 2
  (tmp_path / 'dataset.json').unlink()
  assert opened(tmp_path).channel_names == ('channel_0', 'channel_1')


def test_what_is_called_as_a_mask_is_left_out(tmp_path):
  for name in ('a', 'a_seg', 'b', 'b_mask'):
    save(tmp_path / f'{name}.nii.gz', image_array())
  source = opened(tmp_path)
  assert source.names == ('a', 'b')
  [line] = source.oddities
  assert 'a_seg.nii.gz' in line and 'b_mask.nii.gz' in line


def two_of_a_name(root):
  save(root / 'imagesTr' / 'a.nii.gz', image_array())
  save(root / 'imagesTs' / 'a.nii', image_array())


def lacks_a_channel(root):
  for name in ('a_0000', 'a_0001', 'b_0000'):
    save(root / f'{name}.nii.gz', image_array())


def other_channels(root):
  (root / 'dataset.json').write_text(
    json.dumps({'channel_names': {'0': 'T1', '1': 'T2'}})
  )
  save(root / 'a.nii.gz', image_array())


def masks_alone(root):
  save(root / 'a_label.nii.gz', image_array())


@pytest.mark.parametrize(
  ('write', 'words'),
  [
    (lambda root: None, ['no volumes to pretrain on', 'imagesTr', '.nii.gz']),
    (masks_alone, ['no volumes to pretrain on', 'a_label.nii.gz']),
    (two_of_a_name, ['imagesTs', 'one case of each name']),
    (lacks_a_channel, ['case b has no file b_0001']),
    (other_channels, ['a.nii.gz', '1 channel', '2']),
  ],
)
def test_mistakes_are_one_line_each(tmp_path, write, words):
  write(tmp_path)
  with pytest.raises(InputError) as error:
    opened(tmp_path)
  if isinstance(error.value, InputErrors):
    [line] = error.value.problems
    assert all(word in line for word in words), line
  assert_one_line(error, *words)


def test_problems_of_cases_are_listed_for_the_survey(tmp_path):
  lacks_a_channel(tmp_path)
  source = opened(tmp_path, strict=False)
  assert source.names == ('a',)
  [line] = source.problems
  assert 'b_0001' in line


def test_intensities_of_all_that_is_not_zero():
  rng = np.random.default_rng(0)
  image = np.zeros((6, 7, 8, 2), np.float32)
  image[1:5, 2:6, 1:7] = rng.normal(50, 9, (4, 4, 6, 2))
  image[2, 3, 4] = 0, -300  # one channel alone is 0
  image[3, 3, 3] = 0  # a hole
  found = merge(
    [
      fingerprint_case(
        Case('a', image, None, (1.0, 1.0, 1.0)), num_samples=200_000, seed=0
      )
    ]
  )
  assert found.shapes.tolist() == [[4, 4, 6]]
  assert found.relative_size == pytest.approx(96 / 336)
  for i, channel in enumerate(found.intensities):
    values = image[(image != 0).any(-1)][:, i]
    assert len(values) == 95
    assert channel['mean'] == pytest.approx(values.mean(), rel=0.01)
    assert channel['min'] == values.min() and channel['max'] == values.max()
  empty = Case('b', np.zeros((3, 3, 3, 1)), None, (1.0, 1.0, 1.0))
  with pytest.raises(InputError) as error:
    merge([fingerprint_case(empty, num_samples=10, seed=0)])
  assert_one_line(error, 'no labels', 'not 0')


def test_a_damaged_volume_is_named_when_read(tmp_path):
  path = save(tmp_path / 'a.nii.gz', image_array())
  whole = path.read_bytes()
  image = nibabel.load(path)
  assert image.shape
  path.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError) as error:
    opened(tmp_path)[0]
  assert_one_line(error, path)
