"""Which cases have to stay on one side of a split: of one patient, say.

A group is known by the name of one of its cases, the first in their order.
"""

import csv
import io
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import expand_home

# Case -> group.
Groups = dict[str, str]


def read_groups(group: str, names: Sequence[str]) -> Groups:
  """Returns what `data.group` says of each case.

  Args:
    group: a regular expression that is looked for in the name of a case; its
      first group in parentheses, or without any the whole match, is the name
      of the case's group. Or the path of a CSV file with the columns `case`
      and `group`, with or without that first line. '' puts every case into a
      group of its own.
    names: of all cases.

  Raises:
    InputError: no such file, neither of the two, a case without a group or
      (in the file) with two.
  """
  if not group:
    return {name: name for name in names}
  if group.lower().endswith('.csv'):
    found = _from_csv(expand_home(group, or_set='config.data.group'))
    how = f'allowed is a file with a line `case,group` for each: {group}'
  else:
    found = _from_expression(group, names)
    how = 'allowed is an expression that matches in the name of every case'
  missing = [name for name in names if name not in found]
  if missing:
    raise InputError(
      f'config.data.group {group!r} gives no group to {len(missing)} of '
      f'{counted(len(names), "case")} ({some(missing)}); {how}'
    )
  return {name: found[name] for name in names}


def join(names: Sequence[str], *keys: Mapping[str, str]) -> Groups:
  """Returns the groups of cases that share a key in any of the mappings.

  Args:
    names: of all cases; the first of a group gives it its name.
    keys: each from case to a key. A case that is missing there, or has the
      key '', shares nothing by it.
  """
  parent = {name: name for name in names}

  def root(name: str) -> str:
    while parent[name] != name:
      parent[name] = name = parent[parent[name]]
    return name

  place = {name: i for i, name in enumerate(names)}
  for mapping in keys:
    first: dict[str, str] = {}
    for name in names:
      key = mapping.get(name, '')
      if not key:
        continue
      a, b = root(first.setdefault(key, name)), root(name)
      early, late = sorted((a, b), key=place.__getitem__)
      parent[late] = early
  return {name: root(name) for name in names}


def some(names: Iterable[str], most: int = 3) -> str:
  """Returns the first of the names, shortened, for a message."""
  names = list(names)
  shown = [n if len(n) <= 60 else f'{n[:57]}...' for n in names[:most]]
  more = len(names) - len(shown)
  return ', '.join(shown) + (f' and {more} more' if more > 0 else '')


def _from_expression(text: str, names: Sequence[str]) -> Groups:
  try:
    expression = re.compile(text)
  except re.error as error:
    raise InputError(
      f'config.data.group {text!r} is no regular expression ({error}); '
      'allowed is one that names the group of a case, or a CSV file'
    ) from error
  found = {}
  for name in names:
    match = expression.search(name)
    if match:
      named = match[1] if expression.groups else match[0]
      if named:
        found[name] = named
  return found


def _from_csv(path: pathlib.Path) -> Groups:
  form = 'allowed is a CSV file with lines `case,group`'
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or 'not text in UTF-8'
    raise InputError(
      f'config.data.group: {os.fspath(path)} cannot be read ({reason}); {form}'
    ) from error
  found: Groups = {}
  try:
    rows = list(csv.reader(io.StringIO(text), strict=True))
  except csv.Error as error:
    raise InputError(f'{path}: {error}; {form}') from error
  for number, row in enumerate(rows, 1):
    cells = [cell.strip() for cell in row]
    if not any(cells) or (number == 1 and cells[:2] == ['case', 'group']):
      continue
    if len(cells) != 2 or not all(cells):
      raise InputError(
        f'{path}, line {number}: {counted(len(row), "column")}; {form}'
      )
    case, group = cells
    if found.setdefault(case, group) != group:
      raise InputError(
        f'{path}, line {number}: a second group for the case {case}; allowed '
        'is one'
      )
  return found
