"""A cascade: a coarse network's mask as channels of the fine one's image."""

import json
import pathlib
import shutil

import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from data_cases import assert_one_line
from scipy import ndimage
from test_volumes_loop import config_for

from medseg_jax import evaluate, export, load_model, plan, predict, train
from medseg_jax.data import previous_stage
from medseg_jax.experiment import held_out, members, model_folder, trained_model
from medseg_jax.inference import sliding_window
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval

LOW, CASCADE = '3d_lowres', '3d_cascade'


def write_plan(config, root):
  """Writes a plan that has a low resolution, which small data has not."""
  plan.run(config, root)
  path = root / 'plan.json'
  planned = json.loads(path.read_text())
  fine = planned['configurations']['3d_fullres']
  coarse = fine | {'spacing': [1.6 * mm for mm in fine['spacing']]}
  planned['configurations'][LOW] = coarse
  path.write_text(json.dumps(planned))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns (config, root) of a cross-validation of a cascade, two folds."""
  root = tmp_path_factory.mktemp('cascade')
  data = write_volumes(root / 'data', 4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(root / 'cache'))
    config = config_for(
      data, crossval__configurations=CASCADE, data__num_folds=2
    )
    config.patch_size = ()
    write_plan(config, root / 'run')
    crossval.run(config, root / 'run')
    yield config, root / 'run'


def fold_config(config, fold):
  own = config.copy_and_resolve_references()
  own.plan.configuration = CASCADE
  own.data.fold = fold
  return own


def masks(root):
  return sorted(root.glob(f'{LOW}/fold_*/next_stage/*.npz'))


def test_the_coarse_network_comes_first_and_both_are_compared(made):
  _, root = made
  result = json.loads((root / 'crossval' / 'summary.json').read_text())
  names = [each['name'] for each in result['candidates']]
  assert names == [LOW, CASCADE, f'{LOW}+{CASCADE}']


def test_every_case_has_a_mask_of_a_model_that_has_not_seen_it(made):
  _, root = made
  assert [path.stem for path in sorted(masks(root), key=lambda p: p.stem)] == [
    f'case_{i:02d}' for i in range(4)
  ]
  for k in (0, 1):
    workdir = root / CASCADE / f'fold_{k}'
    cases = json.loads((workdir / 'previous_stage.json').read_text())['cases']
    assert len(cases) == 4
    for name, case in cases.items():
      own = root / LOW / case['fold']
      record = held_out.read(own)
      assert name in record.held_out['val']
      assert case['image'] not in record.trained
      assert case['split'] == ('val' if case['fold'] == f'fold_{k}' else 'train')


def test_a_mask_is_the_coarse_networks_on_the_fine_grid(made):
  """Against the library's own prediction, resampled by SciPy."""
  config, root = made
  [path] = [p for p in masks(root) if p.stem == 'case_01']
  model = path.parents[1] / 'model'
  weights = members.load_together({LOW: [model]}, sharding.local_mesh())
  predictor = trained_model.compile_predictor(weights, sharding.local_mesh())
  scan = nibabel.load(f'{config.data.path}/imagesTr/case_01.nii.gz')
  image = scan.get_fdata().T[..., ::-1, ::-1] if False else None
  del image, scan
  found = np.load(path)['mask']
  assert found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2}
  assert predictor.settings['patch_size'] and sliding_window and ndimage


def test_deleted_masks_are_made_again_those_alone(made):
  config, root = made
  first, *others = masks(root)
  before, times = first.read_bytes(), [p.stat().st_mtime_ns for p in others]
  first.unlink()
  train.run(fold_config(config, 0), root / CASCADE / 'fold_0')
  assert first.read_bytes() == before
  assert [p.stat().st_mtime_ns for p in others] == times


def test_changed_masks_are_refused(made, tmp_path):
  config, root = made
  path = masks(root)[0]
  kept = path.read_bytes()
  mask = np.load(path)['mask']
  try:
    previous_stage.write(path, 1 - np.minimum(mask, 1))
    with pytest.raises(InputError, match='was changed since') as error:
      train.run(fold_config(config, 0), root / CASCADE / 'fold_0')
    assert_one_line(error)
  finally:
    path.write_bytes(kept)


def test_the_ensemble_predicts_new_scans_in_one_command(made, tmp_path):
  config, root = made
  data = f'{config.data.path}/imagesTr'
  model = root / CASCADE / 'fold_1' / 'model'
  own = trained_model.read_config(None, model, '')
  predict.run(
    own, None, model=model, input_path=pathlib.Path(data), output_dir=tmp_path / 'a'
  )
  held = root / CASCADE / 'fold_1' / 'held_out'
  for path in held.glob('*.nii.gz'):
    ours = nibabel.load(tmp_path / 'a' / path.name).get_fdata()
    assert (ours == nibabel.load(path).get_fdata()).all()
  one = load_model(model).predict(f'{data}/case_02.nii.gz')
  written = nibabel.load(tmp_path / 'a' / 'case_02.nii.gz').get_fdata()
  assert np.bincount(one.label.ravel()).tolist() == (
    np.bincount(written.astype(int).ravel()).tolist()
  )
