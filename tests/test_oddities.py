"""What is odd about files is told once, for whatever a run opens them."""

import warnings

import nibabel
import numpy as np
import predict_cases
import pytest
from conftest import write_volumes
from data_cases import assert_all_in
from small import load, shrink, write_untrained
from volume_cases import image_array, save

import medseg_jax
from medseg_jax.data.sources.volume_files import VolumeFiles
from medseg_jax.experiment import config_files, prediction_jobs
from medseg_jax.programs import evaluate, plan, predict, prepare
from medseg_jax.runtime.errors import InputError

SIZES = 'case_06.nii: voxels of 1x1x1.2 mm in the sform'
OFF = 'labelsTr/case_07.nii.gz: up to 0.05 mm'
STRAY = 'odd: not used: table.xlsx'
OF_CASES = (f'imagesTr/{SIZES}', f'labelsTr/{SIZES}', OFF)


def contradict(path):
  """Makes the voxels three times as large in pixdim as in the sform."""
  raw = bytearray(nibabel.load(path).to_bytes())
  header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
  assert header['sform_code'] > 0
  header['qform_code'] = 0
  header['pixdim'][1:4] *= 3
  raw[:348] = header.binaryblock
  path.with_suffix('').write_bytes(bytes(raw))
  path.unlink()


@pytest.fixture
def odd(tmp_path):
  """Returns four volumes; one contradicts itself, one label lies off."""
  data = write_volumes(tmp_path / 'odd', 10)
  (data / 'dataset.json').unlink()
  for folder in ('imagesTr', 'labelsTr'):
    for i in range(6):
      (data / folder / f'case_{i:02d}.nii.gz').unlink()
    contradict(data / folder / 'case_06.nii.gz')
  path = data / 'labelsTr' / 'case_07.nii.gz'
  label = nibabel.load(path)
  affine = label.affine.copy()
  affine[0, 3] += 0.05
  nibabel.Nifti1Image(np.asarray(label.dataobj), affine).to_filename(path)
  (data / 'table.xlsx').write_bytes(b'')
  return data


def config_for(path):
  config = shrink(load('auto_cpu'), path=path)
  config.augment.flip_prob = 0.0
  config.inference.mirror = False
  config.data.label_values, config.data.num_folds = (0, 1, 2), 2
  return config


def assert_told_once(capsys, *expected):
  lines = capsys.readouterr().out.splitlines()
  warnings = [
    line
    for line in lines
    # An untrained model marks what no training case has marked.
    if line.startswith('warning') and 'far from the training' not in line
  ]
  assert len(warnings) == len(expected), warnings
  for part in expected:
    assert sum(part in line for line in warnings) == 1, part


def test_planning_and_preparing_tell(odd, tmp_path, capsys):
  config = config_for(odd)
  plan.run(config, tmp_path / 'run')
  assert_told_once(capsys, *OF_CASES, STRAY)
  for workdir in ('run', 'run', 'other'):  # beside a plan, prepared, and alone
    prepare.run(config, tmp_path / workdir)
    assert_told_once(capsys, *OF_CASES, STRAY)


def test_evaluating_and_predicting_tell(odd, tmp_path, capsys, monkeypatch):
  predict_cases.compile_once(monkeypatch)
  workdir = tmp_path / 'run'
  write_untrained(config_for(write_volumes(tmp_path / 'data', 6)), workdir)
  config = config_files.read_config(workdir)
  config.data.path = str(odd)
  capsys.readouterr()
  assert evaluate.run(config, workdir)['num_cases'] == 4
  assert_told_once(capsys, *OF_CASES, STRAY)
  scans = dict(input_path=odd / 'imagesTr', output_dir=tmp_path / 'masks')
  predict.run(config, workdir, **scans)
  assert_told_once(capsys, OF_CASES[0])
  predict.run(config, workdir, **scans)  # all masks are there
  assert_told_once(capsys)


def test_users_of_the_library_are_told_once(odd, tmp_path, monkeypatch):
  predict_cases.compile_once(monkeypatch)
  workdir = tmp_path / 'run'
  write_untrained(config_for(write_volumes(tmp_path / 'data', 6)), workdir)
  model = medseg_jax.load_model(workdir / 'model')
  path = odd / 'imagesTr' / 'case_06.nii'
  with pytest.warns(UserWarning, match=f'imagesTr/{SIZES}') as told:
    found = model.predict(path)
  told = [w for w in told if 'far from the training' not in str(w.message)]
  assert [warning.filename for warning in told] == [__file__]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    # An untrained model marks what no training case has marked.
    warnings.filterwarnings('ignore', 'far from the training')
    same = model.predict(path)
    model.predict(odd / 'imagesTr' / 'case_07.nii.gz')
  np.testing.assert_array_equal(found.label, same.label)


def test_the_library_takes_all_channels_of_a_case(tmp_path, monkeypatch):
  predict_cases.compile_once(monkeypatch)
  rng, shape = np.random.default_rng(0), (18, 17, 16)
  for name in 'abcd':
    label = np.arange(18 * 17 * 16, dtype=np.uint8).reshape(shape) % 2
    save(tmp_path / 'data' / 'labelsTr' / f'{name}.nii.gz', label)
    for channel in (0, 1):
      image = (rng.normal(0, 90, shape) + 50 * label).astype(np.int16)
      file = f'{name}_000{channel}.nii.gz'
      save(tmp_path / 'data' / 'imagesTr' / file, image)
  config = shrink(load('auto_cpu'), path=tmp_path / 'data')
  config.inference.mirror, config.data.num_folds = False, 2
  write_untrained(config, tmp_path / 'run')
  model = medseg_jax.load_model(tmp_path / 'run' / 'model')
  paths = [tmp_path / f'data/imagesTr/a_000{i}.nii.gz' for i in (0, 1)]
  both = [np.asarray(nibabel.load(path).dataobj) for path in paths]
  affine = nibabel.load(paths[0]).affine
  wanted = model.predict(np.stack(both, -1), affine=affine).label
  wanted = np.moveaxis(wanted[::-1, ::-1], (0, 1, 2), (2, 1, 0))
  for path in paths:
    np.testing.assert_array_equal(model.predict(path).label, wanted)
  with pytest.raises(InputError, match='the image has 1 channel; allowed is'):
    model.predict(both[0], affine=affine)
  with pytest.raises(InputError, match='a folder; allowed is one volume'):
    model.predict(tmp_path / 'data')
  paths[1].unlink()
  with pytest.raises(InputError, match='case a has no file a_0001'):
    model.predict(paths[0])


def test_channels_may_lie_as_far_off_as_the_config_says(tmp_path):
  files = []
  for channel, off in enumerate((0.0, 0.2)):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = off
    path = tmp_path / f'scan_000{channel}.nii.gz'
    save(path, image_array(channel), affine=affine)
    files.append(path)
  scan, data = VolumeFiles('scan', tuple(files)), load('auto_cpu').data
  with pytest.raises(InputError, match='0.2 voxels'):
    prediction_jobs.read(scan, data)
  data.grid_tolerance = 0.3
  assert prediction_jobs.read(scan, data).image.shape[-1] == 2
  (line,) = prediction_jobs.find_oddities([scan], data)
  assert_all_in(line, files[1], '0.2 voxels off', 'grid_tolerance is 0.3')
