"""A cross-validation is killed again and again, and ends as if it never was.

`python benchmarks/killed.py DATA [--kills=10] [--seed=0]`: DATA is a data set
of volumes, of which the first ten cases are used. Five folds are trained once
undisturbed, and once more with a kill -9 at random moments of the first quarter
of the undisturbed time, each followed by the same command. The last line is
what was found, as JSON; the exit status is 0 where all masks, all tables and
the weights are the same to the bit.

Everything lies in a temporary folder and a cache of its own.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CASES = 10
FLAGS = (
  *('-m', 'medseg_jax.main', '--config=configs/auto_cpu.py', '--mode=crossval'),
  *(
    f'--config.{key}={value}'
    for key, value in {
      'num_steps': 12,
      'batch_size': 2,
      'model.features': 4,
      'eval_every': 6,
      'checkpoint_every': 3,
      'log_every': 3,
    }.items()
  ),
)
# The same however often the program was stopped, and what it is all about.
RESULTS = (
  '*/fold_*/held_out/*.nii.gz',
  '*/fold_*/model/model.safetensors',
  '*/fold_*/metrics.jsonl',
  'crossval/*/cases.csv',
  'crossval/summary.json',
  'model/**/model.safetensors',
)
# Of metrics.jsonl, what a clock says.
TIMES = ('images_per_s', 'data_wait_frac')


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('data', type=pathlib.Path)
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory(prefix='killed-') as folder:
    found = measure(
      pathlib.Path(folder),
      take_some(options.data, pathlib.Path(folder) / 'data'),
      kills=options.kills,
      rng=random.Random(options.seed),
    )
  print(json.dumps(found))
  return 0 if not found['other'] and found['num_results'] else 1


def take_some(data: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Returns a copy of the first cases of a data set."""
  content = json.loads((data / 'dataset.json').read_text())
  content['training'] = sorted(content['training'], key=lambda x: x['image'])
  content['training'] = content['training'][:CASES]
  content['numTraining'], content['test'], content['numTest'] = CASES, [], 0
  for case in content['training']:
    for path in (case['image'], case['label']):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(data / path, folder / path)
  (folder / 'dataset.json').write_text(json.dumps(content))
  return folder


def measure(
  folder: pathlib.Path, data: pathlib.Path, *, kills: int, rng: random.Random
) -> dict:
  """Returns where the kills met the program, and which results are others."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    'XDG_CACHE_HOME': str(folder / 'cache'),
  }

  def start(root: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, *FLAGS, f'--config.data.path={data}']
    with log.open('ab') as out:
      return subprocess.Popen(
        [*command, f'--workdir={root}'],
        env=environment,
        cwd=ROOT,
        stdout=out,
        stderr=subprocess.STDOUT,
      )

  undisturbed, disturbed = folder / 'undisturbed', folder / 'disturbed'
  began = time.monotonic()
  finish(start(undisturbed, folder / 'one.log'), folder / 'one.log')
  takes = time.monotonic() - began
  print(f'undisturbed: {takes:.0f} s', flush=True)
  places, log = [], folder / 'log'
  while len(places) < kills:
    process = start(disturbed, log)
    moment = rng.uniform(0, takes / 4)
    try:
      process.wait(moment)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    else:
      if process.returncode != 0:
        sys.exit(log.read_text())
      break  # done before its time
    places.append(f'{moment:.1f} s: {last_line(log)}')
    print(f'killed after {places[-1]}', flush=True)
  began = time.monotonic()
  finish(start(disturbed, log), log)
  wanted, found = results(undisturbed), results(disturbed)
  names = wanted.keys() | found.keys()
  return {
    'undisturbed_s': round(takes, 1),
    'kills': places,
    'last_start_s': round(time.monotonic() - began, 1),
    'num_results': len(wanted),
    'other': sorted(n for n in names if wanted.get(n) != found.get(n)),
  }


def finish(process: subprocess.Popen, log: pathlib.Path) -> None:
  if process.wait() != 0:
    sys.exit(log.read_text())


def last_line(log: pathlib.Path) -> str:
  """Returns the last thing that the program said."""
  lines = log.read_text().replace('\r', '\n').split('\n')
  return next((line.strip() for line in lines[::-1] if line.strip()), '')


def results(root: pathlib.Path) -> dict[str, str]:
  """Returns a digest of each result, by its path."""
  found = {}
  for pattern in RESULTS:
    for path in root.glob(pattern):
      content = path.read_bytes()
      if path.name == 'metrics.jsonl':
        content = without_times(content)
      name = path.relative_to(root).as_posix()
      found[name] = hashlib.sha256(content).hexdigest()
  return found


def without_times(lines: bytes) -> bytes:
  kept = [
    {key: value for key, value in json.loads(line).items() if key not in TIMES}
    for line in lines.splitlines()
  ]
  return json.dumps(kept).encode()


if __name__ == '__main__':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  sys.exit(main())
