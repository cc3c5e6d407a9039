"""The code of the pages runs, as their reader would have written it."""

import contextlib
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, disc
from small import shrink
from test_pages import blocks

from medseg_jax.losses import LOSSES
from medseg_jax.models import MODELS
from medseg_jax.programs import train

OWN_PARTS = ROOT / 'docs' / 'how-to' / 'own-parts.md'
EXERCISE = ROOT / 'docs' / 'explanation' / 'exercise.md'


def write(page, folder, *names):
  """Writes files of a page below a folder; all that it has without names."""
  for _, title, content in blocks(page, 'python'):
    if title in names or not names:
      path = folder / title
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)


def read(path):
  return json.loads(path.read_text())


def apply(diff, text):
  """Returns the text with a diff of a page, whose places are single lines.

  Without line numbers: what is not added has to be there exactly once.
  """
  for hunk in diff.split('@@\n'):
    lines = hunk.splitlines()
    old = ''.join(f'{line[1:]}\n' for line in lines if line[0] != '+')
    new = ''.join(f'{line[1:]}\n' for line in lines if line[0] != '-')
    assert text.count(old) == 1, old
    text = text.replace(old, new)
  return text


@contextlib.contextmanager
def restored(*tables):
  before = [dict(table) for table in tables]
  try:
    yield
  finally:
    for table, content in zip(tables, before, strict=True):
      table.clear()
      table.update(content)


@pytest.mark.parametrize('name', ['log_dice', 'dilated'])
def test_a_config_brings_its_own_loss_or_network(name, tmp_path):
  write(OWN_PARTS, tmp_path, f'mine/{name}.py')
  path = tmp_path / 'mine' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  with restored(LOSSES, MODELS):
    spec.loader.exec_module(module)
    config = shrink(module.get_config(), num_steps=2)
    train.run(config, tmp_path / 'run')
  summary = read(tmp_path / 'run/evaluation/test/summary.json')
  assert summary['num_failed'] == 0 and 0 <= summary['mean']['dice'] <= 1
  described = read(tmp_path / 'run/model/model.json')
  if name == 'dilated':
    assert described['network']['name'] == 'dilated'
  else:
    loss = LOSSES['dice_loss']
    logits = np.float32([[[2, 0], [0, 1]]])
    dice = loss(logits, np.array([[0, 1]]))
    np.testing.assert_allclose(
      module.log_dice(logits, np.array([[0, 1]])),
      -np.log(1 - 0.999 * dice),
      rtol=1e-5,
    )


def test_a_copy_of_the_program_has_its_own_source_and_augmentation(tmp_path):
  for folder in ('medseg_jax', 'configs'):
    shutil.copytree(ROOT / folder, tmp_path / folder)
  write(OWN_PARTS, tmp_path)
  for _, title, diff in blocks(OWN_PARTS, 'diff'):
    path = tmp_path / title
    path.write_text(apply(diff, path.read_text()))
  data = tmp_path / 'mine' / 'data'
  data.mkdir()
  for i in range(10):
    label = disc(32, i).astype(np.uint8)
    np.savez(data / f'case_{i}.npz', image=label * 100.0, label=label)
  subprocess.run(
    [
      *(sys.executable, '-m', 'medseg_jax.main', '--config=configs/unet.py'),
      *('--workdir=run', '--config.data.source=npz', '--config.num_steps=2'),
      *('--config.data.path=mine/data', '--config.patch_size=(16,16)'),
      *('--config.model.features=4', '--config.model.depth=2'),
      '--config.batch_size=2',
    ],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(tmp_path), 'JAX_NUM_CPU_DEVICES': '1'},
    check=True,
  )
  summary = read(tmp_path / 'run/evaluation/val/summary.json')
  assert summary['num_cases'] == 2


def test_the_slope_keeps_all_but_the_brightness(tmp_path):
  write(OWN_PARTS, tmp_path, 'medseg_jax/augment/slope.py')
  path = tmp_path / 'medseg_jax' / 'augment' / 'slope.py'
  with_slope = runpy.run_path(str(path))['with_slope']
  batch = {
    'image': np.ones((64, 6, 5, 1), np.float32),
    'label': np.zeros((64, 6, 5), np.int32),
  }
  augment = jax.jit(with_slope(lambda key, batch: batch))
  found = augment(jax.random.key(0), batch)
  image = np.asarray(found['image'])
  assert found['label'] is batch['label'] or not found['label'].any()
  assert image.shape == batch['image'].shape
  changed = (image != 1).any((1, 2, 3))
  assert 0.1 < changed.mean() < 0.6
  # Of one brightness along the other axes, and 1 in the middle.
  assert not np.ptp(image, axis=2).any()
  np.testing.assert_allclose(image[:, 0] * image[:, -1], 1, rtol=1e-5)


def test_the_loops_learn(tmp_path, capsys):
  write(OWN_PARTS, tmp_path, 'mine/loop.py')
  write(EXERCISE, tmp_path)
  losses = runpy.run_path(str(tmp_path / 'mine' / 'loop.py'))['losses']
  assert len(losses) == 10 and losses[-1] < 0.8 * losses[0]
  capsys.readouterr()
  found = runpy.run_path(str(tmp_path / 'mine' / 'exercise.py'))
  assert capsys.readouterr().out.startswith('740225\n')
  assert found['loss'] < 0.69
