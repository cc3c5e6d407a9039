"""What a process does before it is the program, however it was started."""

import logging
import os
import pathlib
import sys

from medseg_jax.runtime import host_memory, stop_signal


def prepare(program: str) -> None:
  """Notes signals, gets huge pages, and sets up what is printed.

  Cheap, and to be called before all that takes time. May start this process
  anew, see `host_memory.restart_with_huge_pages`.

  Args:
    program: what Python was told to run: a module's name, or that of a script.
  """
  stop_signal.note()
  script = pathlib.Path(sys.argv[0])
  with stop_signal.held():
    if not stop_signal.asked():
      host_memory.restart_with_huge_pages(
        str(script) if script.name == program else program
      )
  # gdcm, which pydicom imports, and nibabel that, takes a folder `dl` where the
  # program runs for a module of Python 2, and breaks both.
  sys.modules.setdefault('dl', None)  # type: ignore[arg-type]
  # TensorFlow only feeds data here; its notes on its own kernels are no news.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  logging.raiseExceptions = False  # a full disk is told once
  logging.addLevelName(logging.WARNING, 'warning  ')  # as what is printed
  logging.basicConfig(format='%(levelname)s %(message)s')
  # Files are called anything.
  sys.stdout.reconfigure(errors='backslashreplace')
