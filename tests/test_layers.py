"""Who may import whom, read from the source."""

import ast

from conftest import ROOT

PACKAGE = ROOT / 'medseg_jax'

# From the ground up. A file belongs to the longest of these names that its own
# begins with; it imports from its own part and from the floors below.
FLOORS = (
  ('runtime.errors',),
  (
    'runtime.event_file',
    'runtime.files',
    'runtime.host_memory',
    'runtime.orbax_messages',
    'runtime.stop_signal',
    'runtime.telling',
  ),
  ('runtime.launcher', 'runtime.startup', 'runtime.watchdog'),
  ('runtime.multihost',),
  ('runtime.checkpoint_files', 'runtime.run_logs'),
  (
    'runtime.agreement',
    'runtime.checkpoint',
    'runtime.metric_writer',
    'runtime.mlflow_run',
    'runtime.process',
    'runtime.progress',
    'runtime.sharding',
    'runtime.wandb_run',
    'runtime.workdir_lock',
  ),
  # Libraries that know nothing of each other.
  (
    *('augment', 'calibration', 'hardware', 'losses', 'metrics', 'models'),
    *('optim', 'planner', 'postprocessing', 'report'),
  ),
  ('data', 'state', 'surface'),
  ('clinic', 'inference', 'pacs', 'step', 'training'),
  ('experiment',),
  ('benchmarking',),
  tuple(
    f'programs.{name}'
    for name in ('plan', 'prepare', 'evaluate', 'export', 'predict', 'score')
  ),
  ('programs.compare', 'programs.followup', 'programs.validation'),
  ('programs.train',),
  ('programs', 'studies'),
  ('command_help',),
  ('completion',),
  ('command_line',),
  ('main', ''),  # '': the package itself, whose load_model imports late
  ('console',),
)
FLOOR = {part: i for i, parts in enumerate(FLOORS) for part in parts}
# What each part of data/ may import of the others: case before file before set.
NUMPY_ONLY = (
  *('data', 'postprocessing'),
  *('runtime.errors', 'runtime.files', 'runtime.host_memory'),
)


def files():
  return sorted(PACKAGE.rglob('*.py'))


def module_of(path):
  """Returns 'data.cache' for medseg_jax/data/cache.py, '' for the package."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def part_of(module):
  """Returns the part of the package that a module, or a name in it, is in."""
  words = module.split('.')
  for end in range(len(words), 0, -1):
    if (part := '.'.join(words[:end])) in FLOOR:
      return part
  return None


def imports(path):
  """Yields (module, whether the import stands at the top of the file).

  `from package import name` counts as an import of `package.name`.
  """
  tree = ast.parse(path.read_text())
  top = set(map(id, tree.body))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path} has a relative import'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', id(node) in top


def test_no_import_points_up():
  wrong = []
  for path in files():
    part = part_of(module_of(path))
    for module, _ in imports(path):
      if not module.startswith('medseg_jax.'):
        continue
      assert part is not None, f'{path} stands on no floor'
      other = part_of(module.removeprefix('medseg_jax.'))
      if other is None:
        continue  # of the package itself: its version, say
      if other != part and FLOOR[other] >= FLOOR[part]:
        wrong.append(f'{module_of(path)} imports {module}')
  assert not wrong


def outside(names):
  """Returns (module, imported, top) of each import of one of `names`."""
  return [
    (module_of(path), module, top)
    for path in files()
    for module, top in imports(path)
    if module.split('.')[0] in names
  ]


def test_data_knows_no_jax():
  found = outside({'jax', 'flax', 'optax'})
  assert not [row for row in found if row[0].startswith(NUMPY_ONLY)]


def test_tensorflow_is_imported_late_and_only_for_data():
  for name, module, top in outside({'tensorflow', 'tensorflow_datasets'}):
    assert name.split('.')[-1] in (
      'input_pipeline',
      'phantom_tfds',
      'tfds',
    )
    # The builder is a TFDS class, so its module needs TFDS from the start.
    assert not top or name.endswith('phantom_tfds'), (name, module)


def test_dicom_stays_in_its_folder():
  places = {name.rpartition('.')[0] for name, *_ in outside({'pydicom'})}
  assert places == {'data.formats.dicom', 'clinic', 'pacs'}
  # It is an extra: the rest imports the folders only where they are asked for.
  extra = ('data.formats.dicom', 'clinic', 'pacs.store', 'pacs.web')
  for path in files():
    for module, top in imports(path):
      if top and module.startswith(tuple(f'medseg_jax.{x}' for x in extra)):
        assert module_of(path).startswith(extra), path


def test_archives_are_spoken_to_in_two_files():
  places = {
    (name, module.split('.')[0])
    for name, module, _ in outside(
      {'pynetdicom', 'dicomweb_client', 'requests'}
    )
  }
  assert places == {
    ('pacs.store', 'pynetdicom'),
    ('pacs.web', 'dicomweb_client'),
    ('pacs.web', 'requests'),
  }


def test_nrrd_is_imported_late_and_in_one_file():
  assert outside({'nrrd'}) == [('data.formats.nrrd', 'nrrd', False)]


def test_simple_itk_stays_in_one_file():
  [(name, *_)] = outside({'SimpleITK'})
  assert name == 'clinic.followup.registration'
  # An extra of its own: a report without a follow-up does not need it.
  extra = 'clinic.followup'
  for path in files():
    for module, top in imports(path):
      if top and module.startswith(f'medseg_jax.{extra}'):
        assert module_of(path).startswith(extra), path


def test_configs_stop_at_the_programs():
  lowest = FLOOR['experiment']
  for name, *_ in outside({'ml_collections'}):
    assert FLOOR[part_of(name)] >= lowest, name


def test_no_program_is_for_the_platform_of_the_process():
  # Its mesh says what it is for: a CPU compiles for accelerators, too.
  for path in files():
    for node in ast.walk(ast.parse(path.read_text())):
      asked = isinstance(node, ast.Attribute) and node.attr == 'default_backend'
      assert not asked, f'{path}:{node.lineno}'


def test_orbax_and_linen_stay_in_their_files():
  assert {name for name, *_ in outside({'orbax'})} == {
    'runtime.checkpoint',
    'runtime.checkpoint_files',
  }
  linen = {
    name.split('.')[0]
    for name, module, _ in outside({'flax'})
    if 'linen' in module
  }
  assert linen == {'models', 'state'}


def test_no_file_is_too_long():
  for path in [*files(), *(ROOT / 'tests').glob('*.py')]:
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f'{path.name} has {lines} lines'
