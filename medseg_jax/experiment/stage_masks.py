"""Masks of a cascade's first network, for the cases that train the second.

Each is by the model of the fold that held the case out, so it is as wrong as it
will be on new images. They lie beside that model, in
ROOT/3d_lowres/fold_K/next_stage/CASE.npz, on the grid of the second network,
with the record of what made them; one that is missing is made again, it alone.
`previous_stage.json` in the second network's workdir, ROOT/3d_cascade/fold_K,
tells for each case which fold's weights have made its mask.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from medseg_jax.data import previous_stage
from medseg_jax.data.groups import some
from medseg_jax.data.preprocess import prepared_shape
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment import (
  build,
  cascade,
  held_out,
  members,
  model_folder,
  sources,
  trained_model,
)
from medseg_jax.experiment.case_digests import Digests
from medseg_jax.experiment.held_out import Record as CaseRecord
from medseg_jax.experiment.prediction_record import (
  Maker,
  Record,
  hash_files,
  maker_of,
)
from medseg_jax.inference.cases import match_channels
from medseg_jax.inference.previous_stage import mask_of_case, settings_of
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import InputError, quote, quote_json
from medseg_jax.runtime.files import check_writable, read_json, write_atomically
from medseg_jax.runtime.progress import Progress

FOLDER = 'next_stage'
FILE, VERSION = 'previous_stage.json', 1
# What both networks have to agree in, of the config's section data.
_ALIKE = ('classes', 'label_values', 'regions', 'region_order', 'channels')
_ALIKE += ('axes', 'crop')


class _Fold(NamedTuple):
  """A trained fold of the first network."""

  workdir: pathlib.Path
  cases: CaseRecord

  @property
  def model(self) -> pathlib.Path:
    return self.workdir / 'model'

  def holds_out(self, digest: str) -> bool:
    held = self.cases.held_out.values()
    return any(digest in own.values() for own in held) and (
      digest not in self.cases.trained
    )


def attach(
  by_split: Mapping[str, VolumeSource],
  digests: Digests,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> dict[str, VolumeSource]:
  """Returns the cases with the masks of the first network, made where missing.

  Args:
    by_split: the cases of a training of the second network.
    digests: of them, by split and name.
    config: resolved.
    workdir: of that training.

  Raises:
    InputError: a case has no model that has held it out, or two; or a mask was
      changed.
  """
  chosen = multihost.from_primary(
    lambda: _choose(by_split, digests, config, workdir)
  )
  paths: dict[str, pathlib.Path] = {}
  mesh = sharding.local_mesh()
  for fold in dict.fromkeys(chosen.values()):
    for source in by_split.values():
      own = [name for name in source.names if chosen[name] == fold]
      if own:
        paths |= _make(fold, source.subset(own), config, mesh)
  return {
    split: dataclasses.replace(
      source, stage_masks={name: paths[name] for name in source.names}
    )
    for split, source in by_split.items()
  }


def _choose(
  by_split: Mapping[str, VolumeSource],
  digests: Digests,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> dict[str, pathlib.Path]:
  """Returns for each case the workdir of the fold that is to make its mask."""
  root = _own_fold(config, workdir).parent
  folds = _read_folds(root, config)
  here = _own_fold(config, workdir)
  chosen: dict[str, pathlib.Path] = {}
  for split, source in by_split.items():
    for name in source.names:
      digest = digests[split][name]
      found = [f for f in folds if f.holds_out(digest)]
      if split != 'train':  # as a new image: by the model of this very fold
        found = [f for f in found if f.workdir == here]
      if len(found) != 1:
        where = some([f.workdir.name for f in found]) or 'none'
        raise InputError(
          f'{root}: {quote(name)} ({split}) is held out by {where} of the '
          f'{len(folds)} trained folds there, so no single model can make its '
          f'mask for {cascade.NAME}; allowed is one that has not seen it '
          '(--mode=crossval trains them)'
        )
      chosen[name] = found[0].workdir
  return chosen


def _own_fold(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the workdir of the first network that held out the same cases."""
  root = workdir.absolute().parents[1] / cascade.FIRST
  return root / f'fold_{config.data.fold}'


def _read_folds(root: pathlib.Path, config: ConfigDict) -> list[_Fold]:
  """Returns the trained folds below `root`.

  Raises:
    InputError: one does not say what it has seen, or is of other data.
  """
  folds = []
  for workdir in sorted(root.glob('fold_*')):
    model = workdir / 'model'
    if not (model / model_folder.DESCRIPTION).exists():
      continue
    cases = held_out.of_model(model)
    if cases is None:
      raise InputError(
        f'{model}: does not say which cases have trained it; move {workdir} '
        'away, and the fold is trained anew'
      )
    data = model_folder.config_of(model_folder.read_description(model)).data
    for key in _ALIKE:
      if data[key] != config.data[key]:
        raise InputError(
          f'{model}: {key} is {quote_json(data[key])}, but {cascade.NAME} has '
          f'{quote_json(config.data[key])}; allowed are the folds of one '
          'cross-validation'
        )
    folds.append(_Fold(workdir, cases))
  return folds


def _make(
  workdir: pathlib.Path, source: VolumeSource, config: ConfigDict, mesh: Mesh
) -> dict[str, pathlib.Path]:
  """Makes the masks that are missing; returns the files of all, by name.

  Args:
    workdir: of the first network's fold.
    source: cases that it has held out.
    config: of the second network, resolved.
    mesh: of this process.
  """
  folder = workdir / FOLDER
  paths = {name: folder / f'{name}.npz' for name in source.names}
  weights = members.load_together({cascade.FIRST: [workdir / 'model']}, mesh)
  preprocessing = build.preprocessing_of(config)
  maker = maker_of(weights)
  grid = {'next.spacing': list(preprocessing.spacing)}
  maker = maker._replace(settings=maker.settings | grid)
  files = dict(zip(source.names, source.files, strict=True))

  def look() -> list[str]:
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    return [
      name
      for name, path in paths.items()
      if record.is_to_make(path, files[name].images, maker)
    ]

  left = multihost.from_primary(look)
  if not left:
    return paths
  own = multihost.share(left, lambda: sources.sizes(source.subset(left)))
  predictor = trained_model.compile_predictor(weights, mesh)
  settings = settings_of(predictor.settings)
  record = Record(folder)
  title = f'{cascade.FIRST}/{workdir.name} for {cascade.NAME}'
  with Progress(len(own), unit='case', desc=title) as progress:
    for i, name in enumerate(source.names):
      if name not in own:
        continue
      case = match_channels(source[i], config.data.channels)
      shape = prepared_shape(case, preprocessing)
      mask = mask_of_case(predictor.predict_fn, case, shape, **settings)
      _write(paths[name], mask, files[name].images, record, maker)
      progress.advance()
      del case, mask  # before the next one: it may be gigabytes
  multihost.barrier()
  return paths


def _write(
  path: pathlib.Path,
  mask: Any,
  images: Sequence[pathlib.Path],
  record: Record,
  maker: Maker,
) -> None:
  unfinished = path.with_name(f'.unfinished-{path.name}')
  previous_stage.write(unfinished, mask)
  name = record.name_of(path)
  record.add(unfinished, name, images, hash_files(images), maker)
  unfinished.replace(path)


def write(
  by_split: Mapping[str, VolumeSource],
  digests: Digests,
  config: ConfigDict,
  workdir: pathlib.Path,
) -> None:
  """Writes what a training has seen of the first network, and keeps its model.

  Args:
    by_split: what `attach` returned.
    digests: of the cases, by split and name.
    config: resolved.
    workdir: of the training.

  Raises:
    InputError: it began with other masks.
  """
  path = workdir / FILE
  cases, records = {}, {}
  for split, source in by_split.items():
    for name, mask in source.stage_masks.items():
      if mask.parent not in records:
        records[mask.parent] = Record(mask.parent).lines
      line = records[mask.parent][mask.name]
      cases[name] = {
        'split': split,
        'image': digests[split][name],
        'fold': mask.parents[1].name,
        'weights_sha256': line['weights'],
        'mask_sha256': line['sha256'],
      }
  if path.exists():
    before = read_json(path, 'as training writes it').get('cases', {})
    for name in cases.keys() & before.keys():
      if cases[name] != before[name]:
        raise InputError(
          f'{path}: this training began with another mask of {quote(name)} '
          f'from {cascade.FIRST}; put the model of {cases[name]["fold"]} back '
          'as it was, or move this workdir away to train anew'
        )
  kept = workdir / model_folder.PREVIOUS
  if not (kept / model_folder.DESCRIPTION).exists():
    with model_folder.replacing_folder(kept) as new:
      model_folder.copy(_own_fold(config, workdir) / 'model', new)
  content = {'version': VERSION, 'cases': cases}
  write_atomically(path, (json.dumps(content, indent=1) + '\n').encode())
