"""The parts of the pages that are made of the program when they are built.

MkDocs calls `on_page_markdown` for each page. `<!-- config keys -->` becomes
the list of all keys of configs/unet.py, `<!-- flags -->` that of all flags,
`<!-- augment fields -->` that of the augmentation's.
"""

import ast
import html
import io
import pathlib
import re
import sys
import tokenize
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / 'configs' / 'unet.py'
OPTIONS = ROOT / 'medseg_jax' / 'augment' / 'options.py'

if str(ROOT) not in sys.path:
  sys.path.append(str(ROOT))


class Key(NamedTuple):
  """One key of the config: its name, its default as written, its comments.

  Attributes:
    name: 'data.path', say.
    default: the source of its value; '' for a section.
    before: the comment on the lines above it.
    behind: the comment on its own line.
  """

  name: str
  default: str
  before: str
  behind: str


def on_page_markdown(markdown: str, **_) -> str:
  for mark, make in (
    ('config keys', config_keys),
    ('flags', flags),
    ('augment fields', augment_fields),
  ):
    mark = f'<!-- {mark} -->'
    if mark in markdown:
      markdown = markdown.replace(mark, make())
  return markdown


def config_keys() -> str:
  """Returns the keys of configs/unet.py with defaults and comments."""
  lines = ['## The run', '']
  keys = read_keys(CONFIG.read_text())
  # First those of no section, wherever they stand in the file.
  for key in sorted(keys, key=lambda key: not key.default or '.' in key.name):
    if not key.default:
      words = ' '.join(filter(None, [key.before, key.behind]))
      lines += ['', f'## {key.name}', '', _text(words), '']
      continue
    if key.before:
      lines += ['', _text(key.before), '']
    note = f': {_text(key.behind)}' if key.behind else ''
    lines.append(f'* `{key.name}` = `{key.default}`{note}')
  return '\n'.join(lines)


def read_keys(source: str) -> list[Key]:
  """Returns the keys that `get_config` of a config's source sets, in order."""
  (function,) = (
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef) and node.name == 'get_config'
  )
  comments = _comments(source)
  keys = []
  for node in function.body:
    if not isinstance(node, ast.Assign) or not isinstance(
      node.targets[0], ast.Attribute
    ):
      continue
    name = ast.unparse(node.targets[0]).removeprefix('config.')
    value = node.value
    if isinstance(value, ast.Call) and ast.unparse(value.func) == '_any':
      value = value.args[0]
    is_section = ast.unparse(value) == 'ConfigDict()'
    behind, alone = comments.get(node.end_lineno, ('', True))
    keys.append(
      Key(
        name,
        '' if is_section else ast.unparse(value),
        _above(node, comments),
        '' if alone else behind,
      )
    )
  return keys


def augment_fields() -> str:
  """Returns the fields of the augmentation with defaults and comments."""
  source = OPTIONS.read_text()
  (options,) = (
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef) and node.name == 'Options'
  )
  comments, lines = _comments(source), [ast.get_docstring(options), '']
  for node in options.body:
    if isinstance(node, ast.AnnAssign):
      if words := _above(node, comments):
        lines += ['', _text(words), '']
      lines.append(f'* `{node.target.id}` = `{ast.unparse(node.value)}`')
  return '\n'.join(lines)


def _comments(source: str) -> dict[int, tuple[str, bool]]:
  """Returns line -> (comment, whether nothing else stands on the line)."""
  return {
    token.start[0]: (token.string.lstrip('# '), token.line.lstrip()[0] == '#')
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }


def _above(node: ast.stmt, comments: dict[int, tuple[str, bool]]) -> str:
  """Returns the comment on the lines above a statement."""
  words, line = [], node.lineno - 1
  while comments.get(line, ('', False))[1]:
    words.insert(0, comments[line][0])
    line -= 1
  return ' '.join(words)


def flags() -> str:
  """Returns the flags of the command line with their own words."""
  from absl import flags as absl_flags

  from medseg_jax import command_line

  lines = []
  found = absl_flags.FLAGS.flags_by_module_dict()[command_line.__name__]
  for flag in found:
    if flag.name == 'config':
      text = (
        'A config file, such as configs/unet.py. Its keys can be set as '
        '--config.key=value.'
      )
    else:
      text = re.sub(r'^<.*?>: ', '', ' '.join(flag.help.split()))
    values = getattr(flag.parser, 'enum_values', None)
    lines += [f'`--{flag.name}`', f':   {_text(text)}']
    if values:
      allowed = ', '.join(f'`{value}`' for value in values)
      lines += ['', f'    One of {allowed}.']
    lines.append('')
  return '\n'.join(lines)


def _text(comment: str) -> str:
  """Returns words of a program as Markdown that shows them as they are."""
  text = html.escape(comment, quote=False)
  return re.sub(r'([\\`*_{}\[\]])', r'\\\1', text)


if __name__ == '__main__':
  print(config_keys())
