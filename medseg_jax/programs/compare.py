"""Compares two results on the same cases: `--mode=compare`."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medseg_jax.data.formats.images import name_some
from medseg_jax.experiment import compared_masks, sources
from medseg_jax.programs import score
from medseg_jax.report import comparison, written
from medseg_jax.report.panels import panel, save_png
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import check_writable, read_json, write_atomically

NUM_PICTURES = 4  # of the cases that changed most
_SPLITS = ('test', 'val')  # where training has put what it held out
_RESULT = 'comparison.json'


class Report(NamedTuple):
  """One of the two results.

  Attributes:
    folder: of the report.
    workdir: of the training that it lies in; None where in none.
    summary: what its `summary.json` says.
    records: of its cases, by name, in the order of names.
  """

  folder: pathlib.Path
  workdir: pathlib.Path | None
  summary: dict
  records: dict[str, dict]


def run(
  output: pathlib.Path,
  *,
  runs: Sequence[pathlib.Path] = (),
  predictions: Sequence[pathlib.Path] = (),
  labels: pathlib.Path | None = None,
  split: str = '',
  keys: Sequence[tuple[str, str]] = (),
  overwrite: bool = False,
) -> dict:
  """Compares the second of two results, B, with the first, A, case by case.

  Writes `comparison.json`, `comparison.csv`, and pictures of the cases that
  changed most into `panels/`; prints the table.

  Args:
    output: folder, made where it does not exist.
    runs: two workdirs, or folders with a `summary.json` and `cases.csv`.
    predictions: in their place two folders of masks, which are scored against
      `labels` first; the reports go to `output/A` and `output/B`.
    labels: see `score.run`.
    split: of a workdir, which of its reports; '' for the held-out split.
    keys: see `score.run`.
    overwrite: replace a comparison of two others.

  Returns:
    The content of `comparison.json`.

  Raises:
    InputError: not two results, or of no same cases, classes or labels, or
      another comparison is in the way.
  """
  if bool(runs) == bool(predictions):
    raise InputError(
      '--mode=compare needs either --runs=A,B, or --predictions=A,B with '
      '--labels=FOLDER'
    )
  check_writable(output)
  if predictions:
    if labels is None:
      raise InputError('--mode=compare --predictions=A,B needs --labels=FOLDER')
    runs = [output / letter for letter in 'AB']
    for masks, place in zip(predictions, runs, strict=True):
      score.run(masks, labels, place, keys=keys, overwrite=overwrite)
  first, second = (_open(path, split) for path in runs)
  names = [str(report.folder.absolute()) for report in (first, second)]
  if not overwrite:
    _check_place(output, names)
  cases, classes = _in_common(first, second)
  pairs = [[r.records[case] for case in cases] for r in (first, second)]
  found = {
    'first': names[0],
    'second': names[1],
    'num_cases': len(cases),
    'only_first': sorted(set(first.records) - set(cases)),
    'only_second': sorted(set(second.records) - set(cases)),
    **comparison.compare(*pairs, classes),
    'changes': comparison.changes(*pairs, classes),
  }
  text = json.dumps(found, indent=2, allow_nan=False) + '\n'
  write_atomically(output / _RESULT, text.encode())
  rows = comparison.csv_text(*pairs, classes)
  write_atomically(
    output / 'comparison.csv', rows.encode('utf-8', 'backslashreplace')
  )
  _tell(found, output)
  _write_pictures(first, second, found['changes'], output / 'panels')
  return found


def _open(path: pathlib.Path, split: str) -> Report:
  """Returns the report that a folder is, or that a workdir has."""
  folder, workdir = path, None
  if not _is_report(path):
    places = [path / 'evaluation' / s for s in ([split] if split else _SPLITS)]
    there = [place for place in places if _is_report(place)]
    if not there:
      looked = ' or '.join(f'evaluation/{place.name}' for place in places)
      raise InputError(
        f'{path}: no {" and ".join(written.FILES)}, neither there nor in '
        f'{looked}; allowed is a workdir that was evaluated, or the folder of '
        'a report'
      )
    folder = there[0]
  if folder.absolute().parent.name == 'evaluation':
    workdir = folder.absolute().parents[1]
  summary, records = written.read_report(folder)
  by_name = {record['case']: record for record in records}
  return Report(folder, workdir, summary, dict(sorted(by_name.items())))


def _is_report(folder: pathlib.Path) -> bool:
  return all((folder / name).exists() for name in written.FILES)


def _in_common(first: Report, second: Report) -> tuple[list[str], list[str]]:
  """Returns cases and classes that both have, after a word on the others.

  Raises:
    InputError: there are none, or a case's labels are not the same.
  """
  cases = [name for name in first.records if name in second.records]
  classes = [
    c for c in first.summary['classes'] if c in second.summary['classes']
  ]
  for report in (first, second):
    alone = [name for name in report.records if name not in cases]
    others = [c for c in report.summary['classes'] if c not in classes]
    if not cases:
      continue
    if alone:
      sources.tell(
        [f'only in {report.folder}, not compared: {name_some(alone, 10)}']
      )
    if others:
      sources.tell(
        [f'only in {report.folder}, classes not compared: {name_some(others)}']
      )
  if not cases or len(classes) < 2:
    what = 'class but the background' if cases else 'case'
    have = [
      list(r.summary['classes'] if cases else r.records)
      for r in (first, second)
    ]
    raise InputError(
      f'{first.folder} and {second.folder} have no {what} in common: '
      f'{name_some(have[0])}; {name_some(have[1])}'
    )
  for case in cases:
    pair = first.records[case], second.records[case]
    if reason := comparison.same_labels(*pair, classes[1:]):
      raise InputError(
        f'{case} was not scored against the same label in {first.folder} and '
        f'{second.folder}: {reason}'
      )
  return cases, classes


def _check_place(output: pathlib.Path, names: Sequence[str]) -> None:
  """Raises InputError where the comparison of two others would be lost."""
  path = output / _RESULT
  if not path.exists():
    return
  found = read_json(path, 'as --mode=compare writes it')
  if not isinstance(found, dict) or names != [
    found.get('first'),
    found.get('second'),
  ]:
    raise InputError(
      f'{path}: is there already, and not of these two; name another --output, '
      'or --overwrite it'
    )


def _tell(found: Mapping, output: pathlib.Path) -> None:
  dice = found['mean']['dice']
  print(f'A         {found["first"]}\nB         {found["second"]}\n')
  shown = [m for m in ('dice', 'hausdorff_95') if m in found['mean']]
  print(comparison.table(found, shown))
  print(
    f'\n{counted(found["num_cases"], "case")}: {comparison.verdict(dice)}; '
    'another training of either would give other numbers\n'
    'p         Wilcoxon signed-rank, not corrected for the number of rows'
  )
  for row in found['changes'][:NUM_PICTURES]:
    if row['difference']:
      print(
        f'changed   {row["case"]}: Dice {row["first"]:.4f} -> '
        f'{row["second"]:.4f}'
      )
  print(f'report    {output}/{_RESULT}, {output}/comparison.csv', flush=True)


def _write_pictures(
  first: Report,
  second: Report,
  changes: Sequence[Mapping],
  folder: pathlib.Path,
) -> None:
  """Writes pictures of what changed most. The numbers do not need them."""
  changes = [row for row in changes if row['difference']][:NUM_PICTURES]
  names = [row['case'] for row in changes]
  if not names:
    return
  try:
    both = zip(
      compared_masks.masks_of(first.summary, first.workdir, names),
      compared_masks.masks_of(second.summary, second.workdir, names),
      strict=True,
    )
    for row, (a, b) in zip(changes, both, strict=True):
      if a.classes != b.classes:
        raise InputError('their classes are not the same, in the same order')
      image = a.image
      if image is None:
        image = np.zeros((*a.label.shape, 1), np.uint8)
      picture = panel(
        image,
        a.label,
        {'A': a.pred, 'B': b.pred},
        a.classes,
        title=f'{row["case"]}  Dice {row["first"]:.3f}, {row["second"]:.3f}',
        spacing=a.spacing,
      )
      save_png(folder / f'compare_{row["case"]}.png', picture)
  except Exception as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    print(f'warning   no pictures of all that changed ({reason})')
    return
  print(f'pictures  {folder}/compare_*.png', flush=True)
