"""Exported programs run elsewhere, on a real scan, as the program does."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import HANG_S, ROOT, write_volumes
from small import load, shrink, write_untrained

from medseg_jax.data.case import Case
from medseg_jax.data.formats import nifti
from medseg_jax.data.preprocess import preprocess
from medseg_jax.experiment import build, trained_model
from medseg_jax.programs import export
from medseg_jax.runtime.errors import InputError

CALL = {
  'stablehlo': """
import sys, jax, numpy as np
assert 'medseg_jax' not in sys.modules
with open(sys.argv[1], 'rb') as file:
  exported = jax.export.deserialize(bytearray(file.read()))
assert set(exported.platforms) == {'cpu', 'cuda', 'tpu'}
assert 'custom_call' not in exported.mlir_module()
np.save(sys.argv[3], exported.call(np.load(sys.argv[2])))
""",
  'onnx': """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(logits,) = session.run(['logits'], {'image': np.load(sys.argv[2])})
assert 'jax' not in sys.modules
np.save(sys.argv[3], logits)
""",
}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Returns the workdir of a model of volumes, that mirrors one axis."""
  folder = tmp_path_factory.mktemp('volumes')
  config = shrink(load('auto_cpu'), path=write_volumes(folder / 'Balls', 10))
  config.augment.flip_axes = (2,)
  write_untrained(config, folder / 'run')
  return folder / 'run'


@pytest.fixture(scope='module')
def tiles_and_logits(trained, real_data):
  """Returns tiles of a real scan and what the program makes of them."""
  config = trained_model.read_config(trained, None, '')
  path = sorted((real_data / 'hippocampus').rglob('imagesTr/*.nii.gz'))[0]
  volume = nifti.read_channels([path])
  case = Case('scan', volume.array, None, volume.spacing, volume.affine)
  image = preprocess(case, build.preprocessing_of(config)).image
  size = build.tile_size(config)
  corners = [(0, 0, 0), (4, 8, 2)] * config.inference.batch_size
  tiles = np.stack(
    [
      np.pad(image, [(0, s) for s in size] + [(0, 0)])[
        tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
      ]
      for corner in corners[: config.inference.batch_size]
    ]
  ).astype(np.float32)
  predictor = trained_model.load_predictor(config, trained)
  batch = np.concatenate([tiles] * jax.device_count())
  return tiles, np.asarray(predictor.predict_fn(batch))[: len(tiles)]


@pytest.mark.parametrize('form', ['stablehlo', 'onnx'])
def test_a_program_agrees_on_a_real_scan(
  form, trained, tiles_and_logits, tmp_path
):
  if form == 'onnx':
    why = 'the extra [export] is not installed'
    pytest.importorskip('jax2onnx', reason=why)
    pytest.importorskip('onnxruntime', reason=why)
  output = tmp_path / f'balls.{form}'
  config = trained_model.read_config(trained, None, '')
  export.run(config, trained, output=output, form=form)
  text = (tmp_path / f'balls.{form}.txt').read_text()
  assert text.startswith(f'balls.{form}: ')
  assert 'outputs: background, left, right.' in text
  tiles, expected = tiles_and_logits
  np.save(tmp_path / 'tiles.npy', tiles)
  subprocess.run(
    [
      *(sys.executable, '-c', CALL[form]),
      *(output, tmp_path / 'tiles.npy', tmp_path / 'logits.npy'),
    ],
    cwd=tmp_path,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    check=True,
    timeout=HANG_S,
  )
  logits = np.load(tmp_path / 'logits.npy')
  np.testing.assert_allclose(logits, expected, atol=1e-3)
  assert (logits.argmax(-1) == expected.argmax(-1)).mean() >= 0.9999
  with pytest.raises(InputError, match='is not overwritten'):
    export.run(config, trained, output=output, form=form)


def test_the_command_line_exports(trained, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'medseg_jax.main', '--mode=export'),
      *(f'--workdir={trained}', '--output=a/balls.zip'),
    ],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'a' / 'balls.zip').stat().st_size > 1000


def test_what_is_not_finished_is_not_packed(tmp_path):
  with pytest.raises(InputError, match='no folder model/'):
    export.run(None, tmp_path, output=tmp_path / 'x.zip')
