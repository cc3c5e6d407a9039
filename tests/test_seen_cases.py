"""Ways around the record of what has trained, found shut."""

import json
import shutil

import numpy as np
import pytest
from conftest import write_pairs
from data_cases import assert_one_line
from PIL import Image
from test_held_out import (
  add_pair,
  again,  # noqa: F401
  config_of,
  divided,
  evaluated,
  resume,
  trained,  # noqa: F401
)

from medseg_jax.data import identity
from medseg_jax.experiment import held_out
from medseg_jax.programs import train
from medseg_jax.runtime.errors import InputError


def held_out_names(workdir):
  return json.loads((workdir / 'splits.json').read_text())[0]['val']


def test_a_best_checkpoint_of_a_lost_training_is_not_used(again, capsys):  # noqa: F811
  root, workdir = again
  shutil.rmtree(workdir / 'checkpoints/latest')
  other = root.parent / 'other'
  write_pairs(other, 25)
  for i in range(15):
    for part in ('images', 'labels'):
      (other / part / f'case {i:02d}.png').unlink()
  shutil.rmtree(workdir / 'model')
  (workdir / 'splits.json').unlink()
  best = workdir / 'checkpoints/best'
  steps = [path.name for path in best.iterdir()]
  config = config_of(other)
  config.eval_every = 0
  config.num_steps = 1
  train.run(config, workdir)
  assert 'of a training that was lost' in capsys.readouterr().out
  moved = [p.name for p in (workdir / 'checkpoints/damaged').iterdir()]
  assert moved == [f'best-{step}' for step in steps]
  record = held_out.read(workdir)
  assert not set(record.trained.values()) & {f'case {i:02d}' for i in range(15)}


def test_the_model_carries_the_record_where_the_file_is_gone(again, tmp_path):  # noqa: F811
  root, workdir = again
  before = held_out.read(workdir)
  (workdir / 'held_out.json').unlink()
  assert held_out.read(workdir) == before
  with pytest.raises(InputError, match='trained this model'):
    resume(root, workdir, fold=1, num_folds=5)
  assert not (workdir / 'held_out.json').exists()


def test_without_any_record_none_is_made_up(again, tmp_path, capsys):  # noqa: F811
  root, workdir = again
  (workdir / 'held_out.json').unlink()
  shutil.rmtree(workdir / 'model')
  resume(root, workdir)
  assert not (workdir / 'held_out.json').exists()
  assert 'cannot be told' in capsys.readouterr().out
  model = json.loads((workdir / 'model/model.json').read_text())
  assert model['training']['cases'] is None
  before = (workdir / 'evaluation/val/summary.json').read_text()
  other = tmp_path / 'elsewhere'
  write_pairs(other, 6)
  assert evaluated(workdir, path=str(other))['num_cases'] == 6
  assert (workdir / 'evaluation/elsewhere-all/summary.json').exists()
  assert (workdir / 'evaluation/val/summary.json').read_text() == before


def test_folds_that_were_lost_are_not_written_by_a_refused_run(again):  # noqa: F811
  root, workdir = again
  (workdir / 'splits.json').unlink()
  with pytest.raises(InputError):
    resume(root, workdir, fold=1)
  with pytest.raises(InputError):
    evaluated(workdir, fold=2)
  assert not (workdir / 'splits.json').exists()
  assert resume(root, workdir)['num_cases'] == 3


def test_other_data_of_one_name_keeps_its_own_results(again, tmp_path):  # noqa: F811
  _, workdir = again
  for place, count in (('a', 18), ('b', 17)):
    root = tmp_path / place / 'clinic'
    write_pairs(root, count)
    for i in range(15):
      for part in ('images', 'labels'):
        (root / part / f'case {i:02d}.png').unlink()
    for _ in range(2):
      found = evaluated(workdir, path=str(root))
      assert found['num_cases'] == count - 15
  folders = sorted(p.name for p in (workdir / 'evaluation').glob('clinic*'))
  assert len(folders) == 2 and folders[0] == 'clinic-all'


def test_a_grey_image_saved_in_colour_is_the_same_image():
  grey = np.random.default_rng(0).integers(0, 256, (9, 8, 1), np.uint8)
  assert identity.digest(np.repeat(grey, 3, -1)) == identity.digest(grey)
  colour = np.random.default_rng(1).integers(0, 256, (9, 8, 3), np.uint8)
  assert identity.digest(colour) != identity.digest(colour[..., :1])


def test_blank_images_are_no_copies_of_each_other(tmp_path, capsys):
  root = tmp_path / 'slices'
  write_pairs(root, 18)
  for patient in range(6):
    for i in range(3):
      for part in ('images', 'labels'):
        old = root / part / f'case {3 * patient + i:02d}.png'
        if i == 0:
          blank = np.zeros((40, 40), np.uint8)
          Image.fromarray(blank).save(old)
        old.rename(root / part / f'p{patient}_s{i}.png')
  config = config_of(root, group=r'(p\d)_s')
  found = divided(config, tmp_path / 'run')
  patients = [{name[:2] for name in part} for part in found.values()]
  assert patients[0].isdisjoint(patients[1])
  assert 'the image of another' not in capsys.readouterr().out


def test_a_blank_case_elsewhere_does_not_bar_the_others(again, tmp_path):  # noqa: F811
  _, workdir = again
  other = tmp_path / 'clinic'
  write_pairs(other, 17)
  for i in range(14):
    for part in ('images', 'labels'):
      (other / part / f'case {i:02d}.png').unlink()
  blank = Image.fromarray(np.zeros((40, 40), np.uint8))
  blank.save(other / 'images/case 14.png')
  assert evaluated(workdir, path=str(other))['num_cases'] == 3


def test_what_is_no_record_is_told(again):  # noqa: F811
  root, workdir = again
  found = json.loads((workdir / 'held_out.json').read_text())
  for spoiled in ({'val': {'a': ['x']}}, {'val': 3}, []):
    found['held_out'] = spoiled
    (workdir / 'held_out.json').write_text(json.dumps(found))
    with pytest.raises(InputError) as error:
      resume(root, workdir)
    assert_one_line(error, 'held_out.json', 'not the record')


def test_a_copy_added_to_the_held_out_is_held_out(again):  # noqa: F811
  root, workdir = again
  add_pair(root, held_out_names(workdir)[1], 'zz twin')
  assert resume(root, workdir)['num_cases'] == 4
