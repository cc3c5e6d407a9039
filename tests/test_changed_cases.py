"""Cases that are copied, renamed, removed or regrouped, as people do it."""

import json
import shutil

import pytest
from conftest import write_pairs
from data_cases import assert_one_line
from test_held_out import (
  add_pair,
  again,  # noqa: F401
  config_of,
  divided,
  evaluated,
  resume,
  trained,  # noqa: F401
)

from medseg_jax.experiment import held_out, opening
from medseg_jax.programs import train
from medseg_jax.runtime.errors import InputError

NAMES = [f'case {i:02d}' for i in range(15)]


def rename(root, old, new):
  for part in ('images', 'labels'):
    (root / part / f'{old}.png').rename(root / part / f'{new}.png')


def remove(root, name):
  for part in ('images', 'labels'):
    (root / part / f'{name}.png').unlink()


def lines_with(capsys, words):
  return [x for x in capsys.readouterr().out.splitlines() if words in x]


@pytest.fixture
def pairs(tmp_path):
  write_pairs(tmp_path / 'pairs', 15)
  return tmp_path / 'pairs'


# Copies.


def test_copies_that_are_scored_are_told(again, capsys):  # noqa: F811
  root, workdir = again
  before = resume(root, workdir)
  assert before['copies'] == []
  [name, *_] = json.loads((workdir / 'splits.json').read_text())[0]['val']
  add_pair(root, name, 'a twin', mask='case 01')
  capsys.readouterr()
  summary = evaluated(workdir, path=str(root))
  assert summary['num_cases'] == 4
  assert summary['copies'] == [sorted(['a twin', name])]
  written = json.loads((workdir / 'evaluation/val/summary.json').read_text())
  assert written == summary
  out = capsys.readouterr().out
  [line] = [x for x in out.splitlines() if 'each case is scored' in x]
  assert 'val: 2 of the 4 cases are only 1 image' in line and name in line
  assert 'with other masks for the same image: a twin' in out


def test_copies_in_other_data_are_told(again, tmp_path, capsys):  # noqa: F811
  _, workdir = again
  other = tmp_path / 'clinic'
  write_pairs(other, 18)
  for name in NAMES:
    remove(other, name)
  add_pair(other, 'case 16', 'its twin', mask='case 15')
  summary = evaluated(workdir, path=str(other))
  assert summary['num_cases'] == 4
  assert summary['copies'] == [['case 16', 'its twin']]
  out = capsys.readouterr().out
  assert 'clinic-all: 2 of the 4 cases are only 1 image' in out
  assert 'with other masks for the same image: case 16 = its twin' in out


# What splits.json decides.


def test_a_file_of_splits_says_what_it_does_not_leave_to_the_config(
  pairs, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  first = divided(config_of(pairs, fold_order='block', num_folds=3), workdir)
  assert first['val'] == NAMES[:5]
  assert not lines_with(capsys, 'the file decides')
  again = divided(config_of(pairs, fold_order='block', num_folds=3), workdir)  # noqa: F811
  [line] = lines_with(capsys, 'folds  ')
  assert again == first and 'the file decides' not in line
  assert divided(config_of(pairs), workdir) == first
  [line] = lines_with(capsys, 'folds  ')
  for words in (
    f'{workdir}/splits.json: 3 folds', 'the file decides',
    'data.num_folds=5', 'data.fold_order=shuffled',
  ):  # fmt: skip
    assert words in line


def test_a_users_own_file_decides_against_an_order(pairs, tmp_path, capsys):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  fold = {'train': NAMES[::2], 'val': NAMES[1::2]}
  (workdir / 'splits.json').write_text(json.dumps([fold]))
  config = config_of(pairs, num_folds=1)
  assert divided(config, workdir) == fold
  assert not lines_with(capsys, 'the file decides')
  config.data.fold_order = 'block'
  assert divided(config, workdir) == fold
  [line] = lines_with(capsys, 'folds  ')
  assert 'the file decides, not config.data.fold_order=block)' in line


def test_fold_all_trains_on_every_case(pairs, tmp_path, capsys):
  config = config_of(pairs, fold='all')
  assert divided(config, tmp_path / 'run') == {'train': NAMES}
  assert not (tmp_path / 'run/splits.json').exists()
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/splits.json').write_text('not looked at')
  assert divided(config, tmp_path / 'run') == {'train': NAMES}


# Renamed and removed.


def test_a_renamed_case_is_the_same_case(again, capsys):  # noqa: F811
  root, workdir = again
  before = divided(config_of(root), workdir)
  renamed = {before['train'][3]: 'a new name', before['val'][1]: 'another'}
  for old, new in renamed.items():
    rename(root, old, new)
  capsys.readouterr()
  found = divided(config_of(root), workdir)
  # In the same places, so that the batches are the same.
  for part, names in before.items():
    assert found[part] == [renamed.get(name, name) for name in names]
  [line] = lines_with(capsys, 'another name now')
  assert '2 cases' in line and f'{before["train"][3]} is a new name' in line
  assert resume(root, workdir)['num_cases'] == 3
  assert 'a new name' in held_out.read(workdir).trained.values()


def test_a_removed_case_is_left_out_and_told(again, capsys):  # noqa: F811
  root, workdir = again
  before = divided(config_of(root), workdir)
  remove(root, before['train'][2])
  made = root.parent / 'made'
  write_pairs(made, 16)
  for part in ('images', 'labels'):
    shutil.copy(made / part / 'case 15.png', root / part)
  capsys.readouterr()
  found = divided(config_of(root), workdir)
  assert found['val'] == before['val']
  # New ones still join.
  kept = [name for name in before['train'] if name != before['train'][2]]
  assert found['train'] == [*kept, 'case 15']
  [line] = lines_with(capsys, 'gone')
  assert 'splits.json: 1 case' in line and before['train'][2] in line
  assert resume(root, workdir)['num_cases'] == 3
  assert before['train'][2] in held_out.read(workdir).trained.values()


def test_new_cases_join_though_one_of_a_group_was_removed(tmp_path, capsys):
  root, group = tmp_path / 'pairs', r'case (\d\d)'
  write_pairs(root, 15)
  for i in range(5):  # of five a second visit, and a copy of another
    add_pair(root, f'case {i:02d}', f'case {i + 5:02d} again')
  config = config_of(root, group=group, fold_order='block')
  run = opening.open_run(config, tmp_path / 'run')
  held_out.write(held_out.record_of(run.config, run.digests), tmp_path / 'run')
  remove(root, 'case 12')
  remove(root, 'case 02')
  made = tmp_path / 'made'
  write_pairs(made, 16)
  for part in ('images', 'labels'):
    shutil.copy(made / part / 'case 15.png', root / part)
  capsys.readouterr()
  found = divided(config, tmp_path / 'run')
  assert 'case 15' in found['train']
  assert found['val'] == list(run.sources['val'].names)


def test_names_in_a_users_file_are_those_of_cases(pairs, tmp_path):
  workdir = tmp_path / 'run'
  workdir.mkdir()
  fold = {'train': [*NAMES[:10], 'case 99'], 'val': NAMES[10:]}
  (workdir / 'splits.json').write_text(json.dumps([fold]))
  with pytest.raises(InputError) as error:
    divided(config_of(pairs), workdir)
  assert_one_line(error, workdir / 'splits.json', 'case 99', 'put the files')


def test_all_that_was_held_out_removed_is_told(again):  # noqa: F811
  root, workdir = again
  for name in divided(config_of(root), workdir)['val']:
    remove(root, name)
  with pytest.raises(InputError) as error:
    resume(root, workdir)
  assert_one_line(error, 'splits.json, fold 0', "'val'", root, '--workdir')


# Groups.


@pytest.fixture(scope='module')
def visits(tmp_path_factory):
  """Returns data, workdir and CSV of a run on three visits of 5 patients."""
  folder = tmp_path_factory.mktemp('visits')
  write_pairs(folder / 'pairs', 15)
  table = folder / 'visits.csv'
  table.write_text(
    ''.join(f'{n},patient {i % 5}\n' for i, n in enumerate(NAMES))
  )
  config = config_of(folder / 'pairs', group=str(table))
  train.run(config, folder / 'run')
  return folder / 'pairs', folder / 'run', table


def test_the_record_has_groups_without_their_names(visits):
  record = held_out.read(visits[1])
  assert record.groups == {n: NAMES[i % 5] for i, n in enumerate(NAMES)}
  text = (visits[1] / 'model/model.json').read_text()
  assert not [i for i in range(5) if f'patient {i}' in text]


def test_a_group_left_out_is_named(visits):
  root, workdir, table = visits
  with pytest.raises(InputError) as error:
    resume(root, workdir)
  assert_one_line(error, 'config.data.group', str(table), workdir)


@pytest.mark.parametrize('lost', [False, True])
def test_a_table_of_groups_that_changed_is_named(visits, tmp_path, lost):
  root, workdir, table = visits
  workdir = shutil.copytree(workdir, tmp_path / 'run')
  if lost:
    (workdir / 'splits.json').unlink()
  other = tmp_path / 'other.csv'
  other.write_text(
    table.read_text().replace(f'{NAMES[5]},', 'unseen,') + f'{NAMES[5]},9\n'
  )
  with pytest.raises(InputError) as error:
    resume(root, workdir, group=str(other))
  assert_one_line(error, 'config.data.group', NAMES[0], NAMES[5], table)


def test_another_table_of_the_same_groups_will_do(visits, tmp_path):
  root, workdir, table = visits
  workdir = shutil.copytree(workdir, tmp_path / 'run')
  other = tmp_path / 'other.csv'
  other.write_text(table.read_text().replace('patient', 'p') + 'new,9\n')
  assert resume(root, workdir, group=str(other))['num_cases'] == 3


def test_a_record_from_before_there_were_groups_is_read(visits, tmp_path):
  root, workdir, table = visits
  workdir = shutil.copytree(workdir, tmp_path / 'run')
  found = json.loads((workdir / 'held_out.json').read_text())
  del found['group'], found['groups'], found['copies']
  (workdir / 'held_out.json').write_text(json.dumps(found))
  assert resume(root, workdir, group=str(table))['num_cases'] == 3
