"""One reading of every case: what is wrong or odd, and the fingerprint."""

import concurrent.futures
import contextlib
import os
from typing import NamedTuple

from medseg_jax.data.cache import num_workers
from medseg_jax.data.fingerprint import (
  Fingerprint,
  fingerprint_case,
  merge,
  samples_per_case,
)
from medseg_jax.data.sources.inspection import (
  describe_classes,
  inspect_case,
  inspect_set,
)
from medseg_jax.data.sources.volumes import VolumeSource
from medseg_jax.experiment.case_digests import remember
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.progress import Progress

FINGERPRINT_SEED = 1234  # of the sample of foreground intensities


class Survey(NamedTuple):
  """What one reading of every training case tells.

  Attributes:
    fingerprint: None where no case could be read.
    errors: what has to be mended, one line each.
    warnings: what looks odd, one line each.
    classes: how much there is of each class of the training, one line each.
  """

  fingerprint: Fingerprint | None
  errors: list[str]
  warnings: list[str]
  classes: list[str]


def survey(
  opened: dict[str, VolumeSource], *, root: str | os.PathLike = ''
) -> Survey:
  """Reads every case of every split once, in parallel; returns what was found.

  Cases stay in memory where there is room, for the preprocessing, and the
  digests of their images are remembered. Only the training cases have a part in
  the fingerprint.

  Args:
    opened: the cases by split.
    root: folder of all caches; '' is the user's cache folder.
  """
  fingerprints, errors, warnings, classes = [], [], [], []
  for split, source in opened.items():
    inspections, found = _read_all(source, split, root)
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
      classes = describe_classes(source, inspections)
  fingerprint = None
  try:
    fingerprint = merge(fingerprints) if fingerprints else None
  except InputError as error:
    errors.append(f'{opened["train"].root}: {error}')
  # What concerns all splits is found with each.
  return Survey(
    fingerprint,
    list(dict.fromkeys(errors)),
    list(dict.fromkeys(warnings)),
    classes,
  )


def _read_all(source: VolumeSource, split: str, root: str | os.PathLike):
  """Returns the inspection of every case, and the fingerprints of the good."""
  share, digests = samples_per_case(len(source)), {}

  def read_case(index):
    stop_signal.check()  # here too: what waits for a thread is not to begin
    key = ''
    with contextlib.suppress(InputError):  # a file is gone: told below
      key = source.case_key(index)
    found = inspect_case(source, index)
    if key and found.digest:
      digests[key] = found.digest
    if found.case is None:
      return found, None
    fingerprint = fingerprint_case(
      found.case, num_samples=share, seed=FINGERPRINT_SEED
    )
    source.already_read.keep(key, found.case)
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
  remember(digests, root=root)
  return inspections, fingerprints
