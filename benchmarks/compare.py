"""Times this project against PyTorch: the same network, batch and precision.

  python benchmarks/compare.py [--torch-python=PYTHON] [--workloads=2d_cpu,...]

Without --workloads those for a GPU where there is one, else those for the CPU.
Each side is a process that builds the network once and then waits; rounds of
steps are timed on one side and the other in turn, so that what else happens on
the machine falls on both. Both start from the same weights and batch, and must
agree on logits, loss and gradient. benchmarks/README.md says what is held
equal, and holds the tables.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from workloads import KINDS, SMALL, WORKLOADS

HERE = pathlib.Path(__file__).parent

TOLERANCE = {'float32': 1e-3, 'bfloat16': 3e-2}  # relative


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--workloads', default='', help=', '.join(WORKLOADS))
  add('--torch-python', default=sys.executable, help='the one with torch')
  add('--jax-python', default=sys.executable, help='the one with medseg_jax')
  add('--torch-args', default='', help='options of torch_unet.py, one string')
  add('--threads', type=int, default=2, help='cores of each side, on CPU')
  add('--rounds', type=int, default=5)
  add('--round-seconds', type=float, default=0.0, help='0: 2.5, on GPU 1')
  add('--check', action='store_true', help='compare results, time nothing')
  add('--no-check', action='store_true', help='compare first losses only')
  add(
    '--huge-pages',
    action='store_true',
    help='PyTorch on CPU has huge pages, as ours does',
  )
  add('--json', type=pathlib.Path, help='file for all numbers')
  args = parser.parse_args()
  names = (
    args.workloads.split(',')
    if args.workloads
    else [
      name
      for name, workload in WORKLOADS.items()
      if workload['device'] == ('gpu' if has_gpu() else 'cpu')
      and not name.endswith(SMALL)
    ]
  )
  unknown = sorted(set(names) - set(WORKLOADS))
  if unknown:
    known = ', '.join(WORKLOADS)
    parser.error(f'unknown workload {", ".join(unknown)}; known are {known}')
  if args.rounds < 1 or args.threads < 1:
    parser.error('--rounds and --threads are 1 or more')
  results, checked = [], []
  for name in names:
    network = [WORKLOADS[name][key] for key in ('model', 'check_batch')]
    # Compiling takes most of the time: every network is compared only once.
    compares = not args.no_check and network not in checked
    checked.append(network)
    results += compare(name, args, compares=compares)
    if args.json:
      args.json.write_text(json.dumps(results, indent=1) + '\n')
  if not args.check:
    print('\n' + table(results))


def compare(
  name: str, args: argparse.Namespace, *, compares: bool
) -> list[dict]:
  """Returns the numbers of a workload, one dict a kind of work.

  Args:
    name: of the workload.
    args: the command line.
    compares: whether to compare the results, too.
  """
  on_gpu = WORKLOADS[name]['device'] == 'gpu'
  common = [f'--workload={name}', f'--threads={args.threads}', '--serve']
  with contextlib.ExitStack() as stack:
    # One starts and compiles after the other: both measure, while they do,
    # which of several kernels is the fastest.
    sides = {}
    for side, python, script, options in (
      ('ours', args.jax_python, 'jax_unet.py', []),
      (
        'torch',
        args.torch_python,
        'torch_unet.py',
        shlex.split(args.torch_args),
      ),
    ):
      environment = worker_environment(side, on_gpu, args.huge_pages)
      sides[side] = stack.enter_context(
        contextlib.closing(
          Worker([python, str(HERE / script), *common, *options], environment)
        )
      )
    facts = {side: worker.answer() for side, worker in sides.items()}
    progress(name, '; '.join(f['versions'] for f in facts.values()))
    if args.check:
      check(name, sides)
      return []
    share_weights(sides)
    seconds = args.round_seconds or (1.0 if on_gpu else 2.5)
    results = []
    for kind in KINDS:
      compile_kind(name, kind, sides)
      counts = {
        side: calibrate(worker, kind, seconds) for side, worker in sides.items()
      }
      times = {side: [] for side in sides}
      for i in range(args.rounds):
        # Who begins changes from round to round.
        for side in list(sides)[:: 1 if i % 2 else -1]:
          answer = sides[side].ask(f'{kind} {counts[side]}')
          times[side].append(statistics.median(answer['seconds']))
      # Of the training, so before the forward pass is compiled.
      if kind == 'step':
        memory = {side: w.ask('memory') for side, w in sides.items()}
      results.append(
        {
          'workload': name,
          'kind': kind,
          **summary(times['ours'], times['torch']),
          'memory': memory if kind == 'step' else {},
          'rounds': times,
          'steps_a_round': counts,
          'facts': facts,
          'date': time.strftime('%Y-%m-%d'),
        }
      )
      progress(name, row(results[-1]))
    if compares:  # last, as it takes memory, too
      check(name, sides)
    return results


def share_weights(sides: dict[str, 'Worker']) -> None:
  """Gives PyTorch the weights that ours starts from."""
  with tempfile.TemporaryDirectory() as folder:
    for worker in sides.values():
      worker.ask(f'weights {folder}/weights.npz')


def compile_kind(name: str, kind: str, sides: dict[str, 'Worker']) -> None:
  """Runs once; exits unless the steps to be timed begin with the same loss."""
  losses = []
  for side, worker in sides.items():
    begin = time.perf_counter()
    losses.append(worker.ask(f'{kind} 1').get('loss'))
    took = time.perf_counter() - begin
    progress(name, f'{side}: compiling and the first two in {took:.1f} s')
  if kind == 'step':
    progress(name, 'with a loss of {:.5f} and {:.5f}'.format(*losses))
    tolerance = TOLERANCE[WORKLOADS[name]['dtype']]
    if not abs(losses[0] / losses[1] - 1) < tolerance:
      sys.exit(f'{name}: the steps do not compute the same, nothing is timed')


def check(name: str, sides: dict[str, 'Worker']) -> None:
  """Exits unless both sides give the same in float32."""
  with tempfile.TemporaryDirectory() as folder:
    for worker in sides.values():
      found = worker.ask(f'check {folder}/results.npz')
  progress(
    name,
    (
      'the same weights give the same: {parameters} parameters; largest '
      'relative difference of logits {logits:.1e}, loss {loss:.1e}, '
      'norm of the gradient {grad_norm:.1e}'
    ).format(**found),
  )
  # Written so that a NaN fails too.
  if not all(
    found[key] < TOLERANCE['float32'] for key in ('logits', 'loss', 'grad_norm')
  ):
    sys.exit(f'{name}: these are not the same network')


def calibrate(worker: 'Worker', kind: str, seconds: float) -> int:
  """Returns how many steps fill `seconds`."""
  took = statistics.median(worker.ask(f'{kind} 3')['seconds'])
  return max(round(seconds / took), 2)


def summary(ours: list[float], torch: list[float]) -> dict:
  """Returns milliseconds of both, and PyTorch's time over ours."""
  ratios = [t / o for t, o in zip(torch, ours, strict=True)]
  ours, torch = statistics.median(ours), statistics.median(torch)
  return {
    'ours_ms': 1e3 * ours,
    'torch_ms': 1e3 * torch,
    'ratio': torch / ours,
    'lowest_ratio': min(ratios),
    'highest_ratio': max(ratios),
  }


def table(results: list[dict]) -> str:
  """Returns the rows in Markdown."""
  return '\n'.join(
    [
      '| workload | | ours, ms | PyTorch, ms | ratio (lowest to highest round) '
      '| peak memory, ours / PyTorch, GB |',
      '|---|---|---|---|---|---|',
      *(row(result) for result in results),
    ]
  )


def row(result: dict) -> str:
  """Returns a row of `table`; the memory is that of training.

  Of ours alone, where there was no PyTorch.
  """
  memory = ' / '.join(
    f'{side["peak_bytes"] / 1e9:.2f}' for side in result['memory'].values()
  )
  if 'torch_ms' not in result:
    return '| {workload} | {kind} | {ours_ms:.1f} | | | '.format(**result) + (
      f'{memory} / |' if memory else '|'
    )
  return (
    '| {workload} | {kind} | {ours_ms:.1f} | {torch_ms:.1f} | {ratio:.2f} '
    '({lowest_ratio:.2f} to {highest_ratio:.2f}) | '
  ).format(**result) + f'{memory} |'


def progress(name: str, text: str) -> None:
  print(f'[{time.strftime("%H:%M:%S")}] {name}: {text}', flush=True)


def has_gpu() -> bool:
  """Returns whether the driver of NVIDIA GPUs finds one."""
  program = shutil.which('nvidia-smi')
  return (
    bool(program)
    and b'GPU'
    in subprocess.run([program, '-L'], capture_output=True, check=False).stdout
  )


def worker_environment(side, on_gpu, huge_pages) -> dict[str, str]:
  """Returns the variables that put a worker on its device."""
  environment = dict(os.environ)
  if not on_gpu:
    environment |= {'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    if side == 'torch' and huge_pages:
      # What medseg_jax/runtime/host_memory.py does for itself.
      environment['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    return environment
  # One GPU, and JAX must leave room on it for the other side.
  environment.setdefault('CUDA_VISIBLE_DEVICES', '0')
  environment.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  return environment


class Worker:
  """A process that answers each line with one line of JSON."""

  def __init__(self, command: list[str], environment: dict[str, str]):
    self._name = pathlib.Path(command[1]).name
    self._process = subprocess.Popen(
      command,
      env=environment,
      text=True,
      bufsize=1,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )

  def ask(self, line: str) -> dict:
    with contextlib.suppress(BrokenPipeError):  # which the answer tells
      self._process.stdin.write(line + '\n')
    return self.answer()

  def answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      sys.exit(f'{self._name} ended with {self._process.returncode}, see above')
    return json.loads(line)

  def close(self):
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()


if __name__ == '__main__':
  main()
