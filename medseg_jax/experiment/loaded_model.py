"""One trained model as an object, for other people's programs."""

import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import nibabel
import numpy as np

from medseg_jax.data.case import VOLUMES, Case
from medseg_jax.data.shear import spacing_of
from medseg_jax.data.sources import dicom_series, to_predict
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.experiment import (
  ensemble,
  model_folder,
  prediction_jobs,
  trained_model,
)
from medseg_jax.inference.cases import predict_cases
from medseg_jax.report.unlike_training import (
  facts_of,
  far_from,
  training_of_plan,
)
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError, counted

_SUPERIOR_POSTERIOR_LEFT = nibabel.orientations.axcodes2ornt(('S', 'P', 'L'))


class Prediction(NamedTuple):
  """What a model says of an image, on the image's own grid.

  Attributes:
    label: int16 `[*S]`, indices of `LoadedModel.classes`.
    probs: float16 `[*S, K]` for each class or, where the model has regions
      that overlap, each region. Of a model with sigmoid outputs the classes
      do not exclude each other, and the background is what the most probable
      of them leaves. A cross-validated ensemble's are calibrated.
    spacing: size of a voxel along each axis, in mm (1.0 where not known).
    affine: `[R + 1, R + 1]` voxel index to world, or None where not known.
  """

  label: np.ndarray
  probs: np.ndarray
  spacing: tuple[float, ...]
  affine: np.ndarray | None


class LoadedModel:
  """A trained model, one or an ensemble, ready to predict; see `load_model`.

  Attributes:
    classes: names of the classes, background first.
    label_values: the value of each class in the masks of the training data.
    regions: names of the regions, where these are what is predicted.
    channel_names: one for each channel of an image.
    description: the content of `model.json`.
  """

  def __init__(self, path: str | os.PathLike):
    path = pathlib.Path(path)
    stored = ensemble.read(path)
    self.description = stored.description
    first = stored.first.description
    self._config = model_folder.config_of(first)
    data = self._config.data
    self.classes = tuple(data.classes)
    self.label_values = tuple(data.label_values)
    self.regions = tuple(name for name, _ in data.regions)
    self.channel_names = tuple(first['channel_names'])
    mesh = sharding.local_mesh()  # whatever the training's was
    self._predictor = trained_model.load_predictor(
      self._config, None, model=path, mesh=mesh
    )
    self._settings = self._predictor.settings
    self._training = training_of_plan(first.get('plan'))
    self._warned: set[str] = set()

  def predict(
    self,
    image: np.ndarray | str | os.PathLike,
    *,
    spacing: tuple[float, ...] | None = None,
    affine: np.ndarray | None = None,
  ) -> Prediction:
    """Returns the classes of every voxel of one image.

    Args:
      image: `[*S]` or `[*S, C]` with intensities in the units of the training
        data, or a file: a volume for models of volumes, else any image. An
        array of a volume has its axes in the order (z, y, x) towards superior,
        posterior and left, unless `affine` says otherwise. Of a case with a
        file for each channel any of them.
      spacing: of an array, in mm along each axis of it.
      affine: of an array of three axes in any order, `[4, 4]` voxel index to
        world in mm, towards right, anterior and superior as in NIfTI; it
        tells the spacing, too.

    What is odd about a file's header is a warning (of module `warnings`), once,
    and so is what sets an image apart from those of the training.

    Raises:
      InputError: the file cannot be read, the image does not suit the model,
        or the spacing is missing though the model resamples.
    """
    if isinstance(image, str | os.PathLike):
      files, data = self._files(pathlib.Path(image)), self._config.data
      case = prediction_jobs.read(files, data)
      self._warn(prediction_jobs.find_oddities([files], data))
      affine = None  # the file has its own
    elif affine is not None:
      case = _oriented(self._array(image, 3), np.asarray(affine, np.float64))
    else:
      image = np.asarray(image)
      rank = len(spacing or ()) or self._rank(image)
      case = Case('the image', self._array(image, rank), None, (1.0,) * rank)
      if spacing is not None:
        case = case._replace(spacing=tuple(map(float, spacing)))
      elif self._config.data.spacing:
        raise InputError(
          'the model resamples images to a spacing of '
          f'{tuple(self._config.data.spacing)} mm, so it needs to know theirs: '
          'give spacing or affine'
        )
    found = self._predict_case(case)
    if self._training and (spacing is not None or case.affine is not None):
      facts = facts_of(case.image, found.label, case.spacing)
      self._warn(far_from(facts, self._training))
    if affine is None:
      return found
    return _turned_back(found, np.asarray(affine, np.float64))

  def _array(self, image: np.ndarray, rank: int) -> np.ndarray:
    """Returns an image with an axis for its channels."""
    image = np.asarray(image)
    if image.ndim == rank:
      image = image[..., None]
    if image.ndim != rank + 1:
      raise InputError(
        f'the image has the shape {image.shape}; allowed are {rank} axes of '
        'voxels, and one more for channels'
      )
    return image

  def _files(self, path: pathlib.Path) -> VolumeFiles:
    """Returns the files of the case that one of them names."""
    if self._config.data.source not in VOLUMES:
      return VolumeFiles(path.stem, (path,))
    if path.is_dir() and not dicom_series.lie_in(path, ()):
      raise InputError(
        f'{path}: a folder; allowed is one volume, or the folder of a '
        'DICOM series'
      )
    channels = self._config.data.channels
    (files,) = to_predict.find(path, channels=channels).cases
    return files

  def _rank(self, image: np.ndarray) -> int:
    """Returns the number of spatial axes of an array that comes alone."""
    if self._config.data.source in VOLUMES:
      return 3
    channels = self._config.data.channels
    flat = len(self._settings['patch_size'])
    return flat if image.shape[flat:] in ((), (1,), (channels,)) else image.ndim

  def _warn(self, lines: Iterable[str]) -> None:
    """Warns the caller of `predict`, of each thing once."""
    for line in lines:
      if line not in self._warned:
        self._warned.add(line)
        warnings.warn(line, stacklevel=3)

  def _predict_case(self, case: Case) -> Prediction:
    found, data = case.image.shape[-1], self._config.data
    if data.source in VOLUMES and found != data.channels:
      raise InputError(
        f'{case.name} has {counted(found, "channel")}; allowed is the number '
        f'of channels of the training, {data.channels} '
        f'({", ".join(self.channel_names)})'
      )
    predicted = predict_cases(
      self._predictor.predict_fn, [case], probabilities=True, **self._settings
    )
    [(_, label, probs, *_)] = predicted
    return Prediction(label, probs, case.spacing, case.affine)


def _oriented(image: np.ndarray, affine: np.ndarray) -> Case:
  """Returns an array `[*S, C]` turned as the training's volumes were."""
  own = nibabel.orientations.io_orientation(affine)
  there = nibabel.orientations.ornt_transform(own, _SUPERIOR_POSTERIOR_LEFT)
  spacing = np.array(spacing_of(affine))[np.argsort(there[:, 0])]
  inverse = nibabel.orientations.inv_ornt_aff(there, image.shape[:3])
  turned = nibabel.orientations.apply_orientation(image, there)
  return Case(
    'the image', turned, None, tuple(spacing.tolist()), affine @ inverse
  )


def _turned_back(found: Prediction, affine: np.ndarray) -> Prediction:
  """Returns a prediction of `_oriented` as the array was."""
  own = nibabel.orientations.io_orientation(affine)
  back = nibabel.orientations.ornt_transform(_SUPERIOR_POSTERIOR_LEFT, own)
  label, probs = (
    nibabel.orientations.apply_orientation(array, back)
    for array in (found.label, found.probs)
  )
  spacing = tuple(np.array(spacing_of(affine)).tolist())
  return Prediction(label, probs, spacing, affine)
