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

from medseg_jax import load_model
from medseg_jax.data import previous_stage
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import preprocess
from medseg_jax.data.sources import volumes
from medseg_jax.experiment import (
  build,
  config_files,
  ensemble,
  held_out,
  members,
  trained_model,
)
from medseg_jax.inference import sliding_window
from medseg_jax.programs import (
  benchmark,
  evaluate,
  export,
  plan,
  predict,
  train,
)
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
      data,
      augmented=True,
      model__depth=0,
      crossval__configurations=CASCADE,
      data__num_folds=2,
    )
    config.patch_size = ()
    write_plan(config, root / 'run')
    crossval.run(config, root / 'run')
    yield config, root / 'run'


def fold_config(config, fold):
  own = config.copy_and_resolve_references()
  own.plan.configuration = CASCADE
  with own.ignore_type():
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
      assert case['split'] == (
        'val' if case['fold'] == f'fold_{k}' else 'train'
      )


def test_a_mask_is_the_coarse_networks_on_the_fine_grid(made):
  """Logits by the library, from its grid to the other by SciPy."""
  config, root = made
  [path] = [p for p in masks(root) if p.stem == 'case_01']
  mesh = sharding.local_mesh()
  weights = members.load_together({LOW: [path.parents[1] / 'model']}, mesh)
  coarse = trained_model.compile_predictor(weights, mesh)
  case = volumes.open_volumes(config.data.path)['train'][1]
  fine = config_files.read_config(root / CASCADE / 'fold_0')
  prepared = [
    preprocess(case, settings)
    for settings in (
      coarse.settings['preprocessing'],
      build.preprocessing_of(fine),
    )
  ]
  images = [compact(each.image, each.slack) for each in prepared]
  tiles = {
    key: coarse.settings[key] for key in ('patch_size', 'overlap', 'batch_size')
  }
  logits = np.asarray(sliding_window(coarse.predict_fn, images[0], **tiles))
  small, large = (np.array(image.shape[:-1]) for image in images)
  assert (small < large).all()
  moved = ndimage.zoom(
    logits, (*(large / small), 1), order=1, mode='nearest', grid_mode=True
  )
  top = np.sort(moved, -1)
  certain = top[..., -1] - top[..., -2] > 1e-4
  found = np.load(path)['mask']
  assert found.dtype == np.uint8 and certain.mean() > 0.99
  np.testing.assert_array_equal(found[certain], moved.argmax(-1)[certain])


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


def test_other_masks_than_it_began_with_are_refused(made):
  config, root = made
  path = root / CASCADE / 'fold_0' / 'previous_stage.json'
  kept = path.read_text()
  found = json.loads(kept)
  found['cases']['case_00']['mask_sha256'] = '0' * 64
  try:
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match='began with another mask') as error:
      train.run(fold_config(config, 0), root / CASCADE / 'fold_0')
    assert_one_line(error)
  finally:
    path.write_text(kept)


def scores(workdir):
  text = (workdir / 'evaluation' / 'val' / 'cases.csv').read_text()
  assert text.count('\n') == 1 + 2 * 3
  return text


def test_evaluation_predicts_both_networks_as_training_had_them(made):
  _, root = made
  workdir = root / CASCADE / 'fold_0'
  before = scores(workdir)
  evaluate.run(config_files.read_config(workdir), workdir)
  assert scores(workdir) == before
  evaluate.run(config_files.read_config(workdir), workdir, checkpoint='latest')
  assert scores(workdir) == before


def test_a_new_scan_is_predicted_in_one_command(made, tmp_path):
  config, root = made
  scans = pathlib.Path(config.data.path) / 'imagesTr'
  workdir = root / CASCADE / 'fold_1'
  model = workdir / 'model'
  own = trained_model.read_config(None, model, '')
  predict.run(own, None, model=model, input_path=scans, output_dir=tmp_path)
  held = sorted((workdir / 'held_out').glob('*.nii.gz'))
  assert len(held) == 2
  for path in held:
    ours = nibabel.load(tmp_path / path.name).get_fdata()
    np.testing.assert_array_equal(ours, nibabel.load(path).get_fdata())
  alone = load_model(model).predict(scans / 'case_02.nii.gz').label
  written = nibabel.load(tmp_path / 'case_02.nii.gz').get_fdata().astype(int)
  assert np.array_equal(
    np.bincount(alone.ravel(), minlength=3),
    np.bincount(written.ravel(), minlength=3),
  )


def test_folds_and_their_first_networks_travel_in_one_zip(made, tmp_path):
  config, root = made
  folds = [root / CASCADE / f'fold_{k}' / 'model' for k in (0, 1)]
  whole = tmp_path / 'model'
  ensemble.write(whole, {CASCADE: folds}, scores=None, postprocessing=[])
  packed = tmp_path / 'model.zip'
  ensemble.pack(whole, packed)
  own = trained_model.read_config(None, packed, '')
  weights = trained_model.load_weights(own, None, model=packed)
  [part] = weights.parts
  [first] = part.previous.parts
  assert (len(part.variables), len(first.variables)) == (2, 2)
  scan = pathlib.Path(config.data.path) / 'imagesTr' / 'case_00.nii.gz'
  one, other = (load_model(path).predict(scan) for path in (whole, packed))
  np.testing.assert_array_equal(one.probs, other.probs)
  # Another first network than the one it learnt with.
  mixed = tmp_path / 'mixed'
  shutil.copytree(folds[0], mixed)
  shutil.rmtree(mixed / 'previous_stage')
  shutil.copytree(folds[1] / 'previous_stage', mixed / 'previous_stage')
  with pytest.raises(InputError, match='not the first network') as error:
    load_model(mixed)
  assert_one_line(error)


def test_what_is_for_one_network_is_refused(made, tmp_path):
  config, root = made
  workdir = root / CASCADE / 'fold_0'
  own = config_files.read_config(workdir)
  asked = fold_config(config, 0)
  tuned = config.copy_and_resolve_references()
  tuned.init_from = str(workdir / 'model')
  everything = fold_config(config, 'all')
  for words, call in [
    (
      'stablehlo',
      lambda: export.run(own, workdir, output=tmp_path / 'a', form='stablehlo'),
    ),
    ('benchmark', lambda: benchmark.run(asked, tmp_path / 'b')),
    ('init_from', lambda: train.run(tuned, tmp_path / 'c')),
    ("fold is 'all'", lambda: train.run(everything, workdir)),
  ]:
    with pytest.raises(InputError, match=words) as error:
      call()
    assert_one_line(error)


def test_a_case_needs_one_model_that_has_not_seen_it(made, tmp_path):
  config, root = made
  here = tmp_path / CASCADE / 'fold_0'
  here.mkdir(parents=True)
  for name in ('plan.json', 'splits.json'):
    shutil.copy(root / CASCADE / 'fold_0' / name, here / name)

  def assert_refused(words):
    with pytest.raises(InputError, match=words) as error:
      train.run(fold_config(config, 0), here)
    assert_one_line(error)

  assert_refused('held out by none of the 0 trained folds')
  for old, new in ((0, 0), (1, 1), (1, 2)):
    model = tmp_path / LOW / f'fold_{new}' / 'model'
    shutil.copytree(root / LOW / f'fold_{old}' / 'model', model)
  assert_refused('fold_1, fold_2')
  shutil.rmtree(tmp_path / LOW / 'fold_2')
  path = tmp_path / LOW / 'fold_1' / 'model' / 'model.json'
  found = json.loads(path.read_text())
  record = found['training']['cases']
  name, digest = next(iter(record['held_out']['val'].items()))
  record['trained'][digest] = name
  path.write_text(json.dumps(found))
  assert_refused(f"'{name}' .train. is held out by none of the 2")
