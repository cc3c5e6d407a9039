"""What devices send each other in a compiled program."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from medseg_jax.hardware.hlo import Instruction, Shape

NAMES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
  'all-to-all',
)
Groups = tuple[tuple[int, ...], ...]

_LIST = re.compile(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}')
_COUNT = re.compile(
  r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
# Between slices of TPUs: what every chip sends to its like in the others.
_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_TARGET = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')


def name_of(instruction: Instruction) -> str:
  """Returns the collective that an instruction is, '' where it is none."""
  name = instruction.opcode.removesuffix('-start')
  found = _SLICES.search(instruction.attributes) if name == 'send' else None
  if found:
    name = found[1].lower().replace('_', '-')
  return name if name in NAMES else ''


def find(
  instruction: Instruction, inner: Iterable[Mapping[str, Instruction]]
) -> Instruction | None:
  """Returns the collective that an instruction is, or has been fused with.

  Args:
    instruction: any.
    inner: the computations that it calls.
  """
  if name_of(instruction):
    return instruction
  if instruction.opcode == 'fusion':
    for called in inner:
      for one in called.values():
        if name_of(one):
          return one
  return None


def num_bytes(instruction: Instruction, operands: list[Shape]) -> int:
  """Returns the larger of what goes into a device and what comes out of it."""
  into = sum(shape.num_bytes for shape in operands)
  out = sum(shape.num_bytes for shape in instruction.shapes)
  if instruction.opcode.endswith('-start') and (
    instruction.opcode != 'all-reduce-start'
  ):
    out -= into  # it names both what goes in and what comes out
  return max(into, out)


def groups_of(text: str) -> Groups:
  """Returns the devices that talk to each other, () where it is not told.

  Args:
    text: of the instruction. XLA writes groups as `{{0,2},{1,3}}`, as
      `[2,2]<=[2,2]T(1,0)` (the numbers 0 to 3 as an array, transposed, in rows)
      or as `mesh['a'=2,'b'=2] {'a'}` (all along some axes of an array), and
      between slices as `{1,2}x{0:15}` (each chip with its like in the other).
  """
  if found := _LIST.search(text):
    return tuple(
      tuple(int(n) for n in row.split(','))
      for row in re.findall(r'\{([\d,]+)\}', found[1])
    )
  if found := _COUNT.search(text):
    sizes = [int(n) for n in found[3].split(',')]
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    if found[4]:
      ids = ids.transpose([int(n) for n in found[4].split(',')])
    return _rows(ids.reshape(int(found[1]), int(found[2])))
  if found := _MESH.search(text):
    axes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
    sizes = [int(size) for size in axes.values()]
    along = [list(axes).index(name) for name in _axes(found[2], axes)]
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    length = int(np.prod([sizes[axis] for axis in along]))
    ids = np.moveaxis(ids, along, range(-len(along), 0))
    return _rows(ids.reshape(-1, length))
  if found := _TARGET.search(text):
    slices, chips = (_numbers(part) for part in found.groups())
    each = max(chips) + 1  # of a slice
    first = min(slices)
    return tuple(
      tuple((n - first) * each + chip for n in slices) for chip in chips
    )
  return ()


def _numbers(text: str) -> list[int]:
  """Returns the numbers of a text like `0,2:4`, which are 0, 2, 3 and 4."""
  result: list[int] = []
  for part in text.split(','):
    begin, _, end = part.partition(':')
    result += range(int(begin), int(end or begin) + 1)
  return result


def axes_of(groups: Groups, shape: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the axes of the mesh that the groups lie along, in its order.

  Args:
    groups: of positions in the mesh; () for all of them together.
    shape: name -> size of the mesh's axes.
  """
  if not groups:
    return tuple(name for name, size in shape.items() if size > 1)
  sizes = tuple(shape.values())
  places = [np.unravel_index(np.array(group), sizes) for group in groups]
  return tuple(
    name
    for i, name in enumerate(shape)
    if any(np.any(place[i] != place[i][0]) for place in places)
  )


def _axes(text: str, known: Mapping[str, str]) -> list[str]:
  return [name for name in re.findall(r"'([^']+)'", text) if name in known]


def _rows(ids: np.ndarray) -> Groups:
  return tuple(tuple(row) for row in ids.tolist())
