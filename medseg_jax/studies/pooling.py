"""Scores the held-out cases of all folds as one set, and writes their page."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax.experiment import html_report, sources
from medseg_jax.experiment.failures import Failures
from medseg_jax.metrics import case_scores
from medseg_jax.programs import evaluate
from medseg_jax.report import summary as report
from medseg_jax.report.html.case_views import CaseViews
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import counted
from medseg_jax.runtime.progress import Progress
from medseg_jax.studies.held_out_masks import HeldOutMask


class Pooled(NamedTuple):
  """What the cases of all folds scored.

  Attributes:
    summary: see `report.summarize`.
    records: see there.
    views: what the page shows of the cases.
    seconds: that it took.
  """

  summary: dict[str, Any]
  records: list[dict[str, Any]]
  views: CaseViews
  seconds: float


def pool(
  masks: Sequence[HeldOutMask],
  config: ConfigDict,
  folder: pathlib.Path,
  *,
  name: str,
  stopped: dict[str, Any],
) -> Pooled:
  """Scores the masks of all folds as one set; writes and prints the numbers.

  The mean is that over cases, for each class over those in which it is defined,
  and then over the foreground classes: never one of folds.

  Args:
    masks: of each case one.
    config: resolved.
    folder: of the results.
    name: of the configuration.
    stopped: which trainings the held-out cases ended, see `early_stop`.

  Raises:
    InputError: a case could not be scored; after all others.
  """
  begin, views = time.perf_counter(), CaseViews(len(masks))
  own = multihost.share(
    range(len(masks)),
    lambda: [sources.num_bytes([mask.path]) for mask in masks],
  )
  records: dict[int, dict] = {}
  failures = Failures()
  with Progress(len(own), unit='case', desc=f'score {name}') as progress:
    for i in own:
      try:
        case = masks[i].read_case()
        mask = masks[i].read_mask()
        records[i] = evaluate.score_mask(mask, case, config)
        views.add(case.name, case.image, case.label, mask, case.spacing)
        del case, mask  # before the next one: it may be gigabytes
      except Exception as error:
        failures.add(error, case=masks[i].name)
      else:
        progress.advance()
    progress.failed(len(failures.found))
  for others in multihost.gather(records):
    records |= others
  for others in multihost.gather(views.found):
    views.found |= others
  failures.found = [
    failure for found in multihost.gather(failures.found) for failure in found
  ]
  scored = [records[i] for i in sorted(records)]
  classes = case_scores.scored_names(config.data.classes, config.data.regions)
  summary = report.summarize(
    scored,
    classes,
    split='crossval',
    step=config.num_steps,
    failed={failure.name: failure.reason for failure in failures.found},
  )
  summary['configuration'] = name
  summary['folds'] = {mask.name: mask.fold for mask in masks}
  if stopped:
    summary['stopped_early'] = stopped
  multihost.from_primary(lambda: report.write_report(folder, summary, scored))
  print(f'\n{name}: {counted(len(scored), "case")}, each by its own fold')
  print(report.table(summary))
  if stopped:
    print(
      f'note      the held-out cases ended the training of '
      f'{counted(len(stopped), "fold")} early: these numbers are too good for '
      'new images'
    )
  print(f'report    {folder}/summary.json, {folder}/cases.csv', flush=True)
  failures.tell(len(masks), 'case', 'scored')
  return Pooled(summary, scored, views, time.perf_counter() - begin)


def write_page(
  path: pathlib.Path,
  pooled: Pooled,
  config: ConfigDict,
  *,
  lines: Sequence[str],
  picture: pathlib.Path,
) -> Sequence[pathlib.Path]:
  """Writes the page; returns its path, or nothing where that failed.

  Args:
    path: of the page.
    pooled: of the configuration that was chosen.
    config: of the folds, resolved.
    lines: for people, on the choice and what was learnt: a term and a text.
    picture: the reliability plot, where there is one.
  """
  summary = pooled.summary
  return html_report.write_all(
    [path],
    pooled.views,
    lambda: html_report.of_folds(
      config,
      path.parent.parent,
      summary=summary,
      records=pooled.records,
      views=pooled.views.found,
      lines=lines,
      picture=picture.read_bytes() if picture.exists() else b'',
      seconds=pooled.seconds,
    ),
  )
