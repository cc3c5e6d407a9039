"""Damage to files, as disks, networks and editors do it, from a seed."""

import os
import struct
import zlib

import numpy as np

# Values that a reader's arithmetic may stumble over.
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
             0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)  # fmt: skip
_PNG = b'\x89PNG\r\n\x1a\n'


def num_mutations(default: int) -> int:
  """Returns how many mutations of each file to try: MEDSEG_FUZZ, or default."""
  return int(os.environ.get('MEDSEG_FUZZ') or default)


def mutate(data: bytes, seed: int) -> bytes:
  """Returns a damaged copy: one to four changes, most of them at the start.

  Checksums of a PNG are put right in every second one, so that its decoder
  goes on to what was changed.
  """
  rng = np.random.default_rng(seed)
  result = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    _change(result, rng)
  if data.startswith(_PNG) and rng.random() < 0.5:
    _put_checksums_right(result)
  return bytes(result)


def _change(data: bytearray, rng: np.random.Generator) -> None:
  size = len(data)
  if not size:
    return
  # Headers are at the start, in some TIFF files at the end.
  reach = size if rng.random() < 0.4 else min(size, 200)
  at = int(rng.integers(reach))
  if rng.random() < 0.2:
    at = size - 1 - at
  length = int(rng.integers(1, 17))
  kind = rng.integers(8)
  if kind == 0:
    data[at] ^= 1 << rng.integers(8)
  elif kind == 1:
    data[at] = rng.integers(256)
  elif kind == 2:
    del data[at:]
  elif kind == 3:
    del data[at : at + length]
  elif kind == 4:
    data[at:at] = rng.bytes(length)
  elif kind == 5:
    data[at : at + length] = bytes(length)
  else:
    order = '<' if rng.random() < 0.5 else '>'
    value = int(rng.choice(_EXTREMES))
    if kind == 6:
      data[at : at + 2] = struct.pack(order + 'H', value & 0xFFFF)
    else:
      data[at : at + 4] = struct.pack(order + 'I', value)


def _put_checksums_right(data: bytearray) -> None:
  at = len(_PNG)
  while at + 12 <= len(data):
    length = int.from_bytes(data[at : at + 4], 'big')
    end = at + 8 + length
    if end + 4 > len(data):
      return
    check = zlib.crc32(data[at + 4 : end])
    data[end : end + 4] = struct.pack('>I', check)
    at = end + 4
