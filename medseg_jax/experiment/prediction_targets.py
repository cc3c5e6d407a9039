"""Which files prediction writes of an image, and where."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.formats import nifti
from medseg_jax.experiment.dicom_results import NIFTI, RTSTRUCT, SEG


class Job(NamedTuple):
  """One image to segment.

  Attributes:
    name: of the case.
    images: its files.
    target: the mask to write.
    probs_target: the file of its probabilities, or None.
    sample_target: that of the logits of some voxels, or None.
    entropy_target: that of the entropy, or None.
    apart_target: that of the members' disagreement, or None.
    seg_target: the mask as DICOM Segmentation, or None.
    rtstruct_target: the mask as RT Structure Set, or None.
  """

  name: str
  images: tuple[pathlib.Path, ...]
  target: pathlib.Path
  probs_target: pathlib.Path | None
  sample_target: pathlib.Path | None = None
  entropy_target: pathlib.Path | None = None
  apart_target: pathlib.Path | None = None
  seg_target: pathlib.Path | None = None
  rtstruct_target: pathlib.Path | None = None

  @property
  def targets(self) -> tuple[pathlib.Path, ...]:
    paths = [path for path in self[2:] if path is not None]
    return tuple(dict.fromkeys(paths))  # the mask may be DICOM itself


def job_of(
  name: str,
  images: tuple[pathlib.Path, ...],
  place: pathlib.Path,
  *,
  formats: Sequence[str],
  config: ConfigDict,
) -> Job:
  """Returns what is to be written of an image.

  One format is FOLDER/NAME.nii.gz, .nrrd, .mha or .dcm; of several NAME has a
  folder.

  Args:
    name: of the case.
    images: its files.
    place: of the mask, were it alone and no DICOM: a volume or a PNG.
    formats: see `dicom_results`; ('nifti',) for images, too.
    config: of the model, resolved.
  """
  several = len(formats) > 1
  volume = nifti.stem(place) != place.name
  stem = nifti.stem(place) if volume else place.stem
  suffix = place.name[len(stem) :]
  if several:
    place, stem = place.with_name(name) / f'mask{suffix}', 'mask'

  def dicom(kind: str) -> pathlib.Path | None:
    if kind not in formats:
      return None
    return place.with_name(f'{kind if several else stem}.dcm')

  def beside(word: str, asked: bool) -> pathlib.Path | None:
    return place.with_name(f'{stem}_{word}{suffix}') if asked else None

  seg, rtstruct = dicom(SEG), dicom(RTSTRUCT)
  inference = config.inference
  probs = None
  if inference.probabilities:  # of volumes
    probs = place.with_name(f'{stem}_probabilities.nii.gz')
  return Job(
    name=name,
    images=images,
    target=place if NIFTI in formats else seg or rtstruct or place,
    probs_target=probs,
    entropy_target=beside('entropy', inference.uncertainty),
    apart_target=beside('disagreement', inference.disagreement),
    seg_target=seg,
    rtstruct_target=rtstruct,
  )
