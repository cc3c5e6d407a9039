"""Two configurations of volumes, their pair, and the ensemble of them."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from conftest import write_volumes
from test_volumes_loop import config_for

from medseg_jax import load_model, postprocessing
from medseg_jax.experiment import trained_model
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError
from medseg_jax.studies import crossval


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Returns (data, root, result) of a cross-validation of two networks."""
  folder = tmp_path_factory.mktemp('made')
  data, root = write_volumes(folder / 'data', 4), folder / 'run'
  config = config_for(
    data, crossval__configurations='2d,3d_fullres', data__num_folds=2
  )
  config.patch_size = ()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
    return data, root, crossval.run(config, root)


def test_configurations_and_their_pair_are_compared(made):
  data, root, result = made
  names = [each['name'] for each in result['candidates']]
  assert names == ['2d', '3d_fullres', '2d+3d_fullres']
  dice = {each['name']: each['dice'] for each in result['candidates']}
  assert dice[result['chosen']] == max(dice.values())
  for name in names:
    summary = root / 'crossval' / name / 'summary.json'
    assert json.loads(summary.read_text())['mean']['dice'] == dice[name]
  # Of the pair each mask is what both networks say together.
  pair = root / 'crossval' / '2d+3d_fullres' / 'fold_0' / 'held_out'
  [mask, *_] = sorted(pair.glob('*.nii.gz'))
  scan = data / 'imagesTr' / mask.name
  probs = [
    load_model(root / name / 'fold_0' / 'model').predict(scan).probs
    for name in ('2d', '3d_fullres')
  ]
  mean = np.mean([p.astype(np.float32) for p in probs], axis=0)
  ours = load_model(root / '3d_fullres' / 'fold_0' / 'model').predict(scan)
  written = nibabel.load(mask).get_fdata()
  values = np.unique(written)
  assert set(values) <= {0, 1, 2} and ours.label.size == written.size
  counts = np.bincount(mean.argmax(-1).ravel(), minlength=3)
  found = np.bincount(written.astype(int).ravel(), minlength=3)
  # float16 decides nearly equal probabilities another way.
  assert np.abs(counts - found).max() <= 0.01 * written.size


def test_steps_are_applied_wherever_the_ensemble_predicts(made, tmp_path):
  data, root, _ = made
  model = shutil.copytree(root / 'model', tmp_path / 'model')
  description = json.loads((model / 'model.json').read_text())

  def write_steps(*of):
    steps = [
      {'step': 'keep_largest_component', 'of': str(c), 'classes': list(c)}
      for c in of
    ]
    text = json.dumps(description | {'postprocessing': steps})
    (model / 'model.json').write_text(text)
    return steps

  def masks(output, overwrite=False):
    config = trained_model.read_config(None, model, '')
    predict.run(
      config,
      None,
      model=model,
      input_path=data / 'imagesTr',
      output_dir=output,
      overwrite=overwrite,
    )
    return {
      path.name: nibabel.load(path).get_fdata().astype(np.int16)
      for path in sorted(output.glob('*.nii.gz'))
    }

  write_steps()
  bare = masks(tmp_path / 'out')
  steps = write_steps((1, 2), (1,))
  with pytest.raises(InputError, match='made with another postprocessing'):
    masks(tmp_path / 'out')
  done = masks(tmp_path / 'out', overwrite=True)
  assert bare.keys() == done.keys()
  changed = 0
  for name, label in bare.items():
    np.testing.assert_array_equal(
      done[name], postprocessing.apply(label, steps)
    )
    changed += not np.array_equal(done[name], label)
  assert changed
  scan = data / 'imagesTr' / next(iter(done))
  again = load_model(model).predict(scan).label
  counts = np.bincount(done[scan.name].ravel(), minlength=3)
  assert (np.bincount(again.ravel(), minlength=3) == counts).all()
