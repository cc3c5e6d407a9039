"""Pretraining without labels, and trainings that begin with what it learnt."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_all_in, assert_one_line
from small import load, shrink, write_untrained
from test_fine_tuning import is_inside, weights_of

import medseg_jax
from medseg_jax.experiment import build, held_out, opening, patch_growth
from medseg_jax.programs import plan, train
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval
from medseg_jax.training import reconstruction

CLOCKS = ('images_per_s', 'data_wait_frac')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Returns ten labelled volumes, and a folder of six others without."""
  root = tmp_path_factory.mktemp('volumes')
  labelled = write_volumes(root / 'Balls', 16)
  (root / 'scans').mkdir()
  for i in range(10, 16):
    name = f'case_{i:02d}.nii.gz'
    (labelled / 'imagesTr' / name).rename(root / 'scans' / name)
    (labelled / 'labelsTr' / name).unlink()
  described = json.loads((labelled / 'dataset.json').read_text())
  described['training'] = described['training'][:10]
  (labelled / 'dataset.json').write_text(json.dumps(described))
  (root / 'scans' / 'dataset.json').write_text(
    json.dumps({'channel_names': {'0': 'MRI'}})
  )
  return labelled, root / 'scans'


def config_of(path, *, num_steps=4, name='pretrain', **keys):
  config = shrink(load(name), path=path, num_steps=num_steps, augmented=True)
  config.eval_every = 0
  config.data.fold = 'all'
  config.update(keys)
  return config


def lines(workdir):
  """Returns the lines of metrics, without what a clock says."""
  text = (workdir / 'metrics.jsonl').read_text()
  return [
    {k: v for k, v in json.loads(line).items() if k not in CLOCKS}
    for line in text.splitlines()
  ]


def pretrain(path, workdir):
  """Runs four steps, two on small patches; returns the sizes asked for."""
  config = config_of(path, patch_growth=(0.5, 1.0))
  sizes, at = [], patch_growth.at

  def seen(*args):
    sizes.append(at(*args).patch_size)
    return at(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(workdir / 'cache'))
    patch.setattr(patch_growth, 'LEAST_STEPS', 1)
    patch.setattr(patch_growth, 'at', seen)
    assert train.run(config, workdir) == {}
  return sizes


@pytest.fixture(scope='module')
def pretrained(data, tmp_path_factory):
  """Returns the workdir of four steps."""
  workdir = tmp_path_factory.mktemp('pretrained')
  small, whole = dict.fromkeys(pretrain(data[1], workdir))
  assert max(small) < max(whole)
  return workdir


def test_it_learns_and_goes_on_to_the_bit(data, pretrained, tmp_path):
  found = lines(pretrained)
  assert [line['step'] for line in found] == [2, 4]
  assert all(np.isfinite(line['loss']) for line in found)
  stopped = shutil.copytree(pretrained, tmp_path / 'run')
  newest = stopped / 'checkpoints' / 'latest'
  steps = sorted(path.name for path in newest.iterdir())
  assert len(steps) == 2
  shutil.rmtree(newest / steps[-1])
  shutil.rmtree(stopped / 'model')
  pretrain(data[1], stopped)
  assert lines(stopped) == found
  again, whole = weights_of(stopped), weights_of(pretrained)
  assert again.keys() == whole.keys()
  for name in whole:
    np.testing.assert_array_equal(again[name], whole[name])


def test_what_the_model_says_of_itself(data, pretrained):
  found = json.loads((pretrained / 'model/model.json').read_text())
  assert found['output'] == 'reconstruction' and found['scores'] is None
  assert found['classes'] == found['label_values'] == []
  assert found['channel_names'] == ['MRI']
  assert found['plan']['num_classes'] == 1
  assert found['training']['num_cases'] == {'train': 6}
  assert len(held_out.of_model(pretrained / 'model').trained) == 6
  assert weights_of(pretrained)['params.head_0.kernel'].shape[-1] == 1


def test_the_step_hides_what_the_network_is_asked_for(data, tmp_path):
  """Of the true step: images with holes, and the whole as what is wanted."""
  config, sources, _ = opening.open_run(config_of(data[1]), tmp_path)
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  step = build.train_step_of(config, model, *build.optimizer_of(config))
  patch = tuple(config.patch_size)
  image = np.random.default_rng(0).normal(size=(8, *patch, 1)).astype('f')
  batch = {'image': image, 'label': np.zeros((8, *patch), np.int16)}
  first, again, later = (step.augment(i, batch) for i in (0, 0, 1))
  np.testing.assert_array_equal(first['label'], again['label'])
  hidden = np.asarray(first['label'][..., 1]) > 0
  assert not np.array_equal(hidden, np.asarray(later['label'][..., 1]) > 0)
  whole, seen = np.asarray(first['label'][..., 0]), np.asarray(first['image'])
  np.testing.assert_array_equal(seen[..., 0], np.where(hidden, 0, whole))
  np.testing.assert_array_equal(np.sort(whole, None), np.sort(image, None))
  cell = model.divisor(3)
  share = reconstruction.num_hidden(patch, cell, 0.75)
  share /= reconstruction.num_blocks(patch, cell)
  assert hidden.mean((1, 2, 3)) == pytest.approx(share) and 0.7 < share < 0.8


def test_a_training_begins_with_encoder_and_decoder(
  data, pretrained, tmp_path, capsys
):
  config = config_of(data[0], name='auto_cpu', num_steps=0)
  config.init_from = str(pretrained / 'model')
  train.run(config, tmp_path)
  old, new = weights_of(pretrained), weights_of(tmp_path)
  assert old.keys() == new.keys()
  assert any('encoder_' in name for name in old)
  assert any('decoder_' in name for name in old)
  for name in filter(is_inside, old):
    np.testing.assert_array_equal(old[name], new[name])
  heads = [name for name in new if not is_inside(name)]
  assert all(new[name].shape[-1] == 3 for name in heads)
  report = json.loads((tmp_path / 'init_from.json').read_text())
  assert [n.replace('/', '.') for n in report['new']] == sorted(heads)
  assert report['adapted'] == report['left_behind'] == []
  assert report['classes'] == {
    'kept': [],
    'new': ['left', 'right'],
    'left_behind': ['restored MRI'],
  }
  assert_all_in(
    capsys.readouterr().out,
    'moved to this data',
    'classes   new: left, right; left behind: restored MRI',
    'channels  kept: MRI',
  )
  plans = [
    json.loads((folder / 'plan.json').read_text())
    for folder in (pretrained, tmp_path)
  ]
  assert plans[0]['configurations'] == plans[1]['configurations']
  assert plans[1]['num_classes'] == 3


def test_in_two_dimensions_and_without_names_of_channels(data, tmp_path):
  scans = shutil.copytree(data[1], tmp_path / 'scans')
  (scans / 'dataset.json').unlink()
  config = config_of(scans)
  config.plan.configuration = '2d'
  write_untrained(config, tmp_path / 'pretrained')
  config = config_of(data[0], name='auto_cpu', num_steps=0)
  config.init_from = str(tmp_path / 'pretrained/model')
  train.run(config, tmp_path / 'run')
  old, new = weights_of(tmp_path / 'pretrained'), weights_of(tmp_path / 'run')
  assert old['params.encoder_0.conv_0.kernel'].ndim == 4
  for name in filter(is_inside, old):
    np.testing.assert_array_equal(old[name], new[name])
  report = json.loads((tmp_path / 'run/init_from.json').read_text())
  # The mean over the one channel that there was.
  assert report['adapted'] == ['params/encoder_0/conv_0/kernel']


def test_what_was_pretrained_on_is_not_held_out(data, pretrained, tmp_path):
  leaky = shutil.copytree(data[0], tmp_path / 'leaky')
  for path in data[1].glob('*.nii.gz'):
    shutil.copy(path, leaky / 'imagesTr' / 'case_00.nii.gz')
  folds = [
    {'train': [f'case_{i:02d}' for i in range(1, 10)], 'val': ['case_00']}
  ]
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'splits.json').write_text(json.dumps(folds))
  config = config_of(
    leaky, name='auto_cpu', init_from=str(pretrained / 'model')
  )
  config.data.fold = 0
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path / 'run')
  assert_one_line(error, 'case_00', 'trained')


@pytest.mark.parametrize(
  'flags',
  [
    ['--mode=predict', '--input={scans}', '--output={out}'],
    ['--mode=evaluate'],
    ['--mode=export', '--output={out}'],
  ],
)
def test_it_segments_nothing(data, pretrained, tmp_path, refused, flags):
  places = {'scans': data[1], 'out': tmp_path / 'out'}
  flags = [flag.format(**places) for flag in flags]
  for model in (
    f'--model={pretrained}/model',
    f'--workdir={pretrained}',
  ):
    error = refused(*flags, model)
    assert error.count('\n') == 1
    assert_all_in(error, 'segments nothing', 'config.init_from', pretrained)
  assert not (tmp_path / 'out').exists()


def test_nor_does_it_from_python_or_from_its_checkpoints(
  pretrained, tmp_path, refused
):
  with pytest.raises(InputError) as error:
    medseg_jax.load_model(pretrained / 'model')
  assert_one_line(error, 'segments nothing')
  text = refused(
    '--mode=evaluate', f'--workdir={pretrained}', '--checkpoint=latest'
  )
  assert 'segments nothing' in text


@pytest.mark.parametrize(
  ('keys', 'words'),
  [
    ({'pretrain.mask_share': 1.0}, ['pretrain.mask_share', 'below 1']),
    ({'pretrain.mask_share': -0.5}, ['pretrain.mask_share', 'above 0']),
    ({'data.source': 'folder'}, ['data.source', "'volumes'"]),
    ({'data.classes': ('background', 'disc')}, ['data.classes', 'no labels']),
    ({'data.label_values': (0, 1)}, ['data.label_values', 'no labels']),
    ({'data.foreground_share': 0.3}, ['data.foreground_share', 'no labels']),
    ({'data.instances': 'classes'}, ['data.instances', 'no labels']),
    ({'data.fold': 0}, ['data.fold', "'all'"]),
    ({'data.path': '/nowhere'}, ['/nowhere']),
    ({'patch_size': (4, 4, 4)}, ['patch_size', '2 blocks of (2, 4, 4)']),
  ],
)
def test_mistakes_are_one_line(data, tmp_path, keys, words):
  config = config_of(data[1])
  with config.data.ignore_type():  # of the fold
    config.update_from_flattened_dict(keys)
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path)
  assert_one_line(error, *words)
  assert not (tmp_path / 'checkpoints' / 'latest').exists()


def test_no_folds_without_labels(data, tmp_path):
  with pytest.raises(InputError) as error:
    crossval.run(config_of(data[1]), tmp_path)
  assert_one_line(error, 'pretrain.mask_share', '--mode=train')


def test_labels_of_a_data_set_are_planned_without(data, tmp_path, capsys):
  found = plan.run(config_of(data[0]), tmp_path)
  assert (found['num_classes'], found['channel_names']) == (1, ['MRI'])
  assert found['fingerprint']['num_cases'] == 10
  out = capsys.readouterr().out
  assert 'left' not in out and 'classes' not in out
  assert 'outputs         the channels, restored' in out
