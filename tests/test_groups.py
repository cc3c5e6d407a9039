"""What belongs together: by an expression, by a file, by the voxels."""

import nibabel
import numpy as np
import pytest
import tifffile
from data_cases import assert_one_line
from PIL import Image

from medseg_jax.data import groups, identity, splits
from medseg_jax.data.formats import images, nifti
from medseg_jax.runtime.errors import InputError

SLICES = [f'p{patient}_s{i}' for patient in range(6) for i in range(3)]


@pytest.mark.parametrize('expression', [r'^(p\d+)_', r'p\d+', r'p(\d+)_s\d'])
def test_an_expression_names_the_group(expression):
  found = groups.read_groups(expression, SLICES)
  assert list(found) == SLICES
  assert len(set(found.values())) == 6
  assert len({found['p2_s0'], found['p2_s1'], found['p2_s2']}) == 1


@pytest.mark.parametrize('first', ['', 'case,group\n', '\ufeffcase, group\n'])
def test_a_file_names_the_group(tmp_path, first):
  path = tmp_path / 'groups.csv'
  lines = [f'{name}, {name[:2]}' for name in reversed(SLICES)]
  path.write_text(first + '\n'.join(lines) + '\n\nnobody,x\n', 'utf-8')
  assert groups.read_groups(str(path), SLICES) == {s: s[:2] for s in SLICES}


@pytest.mark.parametrize(
  ('group', 'content', 'words'),
  [
    ('(p', None, ['(p', 'no regular expression', 'CSV']),
    (r'^q\d', None, ['18 of 18 cases', 'p0_s0', 'allowed']),
    (r'^(p0|p1)', None, ['12 of 18 cases', 'p2_s0, p2_s1', '9 more']),
    ('none.csv', None, ['none.csv', 'No such file', '`case,group`']),
    ('a.csv', 'p0_s0,0,1\n', ['a.csv', 'line 1', '3 columns']),
    ('a.csv', 'p0_s0,0\np0_s0,1\n', ['line 2', 'second group', 'p0_s0']),
    ('a.csv', 'p0_s0,0\n', ['a.csv', '17 of 18', 'a line `case,group`']),
    ('a.csv', 'p0_s0,\n', ['a.csv', 'line 1']),
    ('a.csv', b'\xff\xfe\x00', ['a.csv', 'UTF-8']),
    ('a.csv', 'a,"b\n', ['a.csv', '`case,group`']),
  ],
)
def test_what_names_no_group_is_told(tmp_path, group, content, words):
  if group.endswith('.csv'):
    path = tmp_path / group
    if content is not None:
      raw = content if isinstance(content, bytes) else content.encode()
      path.write_bytes(raw)
    group = str(path)
  with pytest.raises(InputError) as error:
    groups.read_groups(group, SLICES)
  assert_one_line(error, 'config.data.group' if content is None else '', *words)


def test_groups_join_over_several_keys():
  names = list('abcdefg')
  patient = {'a': '1', 'b': '1', 'c': '2', 'd': '2', 'e': ''}
  image = {'b': 'x', 'd': 'x', 'g': 'y'}
  joined = groups.join(names, patient, image)
  assert joined == {**dict.fromkeys('abcd', 'a'), 'e': 'e', 'f': 'f', 'g': 'g'}
  assert groups.join(names) == {name: name for name in names}


@pytest.mark.parametrize('order', splits.FOLD_ORDERS)
@pytest.mark.parametrize('num_folds', [2, 3, 6])
def test_no_fold_parts_a_group(order, num_folds):
  by_patient = {name: name[:2] for name in SLICES}
  folds = splits.all_folds(
    SLICES, num_folds=num_folds, fold_order=order, groups=by_patient
  )
  for fold in folds:
    held_out = {by_patient[name] for name in fold['val']}
    assert held_out.isdisjoint(by_patient[name] for name in fold['train'])
    assert len(held_out) == 6 // num_folds
    assert sorted(fold['train'] + fold['val']) == sorted(SLICES)
  assert sorted(n for fold in folds for n in fold['val']) == sorted(SLICES)


def test_cases_by_themselves_are_split_as_without_groups():
  alone = {name: name for name in SLICES}
  assert splits.all_folds(SLICES, groups=alone) == splits.all_folds(SLICES)


def test_fewer_groups_than_folds_are_told():
  with pytest.raises(InputError) as error:
    splits.all_folds(SLICES, num_folds=7, groups={n: n[:2] for n in SLICES})
  assert_one_line(error, '18 cases in 6 groups', '7 folds')


def test_the_same_pixels_are_the_same_image_in_any_file(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  Image.fromarray(pixels).save(tmp_path / 'b.bmp')
  tifffile.imwrite(tmp_path / 'c.tif', pixels)
  tifffile.imwrite(tmp_path / 'd.tif', pixels.astype(np.float32))
  one, *others = (
    identity.digest(images.read_image(path))
    for path in sorted(tmp_path.iterdir())
  )
  assert others == [one] * 3
  changed = pixels.copy()
  changed[7, 7] ^= 1
  for other in (changed, pixels.T, pixels[:, :-1], pixels.reshape(30, 20)):
    assert identity.digest(other[..., None]) != one


def test_the_same_voxels_are_the_same_image_in_any_file(tmp_path):
  voxels = np.random.default_rng(0).integers(-999, 999, (7, 6, 5), np.int16)
  found = set()
  for name, array in [
    ('a.nii', voxels),
    ('b.nii.gz', voxels),
    ('c.nii', voxels.astype(np.float64)),
    ('d.nii.gz', voxels.astype(np.int32)),
  ]:
    path = tmp_path / name
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)
    found.add(identity.digest(nifti.read_channels([path]).array))
  flipped = nibabel.Nifti1Image(voxels[::-1], np.diag([-1, 1, 1, 1]))
  flipped.to_filename(tmp_path / 'e.nii')  # the same scan, stored otherwise
  found.add(identity.digest(nifti.read_channels([tmp_path / 'e.nii']).array))
  assert len(found) == 1


def test_copies_are_found_by_name():
  found = identity.copies(list('abcdef'), ['1', '2', '1', '3', '2', '1'])
  assert found == {'1': ['a', 'c', 'f'], '2': ['b', 'e']}
