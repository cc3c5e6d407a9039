"""How several processes end before their work is done, and go on with it."""

import signal
import time

import many
from conftest import write_pairs
from predict_cases import masks
from small import load, shrink, write_untrained

from medseg_jax.experiment import config_files
from medseg_jax.programs import predict, prepare

# Each holds after two of its own masks until a signal comes; the first signal
# is then for the program to see, as ever.
HOLDS_MASKS = """
import time
from medseg_jax.experiment import prediction_files
from medseg_jax.runtime import stop_signal
write, written = prediction_files.write, []
def write_and_hold(*args, **named):
  write(*args, **named)
  written.append(None)
  while len(written) == 2 and not stop_signal.asked():
    time.sleep(0.05)
prediction_files.write = write_and_hold
"""
HOLDS_CASES = """
import time
from medseg_jax.data import cache
from medseg_jax.runtime import stop_signal
write = cache._write_case
def write_and_hold(*args):
  entry = write(*args)
  while not stop_signal.asked():
    time.sleep(0.05)
  return entry
cache._write_case = write_and_hold
cache.num_workers = lambda bytes_each=0.0: 1
"""


def wait_for(number, found, started):
  """Returns once `found` returns so many, of a run that still runs."""
  while len(found()) < number:
    assert all(process.poll() is None for process in started)
    time.sleep(0.05)


def test_the_primary_ends_what_it_decides_and_all_leave_as_was_claimed(
  tmp_path,
):
  program = f"""
import time
from medseg_jax.runtime import multihost, stop_signal
from medseg_jax.runtime.errors import Stopped
multihost.start()
def decide():
  multihost._client().blocking_key_value_get(multihost._END, 10**6)
  time.sleep(3)  # to leave at once would take one
  try:
    while True:  # a long decision looks, as all that is long, for a signal
      stop_signal.check()
      time.sleep(0.05)
  except Stopped:
    with open({str(tmp_path / 'decision')!r}, 'w') as file:
      file.write('whole')
    # An error of its own, say, came later than the other's claim.
    assert not multihost.speaks(1)
    multihost.leave(1)
with stop_signal.noted():
  if multihost.is_primary():
    multihost.from_primary(decide)
  assert multihost.speaks(143)
  multihost.leave(143)
"""
  run = tmp_path / 'run'
  started = many.start(run, processes=2, before=program)
  assert many.wait(started) == [143, 143], many.printed(run, 2)
  assert (tmp_path / 'decision').read_text() == 'whole'


def test_help_is_told_once_and_no_failure(tmp_path):
  first, second = many.run(tmp_path / 'run', '--help', processes=2)
  assert '--workdir' in first and second == ''


def test_a_prediction_stopped_and_killed_goes_on(tmp_path):
  write_untrained(shrink(load('unet')), tmp_path / 'run')
  write_pairs(tmp_path / 'in', 12, size=24)

  def flags(output):
    return (
      '--mode=predict',
      f'--input={tmp_path}/in/images',
      f'--output={output}',
    )

  def start():
    return many.start(
      tmp_path / 'run', *flags(out), processes=2, before=HOLDS_MASKS
    )

  whole, out = tmp_path / 'whole', tmp_path / 'out'
  predict.run(
    config_files.read_config(tmp_path / 'run'),
    tmp_path / 'run',
    input_path=tmp_path / 'in' / 'images',
    output_dir=whole,
  )
  started = start()
  wait_for(4, lambda: masks(out), started)
  started[1].send_signal(signal.SIGTERM)
  assert many.wait(started) == [143, 143]
  first, second = many.printed(tmp_path / 'run', 2)
  assert second == 'stopped by SIGTERM\n' and 'stopped' not in first

  started = start()
  wait_for(8, lambda: masks(out), started)
  started[0].kill()  # with it, the store of all
  killed, status = many.wait(started)
  assert killed == -signal.SIGKILL and status in (75, -signal.SIGABRT)

  first, _ = many.run(tmp_path / 'run', *flags(out), processes=2)
  assert 'kept      8 masks' in first
  assert masks(out) == masks(whole) and len(masks(out)) == 12


def test_a_preparation_stopped_goes_on(tmp_path, monkeypatch):
  keys = {'num_train': 8, 'num_val': 0, 'num_test': 0}
  flags = (
    '--mode=prepare',
    '--config=configs/unet.py',
    *(f'--config.data.phantom.{key}={value}' for key, value in keys.items()),
    '--config.patch_size=(16, 16)',
  )

  def cases(folder):
    return {
      str(path.relative_to(folder)): path.read_bytes()
      for entry in folder.rglob('case.json')
      for path in entry.parent.iterdir()
    }

  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  monkeypatch.setenv('XDG_CACHE_HOME', str(whole))
  config = load('unet')
  config.data.phantom.update(keys)
  config.patch_size = (16, 16)
  prepare.run(config, tmp_path / 'run')
  monkeypatch.setenv('XDG_CACHE_HOME', str(broken))
  started = many.start(
    tmp_path / 'run', *flags, processes=2, before=HOLDS_CASES
  )
  wait_for(2, lambda: [*broken.rglob('case.json')], started)
  started[0].send_signal(signal.SIGTERM)
  assert many.wait(started) == [143, 143]
  assert 0 < len([*broken.rglob('case.json')]) < 8
  many.run(tmp_path / 'run', *flags, processes=2)
  assert cases(broken) == cases(whole) and cases(whole)
