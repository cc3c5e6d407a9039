"""The text of a compiled program, `compiled.as_text()`, as plain data.

XLA's optimised HLO is one text on all platforms: computations, each a list of
instructions `%name = shape opcode(operands), attributes`. Shapes carry their
layout in memory, `bf16[2,32,32,16]{3,2,1,0:T(8,128)(2,1)S(1)}`: the axes from
the fastest on, the tiles that the last two are padded to (TPU), and the memory
(none: the device's main one).
"""

import math
import re
from typing import NamedTuple

BITS = {
  'pred': 8,
  **{f'{sign}{n}': n for sign in 'su' for n in (2, 4, 8, 16, 32, 64)},
  **{'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128},
}

_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?')
_COMMENT = re.compile(r'/\*.*?\*/')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = ')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_CLOSING = {'(': ')', '[': ']', '{': '}'}


class Shape(NamedTuple):
  """An array in memory.

  Attributes:
    dtype: as HLO writes it: 'bf16', 'f32', 's32', 'pred'.
    dims: its size.
    minor_to_major: axes from the fastest on; () where the text has no layout.
    tile: what the fastest axes are padded to multiples of, slowest first.
    space: 0 for the main memory; others lie in the chip.
  """

  dtype: str
  dims: tuple[int, ...]
  minor_to_major: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def size(self) -> int:
    """Returns the number of values."""
    return math.prod(self.dims)

  @property
  def num_bytes(self) -> int:
    """Returns the bytes that it takes, padding of the tiles included."""
    dims = list(self.dims)
    axes = self.minor_to_major
    for axis, multiple in zip(axes, reversed(self.tile), strict=False):
      dims[axis] = -(-dims[axis] // multiple) * multiple
    return math.prod(dims) * BITS.get(self.dtype, 0) // 8


class Instruction(NamedTuple):
  """A line of a computation.

  Attributes:
    name: without the '%'.
    shapes: of the result; those of a tuple one after the other.
    opcode: 'fusion', 'convolution', 'all-reduce', ...
    operands: names.
    attributes: all behind the operands, as text.
    is_root: whether it is the computation's result.
  """

  name: str
  shapes: tuple[Shape, ...]
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool

  def attribute(self, name: str) -> str:
    """Returns the word after `name=`; '' where there is none."""
    found = re.search(rf'(?:^|[ ,]){name}=%?([^\s,{{]+)', self.attributes)
    return found[1] if found else ''

  @property
  def scope(self) -> str:
    """Returns where in the traced program it comes from; '' if not told."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  def calls(self) -> tuple[str, ...]:
    """Returns the computations that it names, but for a while's condition."""
    names = re.findall(
      r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)',
      self.attributes,
    )
    for group in re.findall(
      r'(?:branch_computations|called_computations)=\{([^}]*)\}',
      self.attributes,
    ):
      names += [name.strip().lstrip('%') for name in group.split(',')]
    return tuple(names)


class Program(NamedTuple):
  """A compiled program.

  Attributes:
    entry: name of the computation that is run.
    computations: name -> instructions, in the order of the text.
  """

  entry: str
  computations: dict[str, dict[str, Instruction]]


def parse(text: str) -> Program:
  """Returns the program of an HLO text.

  Raises:
    ValueError: the text has no entry computation.
  """
  entry = ''
  computations: dict[str, dict[str, Instruction]] = {}
  current: dict[str, Instruction] | None = None
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = computations[header[2]] = {}
        entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      current = None
    elif (instruction := parse_instruction(line)) is not None:
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('the text has no ENTRY computation: it is no HLO')
  return Program(entry, computations)


def parse_instruction(line: str) -> Instruction | None:
  """Returns the instruction of a line; None where it holds none."""
  line = _COMMENT.sub('', line)
  begin = _INSTRUCTION.match(line)
  if begin is None:
    return None
  rest = line[begin.end() :]
  end = _end_of_group(rest) if rest.startswith('(') else rest.find(' ')
  opcode = _OPCODE.match(rest, end)
  if end < 0 or opcode is None:
    return None
  opened = opcode.end() - 1
  closed = opened + _end_of_group(rest[opened:])
  operands: tuple[str, ...] = ()
  if opcode[1] not in ('constant', 'parameter'):
    operands = _operands(rest[opened + 1 : closed - 1])
  else:  # the number of a parameter
    operands = (rest[opened + 1 : closed - 1].strip(),)
  return Instruction(
    name=begin[2],
    shapes=parse_shapes(rest[:end]),
    opcode=opcode[1],
    operands=operands,
    attributes=rest[closed:].lstrip(', '),
    is_root=bool(begin[1]),
  )


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """Returns the arrays of a shape, of a tuple all one after the other."""
  return tuple(
    _shape(*found) for found in _ARRAY.findall(text) if found[0] in BITS
  )


def _shape(dtype: str, dims: str, layout: str) -> Shape:
  order, _, rest = layout.partition(':')
  tile = re.match(r'T\(([\d,]*)\)', rest)
  space = re.search(r'S\((\d+)\)', rest)
  return Shape(
    dtype,
    _integers(dims),
    _integers(order),
    _integers(tile[1]) if tile else (),
    int(space[1]) if space else 0,
  )


def _integers(text: str) -> tuple[int, ...]:
  """Returns the numbers of '2,3'; bounds of dynamic sizes count as sizes."""
  return tuple(int(word) for word in re.findall(r'\d+', text))


def _end_of_group(text: str) -> int:
  """Returns where the bracket that `text` begins with has been closed."""
  waiting: list[str] = []
  quoted = False
  for i, letter in enumerate(text):
    if letter == '"' and text[i - 1 : i] != '\\':
      quoted = not quoted
    if quoted:
      continue
    if letter in _CLOSING:
      waiting.append(_CLOSING[letter])
    elif waiting and letter == waiting[-1]:
      waiting.pop()
      if not waiting:
        return i + 1
  return len(text)


def _operands(text: str) -> tuple[str, ...]:
  """Returns the names; each may have its shape before it."""
  names, depth, begin = [], 0, 0
  for i, letter in enumerate([*text, ',']):
    if letter in _CLOSING:
      depth += 1
    elif letter in _CLOSING.values():
      depth -= 1
    elif letter == ',' and depth == 0:
      words = text[begin:i].split()
      if words:
        names.append(words[-1].lstrip('%'))
      begin = i + 1
  return tuple(names)
