"""The memory of the host: how much is left, huge pages, giving back.

A step on CPU allocates hundreds of megabytes and frees them again. The GNU C
library takes buffers of that size from the system and gives them back, and the
system clears them page by page. With pages of 2 MB in place of 4 KB a step of a
U-Net takes 15 % less.
"""

import contextlib
import ctypes
import math
import os
import pathlib
import re
import sys
from collections.abc import Mapping

_HUGE_PAGES, _SINCE = 'glibc.malloc.hugetlb=1', (2, 35)
_RESTARTED = 'medseg_jax_restarted'  # an option of Python's -X
_WHO_HAS_THEM = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_MEMINFO = pathlib.Path('/proc/meminfo')
# The groups that limit the memory of a container or a job: which one this
# process is in, where they lie, and what their files are called in the two
# versions: the limit, what is used, and what of that are files that can be
# dropped.
_OWN_CGROUP = pathlib.Path('/proc/self/cgroup')
_CGROUPS = pathlib.Path('/sys/fs/cgroup')
_V1 = (
  'memory.limit_in_bytes',
  'memory.usage_in_bytes',
  'total_inactive_file',
)
_V2 = 'memory.max', 'memory.current', 'inactive_file'


def available() -> float:
  """Returns the bytes that programs may still take, as the system says.

  In a container or a job of a cluster at most what their limit leaves. Where
  the system does not say, half of all there are; infinity where not even that
  is told. Of several processes of a run on this host each has an equal part.
  """
  return min(_left_on_machine(), _left_in_cgroups()) / _Host.processes


class _Host:
  """What this process knows of the machine."""

  processes = 1  # of the run that are here


def divide_among(processes: int) -> None:
  """Tells how many processes of the run share the memory."""
  _Host.processes = processes


def _left_on_machine() -> float:
  with contextlib.suppress(OSError):
    found = re.search(r'MemAvailable:\s*(\d+) kB', _MEMINFO.read_text())
    if found:
      return 1024.0 * int(found[1])
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2
  except (AttributeError, ValueError, OSError):
    return math.inf


def _left_in_cgroups() -> float:
  """Returns the bytes that the strictest limit leaves, infinity without any.

  Each group that holds the process's own may have one. Inside a container the
  own one is often the uppermost, whatever it is called outside.
  """
  try:
    lines = _OWN_CGROUP.read_text().splitlines()
  except OSError:  # not Linux, or hidden
    return math.inf
  left = math.inf
  for line in lines:
    _, kinds, path = [*line.split(':', 2), '', ''][:3]
    if kinds and 'memory' not in kinds.split(','):
      continue
    top = _CGROUPS / 'memory' if kinds else _CGROUPS
    group = top / path.strip('/')
    while True:
      left = min(left, _left_in(group, *(_V1 if kinds else _V2)))
      if group in (top, group.parent):
        break
      group = group.parent
  return left


def _left_in(group: pathlib.Path, limit: str, used: str, files: str) -> float:
  try:
    left = int((group / limit).read_text()) - int((group / used).read_text())
  except (OSError, ValueError):  # no such group, or 'max': no limit
    return math.inf
  with contextlib.suppress(OSError):
    stat = (group / 'memory.stat').read_text()
    found = re.search(rf'^{files} (\d+)$', stat, re.MULTILINE)
    left += int(found[1]) if found else 0
  return max(left, 0)


def return_freed() -> None:
  """Gives the system what is freed: after compiling, which takes much."""
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)


def restart_with_huge_pages(program: str) -> None:
  """Starts this process anew with huge pages, where they are to be had.

  The library reads the wish for them only when a process begins, so this is
  the first thing for a program to do. Returns where it is of no use: see
  `with_huge_pages`. It is not for other programs that run this one as a part
  of theirs, nor for debuggers.

  Args:
    program: what Python was told to run: a module's name or a file.
  """
  command = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
  environment = with_huge_pages(os.environ)
  if (
    environment == dict(os.environ)
    or _RESTARTED in sys._xoptions  # and the variable got lost on the way
    or not sys.executable
    or pathlib.Path(command[-1]).absolute() != pathlib.Path(program).absolute()
    or sys.gettrace() is not None
  ):
    return
  arguments = [sys.executable, '-X', _RESTARTED, *sys.orig_argv[1:]]
  with contextlib.suppress(OSError):  # then it goes on as it is
    os.execve(sys.executable, arguments, environment)


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables with those that make malloc use huge pages.

  Unchanged where the library is another or older one, where the system gives
  huge pages to all or to none, and where the user has set up malloc otherwise.
  """
  environment = dict(environment)
  tunables = environment.get('GLIBC_TUNABLES', '')
  if 'malloc' in tunables or any(x.startswith('MALLOC_') for x in environment):
    return environment
  if _libc_version() >= _SINCE and _on_request():
    wishes = [tunables, _HUGE_PAGES] if tunables else [_HUGE_PAGES]
    environment['GLIBC_TUNABLES'] = ':'.join(wishes)
  return environment


def _libc_version() -> tuple[int, ...]:
  """Returns the version of the GNU C library; () of another one."""
  with contextlib.suppress(AttributeError, ValueError, OSError):
    name, _, version = os.confstr('CS_GNU_LIBC_VERSION').partition(' ')
    if name == 'glibc':
      return tuple(map(int, version.split('.')))
  return ()


def _on_request() -> bool:
  """Returns whether the system gives huge pages to those who ask for them."""
  try:
    return '[madvise]' in _WHO_HAS_THEM.read_text()
  except OSError:  # not Linux, or hidden
    return False
