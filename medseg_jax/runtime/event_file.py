"""Events for TensorBoard, in bytes: the messages and checksums of tensorboardX.

Its `SummaryWriter` is not used: it leaves the writing to a thread, which a full
disk ends with a traceback, and what it was given last is lost with a killed
process.
"""

import contextlib
import io
import struct
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
  """Has imports of modules fail in the block, unless they are there already."""
  hidden = [name for name in names if name not in sys.modules]
  sys.modules.update(dict.fromkeys(hidden))
  try:
    yield
  finally:
    for name in hidden:
      del sys.modules[name]


# It imports these where they are installed, which takes seconds.
with _without('boto3', 'comet_ml', 'google.cloud.storage', 'torch'):
  from tensorboardX.proto import event_pb2, summary_pb2
  from tensorboardX.record_writer import masked_crc32c


def version() -> bytes:
  """Returns the event that a file begins with."""
  return _record(file_version='brain.Event:2')


def start(step: int) -> bytes:
  """Returns what has a reader forget what it read for `step` and later."""
  log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  return _record(step=step, session_log=log)


def scalars(step: int, values: Mapping[str, float]) -> bytes:
  """Returns the event of scalars, by their tags."""
  summary = summary_pb2.Summary()
  for tag, value in values.items():
    summary.value.add(tag=tag, simple_value=value)
  return _record(step=step, summary=summary)


def image(step: int, tag: str, array: np.ndarray) -> bytes:
  """Returns the event of an image, uint8 `[H, W, 3]`, as PNG."""
  png = io.BytesIO()
  Image.fromarray(array).save(png, format='PNG')
  height, width, channels = array.shape
  summary = summary_pb2.Summary()
  summary.value.add(
    tag=tag,
    image=summary_pb2.Summary.Image(
      height=height,
      width=width,
      colorspace=channels,
      encoded_image_string=png.getvalue(),
    ),
  )
  return _record(step=step, summary=summary)


def _record(**fields) -> bytes:
  """Returns an event as a record: length and content, each with a checksum."""
  event = event_pb2.Event(wall_time=time.time(), **fields)
  content = event.SerializeToString()
  length = struct.pack('<Q', len(content))
  checksums = [struct.pack('<I', masked_crc32c(x)) for x in (length, content)]
  return length + checksums[0] + content + checksums[1]
