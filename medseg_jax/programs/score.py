"""Scores masks against labels, whoever made them: `--mode=score`."""

import contextlib
import pathlib
import time
from collections.abc import Sequence

from ml_collections import ConfigDict

from medseg_jax.data.formats.images import name_some
from medseg_jax.data.sources import mask_pairs
from medseg_jax.experiment import html_report, overrides, sources
from medseg_jax.experiment.failures import Failures
from medseg_jax.metrics import case_scores
from medseg_jax.report import summary as report
from medseg_jax.report.html.case_views import CaseViews
from medseg_jax.runtime.errors import InputError, counted, quote
from medseg_jax.runtime.files import check_writable, read_json
from medseg_jax.runtime.progress import Progress

_UNKNOWN = ''  # the class of values that no class has; no class is called so
_WRITTEN = ('summary.json', 'cases.csv', html_report.NAME)


def default_settings() -> ConfigDict:
  """Returns the keys of a config that scoring has, as configs/unet.py has them.

  Their meaning is that which they have there.
  """
  config = ConfigDict()
  config.data = ConfigDict(
    dict(classes=(), label_values=(), instances='', grid_tolerance=0.1)
  )
  config.evaluation = ConfigDict(dict(surface_tolerance=1.0, lesions=False))
  return config


def run(
  predictions: pathlib.Path,
  labels: pathlib.Path,
  output: pathlib.Path,
  *,
  keys: Sequence[tuple[str, str]] = (),
  overwrite: bool = False,
) -> dict:
  """Scores masks, writes numbers and page, returns the summary.

  The numbers are those of `--mode=evaluate`, on the grid of each label. A file
  that cannot be read costs none of the others. A value of a prediction that no
  label has counts as a wrong class, and is told.

  Args:
    predictions: folder of masks, volumes or images.
    labels: folder of the labels; a mask's partner has its stem.
    output: folder of the report, made where it does not exist.
    keys: (key, text) to set in `default_settings`.
    overwrite: replace a report that is there, whatever it is of. Otherwise
      only one of the same two folders.

  Raises:
    InputError: nothing can be scored, or another report is in the way; after
      all the others, that a label was not scored.
  """
  config = default_settings()
  overrides.apply(config, keys)
  _check(config)
  check_writable(output)
  of = {
    'predictions': str(predictions.absolute()),
    'labels': str(labels.absolute()),
  }
  if not overwrite:
    _check_place(output, of)
  matched = mask_pairs.match_masks(predictions, labels)
  if matched.unused:
    names = (path.name for path in matched.unused)
    sources.tell([f'{predictions}: no label belongs to {name_some(names, 20)}'])
  failures = Failures(matched.failures)
  total = len(matched.pairs) + len(matched.failures)
  if not matched.pairs:
    failures.tell(total, 'label', 'scored')
    raise InputError(f'{labels}: none of the masks can be told apart by name')
  source = mask_pairs.open_pairs(matched, labels, **config.data.to_dict())
  sources.tell_oddities([source])
  _print_classes(source)
  begin, views = time.perf_counter(), CaseViews(len(source))
  records, unknown = _score(source, config, matched.volumes, failures, views)
  seconds = time.perf_counter() - begin
  names = case_scores.scored_names(source.classes, _regions(source))
  reasons = {failure.name: failure.reason for failure in failures.found}
  summary = report.summarize(
    records, names, split='score', step=0, failed=reasons
  )
  # Nobody knows which training made the masks, if any did.
  settings = {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in config.data.items()
  }
  summary |= {'step': None, **of, 'settings': settings}
  summary['unknown_values'] = unknown
  if records:
    report.write_report(output, summary, records)
    print(f'\n{counted(len(records), "case")} of {predictions}')
    print(report.table(summary))
    page = html_report.of_masks(
      predictions,
      labels,
      summary=summary,
      records=records,
      classes=(*source.classes, *('of no class',) * bool(unknown)),
      views=views.found,
      seconds=seconds,
    )
    html_report.write(output / html_report.NAME, page)
    written = ', '.join(f'{output}/{name}' for name in _WRITTEN)
    print(f'report    {written}', flush=True)
  failures.tell(total, 'label', 'scored')
  return summary


def _score(
  source: mask_pairs.Pairs,
  config: ConfigDict,
  volumes: bool,
  failures: Failures,
  views: CaseViews,
) -> tuple[list[dict], dict[str, dict[str, int]]]:
  """Returns the records, and the values of no class by case; adds views."""
  thorough = {}
  if volumes:
    thorough['surface_tolerance'] = config.evaluation.surface_tolerance
    thorough['lesions'] = config.evaluation.lesions
  records, unknown = [], {}
  met = len(failures.found)
  with Progress(len(source), unit='case', desc='score') as progress:
    for i, name in enumerate(source.names):
      files = source.files[i]
      prediction = files.images[0] if volumes else files.image
      try:
        pair = mask_pairs.read_pair(source, i)
        more = (_UNKNOWN,) * bool(pair.unknown)
        scores = case_scores.score_case(
          pair.pred,
          pair.label,
          classes=(*source.classes, *more),
          regions=_regions(source),
          spacing=pair.spacing,
          **thorough,
        )
      except Exception as error:
        failures.add(error, case=name)
      else:
        scores['classes'].pop(_UNKNOWN, None)
        records.append({'case': name, **scores})
        views.add(name, None, pair.label, pair.pred, pair.spacing)
        if pair.unknown:
          unknown[name] = {str(v): n for v, n in pair.unknown.items()}
          sources.tell([mask_pairs.describe_unknown(prediction, pair.unknown)])
        progress.advance()
        del pair  # before the next one: it may be gigabytes
      progress.failed(len(failures.found) - met)
  return records, unknown


def _regions(source: mask_pairs.Pairs) -> tuple:
  return getattr(source, 'regions', ())


def _print_classes(source: mask_pairs.Pairs) -> None:
  values = ', '.join(
    f'{value} {name}'
    for value, name in zip(source.label_values, source.classes, strict=True)
  )
  print(f'values    {values}', flush=True)


def _check(config: ConfigDict) -> None:
  """Raises InputError for values of keys that make no sense."""
  data, evaluation = config.data, config.evaluation
  if not all(type(value) is int for value in data.label_values):
    raise InputError(
      f'config.data.label_values is {quote(data.label_values)}; allowed are '
      'whole numbers, such as (0, 1)'
    )
  data.classes = tuple(map(str, data.classes))
  if '' in data.classes:
    raise InputError(
      "config.data.classes has ''; allowed are names of a character or more"
    )
  for key, value in (
    ('data.grid_tolerance', data.grid_tolerance),
    ('evaluation.surface_tolerance', evaluation.surface_tolerance),
  ):
    if value < 0:
      raise InputError(f'config.{key} is {value:g}; allowed is 0 or more')


def _check_place(output: pathlib.Path, of: dict[str, str]) -> None:
  """Raises InputError where a report of something else would be lost."""
  there = [output / name for name in _WRITTEN if (output / name).exists()]
  if not there:
    return
  found = None
  with contextlib.suppress(InputError):
    found = read_json(output / 'summary.json', 'as --mode=score writes it')
  same = isinstance(found, dict) and all(
    found.get(key) == value for key, value in of.items()
  )
  if not same:
    raise InputError(
      f'{there[0]}: is there already, and not of these predictions and labels; '
      'name another --output, or --overwrite it'
    )
