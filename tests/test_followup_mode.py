"""`--mode=followup`, from files to a page; the network sees brightness."""

import csv
import hashlib
import json
import re
import sys

import compiled_once
import followup_cases
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import small
from data_cases import assert_one_line
from dicom_cases import change, write
from flax import traverse_util
from followup_cases import DIRECTIONS, motion_of
from model_cases import random_variables
from test_volumes_loop import config_for

from medseg_jax.clinic import followup as clinic_followup
from medseg_jax.clinic import measurements
from medseg_jax.experiment import trained_model
from medseg_jax.programs import followup
from medseg_jax.runtime.errors import InputError

BALLS = (((-12, 8, 4), 6.0), ((12, -6, 8), 5.0))
LATER = (((-12, 8, 4), 8.0), ((4, 10, -12), 5.0))
MOTION = motion_of((4, -6, 8), (5, -3, 6))
SHAPE = (32, 32, 36)  # of images, and of the tile


def brightness(model, *args):
  """Returns variables of a network that passes on its input, and compares."""
  flat = traverse_util.flatten_dict(random_variables(model, *args))
  for name, x in flat.items():
    if name[-1] != 'kernel':
      flat[name] = jnp.ones(x.shape) * (name[-1] in ('scale', 'var'))
      continue
    kernel = np.zeros(x.shape, np.float32)
    middle = tuple(size // 2 for size in x.shape[:3])
    inputs, outputs = x.shape[-2:]
    if x.shape[:3] == (3, 3, 3):
      kernel[(*middle, slice(0, None, max(outputs, 1)), 0)] = 1
    elif outputs == 2:
      kernel[..., 0, 1] = 9
    flat[name] = jnp.asarray(kernel)
  for name in flat:
    if name[-1] == 'bias' and flat[name].shape == (2,):
      flat[name] = jnp.asarray([0.0, -36.0])  # more than 4 deviations
  return traverse_util.unflatten_dict(flat)


def time_point(balls, **named):
  """Returns an image of the patient that is one tile."""
  return followup_cases.time_point(balls, shape=SHAPE, **named)


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
  compiled_once.share(monkeypatch)


def save(path, point):
  path.parent.mkdir(parents=True, exist_ok=True)
  # Read back with axes z, posterior, left.
  affine = point.affine[:, [2, 1, 0, 3]]
  array = point.image[..., 0].transpose(2, 1, 0)
  nibabel.Nifti1Image(array, affine).to_filename(path)
  return path


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp('model')
  data = root / 'data'
  for i in range(5):
    point = time_point(BALLS, seed=i)
    name = f'case_{i}.nii.gz'
    save(data / 'imagesTr' / name, point)
    mask = point._replace(image=point.label[..., None].astype(np.uint8))
    save(data / 'labelsTr' / name, mask)
  (data / 'dataset.json').write_text(
    json.dumps(
      {
        'modality': {'0': 'MR'},
        'labels': {'0': 'background', '1': 'lesion'},
        'training': [
          {
            'image': f'./imagesTr/case_{i}.nii.gz',
            'label': f'./labelsTr/case_{i}.nii.gz',
          }
          for i in range(5)
        ],
      }
    )
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    patch.setattr(small, 'random_variables', brightness)
    config = config_for(data)
    config.inference.patch_size = SHAPE
    small.write_untrained(config, root / 'run')
  return root / 'run' / 'model'


def run(model, earlier, later, output, *, keys=(), **options):
  config = trained_model.read_config(None, model, '')
  for key, value in dict(keys).items():
    config.clinic.followup[key] = value
  followup.run(
    config, None, model=model, inputs=(earlier, later), output_dir=output,
    **options,
  )  # fmt: skip
  return json.loads((output / 'followup.json').read_text())


def hashes(folder):
  return {
    path: (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    for path in folder.rglob('*')
    if path.is_file()
  }


def write_dicom(folder, point, **more):
  """Writes a time point as a series."""
  to_lps = np.diag([-1, -1, 1])
  columns = to_lps @ DIRECTIONS
  size = float(np.linalg.norm(point.affine[:3, 0]))
  write(
    folder, (point.image[..., 0] + 1000).astype(np.int16),
    step=to_lps @ point.affine[:3, 0], origin=to_lps @ point.affine[:3, 3],
    directions=(*columns[:, 2], *columns[:, 1]), spacing=(size, size), **more,
  )  # fmt: skip
  return folder


def test_a_pair_of_files(model, tmp_path, capsys):
  earlier, later = time_point(BALLS), time_point(LATER, motion=MOTION)
  first = save(tmp_path / 'in' / 'then.nii.gz', earlier)
  second = save(tmp_path / 'in' / 'now.nii.gz', later)
  before, out = hashes(tmp_path / 'in'), tmp_path / 'out'
  told = run(model, first, second, out)
  registered = told['registration']
  printed = capsys.readouterr().out
  [lesion] = told['structures']
  assert lesion['number'] == {'new': 1, 'grown': 1, 'gone': 1}
  assert re.search(r'E1 > L1 +grown', printed)
  assert 'warning' not in printed and not told['warnings']
  np.testing.assert_allclose(
    told['registration']['earlier_to_later_lps_mm'],
    np.diag([-1, -1, 1, 1]) @ MOTION @ np.diag([-1, -1, 1, 1]),
    atol=0.15,
  )
  # The numbers are those of each image's own voxels.
  for point, time, name in (
    (earlier, 'earlier', 'then'), (later, 'later', 'now'),
  ):  # fmt: skip
    mask = nibabel.load(out / time / f'{name}.nii.gz').get_fdata()
    label = mask.transpose(2, 1, 0).astype(np.int16)
    np.testing.assert_array_equal(label, point.label)
    measured = measurements.measure(
      label, point.image, point.affine, indices=(1,), lesions=True
    )
    own = [one['volume_ml'] for one in lesion[time]['lesions']]
    assert own == pytest.approx([one.volume for one in measured.lesions])
  rows = [*csv.DictReader((out / 'followup.csv').read_text().splitlines())]
  assert [row['change'] for row in rows] == ['grown', 'new', 'grown', 'gone']
  page = (out / 'followup.html').read_text()
  assert page.index('Not for clinical use') < page.index('<h1>')
  assert page.count('data:image/jpeg;base64') == 6
  assert not re.search(r'(src|href)="(?!data:)|url\(|https?:', page)
  assert hashes(tmp_path / 'in') == before
  # A second run changes nothing and says so.
  written = hashes(out)
  run(model, first, second, out)
  assert 'followup.html of an earlier run' in capsys.readouterr().out
  again = hashes(out)
  assert {p: v[0] for p, v in again.items()} == {
    p: v[0] for p, v in written.items()
  }
  assert all(again[p] == written[p] for p in out.glob('followup.*'))
  # What another threshold would find is not put in its place unasked.
  with pytest.raises(InputError, match='clinic.followup') as error:
    run(model, first, second, out, keys={'growth_percent': 300.0})
  assert_one_line(error, 'is not overwritten')
  told = run(
    model, first, second, out, keys={'growth_percent': 300.0}, overwrite=True
  )
  assert told['structures'][0]['number'] == {'new': 1, 'stable': 1, 'gone': 1}
  # Nothing but the threshold differs: the registration is the same to the bit.
  assert told['registration'] == registered


def test_series_of_one_patient(model, tmp_path, capsys):
  header = dict(PatientID='no.4711', PatientName='Doe^Jane')
  first = write_dicom(
    tmp_path / 'a', time_point(BALLS), StudyDate='20240131', **header
  )
  second = write_dicom(
    tmp_path / 'b', time_point(LATER, motion=MOTION), StudyDate='20240301',
    **header,
  )  # fmt: skip
  before = hashes(first) | hashes(second)
  out = tmp_path / 'out'
  told = run(model, first, second, out, formats=('report',), series='anything')
  assert (told['days'], told['warnings']) == (30, [])
  assert told['structures'][0]['number'] == {'new': 1, 'grown': 1, 'gone': 1}
  assert (out / 'earlier' / 'a' / 'report.html').is_file()
  assert (out / 'later' / 'b' / 'mask.nii.gz').is_file()
  assert hashes(first) | hashes(second) == before
  for path in out.glob('followup.*'):
    words = re.sub('base64,[^"]*', '', path.read_text())
    assert not re.search(r'doe|jane|no\.4711', words, re.I)
  capsys.readouterr()
  # The other way round, and of two patients.
  again = run(model, second, first, tmp_path / 'back')
  assert again['days'] == -30 and '30 days after' in again['warnings'][0]
  assert again['structures'][0]['number'] == {'new': 1, 'shrunk': 1, 'gone': 1}
  for path in second.iterdir():
    change(path, PatientID='no.4712')
  with pytest.raises(InputError, match='two patients') as error:
    run(model, first, second, tmp_path / 'none')
  assert_one_line(error)
  assert not (tmp_path / 'none').exists()


def test_what_is_asked_wrongly_is_one_line(model, tmp_path, refused):
  image = save(tmp_path / 'x' / 'a.nii.gz', time_point(BALLS))
  save(tmp_path / 'x' / 'b.nii.gz', time_point(BALLS))
  begin = ('--mode=followup', f'--model={model}', f'--output={tmp_path / "o"}')
  assert 'needs two --input' in refused(*begin, f'--input={image}')
  assert 'needs two --input' in refused(*begin, *[f'--input={image}'] * 3)
  words = refused(*begin, f'--input={image}', f'--input={tmp_path / "x"}')
  assert '2 images, a and b' in words and words.count('\n') == 1
  words = refused(
    *begin, *[f'--input={image}'] * 2, '--config.clinic.followup.match_mm=0'
  )
  assert 'config.clinic.followup.match_mm is 0' in words
  assert not (tmp_path / 'o').exists()


def test_without_simple_itk_one_line_says_what_to_install(
  model, tmp_path, monkeypatch
):
  image = save(tmp_path / 'a.nii.gz', time_point(BALLS))
  monkeypatch.setitem(sys.modules, 'SimpleITK', None)
  for name in ('registration', 'comparison'):
    whole = f'{clinic_followup.__name__}.{name}'
    monkeypatch.delitem(sys.modules, whole, raising=False)
    monkeypatch.delattr(clinic_followup, name, raising=False)
  with pytest.raises(InputError, match=r"'medseg_jax\[followup\]'") as error:
    run(model, image, image, tmp_path / 'out')
  assert_one_line(error, 'SimpleITK')
