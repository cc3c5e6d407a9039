"""The public library is annotated, and says so to type checkers."""

import ast
import importlib.resources
import tomllib

import pytest
from conftest import ROOT

PACKAGE = ROOT / 'medseg_jax'
# The parts that mypy checks, see pyproject.toml.
PARTS = (
  'losses',
  'metrics',
  'surface.py',
  'augment',
  'calibration',
  'models',
  'inference',
  'hardware',
  'postprocessing',
  'clinic',
  'pacs',
  'report/html',
)


def files(part):
  path = PACKAGE / part
  return [path] if path.is_file() else sorted(path.rglob('*.py'))


def public_functions(tree):
  """Yields (function, whether it has a self) at the top and in classes."""
  for node in tree.body:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      yield node, False
    elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      for method in node.body:
        if not isinstance(method, ast.FunctionDef):
          continue
        if method.name.startswith('_') and not method.name.endswith('__'):
          continue
        decorators = {ast.unparse(x) for x in method.decorator_list}
        yield method, 'staticmethod' not in decorators


def bare(function, has_self):
  """Returns what of a function has no annotation."""
  arguments = function.args
  listed = [*arguments.posonlyargs, *arguments.args][has_self:]
  listed += arguments.kwonlyargs
  listed += [x for x in (arguments.vararg, arguments.kwarg) if x]
  names = [x.arg for x in listed if x.annotation is None]
  return names + ['return'] * (function.returns is None)


@pytest.mark.parametrize('part', PARTS)
def test_every_public_function_is_annotated(part):
  assert files(part)
  found = [
    f'{path.relative_to(PACKAGE)}:{function.lineno} {function.name}: '
    f'{", ".join(missing)}'
    for path in files(part)
    for function, has_self in public_functions(ast.parse(path.read_text()))
    if (missing := bare(function, has_self))
  ]
  assert not found, '\n'.join(found)


def test_a_function_without_annotations_is_found():
  source = (
    'def f(a, b: int, *c, d=1, **e): ...\n'
    'def _hidden(a): ...\n'
    'class A:\n'
    '  def __call__(self, x) -> int: ...\n'
    '  @staticmethod\n'
    '  def g(y: int): ...\n'
    '  def _hidden(self, z): ...\n'
  )
  assert [bare(*x) for x in public_functions(ast.parse(source))] == [
    ['a', 'd', 'c', 'e', 'return'],
    ['x'],
    ['return'],
  ]


def test_mypy_checks_the_same_parts():
  settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  expected = {f'medseg_jax/{part}' for part in PARTS}
  assert set(settings['tool']['mypy']['files']) == expected


def test_the_package_says_that_it_is_typed():
  assert (importlib.resources.files('medseg_jax') / 'py.typed').is_file()
  # Found in the checkout; setup.py is what takes it into a wheel.
  assert "'medseg_jax': ['py.typed']" in (ROOT / 'setup.py').read_text()
