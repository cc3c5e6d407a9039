"""Shapes in docstrings, `[B, *S, C]` without quotes, as code on the pages.

Markdown would take the stars of two of them for emphasis.
"""

import re

import griffe

# Code as it is, or a shape.
_CODE_OR_SHAPE = re.compile(r'(`[^`]*`)|(\[[^\[\]`\n]*\*[^\[\]`\n]*\])')


class Shapes(griffe.Extension):
  """Quotes the shapes of every docstring."""

  def on_instance(self, *, obj: griffe.Object, **_) -> None:
    if obj.docstring:
      obj.docstring.value = quoted(obj.docstring.value)


def quoted(text: str) -> str:
  """Returns the text with each shape in backquotes.

  Of a docstring with a block of code, indented by four spaces, that is left as
  it is.
  """
  return '\n'.join(
    line
    if line.startswith('    ') and '=' in line
    else _CODE_OR_SHAPE.sub(lambda m: m[1] or f'`{m[2]}`', line)
    for line in text.split('\n')
  )
