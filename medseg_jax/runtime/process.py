"""Settings of the whole process: compiler, compiled programs.

`set_up` is for programs and scripts, not for libraries. Whatever the user has
set in the environment stays.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import user_cache_folder

# Flags of XLA that pay, name -> value, without the leading dashes. One that the
# installed XLA does not know ends the process.
XLA_FLAGS: dict[str, str] = {}
# Options of TPUs' compiler. It would make examples of parts of the images where
# these are few, each with its borders, and copy them around every convolution.
TPU_OPTIONS = {
  'xla_tpu_run_space_to_batch': False,
  'xla_tpu_run_space_to_batch_on_new_platforms': False,
}
# Compiled programs on disk: once there are more bytes than this the least
# recently used go.
MAX_BYTES = 2e9


def set_up() -> None:
  """Sets up the process; call it before JAX computes anything."""
  add_xla_flags(XLA_FLAGS)
  keep_compiled_programs()


def add_xla_flags(flags: Mapping[str, str]) -> None:
  """Adds to XLA_FLAGS those that the user has not set there."""
  given = os.environ.get('XLA_FLAGS', '').split()
  names = {flag.lstrip('-').partition('=')[0] for flag in given}
  given += [f'--{k}={v}' for k, v in flags.items() if k not in names]
  if given:
    os.environ['XLA_FLAGS'] = ' '.join(given)


def keep_compiled_programs() -> None:
  """Makes JAX write compiled programs to the user's cache folder.

  Does nothing where the user has named a folder, as JAX_COMPILATION_CACHE_DIR
  or in jax.config. No folder, or one that cannot be written, is no error.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is not None:
    return
  # One folder for each kind of processor: a program compiled for another one
  # could hold instructions that this one does not have.
  try:
    folder = user_cache_folder() / 'compiled' / processor()
    folder.mkdir(parents=True, exist_ok=True)
  except (InputError, OSError):  # without a home folder, or without the right
    return
  remove_oldest(folder.parent, MAX_BYTES)
  for name, value in {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)
  # A full disk, a file cut off by a killed run, a program that cannot be
  # written: then it is compiled anew, which is no news.
  warnings.filterwarnings(
    'ignore', 'Error (reading|writing) persistent compilation cache'
  )


@contextlib.contextmanager
def not_kept(mesh: Any) -> Iterator[None]:
  """Keeps what is compiled in the block from being written to disk, on CPU.

  For convolutions: only so may they call oneDNN there (`models/cpu/onednn.py`),
  which is worth more than the seconds of compiling. Programs for several
  devices, and those for accelerators, do without oneDNN and are kept.

  Args:
    mesh: `jax.sharding.Mesh` that the programs of the block are for.
  """
  import jax

  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  if mesh.size > 1 or mesh.devices.flat[0].platform != 'cpu':
    yield
    return
  jax.config.update(name, float('inf'))
  try:
    yield
  finally:
    jax.config.update(name, before)


def compile_for(mesh: Any, lowered: Any) -> Any:
  """Returns a program compiled, for TPUs with `TPU_OPTIONS`.

  Those that their compiler does not know are left out.

  Args:
    mesh: `jax.sharding.Mesh` that it is for.
    lowered: `jax.stages.Lowered`.

  Returns:
    `jax.stages.Compiled`.
  """
  import jax

  if mesh.devices.flat[0].platform != 'tpu':
    return lowered.compile()
  options = dict(TPU_OPTIONS)
  while options:
    try:
      return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      # Of another version: it names one that it does not know.
      named = re.search(r"No such compile option: '(\w+)'", str(error))
      if not named or options.pop(named[1], None) is None:
        raise
  return lowered.compile()


@functools.cache
def processor() -> str:
  """Returns a name of the processor's kind, good for a file name."""
  kind = platform.processor()
  with contextlib.suppress(OSError):
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kind = ' '.join(
      sorted(
        {
          line
          for line in lines
          if line.startswith(('model name', 'flags', 'Features', 'CPU part'))
        }
      )
    )
  digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
  return f'{platform.machine()}-{digest}'


def processor_name() -> str:
  """Returns what the processor is called for people, '' where nobody says."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor()


def remove_oldest(folder: pathlib.Path, max_bytes: float) -> None:
  """Removes the least recently used files below `folder` beyond `max_bytes`."""
  found = []
  for path in folder.rglob('*'):
    with contextlib.suppress(OSError):  # another process has removed it
      status = path.stat()
      if path.is_file():
        used = max(status.st_atime, status.st_mtime)
        found.append((used, status.st_size, path))
  total = 0
  for _, size, path in sorted(found, reverse=True):
    total += size
    if total > max_bytes:
      with contextlib.suppress(OSError):
        path.unlink()
