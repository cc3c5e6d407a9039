"""The bytes that a kernel of a compiled program moves.

It reads its operands and writes its results once, wherever in the kernel they
are used. What it takes from a large array by slices or by indices counts as far
as it is taken, and what it puts into one as far as it is put there.
"""

from collections.abc import Iterator

from medseg_jax.hardware.hlo import Instruction, Program, Shape

_TAKES = ('dynamic-slice', 'slice', 'gather')

Computation = dict[str, Instruction]


def num_bytes(
  program: Program, instruction: Instruction, computation: Computation
) -> int:
  """Returns the bytes that a kernel reads and writes in the main memory.

  Args:
    program: of the kernel.
    instruction: that is the kernel.
    computation: that the instruction is in.
  """
  if instruction.opcode == 'copy-start':  # (to, from, a flag)
    return sum(_main(shape) for shape in instruction.shapes[:2])
  read = sum(
    _taken(program, instruction, number, computation)
    for number in range(len(instruction.operands))
  )
  return read + sum(_written(program, instruction, computation))


def _main(shape: Shape) -> int:
  """Returns the bytes of an array in the main memory."""
  return 0 if shape.space else shape.num_bytes


def _taken(
  program: Program,
  instruction: Instruction,
  number: int,
  computation: Computation,
) -> int:
  """Returns the bytes that an instruction takes of one of its operands."""
  operand = computation.get(instruction.operands[number])
  if operand is None:
    return 0
  whole = sum(map(_main, operand.shapes))
  if not whole:
    return 0
  if instruction.opcode in _TAKES and number == 0:
    return min(whole, sum(shape.num_bytes for shape in instruction.shapes))
  if instruction.opcode == 'dynamic-update-slice' and number == 0:
    return 0  # what is not written stays where it is
  if instruction.opcode != 'fusion':
    return whole
  most = 0
  for name in instruction.calls():
    called = program.computations.get(name, {})
    for one in called.values():
      if one.opcode == 'parameter' and one.operands == (str(number),):
        most += _taken_of_value(program, one.name, called, whole)
  return min(whole, most)


def _taken_of_value(
  program: Program, name: str, computation: Computation, whole: int
) -> int:
  """Returns the bytes that a fused computation takes of a value in it."""
  total = 0
  for user in computation.values():
    for number, operand in enumerate(user.operands):
      if operand != name or user.opcode == 'parameter':
        continue
      if user.opcode == 'bitcast' and not user.is_root:
        total += _taken_of_value(program, user.name, computation, whole)
      elif user.opcode in (*_TAKES, 'fusion', 'dynamic-update-slice'):
        total += _taken(program, user, number, computation)
      else:
        return whole
      if total >= whole:
        return whole
  return total


def _written(
  program: Program, instruction: Instruction, computation: Computation
) -> Iterator[int]:
  """Yields the bytes that an instruction writes of each of its results."""
  if instruction.opcode == 'dynamic-update-slice':
    update = computation.get(instruction.operands[1])
    yield sum(map(_main, update.shapes)) if update else 0
    return
  root, called = None, {}
  if instruction.opcode == 'fusion':
    for name in instruction.calls():
      called = program.computations.get(name, {})
      root = next((one for one in called.values() if one.is_root), None)
  if root is None:
    yield from map(_main, instruction.shapes)
    return
  results = [root]
  if root.opcode == 'tuple':
    results = [called[name] for name in root.operands if name in called]
  if len(results) != len(instruction.shapes):
    yield from map(_main, instruction.shapes)
    return
  for one, shape in zip(results, instruction.shapes, strict=True):
    while one.opcode == 'bitcast' and one.operands[0] in called:
      one = called[one.operands[0]]
    if one.opcode == 'dynamic-update-slice' and one.operands[1] in called:
      update = called[one.operands[1]]
      yield min(_main(shape), sum(s.num_bytes for s in update.shapes))
    else:
      yield _main(shape)
