"""Memory in huge pages, for the whole process.

A step allocates hundreds of megabytes and frees them again. The GNU C library
takes buffers of that size from the system and gives them back, and the system
clears them page by page: on CPU 15 % of a step. With pages of 2 MB instead of
4 KB that is gone. Accelerators have allocators of their own.
"""

import os
import pathlib
import sys

_TUNABLE = 'glibc.malloc.hugetlb'  # from glibc 2.35 on, ignored before
_SYSTEM = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def restart() -> None:
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


def with_huge_pages(environment) -> dict[str, str]:
  """Returns the variables with those that make malloc use huge pages."""
  environment = dict(environment)
  tunables = environment.get('GLIBC_TUNABLES', '')
  if 'malloc' in tunables or any(x.startswith('MALLOC_') for x in environment):
    return environment
  try:
    on_request = '[madvise]' in _SYSTEM.read_text()
  except OSError:  # not Linux, or hidden
    return environment
  if on_request:
    wish = f'{_TUNABLE}=1'
    environment['GLIBC_TUNABLES'] = f'{tunables}:{wish}' if tunables else wish
  return environment
