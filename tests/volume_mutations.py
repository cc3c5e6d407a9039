"""Files damaged at random, and what may come of reading one: all seeded.

`MEDSEG_FUZZ=N` in the environment tries N of each format in place of 200.
"""

import copy
import gzip
import json
import os
import time
import tracemalloc

import numpy as np

from medseg_jax.runtime.errors import InputError

COUNT = int(os.environ.get('MEDSEG_FUZZ') or 200)
# Far above what the small files here take, far below what a bad one could.
MOST_SECONDS, MOST_BYTES = 5.0, 32e6  # seconds of the processor
LONGEST_LINE = 400

_VALUES = [
  None, True, False, 0, -1, 1, 7, 0.5, -0.0, 1e300, -1e300, float('nan'),
  float('inf'), float('-inf'), 2**31, 2**63, 10**400, -(10**30), '', '0', '-1',
  'NaN', '1e9', 'x' * 5000, 'ignore', 'a\0b', 'a\nb', '\ud800', '../..', '/',
  '.', 'imagesTr', 'a' * 300, [], [[]], {}, [0, 1, 2], [1e9] * 3, {'0': 0},
  {'': ''}, ['a', 'b'] * 3000, [True], [float('inf')], [[1, 1, 1]] * 2,
]  # fmt: skip
_TEXTS = [
  'NaN', 'Infinity', '-Infinity', '1e999', '9' * 5000, '[' * 100_000, '\0',
  '{"a":' * 50_000, 'null', '\\ud800', '"', ',', '}', '\ufeff', '\xff', '-',
]  # fmt: skip


def damage(data: bytes, rng: np.random.Generator, *, head: int = 0) -> bytes:
  """Returns `data` with a few bytes changed, lost, doubled or added.

  Args:
    data: at least one byte.
    rng: the source of chance.
    head: most changes are among so many first bytes; 0 for anywhere.
  """
  changed = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    end = min(head, len(changed)) if head and rng.random() < 0.8 else None
    at = int(rng.integers(0, max(end or len(changed), 1)))
    length = int(rng.choice([1, 1, 2, 4, 4, 8, 64]))
    kind = rng.integers(0, 7)
    if kind == 0:  # a bit
      changed[at : at + 1] = bytes(
        b ^ (1 << rng.integers(0, 8)) for b in changed[at : at + 1]
      )
    elif kind <= 2:
      fill = [b'\0', b'\xff', b'\x7f', b'\x80'][rng.integers(0, 4)]
      changed[at : at + length] = fill * length
    elif kind == 3:
      changed[at : at + length] = rng.bytes(length)
    elif kind == 4:
      changed[at : at + length] = b''
    elif kind == 5:
      changed[at:at] = changed[at : at + length]
    else:
      changed = changed[:at]
  return bytes(changed)


def damage_numbers(data: bytes, rng: np.random.Generator) -> bytes:
  """Returns `data` with one or two fields of a NIfTI-1 header set anew."""
  changed = bytearray(data)
  for _ in range(rng.integers(1, 3)):
    field = rng.integers(0, 3)
    if field == 0:  # sizes, codes: 2 bytes
      at = int(rng.choice([*range(40, 56, 2), 70, 72, 252, 254]))
      values = [0, -1, 1, 2, 3, 4, 7, 8, 128, 256, 768, 1536, 32767, -32768]
      value = np.int16(rng.choice(values)).tobytes()
    else:  # sizes in mm, offset, slope, quaternion, affine: 4 bytes
      at = int(rng.choice([*range(76, 120, 4), *range(256, 328, 4)]))
      values = [0, -1, 1, 1e-30, 1e30, 3e38, np.nan, np.inf, -np.inf, 2e9, 1e8]
      value = np.float32(rng.choice(values)).tobytes()
    changed[at : at + len(value)] = value
  return bytes(changed)


def damage_nifti(data: bytes, rng: np.random.Generator) -> bytes:
  if rng.random() < 0.5:
    return damage_numbers(data, rng)
  return damage(data, rng, head=348)


def damage_packed(data: bytes, rng: np.random.Generator) -> bytes:
  """Returns a gzip file, damaged itself or of a damaged NIfTI file."""
  if rng.random() < 0.6:
    return gzip.compress(damage_nifti(data, rng), 1)
  return damage(gzip.compress(data, 1), rng, head=40)


def damage_json(content, rng: np.random.Generator) -> bytes:
  """Returns the JSON of `content`, with other values, or as text, damaged."""
  kind = rng.integers(0, 4)
  if kind >= 2:
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
      _replace(content, rng)
  text = json.dumps(content)
  if kind == 1:
    at = int(rng.integers(0, len(text)))
    length = int(rng.integers(0, 4))
    text = (
      text[:at] + _TEXTS[rng.integers(0, len(_TEXTS))] + text[at + length :]
    )
  data = text.encode('utf-8', 'surrogatepass')
  return damage(data, rng) if kind == 0 else data


def _replace(node, rng: np.random.Generator) -> None:
  """Sets, renames or removes something somewhere below `node`."""
  while isinstance(node, dict | list) and node:
    key = list(node)[rng.integers(0, len(node))]
    if isinstance(node, list):
      key = int(rng.integers(0, len(node)))
    if rng.random() < 0.6 and isinstance(node[key], dict | list) and node[key]:
      node = node[key]
      continue
    kind = rng.integers(0, 6)
    value = copy.deepcopy(_VALUES[rng.integers(0, len(_VALUES))])
    if kind == 0:
      del node[key]
    elif kind == 1 and isinstance(node, dict):
      node[str(value)[:400]] = node.pop(key)
    elif kind == 1:
      node.append(node[key])
    else:
      node[key] = value
    return


def assert_reads_or_says_why(read, data, *, hide: str = '') -> bool:
  """Calls `read(data)`; returns whether it gave something.

  It may raise an InputError of one line, take a while and some memory. It
  returns the lines that it found worth telling, or None.

  Args:
    read: reads what is damaged.
    data: to read.
    hide: the folder of the test, which does not count for the length of lines.
  """
  tracemalloc.start()
  start = time.process_time()
  try:
    lines, good = read(data) or [], True
  except InputError as error:
    lines, good = [str(error), *getattr(error, 'problems', ())], False
  seconds = time.process_time() - start
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert seconds < MOST_SECONDS and peak < MOST_BYTES, (seconds, peak)
  for line in lines:
    shown = line.replace(hide, '')
    assert len(shown.splitlines()) == 1, shown
    assert 10 < len(shown) <= LONGEST_LINE, shown
  return good
