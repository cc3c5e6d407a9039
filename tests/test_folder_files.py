"""Folders as people have them: bad files, strange ones, strays, one split."""

import numpy as np
from data_cases import MASK, RNG, assert_all_in, error_line, save, write_pairs

from medseg_jax.data.sources import folder as folder_lib
from medseg_jax.data.sources.folder_files import find_files
from medseg_jax.data.sources.mask_pairs import match_masks


def test_all_bad_files_are_counted_and_the_first_are_named(tmp_path):
  write_pairs(tmp_path, 'abcdef')
  for name in ('images/b.png', 'labels/d.png'):
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-25])
  (tmp_path / 'images' / 'e.png').write_bytes(b'')
  save(tmp_path / 'labels' / 'f.png', MASK.T)
  line = error_line(tmp_path)
  assert_all_in(
    line,
    f'{tmp_path}: files that cannot be used in 4 of 6 cases',
    'images/b.png: cannot be',
    'labels/d.png: cannot be',
  )
  for name in ('b', 'd', 'e'):
    for folder in ('images', 'labels'):
      (tmp_path / folder / f'{name}.png').unlink()
  assert_all_in(error_line(tmp_path), 'labels/f.png: 9 x 8 pixels')


def test_what_is_not_used_is_named_once(tmp_path, caplog):
  for split in ('train', 'test'):
    write_pairs(tmp_path / split, 'ab')
  (tmp_path / 'train' / 'images' / 'patient 3').mkdir()
  for name in (
    'train/images/scan.nrrd', 'test/labels/c.dcm', 'train/extra.mha',
    'train/fov/a.png', 'more/x.png', 'README.md', '.hidden', 'notes.doc',
    'train/LICENSE', 'dataset.json', 'groups.csv', 'others.csv', 'Thumbs.db',
    'train/images/readme.txt', 'readme.zip',
  ):  # fmt: skip
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('')
  (tmp_path / 'val' / 'images').mkdir(parents=True)  # without masks
  known = {tmp_path / 'groups.csv'}
  with caplog.at_level('WARNING'):
    folder_lib.open_folder(tmp_path, known=known)
  (line,) = [record.getMessage() for record in caplog.records]
  assert_all_in(
    line, f'{tmp_path}: not used: train/images/patient 3, ',
    'train/images/scan.nrrd', 'test/labels/c.dcm', 'more, ', '(10 in all)',
  )  # fmt: skip
  for name in ('notes.doc', 'others.csv', 'readme.zip'):
    (tmp_path / name).unlink()
  (tmp_path / 'val' / 'images').rmdir()
  (tmp_path / 'val').rmdir()
  for name in ('train/images/patient 3', 'train/fov', 'more'):
    for path in (tmp_path / name).iterdir():
      path.unlink()
    (tmp_path / name).rmdir()
  for name in ('train/images/scan.nrrd', 'test/labels/c.dcm'):
    (tmp_path / name).unlink()
  (tmp_path / 'train' / 'extra.mha').unlink()
  caplog.clear()
  with caplog.at_level('WARNING'):
    folder_lib.open_folder(tmp_path, known=known)
  assert not caplog.records


def test_jfif_files_are_cases(tmp_path):
  write_pairs(tmp_path, 'ab')
  image = RNG.integers(0, 256, (8, 9), dtype=np.uint8)
  save(tmp_path / 'images' / 'c.jfif', image, format='JPEG')
  save(tmp_path / 'labels' / 'c.png', MASK)
  source = folder_lib.open_folder(tmp_path)['train']
  assert source.names == ('a', 'b', 'c') and source[2].image.shape == (8, 9, 1)


def test_few_images_unlike_the_others_in_colour_are_named(tmp_path, caplog):
  write_pairs(tmp_path, 'abcde')
  write_pairs(tmp_path, 'f', rgb=True)
  with caplog.at_level('WARNING'):
    source = folder_lib.open_folder(tmp_path)['train']
  assert source.channels == 3
  (line,) = [record.getMessage() for record in caplog.records]
  assert_all_in(line, tmp_path, '1 colour image among 6 images', 'f.png')


def test_a_test_split_alone_takes_what_a_model_knows(tmp_path, caplog):
  write_pairs(tmp_path / 'test', 'ab', mask_folder='masks')
  naming = dict(classes=('bg', 'cell', 'wall'), label_values=(0, 255, 7))
  source = folder_lib.open_folder(tmp_path, **naming)['test']
  assert (source.classes, source.label_values) == tuple(naming.values())
  np.testing.assert_array_equal(source[1].label, MASK // 255)
  line = error_line(tmp_path, classes=('a', 'b'), label_values=(0, 1))
  assert_all_in(
    line, 'masks/a.png: label values of no class: 255 (12 pixels)', '(0, 1)'
  )


def test_a_stray_pixel_is_told_with_value_count_and_file(tmp_path, caplog):
  mask = np.kron(MASK, np.ones((8, 8), np.uint8))
  write_pairs(tmp_path, 'abcdefghij', mask=mask)
  mask[1, 1] = 1
  save(tmp_path / 'labels' / 'd.png', mask)
  for given in ((), (0, 255)):
    caplog.clear()
    with caplog.at_level('WARNING'):
      sources = folder_lib.open_folder(tmp_path, label_values=given)
    assert sources['train'].label_values == (0, 255)
    assert sources['train'][3].label[1, 1] == 0
    (line,) = [record.getMessage() for record in caplog.records]
    assert_all_in(line, 'in 1 of 10 files', '1 (1 pixel of d.png)', '(0, 255)')


def test_names_as_drive_has_them(tmp_path):
  """Its masks are images/21_training.tif's 21_manual1.gif, and so on."""
  for name in ('21_training', '01_test'):
    number = name.split('_')[0]
    image = RNG.integers(0, 256, MASK.shape, dtype=np.uint8)
    save(tmp_path / 'images' / f'{name}.tif', image)
    save(tmp_path / 'labels' / f'{number}_manual1.gif', MASK)
    save(tmp_path / 'mask' / f'{name}_mask.gif', MASK)
  found = find_files(tmp_path, 'mask')['train']
  assert [
    (files.name, files.image.name, files.mask.name, files.roi.name)
    for files in found
  ] == [
    ('01_test', '01_test.tif', '01_manual1.gif', '01_test_mask.gif'),
    ('21_training', '21_training.tif', '21_manual1.gif')
    + ('21_training_mask.gif',),
  ]
  # A lone one is called by its number.
  save(tmp_path / 'labels' / '22_manual1.gif', MASK)
  assert '22_manual1.gif' in error_line(tmp_path)
  lone = find_files(tmp_path, '', strict=False)['train'][-1]
  assert lone.name == '22' and 'without' in lone.problem
  matched = match_masks(tmp_path / 'images', tmp_path / 'labels')
  assert {files.name for files in matched.pairs} == {'01_test', '21_training'}
