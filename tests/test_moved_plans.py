"""The plan of volumes goes with the weights that were trained by it."""

import json
import pathlib
import shutil

import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_all_in, assert_one_line
from small import load, shrink, write_untrained
from test_fine_tuning import config_of, weights_of

from medseg_jax.programs import plan, train
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval


def describe(root, **changes):
  path = root / 'dataset.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Returns the workdir of a model of random weights, of CT volumes."""
  folder = tmp_path_factory.mktemp('source')
  describe(write_volumes(folder / 'Balls', 10), modality={'0': 'CT'})
  config = shrink(load('auto_cpu'), path=folder / 'Balls')
  config.patch_size = (16, 16, 16)  # not the 14 x 16 x 16 of the plan
  write_untrained(config, folder)
  return folder


@pytest.fixture
def target(tmp_path):
  """Returns a data set of coarser, brighter volumes of two channels."""
  root = write_volumes(tmp_path / 'Others', 5)
  for path in (root / 'imagesTr').iterdir():
    image = np.asarray(nibabel.load(path).dataobj)
    both = np.stack([image[::-1] + 50, 1000 - image], -1)
    nibabel.Nifti1Image(both, np.diag([2.0, 2.0, 2.4, 1.0])).to_filename(path)
  for path in (root / 'labelsTr').iterdir():
    label = np.asarray(nibabel.load(path).dataobj)[::-1]
    nibabel.Nifti1Image(label, np.diag([2.0, 2.0, 2.4, 1.0])).to_filename(path)
  describe(
    root,
    modality={'0': 'MRI', '1': 'CT'},
    labels={'0': 'background', '1': 'right', '2': 'centre'},
  )
  return root


def begun(root, source):
  config = shrink(load('auto_cpu'), path=root, num_steps=0)
  config.init_from = str(source / 'model')
  config.inference.mirror = False
  config.inference.overlap = 0.0  # fewer tiles of what is larger now
  return config


def test_spacing_and_intensities_move(source, target, tmp_path, capsys):
  workdir = tmp_path / 'run'
  train.run(begun(target, source), workdir)
  old, new = (
    json.loads((folder / 'plan.json').read_text())
    for folder in (source, workdir)
  )
  chosen = new['configurations']['3d_fullres']
  assert chosen['spacing'] == pytest.approx([1.2, 1, 1])
  assert chosen['patch_size'] == [16, 16, 16]  # of the config, not of its plan
  assert (new['dataset'], new['num_classes']) == ('Others', 3)
  assert new['channel_names'] == ['MRI', 'CT']
  assert new['normalization'][1] == old['normalization'][0]
  assert new['normalization'][1]['scheme'] == 'ct'
  assert new['normalization'][0]['scheme'] == 'zscore'
  statistics = [p['fingerprint']['intensities'] for p in (old, new)]
  assert statistics[1][1] == statistics[0][0]
  assert statistics[1][0]['mean'] == pytest.approx(
    statistics[0][0]['mean'] + 50, abs=1
  )
  assert 'moved from data set Balls' in new['notes']['init_from']
  config = json.loads((workdir / 'config.json').read_text())
  assert config['data']['spacing'] == chosen['spacing']
  assert config['patch_size'] == [16, 16, 16]
  assert [c[0] for c in config['data']['intensities']] == ['zscore', 'ct']
  assert_all_in(
    capsys.readouterr().out,
    'channels  kept: CT; new: MRI',
    'classes   kept: right; new: centre; left behind: left',
  )
  before, after = weights_of(source), weights_of(workdir)
  for name, array in before.items():
    if name == 'params.encoder_0.conv_0.kernel':
      np.testing.assert_array_equal(after[name][..., 1, :], array[..., 0, :])
      np.testing.assert_allclose(after[name][..., 0, :], array[..., 0, :])
    elif 'head' in name:
      np.testing.assert_array_equal(after[name][..., 1], array[..., 2])
    else:
      np.testing.assert_array_equal(after[name], array)
  # The plan that is there now is the model's: the mode that makes it keeps it.
  found = plan.run(begun(target, source), workdir)
  assert found == new
  assert 'is not what the data gives' not in capsys.readouterr().out


def test_planning_alone_moves_it(source, target, tmp_path):
  found = plan.run(begun(target, source), tmp_path / 'run')
  chosen = found['configurations']['3d_fullres']
  assert chosen['spacing'] == pytest.approx([1.2, 1, 1])


@pytest.mark.parametrize(
  ('keys', 'value'),
  [
    (('configurations', '3d_fullres', 'spacing'), [2.4, 2.0, 2.0]),
    (('normalization', 1, 'mean'), 7.0),
    (('axes',), [2, 1, 0]),
  ],
)
def test_a_plan_that_contradicts_the_model_is_refused(
  source, target, tmp_path, keys, value
):
  workdir, config = tmp_path / 'run', begun(target, source)
  section = found = plan.run(config, workdir)
  for key in keys[:-1]:
    section = section[key]
  section[keys[-1]] = value
  (workdir / 'plan.json').write_text(json.dumps(found))
  with pytest.raises(InputError) as error:
    train.run(config, workdir)
  assert_one_line(error, workdir / 'plan.json', 'init_from', 'move the plan')


def planned_by(path, root):
  config = shrink(load('auto_cpu'), path=root)
  config.plan.path = str(path)
  return config


def test_a_plan_can_be_named_by_itself(source, target, tmp_path, capsys):
  path, workdir = shutil.copy(source / 'plan.json', tmp_path), tmp_path / 'run'
  old = json.loads((source / 'plan.json').read_text())
  new = plan.run(planned_by(path, target), workdir)
  assert new == json.loads((workdir / 'plan.json').read_text())
  assert new['configurations'] == old['configurations']
  assert (new['dataset'], new['channel_names']) == ('Others', ['MRI', 'CT'])
  assert new['normalization'][1] == old['normalization'][0]
  assert 'moved from data set Balls' in new['notes']['plan.path']
  printed = capsys.readouterr().out
  assert_all_in(printed, f'the plan is that of {path}', 'not in that plan: MRI')
  # Without labels as with them: what is restored are the two channels.
  config = planned_by(path, target)
  config.pretrain.mask_share, config.data.fold = 0.75, 'all'
  config.data.foreground_share = 0.0
  found = plan.run(config, tmp_path / 'pretraining')
  assert found['num_classes'] == 2
  assert found['normalization'][1] == old['normalization'][0]
  # A run that has its plan goes on without the file, and not with another one.
  pathlib.Path(path).unlink()
  assert plan.run(planned_by(path, target), workdir) == new
  old['configurations']['3d_fullres']['spacing'] = [3.0, 3.0, 3.0]
  other = tmp_path / 'other.json'
  other.write_text(json.dumps(old))
  with pytest.raises(InputError) as error:
    plan.run(planned_by(other, target), workdir)
  assert_one_line(error, workdir / 'plan.json', other, 'config.plan.path')


def test_a_plan_that_is_none_or_another_is_one_line(source, target, tmp_path):
  residual = planned_by(source / 'plan.json', target)
  residual.plan.preset = 'residual_m'
  for config, words in (
    (planned_by(tmp_path / 'no.json', target), [tmp_path / 'no.json']),
    (planned_by(source / 'splits.json', target), [source / 'splits.json']),
    (residual, [source / 'plan.json', 'config.plan.preset', 'residual_m']),
  ):
    with pytest.raises(InputError) as error:
      plan.run(config, tmp_path / 'run')
    assert_one_line(error, *words)


def test_volumes_and_images_are_two_kinds(source, tmp_path):
  config = config_of(tmp_path, init_from=str(source / 'model'))
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path / 'run')
  assert_one_line(error, 'trained on volumes', "'folder'", 'same kind')


def test_a_cross_validation_has_the_plan_of_the_model(source, target, tmp_path):
  config = begun(target, source)
  config.data.num_folds = 2
  config.crossval.configurations = '2d'
  with pytest.raises(InputError, match="'2d'; allowed with .*: 3d_fullres"):
    crossval.run(config, tmp_path / 'run')
  config.crossval.configurations = ''
  assert crossval.run(config, tmp_path / 'run')['chosen'] == '3d_fullres'
  plans = [
    json.loads(path.read_text())['configurations']
    for path in (
      tmp_path / 'run' / 'plan.json',
      tmp_path / 'run' / '3d_fullres' / 'fold_1' / 'plan.json',
    )
  ]
  assert plans[0] == plans[1]
  assert plans[0]['3d_fullres']['patch_size'] == [16, 16, 16]
