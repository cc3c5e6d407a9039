"""Whether a file is DICOM, by its first bytes; needs no library.

Files begin with 128 bytes of anything and `DICM` (PS3.10, section 7.1). Some
archives and old scanners leave both out; then the first elements tell, which
are of group 2 or 8, in ascending order (PS3.5, section 7.1).
"""

import pathlib
import struct

_READ = 1024  # bytes
_GROUPS = (2, 8)  # of the first element
_ELEMENTS = 3  # that tell
_LONG = (b'OB', b'OW', b'OF', b'OD', b'OL', b'SQ', b'UC', b'UN', b'UR', b'UT')


def is_dicom(path: pathlib.Path) -> bool:
  """Returns whether a file begins as DICOM files do; False if not readable."""
  try:
    with open(path, 'rb') as file:
      begin = file.read(_READ)
  except OSError:
    return False
  if begin[128:132] == b'DICM':
    return True
  ways = ((True, '<'), (False, '<'), (True, '>'))
  return any(_are_elements(begin, explicit=e, order=o) for e, o in ways)


def _are_elements(begin: bytes, *, explicit: bool, order: str) -> bool:
  """Returns whether bytes begin with elements in one of the encodings."""
  at, before = 0, (0, -1)
  for i in range(_ELEMENTS):
    if len(begin) < at + 12:
      return False
    tag = struct.unpack_from(f'{order}HH', begin, at)
    if tag <= before or (i == 0 and tag[0] not in _GROUPS):
      return False
    kind = begin[at + 4 : at + 6]
    if not explicit:
      (length,), head = struct.unpack_from('<I', begin, at + 4), 8
    elif not (kind.isalpha() and kind.isupper()):
      return False
    elif kind in _LONG:
      (length,), head = struct.unpack_from(f'{order}I', begin, at + 8), 12
    else:
      (length,), head = struct.unpack_from(f'{order}H', begin, at + 6), 8
    if length % 2:  # values are of even length
      return False
    at, before = at + head + length, tag
  return True
