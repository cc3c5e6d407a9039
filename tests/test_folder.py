"""Folders of images and masks: layouts, cases, label values, messages."""

import pathlib
import unicodedata

import numpy as np
import pytest
from data_cases import (
  MASK,
  assert_all_in,
  error_line,
  put_another_in_its_place,
  save,
  write_pairs,
)
from PIL import Image

from medseg_jax.data import splits
from medseg_jax.data.sources import folder as folder_lib
from medseg_jax.runtime.errors import InputError


def names(sources):
  return {split: list(source.names) for split, source in sources.items()}


# Layouts.


@pytest.mark.parametrize('mask_folder', ['labels', 'masks'])
def test_a_flat_folder_is_train(tmp_path, mask_folder):
  cases = [f'{i:02d}' for i in range(10)]
  write_pairs(tmp_path, cases, mask_folder=mask_folder)
  train = folder_lib.open_folder(str(tmp_path))['train']
  assert train.names == tuple(cases)
  part = train.subset(['09', '03'])
  assert part.names == ('09', '03')
  np.testing.assert_array_equal(part[1].image, train[3].image)


def test_split_folders_are_kept(tmp_path):
  for split in ('test', 'val', 'train'):
    write_pairs(tmp_path / split, [f'{split}_1', f'{split}_0'])
  sources = folder_lib.open_folder(tmp_path)
  assert list(names(sources).items()) == [
    (split, [f'{split}_0', f'{split}_1']) for split in ('train', 'val', 'test')
  ]


def test_a_split_without_masks_is_left_out(tmp_path, caplog):
  write_pairs(tmp_path / 'train', 'abcdef')
  save(tmp_path / 'test' / 'images' / 'x.png', MASK)
  with caplog.at_level('WARNING'):
    sources = folder_lib.open_folder(tmp_path)
  assert list(sources) == ['train']
  assert f'{tmp_path}: not used: test (no labels or masks);' in caplog.text


def test_a_test_split_alone_can_be_opened(tmp_path):
  write_pairs(tmp_path / 'test', ['a'])
  assert names(folder_lib.open_folder(tmp_path)) == {'test': ['a']}


def test_odd_stems_match(tmp_path):
  composed = unicodedata.normalize('NFC', 'é')
  decomposed = unicodedata.normalize('NFD', 'é')
  pairs = {
    'benign (1) [x*].PNG': 'benign (1) [x*]_mask.TIF',
    f'caf{composed}.png': f'caf{decomposed}.png',
    'ISIC_01.JPG': 'ISIC_01_segmentation.png',
    'v1.2.png': 'v1.2_Manual1.gif',
    'a_mask.png': 'a_mask.png',
    'plain.bmp': 'plain_label.png',
    '日本.png': '日本_anno.bmp',
  }
  for image, mask in pairs.items():
    save(tmp_path / 'images' / image, MASK)
    save(tmp_path / 'masks' / mask, MASK)
  for ignored in ('.DS_Store', 'Thumbs.db', 'notes.txt', '._plain.bmp'):
    (tmp_path / 'images' / ignored).write_text('')
    (tmp_path / 'masks' / ignored).write_text('')
  source = folder_lib.open_folder(tmp_path)['train']
  expected = sorted(pathlib.PurePath(image).stem for image in pairs)
  assert list(source.names) == expected
  for i, name in enumerate(expected):
    assert source[i].name == name
    np.testing.assert_array_equal(source[i].label, MASK // 255)


# Cases.


def test_cases_hold_image_label_and_region(tmp_path):
  write_pairs(tmp_path, 'ab')
  inside = np.zeros(MASK.shape, np.uint8)
  inside[1:, 1:] = 3
  for stem in 'ab':
    save(tmp_path / 'fov' / f'{stem}_mask.gif', inside)
  source = folder_lib.open_folder(tmp_path, roi='fov')['train']
  assert source.classes == ('background', 'foreground')
  assert source.label_values == (0, 255)
  assert (source.channels, len(source)) == (1, 2)
  case = source[1]
  with Image.open(tmp_path / 'images' / 'b.png') as file:
    np.testing.assert_array_equal(case.image[..., 0], np.asarray(file))
  assert (case.name, case.spacing, case.affine) == ('b', (1.0, 1.0), None)
  assert case.label.dtype == np.int32
  np.testing.assert_array_equal(case.label, MASK // 255)
  assert case.roi.dtype == bool
  np.testing.assert_array_equal(case.roi, inside > 0)


def test_a_jpeg_region_has_no_ringing(tmp_path):
  mask = np.kron(MASK, np.ones((4, 4), np.uint8))
  write_pairs(tmp_path, 'a', mask=mask)
  save(tmp_path / 'fov' / 'a.jpg', mask, quality=50)
  source = folder_lib.open_folder(tmp_path, roi='fov')['train']
  np.testing.assert_array_equal(source[0].roi, mask > 0)


def test_greys_become_colour_where_any_split_has_colour(tmp_path):
  write_pairs(tmp_path / 'train', 'ab')
  write_pairs(tmp_path / 'test', 'c', rgb=True)
  sources = folder_lib.open_folder(tmp_path)
  image = sources['train'][0].image
  assert sources['train'].channels == 3 and image.shape == (8, 9, 3)
  assert (image == image[..., :1]).all()
  assert sources['test'][0].image.shape == (8, 9, 3)


def test_sizes_may_differ_between_cases_but_not_within_one(tmp_path):
  write_pairs(tmp_path, 'a')
  write_pairs(tmp_path, 'b', mask=MASK.T)
  source = folder_lib.open_folder(tmp_path)['train']
  assert [case.image.shape for case in source] == [(8, 9, 1), (9, 8, 1)]
  save(tmp_path / 'labels' / 'b.png', MASK)
  with pytest.raises(InputError) as error:
    folder_lib.open_folder(tmp_path)['train'][1]
  assert_all_in(str(error.value), 'labels/b.png: 8 x 9', 'b.png has 9 x 8')


def test_label_values_come_from_all_splits(tmp_path):
  write_pairs(tmp_path / 'train', 'ab', mask=np.minimum(MASK, 1))
  write_pairs(tmp_path / 'test', 'c', mask=np.minimum(MASK, 4))
  train = folder_lib.open_folder(tmp_path)['train']
  assert train.label_values == (0, 1, 4)
  assert train.classes == ('background', 'class_1', 'class_2')


def test_given_classes_and_values_keep_their_order(tmp_path):
  write_pairs(tmp_path, 'ab')
  source = folder_lib.open_folder(
    tmp_path, classes=['cell', 'membrane'], label_values=[255, 0]
  )['train']
  assert source.classes == ('cell', 'membrane')
  assert source.label_values == (255, 0)
  np.testing.assert_array_equal(source[0].label, MASK == 0)


def test_some_empty_masks_are_fine_but_not_all(tmp_path):
  write_pairs(tmp_path, 'ac', mask=np.zeros_like(MASK))
  for options in ({}, dict(classes=('background', 'cell'))):
    assert_all_in(
      error_line(tmp_path, **options), tmp_path,
      'every one of the 2 masks is empty (all 0), a.png for one',
      'two values',
    )  # fmt: skip
  # As of healthy people that a trained model is evaluated on.
  source = folder_lib.open_folder(tmp_path, label_values=(0, 255))['train']
  assert source.label_values == (0, 255) and source[0].label.max() == 0
  for stem in ('images/c.png', 'labels/c.png'):
    (tmp_path / stem).unlink()
  write_pairs(tmp_path, 'b')
  source = folder_lib.open_folder(tmp_path)['train']
  assert [int(case.label.sum()) for case in source] == [0, 12]


@pytest.mark.parametrize('given', [(), (0, 255)])
def test_jpeg_and_smooth_masks_snap_and_the_share_is_told(
  tmp_path, caplog, given
):
  y, x = np.mgrid[:256, :256] - 127.5
  large = np.where(np.hypot(y, x) < 80, 255, 0).astype(np.uint8)
  small = Image.fromarray(large).resize((64, 64), Image.Resampling.BILINEAR)
  smooth = np.asarray(small)
  write_pairs(tmp_path / 'train', ['smooth', 'flat'], mask=smooth)
  flat = np.where(smooth > 127, 255, 0).astype(np.uint8)
  save(tmp_path / 'train' / 'labels' / 'flat.png', flat)
  write_pairs(tmp_path / 'test', ['jpeg'], mask=flat)
  (tmp_path / 'test' / 'labels' / 'jpeg.png').unlink()
  save(tmp_path / 'test' / 'labels' / 'jpeg.jpg', flat, quality=60)
  with caplog.at_level('WARNING'):
    sources = folder_lib.open_folder(tmp_path, label_values=given)
  assert sources['train'].label_values == (0, 255)
  for source in sources.values():
    for case in source:
      np.testing.assert_array_equal(case.label, flat // 255)
  share = np.mean([(smooth > 0) & (smooth < 255), np.zeros(smooth.shape)])
  assert sources['train'].snapped_share == pytest.approx(share)
  assert sources['train'].snapped == {'smooth'}
  assert sources['test'].snapped_share > 0
  lines = [record.getMessage() for record in caplog.records]
  assert len(lines) == 2
  assert_all_in(
    lines[0], 'train', f'snapped {100 * share:.2g} %', 'in 1 of 2', '(0, 255)'
  )
  # Of no use where the values are given.
  assert ('data.label_values keeps a value' in lines[0]) == (not given)


def test_case_key_follows_the_files_of_the_case(tmp_path):
  write_pairs(tmp_path, 'abc')

  def keys(**options):
    source = folder_lib.open_folder(tmp_path, **options)['train']
    return [source.case_key(i) for i in range(len(source))]

  before = keys()
  assert before == keys() and len(set(before)) == 3
  relabelled = keys(label_values=(255, 0))
  assert not set(before) & set(relabelled)
  for path in sorted(tmp_path.glob('*/*.png')):
    put_another_in_its_place(path)
    after = keys()
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert changed == [path.stem == name for name in 'abc']
    before = after


def test_a_mask_that_changes_later_is_checked(tmp_path):
  write_pairs(tmp_path, 'a')
  source = folder_lib.open_folder(tmp_path)['train']
  save(tmp_path / 'labels' / 'a.png', np.minimum(MASK, 9))
  with pytest.raises(InputError, match='a.png: label values of no class: 9;'):
    source[0]
  (tmp_path / 'labels' / 'a.png').unlink()
  for read in (lambda: source[0], lambda: source.case_key(0)):
    with pytest.raises(InputError, match='a.png: no'):
      read()


# Messages.


def test_missing_folders_are_named_with_what_is_there(tmp_path):
  (tmp_path / 'drive').mkdir()
  line = error_line(tmp_path / 'driev')
  assert_all_in(line, tmp_path / 'driev', 'no such folder', 'holds drive')
  line = error_line(tmp_path / 'drive')
  assert_all_in(line, 'no folder images', 'found nothing', 'train, val, test')
  (tmp_path / 'drive' / 'images').mkdir()
  line = error_line(tmp_path / 'drive')
  assert_all_in(line, 'no masks', 'found images', 'labels or masks')
  (tmp_path / 'drive' / 'labels').mkdir()
  line = error_line(tmp_path / 'drive')
  assert_all_in(line, tmp_path / 'drive' / 'images', 'no image files')
  save(tmp_path / 'drive' / 'images' / 'a.png', MASK)
  line = error_line(tmp_path / 'drive')
  assert_all_in(line, tmp_path / 'drive' / 'labels', 'no image files')


def test_ambiguous_layouts_are_errors(tmp_path):
  write_pairs(tmp_path / 'train', 'ab')
  (tmp_path / 'validation').mkdir()
  assert_all_in(error_line(tmp_path), 'folder validation', 'train, val and')
  (tmp_path / 'validation').rmdir()
  (tmp_path / 'val').mkdir()
  assert_all_in(error_line(tmp_path), tmp_path / 'val', 'no folder images')
  (tmp_path / 'val').rmdir()
  (tmp_path / 'images').mkdir()
  assert_all_in(error_line(tmp_path), 'both images and train')
  (tmp_path / 'images').rmdir()
  (tmp_path / 'train' / 'masks').mkdir()
  assert_all_in(error_line(tmp_path), tmp_path / 'train', 'labels and masks')


def test_files_without_partner_are_counted_and_named(tmp_path):
  write_pairs(tmp_path, 'abcdefg')
  for stem in 'abcde':
    (tmp_path / 'labels' / f'{stem}.png').unlink()
  save(tmp_path / 'labels' / 'z.png', MASK)
  assert_all_in(
    error_line(tmp_path),
    f'{tmp_path / "labels"}: 5 of 7 images without a mask (a.png, b.png',
    '(5 in all)', '1 mask without an image (z.png)', '_segmentation',
  )  # fmt: skip


def test_two_files_for_one_case_are_errors(tmp_path):
  write_pairs(tmp_path, 'ab')
  save(tmp_path / 'labels' / 'a_mask.png', MASK)
  line = error_line(tmp_path)
  assert_all_in(line, 'a.png and a_mask.png are both masks of a.png')
  save(tmp_path / 'images' / 'a.bmp', MASK)
  assert_all_in(error_line(tmp_path), 'a.bmp and a.png', 'same stem')


def test_region_must_be_there_for_every_case(tmp_path):
  write_pairs(tmp_path, 'ab')
  line = error_line(tmp_path, roi='fov')
  assert_all_in(line, tmp_path / 'fov', 'no such folder', 'images, labels')
  save(tmp_path / 'fov' / 'a.png', MASK)
  line = error_line(tmp_path, roi='fov')
  assert_all_in(line, tmp_path / 'fov', '1 of 2 images', 'b.png')


def test_a_region_of_no_image_is_named_where_others_are_scored(
  tmp_path, caplog
):
  write_pairs(tmp_path, 'ab')
  for name in 'abc':
    save(tmp_path / 'fov' / f'{name}.png', MASK)
  assert 'mask without an image' in error_line(tmp_path, roi='fov')
  source = folder_lib.open_folder(tmp_path, roi='fov', strict=False)['train']
  assert source.names == ('a', 'b') and 'c.png' in caplog.text


def test_damaged_masks_and_unknown_values_are_found_on_opening(tmp_path):
  write_pairs(tmp_path, 'ab')
  line = error_line(tmp_path, label_values=(0, 1))
  assert_all_in(line, 'labels/a.png', 'values of no class: 255 (', '(0, 1)')
  line = error_line(tmp_path, classes=('a', 'b', 'c'))
  assert_all_in(line, tmp_path, 'of 3 classes', '(0, 255)')
  path = tmp_path / 'labels' / 'b.png'
  path.write_bytes(path.read_bytes()[:-25])
  assert_all_in(error_line(tmp_path), path, 'cannot be read')


# Real data.


def test_em_sections(real_data):
  root = real_data / 'em'
  sections = folder_lib.open_folder(root, label_values=(255, 0))['train']
  last = splits.all_folds(sections.names, fold_order='block')[4]['val']
  assert last == [str(i) for i in range(24, 30)]
  case = sections.subset(last)[0]
  assert case.image.shape == (512, 512, 1) and case.image.dtype == np.uint8
  assert 0.15 < case.label.mean() < 0.3  # Membranes.
  assert sections.snapped_share == 0
  inferred = folder_lib.open_folder(root)['train']
  assert inferred.label_values == (0, 255) and len(inferred) == 30


def test_drive_photographs(real_data):
  sources = folder_lib.open_folder(real_data / 'drive', roi='fov')
  assert {split: len(source) for split, source in sources.items()} == {
    'train': 20, 'test': 20,
  }  # fmt: skip
  test = sources['test']
  assert test.names == tuple(f'{i:02d}_test' for i in range(1, 21))
  assert (test.channels, test.label_values) == (3, (0, 255))
  for case in (test[0], test[19]):
    assert case.image.shape == (584, 565, 3) and case.image.dtype == np.uint8
    assert 0.6 < case.roi.mean() < 0.75
    assert 0.08 < case.label[case.roi].mean() < 0.18  # Vessels.
    assert case.label[~case.roi].mean() < 0.01
