"""Keys of a config, set on the command line.

A trained model brings its config with it, so that `--config.key=value` needs no
file of one: what there is to set, and of which type, the model's own tells.
"""

import ast
import difflib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.runtime.errors import InputError

_PREFIXES = ('--config.', '-config.')
_NO = ('--noconfig.', '-noconfig.')
_TRUE, _FALSE = ('true', 't', '1', 'yes'), ('false', 'f', '0', 'no')
# What may be of several types, so that the value it has tells too little.
_OPEN = ('data.fold',)
_LONGEST = 40  # characters of a value in a message


def split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
  """Returns the arguments without the overrides, and these as (key, text).

  Args:
    argv: with `--config.key=value`, also as two words; `--config.key` alone
      means true, `--noconfig.key` false.
  """
  rest: list[str] = []
  overrides = []
  words = list(argv)
  while words:
    word = words.pop(0)
    if word == '--':  # what follows are no flags
      return [*rest, word, *words], overrides
    if word.startswith(_NO):
      overrides.append((word.split('config.', 1)[1], 'false'))
    elif not word.startswith(_PREFIXES):
      rest.append(word)
    else:
      key, equals, text = word.split('config.', 1)[1].partition('=')
      if not equals:
        follows = bool(words) and not words[0].startswith('--')
        text = words.pop(0) if follows else 'true'
      overrides.append((key, text))
  return rest, overrides


def last_of_each(argv: Sequence[str]) -> list[str]:
  """Returns the arguments with each key of the config once.

  The last counts, where the parser of flags would join two tuples to one.
  """
  rest, overrides = split(argv)
  words = [f'--config.{key}={text}' for key, text in dict(overrides).items()]
  end = rest.index('--') if '--' in rest else len(rest)
  return [*rest[:end], *words, *rest[end:]]


def apply(config: ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
  """Sets keys of `config`, each to a value of the type that it has.

  Args:
    config: any.
    overrides: (key, text), such as ('inference.overlap', '0.25').

  Raises:
    InputError: there is no such key, or the text is no such value.
  """
  for key, text in overrides:
    *sections, name = key.split('.')
    section = config
    for part in sections:
      section = section.get(part) if isinstance(section, ConfigDict) else None
    if not isinstance(section, ConfigDict) or name not in section:
      raise InputError(f'unknown key config.{key}{advise(key, config)}')
    before = section[name]
    if isinstance(before, ConfigDict):
      raise InputError(
        f'config.{key} is a section; allowed are its keys, such as '
        f'config.{key}.{next(iter(before), "...")}'
      )
    value = _literal(text) if key in _OPEN else _read(key, text, before)
    with section.ignore_type():
      section[name] = value


def advise(key: str, config: ConfigDict) -> str:
  """Returns what a key that there is not may have meant, else what there is.

  '; did you mean config.KEY?', or '; config has the keys ...'.
  """
  known = keys_of(config)
  name = key.rpartition('.')[2]
  sections = {other.rpartition('.')[0] for other in known}
  alike = [
    other
    for other in known
    if difflib.get_close_matches(name, [other.rpartition('.')[2]])
    or (key.startswith(f'{other}.') and other not in sections)
  ]
  if alike:
    best = max(
      alike, key=lambda other: difflib.SequenceMatcher(a=key, b=other).ratio()
    )
    return f'; did you mean config.{best}?'
  section = key.rpartition('.')[0]
  while section and section not in sections:
    section = section.rpartition('.')[0]
  inside = config
  for part in filter(None, section.split('.')):
    inside = inside[part]
  place = f'config.{section}' if section else 'config'
  return f'; {place} has the keys {", ".join(inside)}'


def keys_of(config: ConfigDict, prefix: str = '') -> list[str]:
  """Returns the names of all keys and sections, such as 'data.path'."""
  keys = []
  for key, value in config.items():
    keys.append(prefix + key)
    if isinstance(value, ConfigDict):
      keys += keys_of(value, f'{prefix}{key}.')
  return keys


def _read(key: str, text: str, before: Any) -> Any:
  """Returns the value that `text` says, of the type of the value before."""
  if isinstance(before, str):
    return text
  if isinstance(before, bool):
    if text.lower() in (*_TRUE, *_FALSE):
      return text.lower() in _TRUE
    raise _wrong(key, text, 'true or false')
  value = _literal(text)
  if isinstance(before, tuple):
    value = tuple(_items(text, value))
    if not all(_alike(item, before) for item in value):
      example = before or (2, 2)
      raise _wrong(key, text, f'a list like {str(example)[:_LONGEST]}')
    return value
  if before is None:
    return value
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if isinstance(before, int):
    if number and value == int(value if math.isfinite(value) else 0):
      return int(value)
    raise _wrong(key, text, f'a whole number, such as {before}')
  if not number or not math.isfinite(value):
    raise _wrong(key, text, f'a number, such as {before:g}')
  return float(value)


def _items(text: str, value: Any) -> Iterator[Any]:
  """Yields the items of a tuple; of words without quotes, between commas."""
  if isinstance(value, tuple | list):
    yield from value
  elif not isinstance(value, str):
    yield value
  else:
    words = text.strip('()[] ').split(',')
    yield from (word.strip() for word in words if word.strip())


def _alike(item: Any, before: tuple) -> bool:
  """Returns whether an item could be one of `before`, where that has any."""
  if not before:
    return True
  first = before[0]
  if isinstance(first, int | float):
    whole = all(isinstance(other, int) for other in before)
    return type(item) is int or (type(item) is float and not whole)
  return isinstance(item, type(first))


def _literal(text: str) -> Any:
  """Returns the number, tuple or other literal, else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def _wrong(key: str, text: str, allowed: str) -> InputError:
  shown = text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'
  return InputError(f'config.{key} is {shown!r}; allowed is {allowed}')
