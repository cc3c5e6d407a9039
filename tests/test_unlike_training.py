"""Whoever predicts or evaluates is told which scans the model does not know."""

import json
import warnings

import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from html_cases import data_of
from small import load, shrink

import medseg_jax
from medseg_jax.experiment import model_folder
from medseg_jax.programs import evaluate, predict, train
from medseg_jax.report import unlike_training


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns (data, workdir) of a run of two steps on ten small volumes."""
  root = tmp_path_factory.mktemp('volumes')
  data, workdir = write_volumes(root / 'data', 10), root / 'run'
  config = shrink(load('auto_cpu'), path=data, num_steps=2)
  config.eval_every = 0
  config.inference.mirror = False
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    train.run(config, workdir)
  return data, workdir


def test_the_extent_is_that_of_what_is_not_zero(monkeypatch):
  image = np.zeros((20, 30, 40, 2), np.float32)
  image[4:14, 3:27, 40 - 8 :, 1] = 7
  label = (image[..., 1] > 0).astype(np.int16)
  facts = unlike_training.facts_of(image, label, (1, 2, 3))
  assert facts['extent'] == [10, 24, 8] and facts['shape'] == [20, 30, 40]
  assert facts['medians'] == [0, 7]
  # Of large volumes to the voxels that are left out.
  monkeypatch.setattr(unlike_training, '_LOOKED_AT', label.size / 8)
  assert unlike_training.facts_of(image, label, (1, 2, 3)) == facts
  nothing = unlike_training.facts_of(0 * image, 0 * label, (1, 2, 3))
  assert nothing['extent'] == [20, 30, 40] and nothing['medians'] == []


@pytest.mark.parametrize(
  'plan',
  [None, {}, [], {'fingerprint': {'median_spacing': ['a']}}],
)
def test_a_plan_that_says_nothing_of_its_cases_is_done_without(plan):
  assert unlike_training.training_of_plan(plan) is None


def test_a_model_elsewhere_warns_of_cases_far_from_its_training(
  trained, tmp_path
):
  _, workdir = trained
  made = write_volumes(tmp_path / 'made', 13)
  for name in ('images', 'labels'):
    (tmp_path / 'clinic' / name).mkdir(parents=True)
  for i, (scale, more) in enumerate([(1, 0), (3, 0), (1, 900)], start=10):
    for part, name in (('imagesTr', 'images'), ('labelsTr', 'labels')):
      image = nibabel.load(made / part / f'case_{i:02d}.nii.gz')
      array = np.asarray(image.dataobj) + (more if name == 'images' else 0)
      affine = image.affine @ np.diag([scale, scale, scale, 1])
      nibabel.Nifti1Image(
        array.astype(image.get_data_dtype()), affine
      ).to_filename(tmp_path / 'clinic' / name / f'case_{i:02d}.nii.gz')
  model = model_folder.read(workdir / 'model')
  model.config.data.path = str(tmp_path / 'clinic')
  model_folder.pack(workdir / 'model', tmp_path / 'model.zip')
  out = tmp_path / 'out'
  evaluate.run(model.config, out, model=tmp_path / 'model.zip')
  page = next(out.glob('evaluation/*/report.html')).read_text('utf-8')
  far = {
    case['name']: [w for w in case['warnings'] if w.startswith('far from')]
    for case in data_of(page)['cases']
  }
  assert far['case_10'] == []
  spacing, size = far['case_11']
  assert 'spacing 3 × 3 × 3.6 mm, there 1 × 1 × 1.2' in spacing
  assert size.startswith('far from the training: size')
  [line] = far['case_12']
  assert 'intensity of MRI in the foreground 1' in line


def test_a_prediction_warns_of_scans_far_from_the_training(
  trained, tmp_path, capsys
):
  data, workdir = trained
  [path, *_] = sorted((data / 'imagesTr').glob('*.nii.gz'))
  image = nibabel.load(path)
  scans = tmp_path / 'scans'
  scans.mkdir()
  for name, scale in (('like', 1), ('unlike', 3)):
    affine = image.affine @ np.diag([scale, scale, scale, 1])
    turned = nibabel.Nifti1Image(image.get_fdata(dtype='float32'), affine)
    turned.to_filename(scans / f'{name}.nii.gz')

  def far(formats):
    capsys.readouterr()
    model = model_folder.read(workdir / 'model')
    predict.run(
      model.config,
      None,
      input_path=scans,
      output_dir=tmp_path / '-'.join(formats),
      model=workdir / 'model',
      formats=formats,
    )
    lines = capsys.readouterr().out.splitlines()
    return [x for x in lines if x.startswith('warning') and 'far from' in x]

  first = far(('nifti',))
  # A model of two steps marks what no training case has marked.
  spacing, size = (line for line in first if 'intensity' not in line)
  assert spacing.startswith('warning   unlike: far from the training: spacing')
  assert 'spacing 3 × 3 × 3.6 mm, there 1 × 1 × 1.2' in spacing
  assert 'unlike: far from the training: size' in size
  assert far(('nifti',)) == first  # the masks are kept, and so is what is odd
  assert far(('nifti', 'report')) == first
  out = tmp_path / 'nifti-report'
  told = json.loads((out / 'unlike' / 'report.json').read_text('utf-8'))
  lines = [f'warning   unlike: {x}' for x in told['far_from_training']]
  assert lines == [line for line in first if ' unlike: ' in line]
  page = (out / 'unlike' / 'report.html').read_text('utf-8')
  assert 'This image is far from the training: spacing 3 × 3 × 3.6 mm' in page
  like = (out / 'like' / 'report.html').read_text('utf-8')
  assert 'far from the training: s' not in like
  model = medseg_jax.load_model(workdir / 'model')
  with warnings.catch_warnings():
    warnings.filterwarnings('error', '.*: s(pacing|ize)')
    model.predict(scans / 'like.nii.gz')
  with pytest.warns(UserWarning, match='spacing 3 × 3 × 3.6 mm') as caught:
    affine = np.diag([3, 3, 3, 1]) @ image.affine
    model.predict(image.get_fdata(), affine=affine)
  assert {line.filename for line in caught} == {__file__}
