"""Who may import whom, read from the source."""

import ast

from conftest import ROOT

PACKAGE = ROOT / 'medseg_jax'

# Each part of the package, and the parts below it that it may import.
BASE = {'errors', 'files', 'host_memory'}
INFRASTRUCTURE = BASE | {
  'sharding',
  'checkpoint',
  'metric_writer',
  'progress',
  'stop_signal',
  'flops',
  'machine',
  'process',
}
LEAVES = {
  'models',
  'losses',
  'metrics',
  'surface',
  'lesions',
  'decode',
  'augment',
  'optim',
  'planner',
}
OUTPUT = {'panels', 'report', 'benchmark_table'}
COMPOSITION = {
  'step',
  'state',
  'input_pipeline',
  'device_cache',
  'inference',
  'segment',
  'scores',
}
CONFIGURED = {'experiment', 'feed', 'planning', 'predictor', 'sources'}
PROGRAMS = {
  'train',
  'evaluate',
  'predict',
  'plan',
  'prepare',
  'benchmark',
  'profile_step',
  'profile_prediction',
  'sweep',
}
ALLOWED = (
  {name: BASE for name in INFRASTRUCTURE}
  | {name: set() for name in LEAVES}
  | {name: BASE for name in OUTPUT}
  | {'data': BASE, 'process': BASE | {'data'}}
  | {
    name: INFRASTRUCTURE | LEAVES | OUTPUT | COMPOSITION | {'data'}
    for name in COMPOSITION
  }
  | {
    name: INFRASTRUCTURE | LEAVES | COMPOSITION | CONFIGURED | {'data'}
    for name in CONFIGURED
  }
  | {
    name: INFRASTRUCTURE
    | LEAVES
    | OUTPUT
    | COMPOSITION
    | CONFIGURED
    | PROGRAMS
    | {'data'}
    for name in PROGRAMS
  }
  | {'main': {'errors', 'experiment', 'host_memory', 'process'} | PROGRAMS}
)


def files():
  return sorted(PACKAGE.rglob('*.py'))


def part_of(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(tree):
  """Yields (module, whether the import stands at the top of the file)."""
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      yield node.module, id(node) in top
      if node.module == 'medseg_jax':
        for alias in node.names:
          yield f'medseg_jax.{alias.name}', id(node) in top


def test_each_layer_imports_only_what_lies_below():
  wrong = []
  for path in files():
    part = part_of(path)
    if part == '__init__':
      continue
    for module, _ in imports(ast.parse(path.read_text())):
      if module.startswith('medseg_jax.'):
        other = module.split('.')[1]
        if other != part and other not in ALLOWED[part]:
          wrong.append(f'{path.name} imports {module}')
  assert not wrong


def outside(names):
  """Returns (part, file, module, top) of each import of one of `names`."""
  return [
    (part_of(path), path.name, module, top)
    for path in files()
    for module, top in imports(ast.parse(path.read_text()))
    if module.split('.')[0] in names
  ]


def test_data_knows_no_jax():
  found = outside({'jax', 'flax', 'optax'})
  assert not [row for row in found if row[0] == 'data']


def test_tensorflow_is_imported_late_and_only_for_data():
  for _, name, module, top in outside({'tensorflow', 'tensorflow_datasets'}):
    assert name in ('input_pipeline.py', 'phantom_tfds.py', 'tfds_source.py')
    # The builder is a TFDS class, so its module needs TFDS from the start.
    assert not top or name == 'phantom_tfds.py', (name, module)


def test_configs_stop_at_the_programs():
  for part, name, *_ in outside({'ml_collections'}):
    assert part in PROGRAMS | CONFIGURED | {'main'}, name


def test_orbax_and_linen_stay_in_their_files():
  assert {row[1] for row in outside({'orbax'})} == {'checkpoint.py'}
  linen = {row[0] for row in outside({'flax'}) if 'linen' in row[2]}
  assert linen == {'models', 'state'}


def test_no_file_is_too_long():
  for path in [*files(), *(ROOT / 'tests').glob('*.py')]:
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f'{path.name} has {lines} lines'
