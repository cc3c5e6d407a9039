"""Trainings that begin with the weights of another."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from conftest import write_pairs
from data_cases import assert_all_in, assert_one_line
from small import load, shrink

from medseg_jax.experiment import build, held_out
from medseg_jax.programs import export, train
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval

CLASSES = ('background', 'disc', 'spot')


def config_of(root, *, num_steps=2, **keys):
  """Returns a quick config on a folder, with keys of the top set."""
  config = shrink(load('unet'), path=root, num_steps=num_steps)
  config.data.source = 'folder'
  config.data.classes, config.data.label_values = CLASSES, (0, 255, 7)
  config.update(keys)
  return config


def weights_of(workdir):
  return safetensors.numpy.load_file(workdir / 'model' / 'model.safetensors')


def is_inside(name):
  return 'head' not in name


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Returns the data and the workdir of a run with averaged weights."""
  folder = tmp_path_factory.mktemp('source')
  write_pairs(folder / 'pairs', 10)
  config = config_of(folder / 'pairs', ema_decay=0.5)
  config.model.features = 6
  train.run(config, folder / 'run')
  return folder / 'pairs', folder / 'run'


@pytest.fixture
def others(tmp_path):
  """Returns a folder of images that the source has not seen, in colour."""
  root = tmp_path / 'others'
  write_pairs(root, 20, mode='RGB')
  for i in range(10):
    for part in ('images', 'labels'):
      (root / part / f'case {i:02d}.png').unlink()
  return root


def begun(root, source, workdir, **keys):
  """Trains with the weights of `source`, by default no step at all."""
  config = config_of(root, **{'num_steps': 0, **keys})
  config.init_from = str(source[1] / 'model')
  return train.run(config, workdir)


def test_no_step_on_the_same_data_is_the_same_model(source, tmp_path, capsys):
  root, origin = source
  summary = begun(root, source, tmp_path / 'run', ema_decay=0.9)
  printed = capsys.readouterr().out
  assert_all_in(
    printed,
    f'init_from {origin}/model, latest of step 2',
    'config.model.features is 6, not 4',
    'kept: disc, spot',
    'channels  kept: grey',
  )
  old, new = weights_of(origin), weights_of(tmp_path / 'run')
  assert old.keys() == new.keys()
  assert any(name.startswith('batch_stats') for name in old)
  for name in old:
    np.testing.assert_array_equal(old[name], new[name])
  first = json.loads((origin / 'evaluation/val/summary.json').read_text())
  assert (summary['step'], first['step']) == (0, 2)
  assert summary['classes'] == first['classes']
  record = json.loads((tmp_path / 'run/init_from.json').read_text())
  described = json.loads((origin / 'model/model.json').read_text())
  assert record['sha256'] == described['weights']['sha256']
  assert len(record['loaded']) == len(old)
  assert record['new'] == record['adapted'] == record['left_behind'] == []


def test_other_classes_and_channels_from_a_zip(source, others, tmp_path):
  target = tmp_path / 'source.zip'
  export.run(None, source[1], output=target)
  config = config_of(others, num_steps=0, init_from=str(target))
  config.data.classes = ('background', 'cyst', 'disc')
  train.run(config, tmp_path / 'run')
  old, new = weights_of(source[1]), weights_of(tmp_path / 'run')
  first = 'params.encoder_0.conv_0.kernel'
  for name in filter(is_inside, old):
    if name != first:
      np.testing.assert_array_equal(old[name], new[name])
  grey = old[first]
  assert grey.shape == (3, 3, 1, 6)  # red, green and blue are new: a third each
  np.testing.assert_allclose(new[first], np.repeat(grey, 3, 2) / 3, rtol=1e-6)
  for name in ('params.head_0.kernel', 'params.head_0.bias'):
    np.testing.assert_array_equal(new[name][..., 0], old[name][..., 0])
    np.testing.assert_array_equal(new[name][..., 2], old[name][..., 1])
  kernel = new['params.head_0.kernel']
  assert not np.array_equal(kernel[:, 1], old['params.head_0.kernel'][:, 2])
  record = json.loads((tmp_path / 'run/init_from.json').read_text())
  assert record['classes'] == {
    'kept': ['disc'],
    'new': ['cyst'],
    'left_behind': ['spot'],
  }
  assert record['channels']['new'] == ['red', 'green', 'blue']


def test_going_on(source, others, tmp_path, capsys):
  workdir, model = tmp_path / 'run', tmp_path / 'model'
  shutil.copytree(source[1] / 'model', model)
  moved = source[0], tmp_path
  begun(others, moved, workdir, num_steps=2)
  # All that trained the source is among what trained this one, and stays.
  record = held_out.read(workdir)
  before = held_out.read(source[1]).trained
  assert before.items() <= record.trained.items()
  assert len(record.trained) == len(before) + 8
  for change, words in (
    (lambda c: c.update(init_from=''), ['is not given', str(model)]),
    (
      lambda c: c.update(init_from=str(workdir / 'model')),
      ['config.init_from is', 'began with', str(model)],
    ),
  ):
    config = config_of(others, num_steps=4, init_from=str(model))
    change(config)
    with pytest.raises(InputError) as error:
      train.run(config, workdir)
    assert_one_line(error, *words, '--workdir')
  # The same weights may lie elsewhere, and need not be there any more.
  begun(others, source, workdir, num_steps=3)
  shutil.rmtree(model)
  capsys.readouterr()
  assert begun(others, moved, workdir, num_steps=4)['step'] == 4
  assert_all_in(capsys.readouterr().out, 'is gone', 'going on from step 3')
  assert held_out.read(workdir).trained == record.trained


def test_a_training_of_its_own_does_not_go_on_with_others(source, tmp_path):
  workdir = shutil.copytree(source[1], tmp_path / 'run')
  with pytest.raises(InputError) as error:
    begun(source[0], source, workdir, num_steps=4, ema_decay=0.5)
  assert_one_line(error, 'weights of its own', str(workdir), '--workdir')


def test_what_trained_the_source_is_not_held_out(source, tmp_path):
  workdir = tmp_path / 'run'
  config = config_of(source[0], init_from=str(source[1] / 'model'))
  config.data.fold = 1
  with pytest.raises(InputError) as error:
    train.run(config, workdir)
  folds = json.loads((workdir / 'splits.json').read_text())
  assert_one_line(error, *folds[1]['val'], 'trained', 'splits.json')
  assert not (workdir / 'checkpoints/latest').exists()
  # The remedy that it names.
  folds[1] = folds[0]
  (workdir / 'splits.json').write_text(json.dumps(folds))
  config.num_steps = 0
  assert train.run(config, workdir)['num_cases'] == 2


def test_a_source_without_a_record_is_told(source, tmp_path, capsys):
  model = shutil.copytree(source[1] / 'model', tmp_path / 'old' / 'model')
  path = model / 'model.json'
  description = json.loads(path.read_text())
  description['training']['cases'] = None
  path.write_text(json.dumps(description))
  begun(source[0], (None, tmp_path / 'old'), tmp_path / 'run')
  assert 'cannot be told' in capsys.readouterr().out
  assert not (tmp_path / 'run/held_out.json').exists()


def test_another_network_is_one_line(source, tmp_path):
  config = shrink(load('unet'))
  config.patch_size = (16, 16, 16)
  config.init_from = str(source[1] / 'model')
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path)
  assert_one_line(
    error, 'params/decoder_0/conv_0/kernel is (3, 3, ', 'here', 'patch_size'
  )
  assert not (tmp_path / 'init_from.json').exists()


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def flip(path):
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)


def without_channels(path):
  content = json.loads(path.read_text())
  del content['channel_names']
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ('name', 'damage'),
  [
    ('model.json', cut),
    ('model.json', without_channels),
    ('model.safetensors', flip),
    ('model.safetensors', lambda path: path.unlink()),
    ('', cut),
    ('', lambda path: path.unlink()),
  ],
)
def test_a_damaged_source_is_one_line(source, tmp_path, name, damage):
  target = tmp_path / 'model'
  if name:
    shutil.copytree(source[1] / 'model', target)
  else:
    with zipfile.ZipFile(target, 'w') as file:
      for member in (source[1] / 'model').iterdir():
        file.write(member, member.name)
  damage(target / name)
  config = config_of(source[0], init_from=str(target))
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path / 'run')
  assert_one_line(error, 'config.init_from', str(target), 'model')


def test_its_own_learning_rate_and_warm_up():
  config = load('unet')
  config.num_steps = 100
  config.schedule.name = 'constant'
  config.fine_tune.learning_rate = 0.5
  config.fine_tune.warmup_fraction = 0.2
  _, schedule = build.optimizer_of(config)
  assert float(schedule(50)) == pytest.approx(4e-3)
  config.init_from = 'model'
  _, schedule = build.optimizer_of(config)
  assert [float(schedule(i)) for i in (0, 10, 20, 99)] == pytest.approx(
    [0, 0.25, 0.5, 0.5]
  )
  config.fine_tune = {'learning_rate': 0.0, 'warmup_fraction': None}
  _, schedule = build.optimizer_of(config)
  assert float(schedule(5)) == pytest.approx(4e-3)  # warmed up after 5
  for key, value in [('learning_rate', -1.0), ('warmup_fraction', 1.0)]:
    config.fine_tune[key] = value
    with pytest.raises(InputError, match=f'config.fine_tune.{key}'):
      build.check_ranges(config)
    config.fine_tune[key] = 0.0
  config.num_steps = 0
  build.check_ranges(config)


def test_every_fold_begins_with_a_model_that_has_seen_no_case(
  source, others, tmp_path, capsys
):
  pairs, workdir = source
  config = config_of(others, num_steps=0)
  config.data.num_folds = 2
  model = shutil.copytree(workdir / 'model', tmp_path / 'model')
  config.init_from = str(model)
  result = crossval.run(config, tmp_path / 'run')
  assert result['num_cases'] == 10
  first, second = (
    weights_of(tmp_path / 'run' / '2d' / f'fold_{i}') for i in range(2)
  )
  begun_with = weights_of(workdir)
  for name in filter(is_inside, begun_with):
    np.testing.assert_array_equal(first[name], second[name])
  assert (tmp_path / 'run' / '2d' / 'fold_1' / 'init_from.json').exists()
  # Once more it takes up what is done, also where the model is there no more.
  assert crossval.run(config, tmp_path / 'run') == result
  model.rename(tmp_path / 'moved')
  capsys.readouterr()
  assert crossval.run(config, tmp_path / 'run') == result
  assert_all_in(capsys.readouterr().out, f'{model} is gone')
  (tmp_path / 'moved').rename(model)
  config.data.path = str(pairs)
  with pytest.raises(InputError, match='holds out each case once') as caught:
    crossval.run(config, tmp_path / 'same')
  assert_one_line(caught, str(model))
  config.data.path = str(others)
  description = json.loads((model / 'model.json').read_text())
  description['training']['cases'] = None
  (model / 'model.json').write_text(json.dumps(description))
  with pytest.raises(InputError, match='no record of the cases') as caught:
    crossval.run(config, tmp_path / 'unknown')
  assert_one_line(caught, str(model), 'holds out each case once')
  config.init_from = str(tmp_path / 'run' / 'model')
  with pytest.raises(InputError, match='is an ensemble') as caught:
    train.run(config, tmp_path / 'of_ensemble')
  assert_one_line(caught, config.init_from, 'its member 2d/fold_0')
