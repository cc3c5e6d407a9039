"""The data of a config into the cache: where it lies, what is said of it."""

import nibabel as nib
import numpy as np
import pytest
from conftest import disc, write_volumes
from data_cases import assert_one_line
from PIL import Image
from small import load, shrink

from medseg_jax.data import groups
from medseg_jax.experiment import opening
from medseg_jax.programs import prepare
from medseg_jax.runtime.errors import InputError


def prepared(root, workdir, cache_dir):
  config = shrink(load('auto_cpu'), path=root)
  config.data.cache_dir = str(cache_dir)
  config, sources, _ = opening.open_run(config, workdir)
  return prepare.prepare(config, sources)


def test_a_cache_folder_that_is_named_needs_no_home(tmp_path, no_home):
  root = write_volumes(tmp_path / 'Balls', 5)
  cache = prepared(root, tmp_path / 'run', tmp_path / 'cache')
  assert cache.folder.parent == tmp_path / 'cache'
  with pytest.raises(InputError) as error:
    prepared(root, tmp_path / 'run', '')
  assert_one_line(error, 'HOME', 'set config.data.cache_dir')


def test_what_there_is_one_of_is_no_plural(tmp_path):
  config = shrink(load('unet'), num_steps=1)
  config.data.phantom.num_train = 1
  config.data.phantom.num_val = config.data.phantom.num_test = 0
  config.mesh.data = 8
  config, sources, _ = opening.open_run(config, tmp_path / 'run')
  config.batch_size = 1
  lines = prepare.describe(config, sources).splitlines()
  assert lines[0] == 'data      phantom: 1 case (1 train), channels: 1'
  (line,) = [line for line in lines if line.startswith('training')]
  assert line.startswith('training  1 step of 1 patch of 16x16, ')


def test_data_that_half_precision_would_spoil_are_said(tmp_path, capsys):
  for folder in ('images', 'labels'):
    (tmp_path / 'cells' / folder).mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(6):
    label = disc(32, seed=i)
    most = 65_000 if i < 4 else 900
    image = (rng.integers(0, most, (32, 32)) * (1 + label) // 2).astype('u2')
    Image.fromarray(image).save(tmp_path / 'cells/images' / f'{i}.png')
    Image.fromarray(label).save(tmp_path / 'cells/labels' / f'{i}.png')
  config = shrink(load('tutorial'), path=tmp_path / 'cells')
  config.data.normalize = 'scale'
  prepare.run(config, tmp_path / 'run')
  (line,) = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('precision')
  ]
  assert 'float32' in line and '4 of 6 cases' in line and '0, 1, 2' in line


def write_masks(root, masks, *, start=0):
  for i, mask in enumerate(masks, start):
    for folder, array in (('images', disc(32, seed=i)), ('labels', mask)):
      (root / folder).mkdir(parents=True, exist_ok=True)
      Image.fromarray(array).save(root / folder / f'{i}.png')


@pytest.mark.parametrize('value', [0, 255])
def test_cases_of_one_class_alone_cannot_train(tmp_path, value):
  flat = np.full((32, 32), value, np.uint8)
  write_masks(tmp_path / 'set' / 'train', [flat] * 5)
  found = np.uint8(255) * disc(32, seed=9)
  write_masks(tmp_path / 'set' / 'test', [found], start=10)
  for given in ((), (0, 255)):
    config = shrink(load('tutorial'), path=tmp_path / 'set')
    config.data.label_values = given
    config.data.cache_dir = str(tmp_path / 'cache')
    config, sources, _ = opening.open_run(config, tmp_path / 'run')
    with pytest.raises(InputError) as error:
      prepare.prepare(config, sources)
    name = 'foreground' if value else 'background'
    assert_one_line(
      error, tmp_path / 'set', 'all voxels of the 5 cases to train on (0, 1, 2',
      f'are {name} ({value})', 'two classes', 'config.data.label_values',
    )  # fmt: skip
  write_masks(tmp_path / 'set' / 'train', [flat] * 4 + [found])
  config.data.path = str(tmp_path / 'set')
  _, sources, _ = opening.open_run(config, tmp_path / 'run2')
  assert len(prepare.prepare(config, sources).names) == 5


def test_volumes_with_foreground_in_the_held_out_alone_cannot_train(tmp_path):
  root = write_volumes(tmp_path / 'Balls', 5)
  config = shrink(load('auto_cpu'), path=root)
  _, sources, _ = opening.open_run(config, tmp_path / 'run')
  for name in sources['train'].names:
    path = root / 'labelsTr' / f'{name}.nii.gz'
    label = nib.load(path)
    empty = np.zeros(label.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, label.affine), path)
  with pytest.raises(InputError) as error:
    prepared(root, tmp_path / 'run', tmp_path / 'cache')
  assert_one_line(
    error, root, 'voxels of the 4 cases to train on (', 'are background (0)'
  )


def test_paths_below_a_home_that_is_not_known_are_one_line(tmp_path, no_home):
  config = shrink(load('auto_cpu'), path='~/Balls')
  with pytest.raises(InputError) as error:
    opening.open_run(config, tmp_path / 'run')
  assert_one_line(error, '~/Balls', 'HOME', 'set config.data.path')
  with pytest.raises(InputError) as error:
    groups.read_groups('~/groups.csv', ['a'])
  assert_one_line(error, '~/groups.csv', 'HOME', 'set config.data.group')
