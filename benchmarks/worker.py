"""What the workers, jax_unet.py and torch_unet.py, have in common."""

import argparse
import json
import os
import pathlib
import sys
import time

from workloads import KINDS, WORKLOADS


def worker_arguments(description: str, **choices) -> argparse.Namespace:
  """Returns a worker's command line, `choices` its own options' values."""
  parser = argparse.ArgumentParser(description=description.splitlines()[0])
  add = parser.add_argument
  add('--workload', required=True, choices=WORKLOADS)
  add('--threads', type=int, default=2, help='on CPU')
  add(
    '--serve',
    action='store_true',
    help='answer lines of stdin: step COUNT, '
    'forward COUNT, memory, weights FILE, check FILE',
  )
  for name, values in choices.items():
    add('--' + name.replace('_', '-'), default=values[0], choices=values)
  args = parser.parse_args()
  if WORKLOADS[args.workload]['device'] == 'cpu':
    # Before any library starts its threads.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
  return args


def serve(commands: dict, facts: dict, serving: bool) -> None:
  """Answers stdin until it ends; else times a few steps and prints them.

  Args:
    commands: name to function of what follows it on the line; with what a dict
      that JSON can hold.
    facts: the first line that is printed.
    serving: whether to answer stdin.
  """
  with os.fdopen(os.dup(1), 'w', buffering=1) as out:
    os.dup2(2, 1)  # what libraries print must not come between the answers
    print(json.dumps(facts), file=out)
    if not serving:
      for kind in KINDS:
        commands[kind]('1')  # compiles
        print(json.dumps({kind: commands[kind]('5')}), file=out)
        if kind == 'step':
          print(json.dumps(commands['memory']('')), file=out)
      return
    for line in sys.stdin:
      name, _, rest = line.strip().partition(' ')
      print(json.dumps(commands[name](rest)), file=out)


def random_batch(workload: dict, shape: tuple[int, ...]):
  """Returns image [*shape, C], float32, and label [*shape], int32."""
  import numpy as np  # only the workers have it for sure

  rng = np.random.default_rng(0)
  image = rng.standard_normal((*shape, workload['channels']), np.float32)
  return image, rng.integers(0, workload['num_classes'], shape, np.int32)


def resident_peak() -> int:
  """Returns the most bytes of memory that this process had."""
  status = pathlib.Path('/proc/self/status').read_text()
  [line] = [x for x in status.splitlines() if x.startswith('VmHWM')]
  return int(line.split()[1]) * 1024


def timed(once, wait, count: int, *, each: bool) -> list[float]:
  """Returns seconds a step, after one that is not timed.

  While the other side had its turn, caches and freed memory went elsewhere.

  Args:
    once: starts a step.
    wait: returns when all that was started is done.
    count: steps to time.
    each: whether to wait for each step, as on CPU. On a GPU the host runs
      ahead, as in training: then the mean of all.
  """
  once()
  wait()
  seconds = []
  for _ in range(count if each else 1):
    begin = time.perf_counter()
    for _ in range(1 if each else count):
      once()
    wait()
    seconds.append((time.perf_counter() - begin) / (1 if each else count))
  return seconds
