"""The plan of a run on volumes: read from plan.json, or made from the data."""

import concurrent.futures
import json
import os
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data import inspect
from medseg_jax.data.fingerprint import (
  Fingerprint,
  fingerprint_case,
  merge,
  samples_per_case,
)
from medseg_jax.data.volumes import VolumeSource
from medseg_jax.errors import InputError
from medseg_jax.files import write_atomically
from medseg_jax.progress import Progress

FINGERPRINT_SEED = 1234  # of the sample of foreground intensities


class Survey(NamedTuple):
  """What one reading of every training case tells.

  Attributes:
    fingerprint: None where no case could be read.
    errors: what has to be mended, one line each.
    warnings: what looks odd, one line each.
  """

  fingerprint: Fingerprint | None
  errors: list[str]
  warnings: list[str]


def survey(source: VolumeSource) -> Survey:
  """Reads every case once, in parallel, and returns what was found."""
  share = samples_per_case(len(source))

  def read(index):
    found = inspect.inspect_case(source, index)
    if found.case is None:
      return found, None
    fingerprint = fingerprint_case(
      found.case, num_samples=share, seed=FINGERPRINT_SEED
    )
    return found._replace(case=None), fingerprint

  inspections, fingerprints = [], []
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    Progress(len(source), unit='case', desc='read') as progress,
  ):
    for found, fingerprint in pool.map(read, range(len(source))):
      inspections.append(found)
      if fingerprint is not None:
        fingerprints.append(fingerprint)
      progress.advance()
  errors, warnings = map(list, inspect.inspect_set(source, inspections))
  for found in inspections:
    errors += found.errors
    warnings += found.warnings
  fingerprint = merge(fingerprints) if fingerprints else None
  return Survey(fingerprint, errors, warnings)


def obtain(
  config: ConfigDict, source: VolumeSource, workdir: pathlib.Path
) -> dict[str, Any]:
  """Returns the workdir's plan, making and writing it where there is none.

  A plan.json that is there is obeyed, whoever edited it.

  Raises:
    InputError: the data has errors, or the plan does not fit data and config.
  """
  path = workdir / 'plan.json'
  if path.exists():
    plan = read(path)
    _check_fits(plan, config, source, path)
    print(f'plan      {path}', flush=True)
    return plan
  plan = make(config, source, survey(source))
  write_atomically(path, planner.to_json(plan).encode())
  print(f'plan      written to {path}', flush=True)
  return plan


def make(
  config: ConfigDict, source: VolumeSource, found: Survey
) -> dict[str, Any]:
  """Returns the plan for the data as surveyed; prints what is wrong or odd."""
  for line in found.warnings:
    print(f'warning   {line}', flush=True)
  for line in found.errors:
    print(f'error     {line}', flush=True)
  if found.errors:
    count = len(found.errors)
    raise InputError(
      f'{source.root}: {count} error{"s" * (count > 1)} in the data'
      + (', listed above' if count > 1 else f': {found.errors[0]}')
    )
  num_outputs = len(source.regions) or len(source.classes)
  try:
    return planner.make_plan(
      found.fingerprint,
      dataset=source.root.name,
      num_classes=num_outputs,
      channel_names=source.channel_names,
      preset=config.plan.preset,
      memory_gb=config.plan.memory_gb,
    )
  except ValueError as error:
    raise InputError(f'config.plan: {error}') from error


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns a plan, as written or as edited since.

  Raises:
    InputError: it is no JSON, or makes no sense.
  """
  try:
    plan = json.loads(path.read_text())
    planner.check_plan(plan)
  except ValueError as error:
    raise InputError(f'{path}: {error}') from error
  return plan


def _check_fits(
  plan: dict[str, Any],
  config: ConfigDict,
  source: VolumeSource,
  path: pathlib.Path,
) -> None:
  """Raises InputError where the plan is one for other data or settings."""
  channels = len(plan['normalization'])
  if channels != source.channels:
    raise InputError(
      f'{path} is for {channels} channels, but {source.root} has '
      f'{source.channels}; use another --workdir, or move the plan away'
    )
  asked = {'preset': config.plan.preset}
  if config.plan.memory_gb:
    asked['memory_gb'] = config.plan.memory_gb
  for key, value in asked.items():
    if plan[key] != value:
      raise InputError(
        f'config.plan.{key} is {value}, but {path} was made with {plan[key]}; '
        'use another --workdir, or move the plan away to make it anew'
      )


def apply(config: ConfigDict, plan: dict[str, Any]) -> None:
  """Fills in what `config` leaves open."""
  chosen = _configuration(config, plan)
  data, model, augment = config.data, config.model, config.augment
  data.axes = tuple(plan['axes'])
  data.spacing = tuple(chosen['spacing'])
  data.crop = True
  data.intensities = tuple(
    (str(c['scheme']), *(float(c[k]) for k in ('low', 'high', 'mean', 'std')))
    for c in plan['normalization']
  )
  config.batch_size = config.batch_size or chosen['batch_size']
  config.patch_size = tuple(config.patch_size or chosen['patch_size'])
  if not model.depth:
    with model.ignore_type():  # numbers for all stages become one for each
      model.depth = len(chosen['strides'])
      model.strides = _tuples(chosen['strides'])
      model.kernel_sizes = _tuples(chosen['kernel_sizes'])
      model.convs_per_stage = _tuples(chosen['convs_per_stage'])
      model.residual_blocks = _tuples(chosen['residual_blocks']) or 0
      model.features = model.features or _tuples(chosen['features'])
  if augment.rotation_degrees is None:
    augment.rotation_degrees = float(chosen['augment']['rotation_degrees'])
  if augment.in_plane is None:
    augment.in_plane = bool(chosen['augment']['in_plane'])
  if config.overlap.batch is None:
    config.overlap.batch = bool(chosen['batch_dice'])


def _configuration(config: ConfigDict, plan: dict[str, Any]) -> dict[str, Any]:
  known = plan['configurations']
  name = config.plan.configuration
  if not name:
    flat = len(config.patch_size) == 2 or '3d_fullres' not in known
    name = '2d' if flat else '3d_fullres'
  if name not in known:
    raise InputError(
      f'config.plan.configuration is {name!r}; this data set has '
      + ', '.join(known)
    )
  return known[name]


def _tuples(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  return value
