"""Small data sets of NIfTI files in the layouts that their users know."""

import json

import nibabel as nib
import numpy as np
import pytest

from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.runtime.errors import InputError

SHAPE = (6, 5, 4)  # x, y, z, as in the file
FRONT_BACK = {'background': 0, 'front': 1, 'back': 2}
LABELS = {'0': 'background', '1': 'front', '2': 'back'}


def image_array(seed=0, shape=SHAPE):
  return np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)


def label_array(values=(0, 1, 2), shape=SHAPE):
  return np.resize(np.array(values, np.uint8), shape)


def save(path, array, spacing=(1.0, 1.0, 2.0), affine=None):
  """Writes a file whose axes run to Right, Anterior and Superior."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if affine is None:
    affine = np.diag([*spacing, 1.0])
  nib.save(nib.Nifti1Image(array, affine), path)
  return path


def inside(array):
  """Returns what a file by `save` must read as: (z, y, x), Posterior, Left."""
  return np.moveaxis(array[::-1, ::-1], (0, 1, 2), (2, 1, 0))


def error_of(path, **options):
  """Returns the error that opening the data set must end with."""
  with pytest.raises(InputError) as error:
    open_volumes(path, **options)
  return error


def write_pairs(root, names, *, images='images', labels='labels', start=0):
  for seed, name in enumerate(names, start):
    save(root / images / f'{name}.nii.gz', image_array(seed))
    save(root / labels / f'{name}.nii.gz', label_array())


def write_json(root, **content):
  root.mkdir(parents=True, exist_ok=True)
  (root / 'dataset.json').write_text(json.dumps(content))


def write_decathlon(root, names=('a', 'b'), **content):
  """Writes the layout of the Medical Segmentation Decathlon, files listed."""
  write_pairs(root, names, images='imagesTr', labels='labelsTr')
  training = [
    {'image': f'./imagesTr/{n}.nii.gz', 'label': f'./labelsTr/{n}.nii.gz'}
    for n in names
  ]
  entries = {'modality': {'0': 'MRI'}, 'labels': LABELS, 'training': training}
  write_json(root, **entries | content)


def write_nnunet(root, **content):
  """Writes two cases of two channel files each."""
  for i, name in enumerate('ab'):
    for channel in range(2):
      file = f'{name}_000{channel}.nii.gz'
      save(root / 'imagesTr' / file, image_array(2 * i + channel))
    save(root / 'labelsTr' / f'{name}.nii.gz', label_array())
  write_json(root, **content)
