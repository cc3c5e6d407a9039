"""The tables of `--mode=benchmark`, from the content of `benchmark.json`."""

from collections.abc import Iterable
from typing import Any

from medseg_jax.runtime.errors import counted

STEP_PARTS = {
  'reading': 'reading patches',
  'host_to_device': 'host to device',
  'augmentation': 'augmentation',
  'forward': 'forward pass, loss',
  'backward': 'backward pass',
  'optimizer': 'optimizer',
}
INFERENCE_PARTS = {
  'preprocessing': 'preprocessing',
  'network': 'network',
  'stitching': 'cutting, adding up',
  'decoding': 'own grid, argmax',
}


def tables(result: dict[str, Any]) -> str:
  """Returns the tables as lines of at most 80 columns.

  Args:
    result: as written by `benchmark.run`; whatever is None is left out.
  """
  blocks = [_training, _prediction, _limits]
  if result['sweep'] is not None:
    blocks.append(_sweep)
  return '\n\n'.join('\n'.join(block(result)) for block in blocks)


def _training(result) -> Iterable[str]:
  size = 'x'.join(map(str, result['patch_size']))
  yield (
    f'TRAINING STEP  {counted(result["batch_size"], "patch", "patches")} of '
    f'{size}, {result["dtype"]}, {result["num_devices"]} x {result["device"]}'
  )
  yield from _parts(
    STEP_PARTS, result['breakdown_ms'], result['breakdown_share']
  )
  yield _line(
    'the whole step',
    result['step_ms'],
    f'{_short(result["images_per_s"])} images/s',
  )
  rate = result['end_to_end_images_per_s']
  if rate is not None:
    waiting = result['data_wait_frac']
    yield _line(
      'with loading, in a loop',
      1e3 * result['batch_size'] / rate,
      f'{_short(rate)} images/s, {waiting:.1%} waiting for data',
    )
  memory = result['peak_memory_bytes'] or result['program_memory_bytes']
  if memory is not None:
    yield f'  {"memory of a device":<26}{memory / 1e9:>10.2f} GB'


def _prediction(result) -> Iterable[str]:
  yield 'PREDICTION  one held-out case, already read'
  yield from _parts(
    INFERENCE_PARTS,
    result['inference_breakdown_ms'],
    result['inference_breakdown_share'],
  )
  rate = result['inference_images_per_s']
  yield _line('the whole case', 1e3 / rate, f'{_short(rate)} cases/s')


def _limits(result) -> Iterable[str]:
  yield 'LIMITS OF THE MACHINE  measured'
  rate = result['tflops_per_s']
  yield (
    f'  {"arithmetic":<26}{1e3 * result["peak_tflops_per_s"]:>10,.0f} GFLOP/s'
    f'  the step reaches {1e3 * rate:,.0f} ({result["mfu"]:.0%})'
  )
  yield (f'  {"memory":<26}{result["memory_bandwidth_gb_per_s"]:>10,.0f} GB/s')
  least = least_ms(result)
  yield _line(
    'least time, arithmetic',
    least['compute'],
    f'{result["flops_per_step"] / 1e9:,.1f} GFLOP in a step',
  )
  if 'memory' in least:
    yield _line(
      'least time, memory',
      least['memory'],
      f'{result["bytes_per_step"] / 1e9:,.2f} GB read and written',
    )
  times = f'{1 / result["roofline_ratio"]:.3g}'
  yield (
    f'  limited by {result["limit"]}: '
    + {
      'data': 'the devices wait for patches',
      'compute': f'the step takes {times} times as long as its arithmetic',
      'memory': f'the step takes {times} times as long as its memory traffic',
    }[result['limit']]
  )


def least_ms(result: dict[str, Any]) -> dict[str, float]:
  """Returns the milliseconds that arithmetic and memory traffic take at least.

  `{'compute': ms, 'memory': ms}`, the latter where the traffic is known.
  """
  least = {
    'compute': result['flops_per_step'] / result['peak_tflops_per_s'] / 1e9
  }
  if result['bytes_per_step'] is not None:
    least['memory'] = (
      result['bytes_per_step'] / result['memory_bandwidth_gb_per_s'] / 1e6
    )
  return least


def _sweep(result) -> Iterable[str]:
  yield 'BATCH SIZE  of the step alone'
  yield f'  {"batch":>6}{"ms":>12}{"images/s":>12}{"memory":>12}'
  for row in result['sweep']:
    memory = row['memory_bytes']
    memory = '' if memory is None else f'{memory / 1e9:.2f} GB'
    best = '  best' if row['batch_size'] == result['best_batch_size'] else ''
    yield (
      f'  {row["batch_size"]:>6}{_short(row["step_ms"]):>12}'
      f'{_short(row["images_per_s"]):>12}{memory:>12}{best}'
    )
  largest = result['largest_batch_size']
  if largest is None:
    yield '  not even the smallest batch fits'
  else:
    end = '' if result['largest_batch_is_limit'] else ', and larger ones may'
    yield f'  largest that was found to fit: {largest}{end}'


def _parts(names, milliseconds, shares) -> Iterable[str]:
  for key, name in names.items():
    if milliseconds.get(key):  # nothing is sent where the data set is
      share = f'{shares[key]:>4.0%} {"#" * round(30 * shares[key])}'
      yield _line(name, milliseconds[key], share)
  yield _line('sum of the parts', sum(milliseconds.values()), '')


def _line(name: str, milliseconds: float, rest: str) -> str:
  return f'  {name:<26}{_short(milliseconds):>10} ms  {rest}'.rstrip()


def _short(number: float) -> str:
  """Returns three digits or all before the point: 0.0123, 12.3, 12,345."""
  if number >= 100:
    return f'{number:,.0f}'
  digits = 3 if number < 0.1 else 2 if number < 1 else 1
  return f'{number:.{digits}f}'
