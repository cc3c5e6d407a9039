"""From a folder of NIfTI files to a plan, a model and masks of new scans."""

import contextlib
import json
import shutil

import jax
import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.data.sources import volumes
from medseg_jax.experiment import config_files
from medseg_jax.programs import evaluate, plan, predict, prepare, train
from medseg_jax.runtime.errors import InputError


def config_for(root, name='auto_cpu', augmented=False, **keys):
  config = shrink(load(name), path=root, num_steps=2, augmented=augmented)
  config.model.depth = 2  # less than the plan's, which takes longer to compile
  config.eval_every = 0
  config.inference.mirror = False
  for key, value in keys.items():
    *sections, last = key.split('__')
    section = config
    for part in sections:
      section = section[part]
    section[last] = value
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns (data, workdir) of a run of two steps on ten small volumes."""
  root = tmp_path_factory.mktemp('volumes')
  data, workdir = write_volumes(root / 'data', 10), root / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    train.run(config_for(data), workdir)
  return data, workdir


def test_the_workdir_holds_plan_folds_and_what_was_resolved(trained):
  data, workdir = trained
  config = config_files.read_config(workdir)
  planned = json.loads((workdir / 'plan.json').read_text())
  chosen = planned['configurations']['3d_fullres']
  assert list(config.patch_size) == chosen['patch_size']
  assert config.batch_size == 8  # given, so not the plan's
  assert config.data.spacing == pytest.approx((1.2, 1.0, 1.0))
  assert config.data.crop and config.data.axes == (0, 1, 2)
  assert [c[0] for c in config.data.intensities] == ['zscore']
  assert config.data.classes == ('background', 'left', 'right')
  folds = json.loads((workdir / 'splits.json').read_text())
  assert len(folds) == 5 and all(len(fold['val']) == 2 for fold in folds)
  summary = json.loads(
    (workdir / 'evaluation' / 'val' / 'summary.json').read_text()
  )
  assert summary['num_cases'] == 2
  left = summary['classes']['left']
  assert {'dice', 'iou', 'hausdorff_95', 'surface_dice', 'dice_ci95'} <= set(
    left
  )
  # A half ball of radius 4, of voxels of 1.2 mm3.
  assert left['volume_ml_label'] == pytest.approx(0.16, abs=0.04)


@pytest.mark.parametrize('axes', ['RAS', 'LPS', 'PSR', 'oblique'])
def test_masks_lie_on_the_new_scans_own_grid(trained, tmp_path, axes):
  data, workdir = trained
  source = nibabel.load(data / 'imagesTr' / 'case_03.nii.gz')
  if axes == 'oblique':
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s, 0, 5], [s, c, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
    new = nibabel.Nifti1Image(source.get_fdata(), turn @ source.affine)
  else:
    order = nibabel.orientations.axcodes2ornt(axes)
    new = source.as_reoriented(
      nibabel.orientations.ornt_transform(
        nibabel.io_orientation(source.affine), order
      )
    )
  (tmp_path / 'new').mkdir()
  new.to_filename(tmp_path / 'new' / 'a scan.nii.gz')
  config = config_files.read_config(workdir)
  config.inference.probabilities = True
  predict.run(
    config,
    workdir,
    input_path=tmp_path / 'new',
    output_dir=tmp_path / 'out',
  )
  mask = nibabel.load(tmp_path / 'out' / 'a scan.nii.gz')
  assert mask.shape == new.shape and mask.get_data_dtype() == np.uint8
  np.testing.assert_allclose(mask.affine, new.affine, atol=1e-6)
  assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
  probs = nibabel.load(tmp_path / 'out' / 'a scan_probabilities.nii.gz')
  assert probs.shape == (*new.shape, 3)
  np.testing.assert_allclose(probs.get_fdata().sum(-1), 1, atol=5e-3)
  agree = probs.get_fdata().argmax(-1) == np.asarray(mask.dataobj)
  assert agree.mean() > 0.99  # ties in half precision
  # The same voxels in another order are the same scan.
  (tmp_path / 'first').mkdir()
  source.to_filename(tmp_path / 'first' / 'b.nii.gz')
  predict.run(
    config,
    workdir,
    input_path=tmp_path / 'first' / 'b.nii.gz',
    output_dir=tmp_path / 'out',
  )
  same = nibabel.load(tmp_path / 'out' / 'b.nii.gz')
  counts = [np.bincount(np.ravel(m.dataobj), minlength=3) for m in (mask, same)]
  np.testing.assert_array_equal(*counts)
  foreign = tmp_path / 'out' / 'a scan.nii.gz'
  foreign.write_bytes(b'precious')
  with pytest.raises(InputError) as error:
    predict.run(
      config, workdir, input_path=tmp_path / 'new', output_dir=tmp_path / 'out'
    )
  assert_one_line(error, foreign, 'not overwritten', '--overwrite')
  assert foreign.read_bytes() == b'precious'


def test_an_edited_plan_and_replaced_folds_are_obeyed(trained, tmp_path):
  data, workdir = trained
  run = tmp_path / 'run'
  run.mkdir()
  edited = json.loads((workdir / 'plan.json').read_text())
  chosen = edited['configurations']['3d_fullres']
  chosen['spacing'] = [2.4, 2.0, 2.0]
  chosen['patch_size'] = [8, 8, 8]
  (run / 'plan.json').write_text(json.dumps(edited))
  names = [f'case_{i:02d}' for i in range(10)]
  fold = {'train': names[:8], 'val': names[9:]}
  (run / 'splits.json').write_text(json.dumps([fold]))
  summary = train.run(config_for(data), run)
  assert summary['num_cases'] == 1
  resolved = config_files.read_config(run)
  assert tuple(resolved.patch_size) == (8, 8, 8)
  assert tuple(resolved.data.spacing) == (2.4, 2.0, 2.0)
  assert json.loads((run / 'plan.json').read_text()) == edited
  assert json.loads((run / 'splits.json').read_text()) == [fold]
  assert evaluate.run(resolved, run, checkpoint='latest') == summary
  plan.run(config_for(data), run)
  assert json.loads((run / 'plan.json').read_text()) == edited


def test_the_2d_plan_learns_slices_and_is_scored_on_volumes(trained, tmp_path):
  data, _ = trained
  config = config_for(
    data, augmented=True, plan__configuration='2d', model__depth=0
  )
  config.data.fold = 'all'
  assert train.run(config, tmp_path) == {}  # nothing is held out
  resolved = config_files.read_config(tmp_path)
  assert len(resolved.patch_size) == 2 and len(resolved.data.spacing) == 2
  summary = evaluate.run(resolved, tmp_path, split='train')
  assert summary['num_cases'] == 10
  with resolved.data.ignore_type():
    resolved.data.fold = 1
  with pytest.raises(InputError, match='trained this model'):
    evaluate.run(resolved, tmp_path, split='val')


def test_another_fold_does_not_go_on_from_these_weights(trained, tmp_path):
  data, workdir = trained
  with pytest.raises(InputError) as error:
    train.run(config_for(data, data__fold=1), workdir)
  assert_one_line(error, 'trained this model', 'data.fold', '--workdir')
  # Whatever the folds are now, those that were held out are scored.
  run = tmp_path / 'run'
  shutil.copytree(workdir, run)
  folds = json.loads((run / 'splits.json').read_text())
  (run / 'splits.json').write_text(json.dumps(folds[::-1]))
  assert evaluate.run(config_files.read_config(run), run)['num_cases'] == 2
  scored = (run / 'evaluation' / 'val' / 'cases.csv').read_text()
  assert {line.split(',')[0] for line in scored.splitlines()[1:]} == {
    *folds[0]['val']
  }


def test_volumes_of_elsewhere_need_no_training_folder(trained, tmp_path):
  _, workdir = trained
  run = shutil.copytree(workdir, tmp_path / 'run')
  made = write_volumes(tmp_path / 'made', 13)
  for part, name in (('imagesTr', 'images'), ('labelsTr', 'labels')):
    folder = tmp_path / 'clinic' / 'test' / name
    folder.mkdir(parents=True)
    for i in (10, 11, 12):  # the first ten have trained
      shutil.copy(made / part / f'case_{i:02d}.nii.gz', folder)
  config = config_files.read_config(run)
  config.data.path = str(tmp_path / 'clinic')
  before = (run / 'evaluation' / 'val' / 'summary.json').read_text()
  assert evaluate.run(config, run)['num_cases'] == 3
  assert (run / 'evaluation' / 'clinic-test' / 'cases.csv').exists()
  assert (run / 'evaluation' / 'val' / 'summary.json').read_text() == before
  with pytest.raises(InputError, match='no case to train on'):
    train.run(config_for(tmp_path / 'clinic'), tmp_path / 'again')


def test_residual_preset_and_remat(trained, tmp_path):
  data, _ = trained
  config = config_for(data, plan__preset='residual_m', model__depth=0)
  config.model.remat, config.data.fold = True, 'all'  # nothing is evaluated
  train.run(config, tmp_path)
  model = config_files.read_config(tmp_path).model
  assert model.residual_blocks[:2] == (1, 3) and model.convs_per_stage == 1


@pytest.fixture
def regions_data(tmp_path):
  """Returns an nnU-Net raw folder with regions and an ignore label."""
  data = write_volumes(tmp_path / 'data', 6)
  for i in range(6):
    image = data / 'imagesTr' / f'case_{i:02d}.nii.gz'
    shutil.copy(image, image.with_name(f'case_{i:02d}_0001.nii.gz'))
    image.rename(image.with_name(f'case_{i:02d}_0000.nii.gz'))
    path = data / 'labelsTr' / f'case_{i:02d}.nii.gz'
    label = nibabel.load(path)
    array = np.asarray(label.dataobj).copy()
    array[:2] = 3  # nobody has looked there
    nibabel.Nifti1Image(array, label.affine).to_filename(path)
  (data / 'dataset.json').write_text(
    json.dumps(
      {
        'channel_names': {'0': 'CT', '1': 'T2'},
        'labels': {
          'background': 0,
          'whole': [1, 2],
          'half': [2],
          'ignore': 3,
        },
        'regions_class_order': [1, 2],
        'numTraining': 6,
        'file_ending': '.nii.gz',
      }
    )
  )
  return data


def test_regions_and_ignored_voxels(regions_data, tmp_path):
  run = tmp_path / 'run'
  config = config_for(regions_data)
  config.data.num_folds = 3
  summary = train.run(config, run)
  assert list(summary['classes']) == ['background', 'whole', 'half']
  resolved = config_files.read_config(run)
  assert resolved.loss.sigmoid_dice_loss == 1.0
  assert resolved.loss.dice_loss == 0.0
  kinds = [channel[0] for channel in resolved.data.intensities]
  assert kinds == ['ct', 'zscore']
  (tmp_path / 'new').mkdir()
  for channel in range(2):
    name = f'case_00_000{channel}.nii.gz'
    shutil.copy(regions_data / 'imagesTr' / name, tmp_path / 'new' / f'x{name}')
  predict.run(
    resolved, run, input_path=tmp_path / 'new', output_dir=tmp_path / 'out'
  )
  mask = nibabel.load(tmp_path / 'out' / 'xcase_00.nii.gz')
  assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
  (tmp_path / 'new' / 'xcase_00_0001.nii.gz').unlink()
  with pytest.raises(InputError) as error:
    predict.run(
      resolved, run, input_path=tmp_path / 'new', output_dir=tmp_path / 'no'
    )
  assert_one_line(error, 'xcase_00_0001')


def test_a_scan_smaller_than_the_patch_in_every_axis(trained, tmp_path):
  data, workdir = trained
  scan = nibabel.load(data / 'imagesTr' / 'case_00.nii.gz')
  small = scan.slicer[4:10, 5:10, 6:9]
  small.to_filename(tmp_path / 'small.nii.gz')
  predict.run(
    config_files.read_config(workdir),
    workdir,
    input_path=tmp_path / 'small.nii.gz',
    output_dir=tmp_path / 'out',
  )
  mask = nibabel.load(tmp_path / 'out' / 'small.nii.gz')
  assert mask.shape == (6, 5, 3)
  np.testing.assert_allclose(mask.affine, small.affine, atol=1e-6)


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, monkeypatch):
  data = write_volumes(tmp_path / 'data', 6)
  config = config_for(data, data__num_folds=3)
  read = volumes.VolumeSource.__getitem__
  seen = []

  def dies(self, index):
    seen.append(self.names[index])
    if len(seen) > 3:
      raise KeyboardInterrupt
    return read(self, index)

  monkeypatch.setattr(volumes.VolumeSource, '__getitem__', dies)
  with contextlib.suppress(KeyboardInterrupt):
    prepare.run(config, tmp_path / 'run')
  assert len(seen) > 3
  first = set(seen[:3])
  again = []

  def counts(self, index):
    again.append(self.names[index])
    return read(self, index)

  monkeypatch.setattr(volumes.VolumeSource, '__getitem__', counts)
  prepare.run(config, tmp_path / 'run')
  assert not first & set(again) and len(again) == 3
  again.clear()
  config.data.fold = 1  # another fold of the same cases
  prepare.run(config, tmp_path / 'other')
  assert not again


def test_a_plan_for_other_settings_is_not_used_silently(trained, tmp_path):
  data, workdir = trained
  shutil.copy(workdir / 'plan.json', tmp_path / 'plan.json')
  with pytest.raises(InputError) as error:
    prepare.run(config_for(data, plan__memory_gb=24.0), tmp_path)
  assert_one_line(error, 'memory_gb', '24', 'plan.json')
  other = write_volumes(tmp_path / 'other', 6)
  with pytest.raises(InputError) as error:
    prepare.run(config_for(other), tmp_path)
  assert_one_line(error, '"data"', '"other"', 'plan.json')
  with pytest.raises(InputError) as error:
    config = config_for(data)
    config.model.features = 0
    prepare.run(config, tmp_path)
  assert_one_line(error, 'config.model.depth', 'features')
  with pytest.raises(InputError) as error:
    prepare.run(config_for(data, plan__configuration='3d_lowres'), tmp_path)
  assert_one_line(error, '3d_lowres', '3d_fullres', '2d')
  with pytest.raises(InputError) as error:
    prepare.run(config_for(data, data__normalize='scale'), tmp_path)
  assert_one_line(error, 'config.data.normalize', 'plan.json')
  (tmp_path / 'plan.json').write_text('{"spacing": ')
  with pytest.raises(InputError) as error:
    prepare.run(config_for(data), tmp_path)
  assert_one_line(error, 'plan.json')


def test_real_hippocampus_from_folder_to_scores(
  real_data, tmp_path, monkeypatch
):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  task = real_data / 'hippocampus' / 'Task04_Hippocampus'
  config = config_for(task, num_steps=20, model__depth=0)
  config.checkpoint_every, config.batch_size = config.num_steps, 2
  config.patch_size = (24, 32, 24)
  splits = [
    {
      'train': [f'hippocampus_{i:03d}' for i in (1, 3, 4, 6, 7, 8)],
      'val': ['hippocampus_011'],
    }
  ]
  (tmp_path / 'splits.json').write_text(json.dumps(splits))
  summary = train.run(config, tmp_path)
  assert summary['num_cases'] == 1
  assert summary['mean']['dice'] > 0.05  # chance; test_learning asks for more
  assert config_files.read_config(tmp_path).model.depth == 4
