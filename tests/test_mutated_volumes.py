"""Damaged volumes and their JSON files are read, or refused in one line."""

import gzip
import types

import nibabel as nib
import numpy as np
import pytest
from plan_cases import known
from small import load
from volume_cases import FRONT_BACK, image_array, label_array, write_decathlon
from volume_mutations import (
  COUNT,
  assert_reads_or_says_why,
  damage_json,
  damage_nifti,
  damage_packed,
)

from medseg_jax import planner
from medseg_jax.data import splits
from medseg_jax.data.formats import nifti
from medseg_jax.data.sources.inspection import inspect_case, inspect_set
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.data.sources.volume_geometry import find_oddities
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.experiment import volume_plan
from medseg_jax.runtime.errors import InputError

REGIONS = {
  'channel_names': {'0': 'T1'},
  'labels': {'background': 0, 'whole': [1, 2], 'core': [2]},
  'regions_class_order': [1, 2],
  'file_ending': '.nii.gz',
}


def try_all(damaged, read, tmp_path):
  """Reads what `damaged(rng)` makes, many times; some of it must be good."""
  good = 0
  for seed in range(COUNT):
    data = damaged(np.random.default_rng(seed))
    try:
      good += assert_reads_or_says_why(read, data, hide=str(tmp_path))
    except Exception as error:
      error.add_note(f'seed {seed}')
      raise
  assert 0 < good < COUNT


@pytest.mark.parametrize(
  ('kind', 'packed'),
  [('image', False), ('NIfTI-2', False), ('image', True), ('label', True)],
)
def test_damaged_nifti(tmp_path, kind, packed):
  array = label_array() if kind == 'label' else image_array()
  image = nib.Nifti2Image if kind == 'NIfTI-2' else nib.Nifti1Image
  image = image(array, np.diag([1, 1, 2, 1]))
  image.set_qform(image.affine, 1)
  data = image.to_bytes()
  path = tmp_path / 'a.nii.gz'

  def read(damaged):
    path.write_bytes(damaged)
    nifti.read_image(path)
    nifti.read_label(path)
    return find_oddities(VolumeFiles('a', (path,), path))

  damage = damage_packed if packed else damage_nifti
  try_all(lambda rng: damage(data, rng), read, tmp_path)


def test_damaged_files_in_a_data_set(tmp_path):
  write_decathlon(tmp_path, 'ab')
  paths = [tmp_path / d / 'a.nii.gz' for d in ('imagesTr', 'labelsTr')]
  whole = [gzip.decompress(path.read_bytes()) for path in paths]

  def read(damaged):
    for path, data in zip(paths, damaged, strict=True):
      path.write_bytes(data)
    source = open_volumes(tmp_path, strict=False)['train']
    inspections = [inspect_case(source, i) for i in range(2)]
    lines = [*sum(inspect_set(source, inspections), [])]
    for found in inspections:
      lines += [*found.errors, *found.warnings]
    return lines

  def damaged(rng):
    return [
      damage_packed(data, rng) if rng.random() < 0.6 else gzip.compress(data, 1)
      for data in whole
    ]

  for seed in range(COUNT // 4):
    data = damaged(np.random.default_rng(seed))
    assert assert_reads_or_says_why(read, data, hide=str(tmp_path))


@pytest.mark.parametrize('form', ['Decathlon', 'nnU-Net', 'regions'])
def test_damaged_dataset_json(tmp_path, form):
  write_decathlon(tmp_path, 'ab')
  path = tmp_path / 'dataset.json'
  content = {
    'Decathlon': {
      'modality': {'0': 'MRI'},
      'labels': {'0': 'background', '1': 'front', '2': 'back'},
      'training': [
        {'image': f'./imagesTr/{n}.nii.gz', 'label': f'./labelsTr/{n}.nii.gz'}
        for n in 'ab'
      ],
    },
    'nnU-Net': {'channel_names': {'0': 'CT'}, 'labels': FRONT_BACK},
    'regions': REGIONS,
  }[form]

  def read(damaged):
    path.write_bytes(damaged)
    source = open_volumes(tmp_path, strict=False)['train']
    found = inspect_case(source, 0)
    return [*source.problems, *source.oddities, *found.errors, *found.warnings]

  try_all(lambda rng: damage_json(content, rng), read, tmp_path)


def test_damaged_plan_json(tmp_path):
  path = tmp_path / 'plan.json'
  plan = known('prostate')
  source = types.SimpleNamespace(
    root=tmp_path / plan['dataset'],
    channel_names=tuple(plan['channel_names']),
    classes=('a', 'b', 'c'),
    regions=(),
  )
  config = load('auto')

  def read(damaged):
    path.write_bytes(damaged)
    found = volume_plan.read(path, config, source)
    planner.describe(found)
    volume_plan.apply(config.copy_and_resolve_references(), found)

  try_all(lambda rng: damage_json(plan, rng), read, tmp_path)


def test_damaged_splits_json(tmp_path):
  path = tmp_path / 'splits.json'
  names = [f'case_{i}' for i in range(6)]
  folds = splits.all_folds(names, num_folds=3)

  def read(damaged):
    path.write_bytes(damaged)
    splits.check_names(splits.read_splits(path), names, path)

  try_all(lambda rng: damage_json(folds, rng), read, tmp_path)


def test_folders_in_place_of_files(tmp_path):
  for name in ('plan.json', 'splits.json', 'a.nii.gz'):
    (tmp_path / name).mkdir()
  for read in (
    lambda path: volume_plan.read(path / 'plan.json', load('auto'), None),
    lambda path: splits.read_splits(path / 'splits.json'),
    lambda path: nifti.read_image(path / 'a.nii.gz'),
  ):
    with pytest.raises(InputError, match='directory'):
      read(tmp_path)


def test_a_volume_that_does_not_fit_into_memory(tmp_path, monkeypatch):
  path = tmp_path / 'a.nii'
  nib.Nifti1Image(image_array(), np.eye(4)).to_filename(path)
  monkeypatch.setattr('medseg_jax.runtime.host_memory.available', lambda: 100)
  nifti.read_image(path)  # small ones are not looked at
  monkeypatch.setattr('medseg_jax.data.formats.nifti_stream._SMALL', 50)
  with pytest.raises(InputError, match='GB of memory, and .* are available'):
    nifti.read_image(path)


def test_files_that_claim_or_grow_to_gigabytes(tmp_path):
  whole = nib.Nifti1Image(image_array(), np.eye(4)).to_bytes()
  path = tmp_path / 'a.nii.gz'

  def read(data):
    path.write_bytes(data)
    nifti.read_image(path)
    return find_oddities(VolumeFiles('a', (path,)))

  claims = bytearray(whole)
  claims[42:48] = np.int16([1200, 1200, 1200]).tobytes()
  for data in (bytes(claims), gzip.compress(bytes(claims))):
    assert not assert_reads_or_says_why(read, data, hide=str(tmp_path))
  # Behind its voxels a small file hides a quarter of a gigabyte.
  with gzip.open(path, 'wb', 1) as stream:
    stream.write(whole)
    for _ in range(256):
      stream.write(bytes(2**20))
  data = path.read_bytes()
  assert len(data) < 2e6
  assert assert_reads_or_says_why(read, data, hide=str(tmp_path))
