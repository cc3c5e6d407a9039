"""Opens a run: its data, its plan, and the config with all they tell."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.data.sources.bids import SUBJECT
from medseg_jax.experiment import (
  build,
  cascade,
  config_bounds,
  config_files,
  fine_tuning,
  folds,
  held_out,
  sources,
  stage_masks,
  volume_plan,
)
from medseg_jax.experiment.case_digests import Digests, digests_of
from medseg_jax.experiment.config_files import to_tuples
from medseg_jax.losses import uses_sigmoid
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.files import expand_home

SOFT_TISSUE = (-160.0, 240.0)  # HU, the usual window on the abdomen


class Run(NamedTuple):
  """The data of a run.

  Attributes:
    config: with what data and plan tell.
    sources: the cases by split.
    digests: of the cases, by split and name.
  """

  config: ConfigDict
  sources: dict[str, Source]
  digests: Digests


class Opened(NamedTuple):
  """The data of a run, not yet divided.

  Attributes:
    config: with absolute paths.
    sources: the cases as the data itself divides them, 'train' among them.
    digests: of all of them.
    plan: of volumes, else None.
  """

  config: ConfigDict
  sources: dict[str, Source]
  digests: Digests
  plan: dict[str, Any] | None


def open_data(config: ConfigDict, workdir: pathlib.Path) -> Opened:
  """Returns the data and its plan.

  Args:
    config: as the user has it.
    workdir: of the run; volumes find or leave their plan there.
  """
  config_bounds.check(config)
  config, origin = fine_tuning.adopt(ConfigDict(config.to_dict()), workdir)
  config.data.path = absolute(config.data)
  if config.data.group.lower().endswith('.csv'):
    config.data.group = os.path.abspath(config.data.group)
  if config.data.source == 'bids' and not config.data.group:
    config.data.group = SUBJECT
  volumes = config.data.source in VOLUMES
  # Without a plan the survey lists all problems at once.
  strict = multihost.from_primary(
    lambda: not volumes or (workdir / 'plan.json').exists()
  )
  opened = multihost.primary_first(
    lambda: sources.open_all(config, strict=strict)
  )
  sources.check_train(opened, config.data)

  def look() -> tuple[dict[str, Any] | None, Digests]:
    sources.tell_oddities(opened.values())
    plan = None
    if volumes:
      moved = origin or volume_plan.given(config, workdir)
      plan = volume_plan.obtain(config, opened, workdir, moved)
    return plan, digests_of(opened, root=config.data.cache_dir, keep=True)

  plan, digests = multihost.from_primary(look)
  return Opened(config, opened, digests, plan)


def open_run(
  config: ConfigDict,
  workdir: pathlib.Path,
  devices: Sequence[Any] | None = None,
) -> Run:
  """Returns the data, divided, and the config with what data and plan tell.

  Args:
    config: as the user has it.
    workdir: of the run; volumes find or leave their plan there.
    devices: that the run is for; None for all there are.
  """
  config, opened, digests, plan = open_data(config, workdir)

  def divide() -> dict[str, tuple[str, ...]]:
    # Folds that were lost are made again, but not written before it is certain
    # that the training held out the same.
    begins = not (workdir / held_out.FILE).exists()
    by_split = folds.divide(
      opened,
      digests,
      config,
      workdir,
      record=held_out.read(workdir),
      writes=begins,
    )
    return {split: tuple(source.names) for split, source in by_split.items()}

  names = multihost.from_primary(divide)
  by_split = {
    split: opened.get(split, opened['train']).subset(names[split])
    for split in names
  }
  config = resolve_for(config, by_split['train'], plan, devices)
  own = {s: digests.get(s, digests['train']) for s in by_split}
  divided = {
    split: {name: own[split][name] for name in source.names}
    for split, source in by_split.items()
  }
  cascade.check(config)
  if cascade.is_asked(config):
    by_split = stage_masks.attach(by_split, divided, config, workdir)
  return Run(config, by_split, divided)


def seen_before(
  config: ConfigDict, digests: Digests, workdir: pathlib.Path
) -> held_out.Record | None:
  """Returns which cases the training that goes on has seen, None if untold.

  Raises:
    InputError: config or cases contradict what it began with.
  """
  fine_tuning.check_resuming(config, workdir)
  seen = held_out.read(workdir)
  config_files.check_same_meaning(config, workdir)
  if seen is None:
    print(
      f'warning   {workdir} has no {held_out.FILE}: whether its weights '
      'have seen the cases held out now cannot be told, now or later'
    )
  else:
    names = [name for cases in digests.values() for name in cases]
    held_out.check_groups(seen, config, names, workdir)
    held_out.check_resuming(seen, digests, workdir)
  return seen


def absolute(data: ConfigDict) -> str:
  """Returns where the data lies, whatever folder commands are typed in."""
  if data.source not in ('folder', *VOLUMES) or not data.path:
    return data.path
  return str(expand_home(data.path, or_set='config.data.path').absolute())


def resolve_for(
  config: ConfigDict,
  source: Source,
  plan: dict[str, Any] | None,
  devices: Sequence[Any] | None = None,
) -> ConfigDict:
  """Returns what `resolve` does, with a batch that suits the devices.

  Args:
    config: as the user has it.
    source: the cases that train.
    plan: of volumes, else None.
    devices: that the run is for; None for all there are.
  """
  given = config.batch_size
  config = resolve(config, source, plan)
  if not given:  # planned for one device
    config.batch_size = sharding.round_up(
      config.batch_size, build.mesh_of(config, devices)
    )
  return config


def resolve(
  config: ConfigDict, source: Source, plan: dict[str, Any] | None = None
) -> ConfigDict:
  """Returns the config with what the data and its plan tell filled in."""
  config = ConfigDict(config.to_dict())
  if plan is not None:
    config.data.regions = to_tuples(source.regions)
    config.data.region_order = tuple(source.region_order)
    volume_plan.apply(config, plan)
  if config.data.regions and not uses_sigmoid(config.loss):
    # Overlapping regions have no softmax: its losses change to their twins.
    for name in [n for n in config.loss if not n.startswith('sigmoid_')]:
      config.loss[f'sigmoid_{name}'] = config.loss[name]
      config.loss[name] = 0.0
  config.augment.in_plane = bool(config.augment.in_plane)
  config.overlap.batch = bool(config.overlap.batch)
  config.data.classes = tuple(source.classes)
  config.data.label_values = tuple(int(v) for v in source.label_values)
  if getattr(source, 'instances', ''):
    config.data.instances = source.instances
  config.data.channels = int(source.channels)
  if not config.data.normalize:
    # Phantoms are in Hounsfield units: over a z-score, air and bone would
    # press the organs into a sliver of the range.
    config.data.normalize = 'zscore'
    if config.data.source == 'phantom':
      config.data.normalize, config.data.window = 'window', SOFT_TISSUE
  if config.num_epochs:
    examples = config.num_epochs * len(source)
    config.num_steps = -(-examples // max(config.batch_size, 1))
  return config
