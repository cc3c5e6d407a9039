"""Checkpoints that were damaged after they were saved."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import HANG_S, ROOT
from data_cases import assert_one_line

from medseg_jax.runtime import checkpoint_files
from medseg_jax.runtime.checkpoint import BEST, LATEST, Checkpoints
from medseg_jax.runtime.errors import InputError


def state_of(step):
  """Returns a state that differs in every array from that of another step."""
  rng = np.random.default_rng(step)
  return {
    'params': {
      'a': jax.numpy.asarray(rng.normal(size=5000), np.float32),
      'b': jax.numpy.asarray(rng.normal(size=(3, 4)), np.float32),
    },
    'opt_state': (jax.numpy.int32(step),),
  }


def wanted(names=('params', 'opt_state'), shape=(3, 4)):
  """Returns a function from what was saved to what is asked for."""
  state = state_of(0)
  state['params']['b'] = jax.numpy.zeros(shape)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
  )
  return lambda saved: {name: abstract[name] for name in names}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns the checkpoints of the steps 1 and 2, of which 2 is the best."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  checkpoints = Checkpoints(folder, writes=True)
  for step in (1, 2):
    checkpoints.save(LATEST, step, state_of(step), {})
  checkpoints.save(BEST, 2, state_of(2), {'dice': 0.75})
  checkpoints.wait()
  checkpoints.close()
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """Returns a copy of `saved` to damage."""
  return shutil.copytree(saved, tmp_path / 'checkpoints')


def largest(folder):
  """Returns the file of the weights."""
  return max(folder.rglob('*'), key=lambda path: path.stat().st_size)


def truncated(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
  path.write_bytes(b'')


def zeroed(path):
  path.write_bytes(bytes(path.stat().st_size))


def garbled(path):
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 8] = bytes(
    byte ^ 0x55 for byte in content[middle : middle + 8]
  )
  path.write_bytes(content)


def deleted(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


WAYS = [
  (damage, what)
  for what in (
    'weights',
    'state/_METADATA',
    'state/manifest.ocdbt',
    'state/d/*',
  )
  for damage in (truncated, emptied, zeroed, garbled, deleted)
] + [
  (deleted, 'state'),
  *((d, '_CHECKPOINT_METADATA') for d in (truncated, zeroed, garbled, deleted)),
  (truncated, 'state/array_metadatas/*'),
]


def damage_newest(folder, damage, what):
  """Damages the newest of a kind, `folder`."""
  newest = max(folder.iterdir())
  [path] = [largest(newest)] if what == 'weights' else newest.glob(what)
  damage(path)


def assert_state(parts, step):
  for got, expected in zip(
    jax.tree.leaves(parts), jax.tree.leaves(state_of(step)), strict=True
  ):
    np.testing.assert_array_equal(got, expected)


def contents(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


@pytest.mark.parametrize(
  ('damage', 'what'),
  WAYS,
  ids=lambda x: x if isinstance(x, str) else x.__name__,
)
def test_the_one_before_a_damaged_checkpoint_is_used(
  damage, what, folder, capfd
):
  damage_newest(folder / LATEST, damage, what)
  before = contents(folder / LATEST / '2')
  # Whoever only looks says so, and leaves it where it is.
  reader = Checkpoints(folder)
  restored = reader.restore(LATEST, wanted())
  assert restored.step == 1
  assert_state(restored.parts, 1)
  out, err = capfd.readouterr()
  assert out.count('\n') == 1 and not err
  assert f'{folder}/latest/2 is damaged: ' in out
  assert out.endswith('; step 1 is used\n') and len(out) < 400
  assert (folder / LATEST / '2').exists()

  writer = Checkpoints(folder, writes=True)
  restored = writer.restore(LATEST, wanted())
  assert restored.step == 1
  assert_state(restored.parts, 1)
  aside = folder / 'damaged' / 'latest-2'
  out, err = capfd.readouterr()
  assert f'moved to {aside}; step 1 is used' in out and not err
  assert contents(aside) == before  # nothing is lost
  # And training goes on, over the same step.
  for step in (2, 3):
    writer.save(LATEST, step, state_of(step), {})
  writer.wait()
  assert_state(writer.restore(LATEST, wanted()).parts, 3)
  assert writer.steps(LATEST) == [2, 3]
  writer.close()
  assert capfd.readouterr() == ('', '')


def test_what_is_named(folder, capsys):
  for damage, what, words in (
    (garbled, 'weights', 'is not what was saved'),
    (deleted, 'state', 'its folder state is missing'),
    (truncated, 'weights', 'its arrays, in state, cannot be read'),
    (deleted, 'state/d/*', 'cannot be read, as it is not there'),
    (truncated, 'state/_METADATA', 'state/_METADATA cannot be read'),
    (garbled, 'state/manifest.ocdbt', 'state/manifest.ocdbt cannot be read'),
    (deleted, 'state/manifest.ocdbt', 'its arrays, in state, cannot be read'),
    (zeroed, '_CHECKPOINT_METADATA', '_CHECKPOINT_METADATA cannot be read'),
  ):
    kept = shutil.copytree(folder / LATEST, folder / 'kept')
    damage_newest(folder / LATEST, damage, what)
    Checkpoints(folder).restore(LATEST, wanted())
    assert words in capsys.readouterr().out, words
    shutil.rmtree(folder / LATEST)
    kept.rename(folder / LATEST)


def test_nothing_of_orbax_is_printed_later(folder):
  code = f"""
import gc, sys
sys.path.insert(0, {str(ROOT / 'tests')!r})
import test_checkpoint as t
from medseg_jax.runtime.checkpoint import Checkpoints
print(Checkpoints({str(folder)!r}).restore('latest', t.wanted()).step)
gc.collect()
"""
  newest = folder / LATEST / '2'
  shutil.copytree(newest, folder / LATEST / '3')
  zeroed(newest / 'state' / 'manifest.ocdbt')
  truncated(largest(folder / LATEST / '3'))
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0 and done.stderr == ''
  assert done.stdout.count('\n') == 3


def test_what_is_not_needed_may_be_damaged(folder, capfd):
  for what in ('_sharding', 'ocdbt.process_0/manifest.ocdbt'):
    damage_newest(folder / LATEST, zeroed, f'state/{what}')
  assert_state(Checkpoints(folder).restore(LATEST, wanted()).parts, 2)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('number', ['99', '7'])
def test_an_empty_folder_or_a_file_is_no_checkpoint(number, folder, capsys):
  (folder / LATEST / number).mkdir()
  (folder / LATEST / f'{number}00').write_text('notes')
  (folder / LATEST / 'notes.txt').write_text('stays')
  writer = Checkpoints(folder, writes=True)
  assert writer.restore(LATEST, wanted()).step == 2
  out = capsys.readouterr().out
  assert 'it is an empty folder' in out and 'it is no folder' in out
  assert out.count('\n') == 2
  writer.save(LATEST, 3, state_of(3), {})
  writer.wait()
  writer.close()
  assert sorted(p.name for p in (folder / LATEST).iterdir()) == [
    '2',
    '3',
    'notes.txt',
  ]


def test_the_same_step_damaged_twice_is_set_aside_twice(folder):
  deleted(folder / LATEST / '2' / 'state')
  for name in ('latest-2', 'latest-2-2'):
    (folder / LATEST / '2').mkdir(exist_ok=True)
    writer = Checkpoints(folder, writes=True)
    assert writer.restore(LATEST, wanted()).step == 1
    assert (folder / 'damaged' / name).is_dir()


def test_without_a_whole_one_nothing_is_moved(folder):
  for step in ('1', '2'):
    largest(folder / LATEST / step).unlink()
  before = contents(folder)
  with pytest.raises(InputError) as error:
    Checkpoints(folder, writes=True).restore(LATEST, wanted())
  assert_one_line(
    error,
    f'{folder}/latest/2 is damaged: ',
    'so is 1 older one',
    'begin anew',
  )
  assert contents(folder) == before and not (folder / 'damaged').exists()


def test_a_damaged_best_one_is_told_and_nothing_else_is_taken(folder):
  for writes in (False, True):
    garbled(largest(folder / BEST))
    with pytest.raises(InputError) as error:
      Checkpoints(folder, writes=writes).restore(BEST, wanted())
    assert_one_line(error, f'{folder}/best/2 is damaged: ', 'move it away')
    garbled(largest(folder / BEST))  # undoes it
    assert Checkpoints(folder).metadata(BEST) == {'dice': 0.75}
    path = folder / BEST / '2' / '_CHECKPOINT_METADATA'
    text = path.read_text()
    path.write_text(text.replace('0.75', '0.85'))
    with pytest.raises(
      InputError, match='damaged: _CHECKPOINT_METADATA is not'
    ):
      Checkpoints(folder, writes=writes).metadata(BEST)
    path.write_text(text)


def test_another_model_is_said_of_whole_checkpoints_only(folder, capsys):
  other = wanted(shape=(3, 5))
  with pytest.raises(InputError, match=r'2 are of another model: .*\(3, 5\)'):
    Checkpoints(folder, writes=True).restore(LATEST, other)
  damage_newest(folder / LATEST, garbled, 'weights')
  with pytest.raises(InputError, match='latest/1 are of another model'):
    Checkpoints(folder, writes=True).restore(LATEST, other)
  assert not (folder / 'damaged').exists() and not capsys.readouterr().out
  # More than is asked for is another model, too, unless parts will do.
  part = wanted(names=['params'])
  with pytest.raises(InputError, match='of another model: opt_state/0'):
    Checkpoints(folder).restore(LATEST, part)
  parts = Checkpoints(folder).restore(LATEST, part, whole=False).parts
  assert parts.keys() == {'params'}


@pytest.mark.parametrize(
  'fault',
  [
    MemoryError(),
    PermissionError(13, 'Permission denied'),
    ValueError('RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes'),
  ],
)
def test_what_the_machine_lacks_is_no_damage(fault, folder, monkeypatch):
  def load(path, abstract):
    raise ValueError('cannot be read') from fault

  monkeypatch.setattr(checkpoint_files.ocp, 'load', load)
  before = contents(folder)
  with pytest.raises(InputError) as error:
    Checkpoints(folder, writes=True).restore(LATEST, wanted())
  assert_one_line(error, f'cannot read the checkpoint {folder}/latest/2: ')
  assert 'damaged' not in str(error.value)
  assert contents(folder) == before


def test_a_checkpoint_without_checksums_is_read(folder, capsys):
  path = folder / LATEST / '2' / '_CHECKPOINT_METADATA'
  about = json.loads(path.read_text())
  about['custom_metadata'] = {'dice': 0.5}  # as an earlier version wrote it
  path.write_text(json.dumps(about))
  restored = Checkpoints(folder).restore(LATEST, wanted())
  assert restored.step == 2 and restored.metadata == {'dice': 0.5}
  assert_state(restored.parts, 2)
  with pytest.raises(InputError, match='of another model'):
    Checkpoints(folder).restore(LATEST, wanted(shape=(4, 4)))
  damage_newest(folder / LATEST, truncated, 'state/_METADATA')
  assert Checkpoints(folder).restore(LATEST, wanted()).step == 1
