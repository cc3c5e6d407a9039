"""Data sets and masks in NRRD and MetaImage are those of NIfTI."""

import numpy as np
import predict_cases
import pytest
import SimpleITK as sitk
from conftest import write_volumes
from data_cases import assert_all_in
from itk_cases import DIRECTIONS, affine_of, assert_as_itk, made, save
from predict_cases import run
from small import load, shrink, write_untrained
from volume_cases import LABELS, image_array, label_array, write_json

from medseg_jax.data.formats import nifti, volume_formats
from medseg_jax.data.sources import mask_pairs
from medseg_jax.data.sources.unlabelled import open_unlabelled
from medseg_jax.data.sources.volumes import open_volumes
from medseg_jax.experiment.prediction_record import hash_files
from medseg_jax.runtime.errors import InputError


@pytest.mark.parametrize('layout', ['pairs', 'nnunet', 'listed'])
def test_a_data_set_reads_as_of_nifti(tmp_path, layout):
  images, labels = 'imagesTr', 'labelsTr'
  if layout == 'pairs':
    images, labels = 'images', 'labels'
  suffixes = {
    'nifti': ('.nii.gz', '.nii.gz', '.nii.gz'),
    'others': ('.nrrd', '.mha', '.nhdr'),
    'more': ('.mhd', '.nrrd', '.mha'),
  }
  sources = {}
  for root, (image, label, third) in suffixes.items():
    training = []
    for i, name in enumerate('abc'):
      suffix = third if name == 'c' else image
      direction = list(DIRECTIONS)[i + 1]
      files = [
        tmp_path / root / images / f'{name}{"_0000" * (layout == "nnunet")}',
        tmp_path / root / labels / name,
      ]
      arrays = image_array(i).T, label_array().T
      for file, array, end in zip(files, arrays, (suffix, label), strict=True):
        save(
          file.with_name(file.name + end),
          made(array, direction),
          compress=i > 0,
        )
      training.append(
        {
          'image': f'{images}/{name}{suffix}',
          'label': f'{labels}/{name}{label}',
        }
      )
    content = dict(modality={'0': 'CT'}, labels=LABELS)
    if layout == 'nnunet':
      content['file_ending'] = image
    if layout == 'listed':
      content['training'] = training
    if layout != 'pairs':
      write_json(tmp_path / root, **content)
    sources[root] = open_volumes(tmp_path / root)['train']
  for root in ('others', 'more'):
    source, expected = sources[root], sources['nifti']
    assert source.oddities == ()
    assert len(source.files) == 3
    for i in range(3):
      one, other = source[i], expected[i]
      assert one.name == other.name
      np.testing.assert_array_equal(one.image, other.image)
      np.testing.assert_array_equal(one.label, other.label)
      np.testing.assert_allclose(one.spacing, other.spacing, atol=1e-6)
      np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    pretrain = open_unlabelled(tmp_path / root)['train']
    assert len(pretrain.files) == 3 and pretrain.oddities == ()
  # Voxels that lie beside their header are part of the case.
  source = sources['others']
  before, hashed = source.case_key(2), hash_files(source.files[2].images)
  (place,) = volume_formats.data_files(source.files[2].images)
  content = bytearray(place.read_bytes())
  content[4] ^= 1  # a time stamp of gzip
  place.write_bytes(content)
  assert source.case_key(2) != before
  assert hash_files(source.files[2].images) != hashed


@pytest.mark.parametrize('suffix', ['.nrrd', '.mha'])
@pytest.mark.parametrize('direction', ['flipped', 'oblique'])
def test_what_is_written_lies_where_the_image_does(tmp_path, suffix, direction):
  image = made(direction=direction)
  label = label_array().T
  for source in ('a.nrrd', 'a.nhdr', 'a.mha', 'a.mhd', 'a.nii.gz'):
    like = save(tmp_path / source, image)
    place = save(tmp_path / 'label.nrrd', made(label, direction))
    inside = nifti.read_label(place).array
    mask = tmp_path / f'mask{suffix}'
    nifti.write_label(mask, inside, like)
    written = sitk.ReadImage(str(mask))
    assert written.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), label)
    expected = affine_of(sitk.ReadImage(str(like)))
    np.testing.assert_allclose(affine_of(written), expected, atol=1e-6)
    np.testing.assert_array_equal(assert_as_itk(mask).array[..., 0], inside)
    nifti.write_volume(mask, inside / 2, like)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
    np.testing.assert_array_equal(written, label.astype(np.float32) / 2)
    nifti.write_label(tmp_path / 'mask.nii.gz', inside, like)
    written = sitk.ReadImage(str(tmp_path / 'mask.nii.gz'))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), label)
    np.testing.assert_allclose(affine_of(written), expected, atol=1e-4)
  with pytest.raises(ValueError, match='three axes'):
    nifti.write_volume(mask, np.zeros((*inside.shape, 2)), like)


def test_the_same_mask_is_the_same_file(tmp_path):
  like = save(tmp_path / 'a.mha')
  inside = nifti.read_label(like).array % 3
  for suffix in ('.nrrd', '.mha'):
    for name in 'xy':
      nifti.write_label(tmp_path / f'{name}{suffix}', inside, like)
    one, other = (tmp_path / f'{name}{suffix}' for name in 'xy')
    assert one.read_bytes() == other.read_bytes()


def test_masks_are_of_the_format_of_their_images(tmp_path, monkeypatch, capsys):
  predict_cases.compile_once(monkeypatch)
  data, new, out = tmp_path / 'data', tmp_path / 'new', tmp_path / 'out'
  write_volumes(data, 6)
  config = shrink(load('auto_cpu'), path=data)
  config.inference.mirror = False
  write_untrained(config, tmp_path / 'run')
  scan = sitk.ReadImage(str(data / 'imagesTr' / 'case_00.nii.gz'))
  scan.SetDirection(DIRECTIONS['oblique'].ravel().tolist())
  suffixes = {
    'n.nrrd': '.nrrd', 'd.nhdr': '.nrrd', 'm.mha': '.mha', 'h.mhd': '.mha',
    'f.nii.gz': '.nii.gz',
  }  # fmt: skip
  for name in suffixes:
    save(new / name, scan, compress=True)
  (new / 'd.raw.gz').rename(new / 'voxels.gz')  # such as an archive is called
  text = (new / 'd.nhdr').read_bytes().replace(b'd.raw.gz', b'voxels.gz')
  (new / 'd.nhdr').write_bytes(text)

  def unsure(config):
    config.inference.uncertainty = config.inference.probabilities = True

  run(tmp_path / 'run', new, out, change=unsure)
  told = capsys.readouterr().out
  assert 'not used' not in told and 'failed' not in told
  expected = sitk.GetArrayFromImage(sitk.ReadImage(str(out / 'f.nii.gz')))
  for name, suffix in suffixes.items():
    image = sitk.ReadImage(str(new / name))
    for word in ('', '_entropy'):
      mask = sitk.ReadImage(str(out / f'{name[0]}{word}{suffix}'))
      assert mask.GetSize() == image.GetSize()
      np.testing.assert_allclose(affine_of(mask), affine_of(image), atol=1e-4)
    mask = sitk.ReadImage(str(out / f'{name[0]}{suffix}'))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), expected)
    assert (out / f'{name[0]}_probabilities.nii.gz').is_file()
  rows = (out / 'volumes.csv').read_text().splitlines()[1:]
  assert {row.partition(',')[0] for row in rows} == set('dfhmn')
  # What is there is kept; of other voxels it is not.
  run(tmp_path / 'run', new, out, change=unsure)
  save(new / 'h.mhd', scan + 1, compress=True)
  with pytest.raises(InputError, match=r'h.mha: is there already'):
    run(tmp_path / 'run', new, out, change=unsure)
  # One file, and as another format.
  for name, source in (('one.mha', 'n.nrrd'), ('one.nrrd', 'f.nii.gz')):
    run(tmp_path / 'run', new / source, tmp_path / name)
    mask = sitk.ReadImage(str(tmp_path / name))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), expected)
    np.testing.assert_allclose(affine_of(mask), affine_of(scan), atol=1e-4)
  for name in ('one.mhd', 'one.nhdr', 'one.png'):
    with pytest.raises(
      InputError, match=r'as .nii.gz or .nii or .nrrd or .mha'
    ):
      run(tmp_path / 'run', new / 'n.nrrd', tmp_path / name)


def test_masks_of_different_formats_are_scored(tmp_path):
  for i, (made_as, true_as) in enumerate(
    [('.nrrd', '.mha'), ('.mhd', '.nii.gz'), ('.nii.gz', '.nrrd')]
  ):
    label = made(label_array().T, 'permuted')
    save(tmp_path / 'made' / f'{i}{made_as}', label)
    save(tmp_path / 'true' / f'{i}{true_as}', label)
  matched = mask_pairs.match_masks(tmp_path / 'made', tmp_path / 'true')
  assert (len(matched.pairs), matched.failures, matched.unused) == (3, (), ())
  source = mask_pairs.open_pairs(matched, tmp_path / 'true')
  for i in range(3):
    pair = mask_pairs.read_pair(source, i)
    np.testing.assert_array_equal(pair.pred, pair.label)
    assert not pair.unknown and pair.label.any()


def test_what_names_no_place_is_told(tmp_path):
  text = 'NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\n'
  (tmp_path / 'images').mkdir()
  (tmp_path / 'images' / 'a.nrrd').write_bytes(
    f'{text}encoding: raw\n\n'.encode() + image_array().tobytes('F')
  )
  save(tmp_path / 'labels' / 'a.mha', sitk.GetImageFromArray(label_array().T))
  source = open_volumes(tmp_path)['train']
  line = ' '.join(source.oddities) + ' '.join(source.find_oddities(0))
  assert_all_in(line, 'a.nrrd', 'no position', 'Left, Posterior, Superior')
