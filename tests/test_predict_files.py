"""What lies in a folder to predict: used, or named; and one file alone."""

import csv
import shutil

import jax
import nibabel
import numpy as np
import predict_cases
import pytest
from conftest import write_volumes
from data_cases import assert_all_in, assert_one_line
from jax.sharding import Mesh
from PIL import Image
from predict_cases import masks, run, write_images
from scipy import stats
from small import load, shrink, write_untrained

from medseg_jax.experiment import prediction_jobs, trained_model
from medseg_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return predict_cases.write_model(tmp_path_factory.mktemp('predict') / 'run')


@pytest.fixture(scope='module')
def volumes(tmp_path_factory):
  """Returns (data, workdir) of a model of volumes."""
  root = tmp_path_factory.mktemp('volumes')
  data = write_volumes(root / 'data', 6)
  config = shrink(load('auto_cpu'), path=data)
  config.inference.mirror = False
  write_untrained(config, root / 'run')
  return data, root / 'run'


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  predict_cases.compile_once(monkeypatch)


@pytest.fixture
def scans(tmp_path):
  return write_images(tmp_path / 'in')


def test_what_fails_is_named_and_the_others_are_done(
  workdir, scans, tmp_path, capsys, monkeypatch
):
  Image.new('L', (30, 20)).save(tmp_path / 'whole.png')
  whole = (tmp_path / 'whole.png').read_bytes()
  (scans / 'cut.png').write_bytes(whole[:50])
  (scans / 'zero.png').write_bytes(b'')
  Image.new('RGB', (20, 20), 'red').save(scans / 'rgb.png')
  Image.new('L', (20, 20)).save(scans / 'a.gif')
  for name in ('x.mha', 'y.nrrd', 'y.png.bz2', 'z.nii.gz', 'z.zip'):
    (scans / name).write_bytes(b'x')
  (scans / 'IM0001').write_bytes(b'\0' * 128 + b'DICM')
  write_images(scans / 'more', 'q')
  (scans / 'gone.png').symlink_to(tmp_path / 'nowhere.png')
  (scans / 'notes.txt').write_text('not an image')
  (scans / 'nothing').mkdir()
  (scans / '.hidden').write_text('')
  real = prediction_jobs.read

  def read(job, data):
    if job.name == 'b':
      raise MemoryError
    return real(job, data)

  monkeypatch.setattr(prediction_jobs, 'read', read)
  with pytest.raises(InputError) as error:
    run(workdir, scans, tmp_path / 'out')
  assert_one_line(error, 'not segmented: 13 of 14 images')
  assert list(masks(tmp_path / 'out')) == ['c.png']
  lines = capsys.readouterr().out.splitlines()
  failed = [line for line in lines if line.startswith('failed    ')]
  for parts in (
    ['a.gif and a.tif have the same stem'],
    [f'{scans}/b.tif: there is not enough memory'],
    [f'{scans}/cut.png: cannot be read'],
    [f'{scans}/zero.png: cannot be read'],
    [f'{scans}/rgb.png has 3 channels', 'in training', 'allowed are'],
    [f'{scans}/IM0001: an image under a name of no image', '2-D images: .apng'],
    [f'{scans}/x.mha: files .mha are not read'],
    [f'{scans}/y.nrrd: files .nrrd are not read'],
    [f'{scans}/y.png.bz2: an archive; unpack it'],
    [f'{scans}/z.nii.gz: a NIfTI volume, which is not read'],
    [f'{scans}/z.zip: an archive; unpack it'],
    [f'{scans}/more: a folder', 'more/q.tif', '--input'],
    [f'{scans}/gone.png: no such file'],
  ):
    assert sum(all(p in line for p in parts) for line in failed) == 1, parts
  assert len(failed) == 13
  assert sum('this model takes 2-D images' in line for line in failed) == 1
  [over] = [line for line in lines if line.startswith('predict: case ')]
  assert 'case 6/6, 5 failed  took' in over  # the others were no images
  [unused] = [line for line in lines if line.startswith('not used')]
  assert_all_in(unused, 'notes.txt', 'nothing/', '1 hidden file')


def test_one_image_and_one_mask(workdir, scans, tmp_path):
  run(workdir, scans / 'b.tif', tmp_path / 'out')
  assert list(masks(tmp_path / 'out')) == ['b.png']
  target = tmp_path / 'new' / 'mask of b.PNG'
  run(workdir, scans / 'b.tif', target)
  assert target.read_bytes() == (tmp_path / 'out' / 'b.png').read_bytes()
  run(workdir, scans / 'b.tif', target)  # is kept


@pytest.mark.parametrize(
  ('source', 'output', 'parts'),
  [
    ('in', 'mask.png', ['mask.png is the name of one file', 'a folder']),
    ('in/b.tif', 'm.nii.gz', ['written as .png', 'or a folder']),
    ('in/b.tif', 'm.jpg', ['written as .png', 'or a folder']),
    ('in/b.tif', 'm.zip', ['written as .png', 'or a folder']),
    ('in/b.tif', 'notes', ['notes: a file; allowed is a folder']),
    ('x.zip', 'o', ['x.zip: an archive; unpack it', '2-D images']),
    ('x.nii.gz', 'o', ['x.nii.gz: a NIfTI volume', '2-D images']),
    ('x.mha', 'o', ['x.mha: files .mha are not read', '.png']),
    ('x.txt', 'o', ['x.txt: no image; this model takes']),
    ('x.png', 'o', ['x.png: cannot be read']),
    ('gone.png', 'o', ['gone.png: no such file', 'holds in, notes']),
  ],
)
def test_one_file_that_does_not_suit(
  workdir, scans, tmp_path, source, output, parts
):
  if source.startswith('x'):
    (tmp_path / source).write_bytes(b'PK')
  (tmp_path / 'notes').write_text('mine')
  with pytest.raises(InputError) as error:
    run(workdir, tmp_path / source, tmp_path / output)
  assert_one_line(error, tmp_path, *parts)
  assert (tmp_path / 'notes').read_text() == 'mine'
  assert output in ('notes', 'o') or not (tmp_path / output).exists()


def test_nothing_but_failures_need_no_model(workdir, tmp_path, monkeypatch):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.mha').write_bytes(b'')
  write_images(tmp_path / 'in' / 'more', 'q')
  monkeypatch.setattr(trained_model, 'load_weights', None)
  with pytest.raises(InputError) as error:
    run(workdir, tmp_path / 'in', tmp_path / 'out')
  assert_one_line(error, '2 of 2 images', 'a.mha', 'more/')
  assert not (tmp_path / 'out').exists()


def test_what_is_bad_among_volumes(volumes, tmp_path, capsys):
  data, workdir = volumes
  new, out = tmp_path / 'new', tmp_path / 'out'
  new.mkdir()
  for i in range(3):
    shutil.copy(data / 'imagesTr' / f'case_{i:02d}.nii.gz', new)
  broken = new / 'case_01.nii.gz'
  image = nibabel.load(broken)
  array = np.asarray(image.dataobj).copy()
  array[3] = np.nan
  nibabel.Nifti1Image(array, image.affine).to_filename(broken)
  (new / 'empty.nii.gz').write_bytes(b'')
  for name, shape in (('slice', (9, 9, 1)), ('two', (9, 9, 9, 2))):
    noise = np.random.default_rng(0).normal(size=shape)
    nibabel.Nifti1Image(noise, np.eye(4)).to_filename(new / f'{name}.nii')
  (new / 'other.mha').write_text('ObjectType = Image')
  (new / 'case_09.nii.bz2').write_bytes(b'BZh9')
  (new / 'picture.png').write_bytes(b'')
  for name in ('series', 'mixed'):  # neither lies where it would be read
    (new / name).mkdir()
    (new / name / '1.dcm').write_bytes(b'')
  (new / 'mixed' / 'case.nii').write_bytes(b'')
  with pytest.raises(InputError) as error:
    run(workdir, new, out)
  assert_one_line(error, '8 of 10 images', 'case_01.nii.gz', 'other.mha')
  found = sorted(path.name for path in out.glob('*.nii.gz'))
  assert found == ['case_00.nii.gz', 'case_02.nii.gz']
  lines = capsys.readouterr().out.splitlines()
  failed = ' '.join(x for x in lines if x.startswith('failed    '))
  assert_all_in(
    failed, 'empty.nii.gz: an empty', 'slice.nii: a single', 'two.nii: 2 chan'
  )
  assert_all_in(failed, 'other.mha', broken, 'case_09.nii.bz2: an archive')
  assert_all_in(failed, 'such as series/1.dcm; files .dcm are not read')
  assert_all_in(failed, 'such as mixed/case.nii; allowed are the files of one')
  assert failed.count('--input of its own') == 1
  assert failed.count('this model takes') == 1
  assert any('not used' in x and 'picture.png' in x for x in lines)


def ask_for_probabilities(config):
  config.inference.probabilities = True


def test_one_volume_and_one_mask(volumes, tmp_path):
  data, workdir = volumes
  scan = data / 'imagesTr' / 'case_00.nii.gz'
  run(workdir, scan, tmp_path / 'mask.nii')
  mask = np.asarray(nibabel.load(tmp_path / 'mask.nii').dataobj)
  assert mask.shape == nibabel.load(scan).shape
  run(workdir, scan, tmp_path / 'm.nii.gz', change=ask_for_probabilities)
  probs = nibabel.load(tmp_path / 'm_probabilities.nii.gz')
  assert probs.shape == (*mask.shape, 3)
  same = np.asarray(nibabel.load(tmp_path / 'm.nii.gz').dataobj)
  np.testing.assert_array_equal(same, mask)
  with pytest.raises(InputError, match=r'written as .nii.gz or .nii'):
    run(workdir, scan, tmp_path / 'm.png')
  Image.new('L', (9, 9)).save(tmp_path / 'x.png')
  with pytest.raises(InputError, match='no volume; this model takes volumes'):
    run(workdir, tmp_path / 'x.png', tmp_path / 'o')


def test_probabilities_that_are_missing_are_made(volumes, tmp_path):
  data, workdir = volumes
  scan = data / 'imagesTr' / 'case_00.nii.gz'
  run(workdir, scan, tmp_path)
  mask = (tmp_path / 'case_00.nii.gz').read_bytes()
  run(workdir, scan, tmp_path, change=ask_for_probabilities)
  assert (tmp_path / 'case_00_probabilities.nii.gz').exists()
  assert (tmp_path / 'case_00.nii.gz').read_bytes() == mask


def test_volumes_are_told_in_ml_and_entropy_on_the_grid_of_the_scan(
  volumes, tmp_path
):
  data, workdir = volumes
  scan = data / 'imagesTr' / 'case_00.nii.gz'

  def unsure(config):
    config.inference.uncertainty = config.inference.probabilities = True

  run(workdir, scan, tmp_path, change=unsure)
  mask = nibabel.load(tmp_path / 'case_00.nii.gz')
  ml = np.prod(mask.header.get_zooms()) / 1000
  with open(tmp_path / 'volumes.csv') as file:
    rows = list(csv.DictReader(file))
  counts = np.bincount(np.asarray(mask.dataobj, int).ravel(), minlength=3)
  assert [row['unit'] for row in rows] == ['ml', 'ml']
  found = [float(row['volume']) for row in rows]
  np.testing.assert_allclose(found, counts[1:] * ml, rtol=1e-5)
  probs = nibabel.load(tmp_path / 'case_00_probabilities.nii.gz').get_fdata()
  entropy = nibabel.load(tmp_path / 'case_00_entropy.nii.gz')
  np.testing.assert_allclose(entropy.affine, mask.affine)
  expected = stats.entropy(probs, axis=-1) / np.log(3)
  np.testing.assert_allclose(entropy.get_fdata(), expected, atol=2e-3)


@pytest.mark.parametrize(
  ('tile', 'asked', 'tiles'),
  [
    ((16, 16, 16), 0, 8),
    ((32, 128, 128), 0, 2),
    ((80, 160, 160), 0, 1),
    ((80, 160, 160), 8, 8),
  ],
)
def test_a_cpu_takes_fewer_tiles_at_once_of_large_ones(tile, asked, tiles):
  config = load('auto')
  config.batch_size, config.patch_size = 8, tile
  config.inference.batch_size = asked
  one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'spatial'))
  assert trained_model._tiles_at_once(config, one) == tiles
