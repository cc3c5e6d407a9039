"""Which cases a trained model is scored on, and whether it may be.

The model's own data gives the cases that its training held out, by its record
(`held_out`). Other data is scored as a whole, unless it has splits of its own,
and nothing of it may have trained.
"""

import pathlib
import re
from typing import NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.data.groups import some
from medseg_jax.experiment import folds, held_out, model_folder, opening
from medseg_jax.experiment import sources as data_sources
from medseg_jax.experiment.case_digests import Digests, digests_of
from medseg_jax.experiment.held_out import Record
from medseg_jax.runtime.errors import InputError, counted


class ScoredCases(NamedTuple):
  """Cases to score a model on.

  Attributes:
    source: the cases.
    split: 'train', 'val' or 'test'; of other data without splits 'all'.
    folder: the name of the folder of the results.
    own: whether they are of the data that the model was trained on.
  """

  source: Source
  split: str
  folder: str
  own: bool


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
  record = _record(workdir, model)
  opened = data_sources.open_all(config)
  digests = digests_of(opened, root=config.data.cache_dir)
  if record is None:
    print(
      'warning   this model is of an older program, which did not write down '
      'the cases that it was trained on: whether those to be scored are among '
      'them cannot be told'
    )
    by_split = folds.divide(opened, digests, config, workdir)
    return _choose_split(by_split, split, '', config)
  if not _is_own(record, digests, config):
    chosen = _choose_split(_whole(opened), split, _title(config), config)
    by_name = digests.get(chosen.split, digests.get('train', {}))
    _check(record, chosen.source, by_name, config)
    return chosen
  if str(config.data.fold) != record.fold:  # as the user asks
    by_split = folds.divide(opened, digests, config, workdir)
  else:
    by_split = _as_recorded(record, opened, digests)
  chosen = _choose_split(by_split, split, '', config)
  if chosen.split != 'train':
    by_name = digests.get(chosen.split, digests.get('train', {}))
    _check(record, chosen.source, by_name, config)
  return chosen


def _record(workdir: pathlib.Path, model: pathlib.Path | None) -> Record | None:
  if model is None:
    return held_out.read(workdir)
  found = model_folder.read_description(model)['training'].get('cases')
  return None if found is None else held_out.from_dict(found, model)


def _is_own(record: Record, digests: Digests, config: ConfigDict) -> bool:
  """Returns whether the data is that of the training, moved or not."""
  if config.data.source != record.source:
    return False
  if config.data.source != 'phantom' and config.data.path == record.path:
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
      f'warning   of {counted(len(cases), "case")} held out as {split} '
      f'{len(lost)} are gone, or were changed ({some(lost)}): the scores are '
      'of the others'
    )


def _whole(opened: dict[str, Source]) -> dict[str, Source]:
  """Returns other data by split: 'all' where it has but one."""
  if set(opened) == {'train'}:
    return {'all': opened['train']}
  return opened


def _choose_split(
  by_split: dict[str, Source], split: str, title: str, config: ConfigDict
) -> ScoredCases:
  if split == 'train' and 'all' in by_split:
    split = 'all'
  wanted = [split] if split else ['test', 'val', 'all']
  found = next((name for name in wanted if name in by_split), '')
  if not found:
    raise InputError(
      f'{config.data.path or config.data.source}: no cases in '
      + (f'--split={split}' if split else 'a split that is held out')
      + f'; the data has {", ".join(by_split) or "no cases"}; name one of them '
      'with --split'
    )
  folder = f'{title}-{found}' if title else found
  return ScoredCases(by_split[found], found, folder, own=not title)


def _check(
  record: Record, source: Source, digests: dict[str, str], config: ConfigDict
) -> None:
  held_out.check_evaluating(
    record,
    {name: digests[name] for name in source.names},
    where=config.data.path or config.data.source,
  )


def _title(config: ConfigDict) -> str:
  """Returns the name of other data, as a part of a folder's name."""
  name = pathlib.Path(config.data.path).name or config.data.source
  return re.sub(r'[^\w.-]', '_', name)[:60]
