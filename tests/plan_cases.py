"""Fingerprints and plans that several tests share."""

import numpy as np

from medseg_jax import planner
from medseg_jax.data.fingerprint import Fingerprint

CT = {
  'mean': 100.0,
  'median': 99.0,
  'std': 40.0,
  'min': -1000.0,
  'max': 2000.0,
  'percentile_00_5': -50.0,
  'percentile_99_5': 200.0,
}


def fingerprint(spacings, shapes, num_cases=None, *, channels=1, size=1.0):
  """Returns one of cases with these spacings and shapes, or all alike."""
  spacings, shapes = np.atleast_2d(spacings), np.atleast_2d(shapes)
  if num_cases:
    spacings = np.tile(spacings, (num_cases, 1))
    shapes = np.tile(shapes, (num_cases, 1))
  return Fingerprint(len(shapes), shapes, spacings, size, (CT,) * channels)


def make(found, num_classes=2, channels=('MRI',), **options):
  plan = planner.make_plan(
    found,
    dataset='a data set',
    num_classes=num_classes,
    channel_names=channels,
    **options,
  )
  planner.check_plan(plan)
  return plan


DATA = {
  'hippocampus': ((1, 1, 1), (36, 50, 35), 260, 3),
  'heart': ((1.37, 1.25, 1.25), (115, 320, 232), 20, 2),
  'spleen': ((1.6, 0.79, 0.79), (187, 512, 512), 41, 2),
  'brats': ((1, 1, 1), (138, 170, 138), 484, 4),
  'prostate': ((3.6, 0.625, 0.625), (20, 320, 319), 32, 3),
}


def known(name, **options):
  spacing, shape, num_cases, num_classes = DATA[name]
  return make(fingerprint(spacing, shape, num_cases), num_classes, **options)
