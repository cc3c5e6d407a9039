"""A run of an MLflow experiment, at MLFLOW_TRACKING_URI."""

import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from medseg_jax.runtime.files import write_atomically
from medseg_jax.runtime.run_logs import Service, flat

_ID = 'mlflow_run.txt'
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 500  # what every store takes
# Nobody waits for long for a server that is gone, and no use is reported.
_SETTINGS = {
  'MLFLOW_HTTP_REQUEST_MAX_RETRIES': '2',
  'MLFLOW_HTTP_REQUEST_TIMEOUT': '20',
  'MLFLOW_DISABLE_TELEMETRY': 'true',
  'MLFLOW_LOGGING_LEVEL': 'WARNING',
}


def start(
  experiment: str,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  *,
  going_on: bool,
) -> Service:
  """Returns the run; the arguments are those of `RunLogs.begin`."""
  for name, value in _SETTINGS.items():
    os.environ.setdefault(name, value)
  from mlflow.entities import Metric, Param
  from mlflow.exceptions import MlflowException
  from mlflow.tracking import MlflowClient

  client = MlflowClient()
  path, run_id = workdir / _ID, ''
  if going_on and path.exists():
    try:
      run_id = client.get_run(path.read_text().strip()).info.run_id
      client.update_run(run_id, status='RUNNING')
    except MlflowException:  # of another store
      run_id = ''
  if not run_id:
    known = client.get_experiment_by_name(experiment)
    number = (
      known.experiment_id if known else client.create_experiment(experiment)
    )
    run_id = client.create_run(number, run_name=str(workdir)).info.run_id
    write_atomically(path, f'{run_id}\n'.encode())
    params = [
      Param(key, str(value)[:_LONGEST_PARAM])
      for key, value in flat(config, '.', numbers=False).items()
    ]
    for first in range(0, len(params), _PARAMS_AT_ONCE):
      part = params[first : first + _PARAMS_AT_ONCE]
      client.log_batch(run_id, params=part)
  last = 0

  def log(step: int, values: Mapping[str, float]) -> None:
    nonlocal last
    last, now = step, int(1000 * time.time())
    client.log_batch(
      run_id,
      metrics=[Metric(_name(k), v, now, step) for k, v in values.items()],
    )

  def finish(summary: Mapping[str, float], failed: bool) -> None:
    log(last, {f'final/{key}': value for key, value in summary.items()})
    client.set_terminated(run_id, 'FAILED' if failed else 'FINISHED')

  return Service(log, finish)


def _name(text: str) -> str:
  """Returns a metric's name without the characters that MLflow refuses."""
  return re.sub(r'[^\w\-./: ]', '_', text)
