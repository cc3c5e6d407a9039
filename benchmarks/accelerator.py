"""What `accelerator.sh` runs: part after part, and one file of results.

Each part is a process of its own with a limit of time. What it finds is added
to `accelerator.json` at once, so that nothing is lost with a part that hangs.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import compare
from accelerator_parts import PARTS, PROGRAM, Failed, Part, Run

LEAST_SECONDS = 20  # a part is not begun with less


def main() -> int:
  """Runs all parts and returns 1 where one failed, else 0."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--out', type=pathlib.Path, required=True)
  add('--work', type=pathlib.Path, required=True)
  add('--torch-python', default=sys.executable)
  add('--size', choices=('', 'full', 'small'), default='')
  add('--seconds', type=float, default=560.0)
  add('--parts', default='', help='only these, by name, with commas between')
  args = parser.parse_args()
  end = time.monotonic() + args.seconds
  (args.out / 'accelerator.log').write_text('')
  missing = missing_of((*PROGRAM, 'tensorflow'), sys.executable)
  missing += missing_of(('torch',), args.torch_python)
  if missing:
    print(f'not installed here: {", ".join(missing)}', flush=True)
  found: dict[str, Any] = {
    'date': time.strftime('%Y-%m-%d'),
    'missing': missing,
    'parts': {},
  }
  torch_python = '' if 'torch' in missing else args.torch_python
  run = Run(
    out=args.out,
    work=args.work,
    platform='',
    num_devices=1,
    small=True,
    end=end,
    torch_python=torch_python,
  )
  chosen = args.parts.split(',') if args.parts else None
  for part in PARTS:
    if part.name == 'machine' or chosen is None or part.name in chosen:
      found['parts'][part.name] = result = result_of(part, run, missing)
      print(f'{part.name:<16}{line_of(result)}', flush=True)
      write(run.out, found)
    if part.name == 'machine':
      if not result['ok']:
        return 1  # there is nothing to try
      platform, num_devices = (
        result['found'][key] for key in ('platform', 'num_devices')
      )
      small = args.size == 'small' or (platform == 'cpu' and not args.size)
      run = run._replace(
        platform=platform, num_devices=num_devices, small=small
      )
  if any('rows' in part['found'] for part in found['parts'].values()):
    print(f'\n{table(found["parts"])}\n')
  print(f'written to {run.out}/accelerator.json')
  return int(any(part['ok'] is False for part in found['parts'].values()))


def missing_of(modules: tuple[str, ...], python: str) -> list[str]:
  """Returns those of the modules that an interpreter does not have."""
  if python == sys.executable:
    return [m for m in modules if importlib.util.find_spec(m) is None]
  code = 'import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if '
  code += 'u.find_spec(m) is None])'
  try:
    done = subprocess.run(
      [python, '-c', code, *modules],
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):  # nor is there a Python
    return list(modules)
  return done.stdout.split()


def result_of(part: Part, run: Run, missing: list[str]) -> dict[str, Any]:
  """Returns 'ok', None where left out, 'said', 'seconds' and 'found'."""
  lacking = [module for module in part.needs if module in missing]
  left = run.end - time.monotonic()
  begin = time.perf_counter()
  ok, said, facts = None, '', {}
  if lacking:
    said = f'left out: {", ".join(lacking)} not installed'
  elif left < LEAST_SECONDS and part.name != 'machine':
    said = 'left out: the time is over'
  else:
    try:
      facts = part.find(run)
      ok = True
    except Failed as error:
      ok, said = False, str(error)
    except Exception as error:  # the other parts go on
      ok, said = False, f'{type(error).__name__}: {error}'
  seconds = time.perf_counter() - begin
  return {'ok': ok, 'said': said, 'seconds': seconds, 'found': facts}


def line_of(result: Mapping[str, Any]) -> str:
  """Returns what is printed of a part."""
  if result['ok'] is None:
    return result['said']
  short = {
    key: value
    for key, value in result['found'].items()
    if isinstance(value, int | float | str)
  }
  words = ', '.join(
    f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
    for key, value in short.items()
  )
  state = 'ok    ' if result['ok'] else 'FAILED'
  return f'{state} {result["seconds"]:5.1f} s  {result["said"] or words}'


def write(out: pathlib.Path, found: Mapping[str, Any]) -> None:
  part = out / 'accelerator.json.part'
  part.write_text(json.dumps(found, indent=1) + '\n')
  part.replace(out / 'accelerator.json')


def table(parts: Mapping[str, Any]) -> str:
  """Returns the lines for the table of README.md."""
  rows = [
    row for part in parts.values() for row in part['found'].get('rows', ())
  ]
  return compare.table(rows)


if __name__ == '__main__':
  sys.exit(main())
