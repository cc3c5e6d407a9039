"""Tests of the files that a run's metrics go to, and of its progress lines."""

import io
import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto import event_pb2

from medseg_jax.experiment import patch_growth
from medseg_jax.experiment.patch_growth import Stage
from medseg_jax.runtime import metric_writer, progress

_READ_BACK = """
import json, sys
import numpy as np
sys.path.append(sys.argv[1])  # there lies what must not be imported
from medseg_jax.runtime.metric_writer import MetricWriter
import medseg_jax.report.panels, medseg_jax.runtime.progress
import medseg_jax.report.summary

workdir = sys.argv[1]
with MetricWriter(workdir, resume_step=0) as writer:
  for step in (1, 2, 3):
    writer.scalars(step, 'train', {'loss': 10.0 * step})
with MetricWriter(workdir, resume_step=2) as writer:
  writer.scalars(3, 'train', {'loss': 0.5})
  writer.image(3, 'val', 'case', np.zeros((4, 5, 3), np.uint8))
names = ('tensorflow', 'jax', 'matplotlib', 'tensorboard', 'torch')
heavy = [m for m in names if m in sys.modules]

# Has tensorboard read with its own stub, which spares the test seconds.
sys.modules['tensorboard.compat.notf'] = sys
from tensorboard.backend.event_processing import event_accumulator
events = event_accumulator.EventAccumulator(workdir)
events.Reload()
image = events.Images('val/case')[0]
print(json.dumps({
  'heavy': heavy,
  'loss': [[e.step, e.value] for e in events.Scalars('train/loss')],
  'image': [image.step, image.width, image.height],
}))
"""


def _lines(workdir):
  def fail(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(x, parse_constant=fail) for x in text.splitlines()]


def _crc32c(data):
  """CRC-32C bit by bit (RFC 3720), masked as in TensorFlow's records."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _events(path):
  data, events = path.read_bytes(), []
  while data:
    (length,), (crc,) = (
      struct.unpack('<Q', data[:8]),
      struct.unpack('<I', data[8:12]),
    )
    assert crc == _crc32c(data[:8])
    body = data[12 : 12 + length]
    (crc,) = struct.unpack('<I', data[12 + length : 16 + length])
    assert crc == _crc32c(body)
    events.append(event_pb2.Event.FromString(body))
    data = data[16 + length :]
  return events


def test_metrics_file_holds_one_strict_json_object_a_line(tmp_path):
  with metric_writer.MetricWriter(tmp_path / 'new' / 'run') as writer:
    writer.scalars(100, 'train', {'loss': np.float32(0.5), 'lr': 1})
    # On disk at once: nothing is lost when the run is killed here.
    assert _lines(tmp_path / 'new' / 'run') == [
      {'step': 100, 'split': 'train', 'loss': 0.5, 'lr': 1.0}
    ]
    values = {'a': float('nan'), 'b': np.inf, 'c': None, 'd': 0.1}
    writer.scalars(np.int64(200), 'val', values)
  text = (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text()
  assert text == (
    '{"step": 100, "split": "train", "loss": 0.5, "lr": 1.0}\n'
    '{"step": 200, "split": "val", "a": null, "b": null, "c": null,'
    ' "d": 0.1}\n'
  )


def test_event_file_holds_version_scalars_and_png(tmp_path):
  array = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
  before = time.time()
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.scalars(7, 'train', {'loss': 0.25, 'undefined': None})
    writer.image(8, 'val', 'case', array)
  (path,) = tmp_path.glob('events.out.tfevents.*')
  version, scalars, image = _events(path)
  assert version.file_version == 'brain.Event:2'
  assert before <= version.wall_time <= scalars.wall_time <= time.time()
  assert scalars.step == 7
  (value,) = scalars.summary.value
  assert (value.tag, value.simple_value) == ('train/loss', 0.25)
  assert image.step == 8
  (value,) = image.summary.value
  assert value.tag == 'val/case'
  assert (value.image.height, value.image.width) == (4, 5)
  png = Image.open(io.BytesIO(value.image.encoded_image_string))
  assert png.format == 'PNG'
  np.testing.assert_array_equal(np.asarray(png), array)


def test_tensorboard_reads_a_resumed_run_and_tensorflow_is_not_needed(
  tmp_path,
):
  (tmp_path / 'torch.py').write_text('')
  done = subprocess.run(
    [sys.executable, '-c', _READ_BACK, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['heavy'] == []
  assert found['loss'] == [[1, 10.0], [2, 20.0], [3, 0.5]]
  assert found['image'] == [3, 5, 4]


def _write(workdir, steps, **kwargs):
  with metric_writer.MetricWriter(workdir, **kwargs) as writer:
    for step in steps:
      writer.scalars(step, 'train', {'loss': 1 / step})
      writer.scalars(step, 'val', {'dice': step / 10})


def test_resumed_run_gives_the_file_of_an_uninterrupted_one(tmp_path):
  _write(tmp_path / 'whole', range(1, 7), resume_step=0)
  _write(tmp_path / 'crashed', range(1, 6), resume_step=0)
  path = tmp_path / 'crashed' / 'metrics.jsonl'
  with path.open('a') as f:
    f.write('{"step": 6, "split": "tra')  # Cut short by kill -9.
  _write(tmp_path / 'crashed', range(4, 7), resume_step=3)
  whole = tmp_path / 'whole' / 'metrics.jsonl'
  assert path.read_bytes() == whole.read_bytes()
  events = list((tmp_path / 'crashed').glob('events.out.tfevents.*'))
  assert len(events) == 2  # The earlier file is kept, not written over.
  assert list((tmp_path / 'crashed').glob('.*')) == []


def test_starting_over_drops_all_lines_and_appending_none(tmp_path):
  _write(tmp_path, [1, 2])
  _write(tmp_path, [3])
  assert [x['step'] for x in _lines(tmp_path)] == [1, 1, 2, 2, 3, 3]
  _write(tmp_path, [], resume_step=0)
  assert _lines(tmp_path) == []


@pytest.mark.parametrize(
  'broken',
  [
    '{"step": 2',
    '{"step": 2}',
    'x\n',
    '3\n',
    '{"step": true}\n',
    '{"step": 2, "loss": NaN}\n',
    '\0' * 100 + '\n',
    '[' * 1_000_000 + '\n',
    '{"step": 2, "split": ' + '[' * 1_000_000 + '\n',
    '{"step": ' + '9' * 10_000 + '}\n',
    '\udcff\udcfe\n',
  ],
  ids=lambda text: text[:20].encode('utf-8', 'replace').hex(),
)
def test_broken_line_is_dropped_with_a_warning(tmp_path, caplog, broken):
  _write(tmp_path, [1])
  with (tmp_path / 'metrics.jsonl').open('ab') as f:
    f.write(os.fsencode(broken))
  _write(tmp_path, [3])
  assert [x['step'] for x in _lines(tmp_path)] == [1, 1, 3, 3]
  assert 'dropped 1 unreadable line' in caplog.text


def test_failing_rewrite_leaves_the_old_metrics(tmp_path, monkeypatch):
  _write(tmp_path, [1, 2])
  old = (tmp_path / 'metrics.jsonl').read_bytes()

  def fail(*args):
    raise OSError('disk full')

  monkeypatch.setattr(metric_writer.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    metric_writer.MetricWriter(tmp_path, resume_step=1)
  assert (tmp_path / 'metrics.jsonl').read_bytes() == old


def test_misuse_is_refused(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match="'step'"):
      writer.scalars(1, 'train', {'step': 2.0})
    with pytest.raises(ValueError, match=r'uint8 \[H, W, 3\], got float64'):
      writer.image(1, 'train', 'x', np.zeros((4, 4, 3)))
  assert _lines(tmp_path) == []


class _Clock:
  """Time that only the test moves."""

  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: self.now)


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0, '0 s'),
    (59.4, '59 s'),
    (59.6, '1 min 0 s'),
    (92, '1 min 32 s'),
    (3599.7, '1 h 0 min'),
    (7290, '2 h 2 min'),
    (86399, '1 d 0 h'),
    (93600, '1 d 2 h'),
  ],
)
def test_duration_in_words(seconds, text):
  assert progress.format_seconds(seconds) == text


def test_progress_prints_a_line_for_each_stats_in_a_log(capsys, monkeypatch):
  clock = _Clock(monkeypatch)
  bar = progress.Progress(1200, initial=390)
  clock.now += 500  # Compilation, no part of the pace.
  bar.advance()
  for _ in range(9):
    clock.now += 0.115
    bar.advance()
  bar.stats(loss=0.12341, images_per_s=85.1)
  clock.now += 60
  bar.advance()
  bar.close()
  out, err = capsys.readouterr()
  # 800 steps of 0.115 s are 92 s. After the first statistics nothing is
  # printed between them, however long that takes.
  assert out == (
    'step 391/1200\n'
    'step 400/1200  loss 0.1234  images/s 85.1  left 1 min 32 s\n'
  )
  assert err == ''


def test_progress_without_stats_prints_every_ten_seconds(capsys, monkeypatch):
  clock = _Clock(monkeypatch)
  with progress.Progress(25, unit='case', desc='prepare') as bar:
    for _ in range(25):
      clock.now += 1
      bar.advance()
    bar.write('a word in between')
  assert capsys.readouterr().out.splitlines() == [
    'prepare: case 10/25  left 15 s',
    'prepare: case 20/25  left 5 s',
    'a word in between',
    'prepare: case 25/25  took 25 s',
  ]


def test_progress_knows_that_later_steps_take_longer(capsys, monkeypatch):
  clock = _Clock(monkeypatch)
  stages = (Stage(0, 100, (8, 8)), Stage(100, 200, (16, 16)))
  with progress.Progress(200, effort=patch_growth.effort_of(stages)) as bar:
    for step in range(150):
      clock.now += 1 if step < 100 else 4
      bar.advance()
      if step in (49, 149):
        bar.stats()
  # Left are 50 steps of 1 s and 100 of 4 s; then 50 of 4 s.
  assert capsys.readouterr().out.splitlines()[-2:] == [
    'step 50/200  left 7 min 30 s',
    'step 150/200  left 3 min 20 s',
  ]


def test_progress_within_a_unit_that_takes_long(capsys, monkeypatch):
  clock = _Clock(monkeypatch)
  with progress.Progress(2, unit='case', desc='predict') as bar:
    for share in (0.02, 0.25, 0.5, 0.75, 1.0):
      clock.now += 46 * 0.25 if share > 0.02 else 9
      bar.within(share)
    bar.advance()
    clock.now += 3
    bar.failed(1)
  assert capsys.readouterr().out.splitlines() == [
    'predict: case 0/2, 25% of the next  left 1 min 28 s',
    'predict: case 0/2, 50% of the next  left 1 min 12 s',
    'predict: case 0/2, 75% of the next  left 59 s',
    'predict: case 0/2, 100% of the next  left 47 s',
    'predict: case 2/2, 1 failed  took 58 s',
  ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  out, err = Terminal(), Terminal()
  monkeypatch.setattr(sys, 'stdout', out)
  monkeypatch.setattr(sys, 'stderr', err)
  with progress.Progress(4, initial=1, desc='train') as bar:
    bar.advance()
    bar.stats(loss=0.5, images_per_s=12.0)
    bar.write('saved')
    bar.advance(2)
  assert out.getvalue().splitlines() == ['saved']
  last = err.getvalue().split('\r')[-1]
  assert last.startswith('train: step 4/4 |#')
  assert 'left 0 s' in last and 'loss 0.5, images/s 12' in last
