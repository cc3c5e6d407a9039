"""One training at a time in a workdir.

Two would write over each other's checkpoints. The lock is the system's own, on
a file `.lock`, so one that was killed holds nothing. The file says who holds
it, for the message, and is gone when a run has ended by itself.

Some network drives have no such locks. There the content of the file has to do:
a run on this machine counts while its process lives; one on another machine
counts until somebody removes the file, as nobody here can tell.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from medseg_jax.runtime.errors import InputError, doing, quote
from medseg_jax.runtime.files import parse_json

NAME = '.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
_MAX_BYTES = 4096


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other trainings out of `workdir`, made where missing, in the block.

  Raises:
    InputError: another one is in there, or the folder cannot be written.
  """
  path = pathlib.Path(workdir) / NAME
  with doing('use', workdir):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _take(path)
  try:
    yield
  finally:
    # Before it is let go: the next one may not lose its file.
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(handle)


def _take(path: pathlib.Path) -> int:
  """Returns the open file of a lock that is now held."""
  while True:
    try:
      handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
      mine = True
    except PermissionError:  # another user's
      handle = os.open(path, os.O_RDONLY)
      mine = False
    try:
      _lock(handle, path)
      if _is_at(handle, path):
        if mine:
          text = json.dumps(_me()) + '\n'
          os.ftruncate(handle, 0)
          os.pwrite(handle, text.encode(), 0)
          return handle
        path.unlink()  # whose run was killed
    except BaseException:
      os.close(handle)
      raise
    os.close(handle)  # once more, with the file that is there now


def _lock(handle: int, path: pathlib.Path) -> None:
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):
    raise _refusal(path, _holder(handle)) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    holder = _holder(handle)
    if holder and _may_live(holder):
      gone = f'; if that run is gone, remove {path}'
      raise _refusal(path, holder, gone) from None


def _is_at(handle: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(handle), path.stat())
  except FileNotFoundError:
    return False


def _me() -> dict[str, Any]:
  now = datetime.datetime.now().astimezone()
  return {
    'host': socket.gethostname(),
    'process': os.getpid(),
    'since': now.isoformat(' ', timespec='seconds'),
    'started': _started(os.getpid()),
    'start_of_job': _start_of_job(),
  }


def _holder(handle: int) -> dict[str, Any]:
  """Returns what a lock says of who holds it; {} where it says nothing."""
  try:
    content = parse_json(os.pread(handle, _MAX_BYTES, 0))
  except (ValueError, OSError):  # not written yet, or no lock of ours
    return {}
  return content if isinstance(content, dict) else {}


def _may_live(holder: dict[str, Any]) -> bool:
  process, start = holder.get('process'), holder.get('start_of_job')
  if start and _start_of_job()[:1] == start[:1] and _start_of_job() != start:
    return False  # of this very job, which has been started again
  if holder.get('host') != socket.gethostname() or type(process) is not int:
    return True
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except OSError:
    pass  # of another user
  # Numbers are given anew, after a reboot and in each container.
  return process != os.getpid() and holder.get('started') == _started(process)


def _start_of_job() -> list[str]:
  """Returns the job of Slurm and how often it was started again, or []."""
  job = os.environ.get('SLURM_JOB_ID')
  return [job, os.environ.get('SLURM_RESTART_COUNT', '0')] if job else []


def _started(process: int) -> str:
  """Returns when a process began, in the system's own words; '' elsewhere."""
  with contextlib.suppress(OSError, IndexError):
    stat = pathlib.Path(f'/proc/{process}/stat').read_text(errors='replace')
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    # The name of the program, in brackets, may hold spaces and brackets.
    return f'{boot} {stat.rsplit(")", 1)[1].split()[19]}'
  return ''


def _refusal(
  path: pathlib.Path, holder: dict[str, Any], more: str = ''
) -> InputError:
  who = 'another run'
  if holder:
    host, process, since = (
      quote(holder.get(key, 'unknown')).strip("'")
      for key in ('host', 'process', 'since')
    )
    who = f'process {process} on {host}, since {since},'
  return InputError(
    f'{path.parent}: {who} trains in this folder; wait for its end, or name '
    f'another --workdir{more}'
  )
