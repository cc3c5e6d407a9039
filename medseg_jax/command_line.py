"""The flags of the command line, and what their words mean."""

import importlib.util
import itertools
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from medseg_jax.experiment.overrides import apply as apply_overrides
from medseg_jax.experiment.overrides import last_of_each
from medseg_jax.experiment.overrides import split as split_overrides
from medseg_jax.runtime.errors import InputError

# What each mode needs: a config to begin with, or a trained model.
FROM_CONFIG = (
  *('train', 'crossval', 'learning_curve'),
  *('plan', 'prepare', 'benchmark', 'compile'),
)
STUDIES = ('crossval', 'learning_curve')  # of several trainings
FROM_MODEL = ('evaluate', 'predict', 'export', 'followup')
FROM_MASKS = (
  'score',
  'compare',
)  # neither; keys are set without a config all the same
WRITE_WORKDIR = (*FROM_CONFIG, 'evaluate')
ALONE = ('benchmark', 'followup')  # not for several processes
# Of several processes one does it.
ON_PRIMARY = ('plan', 'compile', 'export', 'score', 'compare')
_NO_CONFIG = '--config is missing; for example --config=configs/unet.py'

# What is parsed, and what is not: (key, text) for a trained model's config.
_ARGV: list[str] = []
OVERRIDES: list[tuple[str, str]] = []
CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, such as configs/unet.py; its keys can be set '
  'as --config.key=value.',
  sys_argv=_ARGV,
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run. Default: runs/NAME_OF_THE_CONFIG.'
)
MODEL = flags.DEFINE_string(
  'model',
  None,
  'A trained model, as the folder model/ of a workdir or its zip, in place of '
  '--workdir.',
)
MODE = flags.DEFINE_enum(
  'mode', 'train', FROM_CONFIG + FROM_MODEL + FROM_MASKS, 'What to do.'
)
SPLIT = flags.DEFINE_enum(
  'split',
  None,
  ['train', 'val', 'test'],
  'What --mode=evaluate evaluates, or whose reports --mode=compare compares. '
  'Default: the held-out split.',
)
CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  None,
  ['best', 'latest'],
  'Which weights of a workdir to use. Default: the model that training ended '
  'with, or the best so far.',
)
INPUT = flags.DEFINE_multi_string(
  'input',
  None,
  'Folder of images, or one, or of DICOM, for --mode=predict; for '
  '--mode=followup two, the earlier one first.',
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Folder of the masks of --mode=predict, or for one image the file; the file '
  'of --mode=export; the folder of --mode=followup, or of the report of '
  '--mode=score or compare.',
)
PREDICTIONS = flags.DEFINE_string(
  'predictions',
  None,
  'Folder of masks for --mode=score, whoever made them; two, with a comma, for '
  '--mode=compare.',
)
RUNS = flags.DEFINE_string(
  'runs',
  None,
  'What --mode=compare compares: two workdirs, or folders of reports.',
)
LABELS = flags.DEFINE_string(
  'labels', None, 'Folder of the labels that they are compared with.'
)
SERIES = flags.DEFINE_string(
  'series',
  '',
  'Which DICOM series of --input: number, UID, words of its description; all.',
)
FORMATS = flags.DEFINE_string(
  'formats',
  'nifti',
  'What --mode=predict writes of volumes: nifti, which stands for NRRD and '
  'MetaImage of such images, mesh, report, and of DICOM also seg, rtstruct; '
  'several with commas.',
)
OVERWRITE = flags.DEFINE_bool(
  'overwrite',
  False,
  'Make masks anew that are there, also those that others made. Otherwise '
  'those of the same weights and settings are kept. Of --mode=score and '
  'compare: replace a report of others.',
)
FORMAT = flags.DEFINE_enum(
  'format',
  'model',
  ['model', 'stablehlo', 'onnx'],
  'What --mode=export writes.',
)
TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'The devices that --mode=compile compiles for, which need not be there: '
  'v5e:4x4, v5p:8x8x16, v5e:16x16:4 (four slices of 16x16), h100:8, h100:32x8 '
  '(hosts x GPUs).',
)
flags.DEFINE_bool('debug', False, 'Print tracebacks of errors.')


def workdir() -> pathlib.Path:
  """Returns the folder of the run, after a look at what names it.

  Raises:
    InputError: nothing names it, or `--model` is for another mode.
  """
  if MODEL.value and MODE.value in FROM_CONFIG:
    raise InputError(
      f'--model is for {", ".join(FROM_MODEL)}; --mode={MODE.value} needs '
      '--config'
    )
  if MODE.value in FROM_MASKS:
    if MODEL.value or CONFIG.value is not None:
      raise InputError(
        f'--mode={MODE.value} needs no model and no --config; allowed are '
        '--predictions, --labels, --output and --config.key=value'
        + (', or --runs' if MODE.value == 'compare' else '')
      )
    return pathlib.Path(WORKDIR.value or f'runs/{MODE.value}')
  if WORKDIR.value:
    name = WORKDIR.value
  elif MODEL.value:
    path = pathlib.Path(MODEL.value).absolute()
    # The model of runs/unet/model is called unet, that of liver.zip liver.
    name = f'runs/{path.parent.name if path.name == "model" else path.stem}'
  elif CONFIG.value is not None:
    file = config_flags.get_config_filename(flags.FLAGS['config'])
    name = f'runs/{pathlib.Path(file).stem}'
  if CONFIG.value is None and (
    MODE.value in FROM_CONFIG or not (WORKDIR.value or MODEL.value)
  ):
    if MODE.value in FROM_CONFIG:
      raise InputError(_NO_CONFIG)
    raise InputError(
      f'--mode={MODE.value} needs a trained model: --workdir=DIR of a run, '
      '--model=PATH, or the --config that it was trained with'
    )
  return pathlib.Path(name)


def needed(name: str, what: str, value: str | None) -> str:
  """Returns the value of a flag that the mode cannot do without.

  Raises:
    InputError: it has none.
  """
  if not value:
    raise InputError(f'--mode={MODE.value} needs --{name}={what}')
  return value


def path_of(flag: flags.FlagHolder, what: str) -> pathlib.Path:
  """Returns the path that such a flag names."""
  value = flag.value
  if isinstance(value, list):  # as of any other flag the last counts
    value = value[-1]
  return pathlib.Path(needed(flag.name, what, value))


def time_points() -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the earlier and the later input.

  Raises:
    InputError: there are more or fewer.
  """
  paths = INPUT.value or []
  if len(paths) != 2 or '' in paths:
    raise InputError(
      f'--mode={MODE.value} needs two --input, the earlier and the later one; '
      f'found {" ".join(paths) or "none"}'
    )
  return pathlib.Path(paths[0]), pathlib.Path(paths[1])


def two_of(flag: flags.FlagHolder) -> list[pathlib.Path]:
  """Returns the two paths that a flag names, `A,B`; none where it is not given.

  Raises:
    InputError: it names more or fewer.
  """
  if not flag.value:
    return []
  paths = flag.value.split(',')
  if len(paths) != 2 or '' in paths:
    raise InputError(
      f'--{flag.name}={flag.value}: allowed are two folders, --{flag.name}=A,B'
    )
  return [pathlib.Path(path) for path in paths]


def parse(argv: list[str]) -> None:
  """Parses the flags; every mistake becomes an InputError."""
  app.define_help_flags()
  given = dict(_pairs(argv))
  OVERRIDES.clear()
  if given.get('mode') in FROM_MODEL + FROM_MASKS:
    argv, OVERRIDES[:] = split_overrides(argv)
  elif 'config' not in given and split_overrides(argv)[1]:
    raise InputError(_NO_CONFIG)
  _check_config(argv)
  argv = last_of_each(argv)
  _ARGV[:] = argv
  try:
    rest = flags.FLAGS(argv)
  except SystemExit:  # of --help, which absl counts as a failure
    sys.exit(0)
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(str(error)) from error
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r} is not a flag; flags begin with --')


def _check_config(argv: list[str]) -> None:
  """Raises InputError for no such file of --config, or key, or value of one."""
  path = dict(_pairs(argv)).get('config')
  if path is None:
    return
  file = pathlib.Path(path.split(':')[0])
  if not file.is_file():
    near = sorted(p.name for p in file.parent.glob('*.py'))
    raise InputError(
      f'--config={path}: no such file'
      + (f'; {file.parent} holds {", ".join(near)}' if near else '')
    )
  # Configs import each other as `from configs import ...`, wherever the
  # command is typed.
  for folder in (file.resolve().parents[1], pathlib.Path(__file__).parents[1]):
    sys.path.append(str(folder))
  spec = importlib.util.spec_from_file_location('_config_check', file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*path.split(':')[1:])
  except Exception as error:
    raise InputError(
      f'--config={path} does not load: {type(error).__name__}: {error}'
    ) from error
  # The flags' own parser says less, and takes any text for a tuple.
  apply_overrides(config, split_overrides(argv)[1])


def _pairs(argv: list[str]) -> list[tuple[str, str]]:
  """Returns (flag, value) of the arguments, as `--flag=value` or two words."""
  pairs = []
  for word, following in itertools.pairwise([*argv[1:], '']):
    if word.startswith('-'):
      flag, equals, value = word.lstrip('-').partition('=')
      pairs.append((flag, value if equals else following))
  return pairs
