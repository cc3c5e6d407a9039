"""What compiled steps may take: a change that costs is seen without hardware.

  python benchmarks/budgets.py [--write] [NAME ...]

Compiles training steps for chips that are not there and compares with
budgets.json: kernels, those that only copy or transpose, arrays that are turned
on the way, convolutions by dtype, collectives, bytes, memory. Exit status 1 and
a line for all that is more. Budgets are those of one version of jax; with
another, and without the compiler (`pip install 'jax[tpu]'`, `'jax[cuda12]'`), a
line says what is skipped. --write takes what is found as the new budget.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
FILE = pathlib.Path(__file__).with_suffix('.json')
MORE = 1.01  # of bytes; numbers of things may not grow at all


class Case(NamedTuple):
  """A program to compile: for which devices, and the keys of its config."""

  topology: str
  keys: dict[str, Any]


_SMALL = {
  'patch_size': (32, 32, 32),
  'model.depth': 3,
  'model.features': 8,
}
CASES = {
  'tpu_small': Case('v5e:2x2', {**_SMALL, 'batch_size': 4, 'mesh.spatial': 2}),
  'gpu_small': Case('h100:4', {**_SMALL, 'batch_size': 4, 'mesh.spatial': 2}),
  'gpu_3d': Case('h100:1', {'batch_size': 2}),  # about a minute
}


def main() -> int:
  """Returns 1 where something is more than its budget, else 0."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(CASES))
  parser.add_argument('--write', action='store_true')
  args = parser.parse_args()
  unknown = sorted(set(args.names) - set(CASES))
  if unknown:
    parser.error(f'no such case: {", ".join(unknown)}')
  status = 0
  for name in args.names or CASES:
    reason = missing(name)
    if reason:
      print(f'{name}: skipped: {reason}')
      continue
    found = compiled(name)
    if args.write:
      write(name, found)
      print(f'{name}: written')
      continue
    reason = another_version(name)
    if reason:
      print(f'{name}: skipped: {reason}')
      continue
    more = list(exceeded(found, read()[name]['most']))
    for line in more:
      print(f'{name}: {line}')
    if not more:
      print(f'{name}: within its budget')
    status |= bool(more)
  return status


def read() -> dict[str, Any]:
  return json.loads(FILE.read_text()) if FILE.exists() else {}


def write(name: str, found: Mapping[str, float]) -> None:
  import jax

  budgets = read()
  budgets[name] = {'jax': jax.__version__, 'most': dict(found)}
  FILE.write_text(json.dumps(budgets, indent=1, sort_keys=True) + '\n')


def missing(name: str) -> str:
  """Returns why a case cannot be compiled here, '' where it can."""
  from medseg_jax.hardware import topologies
  from medseg_jax.runtime.errors import InputError

  try:
    topologies.prepare_process(topologies.parse(CASES[name].topology))
  except InputError as error:
    return str(error)
  return ''


def another_version(name: str) -> str:
  """Returns why there is no budget for this jax, '' where there is one."""
  import jax

  version = read().get(name, {}).get('jax')
  if version == jax.__version__:
    return ''
  return f'the budget is of jax {version}, this is {jax.__version__}'


def compiled(name: str) -> dict[str, float]:
  """Returns what the step of a case takes on a device, by name."""
  sys.path.append(str(ROOT))  # for what the config imports
  import unet_3d

  from medseg_jax.experiment.overrides import apply
  from medseg_jax.hardware import topologies
  from medseg_jax.programs import compile as compile_program
  from medseg_jax.runtime import process

  topology = topologies.parse(CASES[name].topology)
  process.add_xla_flags(topologies.prepare_process(topology))
  config = unet_3d.get_config()
  for key in config.augment:
    if key.endswith('_prob'):
      config.augment[key] = 0.0
  config.data.device_cache = 'off'
  config.inference.mirror = False
  apply(config, [(key, str(value)) for key, value in CASES[name].keys.items()])
  config.data.phantom.num_train = 1
  with tempfile.TemporaryDirectory() as folder:
    result = compile_program.run(
      config, pathlib.Path(folder), topology=topology
    )
  return dict(_numbers(result['train_step']))


def _numbers(step: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  yield 'kernels', step['kernels']
  yield 'kernels that only change a layout', step['layout_changes']['count']
  yield 'bytes of layout changes', step['layout_changes']['bytes']
  yield 'bytes turned on the way', step['fused_layout_changes']['bytes']
  yield 'bytes moved', step['bytes']
  yield 'bytes of temporaries', step['memory_bytes_of']['temporaries']
  for dtype, row in sorted(step['convolutions'].items()):
    yield f'convolutions in {dtype}', row['count']
  for axes, kinds in sorted(step['collectives_along'].items()):
    for kind, row in sorted(kinds.items()):
      yield f'{kind} along {axes}', row['count']
      yield f'bytes of {kind} along {axes}', row['bytes']


def exceeded(
  found: Mapping[str, float], most: Mapping[str, float]
) -> Iterator[str]:
  """Yields a line for all that is more than the most; what is new is so."""
  for name, value in found.items():
    limit = most.get(name, 0)
    if value > limit * (MORE if name.startswith('bytes') else 1):
      yield f'{name}: {value:,}, where the budget is {limit:,}'


if __name__ == '__main__':
  sys.exit(main())
