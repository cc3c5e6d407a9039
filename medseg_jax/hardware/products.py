"""The arithmetic of convolutions and matrix products in a compiled program.

XLA names them differently on each platform: TPUs make convolutions of all of
them, NVIDIA's cards call cuDNN and cuBLAS. Two operations for each product of
two values that are there: one with the padding, or with a zero that a stride
puts in between, does not count.
"""

import json
import math
import re
from collections.abc import Mapping

from medseg_jax.hardware.hlo import Instruction, Shape

_CUBLAS = ('__cublas$', '__cublas$lt$', '__triton_gemm')
_WINDOW = re.compile(r'window=\{([^}]*)\}')
_LABELS = re.compile(r'dim_labels=([\w?]+)_([\w?]+)->([\w?]+)')


def is_convolution(instruction: Instruction) -> bool:
  return instruction.opcode == 'convolution' or _is_cudnn(instruction)


def is_product(instruction: Instruction) -> bool:
  """Returns whether it is a convolution or a matrix product."""
  return (
    is_convolution(instruction)
    or instruction.opcode == 'dot'
    or (
      instruction.opcode == 'custom-call'
      and instruction.attribute('custom_call_target')
      .strip('"')
      .startswith(_CUBLAS)
    )
  )


def dtype_of(operands: list[Shape]) -> str:
  """Returns the dtype that a product multiplies in: the wider of the two."""
  return max((shape.dtype for shape in operands[:2]), key=_width)


def _width(dtype: str) -> int:
  return int(re.sub(r'\D', '', dtype) or 8)


def flops(instruction: Instruction, operands: list[Shape]) -> int:
  """Returns the operations of a product.

  Args:
    instruction: for which `is_product` holds.
    operands: the shapes of its operands.
  """
  if instruction.opcode == 'dot':
    contracted = _numbers(instruction.attributes, 'lhs_contracting_dims')
    return _matmul_flops(instruction, operands, contracted)
  if not is_convolution(instruction):
    return _matmul_flops(
      instruction, operands, _contracted_by_cublas(instruction)
    )
  arrays = [*operands[:2], instruction.shapes[0]]
  target = instruction.attribute('custom_call_target')
  # cuDNN's gradients have the labels of the convolution that they are of.
  if 'BackwardFilter' in target:
    image, result, kernel = arrays
  elif 'BackwardInput' in target:
    result, kernel, image = arrays
  else:
    image, kernel, result = arrays
  return _convolution_flops(instruction, image, kernel, result)


def _is_cudnn(instruction: Instruction) -> bool:
  target = instruction.attribute('custom_call_target')
  return instruction.opcode == 'custom-call' and '__cudnn$conv' in target


def _matmul_flops(
  instruction: Instruction, operands: list[Shape], contracted: list[int]
) -> int:
  lengths = [operands[0].dims[axis] for axis in contracted]
  return 2 * instruction.shapes[0].size * math.prod(lengths)


def _numbers(text: str, name: str) -> list[int]:
  found = re.search(rf'{name}=\{{([\d,]*)\}}', text)
  return [int(n) for n in re.findall(r'\d+', found[1])] if found else []


def _contracted_by_cublas(instruction: Instruction) -> list[int]:
  found = re.search(
    r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes
  )
  return [int(n) for n in json.loads(found[1])] if found else []


def _convolution_flops(
  instruction: Instruction, image: Shape, kernel: Shape, result: Shape
) -> int:
  labels = _LABELS.search(instruction.attributes)
  if labels is None:
    return 0
  of_image, of_kernel, of_result = labels.groups()
  window = _window(instruction.attributes)
  count = (
    result.dims[of_result.index('b')]
    * result.dims[of_result.index('f')]
    * kernel.dims[of_kernel.index('i')]
  )
  for number, axis in enumerate(sorted(set(of_result) - set('bf?'))):
    count *= _products_along(
      image.dims[of_image.index(axis)],
      kernel.dims[of_kernel.index(axis)],
      result.dims[of_result.index(axis)],
      {key: values[number] for key, values in window.items()},
    )
  return 2 * count


def _window(text: str) -> dict[str, list[tuple[int, ...]]]:
  """Returns what the text says for each axis: 'stride' -> [(2,), (1,)]."""
  found = _WINDOW.search(text)
  return {
    key: [
      tuple(int(n) for n in re.findall(r'-?\d+', word))
      for word in values.split('x')
    ]
    for key, _, values in (
      setting.partition('=') for setting in (found[1] if found else '').split()
    )
  }


def _products_along(
  size: int, taps: int, outputs: int, window: Mapping[str, tuple[int, ...]]
) -> int:
  """Returns the products along an axis whose two values are there."""
  stride = window.get('stride', (1,))[0]
  low = window.get('pad', (0,))[0]
  spread = window.get('lhs_dilate', (1,))[0]
  apart = window.get('rhs_dilate', (1,))[0]
  end = (size - 1) * spread  # the last value's place
  count = 0
  for tap in range(taps):
    # Of the places at = first + n * stride that lie within 0 .. end.
    first = tap * apart - low
    begin = max(0, -(first // stride))
    stop = min(outputs - 1, (end - first) // stride)
    if spread == 1:
      count += max(stop - begin + 1, 0)
    else:
      count += sum(
        (first + n * stride) % spread == 0 for n in range(begin, stop + 1)
      )
  return count
