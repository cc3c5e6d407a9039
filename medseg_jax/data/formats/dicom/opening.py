"""Opens a DICOM file, also one that lacks what files begin with."""

import pathlib

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
  ExplicitVRBigEndian,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
)


def open_file(path: pathlib.Path, *, pixels: bool = True) -> FileDataset:
  """Returns the data set of a file that `first_bytes.is_dicom` is sure of.

  A file without a head gets one that says how it is encoded.

  Args:
    path: of the file.
    pixels: whether they are wanted.

  Raises:
    Exception: of any kind, as pydicom does on damaged files.
  """
  dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
  if not getattr(dataset, 'file_meta', None):
    dataset.file_meta = FileMetaDataset()
  if 'TransferSyntaxUID' not in dataset.file_meta:
    implicit, little = dataset.original_encoding
    if implicit:
      syntax = ImplicitVRLittleEndian
    else:
      syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
  return dataset
