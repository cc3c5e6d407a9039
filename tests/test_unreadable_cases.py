"""A case that cannot be read costs no other its score, and no training."""

import csv
import gzip
import json

import predict_cases
import pytest
from conftest import write_pairs, write_volumes
from data_cases import assert_all_in, assert_one_line, save
from small import load, shrink, write_untrained
from test_held_out import (
  again,  # noqa: F401
  config_of,
  evaluated,
  trained,  # noqa: F401
)

from medseg_jax.experiment import config_files
from medseg_jax.programs import evaluate, train
from medseg_jax.runtime.errors import InputError


def cut(path):
  path.write_bytes(path.read_bytes()[:60])


def report(folder):
  """Returns the summary, and the rows of the cases by name."""
  summary = json.loads((folder / 'summary.json').read_text())
  rows = {}
  with open(folder / 'cases.csv') as file:
    for row in csv.DictReader(file):
      rows.setdefault(row['case'], []).append(row)
  return summary, rows


def failed_lines(capsys):
  lines = capsys.readouterr().out.splitlines()
  return [line for line in lines if line.startswith('failed    ')]


def assert_left_out(folder, scored, failed):
  """Checks that the report has the one, and says of the others why not."""
  summary, rows = report(folder)
  assert (summary['num_cases'], summary['num_failed']) == (
    len(scored),
    len(failed),
  )
  assert set(rows) == {*scored, *failed} and set(summary['failed']) == {*failed}
  for name in scored:
    assert all(row['failed'] == '' and row['class'] for row in rows[name])
  for name, part in failed.items():
    (row,) = rows[name]
    assert row.pop('case') == name and row.pop('failed') in part_of(
      summary['failed'][name], part
    )
    assert not any(row.values())


def part_of(reason, part):
  assert part in reason
  return [reason]


def test_images_of_the_training_and_others(again, tmp_path, capsys):  # noqa: F811
  root, workdir = again
  names = json.loads((workdir / 'splits.json').read_text())[0]['val']
  whole, before = report(workdir / 'evaluation' / 'val')
  assert whole['num_failed'] == 0 and whole['failed'] == {}
  cut(root / 'images' / f'{names[0]}.png')
  capsys.readouterr()
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(root))  # its own, though it lies elsewhere
  assert_one_line(error, 'not scored: 1 of 3 cases', f'{names[0]}.png: cannot')
  (line,) = failed_lines(capsys)
  assert f'images/{names[0]}.png: cannot be read' in line
  place = workdir / 'evaluation' / 'val'
  assert_left_out(place, names[1:], {names[0]: 'cannot be read'})
  _, after = report(place)
  for name in names[1:]:  # the others have the scores that they had
    for old, new in zip(before[name], after[name], strict=True):
      assert new == {**old, 'failed': ''}
  for name in names[1:]:
    cut(root / 'images' / f'{name}.png')
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(root))
  assert_one_line(error, f'not scored: {len(names)} of {len(names)} cases')
  assert 'evaluation/val is left as it is' in capsys.readouterr().out
  assert report(place)[1] == after
  other = tmp_path / 'clinic'
  write_pairs(other, 20)
  for i in range(15):
    for part in ('images', 'labels'):
      (other / part / f'case {i:02d}.png').unlink()
  (other / 'labels' / 'case 15.png').write_bytes(b'')
  mask = (other / 'labels' / 'case 16.png').read_bytes()
  save(other / 'labels' / 'case 17.png', predict_cases.np.eye(40, 30) > 0)
  values = predict_cases.np.full((40, 40), 9, 'uint8')
  save(other / 'labels' / 'case 18.png', values)
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(other))
  assert_one_line(error, 'not scored: 3 of 5', 'case 15, case 17, case 18')
  assert 'evaluate all: case 5/5, 3 failed' in capsys.readouterr().out
  assert_left_out(
    workdir / 'evaluation' / 'clinic-all',
    ['case 16', 'case 19'],
    {
      'case 15': 'cannot be read',
      'case 17': '40 x 30 pixels',
      'case 18': 'label values of no class: 9',
    },
  )
  (other / 'images' / 'case 17.png').unlink()  # a mask alone
  (other / 'labels' / 'case 18.png').unlink()  # an image alone
  (other / 'labels' / 'case 19_mask.png').write_bytes(mask)  # two masks
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(other))
  assert_one_line(error, 'not scored: 4 of 5')
  assert_left_out(
    workdir / 'evaluation' / 'clinic-all',
    ['case 16'],
    {
      'case 15': 'cannot be read',
      'case 17': 'labels/case 17.png: a mask without its image in',
      'case 18': 'images/case 18.png: an image without its mask in',
      'case 19': 'case 19.png and case 19_mask.png are both masks of',
    },
  )
  assert (other / 'labels' / 'case 16.png').read_bytes() == mask


def test_nothing_that_can_be_read(again, tmp_path):  # noqa: F811
  _, workdir = again
  write_pairs(tmp_path / 'clinic', 2)
  for path in (tmp_path / 'clinic' / 'images').iterdir():
    cut(path)
  with pytest.raises(InputError) as error:
    evaluated(workdir, path=str(tmp_path / 'clinic'))
  assert_one_line(error, 'files that cannot be used in 2 of 2 cases')


def test_volumes(tmp_path, capsys, monkeypatch):
  predict_cases.compile_once(monkeypatch)
  workdir = tmp_path / 'run'
  config = shrink(load('auto_cpu'), path=write_volumes(tmp_path / 'data', 6))
  config.inference.mirror = False
  write_untrained(config, workdir)
  other = write_volumes(tmp_path / 'clinic', 12)
  for i in range(6):
    for folder in ('imagesTr', 'labelsTr'):
      (other / folder / f'case_{i:02d}.nii.gz').unlink()
  (other / 'dataset.json').unlink()
  cut(other / 'imagesTr' / 'case_06.nii.gz')
  (other / 'labelsTr' / 'case_08.nii.gz').write_bytes(b'')
  (other / 'imagesTr' / 'case_09.nii.gz').write_bytes(
    (other / 'imagesTr' / 'case_10.nii.gz').read_bytes()
  )
  config = config_files.read_config(workdir)
  config.data.path = str(other)
  with pytest.raises(InputError) as error:
    evaluate.run(config, workdir)
  assert_one_line(error, 'not scored: 3 of 6', 'case_06, case_08, case_09')
  assert_left_out(
    workdir / 'evaluation' / 'clinic-all',
    ['case_07', 'case_10', 'case_11'],
    {
      'case_06': 'truncated',
      'case_08': 'an empty file',
      'case_09': 'not on the grid',
    },
  )
  assert len(failed_lines(capsys)) == 3
  # Files of one case that do not belong together are that case's fault.
  (other / 'imagesTr' / 'case_11.nii.gz').unlink()
  label = (other / 'labelsTr' / 'case_10.nii.gz').read_bytes()
  (other / 'labelsTr' / 'case_10_mask.nii.gz').write_bytes(label)
  with pytest.raises(InputError) as error:
    evaluate.run(config, workdir)
  assert_one_line(error, 'not scored: 5 of 6', 'case_10, case_11')
  assert_left_out(
    workdir / 'evaluation' / 'clinic-all',
    ['case_07'],
    {
      'case_06': 'truncated',
      'case_08': 'an empty file',
      'case_09': 'not on the grid',
      'case_10': 'case_10_mask.nii.gz: the second label',
      'case_11': 'case_11.nii.gz: a label without its image',
    },
  )
  # Two labels whose own names are alike are still those of one image.
  label = other / 'labelsTr' / 'case_07.nii.gz'
  (other / 'labelsTr' / 'case_07_label.nii').write_bytes(
    gzip.decompress(label.read_bytes())
  )
  label.rename(other / 'labelsTr' / 'case_07_label.nii.gz')
  with pytest.raises(InputError) as error:
    evaluate.run(config, workdir)
  assert_one_line(error, 'not scored: 6 of 6', 'case_07')
  (other / 'dataset.json').write_text('{')  # of the data set as a whole
  with pytest.raises(InputError, match='dataset.json'):
    evaluate.run(config, workdir)


def test_what_is_listed_and_not_there(tmp_path, monkeypatch):
  predict_cases.compile_once(monkeypatch)
  workdir, data = tmp_path / 'run', write_volumes(tmp_path / 'data', 6)
  config = shrink(load('auto_cpu'), path=data)
  config.inference.mirror = False
  write_untrained(config, workdir)
  record = json.loads((workdir / 'model' / 'model.json').read_text())
  held_out = sorted(record['training']['cases']['held_out']['val'])
  (data / 'imagesTr' / f'{held_out[0]}.nii.gz').unlink()
  with pytest.raises(InputError) as error:
    evaluate.run(config_files.read_config(workdir), workdir)
  assert_one_line(error, f'not scored: 1 of {len(held_out)}', held_out[0])
  assert_left_out(
    workdir / 'evaluation' / 'val',
    held_out[1:],
    {held_out[0]: f"imagesTr/{held_out[0]}.nii.gz', which is not there"},
  )


def test_a_training_is_not_lost_to_a_file_that_is_lost(
  tmp_path, capsys, monkeypatch
):
  write_pairs(tmp_path / 'pairs', 10)
  config = config_of(tmp_path / 'pairs', cache_dir=str(tmp_path / 'cache'))
  workdir, real = tmp_path / 'run', train.prepare

  def lose(config, sources):
    cache = real(config, sources)
    cut(tmp_path / 'pairs' / 'images' / f'{sources["val"].names[0]}.png')
    return cache

  monkeypatch.setattr(train, 'prepare', lose)
  with pytest.raises(InputError) as error:
    train.run(config, workdir)
  name, other = json.loads((workdir / 'splits.json').read_text())[0]['val']
  assert_one_line(error, 'not scored: 1 of 2 cases', f'{name}.png: cannot be')
  assert_left_out(workdir / 'evaluation/val', [other], {name: 'cannot be read'})
  model = json.loads((workdir / 'model' / 'model.json').read_text())
  assert model['scores']['num_failed'] == 1
  out = capsys.readouterr().out
  assert_all_in(out, '1 of 2 val cases could not', 'cannot be the best')
  assert not list((workdir / 'checkpoints').glob('best/*'))
