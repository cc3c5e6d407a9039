"""The true loop, for every config, on eight devices."""

import csv
import json

import jax
import numpy as np
import pytest
from conftest import ROOT, disc, write_pairs, write_volumes
from html_cases import data_of
from model_cases import one_cpu
from PIL import Image
from small import load, shrink

from medseg_jax.data.formats.images import read_mask
from medseg_jax.experiment import config_files
from medseg_jax.programs import evaluate, predict, train

CONFIGS = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('[!_]*.py')
  if path.stem != 'pretrain'  # segments nothing: see test_pretraining.py
)


@pytest.fixture
def data_folder(tmp_path):
  """Returns a function from a config's name to data like its own."""

  def make(name):
    root = tmp_path / 'data'
    if name == 'em':  # one stack, grey; its test images have no labels
      write_pairs(root / 'train', 30)
      (root / 'test' / 'images').mkdir(parents=True)
    elif name.startswith('auto'):
      write_volumes(root, 10)
    elif name in ('drive', 'tutorial'):
      for split, count in [('train', 6), ('test', 4)]:
        write_pairs(root / split, count, mode='RGB')
        (root / split / 'fov').mkdir()
        for i in range(count):
          fov = Image.fromarray(disc(40, seed=i))
          fov.save(root / split / 'fov' / f'case {i:02d}_mask.gif')
    return root

  return make


def read_lines(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_trains_and_evaluates(
  name, data_folder, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  config = shrink(load(name), path=data_folder(name), augmented=True)
  summary = train.run(config, workdir)

  split = 'test' if name in ('unet', 'drive', 'tutorial') else 'val'
  assert summary['split'] == split and summary['num_cases'] > 0
  written = workdir / 'evaluation' / split
  assert json.loads((written / 'summary.json').read_text()) == summary
  page = (workdir / 'report.html').read_text()
  assert page == (written / 'report.html').read_text()
  shown = data_of(page)
  assert shown['summary'] == summary
  assert all(case['view']['image'] for case in shown['cases'])
  with open(written / 'cases.csv') as file:
    rows = list(csv.DictReader(file))
  classes = config_files.read_config(workdir).data.classes
  regions = 2 if name == 'drive' else 1
  assert len(rows) == summary['num_cases'] * len(classes) * regions
  assert ('roi' in summary) == (name == 'drive')

  lines = [line for line in read_lines(workdir) if line['split'] == 'train']
  assert [line['step'] for line in lines] == [2, 4]
  assert all(np.isfinite(line['loss']) for line in lines)
  assert set(lines[0]) >= {
    'step',
    'split',
    'loss',
    'learning_rate',
    'images_per_s',
    'data_wait_frac',
  }
  assert len(list((workdir / 'panels').glob('*.png'))) >= 2
  assert list(workdir.glob('events.out.tfevents.*'))
  assert (workdir / 'checkpoints' / 'latest').is_dir()

  # Exact for any number of devices: eight share a batch, or one has it all.
  trained = config_files.read_config(workdir)
  which = summary['checkpoint']
  again = evaluate.run(trained, workdir, checkpoint=which)
  assert again == summary
  if trained.dtype != 'float32':
    # Half precision rounds a batch of another size differently.
    trained.dtype = 'float32'
    again = evaluate.run(trained, workdir, checkpoint=which)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  assert evaluate.run(trained, workdir, checkpoint=which) == again


def test_volumes_go_through_the_same_loop(tmp_path):
  config = load('unet')
  config.patch_size = (16, 16, 16)
  summary = train.run(shrink(config, num_steps=2), tmp_path)
  assert summary['num_cases'] == 5
  assert summary['mean']['dice'] is not None


def test_finished_training_is_not_repeated(tmp_path):
  config = shrink(load('unet'))
  first = train.run(config, tmp_path)
  lines = read_lines(tmp_path)
  assert train.run(config, tmp_path) == first
  assert read_lines(tmp_path) == lines


def test_predict_writes_a_mask_of_each_images_own_size(disc_folder, tmp_path):
  config = shrink(load('unet'), path=disc_folder)
  config.data.source = 'folder'
  workdir, new = tmp_path / 'run', tmp_path / 'new'
  train.run(config, workdir)
  new.mkdir()
  sizes = {'a scan (1)': (40, 25), 'b': (16, 16), 'c': (9, 50)}
  for stem, size in sizes.items():
    Image.new('L', size).save(new / f'{stem}.tif')
  predict.run(
    config_files.read_config(workdir),
    workdir,
    input_path=new,
    output_dir=tmp_path / 'out',
  )
  for stem, (width, height) in sizes.items():
    mask = read_mask(tmp_path / 'out' / f'{stem}.png')
    assert mask.shape == (height, width)
    assert set(np.unique(mask)) <= {0, 255}


def losses(tmp_path, name, *, mesh):
  """Returns the losses of a short run on a mesh of `mesh` devices."""
  config = shrink(load('unet'), num_steps=3, augmented=True)
  config.log_every = 1
  config.eval_every = 0
  config.mesh.data, config.mesh.spatial = mesh
  workdir = tmp_path / name
  train.run(config, workdir)
  lines = [x for x in read_lines(workdir) if x['split'] == 'train']
  return [line['loss'] for line in lines]


def test_losses_do_not_depend_on_the_mesh(tmp_path, monkeypatch):
  eight = losses(tmp_path, 'data', mesh=(8, 1))
  both = losses(tmp_path, 'both', mesh=(4, 2))
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  one = losses(tmp_path, 'one', mesh=(1, 1))
  np.testing.assert_allclose(eight, one, rtol=1e-4)
  np.testing.assert_allclose(both, one, rtol=1e-4)


def test_other_devices_evaluate_than_those_that_trained(
  tmp_path, monkeypatch, capsys
):
  config = shrink(load('unet'), num_steps=2)
  config.mesh.data, config.mesh.spatial = 4, 2
  summary = train.run(config, tmp_path)
  trained = config_files.read_config(tmp_path)

  def refuse(path, picture):
    raise OSError(28, 'No space left on device')

  for checkpoint in ('', 'latest'):
    capsys.readouterr()
    found = evaluate.run(
      trained, tmp_path, checkpoint=checkpoint, mesh=one_cpu()
    )
    assert found['mean']['dice'] == pytest.approx(summary['mean']['dice'])
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if 'No space left' in line]
    assert len(missing) == (checkpoint == 'latest')
    monkeypatch.setattr(evaluate, 'save_png', refuse)  # of the next one
