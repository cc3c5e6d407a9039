"""Opens a run: its data, its plan, and the config with all they tell."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from medseg_jax.data.case import Source
from medseg_jax.experiment import build, sources, volume_plan
from medseg_jax.experiment.config_files import to_tuples
from medseg_jax.losses import uses_sigmoid
from medseg_jax.runtime import sharding

SOFT_TISSUE = (-160.0, 240.0)  # HU, the usual window on the abdomen


def open_run(
  config: ConfigDict, workdir: pathlib.Path
) -> tuple[ConfigDict, dict[str, Source]]:
  """Returns the config with what data and plan tell, and the sources."""
  if config.data.source != 'volumes':
    by_split = sources.open_sources(config, workdir)
    return resolve(config, by_split['train']), by_split
  # Without a plan the survey lists all problems at once.
  strict = (workdir / 'plan.json').exists()
  opened = sources.open_volumes(config, strict=strict)
  plan = volume_plan.obtain(config, opened, workdir)
  by_split = sources.with_folds(opened, config, workdir)
  given = config.batch_size
  config.data.held_out = sources.held_out_key(by_split)
  config = resolve(config, opened['train'], plan)
  if not given:  # planned for one device
    config.batch_size = sharding.round_up(
      config.batch_size, build.mesh_of(config)
    )
  return config, by_split


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
