"""The command line: `python -m medseg_jax.main --config=configs/unet.py`."""

from medseg_jax.runtime import startup

if __name__ == '__main__':
  startup.prepare('medseg_jax.main')

import contextlib
import importlib
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable

from medseg_jax import command_line
from medseg_jax.experiment.overrides import apply as apply_overrides
from medseg_jax.hardware import topologies
from medseg_jax.runtime import files, multihost, stop_signal
from medseg_jax.runtime.errors import InputError, Stopped, explain, shorten

_STARTED = time.perf_counter()
_LONGEST_LINE = 2000


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
    command_line.parse(sys.argv)
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
  mode = command_line.MODE.value
  workdir = command_line.workdir()
  command_line.check_addresses()
  if mode in command_line.WRITE_WORKDIR:
    multihost.from_primary(lambda: files.check_writable(workdir))
  # Late: jax takes seconds, and a wrong flag should be told at once.
  from medseg_jax.runtime import process

  settings = {}
  if mode == 'compile':
    settings['topology'] = topologies.parse(
      command_line.needed('topology', 'NAME', command_line.TOPOLOGY.value)
    )
    process.add_xla_flags(topologies.prepare_process(settings['topology']))
  process.set_up()
  stop_signal.check()
  run = _run_of(mode)
  stop_signal.check()
  if mode in command_line.FROM_CONFIG:
    run(command_line.CONFIG.value, workdir, **settings)
  elif mode == 'score':
    run(
      command_line.path_of(command_line.PREDICTIONS, 'FOLDER'),
      command_line.path_of(command_line.LABELS, 'FOLDER'),
      pathlib.Path(command_line.OUTPUT.value or workdir),
      keys=command_line.OVERRIDES,
      overwrite=command_line.OVERWRITE.value,
    )
  elif mode == 'compare':
    labels = command_line.LABELS.value
    run(
      pathlib.Path(command_line.OUTPUT.value or workdir),
      runs=command_line.two_of(command_line.RUNS),
      predictions=command_line.two_of(command_line.PREDICTIONS),
      labels=labels and pathlib.Path(labels),
      split=command_line.SPLIT.value or '',
      keys=command_line.OVERRIDES,
      overwrite=command_line.OVERWRITE.value,
    )
  else:
    _run_model(run, mode, workdir)


def _run_model(run: Callable, mode: str, workdir: pathlib.Path) -> None:
  """Runs the program of a mode that a trained model is needed for."""
  from medseg_jax.experiment import build, clinic_formats, trained_model
  from medseg_jax.runtime import sharding

  model = command_line.MODEL.value and pathlib.Path(command_line.MODEL.value)
  trained = dict(model=model, checkpoint=command_line.CHECKPOINT.value or '')
  config = trained_model.read_config(workdir, **trained)
  apply_overrides(config, command_line.OVERRIDES)
  mesh = None  # of all devices, whatever the training's was
  if any(key.startswith('mesh.') for key, _ in command_line.OVERRIDES):
    mesh = build.mesh_of(config)
    if multihost.count() > 1:
      mesh = sharding.own_part(mesh)
  if mode == 'evaluate':
    run(
      config,
      workdir,
      split=command_line.SPLIT.value or '',
      mesh=mesh,
      **trained,
    )
  elif mode == 'export':
    output = command_line.path_of(command_line.OUTPUT, 'FILE')
    run(
      config, workdir, output=output, form=command_line.FORMAT.value, **trained
    )
  else:
    named = dict(
      output_dir=command_line.path_of(command_line.OUTPUT, 'FOLDER'),
      overwrite=command_line.OVERWRITE.value,
      series=command_line.SERIES.value,
      formats=clinic_formats.parse(command_line.FORMATS.value),
      mesh=mesh,
    )
    if mode == 'followup':
      named['inputs'] = command_line.time_points()
    else:
      named['input_path'] = command_line.images()
      named['send'] = command_line.archive()
      named['started'] = _STARTED
    workdir = None if model and not command_line.WORKDIR.value else workdir
    run(config, workdir, **named, **trained)


def _run_of(mode: str) -> Callable:
  """Returns the program of a mode, for this process of perhaps several.

  Raises:
    InputError: the mode is not for several.
  """
  if mode in command_line.ALONE and multihost.count() > 1:
    raise InputError(
      f'--mode={mode} is for one process, and there are {multihost.count()}; '
      'start one'
    )
  folder = 'studies' if mode in command_line.STUDIES else 'programs'
  run = importlib.import_module(f'medseg_jax.{folder}.{mode}').run
  if mode not in command_line.ON_PRIMARY:
    return run
  return lambda *args, **named: multihost.from_primary(
    lambda: run(*args, **named)
  )


if __name__ == '__main__':
  sys.exit(main())
