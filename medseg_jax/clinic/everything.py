"""All that writing a result takes, to be imported at one place, late."""

from medseg_jax.clinic import (
  codes,
  identity,
  measurements,
  mesh,
  mesh_files,
  numbers,
  page,
  repair,
  segmentation,
  structure_set,
  structured_report,
  viewer,
)
from medseg_jax.data.formats.dicom.reading import to_native

__all__ = (
  'codes', 'identity', 'measurements', 'mesh', 'mesh_files', 'numbers', 'page',
  'repair', 'segmentation', 'structure_set', 'structured_report', 'to_native',
  'viewer',
)  # fmt: skip
