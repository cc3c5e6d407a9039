"""A plan as the table of the terminal and as readable JSON."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 80


def describe(plan: dict, outputs: str = '') -> str:
  """Returns the plan as aligned lines of at most 80 columns.

  Args:
    plan: see `planner.make_plan`.
    outputs: what the network gives, where that are no classes.
  """
  facts, channels = plan['fingerprint'], plan['channel_names']
  lines = _facts(
    ('data set', plan['dataset']),
    ('cases', facts['num_cases']),
    ('median shape', _times(facts['median_shape']) + ' voxels'),
    ('median spacing', _times(facts['median_spacing']) + ' mm'),
    ('not zero', f'{facts["relative_size"]:.0%} of the median case'),
    ('outputs', outputs)
    if outputs
    else ('classes', f'{plan["num_classes"]} with the background'),
    (
      'channels',
      ', '.join(
        f'{name} ({entry["scheme"]})'
        for name, entry in zip(channels, plan['normalization'], strict=True)
      ),
    ),
    ('order of axes', ' '.join(map(str, plan['axes']))),
    ('preset', f'{plan["preset"]}, {plan["memory_gb"]:g} GB'),
  )
  rows = [('', 'spacing mm', 'median shape', 'patch', 'batch', 'stages')]
  for name, c in plan['configurations'].items():
    rows.append(
      (
        name,
        _times(c['spacing']),
        _times(c['median_shape']),
        _times(c['patch_size']),
        str(c['batch_size']),
        str(len(c['features'])),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines.append('')
  for row in rows:
    cells = [row[0].ljust(widths[0])]
    cells += [t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True)]
    lines.append('  '.join(cells))
  for name, c in plan['configurations'].items():
    lines += ['', name]
    lines += _facts(
      ('features', ' '.join(map(str, c['features']))),
      ('strides', ' '.join(map(_one, c['strides']))),
      ('kernels', ' '.join(map(_one, c['kernel_sizes']))),
      ('blocks', ' '.join(map(str, c['residual_blocks'])) or 'plain'),
    )
  return '\n'.join(lines)


def to_json(plan: dict) -> str:
  """Returns the plan as JSON, in which short lists stay on one line.

  `json.loads` gives the plan back.
  """
  return _json(plan, indent=0) + '\n'


def _facts(*facts: tuple[str, Any]) -> list[str]:
  lines = []
  for name, value in facts:
    start = f'{name:<16}'
    # Names are the user's, and may be long.
    lines += textwrap.wrap(
      f'{start}{value}', WIDTH, subsequent_indent=' ' * len(start)
    )
  return lines


def _times(values: Sequence[float]) -> str:
  return 'x'.join(f'{v:.2f}'.rstrip('0').rstrip('.') for v in values)


def _one(values: Sequence[int]) -> str:
  """Returns a single number where all axes have the same."""
  return str(values[0]) if len(set(values)) == 1 else _times(values)


def _json(value: Any, indent: int) -> str:
  line = json.dumps(value, allow_nan=False)
  is_flat = not isinstance(value, list | dict) or (
    # A list of objects, or an object with parts, reads better in lines.
    '{' not in line[1:] and indent and len(line) <= WIDTH
  )
  if is_flat or not value:
    return line
  space = ' ' * (indent + 2)
  if isinstance(value, dict):
    parts = [
      f'{json.dumps(k)}: {_json(v, indent + 2)}' for k, v in value.items()
    ]
    opening, closing = '{', '}'
  else:
    parts = [_json(v, indent + 2) for v in value]
    opening, closing = '[', ']'
  inside = f',\n{space}'.join(parts)
  return f'{opening}\n{space}{inside}\n{" " * indent}{closing}'
