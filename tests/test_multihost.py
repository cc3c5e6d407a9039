"""Several processes are one run: it decides, writes and ends as one does."""

import json
import signal

import conftest
import many
import numpy as np
from test_resume import latest, wait_for_step, without_clocks

# A run without an end of its own, whose steps do not depend on that end.
ENDLESS = {
  'num_steps': 10**6,
  'eval_every': 0,
  'schedule.name': 'constant',
  'schedule.warmup_fraction': 0,
}


def files(workdir):
  """Returns the names of what a run has left, without what a clock names."""
  return sorted(
    str(path.relative_to(workdir))
    for path in workdir.rglob('*')
    if path.is_file() and 'checkpoints' not in str(path)
    if not path.name.startswith('events')
  )


def test_two_processes_are_one_run(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  [alone] = many.run(one, processes=1, devices=2)
  first, second = many.run(two, processes=2)
  assert 'model     ' in first and second == '', (first, second)
  for a, b in zip(many.arrays(one), many.arrays(two), strict=True):
    np.testing.assert_array_equal(a, b)
  assert without_clocks(one) == without_clocks(two)
  assert files(one) == files(two)
  assert len(list(two.glob('events*'))) == 1
  for name in ('summary.json', 'cases.csv'):
    place = f'evaluation/test/{name}'
    assert (one / place).read_bytes() == (two / place).read_bytes()

  # A third process finds no case of its own, and waits for nobody.
  images = tmp_path / 'images'
  conftest.write_pairs(images, 2, size=24)
  for flags in (
    ('--mode=evaluate', '--split=val'),
    ('--mode=predict', f'--input={images}/images', f'--output={two}/masks'),
  ):
    first, *others = many.run(two, *flags, processes=3)
    assert first and others == ['', '']
    if '--mode=predict' in flags:
      flags = (*flags[:2], f'--output={one}/masks')
    many.run(one, *flags, processes=1)
  for name in ('evaluation/val/summary.json', 'evaluation/val/cases.csv'):
    assert (one / name).read_bytes() == (two / name).read_bytes()
  assert files(one) == files(two)
  for mask in sorted((one / 'masks').glob('*.png')):
    assert mask.read_bytes() == (two / 'masks' / mask.name).read_bytes()
  lines = (two / 'masks' / 'predictions.jsonl').read_text().splitlines()
  assert len({json.loads(line)['mask'] for line in lines}) == len(lines) == 2


def test_a_signal_to_one_stops_all_and_another_division_goes_on(tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  started = many.start(broken, processes=2, **ENDLESS)
  wait_for_step(broken, 2, started[1])
  started[1].send_signal(signal.SIGTERM)
  assert many.wait(started) == [143, 143]
  first, second = many.printed(broken, 2)
  stopped = latest(broken)
  assert f'SIGTERM at step {stopped}: saved' in first and not second
  end = ENDLESS | {'num_steps': stopped + 1}
  [text] = many.run(broken, processes=1, devices=2, **end)
  assert f'going on from step {stopped}' in text
  many.run(whole, processes=1, devices=2, **end)
  for a, b in zip(many.arrays(whole), many.arrays(broken), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_death_of_one_ends_all(tmp_path):
  started = many.start(tmp_path / 'run', processes=2, **ENDLESS)
  wait_for_step(tmp_path / 'run', 2, started[1])
  started[1].kill()
  status, killed = many.wait(started)
  # To be started again: found by a sum that fails, or by JAX, which aborts.
  assert killed == -signal.SIGKILL and status in (75, -signal.SIGABRT)


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
