"""Templates filled with what a page shows."""

import importlib.resources
import json
from typing import Any

import jinja2
from markupsafe import Markup

_OWN = 'medseg_jax.report.html'


def render(package: str, template: str, **shown: Any) -> str:
  """Returns a page; what is shown is escaped.

  A template may include those of this package by name, and has two functions:
  `source(file)`, a style or script of either package as it is, and
  `as_json(value)`.

  Args:
    package: where the template lies.
    template: the name of its file.
    **shown: its variables.
  """
  packages = list(dict.fromkeys([package, _OWN]))
  environment = jinja2.Environment(
    autoescape=True,
    loader=jinja2.ChoiceLoader(
      [jinja2.FunctionLoader(_reader(one)) for one in packages]
    ),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )

  def source(file: str) -> Markup:
    for one in packages:
      if (text := _reader(one)(file)) is not None:
        return Markup(text)
    raise jinja2.TemplateNotFound(file)

  environment.globals |= {'source': source, 'as_json': as_json}
  return environment.get_template(template).render(**shown)


def as_json(value: Any) -> Markup:
  """Returns JSON that can stand in a script element."""
  text = json.dumps(value, allow_nan=False, separators=(',', ':'))
  # "</" would end the script, wherever it stands.
  return Markup(text.replace('<', '\\u003c'))


def _reader(package: str) -> Any:
  folder = importlib.resources.files(package)

  def read(file: str) -> str | None:
    path = folder / file
    return path.read_text('utf-8') if path.is_file() else None

  return read
