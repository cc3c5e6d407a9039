"""What an archive answers to an object that it is to keep."""

import pathlib
from typing import NamedTuple

# Codes of storage, in DICOM's own protocol (PS3.4, table B.2-1; PS3.7, annex C)
# and in DICOMweb (PS3.18, table I.2-2), by their first bits.
_WORDS = (
  (0x0110, 0xFFFF, 'processing failure'),
  (0x0117, 0xFFFF, 'invalid instance'),
  (0x0122, 0xFFFF, 'this kind of object is not supported'),
  (0x0124, 0xFFFF, 'not authorized'),
  (0xB000, 0xFFFF, 'some values were changed'),
  (0xB006, 0xFFFF, 'some elements were left out'),
  (0xB007, 0xFFFF, 'does not match its kind of object'),
  (0xA700, 0xFF00, 'out of resources'),
  (0xA900, 0xFF00, 'does not match its kind of object'),
  (0xC122, 0xFFFF, 'its transfer syntax is not supported'),
  (0xC409, 0xFFFF, 'another object of this name is there'),
  (0xC000, 0xF000, 'cannot be understood'),
)


class Answer(NamedTuple):
  """What became of one object.

  Attributes:
    path: of its file.
    refused: why it was not kept, '' where it was.
    note: what the archive says of an object that it keeps, mostly ''.
  """

  path: pathlib.Path
  refused: str = ''
  note: str = ''


def describe(code: int, comment: str = '') -> str:
  """Returns a status in words.

  Args:
    code: of 16 bits.
    comment: what the archive says besides.
  """
  words = [text for own, mask, text in _WORDS if code & mask == own][:1]
  if comment := ' '.join(comment.split()):
    words.append(comment)
  return f'status 0x{code:04X}' + (f' ({": ".join(words)})' if words else '')


def is_kept(code: int) -> bool:
  """Returns whether an object of this status is kept: also with a warning."""
  return code == 0 or code & 0xF000 == 0xB000
