"""The plan of a run on volumes: read from plan.json, or made from the data."""

import concurrent.futures
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medseg_jax import planner
from medseg_jax.data.cache import num_workers
from medseg_jax.data.fingerprint import (
  Fingerprint,
  fingerprint_case,
  merge,
  samples_per_case,
)
from medseg_jax.data.sources.inspection import inspect_case, inspect_set
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.files import read_json, write_atomically
from medseg_jax.runtime.progress import Progress

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


def survey(opened: dict[str, VolumeSource]) -> Survey:
  """Reads every case of every split once, in parallel; returns what was found.

  Only the training cases have a part in the fingerprint.
  """
  fingerprints, errors, warnings = [], [], []
  for split, source in opened.items():
    inspections, found = _read_all(source, split)
    for lines, more in zip(
      (errors, warnings),
      inspect_set(source, inspections),
      strict=True,
    ):
      lines += more
    for inspection in inspections:
      errors += inspection.errors
      warnings += inspection.warnings
    if split == 'train':
      fingerprints = found
  fingerprint = None
  try:
    fingerprint = merge(fingerprints) if fingerprints else None
  except InputError as error:
    errors.append(f'{opened["train"].root}: {error}')
  # What concerns all splits is found with each.
  return Survey(
    fingerprint, list(dict.fromkeys(errors)), list(dict.fromkeys(warnings))
  )


def _read_all(source: VolumeSource, split: str):
  """Returns the inspection of every case, and the fingerprints of the good."""
  share = samples_per_case(len(source))

  def read_case(index):
    found = inspect_case(source, index)
    if found.case is None:
      return found, None
    fingerprint = fingerprint_case(
      found.case, num_samples=share, seed=FINGERPRINT_SEED
    )
    return found._replace(case=None), fingerprint

  inspections, fingerprints = [], []
  with (
    concurrent.futures.ThreadPoolExecutor(num_workers()) as pool,
    Progress(len(source), unit='case', desc=f'read {split}') as progress,
  ):
    for found, fingerprint in pool.map(read_case, range(len(source))):
      inspections.append(found)
      if fingerprint is not None:
        fingerprints.append(fingerprint)
      progress.advance()
  return inspections, fingerprints


def obtain(
  config: ConfigDict,
  opened: dict[str, VolumeSource],
  workdir: pathlib.Path,
) -> dict[str, Any]:
  """Returns the workdir's plan, making and writing it where there is none.

  A plan.json that is there is obeyed, whoever edited it.

  Raises:
    InputError: the data has errors, or the plan does not fit data and config.
  """
  path = workdir / 'plan.json'
  if path.exists():
    plan = read(path, config, opened['train'])
    print(f'plan      {path}', flush=True)
    return plan
  plan = make(config, opened)
  write_atomically(path, planner.to_json(plan).encode())
  print(f'plan      written to {path}', flush=True)
  return plan


def make(config: ConfigDict, opened: dict[str, VolumeSource]) -> dict[str, Any]:
  """Returns the plan for the data, after a survey; prints what is odd.

  Raises:
    InputError: the one error in the data; of several, each is printed.
  """
  found, source = survey(opened), opened['train']
  for line in found.warnings:
    print(f'warning   {line}', flush=True)
  if len(found.errors) == 1:
    raise InputError(found.errors[0])
  for line in found.errors:
    print(f'error     {line}', flush=True)
  if found.errors:
    raise InputError(
      f'{source.root}: {len(found.errors)} errors in the data, listed above'
    )
  try:
    return planner.make_plan(
      found.fingerprint,
      dataset=source.root.name,
      num_classes=_num_outputs(source),
      channel_names=source.channel_names,
      preset=config.plan.preset,
      memory_gb=config.plan.memory_gb,
    )
  except ValueError as error:
    raise InputError(f'config.plan: {error}') from error


def read(
  path: pathlib.Path, config: ConfigDict, source: VolumeSource
) -> dict[str, Any]:
  """Returns a plan, as written or as edited since.

  Raises:
    InputError: it is no JSON, makes no sense, or is one for other data or
      settings.
  """
  plan = read_json(path, 'as --mode=plan writes it')
  try:
    planner.check_plan(plan)
  except ValueError as error:
    raise InputError(f'{path}: {error}') from error
  facts = {
    'dataset': source.root.name,
    'channel_names': list(source.channel_names),
    'num_classes': _num_outputs(source),
  }
  for key, value in facts.items():
    if plan[key] != value:
      raise InputError(
        f'{path} has the {key} {plan[key]!r}, but {source.root} has {value!r}; '
        'use another --workdir, or move the plan away to plan anew'
      )
  asked = {'preset': config.plan.preset}
  if config.plan.memory_gb:
    asked['memory_gb'] = config.plan.memory_gb
  for key, value in asked.items():
    if plan[key] != value:
      raise InputError(
        f'config.plan.{key} is {value}, but {path} was made with {plan[key]}; '
        'use another --workdir, or move the plan away to plan anew'
      )
  return plan


def _num_outputs(source: VolumeSource) -> int:
  return len(source.regions) or len(source.classes)


def apply(config: ConfigDict, plan: dict[str, Any]) -> None:
  """Fills in what `config` leaves open."""
  chosen = _configuration(config, plan)
  data, model, augment = config.data, config.model, config.augment
  for key in ('normalize', 'window', 'resize', 'axes', 'intensities'):
    if data[key]:
      raise InputError(
        f'config.data.{key} is {data[key]!r}; for volumes the plan says that: '
        'edit plan.json in the workdir (--mode=plan makes it)'
      )
  data.axes = tuple(plan['axes'])
  data.spacing = tuple(data.spacing or chosen['spacing'])
  data.crop = True
  data.intensities = tuple(
    (str(c['scheme']), *(float(c[k]) for k in ('low', 'high', 'mean', 'std')))
    for c in plan['normalization']
  )
  config.batch_size = config.batch_size or chosen['batch_size']
  rotation = chosen['augment']
  if config.patch_size:
    rotation = planner.plan_rotation(tuple(config.patch_size))
  config.patch_size = tuple(config.patch_size or chosen['patch_size'])
  if model.depth and not model.features:
    raise InputError(
      f'config.model.depth is {model.depth}, but features is left to the plan; '
      'set features, strides and kernel_sizes too, or edit plan.json'
    )
  if not model.depth:
    with model.ignore_type():  # numbers for all stages become one for each
      model.depth = len(chosen['strides'])
      model.strides = _tuples(chosen['strides'])
      model.kernel_sizes = _tuples(chosen['kernel_sizes'])
      model.convs_per_stage = _tuples(chosen['convs_per_stage'])
      model.residual_blocks = _tuples(chosen['residual_blocks']) or 0
      model.features = model.features or _tuples(chosen['features'])
  if augment.rotation_degrees is None:
    augment.rotation_degrees = float(rotation['rotation_degrees'])
  if augment.in_plane is None:
    augment.in_plane = bool(rotation['in_plane'])
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
