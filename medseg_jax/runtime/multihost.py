"""Many processes as one run: no other module knows of them.

Process 0, the primary, decides and writes: what the others need to know of it
they get through the store of JAX's coordinator, which process 0 holds. Without
other processes every function here does what its name says of one.

Who ends early takes the others along: the first to claim the end says why, and
all leave with its status, at once, as a barrier would wait for the lost. One
that is killed is found missing after `HEARTBEAT_SECONDS`, at the latest; one
that lives and makes no progress gives up after `PATIENCE_SECONDS`.
"""

import contextlib
import faulthandler
import heapq
import logging
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from medseg_jax.runtime import (
  host_memory,
  launcher,
  stop_signal,
  telling,
  watchdog,
)
from medseg_jax.runtime.errors import InputError

HEARTBEAT_SECONDS = 30
# Of a call, a case or a batch of tiles; nothing else takes as long.
PATIENCE_SECONDS = 1800.0
# What may be in the way passes with another start (EX_TEMPFAIL of sysexits.h).
LOST = 75
_LOST_WORDS = ('gloo', 'nccl', 'coordination', 'heartbeat', 'unavailable:')
_POLL_MS = 2000
_GRACE_SECONDS = 1.0  # for the primary to speak first, where all have an error
# How long the primary holds the store open for the others, at most, and then
# still, as one that finds it gone before its own end aborts.
_FAREWELL_SECONDS, _LAST_SECONDS = 10.0, 1.0
_DECISION_SECONDS = 60.0  # how long it may go on with what it decides, at most
_END = 'medseg/end'
_HANGS = 'hangs'  # after the status, where all are to say where they are

Value = TypeVar('Value')
Item = TypeVar('Item')


class _Process:
  """What this process knows of its part in the run."""

  calls = 0  # of what all processes call alike: the names of its keys
  sent: list[str] = []  # keys that the others may not all have read yet
  deciding = False  # in a function that runs on the primary alone
  ending = False  # the main thread says why, and leaves
  claimed: int | None = None  # the status of the process that was first
  stdout: int | None = None  # what it was before this process became quiet


def start() -> None:
  """Joins the other processes, where the environment tells of any.

  To be called before JAX computes anything. From then on processes above 0
  print nothing.

  Raises:
    InputError: the environment contradicts itself, or nobody answers.
  """
  found = launcher.find()
  if found is None:
    return
  import jax

  if jax.distributed.is_initialized():
    return
  # It would take the place of the handler of SIGTERM.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  told = found.num_processes is not None
  try:
    jax.distributed.initialize(
      **found._asdict(),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      cluster_detection_method='deactivate' if told else None,
    )
  except (RuntimeError, ValueError) as error:
    if not told and isinstance(error, ValueError):
      return  # chips, or what looks so, of a host that no cluster knows
    text = ' '.join(str(error).split())[:300]
    raise InputError(
      f'the processes of this run do not find each other ({found.describe()}): '
      f'{text}; allowed are as many processes as are announced, which reach '
      'the coordinator'
    ) from error
  if count() > 1:
    telling.be_one_of_several(tells=is_primary())
  if not is_primary():
    _be_quiet()
  threading.Thread(target=_watch, name='others', daemon=True).start()
  if count() > 1:
    host = socket.gethostname()
    host_memory.divide_among(gather(host).count(host))
    watchdog.watch(PATIENCE_SECONDS, _give_up)


def count() -> int:
  """Returns how many processes the run has."""
  return _state().num_processes if _client() else 1


def index() -> int:
  """Returns the number of this process, from 0."""
  return _state().process_id if _client() else 0


def is_primary() -> bool:
  """Returns whether this process decides and writes."""
  return index() == 0


# What all processes call alike, each in its main thread.


def from_primary(fn: Callable[[], Value]) -> Value:
  """Returns what `fn` returns on the primary, the only one to call it.

  Args:
    fn: returns what can be pickled. May call what uses this function itself.

  Raises:
    InputError: in every process, where `fn` raised one.
  """
  if count() == 1 or _Process.deciding:
    return fn()
  key = _next_key()
  if not is_primary():
    value, error = _receive(key)
    if error is not None:
      raise InputError(error)
    return value
  _Process.deciding = True
  try:
    value = fn()
  except Exception as error:
    _send(key, (None, str(error)))
    raise
  finally:
    _Process.deciding = False
  _send(key, (value, None))
  _Process.sent.append(key)
  return value


def primary_first(fn: Callable[[], Value]) -> Value:
  """Returns `fn()` of this process, called on the primary before the others.

  For what reads files: one process tells what is wrong with them, and what it
  keeps on the disk is there for the others.
  """
  if count() == 1 or _Process.deciding:
    return fn()
  own: list[Value] = []
  from_primary(lambda: own.append(fn()))
  return own[0] if own else fn()


def gather(value: Value) -> list[Value]:
  """Returns the values of all processes, in their order, in each of them.

  The primary tells what the others would have warned of until then.
  """
  if count() == 1 or _Process.deciding:
    return [value]
  key = _next_key()
  if not is_primary():
    _send(f'{key}/{index()}', (value, telling.take()))

  def collect() -> list[Value]:
    values = [value]
    for i in range(1, count()):
      sent, warnings = _receive(f'{key}/{i}')
      values.append(sent)
      telling.tell(warnings)
    # Who has come here has read all that was sent before.
    _forget([*_Process.sent, key])
    _Process.sent.clear()
    return values

  return from_primary(collect)


def barrier() -> None:
  """Returns once every process has called it."""
  gather(None)


def share(
  items: Iterable[Item], sizes: Callable[[], Sequence[float]] | None = None
) -> list[Item]:
  """Returns this process's share of `items`; the shares are all of them.

  Args:
    items: the same in all processes. In a share they keep their order.
    sizes: returns how much each takes, of which all are to have as much; the
      primary is asked. None where they are alike, or nobody knows.
  """
  items = list(items)
  if count() == 1 or _Process.deciding:
    return items
  known = from_primary(sizes) if sizes else [0] * len(items)
  return [items[i] for i in deal(known, count())[index()]]


def deal(sizes: Sequence[float], shares: int) -> list[list[int]]:
  """Returns the items of each share, ascending, by their sizes.

  The largest first, each to the share that has least.
  """
  dealt: list[list[int]] = [[] for _ in range(shares)]
  least = [(0.0, 0, i) for i in range(shares)]  # size, items, share
  for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
    size, items, i = heapq.heappop(least)
    dealt[i].append(item)
    heapq.heappush(least, (size + sizes[item], items + 1, i))
  return [sorted(items) for items in dealt]


# The end.


def finish() -> None:
  """Waits for the others at the end of a run that has done its work."""
  if count() > 1:
    barrier()


def loss(error: BaseException) -> str:
  """Returns what tells in an error that another process has gone, or ''."""
  link: BaseException | None = error if count() > 1 else None
  while link is not None:
    text = ' '.join(str(link).split())
    # What is our own or the system's is of files, however they are called.
    if not isinstance(link, (InputError, OSError)) and any(
      word in text.lower() for word in _LOST_WORDS
    ):
      return text
    link = link.__cause__ or link.__context__
  return ''


def speaks(status: int, why: str = '') -> bool:
  """Claims the end of the run; returns whether it is this process's to tell.

  Args:
    status: that all processes are to leave with.
    why: a word for the others.
  """
  if count() == 1:
    return True
  if not is_primary():
    time.sleep(_GRACE_SECONDS)  # meanwhile `_watch` may end this process
  _Process.ending = True
  try:
    _client().key_value_set(_END, f'{status} {why}')
  except Exception as error:  # another one was first; or nobody can be asked
    if 'ALREADY_EXISTS' in str(error):
      with contextlib.suppress(Exception):
        told = _client().blocking_key_value_get(_END, _POLL_MS)
        _Process.claimed = int(told.split(' ')[0])
      return False
  if _Process.stdout is not None:
    os.dup2(_Process.stdout, 1)
  return True


def leave(status: int) -> None:
  """Ends this process at once, where there are others; else does nothing.

  With the status that another has claimed, where one has.
  """
  if not _client():
    return
  if _Process.claimed is not None:
    status = _Process.claimed
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  _exit(status)


def _exit(status: int) -> None:
  with contextlib.suppress(Exception):
    _client().key_value_set(f'medseg/left/{index()}', '')
  if is_primary():  # the store ends with this process
    end = time.monotonic() + _FAREWELL_SECONDS
    for i in range(1, count()):
      left = max(end - time.monotonic(), 0)
      with contextlib.suppress(Exception):
        _client().blocking_key_value_get(f'medseg/left/{i}', int(1000 * left))
    if count() > 1:
      time.sleep(_LAST_SECONDS)
  # Python's own end would wait in JAX's barrier for those that are gone.
  os._exit(status)


def _give_up() -> None:
  """Ends a run of which this process makes no progress."""
  # Nothing here waits for a stream: the main thread may hang in a print.
  if speaks(LOST, _HANGS):
    _say(
      f'error: process {index()} of {count()} has made no progress for '
      f'{PATIENCE_SECONDS:g} s; the same command goes on from the newest '
      'checkpoint. Where it is:\n'
    )
  faulthandler.dump_traceback(2)
  _exit(LOST)


def _say(text: str) -> None:
  with contextlib.suppress(OSError):
    os.write(2, text.encode())


def _watch() -> None:
  """Leaves as soon as another process has claimed the end."""
  while True:
    try:
      told = _client().blocking_key_value_get(_END, 3_600_000)
    except Exception as error:
      if 'DEADLINE_EXCEEDED' in str(error):
        continue
      return  # the coordinator is gone: JAX ends this process
    if _Process.ending:
      return
    status, why = told.split(' ')
    if why == _HANGS:  # in this one, perhaps, or in what both wait for
      _say(f'process {index()} of {count()} is here:\n')
      faulthandler.dump_traceback(2)
      _exit(LOST)
    # A signal reaches all: what the primary writes now had better be whole.
    end = time.monotonic() + _DECISION_SECONDS
    while _Process.deciding and time.monotonic() < end:
      stop_signal.ask()  # what takes long ends where nothing is lost
      time.sleep(_GRACE_SECONDS / 20)
    leave(int(status))
    return


def _be_quiet() -> None:
  sys.stdout.flush()
  _Process.stdout = os.dup(1)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  os.close(nowhere)
  logging.disable(logging.CRITICAL)
  stop_signal.be_quiet()


def _state() -> Any:
  # Nothing public has the client. Who has not imported JAX is alone, and need
  # not import it to know that.
  module = sys.modules.get('jax._src.distributed')
  return module and module.global_state


def _client() -> Any:
  return _state() and _state().client


def _next_key() -> str:
  _Process.calls += 1
  return f'medseg/{_Process.calls}'


def _send(key: str, value: Any) -> None:
  _client().key_value_set_bytes(key, pickle.dumps(value))


def _forget(keys: Iterable[str]) -> None:
  """Gives back what the store holds, below each key, too."""
  for key in keys:
    _client().key_value_delete(key)


def _receive(key: str) -> Any:
  while True:
    try:
      return pickle.loads(_client().blocking_key_value_get_bytes(key, _POLL_MS))
    except Exception as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise
    stop_signal.check()
