"""What a compiled program does on one device: kernels, bytes, operations.

Counted in the text of the program, the same way for every platform. Loops count
as many times as the text says they turn, else once.
"""

import collections
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from medseg_jax.hardware import collectives, products, traffic
from medseg_jax.hardware.hlo import Instruction, Program, Shape

CONVOLUTION, LAYOUT, COLLECTIVE, OTHER = KINDS = (
  'convolutions',
  'layout changes',
  'collectives',
  'others',
)
# Names for what is there already.
_FREE = (
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('after-all', 'add-dependency', 'opt-barrier', 'optimization-barrier'),
  'recv',  # counts where it is sent
  *('partition-id', 'replica-id', 'async-update', 'async-done', 'copy-done'),
)
_MOVES = ('copy', 'transpose')
# What a kernel may do besides moving values and still change nothing else.
_NO_WORK = ('parameter', 'constant', 'bitcast', 'reshape', 'convert', 'tuple')

Computation = dict[str, Instruction]


class Kernel(NamedTuple):
  """A kernel, or a collective.

  Attributes:
    name: of its instruction.
    kind: one of `KINDS`.
    times: how often it runs.
    num_bytes: that it reads and writes in the main memory; of a collective the
      larger of what goes in and what comes out.
    size: values of its largest result.
    flops: dtype -> operations of its convolutions and matrix products.
    products: dtype -> how many of these there are.
    turned: bytes of the arrays, none of them a weight, that it copies or
      transposes on the way.
    collective: 'all-reduce', 'all-gather', ...; '' for a kernel.
    groups: of devices that a collective is among; () where the text does not
      tell.
    copies: whether it is a copy between memories, no kernel.
    scope: where in the traced program it comes from, names between slashes; ''
      where the text does not tell.
  """

  name: str
  kind: str
  times: int
  num_bytes: int
  size: int
  flops: dict[str, int]
  products: dict[str, int]
  turned: int = 0
  collective: str = ''
  groups: tuple[tuple[int, ...], ...] = ()
  copies: bool = False
  scope: str = ''


def kernels(program: Program, weights: Collection[int] = ()) -> list[Kernel]:
  """Returns all that the program runs, in its order.

  Args:
    program: of one device.
    weights: sizes of the weights. Kernels that only change the layout of an
      array of such a size are no layout changes but 'others': there will be
      weights of that size, and they are small.
  """
  entry = program.computations[program.entry]
  return list(_walk(program, entry, 1, frozenset(weights)))


def _walk(
  program: Program, computation: Computation, times: int, weights: frozenset
) -> Iterator[Kernel]:
  for instruction in computation.values():
    opcode = instruction.opcode
    inner = [
      program.computations[name]
      for name in instruction.calls()
      if name in program.computations
    ]
    if opcode in _FREE or opcode.endswith('-done'):
      continue
    if opcode == 'while':
      turns = times * _turns(program, instruction, computation)
      for body in inner:
        yield from _walk(program, body, turns, weights)
    elif opcode == 'conditional':
      branches = [list(_walk(program, c, times, weights)) for c in inner]
      yield from max(branches, key=_total_bytes, default=[])
    elif opcode in ('call', 'async-start'):
      for called in inner:
        yield from _walk(program, called, times, weights)
    elif found := collectives.find(instruction, inner):
      yield _collective(found, computation, times)
    else:
      yield _kernel(program, computation, instruction, times, weights)


def _total_bytes(found: list[Kernel]) -> int:
  return sum(kernel.times * kernel.num_bytes for kernel in found)


def _turns(
  program: Program, instruction: Instruction, computation: Computation
) -> int:
  """Returns how often a loop turns; 1 where that is not to be seen.

  Some compilers write it down. Else, as all loops of JAX count from 0 on, it is
  the constant that the condition compares with, perhaps one of the values that
  the loop begins with.
  """
  found = re.search(r'"known_trip_count":\{"n":"?(\d+)', instruction.attributes)
  if found:
    return int(found[1])
  condition = program.computations.get(instruction.attribute('condition'), {})
  root = next((one for one in condition.values() if one.is_root), None)
  if (
    root is None
    or root.opcode != 'compare'
    or (root.attribute('direction') != 'LT')
  ):
    return 1
  limit = condition.get(root.operands[1])
  if limit is not None and limit.opcode == 'get-tuple-element':
    begin = computation.get(instruction.operands[0])
    if begin is None or begin.opcode != 'tuple':
      return 1
    limit = computation.get(begin.operands[int(limit.attribute('index'))])
  if limit is None or limit.opcode != 'constant':
    return 1
  return int(limit.operands[0])


def _collective(
  instruction: Instruction, computation: Computation, times: int
) -> Kernel:
  arrays = _arrays(instruction, computation)
  return Kernel(
    name=instruction.name,
    kind=COLLECTIVE,
    times=times,
    num_bytes=collectives.num_bytes(instruction, arrays),
    size=max((shape.size for shape in instruction.shapes), default=0),
    flops={},
    products={},
    collective=collectives.name_of(instruction),
    groups=collectives.groups_of(instruction.attributes),
    scope=instruction.scope,
  )


def _kernel(
  program: Program,
  computation: Computation,
  instruction: Instruction,
  times: int,
  weights: frozenset,
) -> Kernel:
  flops: collections.Counter[str] = collections.Counter()
  count: collections.Counter[str] = collections.Counter()
  for product, arrays in _products(program, instruction, computation):
    dtype = products.dtype_of(arrays)
    flops[dtype] += products.flops(product, arrays)
    count[dtype] += 1
  size = max((shape.size for shape in instruction.shapes), default=0)
  turned = sum(
    shape.num_bytes
    for shape in _turned(program, instruction)
    if shape.size not in weights
  )
  kind = OTHER
  if count:
    kind = CONVOLUTION
  elif turned and _only_moves(program, instruction):
    kind = LAYOUT
  return Kernel(
    name=instruction.name,
    kind=kind,
    times=times,
    num_bytes=traffic.num_bytes(program, instruction, computation),
    size=size,
    flops=dict(flops),
    products=dict(count),
    turned=turned,
    copies=instruction.opcode == 'copy-start',
    scope=_scope(program, instruction),
  )


def _scope(program: Program, instruction: Instruction) -> str:
  """Returns the scope of a kernel, of what is fused in it where it has none."""
  if instruction.scope or instruction.opcode != 'fusion':
    return instruction.scope
  for name in instruction.calls():
    for one in program.computations.get(name, {}).values():
      if scope := _scope(program, one):
        return scope
  return ''


def within(found: Iterable[Kernel], scope: str) -> list[Kernel]:
  """Returns the kernels that come from a `jax.named_scope`."""
  return [kernel for kernel in found if scope in kernel.scope.split('/')]


def _products(
  program: Program, instruction: Instruction, computation: Computation
) -> Iterator[tuple[Instruction, list[Shape]]]:
  """Yields the convolutions and products of a kernel, with their operands."""
  if products.is_product(instruction):
    yield instruction, _arrays(instruction, computation)
  if instruction.opcode != 'fusion':
    return
  for name in instruction.calls():
    called = program.computations.get(name, {})
    for one in called.values():
      yield from _products(program, one, called)


def _turned(program: Program, instruction: Instruction) -> Iterator[Shape]:
  """Yields the arrays that a kernel copies or transposes on the way."""
  if instruction.opcode in _MOVES:
    yield from instruction.shapes
  if instruction.opcode == 'fusion':
    for name in instruction.calls():
      for one in program.computations.get(name, {}).values():
        yield from _turned(program, one)


def _only_moves(program: Program, instruction: Instruction) -> bool:
  if instruction.opcode in _MOVES:
    return True
  if instruction.opcode != 'fusion':
    return False
  found = False
  for name in instruction.calls():
    for one in program.computations.get(name, {}).values():
      if one.opcode == 'fusion':
        if not _only_moves(program, one):
          return False
        found = True
      elif one.opcode in _MOVES:
        found = True
      elif one.opcode not in _NO_WORK:
        return False
  return found


def _arrays(instruction: Instruction, computation: Computation) -> list[Shape]:
  return [
    shape
    for name in instruction.operands
    if name in computation
    for shape in computation[name].shapes
  ]


class Totals(NamedTuple):
  """Sums over all that a program runs on a device.

  Attributes:
    kernels: launched, collectives among them.
    num_bytes: read and written.
    flops: of convolutions and matrix products.
    products: dtype -> {'count', 'flops'} of these.
    collectives: kind -> {'count', 'bytes'}.
    layout_changes: {'count', 'bytes'}: kernels that only copy or transpose.
    turned: {'count', 'bytes'}: kernels that do so on the way to something else,
      and how much of their arrays.
  """

  kernels: int
  num_bytes: int
  flops: int
  products: dict[str, dict[str, int]]
  collectives: dict[str, dict[str, int]]
  layout_changes: dict[str, int]
  turned: dict[str, int]


def total(found: list[Kernel]) -> Totals:
  """Returns the sums over kernels."""
  by_dtype: dict[str, dict[str, int]] = {}
  by_collective: dict[str, dict[str, int]] = {}
  changes, turned = {'count': 0, 'bytes': 0}, {'count': 0, 'bytes': 0}
  for kernel in found:
    times = kernel.times
    for dtype, count in kernel.products.items():
      row = by_dtype.setdefault(dtype, {'count': 0, 'flops': 0})
      row['count'] += times * count
      row['flops'] += times * kernel.flops[dtype]
    if kernel.collective:
      row = by_collective.setdefault(
        kernel.collective, {'count': 0, 'bytes': 0}
      )
      row['count'] += times
      row['bytes'] += times * kernel.num_bytes
    if kernel.kind == LAYOUT:
      changes['count'] += times
      changes['bytes'] += times * kernel.num_bytes
    elif kernel.turned:
      turned['count'] += times
      turned['bytes'] += times * kernel.turned
  return Totals(
    kernels=sum(kernel.times for kernel in found if not kernel.copies),
    num_bytes=_total_bytes(found),
    flops=sum(row['flops'] for row in by_dtype.values()),
    products=by_dtype,
    collectives=by_collective,
    layout_changes=changes,
    turned=turned,
  )


def collectives_along(
  found: list[Kernel], shape: Mapping[str, int]
) -> dict[str, dict[str, dict[str, int]]]:
  """Returns axes of the mesh -> kind -> {'count', 'bytes'} of collectives.

  Args:
    found: of a program.
    shape: name -> size of the mesh's axes. Two axes are 'data, spatial'.
  """
  result: dict[str, dict[str, dict[str, int]]] = {}
  for kernel in found:
    if kernel.collective:
      axes = ', '.join(collectives.axes_of(kernel.groups, shape))
      kinds = result.setdefault(axes, {})
      row = kinds.setdefault(kernel.collective, {'count': 0, 'bytes': 0})
      row['count'] += kernel.times
      row['bytes'] += kernel.times * kernel.num_bytes
  return result
