"""The checks of a data set find everything at once, and name the files."""

import numpy as np
from data_cases import assert_all_in
from volume_cases import (
  SHAPE,
  image_array,
  label_array,
  save,
  write_decathlon,
  write_pairs,
)  # fmt: skip

from medseg_jax.data.sources.inspection import inspect_case, inspect_set
from medseg_jax.data.sources.volumes import open_volumes


def inspect_all(root):
  source = open_volumes(root, strict=False)['train']
  inspections = [inspect_case(source, i) for i in range(len(source))]
  light = [inspection._replace(case=None) for inspection in inspections]
  return source, inspections, *inspect_set(source, light)


def assert_lines(lines, *expected):
  assert len(lines) == len(expected), lines
  for line, parts in zip(lines, expected, strict=True):
    assert '\n' not in line
    assert_all_in(line, *parts)


def test_a_good_set_has_nothing_to_say(tmp_path):
  write_decathlon(tmp_path, 'abcdef')
  source, inspections, errors, warnings = inspect_all(tmp_path)
  assert errors == warnings == []
  for case, inspection in zip(source, inspections, strict=True):
    assert inspection.errors == inspection.warnings == ()
    assert inspection.case.name == case.name
    np.testing.assert_array_equal(inspection.case.image, case.image)
    np.testing.assert_array_equal(inspection.case.label, case.label)
    assert inspection.shape == SHAPE[::-1]
    assert inspection.spacing == case.spacing
  assert len({inspection.digest for inspection in inspections}) == 6


def test_all_problems_of_a_case_at_once(tmp_path):
  write_decathlon(tmp_path)
  image = image_array().astype(np.float32)
  image[0, 0, :2] = np.inf
  save(tmp_path / 'imagesTr' / 'a.nii.gz', image)
  save(tmp_path / 'labelsTr' / 'a.nii.gz', label_array((0, 7, 7, 8)))
  save(
    tmp_path / 'labelsTr' / 'b.nii.gz', label_array((0, 4)),
    spacing=(1.0, 3.0, 2.0),
  )  # fmt: skip
  _, (first, second), errors, warnings = inspect_all(tmp_path)
  assert errors == warnings == []
  assert first.case is None and second.case is None
  assert_lines(
    first.errors,
    ['imagesTr/a.nii.gz', '2 voxels not finite'],
    ['labelsTr/a.nii.gz', '7 (60 voxels), 8 (30 voxels)', 'are 0, 1, 2'],
  )
  assert_lines(
    second.errors,
    ['labelsTr/b.nii.gz', '4 (60 voxels)'],
    ['labelsTr/b.nii.gz', 'imagesTr/b.nii.gz', '8 mm'],  # 4 steps of 2 mm
  )
  assert first.digest == '' and first.shape == () and second.shape == (4, 5, 6)


def test_files_that_cannot_be_read_are_all_named(tmp_path):
  write_decathlon(tmp_path, 'abc')
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
  (tmp_path / 'imagesTr' / 'a.nii.gz').write_bytes(pointer)
  path = tmp_path / 'labelsTr' / 'a.nii.gz'
  path.write_bytes(path.read_bytes()[:60])
  save(tmp_path / 'imagesTr' / 'b.nii.gz', image_array(shape=(6, 5, 1)))
  save(tmp_path / 'labelsTr' / 'c.nii.gz', np.zeros((*SHAPE, 2), np.uint8))
  _, (a, b, c), _, _ = inspect_all(tmp_path)
  assert_lines(
    a.errors,
    ['imagesTr/a.nii.gz', 'Git LFS pointer'],
    ['labelsTr/a.nii.gz', 'truncated'],
  )
  assert_lines(b.errors, ['imagesTr/b.nii.gz', 'single slice'])
  assert_lines(c.errors, ['labelsTr/c.nii.gz', 'a label with 2 channels'])


def test_constant_images_are_errors_and_empty_labels_odd(tmp_path):
  write_decathlon(tmp_path)
  save(tmp_path / 'imagesTr' / 'a.nii.gz', np.full(SHAPE, 17, np.int16))
  save(tmp_path / 'labelsTr' / 'b.nii.gz', np.zeros(SHAPE, np.uint8))
  _, (a, b), errors, warnings = inspect_all(tmp_path)
  assert b.errors == () and errors == warnings == []
  assert a.case is None and b.case is not None
  assert_lines(a.errors, ['imagesTr/a.nii.gz: a constant image, 17'])
  assert_lines(b.warnings, ['labelsTr/b.nii.gz: the label is empty'])


def test_a_constant_channel_names_its_file(tmp_path):
  save(tmp_path / 'images' / 'a_0000.nii.gz', image_array())
  save(tmp_path / 'images' / 'a_0001.nii.gz', np.zeros(SHAPE, np.int16))
  save(tmp_path / 'labels' / 'a.nii.gz', label_array())
  _, (a,), _, _ = inspect_all(tmp_path)
  assert_lines(
    a.warnings, ['a_0001.nii.gz: 0 everywhere in channel', 'channel_1']
  )


def test_files_of_the_set_without_partner_or_unlisted(tmp_path):
  write_decathlon(tmp_path, 'abc')
  (tmp_path / 'labelsTr' / 'b.nii.gz').unlink()
  save(tmp_path / 'imagesTr' / 'extra.nii.gz', image_array(9))
  source, inspections, errors, warnings = inspect_all(tmp_path)
  assert source.names == ('a', 'c') and len(inspections) == 2
  assert_lines(errors, ["lists './labelsTr/b.nii.gz', which is not there"])
  assert warnings == []  # what is not used is told when the set is opened
  parts = ['imagesTr: not used: extra.nii.gz; 1 file', 'does not list']
  assert_lines(source.oddities, parts)


def test_the_same_image_twice(tmp_path):
  write_pairs(tmp_path, 'abc')
  # Turned around in the file it is still the same image.
  turned = image_array(0)[::-1]
  affine = np.diag([-1.0, 1, 2, 1])
  affine[0, 3] = SHAPE[0] - 1
  save(tmp_path / 'images' / 'c.nii.gz', turned, affine=affine)
  _, _, errors, warnings = inspect_all(tmp_path)
  assert errors == []
  assert_lines(warnings, ['images/c.nii.gz: the same voxels', 'a.nii.gz'])


def test_one_odd_spacing_or_shape_among_many(tmp_path):
  write_pairs(tmp_path, 'abcdefg')
  for folder, array in (('images', image_array(9)), ('labels', label_array())):
    save(tmp_path / folder / 'b.nii.gz', array, spacing=(1.0, 1.0, 6.1))
  shape = (6, 16, 4)
  save(tmp_path / 'images' / 'd.nii.gz', image_array(10, shape))
  save(tmp_path / 'labels' / 'd.nii.gz', label_array(shape=shape))
  _, _, errors, warnings = inspect_all(tmp_path)
  assert errors == []
  assert_lines(
    warnings,
    ['b.nii.gz: spacing 6.1 x 1 x 1 mm', 'the 7 cases is 2 x 1 x 1'],
    ['d.nii.gz: shape 4 x 16 x 6 voxels', 'is 4 x 5 x 6'],
  )


def test_a_wide_range_of_spacings_is_not_odd(tmp_path):
  sizes = dict(zip('abcdef', (0.5, 0.6, 2, 2.1, 9, 9.5), strict=True))
  for i, (name, size) in enumerate(sizes.items()):
    spacing = (1.0, 1.0, size)
    save(tmp_path / 'images' / f'{name}.nii', image_array(i), spacing=spacing)
    save(tmp_path / 'labels' / f'{name}.nii', label_array(), spacing=spacing)
  assert inspect_all(tmp_path)[3] == []


def test_hippocampus_and_trunk_are_in_order(real_data):
  root = real_data / 'hippocampus' / 'Task04_Hippocampus'
  source = open_volumes(root, strict=False)['train'].subset(
    [f'hippocampus_{n}' for n in ('001', '003', '034', '317', '367')]
  )
  inspections = [inspect_case(source, i) for i in range(len(source))]
  assert all(i.errors == i.warnings == () for i in inspections)
  assert inspect_set(source, inspections) == ([], [])
  source, inspections, errors, warnings = inspect_all(real_data / 'ct_mr')
  assert errors == warnings == []
  assert all(i.errors == i.warnings == () for i in inspections)
