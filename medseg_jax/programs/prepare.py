"""Preprocesses data into the cache: `--mode=prepare`, and before training."""

import pathlib
import shutil
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from medseg_jax.data import cache as caches
from medseg_jax.data import (
  masking,
  precision,
  previous_stage,
  resample,
  sampling,
)
from medseg_jax.data.cache import Cache
from medseg_jax.data.case import VOLUMES, Source
from medseg_jax.data.formats import nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.experiment import (
  build,
  cascade,
  mirroring,
  opening,
  patch_growth,
  pretraining,
)
from medseg_jax.experiment.sources import sizes as case_sizes
from medseg_jax.runtime import multihost
from medseg_jax.runtime.errors import InputError, counted
from medseg_jax.runtime.progress import Progress


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Prepares the data of `config` and says what was found and where it lies."""
  config, sources, _ = opening.open_run(config, workdir)
  print(describe(config, sources), flush=True)
  print(f'cache     {prepare(config, sources).folder}', flush=True)


def describe(config: ConfigDict, sources: dict[str, Source]) -> str:
  """Returns what was inferred and what will run, for a person to check."""
  data = config.data
  parts = ', '.join(f'{len(s)} {split}' for split, s in sources.items())
  cases = counted(sum(map(len, sources.values())), 'case')
  where = f'{data.source} {data.path}'.rstrip()
  classes = 'classes   ' + ', '.join(
    f'{name} ({value})'
    for name, value in zip(data.classes, data.label_values, strict=True)
  )
  if pretraining.is_asked(config):
    classes = pretraining.describe(config)
  lines = [
    f'data      {where}: {cases} ({parts}), channels: {data.channels}',
    classes,
  ]
  if cascade.is_asked(config):
    lines.append(
      f'cascade   {len(data.classes) - 1} more channels: the mask of '
      f'{cascade.FIRST}, by models that have not seen the case'
    )
  if data.regions:
    regions = ', '.join(name for name, _ in data.regions)
    lines.append(f'regions   {regions}')
  if data.spacing:
    spacing = ' x '.join(f'{mm:g}' for mm in data.spacing)
    kinds = ', '.join(channel[0] for channel in data.intensities)
    lines.append(f'grid      {spacing} mm, intensities: {kinds}')
  mesh = build.mesh_of(config)
  lines.append(build.describe_network(config, mesh))
  patch = 'x'.join(map(str, config.patch_size))
  lines.append(
    f'training  {counted(config.num_steps, "step")} of '
    f'{counted(config.batch_size, "patch", "patches")} of {patch}, '
    f'{config.dtype}, on {mesh.size} x {mesh.devices.flat[0].device_kind}'
  )
  stages = build.stages_of(config)
  if growing := patch_growth.describe(stages, config.patch_growth):
    lines.append(growing)
  share = data.foreground_share
  if share and config.batch_size == 1:
    lines.append(
      f'warning   config.batch_size is 1, so config.data.foreground_share '
      f'{share:g} centres every patch on foreground and the network sees too '
      'much of it; a batch of 2 or more would do, or a share of 0'
    )
  if warning := mirroring.side_warning(config):
    lines.append(warning)
  return '\n'.join(lines)


def prepare(config: ConfigDict, sources: dict[str, Source]) -> Cache:
  """Returns the training cache, after preparing every held-out case, too.

  A broken file ends the run here, not after the training. What was prepared
  once is not read again while neither it nor the preprocessing change, also
  where a run was killed halfway or another fold was trained.

  Of several processes each prepares a share of the cases, and afterwards what
  is then missing on its own disk.
  """
  if multihost.count() > 1:
    own = {split: _own_share(source) for split, source in sources.items()}
    _prepare(config, sources, {split: s for split, s in own.items() if s})
    multihost.barrier()
  prepared = _prepare(config, sources, sources)
  _say_precision(prepared)
  if not pretraining.is_asked(config):
    multihost.from_primary(lambda: _check_classes(prepared['train'], config))
  return prepared['train']


def _own_share(source: Source) -> Source | None:
  names = multihost.share(source.names, lambda: case_sizes(source))
  return source.subset(names) if names else None


def _prepare(
  config: ConfigDict, data: dict[str, Source], sources: dict[str, Source]
) -> dict[str, Cache]:
  """Returns the caches of `sources`, of all the `data` or a part of it."""
  settings = _cache_settings(config, data['train'])
  left = {
    split: caches.missing(source, **settings)
    for split, source in sources.items()
  }
  # TFDS reads one case after the other, quickly; threads make it jump.
  workers = 1 if config.data.source == 'tfds' else 0
  if config.data.source in VOLUMES and any(left.values()):
    workers = _announce(config, sources, sum(left.values()))
  prepared = {}
  for split, source in sources.items():
    if not left[split]:
      prepared[split] = caches.prepare(source, **settings)
      continue
    with Progress(
      len(source), len(source) - left[split], 'case', f'preprocess {split}'
    ) as progress:
      prepared[split] = caches.prepare(
        source, workers=workers, on_case=progress.advance, **settings
      )
  for source in sources.values():
    if (kept := getattr(source, 'already_read', None)) is not None:
      kept.clear()
  return prepared


def _check_classes(cache: Cache, config: ConfigDict) -> None:
  """Raises InputError where one class is all that there is to learn from.

  Looks no further than the first two classes.
  """
  found = set()
  for label in cache.labels:
    label, _ = masking.unfold(np.asarray(label, np.int16), np)
    if labels := cascade.num_labels(config):
      label, _ = previous_stage.unfold(label, num_classes=labels + 1)
    found |= {*np.unique(label).tolist()} - {masking.IGNORE}
    if len(found) > 1:
      return
  data = config.data
  what = 'are to be ignored'
  if found:
    i = found.pop()
    what = f'are {data.classes[i]} ({data.label_values[i]})'
  raise InputError(
    f'{data.path}: all voxels of the {counted(len(cache.names), "case")} to '
    f'train on ({name_some(cache.names, 3)}) {what}, of which nothing can be '
    'learnt; allowed are masks with two classes or more (see also '
    'config.data.label_values and config.data.fold)'
  )


def _say_precision(prepared: dict[str, Cache]) -> None:
  """Prints which cases are too fine or too large for half precision."""
  cases = [
    case
    for cache in prepared.values()
    for case in zip(cache.names, cache.dtypes, strict=True)
  ]
  single = [name for name, dtype in cases if dtype != precision.HALF]
  if single:
    print(
      f'precision float32: float16 would lose grey levels of {len(single)} of '
      f'{counted(len(cases), "case")}: {name_some(single, 3)}',
      flush=True,
    )


def _cache_settings(config: ConfigDict, source: Source) -> dict[str, Any]:
  data = config.data
  return dict(
    preprocessing=build.preprocessing_of(config),
    root=data.cache_dir,
    title=pathlib.Path(data.path).name or data.source,
    with_locations=data.foreground_share > 0
    or sampling.has_ignore_label(source),
  )


def _announce(config: ConfigDict, sources: dict[str, Source], left: int) -> int:
  """Prints what disk and memory the rest will take; returns the threads.

  From the files' headers, so without what cropping will save.

  Raises:
    InputError: the disk has less.
  """
  data = config.data
  sizes = []  # voxels, read and prepared
  for source in sources.values():
    for files in source.files:
      grid = nifti.read_header(files.images[0])
      shape = [grid.shape[axis] for axis in data.axes]
      spacing = [grid.spacing[axis] for axis in data.axes]
      new = resample.output_shape(shape, spacing, data.spacing)
      sizes.append((np.prod(shape, dtype=float), np.prod(new, dtype=float)))
  read, prepared = np.asarray(sizes).T
  # The image, a label of up to 2 bytes, and coordinates of 2 bytes.
  places = np.maximum(10_000, 0.01 * prepared) * max(len(data.classes) - 1, 0)
  plain = any(channel[0] == 'none' for channel in data.intensities)
  value = (precision.SINGLE if plain else precision.HALF).itemsize
  disk = prepared * (value * data.channels + 2)
  disk += 6 * np.minimum(places, prepared)
  disk = disk.sum() * left / len(sizes)
  # The image as read and in float32, before and after resampling.
  each = max(
    (8 * read + 6 * prepared) * data.channels + 2 * read + 2 * prepared
  )
  workers = caches.num_workers(each)
  place = caches.root_folder(data.cache_dir)
  print(
    f'prepare   {counted(left, "case")}: about {_bytes(disk)} of disk in '
    f'{place}, {_bytes(workers * each)} of memory in {workers} threads',
    flush=True,
  )
  there = next(p for p in (place, *place.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if disk > free:
    raise InputError(
      f'{place} has {_bytes(free)} free, but the preprocessed cases take up to '
      f'{_bytes(disk)}; set config.data.cache_dir to a larger disk'
    )
  return workers


def _bytes(count: float) -> str:
  return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
