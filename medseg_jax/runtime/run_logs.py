"""Metrics of a run where people look at those of many: W&B, MLflow.

Whatever such a service does, it holds up no training: a thread talks to it, and
where that fails one warning is all that comes of it.
"""

import contextlib
import importlib
import importlib.util
import logging
import math
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError, shorten

# Key of config.loggers -> (what it is called, the file that talks to it).
_KINDS = {
  'wandb': ('Weights & Biases', 'medseg_jax.runtime.wandb_run'),
  'mlflow': ('MLflow', 'medseg_jax.runtime.mlflow_run'),
}
_SECONDS_AT_END = 60.0  # that a service has for what it was not sent yet
_LONGEST = 300  # characters of a message of theirs


class Service(NamedTuple):
  """A run at a service. All is called by one thread.

  Attributes:
    log: `(step, values)`, values by names such as 'train/loss'.
    finish: `(summary, failed)`, numbers by name, and how the run ended.
  """

  log: Callable[[int, Mapping[str, float]], None]
  finish: Callable[[Mapping[str, float], bool], None]


def check(wanted: Mapping[str, str]) -> None:
  """Raises InputError where a service is asked for that is not installed.

  Args:
    wanted: config.loggers, the project or experiment by the key of a service.
  """
  for kind, project in wanted.items():
    if project and importlib.util.find_spec(kind) is None:
      raise InputError(
        f'config.loggers.{kind} is {project!r}, and {kind} is not installed; '
        f"pip install 'medseg_jax[{kind}]', or leave the key empty"
      )


class RunLogs:
  """The services that a run is logged to, mostly none."""

  def __init__(self):
    self._threads: list[_Thread] = []
    self._summary: dict[str, float] = {}

  def begin(
    self, config: Mapping[str, Any], workdir: pathlib.Path, step: int
  ) -> 'RunLogs':
    """Begins to log, on the primary process; returns itself.

    Args:
      config: the whole config, resolved.
      workdir: of the run, which keeps its name at each service.
      step: that the training goes on from; after 0 it is the same run there.
    """
    for kind, project in config['loggers'].items():
      if project and multihost.is_primary():
        name, module = _KINDS[kind]

        def connect(module=module, project=project) -> Service:
          service = importlib.import_module(module)
          return service.start(project, config, workdir, going_on=step > 0)

        self._threads.append(_Thread(name, connect))
    return self

  def scalars(
    self, step: int, split: str, values: Mapping[str, float | None]
  ) -> None:
    """Logs what `MetricWriter.scalars` writes, without what is not finite."""
    named = {
      f'{split}/{name}': float(value)
      for name, value in values.items()
      if value is not None and math.isfinite(value)
    }
    for thread in self._threads:
      thread.do(lambda service: service.log(step, named))

  def summary(self, summary: Mapping[str, Any]) -> None:
    """Keeps the numbers of a summary.json for the end."""
    self._summary = flat(summary, '/')

  def finish(self, failed: bool) -> None:
    for thread in self._threads:
      thread.do(lambda service: service.finish(self._summary, failed))
      thread.end()
    self._threads = []


@contextlib.contextmanager
def opened() -> Iterator[RunLogs]:
  """Yields logs that end with the block, as failed where it raises."""
  logs = RunLogs()
  try:
    yield logs
  except BaseException:
    logs.finish(failed=True)
    raise
  logs.finish(failed=False)


def flat(
  values: Mapping[str, Any], joint: str, *, numbers: bool = True
) -> dict[str, Any]:
  """Returns the leaves of a tree of mappings, the names joined.

  Args:
    values: the tree.
    joint: between the names.
    numbers: only finite ones, as floats.
  """
  found: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      inside = flat(value, joint, numbers=numbers)
      found |= {f'{name}{joint}{key}': leaf for key, leaf in inside.items()}
    elif not numbers:
      found[name] = value
    elif type(value) in (int, float) and math.isfinite(value):
      found[name] = float(value)
  return found


class _Thread:
  """Does things with a service, one after the other, until one fails."""

  def __init__(self, name: str, connect: Callable[[], Service]):
    self._name, self._connect = name, connect
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._failed = False
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
    self._thread.start()

  def do(self, what: Callable[[Service], None]) -> None:
    if not self._failed:
      self._queue.put(what)

  def end(self) -> None:
    self._queue.put(None)
    self._thread.join(_SECONDS_AT_END)
    if self._thread.is_alive():
      self._warn(f'no answer for {_SECONDS_AT_END:g} s')

  def _run(self) -> None:
    try:
      service = self._connect()
      while (what := self._queue.get()) is not None:
        what(service)
    except BaseException as error:  # some leave by SystemExit
      text = ' '.join(str(error).split()) or type(error).__name__
      self._warn(shorten(text, _LONGEST))

  def _warn(self, why: str) -> None:
    if not self._failed:
      self._failed = True
      logging.getLogger(__name__).warning(
        '%s logs no further (%s); the run goes on without it', self._name, why
      )
