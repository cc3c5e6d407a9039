"""Which cases a trained model is scored on, and whether it may be.

The model's own data gives the cases that its training held out, by its record
(`held_out`). Other data is scored as a whole, unless it has splits of its own,
and nothing of it may have trained.
"""

import contextlib
import hashlib
import pathlib
import re
from typing import NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.data.groups import some
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment import (
  config_files,
  copied_cases,
  ensemble,
  folds,
  held_out,
  opening,
)
from medseg_jax.experiment import sources as data_sources
from medseg_jax.experiment.case_digests import Digests, digests_of, is_unread
from medseg_jax.experiment.held_out import Record
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.files import read_json


class ScoredCases(NamedTuple):
  """Cases to score a model on.

  Attributes:
    source: the cases.
    split: 'train', 'val' or 'test'; of other data without splits 'all'.
    folder: the name of the folder of the results.
    validated: whether the best checkpoint was chosen on any of them.
    digests: of each case, by name.
  """

  source: Source
  split: str
  folder: str
  validated: bool
  digests: dict[str, str]


def choose(
  config: ConfigDict,
  workdir: pathlib.Path,
  *,
  split: str = '',
  model: pathlib.Path | None = None,
) -> ScoredCases:
  """Returns the cases of `config.data` to score the model on.

  Args:
    config: resolved, as training left it, with the user's changes; its path
      becomes absolute.
    workdir: of the training, or with `model` of the results.
    split: 'train', 'val' or 'test'; '' for what was held out: test, else val.
    model: a model folder or its zip, in place of the workdir's.

  Raises:
    InputError: there is no such split, or a case of it has trained the model.
  """
  config.data.path = opening.absolute(config.data)
  record = held_out.of_model(model) if model else held_out.read(workdir)
  opened = data_sources.open_all(config, strict=False)
  opened = _with_incomplete(opened, config.data.path)
  # A case that cannot be read is not left out silently, but fails as it is
  # scored.
  digests = digests_of(opened, root=config.data.cache_dir, strict=False)
  if record is None:
    print(
      f'warning   {model or workdir} does not say which cases have trained: '
      'whether those to be scored are among them cannot be told'
    )
    own = _is_where_it_was(config, workdir, model)
  else:
    assumed = _as_named(record, digests)
    own = _is_own(record, assumed, config)
    digests = assumed if own else digests
  if not own or (record and str(config.data.fold) == record.fold):
    copied_cases.tell(opened, digests)
  if not own:
    by_split = _whole(opened)
  elif record is None or str(config.data.fold) != record.fold:
    by_split = folds.divide(
      opened, digests, config, workdir, record=record, writes=False
    )
  else:
    by_split = _as_recorded(record, opened, digests)
  all_trained = own and record is not None and not record.held_out
  found = _choose_split(by_split, split, config, all_trained)
  source = by_split[found]
  data_sources.tell_oddities([source])
  origin = digests.get(found, digests.get('train', {}))
  by_name = {name: origin[name] for name in source.names}
  validated = own and found == 'val'
  if record is not None:
    if not own or found != 'train':
      where = config.data.path or config.data.source
      held_out.check_evaluating(record, by_name, where=where, own=own)
    val = set(record.held_out.get('val', {}).values())
    validated = not val.isdisjoint(by_name.values())
  folder = found if own else _free_folder(found, config, workdir)
  return ScoredCases(source, found, folder, validated, by_name)


def _with_incomplete(
  opened: dict[str, Source], where: str
) -> dict[str, Source]:
  """Returns the data with the cases of which a file is missing, or doubled.

  They fail as they are scored.

  Raises:
    InputError: something is wrong with the data set as a whole.
  """
  sources = [s for s in opened.values() if isinstance(s, VolumeSource)]
  of_cases = {case.reason for s in sources for case in s.incomplete}
  problems = dict.fromkeys(line for s in sources for line in s.problems)
  if whole := [line for line in problems if line not in of_cases]:
    raise data_sources.listed(whole, where)
  return {
    split: s.with_incomplete() if isinstance(s, VolumeSource) else s
    for split, s in opened.items()
  }


def _as_named(record: Record, digests: Digests) -> Digests:
  """Returns the digests, where a case cannot be read that of its name.

  So it stays in its split of the training's own data.
  """
  trained = {name: value for value, name in record.trained.items()}
  result = {}
  for split, cases in digests.items():
    named = record.held_out.get(split, {})
    if split == 'train':
      named = trained | record.held_out.get('val', {})
    result[split] = {
      name: named.get(name, value) if is_unread(value) else value
      for name, value in cases.items()
    }
  return result


def _is_where_it_was(
  config: ConfigDict, workdir: pathlib.Path, model: pathlib.Path | None
) -> bool:
  """Returns whether the data is at the place that the training had it from."""
  if model is None:
    trained = config_files.read_config(workdir)
  else:
    trained = ensemble.config_of(model)
  before, now = trained.data, config.data
  return (before.source, opening.absolute(before)) == (now.source, now.path)


def _is_own(record: Record, digests: Digests, config: ConfigDict) -> bool:
  """Returns whether the data is that of the training, moved or not."""
  if config.data.source != record.source:
    return False
  if config.data.source in ('folder', *VOLUMES) and (
    config.data.path == record.path
  ):
    return True
  there = {value for cases in digests.values() for value in cases.values()}
  recorded = {v for cases in record.held_out.values() for v in cases.values()}
  return bool(recorded or record.trained) and (
    recorded | set(record.trained) <= there
  )


def _as_recorded(
  record: Record, opened: dict[str, Source], digests: Digests
) -> dict[str, Source]:
  """Returns the cases by split as the training had them.

  A split that the data has of its own may have grown since, or be new.
  """
  recorded = {s: set(cases.values()) for s, cases in record.held_out.items()}
  held_out_there = set().union(*recorded.values())
  by_split: dict[str, Source] = {}
  for split in ('train', 'val', 'test'):
    own = split if split in opened else 'train'
    if own not in opened:
      continue
    wanted = recorded.get(split, set())
    if split == 'train':
      wanted = set(record.trained)
    elif own == split:
      # What has trained is let through here, to be refused.
      wanted = wanted | (set(digests[split].values()) - held_out_there)
    names = [name for name in opened[own].names if digests[own][name] in wanted]
    if names:
      by_split[split] = opened[own].subset(names)
    if split in record.held_out:
      _tell_lost(split, record.held_out[split], set(digests[own].values()))
  return by_split


def _tell_lost(split: str, cases: dict[str, str], there: set[str]) -> None:
  lost = [name for name, value in cases.items() if value not in there]
  if lost:
    print(
      f'warning   gone, or changed: {len(lost)} of '
      f'{counted(len(cases), "case")} held out as {split} ({some(lost)}); the '
      'scores are of the others'
    )


def _whole(opened: dict[str, Source]) -> dict[str, Source]:
  """Returns other data by split: 'all' where it has but one."""
  if set(opened) == {'train'}:
    return {'all': opened['train']}
  return opened


def _choose_split(
  by_split: dict[str, Source], split: str, config: ConfigDict, all_trained: bool
) -> str:
  """Returns the split that is asked for, or was held out."""
  if split == 'train' and 'all' in by_split:
    split = 'all'
  wanted = [split] if split else ['test', 'val', 'all']
  found = next((name for name in wanted if name in by_split), '')
  if found:
    return found
  what = f'in --split={split}' if split else 'that the training held out'
  if all_trained:
    what += ' (each has trained the model or, of an ensemble, a member)'
  raise InputError(
    f'{config.data.path or config.data.source}: no cases {what}; allowed are '
    'other data, or --split= with one of '
    + (', '.join(by_split) or 'none: no case of the training is there')
  )


def _free_folder(split: str, config: ConfigDict, workdir: pathlib.Path) -> str:
  """Returns the name of the folder of results of other data.

  Data of the same name that lies elsewhere keeps its own.
  """
  data = config.data
  where = str(data.path)
  if data.source == 'phantom':
    where = f'phantom_{data.phantom.seed}'
  elif data.source == 'tfds':
    where = f'{data.tfds.data_dir}/{data.path}'
  name = re.sub(r'[^\w.-]', '_', pathlib.Path(where).name)[:60]
  folder = f'{name}-{split}'
  with contextlib.suppress(InputError):
    path = workdir / 'evaluation' / folder / 'summary.json'
    before = read_json(path, 'a summary')
    if isinstance(before, dict) and before.get('data') != evaluated(config):
      folder += '-' + hashlib.sha256(where.encode()).hexdigest()[:6]
  return folder


def evaluated(config: ConfigDict) -> dict[str, str]:
  """Returns what a summary says of its data."""
  return {'source': config.data.source, 'path': str(config.data.path)}
