"""The flags of the command line, and what their words mean."""

import difflib
import itertools
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from medseg_jax import command_help, completion
from medseg_jax.experiment import config_files, config_script, overrides
from medseg_jax.experiment.overrides import last_of_each
from medseg_jax.experiment.overrides import split as split_overrides
from medseg_jax.pacs import address
from medseg_jax.pacs.address import Node, Web
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
_HELP = ('help', 'helpfull', 'helpshort', 'h', '?')
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
  'Folder of images, or one, or of DICOM, for --mode=predict; or a series of '
  'an archive: dicomweb://HOST[:PORT][/ROOT]/studies/UID[/series/UID]. For '
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
SEND = flags.DEFINE_string(
  'send',
  '',
  'Archive that --mode=predict sends its DICOM objects to: '
  'dicom://[CALLING@]CALLED@HOST:PORT, dicomweb://HOST[:PORT][/ROOT], or '
  'dicomwebs:// over HTTPS. Needs seg or rtstruct in --formats.',
)
COMPLETION = flags.DEFINE_enum(
  'completion',
  None,
  ['bash', 'zsh'],
  'Print what this shell completes the command medseg-jax by; for example '
  'source <(medseg-jax --completion=bash).',
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
  return pathlib.Path(needed(flag.name, what, flag.value))


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


def archive() -> Node | Web | None:
  """Returns what `--send` names, if anything.

  Raises:
    InputError: no archive, or the mode sends nothing.
  """
  if not SEND.value:
    return None
  if MODE.value != 'predict':
    raise InputError(f'--send is for --mode=predict, not for {MODE.value}')
  return address.target(SEND.value)


def check_addresses() -> None:
  """Raises InputError where a flag has the address of nothing."""
  archive()
  if MODE.value == 'predict' and address.is_address(_last_input()):
    address.source(_last_input())


def images() -> pathlib.Path | Web:
  """Returns what `--input` names: a folder, a file, or a series elsewhere.

  Raises:
    InputError: nothing, or no series.
  """
  text = needed('input', 'FOLDER', _last_input())
  if address.is_address(text):
    return address.source(text)
  return pathlib.Path(text)


def _last_input() -> str:
  """Returns `--input`; given more than once the last counts, as of any flag."""
  return (INPUT.value or [''])[-1]


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
  """Parses the flags; every mistake becomes an InputError.

  Raises:
    SystemExit: what was asked for is told: `--help`, `--completion`.
  """
  given = dict(_pairs(argv))
  if any(f'{dashes}{name}' in argv for name in _HELP for dashes in ('-', '--')):
    _tell_help(given.get('mode'))
  OVERRIDES.clear()
  if given.get('mode') in FROM_MODEL + FROM_MASKS:
    argv, OVERRIDES[:] = split_overrides(argv)
  elif 'config' not in given and split_overrides(argv)[1]:
    raise InputError(_NO_CONFIG)
  if (path := given.get('config')) is not None:
    # The flags' own parser says less, and takes any text for a tuple.
    config_script.load(path, split_overrides(argv)[1])
  argv = last_of_each(argv)
  _ARGV[:] = argv
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise InputError(_unknown(error.flagname)) from error
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(_unsuitable(given) or str(error)) from error
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r} is not a flag; flags begin with --')
  if COMPLETION.value:
    shown = [flags.FLAGS[name] for name in command_help.names()]
    keys = overrides.keys_of(config_files.default_config())
    print(completion.script(COMPLETION.value, shown, keys), end='')
    sys.exit(0)


def _tell_help(mode: str | None) -> None:
  groups = {
    'From a config': FROM_CONFIG,
    'With a trained model, of --workdir or --model': FROM_MODEL,
    'With masks alone': FROM_MASKS,
  }
  only = mode if mode in command_help.MODES else None
  print(command_help.text(flags.FLAGS, groups, only))
  sys.exit(0)


def _unknown(name: str) -> str:
  """Returns what is wrong with a flag that there is not, and what is near."""
  near = difflib.get_close_matches(name, command_help.names(), n=1)
  keys = overrides.keys_of(config_files.default_config())
  if not near:
    same = [key for key in keys if name in (key, key.rpartition('.')[2])]
    near = [f'config.{key}' for key in same]
  words = ' or '.join(f'--{flag}' for flag in near)
  advice = f'did you mean {words}?' if near else '--help lists all'
  return f'unknown flag --{name}; {advice}'


def _unsuitable(given: dict[str, str]) -> str:
  """Returns which flag has a value that is none of its list, '' for none."""
  for name, value in given.items():
    allowed = (
      command_help.values_of(flags.FLAGS[name]) if name in flags.FLAGS else ()
    )
    if allowed and value not in allowed:
      near = difflib.get_close_matches(value, allowed, n=1)
      return f'--{name}={value}: allowed are {", ".join(allowed)}' + (
        f'; did you mean {near[0]}?' if near else ''
      )
  return ''


def _pairs(argv: list[str]) -> list[tuple[str, str]]:
  """Returns (flag, value) of the arguments, as `--flag=value` or two words."""
  pairs = []
  for word, following in itertools.pairwise([*argv[1:], '']):
    if word.startswith('-'):
      flag, equals, value = word.lstrip('-').partition('=')
      pairs.append((flag, value if equals else following))
  return pairs
