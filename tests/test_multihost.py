"""Several processes are one run: it decides, writes and ends as one does."""

import json
import signal

import conftest
import many
import numpy as np
import pytest
from small import load
from test_resume import latest, wait_for_step, without_clocks

from medseg_jax.experiment import config_files, sources
from medseg_jax.programs import predict
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError

# The steps of a run do not depend on where its end is.
WITHOUT_END = {
  'eval_every': 0,
  'schedule.name': 'constant',
  'schedule.warmup_fraction': 0,
}
# Without augmentation, which others here have, it compiles sooner.
ENDLESS = WITHOUT_END | {
  'num_steps': 10**6,
  **{f'augment.{kind}_prob': 0.0 for kind in ('warp', 'contrast', 'noise')},
  'augment.brightness_prob': 0.0,
}
GROWS = {'patch_growth': '(0.5, 1.0)'}
FEW_STEPS = """
from medseg_jax.experiment import patch_growth
patch_growth.LEAST_STEPS = 1
"""
NOTHING_HELD_OUT = {'data.phantom.num_val': 0, 'data.phantom.num_test': 0}


def files(workdir):
  """Returns the names of what a run has left, without what a clock names."""
  return sorted(
    str(path.relative_to(workdir))
    for path in workdir.rglob('*')
    if path.is_file() and 'checkpoints' not in str(path)
    if not path.name.startswith('events')
  )


CASES = [
  *(f'test_{i:04d}' for i in range(3)),
  *(f'train_{i:04d}' for i in range(6)),
  *(f'val_{i:04d}' for i in range(2)),
]
# Notes each case that is written to the cache, and each process's own disk.
PREPARES = """
import os
from medseg_jax.data import cache
write = cache._write_case
def write_and_note(source, index, *rest):
  with open(os.environ['XDG_CACHE_HOME'] + '.txt', 'a') as file:
    file.write(source.names[index] + '\\n')
  return write(source, index, *rest)
cache._write_case = write_and_note
"""
OWN_DISK = """
import os
os.environ['XDG_CACHE_HOME'] += os.environ['JAX_PROCESS_ID']
"""


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """Returns the workdir of a run of one process with four devices."""
  folder = tmp_path_factory.mktemp('alone')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    many.run(folder / 'run', processes=1, devices=4, before=FEW_STEPS, **GROWS)
  return folder / 'run'


def prepared(cache):
  """Returns the names of the cases that `PREPARES` has noted, ascending."""
  return sorted(cache.with_name(f'{cache.name}.txt').read_text().split())


def check_same(one, other):
  """Checks that two runs have left the same weights and numbers, to the bit."""
  for a, b in zip(many.arrays(one), many.arrays(other), strict=True):
    np.testing.assert_array_equal(a, b)
  assert without_clocks(one) == without_clocks(other)
  for name in ('summary.json', 'cases.csv'):
    place = f'evaluation/test/{name}'
    assert (one / place).read_bytes() == (other / place).read_bytes()


def test_two_processes_are_one_run(tmp_path, alone):
  two = tmp_path / 'two'
  first, second = many.run(
    two, processes=2, devices=2, before=FEW_STEPS + PREPARES, **GROWS
  )
  assert 'model     ' in first and second == '', (first, second)
  check_same(alone, two)
  assert files(alone) == files(two)
  assert len(list(two.glob('events*'))) == 1
  assert prepared(tmp_path / 'user_cache') == CASES

  many.run(two, '--mode=evaluate', processes=2)
  check_same(alone, two)
  # A third process finds no case of its own, and waits for nobody.
  images = tmp_path / 'images'
  conftest.write_pairs(images, 2, size=24)
  first, *others = many.run(
    two,
    *('--mode=predict', f'--input={images}/images', f'--output={two}/masks'),
    processes=3,
  )
  assert first and others == ['', '']
  one = tmp_path / 'masks'
  predict.run(
    config_files.read_config(alone),
    alone,
    input_path=images / 'images',
    output_dir=one,
  )
  assert files(one) == files(two / 'masks')
  masks = sorted(one.glob('*.png'))
  for mask in masks:
    assert mask.read_bytes() == (two / 'masks' / mask.name).read_bytes()
  lines = (two / 'masks' / 'predictions.jsonl').read_text().splitlines()
  assert len({json.loads(line)['mask'] for line in lines}) == len(lines) == 2
  assert len(masks) == 2


def test_processes_with_disks_of_their_own_are_one_run(tmp_path, alone):
  two = tmp_path / 'two'
  many.run(
    two, processes=2, devices=2, before=FEW_STEPS + OWN_DISK + PREPARES, **GROWS
  )
  check_same(alone, two)
  for i in range(2):
    assert prepared(tmp_path / f'user_cache{i}') == CASES


def test_an_image_may_be_split_between_processes(tmp_path):
  mesh = {'mesh.data': 1, 'mesh.spatial': 2, **WITHOUT_END, **NOTHING_HELD_OUT}
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  many.run(whole, processes=1, devices=2, **mesh)
  many.run(broken, processes=2, **mesh | {'num_steps': 2})
  [text] = many.run(broken, processes=1, devices=2, **mesh)
  assert 'going on from step 2' in text
  for a, b in zip(many.arrays(whole), many.arrays(broken), strict=True):
    np.testing.assert_array_equal(a, b)


def test_stopped_and_killed_it_goes_on_with_another_division(tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  started = many.start(broken, processes=2, **ENDLESS)
  wait_for_step(broken, 2, started[1])
  started[1].send_signal(signal.SIGTERM)
  assert many.wait(started) == [143, 143]
  first, second = many.printed(broken, 2)
  stopped = latest(broken)
  assert f'SIGTERM at step {stopped}: saved' in first and not second

  started = many.start(broken, processes=2, **ENDLESS)
  wait_for_step(broken, stopped + 1, started[0])
  started[1].kill()
  status, killed = many.wait(started)
  # To be started again: found by a sum that fails, or by JAX, which aborts.
  assert killed == -signal.SIGKILL and status in (75, -signal.SIGABRT)

  kept = latest(broken)
  end = ENDLESS | {'num_steps': kept + 1}
  [text] = many.run(broken, processes=1, devices=2, **end)
  assert f'going on from step {kept}' in text and 'damaged' not in text
  many.run(whole, processes=1, devices=2, **end)
  for a, b in zip(many.arrays(whole), many.arrays(broken), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_exception_of_one_in_the_middle_ends_all(tmp_path):
  fails = """
import os
from medseg_jax.runtime.progress import Progress
advance = Progress.advance
def advance_or_fail(self, n=1):
  advance(self, n)
  one = os.environ['JAX_PROCESS_ID'] == '1'
  if one and self._unit == 'step' and self._count == 3:
    raise ZeroDivisionError('in the middle')
Progress.advance = advance_or_fail
"""
  run = tmp_path / 'run'
  started = many.start(
    run, processes=2, before=fails, **ENDLESS | NOTHING_HELD_OUT
  )
  assert many.wait(started) == [1, 1]
  first, second = many.printed(run, 2)
  assert second == (
    'error: ZeroDivisionError: in the middle (--debug tells where)\n'
  )
  assert 'compiled' in first and 'error' not in first


def test_an_error_of_one_is_one_line_and_ends_all(tmp_path):
  run = tmp_path / 'run'
  started = many.start(run, processes=3, only=(1, '--config.optimiser=adam'))
  assert many.wait(started) == [1, 1, 1]
  lines = ''.join(many.printed(run, 3)).splitlines()
  assert [line for line in lines if 'did you mean' in line] == [
    'error: unknown key config.optimiser; did you mean config.optimizer?'
  ]


def test_an_error_of_all_is_one_line(tmp_path):
  run = tmp_path / 'run'
  nowhere = {'data.source': 'folder', 'data.path': tmp_path / 'nowhere'}
  assert many.wait(many.start(run, processes=2, **nowhere)) == [1, 1]
  first, second = many.printed(run, 2)
  assert first.count('error: ') == 1 and 'nowhere' in first and not second


def test_what_is_passed_on_and_what_is_shared(tmp_path):
  passes = """
import sys
from medseg_jax.experiment import sources
from medseg_jax.runtime import host_memory, multihost
from medseg_jax.runtime.errors import InputError
multihost.start()
# What the primary does alone is whole; and two of one host share its memory.
assert multihost.from_primary(lambda: multihost.share('abc')) == [*'abc']
host_memory._left_on_machine = lambda: 8e9
host_memory._left_in_cgroups = lambda: 6e9
assert host_memory.available() == 3e9
# What all have read is not kept.
for _ in range(3):
  large = [bytes([multihost.index()]) * 10**7]
  assert multihost.gather(large) == [[bytes([i]) * 10**7] for i in range(2)]
  assert multihost.from_primary(lambda: 'decided') == 'decided'
multihost.barrier()
held = multihost._client().key_value_dir_get_bytes('medseg')
assert sum(len(value) for _, value in held) < 1000, held
multihost.finish()
multihost.leave(7)
"""
  started = many.start(tmp_path / 'run', processes=2, before=passes)
  assert many.wait(started) == [7, 7], many.printed(tmp_path / 'run', 2)


@pytest.mark.parametrize(
  ('sizes', 'shares', 'dealt'),
  [
    ([5, 1, 9, 4, 4], 2, [[2, 4], [0, 1, 3]]),  # 13 and 10
    ([0] * 5, 2, [[0, 2, 4], [1, 3]]),
    ([3, 2], 3, [[0], [1], []]),
    ([], 2, [[], []]),
  ],
)
def test_shares_take_about_alike(sizes, shares, dealt):
  assert multihost.deal(sizes, shares) == dealt


def test_sizes_of_cases_are_those_of_their_images(tmp_path):
  for name, write in (
    ('folder', conftest.write_pairs),
    ('volumes', conftest.write_volumes),
  ):
    config = load('unet')
    config.data.source, config.data.path = name, str(tmp_path / name)
    write(tmp_path / name / ('train' if name == 'folder' else ''), 3)
    source = sources.open_all(config)['train']
    images = ('images', 'imagesTr')[name == 'volumes']
    found = sorted((tmp_path / name).rglob(f'{images}/*'))
    assert sources.sizes(source) == [path.stat().st_size for path in found]
    found[1].unlink()
    assert sources.sizes(source)[1] == 0
  phantoms = sources.open_all(load('unet'))['test']
  assert sources.sizes(phantoms) == [0] * len(phantoms)


def test_another_one_gone_is_no_fault_of_a_file(monkeypatch):
  monkeypatch.setattr(multihost, 'count', lambda: 2)
  lost = 'UNKNOWN: Gloo AllGather failed: Connection reset by peer'
  try:
    try:
      raise ValueError(lost)
    except ValueError as error:
      raise InputError('cannot save the latest checkpoint') from error
  except InputError as error:
    assert multihost.loss(error) == lost
  assert not multihost.loss(InputError('gloo/case.png: is no image'))
  assert not multihost.loss(BlockingIOError(11, 'unavailable:', 'nccl'))
