"""--mode=plan lists all that is wrong or odd in a data set, and its classes."""

import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.programs import plan, prepare, train
from medseg_jax.runtime.errors import InputError


def config_for(root, **keys):
  config = shrink(load('auto_cpu'), path=root, num_steps=2)
  config.data.update(keys)
  config.augment.flip_prob = 0.0  # the classes are called left and right
  return config


def test_plan_lists_every_problem_in_one_go(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 8)
  (data / 'labelsTr' / 'case_01.nii.gz').unlink()
  path = data / 'imagesTr' / 'case_02.nii.gz'
  path.write_bytes(path.read_bytes()[:400])
  path = data / 'labelsTr' / 'case_03.nii.gz'
  label = nibabel.load(path)
  array = np.asarray(label.dataobj).copy()
  array[0, 0, 0] = 7
  nibabel.Nifti1Image(array, label.affine).to_filename(path)
  empty = np.zeros_like(nibabel.load(data / 'labelsTr/case_04.nii.gz').dataobj)
  nibabel.Nifti1Image(empty, label.affine).to_filename(
    data / 'labelsTr' / 'case_04.nii.gz'
  )
  with pytest.raises(InputError) as error:
    plan.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, '3 errors')
  lines = capsys.readouterr().out.splitlines()
  errors = [line for line in lines if line.startswith('error')]
  assert len(errors) == 3
  for name in ('case_01', 'case_02', 'case_03'):
    assert sum(name in line for line in errors) == 1
  warnings = [line for line in lines if line.startswith('warning')]
  assert len(warnings) == 1 and 'case_04' in warnings[0]
  assert not (tmp_path / 'run' / 'plan.json').exists()
  for path in (data / 'labelsTr').iterdir():  # nothing left to learn from
    nibabel.Nifti1Image(empty, label.affine).to_filename(path)
  with pytest.raises(InputError) as error:
    plan.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, 'errors in the data', data)
  assert 'case_02' in capsys.readouterr().out


def test_plan_lists_what_keeps_the_data_from_being_opened(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 5)
  for path in (data / 'labelsTr').iterdir():
    path.unlink()
  with pytest.raises(InputError) as error:
    plan.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, data, '5 errors in the data, listed above')
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == ['error'] * 5
  # Training without a plan lists them, too; with one the first will do.
  with pytest.raises(InputError) as error:
    train.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, '5 errors in the data, listed above')


def test_one_bad_file_is_named_and_no_good_one_blamed(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 6)
  (data / 'dataset.json').unlink()
  two = nibabel.load(data / 'imagesTr' / 'case_00.nii.gz').get_fdata()
  nibabel.Nifti1Image(np.stack([two, two], -1), np.eye(4)).to_filename(
    data / 'imagesTr' / 'case_00.nii.gz'
  )
  (data / 'imagesTr' / 'case_01.nii.gz').write_bytes(b'')
  nibabel.Nifti1Image(two[..., :1], np.eye(4)).to_filename(
    data / 'imagesTr' / 'case_02.nii.gz'
  )
  with pytest.raises(InputError) as error:
    plan.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, '3 errors')
  errors = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('error')
  ]
  for line, parts in zip(
    errors,
    (('case_00', '2 channels'), ('case_01', 'empty'), ('case_02', 'slice')),
    strict=True,
  ):
    assert all(part in line for part in parts)


def test_plan_tells_of_classes_and_of_labels_off_their_image(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 5)
  path = data / 'labelsTr' / 'case_03.nii.gz'
  label = nibabel.load(path)
  affine = label.affine.copy()
  affine[0, 3] += 0.3
  nibabel.Nifti1Image(np.asarray(label.dataobj), affine).to_filename(path)
  with pytest.raises(InputError) as error:
    plan.run(config_for(data), tmp_path / 'run')
  assert_one_line(error, 'case_03', '0.3 voxels', 'data.grid_tolerance')
  with pytest.raises(InputError) as error:
    config = config_for(data, grid_tolerance=-1.0)
    plan.run(config, tmp_path / 'run')
  assert_one_line(error, 'data.grid_tolerance is -1')
  capsys.readouterr()
  plan.run(config_for(data, grid_tolerance=0.5), tmp_path / 'run')
  lines = capsys.readouterr().out.splitlines()
  (warning,) = [line for line in lines if line.startswith('warning')]
  assert 'case_03' in warning and '0.3 voxels off the grid' in warning
  classes = [line for line in lines if line.startswith('class ')]
  assert len(classes) == 3
  assert 'left (1)' in classes[1] and 'voxels in 5 of 5 labels' in classes[1]


def test_strays_beside_given_values_are_told_and_ignored(tmp_path, capsys):
  data = write_volumes(tmp_path / 'data', 5)
  (data / 'dataset.json').unlink()
  path = data / 'labelsTr' / 'case_03.nii.gz'
  label = nibabel.load(path)
  array = np.asarray(label.dataobj).copy()
  array[0, 0, 0] = 9
  nibabel.Nifti1Image(array, label.affine).to_filename(path)
  config = config_for(data, label_values=(0, 1, 2))
  config.data.foreground_share = 0.33
  prepare.run(config, tmp_path / 'run')
  out = capsys.readouterr().out
  assert 'case_03.nii.gz: label ids of no class: 9 (1 voxel)' in out
  assert 'class     label_2 (2)' in out and 'label_9' not in out
