"""The command line, and what it says about bad input: one line each."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from absl.testing import flagsaver
from conftest import HANG_S, ROOT, write_pairs
from PIL import Image
from predict_cases import write_model
from small import load, shrink

from medseg_jax import main
from medseg_jax.experiment import overrides
from medseg_jax.programs import evaluate, export, train
from medseg_jax.runtime.errors import InputError

TINY = [
  '--config=configs/unet.py',
  '--config.model.depth=2',
  '--config.model.features=4',
  '--config.patch_size=(16,16)',
  '--config.batch_size=8',
  '--config.num_steps=4',
  '--config.data.phantom.num_train=8',
  '--config.data.phantom.num_val=2',
  '--config.data.phantom.num_test=2',
]


@pytest.fixture
def complaint(refused):
  """Returns a function from arguments to the one error, after warnings."""

  def call(*args):
    lines = refused(*args).splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    assert not any('Traceback' in line for line in lines), lines
    return errors[0]

  return call


def folder(tmp_path, name, change=None, count=5):
  """Returns a folder of pairs, after `change(folder)` has broken it."""
  root = tmp_path / name
  write_pairs(root, count, size=24)
  if change:
    change(root)
  return root


def truncate(path):
  path.write_bytes(path.read_bytes()[:60])


def bad_folders(tmp_path):
  """Returns {path: words of the line it should lead to}."""
  make = lambda *args, **kw: folder(tmp_path, *args, **kw)  # noqa: E731
  return {
    tmp_path / 'nowhere': ['nowhere'],
    make('lonely image', lambda f: (f / 'labels/case 03.png').unlink()): [
      'case 03'
    ],
    make('lonely mask', lambda f: (f / 'images/case 03.png').unlink()): [
      'case 03'
    ],
    make(
      'sizes',
      lambda f: Image.new('L', (24, 20)).save(f / 'labels/case 02.png'),
    ): ['case 02', '24', '20'],
    make('broken', lambda f: truncate(f / 'images/case 01.png')): [
      'case 01.png'
    ],
    make('broken mask', lambda f: truncate(f / 'labels/case 04.png')): [
      'case 04.png'
    ],
    make('single', count=1): ['all'],
    make(
      'nan',
      lambda f: (
        (f / 'images/case 00.png').unlink(),
        tifffile.imwrite(
          f / 'images/case 00.tif', np.full((24, 24), np.nan, np.float32)
        ),
      ),
    ): ['case 00', 'NaN'],
  }


def test_each_broken_folder_is_told_in_one_line(tmp_path, complaint):
  for path, words in bad_folders(tmp_path).items():
    line = complaint(
      *TINY,
      '--config.data.source=folder',
      f'--config.data.path={path}',
      f'--workdir={tmp_path}/run',
    )
    for word in words:
      assert word in line, (path.name, line)


def test_label_values_that_no_class_has(tmp_path, complaint):
  def paint(root):
    label = np.zeros((24, 24), np.uint8)
    label[3:9, 3:9], label[10:19, 10:19] = 255, 7
    Image.fromarray(label).save(root / 'labels' / 'case 02.png')

  path = folder(tmp_path, 'strange', paint)
  line = complaint(
    *TINY,
    '--config.data.source=folder',
    f'--config.data.path={path}',
    '--config.data.label_values=(0,255)',
    f'--workdir={tmp_path}/run',
  )
  assert 'case 02.png' in line and '7' in line


UNET = '--config=configs/unet.py'


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    ([], ['--config is missing']),
    (['--config.num_steps=3'], ['--config is missing']),
    (['--mode=predict'], ['needs a trained model', '--workdir', '--model']),
    (['--config=configs/nothing.py'], ['no such file', 'unet.py']),
    ([UNET, '--config.num_stepz=3'], ['config.num_stepz', 'num_steps']),
    ([UNET, '--config.model.feature=3'], ['model.feature', 'model.features']),
    (
      [UNET, '--config.num_steps=many'],
      ["config.num_steps is 'many'; allowed is a whole number"],
    ),
    (
      [UNET, '--config.patch_size=(8,x)'],
      ["config.patch_size is '(8,x)'; allowed is a list like (128, 128)"],
    ),
    ([UNET, '--noconfig.data.rio'], ['config.data.rio', 'config.data.roi']),
    (
      [UNET, '--config.data.source=volumes'],
      ['config.data.path is empty', 'source=volumes', 'folder'],
    ),
    ([UNET, '--mode=fly'], ['fly', 'predict']),
    ([UNET, '--wrkdir=x'], ['wrkdir', 'workdir']),
    ([UNET, 'extra'], ["'extra'"]),
    (
      [UNET, '--config.patch_size=(100,60)'],
      ['config.patch_size', '(100, 60)', '(104, 64)', '(8, 8)'],
    ),
    (
      [UNET, '--config.batch_size=12'],
      ['config.batch_size', '12', '8 devices', '8 or 16'],
    ),
    (
      [UNET, '--config.data.source=volumez'],
      ['config.data.source', "'volumez'", 'folder, volumes, bids, dicom, tfds'],
    ),
    (
      [UNET, '--config.optimizer.name=lion'],
      ['config.optimizer', 'lion', 'adamw'],
    ),
    (
      [UNET, '--config.model.norm=layer'],
      ['config.model', 'layer', 'instance'],
    ),
    (
      [UNET, '--config.augment.flip_prob=2'],
      ['config.augment', 'flip_prob', '2'],
    ),
    (
      [UNET, '--config.loss.sigmoid_dice_loss=1'],
      ['config.loss', 'sigmoid'],
    ),
    ([UNET, '--config.mesh.data=3'], ['config.mesh', '3 x 1', '8 devices']),
    ([UNET, '--config.patch_size=16,'], ['config.patch_size', '(16,)', '2']),
    (
      [UNET, '--config.inference.patch_size=(8,8,8)'],
      ['config.inference.patch_size', '(8, 8, 8)', '2 axes'],
    ),
    ([UNET, '--config.seed=-1'], ['config.seed', '-1', '0 to 4294967295']),
    (
      [UNET, '--config.batch_size=0', '--config.num_epochs=1'],
      ['config.batch_size', '0'],
    ),
    (
      [UNET, '--config.data.phantom.num_train=0'],
      ['no case to train on', 'phantom'],
    ),
    (
      [UNET, '--config.data.normalize=standard'],
      ['config.data.normalize', 'zscore'],
    ),
    (['--mode=evaluate', '--workdir=/none'], ['config.json', '/none']),
    (['--mode=predict', '--workdir=/none'], ['config.json', '/none']),
  ],
  ids=lambda value: value[-1][:40] if value else 'nothing',
)
def test_wrong_flags_and_keys(args, words, complaint, tmp_path):
  line = complaint(*args, *([f'--workdir={tmp_path}'] if UNET in args else []))
  for word in words:
    assert word in line


def test_a_checkpoint_of_another_model_is_refused(tmp_path, complaint):
  config = shrink(load('unet'), num_steps=2)
  train.run(config, tmp_path)

  def files():
    return {
      path: path.read_bytes()
      for path in tmp_path.rglob('*')
      if path.is_file() and 'cache' not in str(path)
    }

  before = files()
  for key, value in [
    ('config.model.features', '6'),
    ('config.model.activation', 'gelu'),
    ('config.data.normalize', 'scale'),
  ]:
    line = complaint(*TINY, f'--{key}={value}', f'--workdir={tmp_path}')
    for words in (f'{key} is {value}', 'another model', str(tmp_path)):
      assert words in line
    assert files() == before
  # The config may be missing; then the shapes of the weights tell.
  (tmp_path / 'config.json').unlink()
  config.model.features = 6
  with pytest.raises(InputError, match='another model: .* has shape'):
    train.run(config, tmp_path)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Returns the folder of a run with a model of random weights."""
  return write_model(tmp_path_factory.mktemp('main') / 'run')


def test_predict_overwrites_nothing(workdir, tmp_path, complaint):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'out').mkdir()
  Image.new('L', (20, 20)).save(tmp_path / 'in' / 'scan.png')
  args = [
    '--mode=predict',
    f'--workdir={workdir}',
    f'--output={tmp_path}/out',
  ]
  (tmp_path / 'out' / 'scan.png').write_text('precious')
  assert 'scan.png' in complaint(*args, f'--input={tmp_path}/in')
  assert (tmp_path / 'out' / 'scan.png').read_text() == 'precious'
  assert '--input' in complaint(*args)
  # One bad image costs its own mask only; and --overwrite overwrites.
  Image.new('RGB', (20, 20), 'red').save(tmp_path / 'in' / 'a.png')
  line = complaint(*args, f'--input={tmp_path}/in', '--overwrite')
  assert '1 of 2' in line and f'{tmp_path}/in/a.png has 3 channels' in line
  assert Image.open(tmp_path / 'out' / 'scan.png').size == (20, 20)


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config.inference.probabilities=true'], ['probabilities is True']),
    (['--config.inference.overlapp=0.2'], ['overlapp', 'inference.overlap?']),
    (['--config.inference.overlap=x'], ['inference.overlap', "'x'", '0.5']),
    (['--config.mesh.data=3'], ['config.mesh', '3 x 1', '8 devices']),
    (['--config.mesh.spatial', '16'], ['config.mesh', '8 devices']),
    (['--config.num_steps=3', '--frmat=onnx'], ['frmat', 'format']),
    (
      ['--config=configs/unet.py', '--config.inference.probability=true'],
      ['inference.probability', 'did you mean'],
    ),
  ],
)
def test_overrides_of_a_model_need_no_config(
  workdir, tmp_path, complaint, args, words
):
  (tmp_path / 'in').mkdir()
  Image.new('L', (20, 20)).save(tmp_path / 'in' / 'scan.png')
  line = complaint(
    *args,
    '--mode=predict',
    f'--workdir={workdir}',
    f'--input={tmp_path}/in',
    f'--output={tmp_path}/out',
  )
  for word in words:
    assert word in line


def test_overrides_are_those_of_the_model(workdir, tmp_path, monkeypatch):
  """They reach evaluate and export, too, whatever a config's file says."""
  found = []

  def run(config, workdir, *, mesh=None, **options):
    found.append((config.inference.overlap, config.mesh.to_dict(), mesh))

  monkeypatch.chdir(ROOT)
  for mode, module in (('evaluate', evaluate), ('export', export)):
    monkeypatch.setattr(module, 'run', run)
    args = [
      f'--mode={mode}', f'--model={workdir}/model', '--output=x',
      '--config=configs/unet.py', '--config.inference.overlap=0.25',
    ]  # fmt: skip
    for more in ([], ['--config.mesh.data=4', '--config.mesh.spatial=2']):
      monkeypatch.setattr(sys, 'argv', ['main', *args, *more])
      with flagsaver.flagsaver():
        assert main.main() == 0
  assert [overlap for overlap, *_ in found] == [0.25] * 4
  # Not the mesh of the training, but one that is asked for.
  assert found[0][1:] == ({'data': -1, 'spatial': 1}, None)
  assert found[1][1] == {'data': 4, 'spatial': 2}
  assert dict(found[1][2].shape) == {'data': 4, 'spatial': 2}


def test_of_a_key_that_is_given_twice_the_last_counts(tmp_path, monkeypatch):
  found = []
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(
    train, 'run', lambda config, workdir: found.append(config)
  )
  again = ['--config.patch_size=(32,48)', '--config.seed', '1']
  again += ['--config.data.classes=a,b', '--config.data.classes=c,d', '--', 'x']
  args = [*TINY, f'--workdir={tmp_path}', *again[:-2]]
  monkeypatch.setattr(sys, 'argv', ['main', *args])
  assert main.main() == 0
  (config,) = found
  assert config.patch_size == (32, 48) and config.seed == 1
  assert config.data.classes == ('c,d',)
  assert overrides.last_of_each(['main', *again])[-2:] == ['--', 'x']


@pytest.mark.parametrize('flag', ['--help', '--helpfull', '-?'])
def test_help_is_no_error(flag):
  done = subprocess.run(
    [sys.executable, '-m', 'medseg_jax.main', flag],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0 and done.stderr == ''
  assert '--workdir' in done.stdout and 'overwrite' in done.stdout


def test_the_command_itself_exits_with_1_and_one_line():
  done = subprocess.run(
    [sys.executable, '-m', 'medseg_jax.main', UNET, '--config.seeed=1'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 1 and done.stdout == ''
  assert (
    done.stderr
    == 'error: unknown key config.seeed; did you mean config.seed?\n'
  )


def test_debug_shows_the_traceback_too():
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'medseg_jax.main',
      UNET,
      '--config.seeed=1',
      '--debug',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 1
  assert 'Traceback' in done.stderr
