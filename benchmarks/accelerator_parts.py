"""The parts of `accelerator.sh`: what is tried, and what has to come out."""

import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from workloads import KINDS, SMALL, WORKLOADS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
# What a program imports, and what the rows of the table need.
LIBRARIES = ('flax', 'jax', 'numpy', 'optax')
PROGRAM = (
  *LIBRARIES,
  *('PIL', 'absl', 'ml_collections', 'nibabel', 'orbax', 'safetensors'),
  *('scipy', 'tensorboardX', 'tifffile', 'tqdm'),
)
# `configs/unet.py` and `benchmarks/unet_3d.py` in small.
_NETWORK = {'model.depth': 2, 'model.features': 4}
_SMALL = {
  **_NETWORK,
  'patch_size': '(16,16)',
  'num_steps': 4,
  'log_every': 2,
  'eval_every': 2,
  'checkpoint_every': 2,
  'data.phantom.num_train': 12,
  'data.phantom.num_val': 2,
  'data.phantom.num_test': 2,
}
_SMALL_3D = {
  **_NETWORK,
  'patch_size': '(16,16,16)',
  'data.phantom.num_train': 2,
  'augment.warp_prob': 0.0,  # compiles sooner
}
FROM_CONFIG = ('train', 'benchmark')
MOST_SECONDS, MOST_SECONDS_A_ROW = 300.0, 150.0  # of a process
GRACE_S = 30  # for what has begun when the time is over


class Failed(Exception):
  """A part found something wrong; one line says what."""


class Run(NamedTuple):
  """What the parts share.

  Attributes:
    out: where the results go.
    work: what may be deleted afterwards.
    platform: of the devices: 'cpu', 'gpu' or 'tpu'.
    num_devices: all of which the program takes, and the rows one.
    small: whether only to see that everything works.
    end: `time.monotonic()` after which no part begins.
    torch_python: the interpreter that has torch; '' where none has.
  """

  out: pathlib.Path
  work: pathlib.Path
  platform: str
  num_devices: int
  small: bool
  end: float
  torch_python: str


class Part(NamedTuple):
  """A part: what it needs, and `run -> what it found`."""

  name: str
  needs: tuple[str, ...]
  find: Callable[[Run], dict[str, Any]]


def command(
  run: Run,
  *words: str,
  environment: Mapping[str, str] | None = None,
  most_seconds: float = MOST_SECONDS,
) -> str:
  """Returns what a process prints to stdout.

  Raises:
    Failed: it ends with an error, or takes longer than there is time.
  """
  seconds = max(min(run.end - time.monotonic() + GRACE_S, most_seconds), 1)
  log = run.out / 'accelerator.log'
  with log.open('a') as file:
    file.write(f'$ {" ".join(words)}\n')
    file.flush()
    begin = log.stat().st_size
    try:
      done = subprocess.run(
        words,
        cwd=ROOT,
        env={
          **os.environ,
          'XDG_CACHE_HOME': str(run.work / 'cache'),
          **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=file,
        text=True,
        timeout=seconds,
        check=False,
      )
    except subprocess.TimeoutExpired as error:
      raise Failed(f'stopped after {seconds:.0f} s') from error
    file.write(done.stdout)
  if done.returncode:
    with log.open() as file:
      file.seek(begin)
      lines = [line for line in file if line.strip()]
    errors = [line for line in lines if 'rror' in line] or lines or ['']
    raise Failed(
      f'exit status {done.returncode}: {errors[-1].strip()[:300]} (see {log})'
    )
  return done.stdout


def program(run: Run, mode: str, *flags: str, **keys: Any) -> str:
  """Returns what a mode of `medseg_jax.main` prints.

  The workdir is `run` unless a flag names it. Keys are the config's, with '__'
  for '.'; `config` names its file.
  """
  config = keys.pop('config', 'configs/unet.py')
  keys = {key.replace('__', '.'): value for key, value in keys.items()}
  if mode in FROM_CONFIG:
    flags = (f'--config={config}', *flags)
    volumes = 'unet_3d' in config
    if run.small:
      keys = (_SMALL_3D if volumes else _SMALL) | keys
    least = 2 if volumes else 8
    keys['batch_size'] = -(-least // run.num_devices) * run.num_devices
  if not any(flag.startswith('--workdir=') for flag in flags):
    flags = (f'--workdir={run.work / "run"}', *flags)
  return command(
    run,
    *(sys.executable, '-m', 'medseg_jax.main', f'--mode={mode}', *flags),
    *(f'--config.{key}={value}' for key, value in keys.items()),
  )


# Of all trainings here: on the devices, or it is an error.
_TRAINING = {'data__device_cache': 'on'}


def machine(run: Run) -> dict[str, Any]:
  """Tells what is here."""
  code = """
import json, jax, jaxlib
devices = jax.devices()
print(json.dumps({
  'platform': devices[0].platform, 'device': devices[0].device_kind,
  'num_devices': len(devices), 'jax': jax.__version__,
  'jaxlib': jaxlib.__version__,
  'memory_bytes': (devices[0].memory_stats() or {}).get('bytes_limit'),
}))
"""
  found = json.loads(command(run, sys.executable, '-c', code).splitlines()[-1])
  if shutil.which('nvidia-smi'):
    asked = ['--query-gpu=driver_version,power.limit,clocks.max.sm']
    found['nvidia_smi'] = command(
      run, 'nvidia-smi', *asked, '--format=csv,noheader'
    ).splitlines()[0]
  return found


def transfer_guard(run: Run) -> dict[str, Any]:
  """Sees that the guard the training runs under refuses transfers here."""
  code = """
import jax, numpy as np
double = jax.jit(lambda x: 2 * x)
kept = jax.block_until_ready(double(jax.device_put(np.ones(4))))
with jax.transfer_guard('disallow'):
  double(kept)
  try:
    double(np.ones(4))
  except Exception:
    print('refused')
"""
  if 'refused' not in command(run, sys.executable, '-c', code):
    raise Failed('a transfer from the host was let through')
  return {}


def train(run: Run) -> dict[str, Any]:
  """Trains, with the data set on the device."""
  said = program(run, 'train', **_TRAINING)
  if 'from the data set on the device' not in said:
    raise Failed('the data set does not lie on the device')
  folder = run.work / 'run'
  losses = losses_of(folder)
  if not all(map(math.isfinite, losses)) or not losses[-1] < losses[0]:
    raise Failed(f'the losses are {losses}')
  summary = summary_of(folder)
  return {'losses': losses, 'dice': summary['mean']['dice']}


def resume(run: Run) -> dict[str, Any]:
  """Goes on from an older checkpoint, to the end that the training had."""
  whole, again = run.work / 'run', run.work / 'again'
  shutil.copytree(whole, again)
  steps = sorted(
    (
      p
      for p in (again / 'checkpoints' / 'latest').iterdir()
      if p.name.isdigit()
    ),
    key=lambda p: int(p.name),
  )
  if len(steps) < 2:
    raise Failed('there is one checkpoint only')
  shutil.rmtree(steps[-1])
  shutil.rmtree(again / 'model')
  said = program(run, 'train', f'--workdir={again}', **_TRAINING)
  if f'going on from step {steps[-2].name}' not in said:
    raise Failed(f'it did not go on from step {steps[-2].name}')
  differences = [
    abs(a / b - 1)
    for a, b in zip(losses_of(again), losses_of(whole), strict=True)
  ]
  if not max(differences) < 0.1:
    raise Failed(f'the losses differ by {max(differences):.0%}')
  return {'largest_difference_of_losses': max(differences)}


def evaluate(run: Run) -> dict[str, Any]:
  """Evaluates the trained model once more, to the same scores."""
  before = summary_of(run.work / 'run')['mean']['dice']
  program(run, 'evaluate')
  after = summary_of(run.work / 'run')['mean']['dice']
  if not abs(after - before) < 1e-3:
    raise Failed(f'a Dice of {after} where the training had {before}')
  return {'dice': after}


def predict(run: Run) -> dict[str, Any]:
  """Predicts new images, each at its own size."""
  import numpy as np
  from PIL import Image

  from medseg_jax.data.sources.phantom import open_phantom

  folder, sizes = run.work / 'scans', ((130, 97), (200, 240))
  folder.mkdir()
  for height, width in sizes:
    source = open_phantom(
      shape=(height, width), num_train=0, num_val=0, num_test=1
    )
    scan = np.asarray(source['test'][0].image[..., 0], np.float32)
    Image.fromarray(scan).save(folder / f'{height}x{width}.tif')
  program(run, 'predict', f'--input={folder}', f'--output={run.work / "masks"}')
  classes: set[int] = set()
  for height, width in sizes:
    mask = np.array(Image.open(run.work / 'masks' / f'{height}x{width}.png'))
    if mask.shape[:2] != (height, width):
      raise Failed(f'a mask of {mask.shape} for {height} x {width}')
    classes |= set(np.unique(mask).tolist())
  if not run.small and len(classes) < 2:
    raise Failed('the masks are empty')
  return {'images': len(sizes), 'values': sorted(classes)}


def host_batches(run: Run) -> dict[str, Any]:
  """Trains on batches that the host sends, which have to be the same."""
  folder = run.work / 'host'
  program(
    run,
    'train',
    f'--workdir={folder}',
    data__device_cache='off',
  )
  first, reference = losses_of(folder)[0], losses_of(run.work / 'run')[0]
  if not abs(first / reference - 1) < 0.05:
    raise Failed(f'a first loss of {first} where it was {reference}')
  return {'difference_of_first_loss': abs(first / reference - 1)}


def benchmark(run: Run) -> dict[str, Any]:
  """Measures the whole loop on small images."""
  return benchmark_of(run, 'configs/unet.py', dtype='bfloat16')


def benchmark_3d(run: Run) -> dict[str, Any]:
  """Measures nnU-Net's network on volumes, with all of its augmentation."""
  return benchmark_of(run, 'benchmarks/unet_3d.py')


def benchmark_of(run: Run, config: str, **keys: Any) -> dict[str, Any]:
  name = pathlib.Path(config).stem
  workdir = run.work / f'benchmark_{name}'
  program(run, 'benchmark', f'--workdir={workdir}', config=config, **keys)
  found = json.loads((workdir / 'benchmark.json').read_text())
  told = ('step_ms', 'end_to_end_images_per_s', 'mfu', 'roofline_ratio')
  return {key: found[key] for key in told} | {'all': found}


def rows(run: Run, name: str) -> dict[str, Any]:
  """Times a workload, against PyTorch where there is one."""
  name += SMALL if run.small else ''
  if not run.torch_python:
    return {'rows': own_rows(run, name)}
  path = run.work / f'{name}.json'
  rounds = ['--rounds=1', '--round-seconds=0.1'] if run.small else []
  command(
    run,
    *(sys.executable, str(HERE / 'compare.py'), f'--workloads={name}'),
    *(f'--json={path}', f'--torch-python={run.torch_python}', *rounds),
    most_seconds=MOST_SECONDS_A_ROW,
  )
  return {'rows': json.loads(path.read_text())}


def own_rows(
  run: Run, name: str, environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
  """Returns rows without PyTorch's side."""
  said = command(
    run,
    *(sys.executable, str(HERE / 'jax_unet.py'), f'--workload={name}'),
    environment=environment,
    most_seconds=MOST_SECONDS_A_ROW,
  )
  found: dict[str, Any] = {}
  for line in said.splitlines():
    if line.startswith('{'):
      found |= json.loads(line)
  memory = {'ours': {'peak_bytes': found['peak_bytes']}}
  return [
    {
      'workload': name,
      'kind': kind,
      'ours_ms': 1e3 * statistics.median(found[kind]['seconds']),
      'memory': memory if kind == 'step' else {},
    }
    for kind in KINDS
  ]


def channels_last(run: Run) -> dict[str, Any]:
  """Times XLA's convolutions with the channels first, as is, and last."""
  if run.platform == 'tpu':
    return {}
  name = '3d_gpu_b2' + (SMALL if run.small else '')
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_force_conv_nhwc=true'
  last = own_rows(run, name, {'XLA_FLAGS': flags})
  first = own_rows(run, name)
  return {
    f'{row["kind"]}_{order}_ms': row['ours_ms']
    for order, found in (('as_is', first), ('channels_last', last))
    for row in found
  }


def losses_of(folder: pathlib.Path) -> list[float]:
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [row['loss'] for row in found if row['split'] == 'train']


def summary_of(folder: pathlib.Path) -> dict[str, Any]:
  return json.loads((folder / 'evaluation/test/summary.json').read_text())


def _rows_part(name: str) -> Part:
  return Part(name, LIBRARIES, lambda run: rows(run, name))


# The most important first: what the time does not suffice for is left out.
PARTS = (
  Part('machine', ('jax',), machine),
  Part('transfer_guard', ('jax', 'numpy'), transfer_guard),
  Part('train', PROGRAM, train),
  Part('resume', PROGRAM, resume),
  Part('evaluate', PROGRAM, evaluate),
  Part('predict', PROGRAM, predict),
  *(
    _rows_part(name)
    for name, workload in WORKLOADS.items()
    if workload['device'] == 'gpu'
  ),
  Part('benchmark_3d', PROGRAM, benchmark_3d),
  Part('benchmark', PROGRAM, benchmark),
  Part('channels_last', LIBRARIES, channels_last),
  Part('host_batches', (*PROGRAM, 'tensorflow'), host_batches),
)
