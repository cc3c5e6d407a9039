"""Folders of volumes: what is not used is named, and lists stay below."""

import pytest
from data_cases import assert_all_in, assert_one_line
from volume_cases import (
  LABELS,
  error_of,
  image_array,
  save,
  write_decathlon,
  write_json,
  write_pairs,
)

from medseg_jax.data.sources.volumes import open_volumes


def test_what_is_not_used_is_named(tmp_path):
  write_pairs(tmp_path, 'ab', images='imagesTr', labels='labelsTr')
  write_pairs(tmp_path, 'c', images='imagesTs', labels='later')
  (tmp_path / 'imagesTr' / 'c.mgz').write_bytes(b'')
  (tmp_path / 'imagesTr' / 'more').mkdir()
  (tmp_path / 'imagesTr' / '.DS_Store').write_bytes(b'')
  (tmp_path / 'labelsTs').mkdir()
  (tmp_path / 'labelsTs' / 'readme.txt').write_bytes(b'to come')
  write_json(tmp_path, labels=LABELS, modality={'0': 'CT'})
  sources = open_volumes(tmp_path)
  assert list(sources) == ['train']
  first, second, third = sources['train'].oddities
  assert_all_in(first, 'imagesTr: not used: c.mgz, more;', '.nii.gz .nii')
  assert_all_in(second, 'labelsTs: no volumes', 'no test split', 'readme')
  assert_all_in(third, f'{tmp_path}: not used: later; what is read is imagesTr')


@pytest.mark.parametrize('layout', ['pairs', 'splits', 'decathlon'])
def test_what_lies_beside_the_folders_is_named(tmp_path, layout):
  if layout == 'decathlon':
    write_decathlon(tmp_path)
  else:
    at = 'train/' * (layout == 'splits')
    write_pairs(tmp_path, 'ab', images=f'{at}images', labels=f'{at}labels')
  if layout == 'splits':
    write_pairs(tmp_path, 'c', images='test/images', labels='test/labels')
  for name in (
    'README.md', 'LICENSE', 'splits.json', 'plan.json', '.hidden', 'groups.csv',
  ):  # fmt: skip
    (tmp_path / name).write_bytes(b'')
  known = {tmp_path / 'groups.csv'}
  assert open_volumes(tmp_path, known=known)['train'].oddities == ()
  save(tmp_path / 'imagesTs' / 'x.nii.gz', image_array())
  save(tmp_path / 'scan.nii.gz', image_array())
  (tmp_path / 'table.csv').write_bytes(b'')
  names = ['imagesTs', 'scan.nii.gz', 'table.csv']
  if layout == 'splits':
    (tmp_path / 'test' / 'more.mgz').write_bytes(b'')
    names.append('test/more.mgz')
  (line,) = open_volumes(tmp_path, known=known)['train'].oddities
  assert_all_in(line, f'{tmp_path}: not used: {", ".join(names)}; what is read')


def test_what_is_listed_is_never_called_unlisted(tmp_path):
  # Whatever name leads to it; and labels may lie beside their images.
  write_pairs(tmp_path, 'abcd', images='all', labels='masks')
  for name in 'abcd':
    (tmp_path / 'masks' / f'{name}.nii.gz').rename(
      tmp_path / 'all' / f'{name}_seg.nii.gz'
    )
  (tmp_path / 'masks').rmdir()
  (tmp_path / 'all' / 'h.nii.gz').hardlink_to(tmp_path / 'all' / 'b.nii.gz')
  (tmp_path / 'all' / 's.nii.gz').symlink_to('c.nii.gz')
  images = {'a': 'all/../all/a', 'b': './all/h', 'c': 'all/s'}
  training = [
    {'image': f'{file}.nii.gz', 'label': f'all/{name}_seg.nii.gz'}
    for name, file in images.items()
  ]
  write_json(tmp_path, labels=LABELS, modality={'0': 'CT'}, training=training)
  source = open_volumes(tmp_path)['train']
  assert source.names == ('a', 'h', 's')
  (line,) = source.oddities
  assert_all_in(line, 'all: not used: d.nii.gz, d_seg.nii.gz; 2 files that')
  other = save(tmp_path.parent / f'{tmp_path.name} x.nii.gz', image_array())
  (tmp_path / 'all' / 'd.nii.gz').unlink()
  (tmp_path / 'all' / 'd.nii.gz').symlink_to(other)
  training.append({'image': 'all/d.nii.gz', 'label': 'all/d_seg.nii.gz'})
  write_json(tmp_path, labels=LABELS, modality={'0': 'CT'}, training=training)
  source = open_volumes(tmp_path, strict=False)['train']
  (problem,) = source.problems
  assert_all_in(problem, "lists 'all/d.nii.gz', which is not below")
  assert source.oddities == ()


def test_a_list_stays_below_its_folder(tmp_path):
  root, other = tmp_path / 'set', tmp_path / 'other'
  write_pairs(other, 'xyz')
  for name, image in (
    ('up', '../other/images/x.nii.gz'),
    ('far', str(other / 'images' / 'x.nii.gz')),
    ('link', 'imagesTr/link.nii.gz'),
    ('folder', 'linked/x.nii.gz'),
    ('root', '.'),
  ):
    write_decathlon(
      root, 'ab', training=[
        {'image': 'imagesTr/a.nii.gz', 'label': 'labelsTr/a.nii.gz'},
        {'image': image, 'label': 'labelsTr/b.nii.gz'},
      ],
    )  # fmt: skip
    if name == 'link':
      (root / 'imagesTr' / 'link.nii.gz').symlink_to(other / 'images/x.nii.gz')
    if name == 'folder':
      (root / 'linked').symlink_to(other / 'images')
    line = error_of(root)
    assert_one_line(line, 'dataset.json: lists', image, 'not below', root)
    assert open_volumes(root, strict=False)['train'].names == ('a',)
  # Labels likewise, and the files of channels.
  write_decathlon(
    root, 'ab', training=[
      {'image': 'imagesTr/a.nii.gz', 'label': '../other/labels/x.nii.gz'},
      {'image': 'imagesTr/c.nii.gz', 'label': 'labelsTr/b.nii.gz'},
    ],
  )  # fmt: skip
  (root / 'imagesTr' / 'c_0000.nii.gz').symlink_to(other / 'images/x.nii.gz')
  line = error_of(root)
  assert_one_line(line, "'../other/labels/x.nii.gz'", '1 more problem')
  assert 'c_0000.nii.gz' in line.value.problems[1]


def test_a_root_that_is_a_link_and_links_inside_are_fine(tmp_path):
  root = tmp_path / 'set'
  write_decathlon(root, 'ab')
  annexed = root / '.git' / 'annex' / '7f3a'
  annexed.parent.mkdir(parents=True)
  (root / 'imagesTr' / 'a.nii.gz').rename(annexed)
  (root / 'imagesTr' / 'a.nii.gz').symlink_to(annexed)
  (tmp_path / 'link').symlink_to(root)
  assert open_volumes(tmp_path / 'link')['train'].names == ('a', 'b')
