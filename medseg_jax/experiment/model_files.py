"""A file of a model folder, or of a zip of it."""

import pathlib
import zipfile
import zlib

from medseg_jax.runtime.errors import InputError, counted

DESCRIPTION = 'model.json'


def read_file(path: pathlib.Path, name: str) -> bytes:
  """Returns a file of a model folder, or of a zip of it or of its content.

  In a zip the folder is where the uppermost `model.json` lies.
  """
  allowed = f'allowed is a model folder, or its zip, with {name}'
  try:
    if path.is_dir():
      return (path / name).read_bytes()
    with zipfile.ZipFile(path) as file:
      there = file.namelist()
      roots = [m for m in there if m.split('/')[-1] == DESCRIPTION]
      top = min((m.count('/') for m in roots), default=0)
      roots = [m for m in roots if m.count('/') == top]
      found = {m.removesuffix(DESCRIPTION) + name for m in roots}
      members = [m for m in there if m in found]
      if len(members) != 1:
        raise InputError(
          f'{path}: {counted(len(members), "file")} {name}; {allowed}'
        )
      return file.read(members[0])
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,  # encrypted, or packed in a way that is not known here
  ) as error:
    raise InputError(
      f'{path}: no zip file that can be read ({error}); {allowed}'
    ) from error
  except OSError as error:
    raise InputError(
      f'{error.filename or path}: cannot be read ({error.strerror}); {allowed}'
    ) from error
