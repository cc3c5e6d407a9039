"""Metrics of a run: `metrics.jsonl` and TensorBoard event files.

One process writes, the primary.
"""

import io
import json
import logging
import math
import os
import pathlib
import socket
import time
from collections.abc import Mapping

import numpy as np

from medseg_jax.runtime import event_file, multihost
from medseg_jax.runtime.errors import counted, doing
from medseg_jax.runtime.files import parse_json, write_atomically
from medseg_jax.runtime.run_logs import RunLogs


class MetricWriter:
  """Writes scalars and images of one run into its workdir.

  `metrics.jsonl` holds one object a line, `{"step", "split", name: value}`,
  where NaN and infinity are null. Event files hold the same as
  '<split>/<name>'. Every call is on disk when it returns, so that a killed
  run loses nothing but a line cut short, which the next writer drops.

  Args:
    workdir: folder to write into, made where missing.
    resume_step: step of the checkpoint that the run starts again from. What an
      earlier, crashed run wrote for later steps is dropped, so that the file
      becomes that of an uninterrupted run. None keeps every line.
    logs: of services, which get the scalars, too.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    resume_step: int | None = None,
    logs: RunLogs | None = None,
  ):
    self._logs = logs or RunLogs()
    workdir = pathlib.Path(workdir)
    path = workdir / 'metrics.jsonl'
    if not multihost.is_primary():
      self._lines, self._events = _nowhere(), _nowhere()
      return
    with doing('write the metrics', path):
      workdir.mkdir(parents=True, exist_ok=True)
      _drop_lines(path, resume_step)
      # Without a buffer: what a full disk refused is not tried once more, with
      # a traceback, when the program ends.
      self._lines = path.open('ab', buffering=0)
      self._events = _open_event_file(workdir)
    _append(self._events, event_file.version())
    if resume_step is not None:
      _append(self._events, event_file.start(resume_step + 1))

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, *exc_info) -> None:
    self.close()

  def scalars(
    self, step: int, split: str, values: Mapping[str, float | None]
  ) -> None:
    """Writes one line of `metrics.jsonl` and one scalar event a value.

    Args:
      step: number of training steps taken.
      split: 'train', 'val', ...
      values: name -> number or 0-d array; None where undefined.

    Raises:
      ValueError: a name is 'step' or 'split'.
    """
    line = {'step': int(step), 'split': split}
    tagged = {}
    for name, value in values.items():
      if name in line:
        raise ValueError(f'a metric must not be called {name!r}')
      number = math.nan if value is None else float(value)
      line[name] = number if math.isfinite(number) else None
      if value is not None:
        tagged[f'{split}/{name}'] = number
    text = json.dumps(line, allow_nan=False) + '\n'
    _append(self._lines, text.encode())
    _append(self._events, event_file.scalars(int(step), tagged))
    self._logs.scalars(int(step), split, values)

  def image(self, step: int, split: str, name: str, array: np.ndarray) -> None:
    """Writes an image, uint8 `[H, W, 3]`, as a PNG event."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
      raise ValueError(
        f'image must be uint8 [H, W, 3], got {array.dtype} {array.shape}'
      )
    event = event_file.image(int(step), f'{split}/{name}', array)
    _append(self._events, event)

  def close(self) -> None:
    self._lines.close()
    self._events.close()


def _append(file: io.FileIO, content: bytes) -> None:
  """Writes all of `content`; a disk that fills may take a part first."""
  left = memoryview(content)
  with doing('write the metrics', file.name):
    while left:
      left = left[file.write(left) :]


def _nowhere() -> io.FileIO:
  return open(os.devnull, 'ab', buffering=0)


def read_line(
  workdir: str | os.PathLike, step: int, split: str
) -> dict[str, float | None] | None:
  """Returns the values of a line of `metrics.jsonl`, None without such a line.

  Args:
    workdir: of the run.
    step: number of training steps taken.
    split: 'train', 'val', ...
  """
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  for line in reversed(lines):
    if _step_of(line) == step:
      values = json.loads(line)
      if values.pop('split', None) == split:
        return values
  return None


def read_lines(
  workdir: str | os.PathLike, split: str
) -> list[tuple[int, dict[str, float | None]]]:
  """Returns (step, values) of each whole line of a split, in their order."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  found = []
  for line in lines:
    if (step := _step_of(line)) is not None:
      values = json.loads(line)
      if values.pop('split', None) == split:
        found.append((step, values))
  return found


def _open_event_file(workdir: pathlib.Path) -> io.FileIO:
  """Returns a new event file, named so that TensorBoard reads it after others.

  TensorBoard sorts the files of a folder by name, so a run that starts again
  within the same second takes the next one.
  """
  second = int(time.time())
  while True:
    name = f'events.out.tfevents.{second:010d}.{socket.gethostname()}'
    try:
      return (workdir / name).open('xb', buffering=0)
    except FileExistsError:
      second += 1


def _drop_lines(path: pathlib.Path, resume_step: int | None) -> None:
  """Rewrites `path` without lines later than `resume_step` and broken lines."""
  if not path.exists():
    return
  lines = path.read_bytes().splitlines(keepends=True)
  steps = [_step_of(line) for line in lines]
  if None in steps:
    logging.getLogger(__name__).warning(
      '%s: dropped %s', path, counted(steps.count(None), 'unreadable line')
    )
  kept = [
    line
    for line, step in zip(lines, steps, strict=True)
    if step is not None and (resume_step is None or step <= resume_step)
  ]
  if kept != lines:
    write_atomically(path, b''.join(kept))


def _step_of(line: bytes) -> int | None:
  """Returns the step of a line of `metrics.jsonl`, None where it is broken."""
  try:
    step = parse_json(line)['step'] if line.endswith(b'\n') else None
  except (ValueError, TypeError, KeyError):
    return None
  return step if type(step) is int else None
