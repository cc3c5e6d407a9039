"""The compiled programs for hardware that is not there: `--mode=compile`."""

import contextlib
import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.benchmarking import sweep
from medseg_jax.experiment import build, cascade, opening, trained_model
from medseg_jax.experiment.compiled_steps import compile_step
from medseg_jax.hardware import costs, hlo, roofline, table, topologies
from medseg_jax.hardware.topologies import Topology
from medseg_jax.programs.prepare import prepare
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import write_atomically
from medseg_jax.state import abstract_state, abstract_variables
from medseg_jax.step import AUGMENT_SCOPE
from medseg_jax.training import device_cache

FILE = 'compile.json'
DATA_SHARE = 0.05  # of the memory; a smaller data set is not worth a word
_DTYPES = {'bf16': 'bfloat16', 'f16': 'float16', 'f32': 'float32'}
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What TPUs' compiler says of a program that does not fit.
_NEEDED = re.compile(
  r'(?:memory required for[^(]*\(|Used )([\d.]+)([KMGT]?)(?:\)| of)'
)


def run(
  config: ConfigDict, workdir: pathlib.Path, *, topology: Topology
) -> dict[str, Any]:
  """Compiles training step and prediction, writes and prints `compile.json`.

  Nothing runs on the devices: what the programs need and do is read from what
  the compiler wrote. The figures are those of one device.

  Args:
    config: of the run that is planned.
    workdir: where `compile.json` goes.
    topology: see `topologies.prepare_process`, which has to come first.

  Raises:
    InputError: the config makes no sense, or a program does not fit.
  """
  devices = topologies.devices(topology)
  cascade.refuse(config, '--mode=compile')
  config, sources, _ = opening.open_run(config, workdir, devices)
  mesh = build.mesh_of(config, devices)
  model = build.model_of(config, mesh)
  build.check_shapes(config, sources['train'], mesh)
  build.check_statistics(config, model)
  tx, schedule = build.optimizer_of(config)
  train_step = build.train_step_of(config, model, tx, schedule)
  state = abstract_state(**build.state_arguments(config, model, tx, mesh))
  variables = abstract_variables(
    model=model, image_shape=build.image_shape(config), mesh=mesh
  )
  data = _data_on_devices(config, sources, mesh, topology)
  weights = {leaf.size for leaf in jax.tree.leaves(state)}

  def step_of(config):
    return compile_step(train_step, state, config, mesh, data)

  def examine(compile_fn):
    return _examine(compile_fn, topology, weights, mesh)

  result = _describe(config, mesh, topology)
  result['data_bytes'] = device_cache.bytes_of_device(data)
  print(f'compiling for {topology.name}: minutes', flush=True)
  with _compiler_settings(topology):
    result['train_step'] = examine(lambda: step_of(config))
    result['predict'] = examine(
      lambda: trained_model.compile_network(config, model, mesh, variables)
    )
    result |= _largest_batch(config, step_of, result, mesh)
  programs = [result['train_step'], result['predict']]
  result['fits'] = all(program['fits'] for program in programs)
  text = json.dumps(result)
  write_atomically(workdir / FILE, (text + '\n').encode())
  print(f'\n{table.of(result)}\n\n{text}', flush=True)
  if not result['fits']:
    raise InputError(_too_large(result, config, mesh))
  return result


def _describe(
  config: ConfigDict, mesh: Mesh, topology: Topology
) -> dict[str, Any]:
  return {
    'topology': topology.name,
    'device': mesh.devices.flat[0].device_kind,
    'num_devices': mesh.size,
    'mesh': dict(mesh.shape),
    'jax_version': jax.__version__,
    'optimisation': topologies.OPTIMISATION.get(topology.chip.platform),
    'dtype': config.dtype,
    'batch_size': config.batch_size,
    'patch_size': list(config.patch_size),
    'memory_bytes_of_device': topology.chip.memory,
  }


def _data_on_devices(config, sources, mesh, topology):
  """Returns the shapes of the data set where the devices hold it, or None."""
  mode = config.data.device_cache
  if mode == 'off':
    return None
  return device_cache.abstract(
    prepare(config, {'train': sources['train']}),
    mode=mode,
    mesh=mesh,
    memory=topology.chip.memory,
  )


@contextlib.contextmanager
def _compiler_settings(topology: Topology) -> Iterator[None]:
  """Sets how much the compiler tries, and that nothing is kept on disk.

  What is compiled for devices that are not there cannot be loaded again.
  """
  wanted = {
    'jax_enable_compilation_cache': False,
    'jax_optimization_level': topologies.OPTIMISATION.get(
      topology.chip.platform, jax.config.jax_optimization_level
    ),
  }
  before = {name: getattr(jax.config, name) for name in wanted}
  try:
    for name, value in wanted.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def _examine(
  compile_fn: Callable[[], jax.stages.Compiled],
  topology: Topology,
  weights: set[int],
  mesh: Mesh,
) -> dict[str, Any]:
  """Returns what is to be said of a program.

  Of one that does not even compile, for want of memory, only what it needs,
  where the compiler tells.
  """
  chip = topology.chip
  begin = time.perf_counter()
  try:
    compiled = compile_fn()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return {'fits': False, 'memory_bytes': needed(str(error))}
  seconds = time.perf_counter() - begin
  parts = _memory_parts(compiled)
  kernels = costs.kernels(hlo.parse(compiled.as_text()), weights)
  totals = costs.total(kernels)
  least = roofline.least_time(kernels, chip, topology.linked_devices)
  augmentation = costs.within(kernels, AUGMENT_SCOPE)
  memory = sum(parts.values())
  return {
    'fits': memory <= chip.memory,
    'memory_bytes': memory,
    'memory_bytes_of': parts,
    'compile_s': seconds,
    'flops': totals.flops,
    'bytes': totals.num_bytes,
    'kernels': totals.kernels,
    # Matrix products are convolutions of one voxel.
    'convolutions': {
      _DTYPES.get(dtype, dtype): row for dtype, row in totals.products.items()
    },
    'layout_changes': totals.layout_changes,
    'fused_layout_changes': totals.turned,
    'collectives': totals.collectives,
    'collectives_along': costs.collectives_along(kernels, mesh.shape),
    'least_ms': 1e3 * least.seconds,
    'least_share': least.shares,
    'bandwidth_share': least.bandwidth_share,
    'augmentation': _part(augmentation, least.seconds, topology),
  }


def _part(
  found: list[costs.Kernel], whole: float, topology: Topology
) -> dict[str, Any]:
  """Returns what some of the kernels take, of a least time of so many seconds.

  Of a conditional the dearer branch counts: examples as if all were warped.
  """
  totals = costs.total(found)
  least = roofline.least_time(found, topology.chip, topology.linked_devices)
  return {
    'flops': totals.flops,
    'bytes': totals.num_bytes,
    'kernels': totals.kernels,
    'least_ms': 1e3 * least.seconds,
    'least_share': least.seconds / (whole or 1.0),
  }


def needed(message: str) -> int | None:
  """Returns the bytes that the compiler's message says are needed, or None."""
  found = _NEEDED.search(message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _memory_parts(compiled: jax.stages.Compiled) -> dict[str, int]:
  stats = compiled.memory_analysis()
  return {
    'arguments': stats.argument_size_in_bytes,
    # Donated arguments have their results in their place.
    'results': stats.output_size_in_bytes - stats.alias_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'code': stats.generated_code_size_in_bytes,
  }


def _largest_batch(config, step_of, result, mesh) -> dict[str, Any]:
  """Returns the keys on the largest batch that fits, None where not asked."""
  keys = ('largest_batch_size', 'largest_batch_is_limit')
  if not config.benchmark.sweep_batch:
    return dict.fromkeys(keys)
  limit = result['memory_bytes_of_device']
  known = {config.batch_size: result['train_step']['memory_bytes']}
  if not result['train_step']['fits']:
    known[config.batch_size] = limit + 1

  def attempt(size: int) -> sweep.Row | None:
    if size not in known:
      known[size] = _memory_of(step_of, config, size)
    memory = known[size]
    fits = memory is not None and memory <= limit
    print(f'batch     {size}: {"fits" if fits else "does not fit"}', flush=True)
    return sweep.Row(size, None, memory) if fits else None

  unit = mesh.shape['data'] * config.batch_splits
  # Two sizes draw the line that tells the next.
  first = sorted({unit, max(config.batch_size, 2 * unit)})
  rows, too_large = [], None
  for size in first:
    row = attempt(size)
    if row is None:
      too_large = size
      break
    rows.append(row)
  if not rows:
    return dict(zip(keys, (None, True), strict=True))
  most = unit * 2**sweep.MOST_DOUBLINGS
  found = sweep.find_largest(attempt, rows, too_large, unit, limit, most)
  return dict(zip(keys, found, strict=True))


def _memory_of(step_of, config, batch_size) -> int | None:
  """Returns the bytes of a step with this batch; None where there are less."""
  changed = ConfigDict(config.to_dict())
  changed.batch_size = batch_size
  try:
    return sum(_memory_parts(step_of(changed)).values())
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None


def _too_large(result: dict[str, Any], config: ConfigDict, mesh: Mesh) -> str:
  """Returns the line on programs that do not fit, and on what would help."""
  found = []
  for key, name in table.PROGRAMS.items():
    if not result[key]['fits']:
      memory = result[key]['memory_bytes']
      much = 'more' if memory is None else table.gib(memory)
      found.append(f'{name} needs {much}')
  return (
    f'--topology={result["topology"]}: {" and ".join(found)}; each device has '
    f'{table.gib(result["memory_bytes_of_device"])}; what would help: '
    + ', '.join(_remedies(result, config, mesh))
  )


def _remedies(
  result: dict[str, Any], config: ConfigDict, mesh: Mesh
) -> Iterator[str]:
  share = config.batch_size // mesh.shape['data']
  if not result['train_step']['fits']:
    if share > config.batch_splits:
      splits = next(
        n for n in range(config.batch_splits + 1, share + 1) if share % n == 0
      )
      yield f'config.batch_splits={splits}'
    if share > 1:
      yield f'config.batch_size={mesh.shape["data"]}'
    if not config.model.get('remat', True):
      yield 'config.model.remat=true'
    spatial = 2 * mesh.shape['spatial']
    if mesh.size % spatial == 0 and config.patch_size[0] % spatial == 0:
      yield f'config.mesh.spatial={spatial}'
  else:
    yield 'a smaller config.inference.batch_size'
  yield 'a smaller config.patch_size'
  if result['data_bytes'] > DATA_SHARE * result['memory_bytes_of_device']:
    yield 'config.data.device_cache=off'
