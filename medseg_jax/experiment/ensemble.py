"""A trained model made of several: one folder that lists model folders.

The members of one configuration, its folds, see a scan on one grid, where
their logits are averaged; of several configurations the probabilities are, on
the scan's own grid (Isensee et al., Nature Methods 2021, section on inference).
What the ensemble is besides stands in its members, each a model by itself. A
single model is read as one configuration of one member.
"""

import contextlib
import datetime
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import medseg_jax
from medseg_jax.data.case import VOLUMES
from medseg_jax.experiment import (
  calibrated,
  mirroring,
  model_card,
  model_folder,
)
from medseg_jax.experiment.calibrated import Calibration
from medseg_jax.experiment.model_folder import DESCRIPTION
from medseg_jax.postprocessing import classes_of
from medseg_jax.runtime.errors import InputError, counted, quote, quote_json

FORMAT, FORMAT_VERSION = 'medseg_jax ensemble', 1
_OWN = (None, FORMAT)

# What members agree in, all of them and those of one configuration.
_ALL = ('classes', 'label_values', 'regions', 'region_order', 'output')
_ALL += ('channels', 'channel_names')
_ONE = ('network', 'preprocessing')
_NAME = re.compile(r'[A-Za-z0-9][\w.-]*')


class Member(NamedTuple):
  """A model of an ensemble.

  Attributes:
    path: a folder or a zip.
    at: the model folder inside it; '' for itself.
    description: the content of its `model.json`.
  """

  path: pathlib.Path
  at: str
  description: dict[str, Any]

  @property
  def where(self) -> pathlib.Path:
    return self.path / self.at


class Stored(NamedTuple):
  """What a model folder lists, an ensemble's or a single model's.

  Attributes:
    description: the content of its `model.json`.
    configurations: of each, by name, the members; a single model's is ''.
  """

  description: dict[str, Any]
  configurations: dict[str, tuple[Member, ...]]

  @property
  def first(self) -> Member:
    return next(iter(self.configurations.values()))[0]

  @property
  def members(self) -> tuple[Member, ...]:
    return tuple(m for own in self.configurations.values() for m in own)

  @property
  def calibration(self) -> Calibration:
    """What `calibration` of the description says.

    Raises:
      KeyError, TypeError, ValueError: something else.
    """
    first = self.first.description
    return calibrated.from_json(
      self.description.get('calibration'),
      num_outputs=len(first['regions'] or first['classes']),
    )

  @property
  def is_ensemble(self) -> bool:
    return self.description['format'] == FORMAT


def write(
  folder: pathlib.Path,
  members: Mapping[str, Sequence[pathlib.Path]],
  *,
  scores: Mapping[str, Any] | None,
  postprocessing: Sequence[Any] | None,
  calibration: Mapping[str, Any] | None = None,
) -> None:
  """Writes an ensemble, in the place of a model that is there, whole.

  Args:
    folder: made where it does not exist.
    members: of each configuration, by name, model folders or zips of them,
      which are copied.
    scores: of the held-out cases, pooled; None where there are none.
    postprocessing: the steps that all its masks get, see `postprocessing`.
    calibration: what `calibrating.learn` learnt, or None. Exported programs
      give logits, which are to be divided by its temperature.

  Raises:
    InputError: a member is damaged, does not say which cases trained it, or
      does not go with the others.
  """
  found = gather(members)
  for own in found.values():
    for member in own:
      if not member.description['training'].get('cases'):
        raise InputError(
          f'{member.where}: {DESCRIPTION} does not say which cases trained '
          'it, so an ensemble with it could be scored on them; allowed are '
          'models that do'
        )
  with model_folder.replacing_folder(folder) as new:
    configurations = []
    for name, own in found.items():
      listed = []
      for member, place in zip(own, _places(name, own), strict=True):
        (new / place).mkdir(parents=True)
        model_folder.copy(member.path, new / place)
        weights = member.description['weights']['sha256']
        listed.append({'folder': place, 'weights_sha256': weights})
      configurations.append({'name': name, 'members': listed})
    description = {
      'format': FORMAT,
      'format_version': FORMAT_VERSION,
      'written_by': {
        'medseg_jax': medseg_jax.__version__,
        'date': datetime.datetime.now(datetime.UTC).isoformat(
          timespec='seconds'
        ),
      },
      'configurations': configurations,
      'postprocessing': list(postprocessing or ()),
      'calibration': calibration,
      'scores': scores,
    }
    text = json.dumps(description, indent=2, allow_nan=False)
    (new / DESCRIPTION).write_text(text + '\n', encoding='utf-8')
    first = next(iter(found.values()))[0].description
    card = model_card.of_ensemble(description, first)
    (new / model_card.CARD).write_text(card, encoding='utf-8')


def read(path: pathlib.Path) -> Stored:
  """Returns what a model folder or its zip lists, without the weights.

  Raises:
    InputError: it is none, damaged, or its members do not go together.
  """
  description = model_folder.read_json(path)
  if description['format'] != FORMAT:
    single = Member(path, '', model_folder.read_description(path))
    return Stored(single.description, {'': (single,)})
  model_folder.check_format(description, path, (FORMAT, FORMAT_VERSION))
  found: dict[str, tuple[Member, ...]] = {}
  with model_folder.damages(path, f'{DESCRIPTION} is damaged'):
    for configuration in description['configurations']:
      found[configuration['name']] = tuple(
        _member(path, listed['folder'], listed['weights_sha256'])
        for listed in configuration['members']
      )
  _check(found, path)
  with model_folder.damages(path, f'{DESCRIPTION} is damaged'):
    _check_steps(description['postprocessing'], found)
    stored = Stored(description, found)
    _ = stored.calibration
  return stored


def check_place(workdir: pathlib.Path, *, crossval: bool) -> None:
  """Raises InputError where a training and a cross-validation would meet.

  Each writes `model/`, and would put its own in the other's place.

  Args:
    workdir: of one of the two.
    crossval: which.
  """
  kind = None
  with contextlib.suppress(InputError):  # of a damaged one others tell
    if (workdir / 'model' / DESCRIPTION).exists():
      kind = model_folder.read_json(workdir / 'model')['format']
  if crossval and ((workdir / 'checkpoints').exists() or kind not in _OWN):
    raise InputError(
      f'{workdir}: holds a training, whose model would be lost; allowed for '
      '--mode=crossval is a --workdir of its own'
    )
  if not crossval and kind == FORMAT:
    raise InputError(
      f'{workdir}: holds an ensemble, which a training would replace; allowed '
      'for --mode=train is another --workdir, such as that of one fold in it'
    )


def gather(
  members: Mapping[str, Sequence[pathlib.Path]],
) -> dict[str, tuple[Member, ...]]:
  """Returns models that are no ensemble yet as the members of one.

  Args:
    members: see `write`.

  Raises:
    InputError: one is none, damaged, or does not go with the others.
  """
  found = {
    name: tuple(
      Member(path, '', model_folder.read_description(path)) for path in paths
    )
    for name, paths in members.items()
  }
  _check(found, 'the ensemble')
  return found


def check_joins(member: Member, config: ConfigDict, name: str) -> None:
  """Raises InputError where a model goes with none that a config will train.

  Args:
    member: of one configuration.
    config: of another training of it, resolved.
    name: of the configuration.
  """
  like = model_folder.describe(
    config,
    channel_names=member.description['channel_names'],
    plan=None,
    num_cases={},
    record=None,
    step=0,
    checkpoint='',
    scores=None,
  )
  like = json.loads(json.dumps(like))
  _compare_own(member, Member(pathlib.Path('this config'), '', like), name)


def config_of(path: pathlib.Path) -> ConfigDict:
  """Returns the config of a model; of an ensemble that of its first member."""
  return model_folder.config_of(read(path).first.description)


def pack(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Writes the zip of a model folder; see `model_folder.pack`."""
  places = [member.at for member in read(folder).members]
  model_folder.pack(folder, target, places)


def _member(path: pathlib.Path, at: str, weights: str) -> Member:
  if not all(map(_NAME.fullmatch, at.split('/'))):
    raise ValueError(f'{quote(at)} is no folder of the ensemble')
  member = Member(path, at, model_folder.read_description(path, at))
  if member.description['weights']['sha256'] != weights:
    raise InputError(
      f'{member.where}: is not the model that the ensemble was written with; '
      'allowed is an ensemble as medseg_jax wrote it'
    )
  return member


def _places(name: str, members: Sequence[Member]) -> Iterator[str]:
  """Yields the folder of each member of a configuration."""
  taken: set[str] = set()
  for member in members:
    fold = member.description['training']['config']['data']['fold']
    place = f'{name}/fold_{fold}'
    while place in taken:
      place += '_again'
    taken.add(place)
    yield place


def _check(
  configurations: Mapping[str, Sequence[Member]], where: pathlib.Path | str
) -> None:
  """Raises InputError where members do not go together."""
  if not configurations or not all(configurations.values()):
    raise InputError(
      f'{where}: {counted(len(configurations), "configuration")}, of which one '
      'has no member; allowed are one or more members in each of one or more'
    )
  for name in configurations:
    if not _NAME.fullmatch(name):
      raise InputError(
        f'{where}: a configuration is called {quote(name)}; allowed are '
        'letters, digits, _, - and .'
      )
  first = next(iter(configurations.values()))[0]
  for name, members in configurations.items():
    for member in members:
      with model_folder.damages(member.where, f'{DESCRIPTION} is damaged'):
        _compare(member, first, _facts, 'an ensemble')
      _compare_own(member, members[0], name)


def _compare_own(member: Member, first: Member, name: str) -> None:
  with model_folder.damages(member.where, f'{DESCRIPTION} is damaged'):
    own = f'the configuration {name}'
    _compare(member, first, _facts_of_configuration, own)


def _check_steps(
  steps: Sequence[Any], configurations: Mapping[str, Sequence[Member]]
) -> None:
  """Raises ValueError where one is none, or of a class that there is not."""
  first = next(iter(configurations.values()))[0]
  number = len(first.description['classes'])
  for step in steps:
    if max(classes_of(step)) >= number:
      raise ValueError(f'{quote_json(step)} is of more than {number} classes')


def _compare(member: Member, first: Member, facts_of: Any, what: str) -> None:
  found, wanted = facts_of(member.description), facts_of(first.description)
  for key in dict.fromkeys([*wanted, *found]):
    if found.get(key) != wanted.get(key):
      raise InputError(
        f'{member.where}: {key} is {quote_json(found.get(key))}, but '
        f'{first.where} has {quote_json(wanted.get(key))}; allowed are members '
        f'of {what} that agree in it'
      )


def _facts(description: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what all members of an ensemble have in common."""
  facts = {key: description[key] for key in _ALL}
  for key in ('axes', 'crop'):  # on the way back to one grid
    facts[f'preprocessing.{key}'] = description['preprocessing'][key]
  source = description['training']['config']['data']['source']
  return facts | {'made for volumes': source in VOLUMES}


def _facts_of_configuration(description: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what all members of one configuration have in common."""
  facts = {
    f'{section}.{key}': value
    for section in _ONE
    for key, value in description[section].items()
    if key not in model_folder.OF_TRAINING
  }
  facts['inference.patch_size'] = description['inference']['patch_size']
  config = model_folder.config_of(description)
  return facts | {'mirrored axes': mirroring.in_prediction(config)}
