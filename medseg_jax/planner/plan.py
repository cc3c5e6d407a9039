"""From the fingerprint of a data set to its plan.

The rules of nnU-Net (Isensee et al., Nature Methods 2021) for spacing, order of
the axes, normalisation and the choice of configurations.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from medseg_jax.planner import notes
from medseg_jax.planner.topology import (
  PRESETS,
  Network,
  fit_network,
  stage_blocks,
  stage_features,
)

# A file's spacing or an image's shape is anisotropic above this factor.
ANISOTROPY = 3
# A 2-D patch longer than this times its width is turned by small angles only.
ELONGATION = 1.5
# z-scores stay inside the mask of what is not zero where the crop to its box
# takes away more than a quarter of the median case.
NONZERO_RELATIVE_SIZE = 0.75
# A patch with a smaller share of the median case asks for a low resolution,
# which is worth while where it has half the voxels or less.
LOWRES_COVERAGE = 0.25
LOWRES_STEP = 1.03
LOWRES_VOXELS = 2
# Schemes of the channel names that name one, in lower case; z-score otherwise.
SCHEME_OF_NAME = {
  'ct': 'ct',
  'rgb_to_0_1': 'scale',
  'r': 'scale',
  'g': 'scale',
  'b': 'scale',
  'nonorm': 'none',
}


def make_plan(
  fingerprint: Any,
  *,
  dataset: str,
  num_classes: int,
  channel_names: Sequence[str],
  preset: str = 'plain',
  memory_gb: float = 0.0,
) -> dict:
  """Returns the plan, a dict of what JSON can hold, that `check_plan` accepts.

  Args:
    fingerprint: `medseg_jax.data.fingerprint.Fingerprint` of volumes: its
      num_cases, shapes `[N, 3]`, spacings `[N, 3]` in mm, relative_size and
      intensities.
    dataset: name of the data set.
    num_classes: with the background.
    channel_names: 'CT', 'rgb_to_0_1', 'R', 'G', 'B' and 'noNorm' choose the
      normalisation, in any case of letters.
    preset: 'plain', 'residual_m', 'residual_l' or 'residual_xl'.
    memory_gb: GB of the accelerator to fill; 0 for the preset's own (8, 8, 24
      and 40).

  Raises:
    ValueError: an argument that is not allowed, or a CT whose foreground is
      constant; the message is one line.
  """
  _check_arguments(fingerprint, channel_names, preset, memory_gb)
  kind = PRESETS[preset]
  memory_gb = float(memory_gb) or kind.memory_gb
  shapes = np.asarray(fingerprint.shapes, np.float64)
  spacings = np.asarray(fingerprint.spacings, np.float64)
  target = target_spacing(shapes, spacings)
  coarsest = int(np.argmax(target))
  axes = [coarsest] + [a for a in range(3) if a != coarsest]
  resampled = np.maximum(np.round(spacings / target * shapes), 1)

  def fit(spacing, median_shape, voxels):
    return fit_network(
      _floats(spacing),
      _floats(median_shape),
      dataset_voxels=float(voxels) * fingerprint.num_cases,
      num_classes=num_classes,
      preset=kind,
      memory_gb=memory_gb,
    )

  networks, lowres_note = _networks(
    target[axes], np.median(resampled, 0)[axes], fit
  )
  normalization = [
    _normalization(name, intensities, fingerprint.relative_size)
    for name, intensities in zip(
      channel_names, fingerprint.intensities, strict=True
    )
  ]
  plan_notes = {
    'axes': notes.axes(axes, target),
    'normalization': notes.normalization(
      channel_names, normalization, fingerprint.relative_size
    ),
    'spacing': notes.spacing(target, np.median(spacings, 0)),
    '3d_lowres': lowres_note,
  }
  batch_dice = {n: n == '2d' or '3d_lowres' in networks for n in networks}
  for name, (spacing, median_shape, network) in networks.items():
    plan_notes |= notes.network(
      name, spacing, median_shape, network, kind, memory_gb
    )
    plan_notes[f'{name}.batch_dice'] = notes.batch_dice(
      name, over_batch=batch_dice[name]
    )
  return {
    'dataset': dataset,
    'preset': preset,
    'memory_gb': memory_gb,
    'num_classes': num_classes,
    'channel_names': list(channel_names),
    'fingerprint': {
      'num_cases': fingerprint.num_cases,
      'median_shape': _numbers(np.median(shapes, 0)),
      'median_spacing': _floats(np.median(spacings, 0)),
      'relative_size': float(fingerprint.relative_size),
      'intensities': [
        {k: float(v) for k, v in channel.items()}
        for channel in fingerprint.intensities
      ],
    },
    'axes': axes,
    'normalization': normalization,
    'configurations': {
      name: _configuration(
        *network, residual=kind.residual, batch_dice=batch_dice[name]
      )
      for name, network in networks.items()
    },
    'notes': plan_notes,
  }


def _check_arguments(
  fingerprint: Any, channel_names: Sequence[str], preset: str, memory_gb: float
) -> None:
  shapes = np.asarray(fingerprint.shapes)
  spacings = np.asarray(fingerprint.spacings)
  if preset not in PRESETS:
    raise ValueError(f'preset is {preset!r}; allowed are ' + ', '.join(PRESETS))
  if not 0 <= memory_gb < math.inf:
    raise ValueError(
      f'memory_gb is {memory_gb:g}; allowed are GB above 0, or 0 for the '
      f'{PRESETS[preset].memory_gb:g} GB of preset {preset}'
    )
  if shapes.shape != spacings.shape or shapes.shape[1:] != (3,):
    raise ValueError(
      f'shapes {shapes.shape} and spacings {spacings.shape} of a fingerprint '
      'of volumes are [N, 3]'
    )
  if not (spacings > 0).all() or not np.isfinite(spacings).all():
    raise ValueError('the spacings of a fingerprint are above 0 and finite')
  if len(channel_names) != len(fingerprint.intensities):
    raise ValueError(
      f'{len(channel_names)} channel names for a fingerprint of '
      f'{len(fingerprint.intensities)} channels'
    )


def target_spacing(shapes: np.ndarray, spacings: np.ndarray) -> np.ndarray:
  """Returns the spacing to resample to, mm per axis of the files.

  The median; along an axis that is coarse and has few slices the 10th
  percentile, so that the better part of the cases loses no detail.

  Args:
    shapes: `[N, R]` voxels.
    spacings: `[N, R]` mm.
  """
  target = np.median(spacings, 0)
  size = np.median(shapes, 0)
  worst = int(np.argmax(target))
  others = [a for a in range(len(target)) if a != worst]
  finer = target[others].max()
  if (
    target[worst] > ANISOTROPY * finer
    and size[worst] * ANISOTROPY < size[others].min()
  ):
    low = np.percentile(spacings[:, worst], 10)
    # It remains the coarsest axis, by a hair's breadth.
    target[worst] = low if low >= finer else finer + 1e-5
  return target


def _networks(
  spacing: np.ndarray,
  median_shape: np.ndarray,
  fit: Callable[[np.ndarray, np.ndarray, float], Network],
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray, Network]], str]:
  """Returns the configurations that apply, and the note on the low resolution.

  Args:
    spacing: `[3]` mm, coarsest axis first.
    median_shape: `[3]` of the cases at that spacing.
    fit: (spacing, median shape, voxels of a median case) to a network.

  Returns:
    By name the spacing, median shape and network of each.
  """
  voxels = median_shape.prod()
  flat = spacing[1:], median_shape[1:]
  networks = {'2d': (*flat, fit(*flat, voxels))}
  if median_shape[0] == 1:
    return networks, 'none: the median case is one slice, for the 2-D plan only'
  network = fit(spacing, median_shape, voxels)
  fullres = {'3d_fullres': (spacing, median_shape, network)}
  networks = fullres | networks
  lowres = _lowres(spacing, median_shape, network, fit)
  factor = voxels / lowres[1].prod() if lowres else 1.0
  if factor >= LOWRES_VOXELS:
    networks['3d_lowres'] = lowres[0], np.round(lowres[1]), lowres[2]
  note = notes.lowres(
    math.prod(network.topology.patch_size) / voxels,
    factor,
    LOWRES_COVERAGE,
    kept='3d_lowres' in networks,
  )
  return networks, note


def _lowres(
  spacing: np.ndarray,
  median_shape: np.ndarray,
  network: Network,
  fit: Callable[[np.ndarray, np.ndarray, float], Network],
) -> tuple[np.ndarray, np.ndarray, Network] | None:
  """Returns spacing, exact median shape and network of the low resolution.

  None where the patch at full resolution covers enough of the median case.
  """
  coarse, shape = spacing, median_shape
  while math.prod(network.topology.patch_size) / shape.prod() < LOWRES_COVERAGE:
    fine = coarse.max() / coarse > 2
    # First the fine axes catch up with the coarse ones.
    grows = fine if fine.any() else np.full(len(coarse), True)
    coarse = np.where(grows, coarse * LOWRES_STEP, coarse)
    shape = spacing / coarse * median_shape
    network = fit(coarse, np.round(shape), shape.prod())
  return None if coarse is spacing else (coarse, shape, network)


def _normalization(name: str, intensities: dict, relative_size: float) -> dict:
  scheme = SCHEME_OF_NAME.get(name.strip().lower(), 'zscore')
  if scheme == 'zscore' and relative_size < NONZERO_RELATIVE_SIZE:
    scheme = 'zscore_nonzero'
  entry = {'scheme': scheme, 'low': 0.0, 'high': 0.0, 'mean': 0.0, 'std': 1.0}
  if scheme == 'ct':
    low, high = intensities['percentile_00_5'], intensities['percentile_99_5']
    if not low < high:
      raise ValueError(
        f'channel {name}: its foreground is {low:g} from the 0.5 to the 99.5 '
        'percentile; a CT needs different intensities, and a channel of '
        'constants another name'
      )
    entry |= {
      'low': float(low),
      'high': float(high),
      'mean': float(intensities['mean']),
      'std': float(intensities['std']),
    }
  return entry


def _configuration(
  spacing: np.ndarray,
  median_shape: np.ndarray,
  network: Network,
  *,
  residual: bool,
  batch_dice: bool,
) -> dict:
  topology = network.topology
  rank, num_stages = len(spacing), len(topology.strides)
  patch = topology.patch_size
  return {
    'spacing': _floats(spacing),
    'median_shape': _numbers(median_shape),
    'patch_size': list(patch),
    'batch_size': network.batch_size,
    'features': list(stage_features(num_stages, rank)),
    'strides': [list(s) for s in topology.strides],
    'kernel_sizes': [list(k) for k in topology.kernel_sizes],
    'convs_per_stage': 1 if residual else 2,
    'residual_blocks': list(stage_blocks(num_stages)) if residual else [],
    'batch_dice': batch_dice,
    'augment': plan_rotation(patch),
  }


def plan_rotation(patch_size: Sequence[int]) -> dict[str, float | bool]:
  """Returns the largest angle of the augmentation, and whether in plane only.

  A patch much thinner than wide is turned about its thin axis alone. A square
  one may come to lie on its side; a long one would reach far beyond what was
  read.
  """
  flat = len(patch_size) == 2
  in_plane = not flat and max(patch_size) / patch_size[0] > ANISOTROPY
  degrees = 180.0 if in_plane or flat else 30.0
  if flat and max(patch_size) / min(patch_size) > ELONGATION:
    degrees = 15.0
  return {'rotation_degrees': degrees, 'in_plane': in_plane}


def _floats(values: Iterable[float]) -> list[float]:
  return [float(v) for v in values]


def _numbers(values: Iterable[float]) -> list[int | float]:
  """Returns ints, and floats where the median lies between two."""
  return [int(v) if v == int(v) else float(v) for v in values]
