"""The lines of `--mode=compile`, from the content of `compile.json`."""

from collections.abc import Iterator
from typing import Any

PROGRAMS = {'train_step': 'the training step', 'predict': 'prediction'}


def of(result: dict[str, Any]) -> str:
  """Returns the lines, of at most 80 columns.

  Args:
    result: as `compile.run` writes it.
  """
  return '\n'.join(_lines(result))


def gib(num_bytes: float) -> str:
  """Returns a number of bytes in GiB, or in MiB where that is less than 1."""
  if num_bytes < 0.1 * 2**30:
    return f'{num_bytes / 2**20:.3g} MiB'
  return f'{num_bytes / 2**30:.2f} GiB'


def _lines(result: dict[str, Any]) -> Iterator[str]:
  size = 'x'.join(map(str, result['patch_size']))
  mesh = result['mesh']
  yield (
    f'{result["topology"]}: {result["num_devices"]} x {result["device"]}, '
    f'{mesh["data"]} x {mesh["spatial"]} (data x spatial)'
  )
  yield (
    f'{result["batch_size"]} patches of {size}, {result["dtype"]}; '
    'figures are of one device'
  )
  for key, name in PROGRAMS.items():
    yield ''
    yield name.removeprefix('the ').upper()
    yield from _program(result[key], result['memory_bytes_of_device'])
  if result['largest_batch_is_limit'] is not None:
    largest = result['largest_batch_size']
    yield ''
    if largest is None:
      yield 'not even the smallest batch fits'
    else:
      end = '' if result['largest_batch_is_limit'] else ', and larger ones may'
      yield f'largest batch that was found to fit: {largest}{end}'


def _program(found: dict[str, Any], available: int) -> Iterator[str]:
  needed = found['memory_bytes']
  yield _line(
    'memory',
    f'{"more than" if needed is None else gib(needed)} '
    f'{"" if needed is None else "of "}{gib(available)}'
    + ('' if found['fits'] else ': does not fit'),
  )
  if 'flops' not in found:
    return
  for name, num_bytes in found['memory_bytes_of'].items():
    yield _line('', f'{name} {gib(num_bytes)}')
  by_dtype = ', '.join(
    f'{row["count"]} in {dtype}' for dtype, row in found['convolutions'].items()
  )
  yield _line('convolutions', f'{found["flops"] / 1e12:.4g} TFLOP: {by_dtype}')
  yield _line('moved', gib(found['bytes']))
  changes = found['layout_changes']
  yield _line(
    'kernels',
    f'{found["kernels"]:,}, {changes["count"]} only change a layout '
    f'({gib(changes["bytes"])})',
  )
  changes = found['fused_layout_changes']
  yield _line(
    '', f'{changes["count"]} do on the way ({gib(changes["bytes"])} turned)'
  )
  for kind, row in found['collectives'].items():
    yield _line(kind, f'{row["count"]}, {gib(row["bytes"])}')
  yield _line(
    'least time',
    f'{found["least_ms"]:.4g} ms, {found["bandwidth_share"]:.0%} of it waits '
    'for memory',
  )
  for kind, share in found['least_share'].items():
    if share:
      yield _line('', f'{share:>4.0%}  {kind}')
  part = found['augmentation']
  if part['kernels']:
    yield _line(
      'of these the batch',
      f'{part["least_ms"]:.3g} ms, {part["least_share"]:.1%}, '
      f'{gib(part["bytes"])}, {part["kernels"]:,} kernels',
    )
    yield _line('', 'augmentation, and cutting out its patches')


def _line(name: str, text: str) -> str:
  return f'  {name:<20}{text}'.rstrip()
