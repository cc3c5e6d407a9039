"""What has trained is never scored as held out, however one asks for it."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_pairs, write_volumes
from data_cases import assert_one_line
from PIL import Image
from small import load, shrink

from medseg_jax.experiment import config_files, held_out, opening
from medseg_jax.programs import evaluate, train
from medseg_jax.runtime.errors import InputError


def config_of(root, **data):
  """Returns a quick config on a folder, or on volumes."""
  name = 'auto_cpu' if (root / 'imagesTr').exists() else 'unet'
  config = shrink(load(name), path=root, num_steps=2)
  if name == 'unet':
    config.data.source = 'folder'
  for key, value in data.items():
    config.data[key] = value
  return config


def divided(config, workdir):
  """Returns the names by split, as a run would have them."""
  sources = opening.open_run(config, workdir).sources
  return {split: list(source.names) for split, source in sources.items()}


def add_pair(root, like, name, *, mask=None):
  """Adds a copy of the case `like` under another name."""
  shutil.copy(root / f'images/{like}.png', root / f'images/{name}.png')
  source = mask or like
  shutil.copy(root / f'labels/{source}.png', root / f'labels/{name}.png')


@pytest.fixture
def pairs(tmp_path):
  write_pairs(tmp_path / 'pairs', 15)
  return tmp_path / 'pairs'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns the data and the workdir of a run on a folder of 15 pairs."""
  folder = tmp_path_factory.mktemp('trained')
  write_pairs(folder / 'pairs', 15)
  config = config_of(folder / 'pairs', cache_dir=str(folder / 'cache'))
  train.run(config, folder / 'run')
  return folder / 'pairs', folder / 'run'


@pytest.fixture
def again(trained, tmp_path):
  """Returns copies of these, for a test to spoil."""
  root = shutil.copytree(trained[0], tmp_path / 'pairs')
  return root, shutil.copytree(trained[1], tmp_path / 'run')


def resume(root, workdir, **data):
  config = config_of(root, **data)
  config.num_steps = 4
  return train.run(config, workdir)


def test_the_record_names_what_was_held_out(trained):
  root, workdir = trained
  record = json.loads((workdir / 'held_out.json').read_text())
  folds = json.loads((workdir / 'splits.json').read_text())
  assert sorted(record['held_out']['val']) == folds[0]['val']
  assert sorted(record['trained'].values()) == folds[0]['train']
  assert record['path'] == str(root)
  model = json.loads((workdir / 'model' / 'model.json').read_text())
  assert model['training']['cases'] == record


@pytest.mark.parametrize(
  'change',
  [
    dict(fold=1),
    dict(num_folds=3),
    dict(fold_order='block'),
    dict(group=r'case \d(\d)'),
    dict(fold='all'),
  ],
  ids=str,
)
def test_other_folds_do_not_go_on(again, change):
  root, workdir = again
  (workdir / 'splits.json').unlink()
  with pytest.raises(InputError) as error:
    resume(root, workdir, **change)
  assert_one_line(error, workdir, 'case ', 'data.fold', '--workdir')


def test_other_data_does_not_go_on(again, tmp_path):
  root, workdir = again
  other = tmp_path / 'other'
  write_pairs(other, 30)
  for i in range(15):  # under the names of the first data
    (other / f'images/case {i:02d}.png').unlink()
    (other / f'labels/case {i:02d}.png').unlink()
    for part in ('images', 'labels'):
      (other / f'{part}/case {i + 15:02d}.png').rename(
        other / f'{part}/case {i:02d}.png'
      )
  with pytest.raises(InputError) as error:
    resume(other, workdir)
  assert_one_line(
    error, 'no case that the training held out', 'data.path', '--workdir'
  )
  # The data may move, as long as it is the same.
  moved = shutil.copytree(root, tmp_path / 'moved')
  assert resume(moved, workdir)['step'] == 4


def test_phantoms_of_another_seed_do_not_go_on(tmp_path):
  config = shrink(load('unet'))
  first = opening.open_run(config, tmp_path)
  record = held_out.record_of(first.config, first.digests)
  config.data.phantom.seed = 1
  second = opening.open_run(config, tmp_path)
  with pytest.raises(InputError) as error:
    held_out.check_resuming(record, second.digests, tmp_path)
  assert_one_line(error, 'no case that the training held out', 'val_0000')
  held_out.check_resuming(record, first.digests, tmp_path)


def test_new_files_train_and_no_old_case_changes_sides(again, capsys):
  root, workdir = again
  held_out = json.loads((workdir / 'splits.json').read_text())[0]['val']
  new = root.parent / 'new'
  write_pairs(new, 18)
  for part in ('images', 'labels'):
    for i in (15, 16, 17):
      name = f'{part}/case {i:02d}.png'
      shutil.copy(new / name, root / f'{part}/a new {i}.png')
  summary = resume(root, workdir)
  assert summary['num_cases'] == len(held_out)
  printed = capsys.readouterr().out
  assert '3 cases new since' in printed and 'a new 15, a new 16' in printed
  record = json.loads((workdir / 'held_out.json').read_text())
  assert sorted(record['held_out']['val']) == held_out
  assert len(record['trained']) == 15
  assert {'a new 15', 'a new 17'} <= set(record['trained'].values())


def test_a_new_copy_of_a_held_out_case_does_not_train(again, capsys):
  root, workdir = again
  held_out = json.loads((workdir / 'splits.json').read_text())[0]['val']
  add_pair(root, held_out[0], 'its twin')
  found = divided(config_of(root), workdir)
  assert 'its twin' in found['val'] and 'its twin' not in found['train']
  assert 'its twin' in capsys.readouterr().out


def test_cases_in_no_fold_of_a_users_file_are_told(pairs, tmp_path, capsys):
  names = [f'case {i:02d}' for i in range(15)]
  fold = {'train': names[:8], 'val': names[8:12]}
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/splits.json').write_text(json.dumps([fold]))
  assert divided(config_of(pairs), tmp_path / 'run') == fold
  printed = capsys.readouterr().out
  assert 'in no fold: 3 cases' in printed and 'case 12' in printed


def test_the_volumes_of_a_users_file_likewise(tmp_path, capsys):
  root = write_volumes(tmp_path / 'Balls', 8)
  (tmp_path / 'run').mkdir()
  names = [f'case_{i:02d}' for i in range(8)]
  fold = {'train': names[:5], 'val': names[5:7]}
  (tmp_path / 'run/splits.json').write_text(json.dumps([fold]))
  assert divided(config_of(root), tmp_path / 'run') == fold
  assert 'in no fold: 1 case ' in capsys.readouterr().out


@pytest.mark.parametrize('num_folds', [2, 5])
def test_copies_stay_on_one_side_of_every_fold(pairs, tmp_path, num_folds):
  for i in range(6):
    add_pair(pairs, f'case {i:02d}', f'z copy {i}')
  for fold in range(num_folds):
    config = config_of(pairs, fold=fold, num_folds=num_folds)
    found = divided(config, tmp_path / 'run')
    for i in range(6):
      sides = [
        {f'case {i:02d}', f'z copy {i}'} & set(part) for part in found.values()
      ]
      assert sorted(map(len, sides)) == [0, 2]


def test_copies_are_told_and_masks_that_contradict_each_other(
  pairs, tmp_path, capsys
):
  add_pair(pairs, 'case 03', 'same')
  add_pair(pairs, 'case 04', 'other mask', mask='case 05')
  pixels = np.asarray(Image.open(pairs / 'images/case 06.png'))
  Image.fromarray(pixels).save(pairs / 'images/converted.bmp')
  shutil.copy(pairs / 'labels/case 06.png', pairs / 'labels/converted.png')
  divided(config_of(pairs), tmp_path / 'run')
  lines = capsys.readouterr().out.splitlines()
  [copies] = [line for line in lines if 'the image of another' in line]
  assert '3 cases' in copies and 'case 06 = converted' in copies
  [masks] = [line for line in lines if 'with other masks' in line]
  assert '1 in all' in masks and 'case 04 = other mask' in masks


def test_a_copy_of_a_test_case_does_not_train(tmp_path, capsys):
  root = tmp_path / 'split'
  for part, count in (('train', 8), ('val', 6), ('test', 3)):
    write_pairs(root / part, count)  # the same images, the first of them
  found = divided(config_of(root), tmp_path / 'run')
  names = [f'case {i:02d}' for i in range(8)]
  assert found == {'train': names[6:], 'val': names[3:6], 'test': names[:3]}
  printed = capsys.readouterr().out
  assert 'test/case 00 = val/case 00' in printed
  assert 'left out of val: 3 cases' in printed
  assert 'left out of train: 6 cases' in printed


def test_patients_stay_on_one_side(tmp_path):
  root = write_volumes(tmp_path / 'Balls', 10)
  table = tmp_path / 'visits.csv'
  table.write_text(''.join(f'case_{i:02d},{i // 2}\n' for i in range(10)))
  config = config_of(root, group=str(table))
  for fold in range(5):
    config.data.fold = fold
    found = divided(config, tmp_path / 'run')
    a, b = sorted(found['val'])
    assert int(a[-2:]) // 2 == int(b[-2:]) // 2


def test_a_split_that_parts_a_patient_is_refused(pairs, tmp_path):
  names = [f'case {i:02d}' for i in range(15)]
  fold = {'train': names[:8], 'val': names[8:]}
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/splits.json').write_text(json.dumps([fold]))
  with pytest.raises(InputError) as error:
    divided(config_of(pairs, group=r'case (\d)'), tmp_path / 'run')
  assert_one_line(error, 'config.data.group', 'case 00', 'splits.json')


def evaluated(workdir, *, split='', model=None, **data):
  config = config_files.read_config(workdir)
  for key, value in data.items():
    config.data[key] = value
  return evaluate.run(config, workdir, split=split, model=model)


def test_another_fold_is_not_evaluated_as_held_out(again):
  _, workdir = again
  with pytest.raises(InputError) as error:
    evaluated(workdir, fold=1)
  assert_one_line(
    error, '3 of 3 cases', 'trained this model', 'held_out', '--split=train'
  )
  assert evaluated(workdir, split='train')['num_cases'] == 12


def test_the_held_out_cases_are_the_training_s_whatever_was_added(again):
  root, workdir = again
  held_out = json.loads((workdir / 'splits.json').read_text())[0]['val']
  add_pair(root, held_out[0], 'aa another')  # would have moved every fold
  (workdir / 'splits.json').unlink()
  summary = evaluated(workdir, path=str(root))
  lines = (workdir / 'evaluation/val/cases.csv').read_text().splitlines()
  assert {line.split(',')[0] for line in lines[1:]} <= {*held_out, 'aa another'}
  assert summary['split'] == 'val'


def test_a_test_split_that_came_later_is_scored(again):
  root, workdir = again
  parts = {part: root / part for part in ('images', 'labels')}
  for split in ('train', 'test'):
    for part, folder in parts.items():
      (root / split / part).mkdir(parents=True)
      for path in folder.glob('*.png') if split == 'train' else ():
        path.rename(root / split / part / path.name)
  for part in parts:
    parts[part].rmdir()
  made = root.parent / 'made'
  write_pairs(made, 17)
  for part in parts:
    for i in (15, 16):
      shutil.copy(made / part / f'case {i:02d}.png', root / 'test' / part)
  path = str(root)
  assert evaluated(workdir, path=path)['num_cases'] == 2
  assert evaluated(workdir, path=path, split='val')['num_cases'] == 3
  for part in parts:
    shutil.copy(root / f'train/{part}/case 01.png', root / 'test' / part)
  with pytest.raises(InputError, match='1 of 3 cases to be scored'):
    evaluated(workdir, path=path)


def test_other_data_has_a_folder_of_its_own(again, tmp_path):
  _, workdir = again
  before = (workdir / 'evaluation/val/summary.json').read_text()
  other = tmp_path / 'hospital B'
  write_pairs(other, 19)
  for i in range(15):
    (other / f'images/case {i:02d}.png').unlink()
    (other / f'labels/case {i:02d}.png').unlink()
  summary = evaluated(workdir, path=str(other))
  assert summary['num_cases'] == 4
  assert (workdir / 'evaluation/val/summary.json').read_text() == before
  written = workdir / 'evaluation/hospital_B-all/summary.json'
  assert json.loads(written.read_text()) == summary
  assert summary['data'] == {'source': 'folder', 'path': str(other)}
  assert (summary['split'], summary['checkpoint']) == ('all', 'latest')
  assert (workdir / 'panels/hospital_B-all_best.png').exists()


def test_training_images_under_other_names_are_not_scored(again, tmp_path):
  root, workdir = again
  other = tmp_path / 'copy'
  write_pairs(other, 1)
  add_pair(root, 'case 00', 'renamed')
  for part in ('images', 'labels'):
    for name in ('case 00', 'case 01', 'case 02', 'case 03'):
      shutil.copy(root / part / f'{name}.png', other / part / f'x {name}.png')
    (other / part / 'case 00.png').unlink()
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(other))
  assert_one_line(error, other, 'trained this model', 'x case 01 as case 01')
  assert '--split=train' not in str(error.value)  # other data has none


def test_a_model_that_travelled_knows_its_cases(again, tmp_path):
  root, workdir = again
  config = config_files.read_config(workdir)
  model = shutil.copytree(workdir / 'model', tmp_path / 'travelled')
  config.data.path = str(root)
  found = evaluate.run(config, tmp_path / 'elsewhere', model=model)
  assert found['num_cases'] == 3 and found['split'] == 'val'
  config.data.fold = 2
  with pytest.raises(InputError, match='trained this model'):
    evaluate.run(config, tmp_path / 'elsewhere2', model=model)


@pytest.mark.parametrize(
  'content', ['[]', '{}', '{"version": 99}', '{"version": 1, "source": 3}', '']
)
def test_a_damaged_record_is_told(again, content):
  root, workdir = again
  (workdir / 'held_out.json').write_text(content)
  with pytest.raises(InputError) as error:
    resume(root, workdir)
  assert_one_line(error, 'held_out.json')


def test_a_relative_path_is_the_same_from_anywhere(
  pairs, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = config_of(pairs)
  config.data.path = 'pairs'
  summary = train.run(config, tmp_path / 'run')
  monkeypatch.chdir('/')
  assert evaluated(tmp_path / 'run') == summary
