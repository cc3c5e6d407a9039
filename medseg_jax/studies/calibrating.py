"""Learns from held-out cases how far a model's numbers can be believed.

Logits of some voxels of each held-out case are kept beside its mask, when it is
predicted: from those of all folds a temperature is fitted, and from the masks a
band around each class's volume, of cases without ignored voxels. Both are
learnt on single folds, each on what it has not seen; but the post-processing of
the masks was chosen on all of them. The ensemble of all folds averages their
logits; no case is left on which its own temperature could be told, and its
errors are rather smaller.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from medseg_jax import calibration, postprocessing
from medseg_jax.calibration import Scaling
from medseg_jax.experiment import calibrated, sampled_voxels
from medseg_jax.losses import uses_sigmoid
from medseg_jax.report.panels import save_png
from medseg_jax.report.reliability_plot import reliability_plot
from medseg_jax.runtime import multihost, stop_signal
from medseg_jax.runtime.progress import Progress
from medseg_jax.studies.held_out_masks import HeldOutMask

MOST_VALUES = 2**23  # logits of all cases; fitting takes up to 160 bytes each
_SURE = 104.0  # a logit in the place of infinity: exp(-104) is 0 in float32


class _Voxels(NamedTuple):
  """Events of all held-out cases, one a row.

  Attributes:
    logits: `[N, K]`.
    labels: int `[N]` of classes, bool `[N, K]` of what is decided by itself.
    folds: `[N]`.
  """

  logits: np.ndarray
  labels: np.ndarray
  folds: np.ndarray


def learn(
  masks: Sequence[HeldOutMask],
  config: ConfigDict,
  steps: Sequence[Any],
  picture: pathlib.Path,
) -> dict[str, Any]:
  """Returns temperature, errors and volume bands, as JSON holds them.

  Args:
    masks: of each case one, with its sample.
    config: resolved.
    steps: of post-processing, which the masks of the ensemble get.
    picture: the file of the reliability plot; none is written where the voxels
      of fewer than two folds are annotated.
  """

  def on_primary() -> dict[str, Any]:
    unit = calibrated.unit_of(config.data.source)
    samples, predicted, measured, folds = [], [], [], []
    with Progress(len(masks), unit='case', desc='calibrate') as progress:
      for mask in masks:
        stop_signal.check()
        case = mask.read_case()
        sample = sampled_voxels.read(mask.sample_path)
        # Of very many cases or classes every other voxel, or fewer.
        step = -(-len(masks) * sample.logits.size // MOST_VALUES) or 1
        points, logits = (part[::step] for part in sample)
        labels = case.label[tuple(points.T)]
        there = labels >= 0
        of_fold = np.full(np.count_nonzero(there), mask.fold)
        samples.append((logits[there], labels[there], of_fold))
        progress.advance()
        if (case.label < 0).any():
          continue  # nobody knows its whole volume
        folds.append(mask.fold)
        size = calibrated.voxel_size(case.spacing, unit)
        label = postprocessing.apply(mask.read_mask(), steps=steps)
        for found, array in ((predicted, label), (measured, case.label)):
          counts = calibrated.class_counts(array, len(config.data.classes))
          volumes = calibrated.volumes_of(counts.tolist(), config.data)
          found.append({name: n * size for name, n in volumes.items()})
        del case, label
    voxels = _Voxels(
      *(np.concatenate(part) for part in zip(*samples, strict=True))
    )
    del samples
    nothing = [0] * len(config.data.classes)
    names = calibrated.volumes_of(nothing, config.data)
    return {
      **_learn_temperature(voxels, config, picture),
      'volumes': {
        'unit': unit,
        'root': 3 if unit == calibrated.ML else 2,
        'coverage': calibration.COVERAGE,
        'classes': {
          name: _learn_band(
            np.array([volumes[name] for volumes in predicted]),
            np.array([volumes[name] for volumes in measured]),
            np.array(folds),
            root=3 if unit == calibrated.ML else 2,
          )
          for name in names
        },
      },
    }

  return multihost.from_primary(on_primary)


def describe(learnt: Mapping[str, Any]) -> list[str]:
  """Returns lines for people on what `learn` returned."""
  error = learnt['expected_error']
  if error is None:
    lines = ['temperature 1 is kept: too few voxels of two folds are annotated']
  else:
    change = f'from {error["before"]:.4f} to {error["after"]:.4f}'
    fitted = ', '.join(f'{value:.3f}' for value in learnt['fitted'])
    lines = [
      f'temperature {fitted}: on folds that it was not fitted on the expected '
      f'calibration error falls {change}'
      if error['after'] < error['before']
      else f'temperature 1 is kept: with {fitted} the expected calibration '
      f'error would go {change} on folds that it was not fitted on'
    ]
  volumes = learnt['volumes']
  shares = {
    name: band['left_out_coverage'] for name, band in volumes['classes'].items()
  }
  line = f'volumes   {volumes["coverage"]:.0%} intervals hold the true one of '
  line += 'left-out folds in: ' + ', '.join(
    f'{name} {"-" if share is None else f"{share:.1%}"}'
    for name, share in shares.items()
  )
  if None in shares.values():
    line += ' (too few cases to tell)'
  lines.append(line)
  return lines


def _learn_temperature(
  voxels: _Voxels, config: ConfigDict, picture: pathlib.Path
) -> dict[str, Any]:
  """Returns temperature and errors, and draws the reliability plot."""
  names = tuple(config.data.classes)
  logits, labels, folds = voxels
  logits = np.nan_to_num(logits, posinf=_SURE, neginf=-_SURE)
  if config.data.regions:
    names = tuple(name for name, _ in config.data.regions)
    labels = np.stack(
      [np.isin(labels, of) for _, of in config.data.regions], -1
    )
  elif uses_sigmoid(config.loss):
    names = names[1:]
    logits = logits[:, 1:]  # the background's is 0
    labels = labels[:, None] == np.arange(1, len(names) + 1)
  result = {'num_voxels': len(logits), 'num_folds': len(np.unique(folds))}
  if result['num_folds'] < 2:
    picture.unlink(missing_ok=True)  # of an earlier run
    nothing = {'fitted': None, 'expected_error': None, 'class_wise_error': None}
    return {**result, 'temperature': [1.0], **nothing}
  if labels.ndim == 2 and not config.data.regions:
    scaling = _one_for_all(logits, labels, folds)
  else:
    scaling = calibration.choose_temperature(logits, labels, folds)
  before = calibration.scale(logits, (1.0,), regions=labels.ndim == 2)
  after = scaling.probs_after
  errors = [calibration.class_wise_error(p, labels) for p in (before, after)]
  _draw(names, before, after, labels, scaling, picture)
  return {
    **result,
    'temperature': list(scaling.temperature),
    'fitted': list(scaling.fitted),
    'expected_error': {
      'before': scaling.error_before,
      'after': scaling.error_after,
    },
    'class_wise_error': {
      name: {'before': float(a), 'after': float(b)}
      for name, a, b in zip(names, *errors, strict=True)
    },
  }


def _one_for_all(
  logits: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> Scaling:
  """Returns one temperature of sigmoid outputs that exclude each other.

  The largest logit wins, so they may not have one each.
  """
  repeated = np.repeat(folds, logits.shape[1])
  found = calibration.choose_temperature(
    logits.reshape(-1, 1), labels.reshape(-1, 1), repeated
  )
  return found._replace(probs_after=found.probs_after.reshape(logits.shape))


def _draw(
  names: Sequence[str],
  before: np.ndarray,
  after: np.ndarray,
  labels: np.ndarray,
  scaling: Scaling,
  picture: pathlib.Path,
) -> None:
  curves = {}
  for k, name in enumerate(names):
    hits = labels[:, k] if labels.ndim == 2 else labels == k
    curves[name] = tuple(
      calibration.reliability(probs[:, k], hits)[1:]
      for probs in (before, after)
    )
  fitted = ', '.join(f'{value:.2f}' for value in scaling.fitted)
  kept = scaling.temperature == scaling.fitted
  title = f'temperature {fitted}{"" if kept else ", not used"}: error '
  title += f'{scaling.error_before:.4f} before, {scaling.error_after:.4f} after'
  save_png(picture, reliability_plot(curves, title=title))


def _learn_band(
  predicted: np.ndarray, measured: np.ndarray, folds: np.ndarray, *, root: int
) -> dict[str, Any]:
  """Returns the band of a class's volume `[n]`, of which each case has one."""
  band = calibration.fit_band(predicted, measured, root=root)
  coverage = None
  if len(np.unique(folds)) > 1:
    coverage = calibration.left_out_coverage(
      predicted, measured, folds, root=root
    )
  return {
    'low': band.low if math.isfinite(band.low) else None,
    'high': band.high if math.isfinite(band.high) else None,
    'num_cases': band.num_cases,
    'left_out_coverage': coverage,
  }
