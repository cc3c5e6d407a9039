"""`report.html` of an evaluation: what its page tells besides the numbers."""

import datetime
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.experiment import early_stop, held_out, usual_cases
from medseg_jax.report.html.case_views import CaseViews
from medseg_jax.report.html.page import write_page
from medseg_jax.runtime import multihost, process
from medseg_jax.runtime.errors import counted
from medseg_jax.runtime.files import write_atomically
from medseg_jax.runtime.metric_writer import read_lines
from medseg_jax.runtime.progress import format_seconds

NAME = 'report.html'
_MOST_CURVE = 1000  # points


def write_all(
  paths: Sequence[pathlib.Path], views: CaseViews, make: Callable[[], str]
) -> Sequence[pathlib.Path]:
  """Writes a page to each path, on the primary.

  Returns the paths; none where that failed, which is printed: neither the
  scores nor the model need it.

  Args:
    paths: of the same page.
    views: of the cases that this process has scored.
    make: returns the page.
  """

  def write_each() -> str:
    try:
      page = make()
      for path in paths:
        write(path, page)
    except Exception as error:
      return ' '.join(str(error).split()) or type(error).__name__
    return ''

  if reason := multihost.from_primary(write_each):
    print(f'warning   {paths[0]} is missing ({reason})')
    return ()
  if reason := next(filter(None, multihost.gather(views.reason)), ''):
    print(f'warning   {paths[0]} lacks pictures of cases ({reason})')
  return paths


def of_evaluation(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  summary: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  views: Mapping[str, Mapping[str, Any]],
  model: pathlib.Path | None = None,
  seconds: float,
) -> str:
  """Returns the page of the evaluation of a model.

  Args:
    config: resolved.
    workdir: of the training; with `model` of the results.
    summary: with what `evaluate.report_split` adds to it.
    records: see `report.summary`.
    views: see `CaseViews.found`.
    model: a model folder or its zip that was evaluated.
    seconds: that the cases took.
  """
  train, val = [], []
  if model is None:
    train, val = (_thinned(read_lines(workdir, of)) for of in ('train', 'val'))
  split, data = summary['split'], config.data
  cases = counted(len(records), 'case')
  about = [
    ('data', f'{data.source} {data.path}'.strip()),
    ('split', f'{split}: {cases} scored'),
    ('held out', _held_out(workdir, model, split)),
    ('model', f'{model or workdir}, {summary["checkpoint"]} weights, '
              f'step {summary["step"]}'),
    ('network', f'{config.model.name}, patches of '
                f'{"×".join(map(str, config.patch_size))}, {config.dtype}'),
  ]  # fmt: skip
  if train:
    about.append(('training', _training_time(train, config)))
  return write_page(
    title=f'{workdir.absolute().name}: {split}, {cases}',
    about=about + of_this_run(seconds, accelerator=True),
    notes=_notes(summary, split),
    summary=summary,
    records=records,
    classes=data.classes,
    views=views,
    train=train,
    val=val,
    training=usual_cases.read(workdir, model),
  )


def of_folds(
  config: ConfigDict,
  root: pathlib.Path,
  *,
  summary: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  views: Mapping[str, Mapping[str, Any]],
  lines: Sequence[str],
  picture: bytes,
  seconds: float,
) -> str:
  """Returns the page of a cross-validation.

  Args:
    config: of its folds, resolved.
    root: its folder.
    summary: of the configuration that was chosen, pooled.
    records: see `report.summary`.
    views: see `CaseViews.found`.
    lines: a term and a text each, on the choice and what was learnt.
    picture: the reliability plot, a PNG; b'' for none.
    seconds: that the cases took.
  """
  cases = counted(len(records), 'case')
  folds = len(set(summary['folds'].values()))
  about = [
    ('data', f'{config.data.source} {config.data.path}'.strip()),
    ('held out', f'each case is scored by its own fold of {folds}, which has '
                 'not seen it; means are over cases, before post-processing'),
    ('chosen', summary['configuration']),
    *(tuple(map(str.strip, line.split(' ', 1))) for line in lines),
  ]  # fmt: skip
  notes = [
    f'The held-out cases ended the training of {name} early: the numbers are '
    'too good for new images.'
    for name in summary.get('stopped_early', ())
  ]
  return write_page(
    title=f'{root.absolute().name}: cross-validation, {cases}',
    about=about + of_this_run(seconds, accelerator=True),
    notes=notes,
    summary=summary,
    records=records,
    classes=config.data.classes,
    views=views,
    training=usual_cases.read(root, None),
    calibration=picture,
  )


def of_masks(
  predictions: pathlib.Path,
  labels: pathlib.Path,
  *,
  summary: Mapping[str, Any],
  records: Sequence[Mapping[str, Any]],
  classes: Sequence[str],
  views: Mapping[str, Mapping[str, Any]],
  seconds: float,
) -> str:
  """Returns the page of masks that nobody knows the maker of.

  Args:
    predictions: their folder.
    labels: that of the labels.
    summary: as `--mode=score` writes it.
    records: see `report.summary`.
    classes: names of what the masks hold, background first.
    views: see `CaseViews.found`.
    seconds: that the cases took.
  """
  notes = [
    f'{name}: values that no label has count as wrong wherever they are: '
    + ', '.join(f'{value} ({number} times)' for value, number in found.items())
    for name, found in summary['unknown_values'].items()
  ]
  about = [
    ('predictions', str(predictions)),
    ('labels', str(labels)),
    ('held out', 'nobody knows which cases have trained what made the masks'),
  ]
  return write_page(
    title=f'{predictions.absolute().name}: {counted(len(records), "case")}',
    about=about + of_this_run(seconds, accelerator=False),
    notes=notes,
    summary=summary,
    records=records,
    classes=classes,
    views=views,
  )


def of_this_run(seconds: float, *, accelerator: bool) -> list[tuple[str, str]]:
  """Returns term and text: what ran, where, and how long.

  Args:
    seconds: that scoring the cases took.
    accelerator: whether JAX's devices had a part in it.
  """
  hardware = counted(os.cpu_count() or 1, 'CPU core')
  if name := process.processor_name():
    hardware += f' of {name}'
  if accelerator and jax.devices()[0].platform != 'cpu':
    devices = jax.devices()
    hardware = f'{len(devices)} × {devices[0].device_kind}, {hardware}'
  now = datetime.datetime.now().astimezone()
  about = [
    ('version', f'medseg_jax {medseg_jax.__version__}, jax {jax.__version__}'),
    ('hardware', hardware),
    ('time', f'{format_seconds(seconds)} to score the cases; '
             f'{now:%Y-%m-%d %H:%M %Z}'),
  ]  # fmt: skip
  # As a library there is no command to tell.
  if pathlib.Path(sys.argv[0]).parent.name == 'medseg_jax':
    words = shlex.join(sys.argv[1:])
    about.insert(0, ('command', f'python -m medseg_jax.main {words}'))
  return about


def write(path: pathlib.Path, page: str) -> None:
  """Writes the page, whole or not at all."""
  write_atomically(path, page.encode('utf-8', 'backslashreplace'))


def _held_out(
  workdir: pathlib.Path, model: pathlib.Path | None, split: str
) -> str:
  """Returns what is known of which cases the model has seen."""
  record = held_out.of_model(model) if model else held_out.read(workdir)
  if record is None:
    return (
      'nobody knows: the model does not say which cases trained it, so whether '
      'those scored are among them cannot be told'
    )
  found = [
    f'{counted(len(record.trained), "case")} trained (fold {record.fold})'
  ]
  found += [
    f'{counted(len(cases), "case")} held out as {name}'
    for name, cases in record.held_out.items()
  ]
  text = ', '.join(found)
  if record.group:
    text += f'; cases of a group ({record.group}) stay on one side'
  if split == 'train':
    return f'{text}. These cases have trained: no test of the model'
  return f'{text}. No case that was scored has trained, by its voxels'


def _notes(summary: Mapping[str, Any], split: str) -> list[str]:
  notes = []
  if split == 'train':
    notes.append('These cases have trained the model: a test are others.')
  if split == 'val' and summary['checkpoint'] == 'best':
    notes.append(
      'The best weights were chosen on such cases: the numbers are too good '
      'for new images.'
    )
  if stopped := summary.get('stopped_early'):
    line = early_stop.note(stopped, split)
    notes.append(line.removeprefix('note').strip())
  for names in summary.get('copies', ()):
    notes.append(f'One image, scored under each name: {", ".join(names)}.')
  return notes


def _training_time(
  train: Sequence[tuple[int, Mapping[str, float | None]]], config: ConfigDict
) -> str:
  """Returns how long the steps took, by their rate in `metrics.jsonl`."""
  before, seconds = 0, 0.0
  for step, values in train:
    if rate := values.get('images_per_s'):
      seconds += (step - before) * config.batch_size / rate
    before = step
  patches = counted(config.batch_size, 'patch', 'patches')
  return (
    f'{counted(before, "step")} of {patches}, {format_seconds(seconds)} '
    'without compiling, evaluating and saving'
  )


def _thinned(lines: list) -> list:
  """Returns at most `_MOST_CURVE` lines, the last one among them."""
  every = -(-len(lines) // _MOST_CURVE)
  return lines if every < 2 else lines[::-1][::every][::-1]
