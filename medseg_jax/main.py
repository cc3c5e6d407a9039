"""The command line: `python -m medseg_jax.main --config=configs/unet.py`."""

from medseg_jax.runtime import stop_signal

if __name__ == '__main__':
  stop_signal.note()  # before all that takes time

import contextlib
import importlib
import importlib.util
import itertools
import logging
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

from medseg_jax.experiment.overrides import apply as apply_overrides
from medseg_jax.experiment.overrides import last_of_each
from medseg_jax.experiment.overrides import split as split_overrides
from medseg_jax.hardware import topologies
from medseg_jax.runtime import files, host_memory, multihost
from medseg_jax.runtime.errors import InputError, Stopped, explain, shorten

_STARTED = time.perf_counter()
# What each mode needs: a config to begin with, or a trained model.
FROM_CONFIG = (
  *('train', 'crossval', 'learning_curve'),
  *('plan', 'prepare', 'benchmark', 'compile'),
)
STUDIES = ('crossval', 'learning_curve')  # of several trainings
FROM_MODEL = ('evaluate', 'predict', 'export')
FROM_MASKS = ('score',)  # neither; keys are set without a config all the same
WRITE_WORKDIR = (*FROM_CONFIG, 'evaluate')
# Of several processes one does it.
ON_PRIMARY = ('plan', 'compile', 'export', 'score')
_LONGEST_LINE = 2000
_NO_CONFIG = '--config is missing; for example --config=configs/unet.py'

# What is parsed, and what is not: (key, text) for a trained model's config.
_ARGV: list[str] = []
_OVERRIDES: list[tuple[str, str]] = []
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, such as configs/unet.py; its keys can be set '
  'as --config.key=value.',
  sys_argv=_ARGV,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run. Default: runs/NAME_OF_THE_CONFIG.'
)
_MODEL = flags.DEFINE_string(
  'model',
  None,
  'A trained model, as the folder model/ of a workdir or its zip, in place of '
  '--workdir.',
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', FROM_CONFIG + FROM_MODEL + FROM_MASKS, 'What to do.'
)
_SPLIT = flags.DEFINE_enum(
  'split',
  None,
  ['train', 'val', 'test'],
  'What --mode=evaluate evaluates. Default: the held-out split.',
)
_CHECKPOINT = flags.DEFINE_enum(
  'checkpoint',
  None,
  ['best', 'latest'],
  'Which weights of a workdir to use. Default: the model that training ended '
  'with, or the best so far.',
)
_INPUT = flags.DEFINE_string(
  'input', None, 'Folder of images, or one, or of DICOM, for --mode=predict.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Folder of the masks of --mode=predict, or for one image the file; the file '
  'of --mode=export; the folder of the report of --mode=score.',
)
_PREDICTIONS = flags.DEFINE_string(
  'predictions', None, 'Folder of masks for --mode=score, whoever made them.'
)
_LABELS = flags.DEFINE_string(
  'labels', None, 'Folder of the labels that --mode=score compares them with.'
)
_SERIES = flags.DEFINE_string(
  'series',
  '',
  'Which DICOM series of --input: number, UID, words of its description; all.',
)
_FORMATS = flags.DEFINE_string(
  'formats',
  'nifti',
  'What --mode=predict writes of volumes: nifti, which stands for NRRD and '
  'MetaImage of such images, and of DICOM also seg,rtstruct.',
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite',
  False,
  'Make masks anew that are there, also those that others made. Otherwise '
  'those of the same weights and settings are kept. Of --mode=score: replace a '
  'report of other masks.',
)
_FORMAT = flags.DEFINE_enum(
  'format',
  'model',
  ['model', 'stablehlo', 'onnx'],
  'What --mode=export writes.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'The devices that --mode=compile compiles for, which need not be there: '
  'v5e:4x4, v5p:8x8x16, v5e:16x16:4 (four slices of 16x16), h100:8, h100:32x8 '
  '(hosts x GPUs).',
)
flags.DEFINE_bool('debug', False, 'Print tracebacks of errors.')


def main() -> int:
  """Runs the program by `sys.argv` and returns its exit status."""
  with stop_signal.noted():
    try:
      status = _status()
      sys.stdout.flush()
    except SystemExit as error:  # --help
      multihost.leave(int(error.code or 0))
      raise
    except OSError as error:  # nobody reads on, or the log's disk is full
      _complain(explain(error, 'print', 'stdout'))
      # Python would try once more when it ends, and show a traceback.
      with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      status = 1
    multihost.leave(status)
  return status


def _status() -> int:
  try:
    stop_signal.check()
    multihost.start()
    _parse(sys.argv)
    _run()
    multihost.finish()
    return 0
  except Stopped as error:
    status = 128 + error.signal
    if multihost.speaks(status):
      print(error, flush=True)
    return status
  except KeyboardInterrupt:
    if multihost.speaks(130):
      print('interrupted', file=sys.stderr)
    return 130
  except InputError as error:
    if loss := multihost.loss(error):  # which no change of the input mends
      return _complain_of_loss(loss)
    _complain(error)
  except OSError as error:
    sys.stdout.flush()  # fails where it was that
    # A refusal without a name may be of the output, too, which is not always
    # kept until there is much of it.
    nameless = error.errno is not None and error.filename is None
    what = 'write a file or this output' if nameless else ''
    _complain(explain(error, what))
  except RecursionError:
    _complain('something is nested too deeply (--debug tells where)')
  except Exception as error:
    if loss := multihost.loss(error):
      return _complain_of_loss(loss)
    _complain(f'{type(error).__name__}: {error} (--debug tells where)')
  return 1


def _complain_of_loss(loss: str) -> int:
  _complain(f'another process of the run is gone: {loss}', multihost.LOST)
  return multihost.LOST


def _complain(error: object, status: int = 1) -> None:
  if not multihost.speaks(status):
    return
  # The flag itself may not have been parsed yet.
  if {'debug', 'debug=true', 'debug=1'} & {w.lstrip('-') for w in sys.argv}:
    traceback.print_exc()
  text = shorten(' '.join(str(error).split()), _LONGEST_LINE)
  with contextlib.suppress(OSError):  # then there is nobody to tell
    print(f'error: {text}', file=sys.stderr, flush=True)


def _run() -> None:
  mode = _MODE.value
  workdir, model = _workdir(), _MODEL.value and pathlib.Path(_MODEL.value)
  if mode in WRITE_WORKDIR:
    multihost.from_primary(lambda: files.check_writable(workdir))
  # Late: jax takes seconds, and a wrong flag should be told at once.
  from medseg_jax.runtime import process

  settings = {}
  if mode == 'compile':
    settings['topology'] = topologies.parse(
      _needed('topology', 'NAME', _TOPOLOGY.value)
    )
    process.add_xla_flags(topologies.prepare_process(settings['topology']))
  process.set_up()
  stop_signal.check()
  run = _run_of(mode)
  stop_signal.check()
  if mode in FROM_CONFIG:
    run(_CONFIG.value, workdir, **settings)
    return
  if mode in FROM_MASKS:
    run(
      pathlib.Path(_needed('predictions', 'FOLDER', _PREDICTIONS.value)),
      pathlib.Path(_needed('labels', 'FOLDER', _LABELS.value)),
      pathlib.Path(_OUTPUT.value or workdir),
      keys=_OVERRIDES,
      overwrite=_OVERWRITE.value,
    )
    return
  from medseg_jax.experiment import build, clinic_formats, trained_model
  from medseg_jax.runtime import sharding

  trained = dict(model=model, checkpoint=_CHECKPOINT.value or '')
  config = trained_model.read_config(workdir, **trained)
  apply_overrides(config, _OVERRIDES)
  mesh = None  # of all devices, whatever the training's was
  if any(key.startswith('mesh.') for key, _ in _OVERRIDES):
    mesh = build.mesh_of(config)
    if multihost.count() > 1:
      mesh = sharding.own_part(mesh)
  if mode == 'evaluate':
    run(config, workdir, split=_SPLIT.value or '', mesh=mesh, **trained)
  elif mode == 'export':
    output = pathlib.Path(_needed('output', 'FILE', _OUTPUT.value))
    run(config, workdir, output=output, form=_FORMAT.value, **trained)
  else:
    run(
      config,
      None if model and not _WORKDIR.value else workdir,
      input_path=pathlib.Path(_needed('input', 'FOLDER', _INPUT.value)),
      output_dir=pathlib.Path(_needed('output', 'FOLDER', _OUTPUT.value)),
      overwrite=_OVERWRITE.value,
      series=_SERIES.value,
      formats=clinic_formats.parse(_FORMATS.value),
      mesh=mesh,
      started=_STARTED,
      **trained,
    )


def _run_of(mode: str) -> Callable:
  """Returns the program of a mode, for this process of perhaps several.

  Raises:
    InputError: the mode is not for several.
  """
  if mode == 'benchmark' and multihost.count() > 1:
    raise InputError(
      f'--mode=benchmark measures one process, and there are '
      f'{multihost.count()}; start one'
    )
  folder = 'medseg_jax.studies' if mode in STUDIES else 'medseg_jax'
  run = importlib.import_module(f'{folder}.{mode}').run
  if mode not in ON_PRIMARY:
    return run
  return lambda *args, **named: multihost.from_primary(
    lambda: run(*args, **named)
  )


def _workdir() -> pathlib.Path:
  """Returns the folder of the run, after a look at what names it.

  Raises:
    InputError: nothing names it, or `--model` is for another mode.
  """
  if _MODEL.value and _MODE.value in FROM_CONFIG:
    raise InputError(
      f'--model is for {", ".join(FROM_MODEL)}; --mode={_MODE.value} needs '
      '--config'
    )
  if _MODE.value in FROM_MASKS:
    if _MODEL.value or _CONFIG.value is not None:
      raise InputError(
        f'--mode={_MODE.value} needs no model and no --config; allowed are '
        '--predictions, --labels, --output and --config.key=value'
      )
    return pathlib.Path(_WORKDIR.value or f'runs/{_MODE.value}')
  if _WORKDIR.value:
    name = _WORKDIR.value
  elif _MODEL.value:
    path = pathlib.Path(_MODEL.value).absolute()
    # The model of runs/unet/model is called unet, that of liver.zip liver.
    name = f'runs/{path.parent.name if path.name == "model" else path.stem}'
  elif _CONFIG.value is not None:
    file = config_flags.get_config_filename(flags.FLAGS['config'])
    name = f'runs/{pathlib.Path(file).stem}'
  if _CONFIG.value is None and (
    _MODE.value in FROM_CONFIG or not (_WORKDIR.value or _MODEL.value)
  ):
    if _MODE.value in FROM_CONFIG:
      raise InputError(_NO_CONFIG)
    raise InputError(
      f'--mode={_MODE.value} needs a trained model: --workdir=DIR of a run, '
      '--model=PATH, or the --config that it was trained with'
    )
  return pathlib.Path(name)


def _needed(name: str, what: str, value: str | None) -> str:
  if not value:
    raise InputError(f'--mode={_MODE.value} needs --{name}={what}')
  return value


def _parse(argv: list[str]) -> None:
  """Parses the flags; every mistake becomes an InputError."""
  app.define_help_flags()
  given = dict(_pairs(argv))
  _OVERRIDES.clear()
  if given.get('mode') in FROM_MODEL + FROM_MASKS:
    argv, _OVERRIDES[:] = split_overrides(argv)
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


if __name__ == '__main__':
  with stop_signal.held():
    if not stop_signal.asked():
      host_memory.restart_with_huge_pages('medseg_jax.main')
  # TensorFlow only feeds data here; its notes on its own kernels are no news.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  logging.raiseExceptions = False  # a full disk is told once
  logging.addLevelName(logging.WARNING, 'warning  ')  # as what is printed
  logging.basicConfig(format='%(levelname)s %(message)s')
  sys.stdout.reconfigure(errors='backslashreplace')  # files are called anything
  sys.exit(main())
