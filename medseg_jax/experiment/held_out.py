"""`held_out.json`: which cases a model has seen, and which were held out.

Cases are told apart by their voxels, so that another folder, a copy, or new
names change nothing. Training writes the record; going on with a training and
evaluating hold what they find against it.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.groups import join, read_groups, some
from medseg_jax.data.identity import is_blank
from medseg_jax.experiment import ensemble, model_folder
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.runtime.errors import InputError, counted, quote
from medseg_jax.runtime.files import read_json, write_atomically

FILE, VERSION = 'held_out.json', 1


class Record(NamedTuple):
  """What a training has seen and what it has held out.

  Attributes:
    source: `config.data.source` of the training.
    path: its data, absolute; or the name of a TFDS data set.
    fold: `config.data.fold`.
    held_out: of 'val' and 'test', as far as there are such, the digest of each
      case by name.
    trained: the name of each case that has trained, by digest.
    copies: digest by name of other cases with an image of these.
    group: `config.data.group`.
    groups: where that is given, by case the first case of its group, of all
      cases; what the group itself is called, a patient's number say, is not
      for a file that travels with the model.
  """

  source: str
  path: str
  fold: str
  held_out: Digests
  trained: dict[str, str]
  copies: dict[str, str]
  group: str
  groups: dict[str, str]


def record_of(
  config: ConfigDict, digests: Digests, before: Record | None = None
) -> Record:
  """Returns the record of a training.

  Args:
    config: resolved.
    digests: of the cases by split.
    before: the record that its workdir holds already: what trained once stays
      in it.
  """
  trained = dict(before.trained) if before else {}
  trained |= {value: name for name, value in digests['train'].items()}
  names = list(
    dict.fromkeys(name for cases in digests.values() for name in cases)
  )
  return Record(
    source=config.data.source,
    path=str(config.data.path),
    fold=str(config.data.fold),
    held_out={k: v for k, v in digests.items() if k != 'train'},
    trained=trained,
    copies={n: v for n, v in digests['train'].items() if trained[v] != n},
    group=config.data.group,
    groups=_groups(config.data.group, names),
  )


def _groups(group: str, names: Sequence[str]) -> dict[str, str]:
  return join(names, read_groups(group, names)) if group else {}


def digest_of_each(record: Record) -> dict[str, str]:
  """Returns the digests of the cases that trained or were held out, by name."""
  found = {name: value for value, name in record.trained.items()}
  found |= record.copies
  for cases in record.held_out.values():
    found |= cases
  return found


def to_dict(record: Record) -> dict[str, Any]:
  """Returns the record as JSON holds it."""
  return {'version': VERSION, **record._asdict()}


def from_dict(found: Any, where: str | os.PathLike) -> Record:
  """Returns the record that `to_dict` made.

  Raises:
    InputError: it is of another form.
  """
  try:
    if found['version'] != VERSION:
      raise InputError(
        f'{where}: version {found["version"]!r:.40} of the record of cases; '
        f'this program reads {VERSION}'
      )
    # The first three are younger than some records.
    found = {'copies': {}, 'group': '', 'groups': {}, **found}
    record = Record(**{key: found[key] for key in Record._fields})
    if not isinstance(record.group, str):
      raise TypeError('no text')
    for cases in (
      record.trained, *record.held_out.values(), record.copies, record.groups,
    ):  # fmt: skip
      if not all(isinstance(value, str) for value in cases.values()):
        raise TypeError('no text')
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(
      f'{where}: not the record of the cases that trained and were held out, '
      'as training writes it'
    ) from error
  return record


def write(record: Record, workdir: pathlib.Path) -> None:
  text = json.dumps(to_dict(record), indent=1) + '\n'
  write_atomically(workdir / FILE, text.encode())


def read(workdir: pathlib.Path) -> Record | None:
  """Returns the record of a workdir; None where a training left none.

  That of its model, where the file is gone.
  """
  path = workdir / FILE
  if path.exists():
    return from_dict(read_json(path, 'as training writes it'), path)
  model = workdir / 'model'
  if (model / model_folder.DESCRIPTION).exists():
    return of_model(model)
  return None


def of_model(path: pathlib.Path) -> Record | None:
  """Returns the record that a model folder or its zip carries, if it does.

  Of an ensemble the union of its members', each of which has one.
  """
  stored = ensemble.read(path)
  found = []
  for member in stored.members:
    cases = member.description['training'].get('cases')
    if cases is None and not stored.is_ensemble:
      return None
    found.append(from_dict(cases, member.where))
  return union(found)


def union(records: Sequence[Record]) -> Record:
  """Returns the record of several models that predict together.

  What has trained one of them has trained. Held out is what none has trained
  on: for validation, where that was so for one of them.

  Args:
    records: of the models, one or more; the first says where the data lies.
  """
  if len(records) == 1:
    return records[0]
  trained, copies, groups = {}, {}, {}
  for record in reversed(records):  # the first one's names win
    trained |= record.trained
    copies |= record.copies
    groups |= record.groups
  held_out: Digests = {}
  taken: set[str] = set()
  for split in ('val', 'test'):
    cases = {
      name: value
      for record in records
      for name, value in record.held_out.get(split, {}).items()
      if value not in taken and (value not in trained or is_blank(value))
    }
    if cases:
      held_out[split] = cases
    taken |= set(cases.values())
  return records[0]._replace(
    held_out=held_out, trained=trained, copies=copies, groups=groups
  )


def check_groups(
  record: Record,
  config: ConfigDict,
  names: Sequence[str],
  workdir: pathlib.Path,
) -> None:
  """Raises InputError where a training's groups are parted as it goes on.

  New cases of a patient would train though the patient is held out. Groups
  that are joined, and new ones, are held against the folds (see `folds`).

  Args:
    record: of the training that is to go on.
    config: resolved.
    names: of the cases that there are.
    workdir: of the training.
  """
  back = f'put {record.group!r} back as it was, or use another --workdir'
  if record.group and not config.data.group:
    raise InputError(
      f'config.data.group is not given, but the training in {workdir} began '
      f'with it, and new cases would not stay with those of their group; {back}'
    )
  now, first = _groups(config.data.group, names), {}
  for name, group in record.groups.items():
    if name not in now:
      continue  # it is gone
    other = first.setdefault(group, name)
    if now[other] != now[name]:
      raise InputError(
        f'config.data.group {quote(config.data.group)} puts {other} and {name} '
        f'into two groups, but they were one when the training in {workdir} '
        f'began; {back}'
      )


def check_resuming(
  record: Record, digests: Digests, workdir: pathlib.Path
) -> None:
  """Holds the cases of a training that goes on against those it began with.

  New cases may train, and new ones may be held out. Of those that were held
  out some may be gone, which is printed.

  Args:
    record: of the training that is to go on.
    digests: of the cases by split, as they are now.
    workdir: of the training.

  Raises:
    InputError: a case has trained and is held out now, or the other way round;
      or all that were held out are gone.
  """
  back = (
    'put data.path, data.fold, data.num_folds, data.fold_order, data.group and '
    'splits.json back as they were, or use another --workdir'
  )
  _refuse_trained(record, digests, where=str(workdir), back=back)
  now = {split: set(cases.values()) for split, cases in digests.items()}
  train = now.pop('train')
  held = set().union(*now.values())
  before = {
    f'{name} ({split})': value
    for split, cases in record.held_out.items()
    for name, value in cases.items()
  }
  moved = [
    name
    for name, value in before.items()
    if value in train and not is_blank(value)
  ]
  if moved:
    raise InputError(
      f'{workdir}: {len(moved)} of {counted(len(before), "case")} that the '
      f'training held out would train now ({some(moved)}); {back}'
    )
  gone = [name for name, value in before.items() if value not in held]
  if gone and len(gone) == len(before):
    raise InputError(
      f'{workdir}: no case that the training held out ({some(gone)}) is '
      f'held out by this data; {back}'
    )
  if gone:
    print(
      f'warning   gone, or changed: {len(gone)} of '
      f'{counted(len(before), "case")} that the training held out '
      f'({some(gone)})'
    )


def check_beginning(
  record: Record,
  digests: Digests,
  model: pathlib.Path,
  *,
  back: str = 'put these on the training side (splits.json in the workdir, '
  'data.fold, or the folders train, val and test), or begin with another model',
) -> None:
  """Raises InputError where a case to be held out trained the first weights.

  Args:
    record: of the model that a training begins with.
    digests: of the cases of that training, by split.
    model: where it lies.
    back: what the user can do, for the message.
  """
  _refuse_trained(record, digests, where=str(model), back=back)


def check_evaluating(
  record: Record, cases: Mapping[str, str], *, where: str, own: bool
) -> None:
  """Raises InputError where a case that is to be scored has trained.

  Args:
    record: of the model.
    cases: the digest of each case by name.
    where: the data, for the message.
    own: whether it is that of the training.
  """
  back = 'score cases that were held out (the names are in held_out.json)'
  if own:
    back += ', or ask for --split=train'
  _refuse_trained(record, {'': dict(cases)}, where=where, back=back)


def _refuse_trained(
  record: Record, digests: Digests, *, where: str, back: str
) -> None:
  for split, cases in digests.items():
    seen = [
      name
      for name, value in cases.items()
      if value in record.trained and not is_blank(value)
    ]
    if split != 'train' and seen:
      known = {n: record.trained[cases[n]] for n in seen}
      names = some(n if n == k else f'{n} as {k}' for n, k in known.items())
      raise InputError(
        f'{where}: {len(seen)} of {counted(len(cases), "case")} to be scored '
        f'trained this model ({names}); {back}'
      )
