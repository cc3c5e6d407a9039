"""Preprocesses the data into the cache: `--mode=prepare`, and before training.
"""

import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from medseg_jax import experiment
from medseg_jax.data import cache as caches
from medseg_jax.data import nifti, resample
from medseg_jax.data.cache import Cache
from medseg_jax.data.case import Source
from medseg_jax.errors import InputError
from medseg_jax.progress import Progress


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Prepares the data of `config` and says what was found and where it lies."""
  config, sources = experiment.open_run(config, workdir)
  print(describe(config, sources), flush=True)
  print(f'cache     {prepare(config, sources).folder}', flush=True)


def describe(config: ConfigDict, sources: dict[str, Source]) -> str:
  """Returns what was inferred and what will run, for a person to check."""
  data = config.data
  cases = ', '.join(f'{len(s)} {split}' for split, s in sources.items())
  classes = ', '.join(
    f'{name} ({value})'
    for name, value in zip(data.classes, data.label_values, strict=True)
  )
  lines = [
    f'data      {data.source} {data.path}: {cases} cases, '
    f'channels: {data.channels}',
    f'classes   {classes}',
  ]
  if data.regions:
    regions = ', '.join(name for name, _ in data.regions)
    lines.append(f'regions   {regions}')
  if data.spacing:
    spacing = ' x '.join(f'{mm:g}' for mm in data.spacing)
    kinds = ', '.join(channel[0] for channel in data.intensities)
    lines.append(f'grid      {spacing} mm, intensities: {kinds}')
  patch = 'x'.join(map(str, config.patch_size))
  lines.append(
    f'training  {config.num_steps} steps of {config.batch_size} patches of '
    f'{patch}, {config.dtype}, on {jax.device_count()} x '
    f'{jax.devices()[0].device_kind}'
  )
  return '\n'.join(lines)


def prepare(config: ConfigDict, sources: dict[str, Source]) -> Cache:
  """Returns the training cache, after preparing every held-out case, too.

  A broken file ends the run here, not after the training. What was prepared
  once is not read again while neither it nor the preprocessing change, also
  where a run was killed halfway or another fold was trained.
  """
  settings = _cache_settings(config)
  # TFDS reads one case after the other, quickly; threads make it jump.
  workers = 1 if config.data.source == 'tfds' else 0
  left = {
    split: caches.missing(source, **settings)
    for split, source in sources.items()
  }
  if config.data.source == 'volumes' and any(left.values()):
    _announce(config, sources, sum(left.values()), settings['root'])
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
  return prepared['train']


def _cache_settings(config: ConfigDict) -> dict[str, Any]:
  data = config.data
  return dict(
    preprocessing=experiment.preprocessing_of(config),
    root=data.cache_dir,
    title=pathlib.Path(data.path).name or data.source,
    with_locations=data.foreground_share > 0,
  )


def _announce(
  config: ConfigDict,
  sources: dict[str, Source],
  left: int,
  root: str,
) -> None:
  """Prints how much disk and memory the rest will take; raises if too little.

  An upper bound from the files' headers: cropping makes cases smaller.
  """
  target, axes = config.data.spacing, config.data.axes
  sizes = []  # voxels, read and prepared
  for source in sources.values():
    for index in range(len(source)):
      grid = nifti.read_header(source.files[index].images[0])
      shape = tuple(grid.shape[axis] for axis in axes)
      spacing = tuple(grid.spacing[axis] for axis in axes)
      new = resample.output_shape(shape, spacing, target)
      sizes.append((np.prod(shape, dtype=float), np.prod(new, dtype=float)))
  read, prepared = np.asarray(sizes).T
  channels = config.data.channels
  share = left / len(sizes)
  disk = prepared.sum() * (2 * channels + 1) * share
  # A worker holds the image as read and in float32 before and after resampling.
  memory = (os.cpu_count() or 1) * max(
    (read * 8 + prepared * 6) * channels + 2 * read + prepared
  )
  place = pathlib.Path(root).expanduser() if root else caches.default_root()
  print(
    f'prepare   {left} cases: at most {_bytes(disk)} of disk in {place}, '
    f'about {_bytes(memory)} of memory',
    flush=True,
  )
  there = next(p for p in (place, *place.parents) if p.exists())
  free = shutil.disk_usage(there).free
  if disk > free:
    raise InputError(
      f'{place} has {_bytes(free)} free, but the preprocessed cases take up to '
      f'{_bytes(disk)}; set config.data.cache_dir to a larger disk'
    )


def _bytes(count: float) -> str:
  return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.0f} MB'
