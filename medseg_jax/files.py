"""Writing files that are never seen half written."""

import os
import pathlib


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
  """Writes `content` to `path` and makes its folder where that is missing.

  The file appears, or is replaced, whole: a write that fails or is killed
  leaves what was there before.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_bytes(content)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
