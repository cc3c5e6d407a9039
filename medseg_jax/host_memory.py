"""The memory of the host: how much is left, huge pages, giving back.

A step on CPU allocates hundreds of megabytes and frees them again. The GNU C
library takes buffers of that size from the system and gives them back, and the
system clears them page by page: 15 % of a step. With pages of 2 MB in place of
4 KB that is gone.
"""

import contextlib
import ctypes
import math
import os
import pathlib
import re
import sys
from collections.abc import Mapping

_HUGE_PAGES = 'glibc.malloc.hugetlb=1'  # from glibc 2.35 on, ignored before
_WHO_HAS_THEM = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
_MEMINFO = pathlib.Path('/proc/meminfo')


def available() -> float:
  """Returns the bytes that programs may still take, as the system says.

  Where it does not, half of all there are; infinity where not even that is
  told.
  """
  with contextlib.suppress(OSError):
    found = re.search(r'MemAvailable:\s*(\d+) kB', _MEMINFO.read_text())
    if found:
      return 1024.0 * int(found[1])
  try:
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2
  except (AttributeError, ValueError, OSError):
    return math.inf


def return_freed() -> None:
  """Gives the system what is freed: after compiling, which takes much."""
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)


def restart_with_huge_pages() -> None:
  """Starts this program anew with huge pages, where they are to be had.

  The library reads the wish for them only when a process begins, so this is
  the first thing for a program to do. Returns where the program has them, the
  system gives them to all or to none, or the user has set up malloc otherwise.
  """
  environment = with_huge_pages(os.environ)
  if environment == dict(os.environ):
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the variables with those that make malloc use huge pages."""
  environment = dict(environment)
  tunables = environment.get('GLIBC_TUNABLES', '')
  if 'malloc' in tunables or any(x.startswith('MALLOC_') for x in environment):
    return environment
  try:
    on_request = '[madvise]' in _WHO_HAS_THEM.read_text()
  except OSError:  # not Linux, or hidden
    return environment
  if on_request:
    wishes = [tunables, _HUGE_PAGES] if tunables else [_HUGE_PAGES]
    environment['GLIBC_TUNABLES'] = ':'.join(wishes)
  return environment
