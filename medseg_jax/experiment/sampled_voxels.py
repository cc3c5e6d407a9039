"""Logits of some voxels of a held-out case, kept in a file beside its mask."""

import hashlib
import pathlib

import numpy as np

from medseg_jax.data.case import Case
from medseg_jax.inference.own_grid import Sample
from medseg_jax.runtime.errors import InputError

NUM_VOXELS = 4096  # of a case
_ROUNDS = 64  # of drawing where most voxels are ignored


def draw(case: Case, box: tuple[slice, ...], *, seed: int) -> np.ndarray:
  """Returns the voxels of a case to keep the logits of, int `[n, R]`.

  Each of the box is as likely as any other, but for those that are ignored. A
  function of the case's name, its label and the seed; all of them where they
  are no more than `NUM_VOXELS`.

  Args:
    case: with its label.
    box: what the network sees of it.
    seed: of the run.
  """
  label = case.label[box]
  corner = [s.indices(n)[0] for s, n in zip(box, case.label.shape, strict=True)]
  if label.size <= NUM_VOXELS:
    return np.argwhere(label >= 0) + corner
  key = hashlib.sha256(
    f'{seed} {case.name}'.encode('utf-8', 'backslashreplace')
  )
  rng = np.random.default_rng(list(key.digest()))
  flat = np.zeros(0, np.int64)
  for _ in range(_ROUNDS):
    drawn = rng.integers(label.size, size=NUM_VOXELS)
    places = np.unravel_index(drawn, label.shape)
    flat = np.concatenate([flat, drawn[label[places] >= 0]])
    if len(flat) >= NUM_VOXELS:
      break
  flat = np.sort(flat[:NUM_VOXELS])
  return np.stack(np.unravel_index(flat, label.shape), -1) + corner


def write(path: pathlib.Path, sample: Sample) -> None:
  """Writes a sample; the same one gives the same bytes."""
  with open(path, 'wb') as file:
    np.savez(file, points=sample.points, logits=sample.logits)


def read(path: pathlib.Path) -> Sample:
  """Returns what `write` wrote.

  Raises:
    InputError: it is something else.
  """
  try:
    with np.load(path) as file:
      return Sample(file['points'], file['logits'])
  except Exception as error:
    raise InputError(
      f'{path}: no logits of voxels as --mode=crossval keeps them there; '
      'remove it, and it is made anew'
    ) from error
