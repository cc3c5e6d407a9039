"""Keeps browsers from breaking a flag behind its hyphens, `--` say.

MkDocs calls `on_page_content` for each page; style.css does the rest.
"""

import re

# Of a line, not of a block.
CODE = re.compile(r'(?<!<pre>)(?<!</span>)<code>([^<]*)</code>')


def on_page_content(html: str, **_) -> str:
  return CODE.sub(lambda found: f'<code>{whole_words(found[1])}</code>', html)


def whole_words(code: str) -> str:
  """Returns HTML that marks what a browser would break without a space."""
  return re.sub(r'\S*-\S*', r'<span class="word">\g<0></span>', code)
