"""What prediction has to do: for which images, and how these are read."""

import collections
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from medseg_jax.data.case import VOLUMES, Case
from medseg_jax.data.formats import images, nifti
from medseg_jax.data.formats.images import name_some
from medseg_jax.data.formats.volume_formats import WRITTEN, mask_suffix
from medseg_jax.data.sources import dicom_series, to_predict, volume_geometry
from medseg_jax.data.sources.volume_files import Failure, VolumeFiles
from medseg_jax.experiment import clinic_formats
from medseg_jax.experiment.clinic_formats import NIFTI, SLICE
from medseg_jax.experiment.prediction_record import Maker, Record
from medseg_jax.experiment.prediction_targets import Job, job_of
from medseg_jax.runtime.errors import InputError

PICTURES = 'panels'  # folder beside the masks
VOLUME_TABLE = 'volumes.csv'  # file beside the masks, see `volume_table`
_LISTS = (to_predict.MASK_LIST, to_predict.SENT_LIST, VOLUME_TABLE)


class Work(NamedTuple):
  """All that a prediction has to do.

  Attributes:
    folder: of the masks.
    jobs: one for each image.
    failures: what cannot be segmented.
    unused: what else lies beside the images.
  """

  folder: pathlib.Path
  jobs: tuple[Job, ...]
  failures: tuple[Failure, ...]
  unused: tuple[str, ...]


def plan(
  config: ConfigDict,
  input_path: pathlib.Path,
  output: pathlib.Path,
  series: str = '',
  formats: Sequence[str] = (NIFTI,),
) -> Work:
  """Returns what there is to do.

  Args:
    config: of the model, resolved.
    input_path: a folder of images or volumes, or one file.
    output: the folder of the masks; of one file also that of the mask.
    series: which of several DICOM series, see `dicom_series.find`.
    formats: of the masks of volumes, see `clinic_formats`; of several each case
      has a folder.

  Raises:
    InputError: nothing to read, or no place for masks.
  """
  volumes = config.data.source in VOLUMES
  if config.inference.probabilities and not volumes:
    raise InputError(
      'config.inference.probabilities is True; allowed is False for images, as '
      'PNG holds no probabilities'
    )
  suffixes = WRITTEN if volumes else ('.png',)
  plain = tuple(formats) == (NIFTI,)
  if not plain and not volumes:
    raise InputError(
      f'--formats={",".join(formats)}, but the model is of 2-D images, whose '
      'masks are PNG; leave it out'
    )
  clinic_formats.check_config(config, formats)
  file = plain and _wanted_file(output, input_path, suffixes)
  folder = output.parent if file else output
  leave_out = [folder]
  if input_path.is_dir() and folder.resolve() == input_path.resolve():
    # Masks beside their images: what an earlier call wrote is no input.
    made = (*_LISTS, PICTURES, *Record(folder).lines)
    leave_out = [input_path / name for name in made]
  found = to_predict.find(
    input_path,
    channels=config.data.channels if volumes else None,
    leave_out=leave_out,
    series=series,
  )
  jobs, failures = [], [*found.failures]
  for case in found.cases:
    clinic_formats.check(case.images, formats)
    suffix = mask_suffix(case.images[0]) if volumes else suffixes[0]
    place = output if file else folder / f'{case.name}{suffix}'
    reason = clinic_formats.missing(case.images, formats)
    repaired = bool(reason and config.clinic.repair_identity)
    if repaired:
      reason = clinic_formats.missing(case.images, formats, repaired=True)
    job = job_of(
      case.name,
      case.images,
      place,
      formats=formats,
      config=config,
      repaired=repaired and not reason,
    )
    if reason:
      failures.append(Failure(case.name, reason))
      rest = [t for t in job.targets if t.kind not in clinic_formats.OF_SERIES]
      job = job._replace(targets=tuple(rest))
    if set(formats) - set(clinic_formats.OF_SERIES) or not reason:
      jobs.append(job)
  _check_apart(jobs, found.cases, folder)
  return Work(folder, tuple(jobs), tuple(failures), found.unused)


def find_oddities(
  jobs: Sequence[Job | VolumeFiles], data: ConfigDict
) -> Iterator[str]:
  """Yields a line for each thing at odds in the headers of volumes.

  Args:
    jobs: any.
    data: section of the model's config.
  """
  if data.source not in VOLUMES:
    return
  for job in jobs:
    if dicom_series.is_dicom(job.images[0]):
      yield from dicom_series.find_oddities(job.images, **_forced(data))
      copies = [t.path for t in getattr(job, 'targets', ()) if t.kind == SLICE]
      if copies:
        yield (
          f'{job.images[0].parent}: the series lacks what DICOM objects refer '
          f'to; they refer to its copy in {copies[0].parent}'
        )
      continue
    files = VolumeFiles(job.name, job.images)
    yield from volume_geometry.find_oddities(files, data.grid_tolerance)


def read(job: Job | VolumeFiles, data: ConfigDict) -> Case:
  """Returns the case of a job, without a label.

  Args:
    job: any.
    data: section of the model's config.
  """
  if data.source in VOLUMES and dicom_series.is_dicom(job.images[0]):
    return dicom_series.read(job.name, job.images, **_forced(data))
  if data.source in VOLUMES:
    volume = nifti.read_channels(job.images, tolerance=data.grid_tolerance)
    return Case(job.name, volume.array, None, volume.spacing, volume.affine)
  image = images.read_image(job.images[0])
  return Case(job.name, image, None, (1.0,) * (image.ndim - 1))


def _forced(data: ConfigDict) -> dict[str, bool]:
  # They are later than the first models.
  return {key: data.get(key, False) for key in dicom_series.FORCED}


def still_to_do(
  jobs: Sequence[Job], record: Record, maker: Maker, *, overwrite: bool
) -> tuple[Job, ...]:
  """Returns the jobs whose masks are not there yet.

  Args:
    jobs: all.
    record: of the folder of the masks.
    maker: what the masks are to be made with.
    overwrite: whether to make all anew, whatever is there.

  Raises:
    InputError: something is there that is not the mask that would be made.
  """
  rest, in_the_way = [], []
  for job in jobs:
    there = [target for target in job.targets if target.path.exists()]
    for target in there:
      if target.path.is_dir():
        raise InputError(
          f'{target.path}: a folder, where a mask is to be written; move it '
          'away, or name another --output'
        )
    if overwrite:
      rest.append(job)
      continue
    reasons = [
      f'{path}: is there already and is not overwritten: {reason}'
      for kind, path, _ in there
      if (reason := record.differs(path, job.images, maker.of(kind)))
    ]
    in_the_way += reasons
    if len(there) < len(job.targets):
      rest.append(job)
  if in_the_way:
    more = len(in_the_way) - 1
    raise InputError(
      in_the_way[0]
      + (f' ({more} more like it)' if more else '')
      + '; name another --output, move it away, or make it anew with '
      '--overwrite'
    )
  return tuple(rest)


def _wanted_file(
  output: pathlib.Path, input_path: pathlib.Path, suffixes: Sequence[str]
) -> bool:
  """Returns whether `output` is to be a file and not a folder.

  Raises:
    InputError: it cannot be one.
  """
  if output.is_dir() or not to_predict.is_file_name(output):
    if output.exists() and not output.is_dir():
      raise InputError(
        f'--output={output}: a file; allowed is a folder, or of one image a '
        f'mask that ends in {" or ".join(suffixes)}'
      )
    return False
  if input_path.is_dir():
    raise InputError(
      f'--output={output} is the name of one file, but --input={input_path} is '
      'a folder; allowed is a folder'
    )
  if not output.name.lower().endswith(tuple(suffixes)):
    raise InputError(
      f'--output={output}: masks of this model are written as '
      f'{" or ".join(suffixes)}; name such a file, or a folder'
    )
  return True


def _check_apart(
  jobs: Sequence[Job], cases: Sequence[VolumeFiles], folder: pathlib.Path
) -> None:
  """Raises InputError where a mask would replace an image, or another one."""
  inputs = {path.resolve() for case in cases for path in case.images}
  paths = [target.path for job in jobs for target in job.targets]
  same = [path for path in paths if path.resolve() in inputs]
  if same:
    raise InputError(
      f'{name_some(same, 1)}: the mask would replace the image itself; name '
      'another --output'
    )
  twice = [path for path, n in collections.Counter(paths).items() if n > 1]
  own = {folder / name for name in _LISTS}
  if taken := [path for path in paths if path in own]:
    raise InputError(
      f'{taken[0]}: the name of a list that lies beside all masks; rename the '
      'image'
    )
  if twice:
    raise InputError(
      f'{twice[0]}: both the mask of one case and what is written beside '
      'another would have this name; rename one of them'
    )
