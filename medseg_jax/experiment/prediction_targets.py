"""Which files prediction writes of an image, and where."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.formats import nifti
from medseg_jax.experiment.clinic_formats import (
  FILES,
  MEASUREMENTS,
  MESH,
  NIFTI,
  REPORT,
  SEG,
  SLICE,
  library,
)

MASK, PROBS, SAMPLE = 'mask', 'probabilities', 'sample'
ENTROPY, APART = 'entropy', 'disagreement'


class Target(NamedTuple):
  """One file that is written of an image.

  Attributes:
    kind: `MASK` and so on, or one of `clinic_formats`.
    path: of the file.
    index: of the class or of the image's file that it is of, where it is of
      one alone.
  """

  kind: str
  path: pathlib.Path
  index: int = 0


class Job(NamedTuple):
  """One image to segment.

  Attributes:
    name: of the case.
    images: its files.
    targets: what to write: the mask first, of whatever format, then what else
      is asked for.
  """

  name: str
  images: tuple[pathlib.Path, ...]
  targets: tuple[Target, ...]

  @property
  def target(self) -> pathlib.Path:
    """The file of the mask: with it all is there."""
    return self.targets[0].path

  @property
  def shown(self) -> str:
    """The name as UTF-8 can have it, which not all names of files are."""
    return self.name.encode('utf-8', 'backslashreplace').decode()


def job_of(
  name: str,
  images: tuple[pathlib.Path, ...],
  place: pathlib.Path,
  *,
  formats: Sequence[str],
  config: ConfigDict,
  repaired: bool = False,
) -> Job:
  """Returns what is to be written of an image.

  One format is FOLDER/NAME.nii.gz, .nrrd, .mha or .dcm; of several NAME has a
  folder.

  Args:
    name: of the case.
    images: its files.
    place: of the mask, were it alone and a plain image: a volume or a PNG.
    formats: see `clinic_formats`; ('nifti',) for images, too.
    config: of the model, resolved.
    repaired: whether DICOM objects refer to a copy of the images, to be made.
  """
  several = len(formats) > 1
  volume = nifti.stem(place) != place.name
  stem = nifti.stem(place) if volume else place.stem
  suffix = place.name[len(stem) :]
  if several:
    place, stem = place.with_name(name) / f'mask{suffix}', 'mask'
  targets = []
  if NIFTI in formats:
    targets.append(Target(MASK, place))
  for kind, file in (
    pair for of in formats for pair in FILES.get(of, {}).items()
  ):
    own = file if several else f'{stem}{pathlib.PurePath(file).suffix}'
    targets.append(Target(kind, place.with_name(own)))
  if MESH in formats:
    classes = tuple(config.data.classes)[1:]
    files = library(formats).mesh_files.file_names(classes)
    for i, file in enumerate(files):
      own = file if several else f'{stem}_{file}'
      targets.append(Target(MESH, place.with_name(own), index=i + 1))
  if {SEG, REPORT} <= set(formats):  # it refers to the segments
    path = place.with_name('measurements.dcm')
    targets.append(Target(MEASUREMENTS, path))
  if repaired:
    folder = place.with_name('series' if several else f'{stem}_series')
    targets += [
      Target(SLICE, folder / f'{i + 1:04d}.dcm', index=i)
      for i in range(len(images))
    ]
  inference = config.inference
  if inference.probabilities:  # of volumes
    path = place.with_name(f'{stem}_probabilities.nii.gz')
    targets.append(Target(PROBS, path))
  for kind, asked in (
    (ENTROPY, inference.uncertainty),
    (APART, inference.disagreement),
  ):
    if asked:
      targets.append(Target(kind, place.with_name(f'{stem}_{kind}{suffix}')))
  return Job(name, images, tuple(targets))
