"""Services that a run is logged to: what they get, and what they cannot do."""

import importlib.util
import json
import math
import subprocess
import sys
import threading
import types

import pytest
from conftest import HANG_S, ROOT
from small import load, shrink

from medseg_jax.programs import train
from medseg_jax.runtime import run_logs
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.metric_writer import MetricWriter

CONFIG = {
  'loggers': {'wandb': '', 'mlflow': ''},
  'optimizer': {'name': 'adam', 'learning_rate': 0.5},
  'patch_size': (8, 16),
}
# What a run does, in a process of its own, in the folder of the test.
RUN = """
import json, pathlib, sys
from medseg_jax.runtime import run_logs
from medseg_jax.runtime.metric_writer import MetricWriter
run_logs._SECONDS_AT_END = 1000  # a busy machine
config, workdir = json.loads(sys.argv[1]), pathlib.Path('run')
def logged(first, steps, summary):
  with run_logs.opened() as logs:
    logs.begin(config, workdir, first)
    with MetricWriter(workdir, resume_step=first, logs=logs) as writer:
      for step in steps:
        writer.scalars(step, 'train', {'loss': 1 / step, 'none': None})
        writer.scalars(step, 'val', {'dice a+b': step / 10, 'x': float('inf')})
    logs.summary(summary)
workdir.mkdir()
try:
  with run_logs.opened() as logs:
    logs.begin(config, workdir, 0)
    logs.scalars(1, 'train', {'loss': 1.0})
    raise KeyError('killed')
except KeyError:
  pass
logged(1, (2, 4), {'split': 'val', 'mean': {'dice': 0.75}, 'ci': [0, 1]})
"""
# Records as in LevelDB's logs: parts with a head of 7 bytes, in blocks
# of 32 KiB, of which the first begins with 7 bytes of its own.
WANDB_READ = """
import json, pathlib, struct
from wandb.proto import wandb_internal_pb2 as pb
def records(data):
  at, whole = 7, b''
  while at < len(data):
    if 32768 - at % 32768 < 7:
      at += -at % 32768
      continue
    _, length, kind = struct.unpack('<IHB', data[at : at + 7])
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
      yield pb.Record.FromString(whole)
      whole = b''
def named(items):
  return {
    item.key or '/'.join(item.nested_key): json.loads(item.value_json)
    for item in items}
for path in sorted(pathlib.Path('run').glob('wandb/offline-run-*/run-*.wandb')):
  found = {'history': [], 'summary': {}, 'config': {}}
  for record in records(path.read_bytes()):
    kind = record.WhichOneof('record_type')
    if kind == 'run':
      found['run'] = [record.run.project, record.run.run_id]
      found['config'] |= named(record.run.config.update)
    if kind == 'history':
      found['history'].append(named(record.history.item))
    if kind == 'summary':
      found['summary'] |= named(record.summary.update)
    if kind == 'exit':
      found['exit'] = record.exit.exit_code
  print(json.dumps(found))
"""


def run(folder, kind, code, **environment):
  """Runs code with a config that asks for a service; returns its output."""
  config = CONFIG | {'loggers': CONFIG['loggers'] | {kind: 'discs'}}
  done = subprocess.run(
    [sys.executable, '-c', code, json.dumps(config)],
    cwd=folder,
    env={'PATH': '/usr/bin:/bin', 'PYTHONPATH': str(ROOT), 'HOME': str(folder)}
    | environment,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, done.stderr


def needs(name):
  return pytest.mark.skipif(
    importlib.util.find_spec(name) is None,
    reason=f'{name} is not installed; pip install -e ".[{name}]"',
  )


@needs('mlflow')
def test_mlflow_holds_config_metrics_and_summary(tmp_path):
  store = f'sqlite:///{tmp_path}/mlflow.db'
  read = f"""
from mlflow.tracking import MlflowClient
client = MlflowClient({store!r})
place = client.get_experiment_by_name('discs').experiment_id
(run,) = client.search_runs([place])
print(json.dumps([run.info.status, run.info.run_name, run.data.params] + [
  [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, key)]
  for key in ('train/loss', 'val/dice a_b', 'final/mean/dice')]
  + [sorted(run.data.metrics)]))
"""
  out, err = run(tmp_path, 'mlflow', RUN + read, MLFLOW_TRACKING_URI=store)
  assert 'logs no further' not in err, err
  status, name, params, loss, dice, final, keys = json.loads(
    out.splitlines()[-1]
  )
  assert (status, name) == ('FINISHED', 'run')
  assert params['optimizer.learning_rate'] == '0.5'
  assert params['patch_size'] == '[8, 16]' and params['loggers.mlflow']
  assert loss == [[1, 1.0], [2, 0.5], [4, 0.25]]
  assert dice == [[2, 0.2], [4, 0.4]]
  assert final == [[4, 0.75]]
  assert keys == ['final/mean/dice', 'train/loss', 'val/dice a_b']


@needs('wandb')
def test_wandb_offline_holds_config_metrics_and_summary(tmp_path):
  _, err = run(tmp_path, 'wandb', RUN, WANDB_MODE='offline')
  assert err == ''
  # wandb's own process writes the last records when the one that logs ends.
  out, _ = run(tmp_path, 'wandb', WANDB_READ, WANDB_MODE='offline')
  first, second = map(json.loads, out.splitlines())
  assert (first['exit'], second['exit']) == (1, 0)
  assert first['run'] == second['run'] and first['run'][0] == 'discs'
  assert second['config']['optimizer'] == CONFIG['optimizer']
  history = [
    {key: value for key, value in row.items() if not key.startswith('_')}
    for row in second['history']
  ]
  assert history == [
    {'step': 2, 'train/loss': 0.5},
    {'step': 2, 'val/dice a+b': 0.2},
    {'step': 4, 'train/loss': 0.25},
    {'step': 4, 'val/dice a+b': 0.4},
  ]
  assert second['summary']['final/mean/dice'] == 0.75


@needs('mlflow')
def test_a_server_that_is_not_there_is_one_warning(tmp_path):
  _, err = run(
    tmp_path, 'mlflow', RUN, MLFLOW_TRACKING_URI='http://127.0.0.1:9'
  )
  lines = [line for line in err.splitlines() if 'MLflow logs no' in line]
  assert len(lines) == 2  # of two runs
  assert len((tmp_path / 'run/metrics.jsonl').read_text().splitlines()) == 4


def fake(monkeypatch, start):
  """Has config.loggers.wandb stand for a service of the test."""
  module = types.SimpleNamespace(start=start)
  monkeypatch.setitem(run_logs._KINDS, 'wandb', ('Fake', 'fake_service'))
  monkeypatch.setitem(sys.modules, 'fake_service', module)
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *rest: True if name == 'wandb' else find(name, *rest),
  )


def test_a_training_is_logged_as_its_metrics_are(tmp_path, monkeypatch):
  rows, ends = [], []

  def start(project, config, workdir, *, going_on):
    rows.append((project, config['data']['channels'], workdir, going_on))
    return run_logs.Service(
      lambda step, values: rows.append((step, values)),
      lambda summary, failed: ends.append((summary, failed)),
    )

  fake(monkeypatch, start)
  config = shrink(load('unet'), num_steps=2)
  config.loggers.wandb = 'discs'
  summary = train.run(config, tmp_path / 'run')
  assert rows.pop(0) == ('discs', 1, tmp_path / 'run', False)
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert len(rows) == len(lines) > 1
  for (step, values), line in zip(rows, map(json.loads, lines), strict=True):
    split = line.pop('split')
    assert step == line.pop('step')
    assert values == {
      f'{split}/{k}': v for k, v in line.items() if v is not None
    }
  ((final, failed),) = ends
  assert final['mean/dice'] == summary['mean']['dice'] and not failed


@pytest.mark.parametrize('when', ['start', 'log', 'finish', 'never'])
def test_a_service_that_fails_is_one_warning(
  when, tmp_path, monkeypatch, caplog
):
  def fail(at):
    if when == at:
      raise SystemExit('server\ngone')
    if when == 'never' and at == 'finish':
      threading.Event().wait()

  def start(*args, **named):
    fail('start')
    return run_logs.Service(lambda *_: fail('log'), lambda *_: fail('finish'))

  fake(monkeypatch, start)
  monkeypatch.setattr(run_logs, '_SECONDS_AT_END', 0.2)
  config = CONFIG | {'loggers': {'wandb': 'discs'}}
  with run_logs.opened() as logs:
    logs.begin(config, tmp_path, 0)
    with MetricWriter(tmp_path, logs=logs) as writer:
      for step in range(20):
        writer.scalars(step, 'train', {'loss': 1.0})
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 20
  why = 'no answer for 0.2 s' if when == 'never' else 'server gone'
  assert [record.getMessage() for record in caplog.records] == [
    f'Fake logs no further ({why}); the run goes on without it'
  ]


def test_a_slow_service_holds_up_nothing_and_gets_all_in_order(
  tmp_path, monkeypatch
):
  answers, got, by = threading.Event(), [], set()

  def log(step, values):
    answers.wait(HANG_S)
    by.add(threading.current_thread().name)
    got.append((step, values))

  def start(project, config, workdir, *, going_on):
    return run_logs.Service(log, lambda *end: got.append((going_on, *end)))

  fake(monkeypatch, start)
  monkeypatch.setattr(run_logs, '_SECONDS_AT_END', HANG_S)
  config = CONFIG | {'loggers': {'wandb': 'discs'}}
  with pytest.raises(KeyError), run_logs.opened() as logs:
    logs.begin(config, tmp_path, 3)
    for step in range(4, 50):
      logs.scalars(step, 'train', {'loss': step, 'no': None, 'inf': math.inf})
    logs.summary({'mean': {'dice': 0.5, 'iou': math.nan}, 'split': 'val'})
    assert got == []
    answers.set()
    raise KeyError('killed')
  *rows, end = got
  assert rows == [(step, {'train/loss': step}) for step in range(4, 50)]
  assert end == (True, {'mean/dice': 0.5}, True)
  assert by == {'Fake'}  # never the one that trains


def test_what_is_not_installed_is_told_before_any_work(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  run_logs.check({'wandb': '', 'mlflow': ''})
  config = load('unet')
  config.loggers.mlflow = 'discs'
  with pytest.raises(InputError) as error:
    train.run(config, tmp_path / 'run')
  assert str(error.value) == (
    "config.loggers.mlflow is 'discs', and mlflow is not installed; pip "
    "install 'medseg_jax[mlflow]', or leave the key empty"
  )
  assert not (tmp_path / 'run').exists()


def test_other_processes_log_nothing(tmp_path, monkeypatch):
  fake(monkeypatch, lambda *_, **__: pytest.fail('started'))
  monkeypatch.setattr(run_logs.multihost, 'is_primary', lambda: False)
  logs = run_logs.RunLogs()
  logs.begin(CONFIG | {'loggers': {'wandb': 'discs'}}, tmp_path, 0)
  assert logs._threads == []
