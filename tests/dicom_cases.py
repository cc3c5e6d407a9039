"""DICOM series made for tests: values and places are known."""

import pathlib

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def slice_of(
  pixels, position, *, directions=(1, 0, 0, 0, 1, 0), spacing=(1, 1), **more
):
  """Returns the data set of a CT slice, `pixels` int16 `[rows, columns]`."""
  meta = FileMetaDataset()
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = generate_uid()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  dataset = FileDataset('', {}, file_meta=meta, preamble=b'\0' * 128)
  dataset.SOPClassUID = CTImageStorage
  dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  dataset.StudyInstanceUID = '1.2.3'
  dataset.SeriesInstanceUID = '1.2.3.4'
  dataset.Modality = 'CT'
  dataset.SeriesNumber = 7
  dataset.SeriesDescription = 'made'
  dataset.Rows, dataset.Columns = pixels.shape
  dataset.ImagePositionPatient = [float(x) for x in position]
  dataset.ImageOrientationPatient = [float(x) for x in directions]
  dataset.PixelSpacing = [float(x) for x in spacing]
  dataset.SliceThickness = 99  # says nothing
  dataset.SamplesPerPixel = 1
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.BitsAllocated = dataset.BitsStored = 16
  dataset.HighBit, dataset.PixelRepresentation = 15, 1
  dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
  for key, value in more.items():
    if value is None:
      delattr(dataset, key)
    else:
      setattr(dataset, key, value)
  dataset.PixelData = pixels.astype('<i2').tobytes()
  return dataset


def values(shape=(5, 6, 7), seed=0):
  """Returns stored values `[n, rows, columns]`."""
  return np.random.default_rng(seed).integers(0, 2000, shape, np.int16)


def write(folder, stored, *, step=(0, 0, 2.5), origin=(-3, 4, 5), **more):
  """Writes a series, its file names and numbers in no order; returns them."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for i in range(len(stored)):
    position = np.asarray(origin) + i * np.asarray(step, float)
    own = {k: v[i] if isinstance(v, list) else v for k, v in more.items()}
    dataset = slice_of(stored[i], position, **own)
    dataset.InstanceNumber = (i * 3) % len(stored)
    paths.append(folder / f'IM{(i * 7919) % 997:03d}')
    dataset.save_as(paths[-1], enforce_file_format=True)
  return paths


def enhanced(
  path, stored, order, *, spacing=(1, 1), step=(0, 0, 2.5), echoes=()
):
  """Writes one multi-frame file, its frames in another order.

  With `echoes`, a time for each, every slice is there once for each of them.
  """
  dataset = slice_of(stored[0], (0, 0, 0))
  for key in (
    'ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing',
    'RescaleSlope', 'RescaleIntercept',
  ):  # fmt: skip
    delattr(dataset, key)
  shared = Dataset()
  shared.PixelMeasuresSequence = [Dataset()]
  shared.PixelMeasuresSequence[0].PixelSpacing = [float(x) for x in spacing]
  turn = Dataset()
  turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  shared.PlaneOrientationSequence = [turn]
  dataset.SharedFunctionalGroupsSequence = [shared]
  groups = []
  for i, echo in [(i, echo) for echo in echoes or (None,) for i in order]:
    group = Dataset()
    group.PlanePositionSequence = [Dataset()]
    place = [float(x) for x in i * np.asarray(step)]
    group.PlanePositionSequence[0].ImagePositionPatient = place
    group.PixelValueTransformationSequence = [Dataset()]
    group.PixelValueTransformationSequence[0].RescaleSlope = 1 + i
    group.PixelValueTransformationSequence[0].RescaleIntercept = 0
    if echo is not None:
      group.MREchoSequence = [Dataset()]
      group.MREchoSequence[0].EffectiveEchoTime = echo
    groups.append(group)
  dataset.PerFrameFunctionalGroupsSequence = groups
  dataset.NumberOfFrames = len(groups)
  pixels = stored[list(order)].astype('<i2')
  parts = [(pixels + i).tobytes() for i in range(len(echoes) or 1)]
  dataset.PixelData = b''.join(parts)
  dataset.save_as(path, enforce_file_format=True)


def change(path: pathlib.Path, **values) -> None:
  """Sets attributes of a file, or with None removes them."""
  dataset = pydicom.dcmread(path)
  for key, value in values.items():
    if value is None:
      delattr(dataset, key)
    else:
      setattr(dataset, key, value)
  dataset.save_as(path)


def without_head(path: pathlib.Path, syntax: str) -> None:
  """Writes a file as some archives do: no preamble, nothing of group 2.

  Args:
    path: of the file, which is overwritten.
    syntax: 'implicit', 'explicit' or 'big'.
  """
  dataset = pydicom.dcmread(path)
  if syntax == 'big':
    dataset['PixelData'].VR = 'OW'
    pixels = np.frombuffer(dataset.PixelData, '<i2').astype('>i2')
    dataset.PixelData = pixels.tobytes()
  bare = Dataset()
  bare.update(dataset)
  pydicom.dcmwrite(
    path, bare, implicit_vr=syntax == 'implicit', little_endian=syntax != 'big'
  )
