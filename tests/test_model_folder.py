"""A trained model as a folder and a zip: written by training, read anywhere."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import nibabel
import numpy as np
import pytest
import safetensors.numpy
from conftest import HANG_S, ROOT, write_volumes
from flax import traverse_util
from PIL import Image
from small import load, shrink

import medseg_jax
from medseg_jax.data.formats import images
from medseg_jax.experiment import config_files, model_folder, trained_model
from medseg_jax.programs import evaluate, export, predict, train
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError


@pytest.fixture(autouse=True, scope='module')
def two_devices():
  """Trains on two, whose programs compile sooner than those of eight."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 2)
    yield


@pytest.fixture(scope='module')
def phantom_run(tmp_path_factory):
  """Returns the workdir of a run with all splits, and its summary."""
  workdir = tmp_path_factory.mktemp('phantom') / 'unet'
  return workdir, train.run(shrink(load('unet')), workdir)


@pytest.fixture(scope='module')
def volume_run(tmp_path_factory):
  """Returns the workdir of a run on volumes, with averaged weights."""
  folder = tmp_path_factory.mktemp('volumes')
  root = write_volumes(folder / 'Balls', 10)
  config = shrink(load('auto_cpu'), path=root, num_steps=2)
  config.eval_every = 0
  config.augment.flip_axes = (2,)  # of which it predicts mirrored, too
  train.run(config, folder / 'run')
  return folder / 'run'


def description_of(workdir):
  return json.loads((workdir / 'model' / 'model.json').read_text())


def test_training_ends_with_the_model_that_it_scored(phantom_run):
  workdir, summary = phantom_run
  description = description_of(workdir)
  assert description['format_version'] == 1
  assert description['scores'] == summary
  assert description['classes'] == ['background', 'liver', 'kidney', 'tumour']
  assert description['label_values'] == [0, 1, 2, 3]
  assert description['channel_names'] == ['CT']
  assert description['output'] == 'softmax' and description['plan'] is None
  assert description['network']['name'] == 'unet'
  assert description['network']['features'] == 4
  assert description['preprocessing']['window'] == [-160.0, 240.0]
  training = description['training']
  assert (training['checkpoint'], training['step']) == ('best', summary['step'])
  assert training['num_cases'] == {'train': 12, 'val': 3, 'test': 5}
  assert list(training['cases']['held_out']['test']) == [
    f'test_{i:04d}' for i in range(5)
  ]


def test_the_config_comes_back_key_by_key(phantom_run, volume_run):
  for workdir in (phantom_run[0], volume_run):
    again = model_folder.config_of(description_of(workdir)).to_dict()
    # The tile is written out, the rest as it was.
    expected = config_files.read_config(workdir).to_dict()
    inference = expected['inference']
    inference['patch_size'] = inference['patch_size'] or expected['patch_size']
    assert again == expected
    # So are the tiles at once, for others; but nobody has asked for so many.
    described = description_of(workdir)['inference']['batch_size']
    asked = inference['batch_size']
    assert described == (asked or expected['batch_size']) != 0


def test_the_weights_are_those_of_the_checkpoint(phantom_run, volume_run):
  for workdir, which in ((phantom_run[0], BEST), (volume_run, LATEST)):
    arrays = safetensors.numpy.load_file(workdir / 'model/model.safetensors')
    checkpoints = Checkpoints(workdir / 'checkpoints')
    config = config_files.read_config(workdir)
    variables, step = trained_model.restore_variables(
      checkpoints, which, config
    )
    checkpoints.close()
    assert (config.ema_decay > 0) == (workdir is volume_run)
    flat = traverse_util.flatten_dict(jax.device_get(variables), sep='.')
    assert arrays.keys() == flat.keys()
    for name, array in arrays.items():
      assert array.dtype == np.float32
      np.testing.assert_array_equal(array, flat[name])
    weights = description_of(workdir)['weights']
    assert weights['num_parameters'] == sum(
      array.size for name, array in arrays.items() if name.startswith('params')
    )
    assert description_of(workdir)['training']['step'] == step


def test_nothing_of_the_optimizer_is_read(phantom_run, monkeypatch):
  read = []
  restore = Checkpoints.restore

  def watch(self, which, wanted, **options):
    read.append(restore(self, which, wanted, **options))
    return read[-1]

  monkeypatch.setattr(Checkpoints, 'restore', watch)
  workdir = phantom_run[0]
  config = config_files.read_config(workdir)
  trained_model.load_variables(config, workdir, checkpoint='latest')
  [restored] = read
  assert restored.parts.keys() == {'params', 'batch_stats'}


def test_evaluating_the_model_repeats_the_summary(phantom_run, tmp_path):
  workdir, summary = phantom_run
  config = trained_model.read_config(workdir, None, '')
  assert evaluate.run(config, workdir) == summary
  target = tmp_path / 'unet.zip'
  export.run(config, workdir, output=target)
  found = evaluate.run(config, tmp_path / 'elsewhere', model=target)
  assert found == summary


def test_a_zip_predicts_in_another_place_without_the_run(
  phantom_run, tmp_path, real_data
):
  workdir, _ = phantom_run
  target = tmp_path / 'there' / 'unet.zip'
  export.run(None, workdir, output=target)
  assert sorted(zipfile.ZipFile(target).namelist()) == [
    'README.md',
    'model.json',
    'model.safetensors',
  ]
  (tmp_path / 'new').mkdir()
  path = sorted((real_data / 'em' / 'train' / 'images').iterdir())[0]
  scan = images.read_image(path)[100:140, 200:250, 0]
  Image.fromarray(scan).save(tmp_path / 'new' / 'scan.png')
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'medseg_jax.main', '--mode=predict'),
      *('--model=unet.zip', '--input=../new', '--output=masks'),
    ],
    cwd=target.parent,
    env=environment,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stderr
  assert sorted(p.name for p in target.parent.iterdir()) == [
    'masks',
    'unet.zip',
  ]
  mask = images.read_mask(target.parent / 'masks' / 'scan.png')
  predict.run(
    config_files.read_config(workdir),
    workdir,
    input_path=tmp_path / 'new',
    output_dir=tmp_path / 'here',
  )
  here = images.read_mask(tmp_path / 'here' / 'scan.png')
  np.testing.assert_array_equal(mask, here)
  # And from Python, as an array.
  prediction = medseg_jax.load_model(target).predict(scan)
  np.testing.assert_array_equal(prediction.label, here)  # values are indices
  assert prediction.probs.shape == (40, 50, 4)
  np.testing.assert_allclose(prediction.probs.sum(-1), 1, atol=3e-3)


def test_load_model_turns_volumes_as_their_affine_says(volume_run, tmp_path):
  model = medseg_jax.load_model(volume_run / 'model')
  assert model.channel_names == ('MRI',)
  path = volume_run.parent / 'Balls' / 'imagesTr' / 'case_03.nii.gz'
  file = nibabel.load(path)
  whole = model.predict(path)
  np.testing.assert_allclose(whole.spacing, (1.2, 1, 1), atol=1e-6)
  for codes in ('RAS', 'LPS', 'SPL', 'AIR'):
    ornt = nibabel.orientations.axcodes2ornt(codes)
    turned = file.as_reoriented(ornt) if codes != 'RAS' else file
    found = model.predict(np.asarray(turned.dataobj), affine=turned.affine)
    mask = nibabel.Nifti1Image(found.label, turned.affine)
    there = nibabel.orientations.axcodes2ornt('SPL')
    back = nibabel.orientations.ornt_transform(
      nibabel.io_orientation(turned.affine), there
    )
    np.testing.assert_array_equal(
      np.asarray(mask.as_reoriented(back).dataobj), whole.label, codes
    )
    assert found.probs.shape == (*found.label.shape, 3)
  with pytest.raises(InputError, match='give spacing or affine'):
    model.predict(np.zeros((8, 8, 8)))
  same = model.predict(
    np.asarray(nibabel.as_closest_canonical(file).dataobj).transpose(2, 1, 0)[
      :, ::-1, ::-1
    ],
    spacing=(1.2, 1.0, 1.0),
  )
  np.testing.assert_array_equal(same.label, whole.label)


@pytest.fixture
def copy(phantom_run, tmp_path):
  """Returns a copy of the model folder that may be spoilt."""
  folder = tmp_path / 'model'
  folder.mkdir()
  for path in (phantom_run[0] / 'model').iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  return folder


@pytest.mark.parametrize(
  ('spoil', 'words'),
  [
    (lambda f: (f / 'model.json').unlink(), 'cannot be read'),
    (lambda f: (f / 'model.safetensors').unlink(), 'cannot be read'),
    (lambda f: (f / 'model.json').write_text('{'), 'model.json is damaged'),
    (
      lambda f: (f / 'model.json').write_text(
        '{"format": "medseg_jax model", "format_version": 7}'
      ),
      'version 7; this medseg_jax',
    ),
    (
      lambda f: (f / 'model.safetensors').write_bytes(b'x' * 100),
      'is not the file that model.json was written with',
    ),
  ],
)
def test_a_damaged_model_is_one_line(spoil, words, copy):
  spoil(copy)
  with pytest.raises(InputError, match=words) as caught:
    model_folder.read(copy)
  assert '\n' not in str(caught.value) and str(copy) in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path, phantom_run):
  (tmp_path / 'text.zip').write_text('no zip')
  for path in (tmp_path, tmp_path / 'text.zip', tmp_path / 'gone.zip'):
    with pytest.raises(InputError, match='allowed is a model folder'):
      model_folder.read(path)
  with pytest.raises(InputError, match='--checkpoint=best is of a --workdir'):
    trained_model.find_folder(None, tmp_path, 'best')
  target = tmp_path / 'there.zip'
  target.write_text('somebody else')
  with pytest.raises(InputError, match='is not overwritten'):
    export.run(None, phantom_run[0], output=target)
  assert target.read_text() == 'somebody else'


def test_a_network_of_another_size_is_refused(phantom_run):
  workdir, _ = phantom_run
  config = trained_model.read_config(workdir, None, '')
  config.model.features = 8
  with pytest.raises(InputError, match='are of another model'):
    trained_model.load_predictor(config, workdir)


def test_a_model_is_replaced_whole(copy):
  stored = model_folder.read(copy)
  before = (copy / 'model.safetensors').read_bytes()
  model_folder.write(copy, stored.description, stored.variables)
  assert sorted(p.name for p in copy.parent.iterdir()) == ['model']
  assert (copy / 'model.safetensors').read_bytes() == before
