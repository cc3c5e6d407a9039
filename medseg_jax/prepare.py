"""Preprocesses the data into the cache: `--mode=prepare`, and before training.
"""

import functools
import pathlib
from collections.abc import Iterable

import jax
from ml_collections import ConfigDict

from medseg_jax import experiment
from medseg_jax.data import cache as caches
from medseg_jax.data.cache import Cache
from medseg_jax.data.case import Source
from medseg_jax.progress import Progress


def run(config: ConfigDict) -> None:
  """Prepares the data of `config` and says what was found and where it lies."""
  sources = experiment.open_sources(config)
  config = experiment.resolve(config, sources['train'])
  print(describe(config, sources), flush=True)
  print(f'cache     {prepare(config, sources).folder}', flush=True)


def describe(config: ConfigDict, sources: dict[str, Source]) -> str:
  """Returns what was inferred and what will run, for a person to check."""
  cases = ', '.join(f'{len(s)} {split}' for split, s in sources.items())
  classes = ', '.join(
    f'{name} ({value})'
    for name, value in zip(
      config.data.classes, config.data.label_values, strict=True
    )
  )
  patch = 'x'.join(map(str, config.patch_size))
  return (
    f'data      {config.data.source} {config.data.path}: {cases} cases, '
    f'channels: {config.data.channels}\n'
    f'classes   {classes}\n'
    f'training  {config.num_steps} steps of {config.batch_size} patches of '
    f'{patch}, {config.dtype}, on {jax.device_count()} x '
    f'{jax.devices()[0].device_kind}'
  )


def prepare(config: ConfigDict, sources: dict[str, Source]) -> Cache:
  """Returns the training cache, after reading every held-out case once.

  A broken file ends the run here, not after the training. What was found good
  is not read again while neither the data nor the preprocessing change.
  """
  settings = dict(
    preprocessing=experiment.preprocessing_of(config),
    root=config.data.cache_dir,
    title=pathlib.Path(config.data.path).name or config.data.source,
  )
  for split, source in sources.items():
    if split != 'train':
      shown = functools.partial(_track, f'check {split}')
      caches.check(source, track=shown, **settings)
  shown = functools.partial(_track, 'preprocess train')
  return caches.prepare(sources['train'], track=shown, **settings)


def _track(desc: str, items: range) -> Iterable[int]:
  """Yields `items` and shows how far they are."""
  with Progress(len(items), unit='case', desc=desc) as progress:
    for item in items:
      yield item
      progress.advance()
