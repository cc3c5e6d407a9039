import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from model_cases import random_variables

from medseg_jax.inference import exporting
from medseg_jax.inference.network import create_predict
from medseg_jax.models import create_model
from medseg_jax.runtime.errors import InputError

# How another program calls the artifacts, which has JAX or onnxruntime alone.
CALL_STABLEHLO = """
import pathlib, sys
import jax, numpy as np
folder = pathlib.Path(sys.argv[1])
for path in folder.glob('*.stablehlo'):
  exported = jax.export.deserialize(path.read_bytes())
  image = np.load(folder / f'{path.stem}.image.npy')
  np.save(folder / f'{path.stem}.from_stablehlo.npy', exported.call(image))
assert 'medseg_jax' not in sys.modules and 'flax' not in sys.modules
"""
CALL_ONNX = """
import pathlib, sys
import numpy as np, onnxruntime
folder = pathlib.Path(sys.argv[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for path in folder.glob('*.onnx'):
  session = onnxruntime.InferenceSession(path, options)
  image = np.load(folder / f'{path.stem}.image.npy')
  logits = session.run(['logits'], {'image': image})[0]
  np.save(folder / f'{path.stem}.from_onnx.npy', logits)
assert 'medseg_jax' not in sys.modules and 'jax' not in sys.modules
"""

# Name of the model, mirrored axes, tile with its channels, fields of the model.
SMALL = {'features': 4, 'depth': 2}
PLANNED = SMALL | {
  'norm': 'instance',
  'activation': 'leaky_relu',
  'down': 'stride',
  'deep_supervision': True,
}
CASES = {
  'images': ('unet', (0, 1), (16, 24, 3), SMALL),
  'volumes': ('unet', (), (8, 12, 16, 1), PLANNED),
  'residual': (
    'unet',
    (),
    (16, 16, 1),
    SMALL
    | {
      'norm': 'group',
      'activation': 'gelu',
      'up': 'linear',
      'residual': True,
      'attention': True,
      'remat': True,
    },
  ),
  'plain': ('encoder_decoder', (), (8, 12, 1), {}),
  'bfloat16': ('unet', (), (8, 8, 16, 1), PLANNED | {'dtype': 'bfloat16'}),
}


def case(name, **fields):
  """Returns the predict function of a case, its variables and its tile."""
  model_name, axes, tile, own = CASES[name]
  model = create_model(model_name, num_classes=3, **own | fields)
  variables = random_variables(model, jnp.zeros((1, *tile)), False)
  return create_predict(model=model, mirror_axes=axes), variables, tile


def call_all(folder, write, suffix, program):
  """Writes all cases with `write` and calls them in a process of its own."""
  for name in CASES:
    predict_fn, variables, tile = case(name)
    image = np.random.default_rng(0).normal(size=(3, *tile))
    np.save(folder / f'{name}.image.npy', image.astype(np.float32))
    (folder / f'{name}.{suffix}').write_bytes(
      write(predict_fn, variables, tile)
    )
  done = subprocess.run(
    [sys.executable, '-c', program, str(folder)],
    cwd=folder,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope='module')
def called_stablehlo(tmp_path_factory):
  return call_all(
    tmp_path_factory.mktemp('stablehlo'),
    exporting.to_stablehlo,
    'stablehlo',
    CALL_STABLEHLO,
  )


@pytest.fixture(scope='module')
def called_onnx(tmp_path_factory):
  skip_without_onnx()
  return call_all(
    tmp_path_factory.mktemp('onnx'), exporting.to_onnx, 'onnx', CALL_ONNX
  )


def skip_without_onnx():
  for module in ('onnxruntime', 'jax2onnx'):
    pytest.importorskip(
      module, reason=f"no {module}: pip install 'medseg_jax[export]'"
    )


def check(folder, name, source, *, atol=1e-3, share=0.9999, **fields):
  """Compares the logits of an artifact with those of the program."""
  predict_fn, variables, _ = case(name, **fields)
  image = np.load(folder / f'{name}.image.npy')
  want = np.asarray(jax.jit(predict_fn)(variables, image))
  got = np.load(folder / f'{name}.from_{source}.npy')
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, atol=atol)
  assert (got.argmax(-1) == want.argmax(-1)).mean() >= share
  assert len(np.unique(want.argmax(-1))) > 1  # or equal labels say nothing


@pytest.mark.parametrize('name', list(CASES)[:-1])
def test_stablehlo_is_the_network_to_a_program_with_jax_alone(
  called_stablehlo, name
):
  check(called_stablehlo, name, 'stablehlo')


def test_stablehlo_computes_in_bfloat16_where_the_network_does(
  called_stablehlo,
):
  check(called_stablehlo, 'bfloat16', 'stablehlo', atol=0.1, share=0.98)
  program = (called_stablehlo / 'bfloat16.stablehlo').read_bytes()
  assert 'xbf16>' in export.deserialize(program).mlir_module()


@pytest.mark.parametrize('name', CASES)
def test_stablehlo_is_for_all_platforms_and_any_number_of_tiles(
  called_stablehlo, name
):
  program = (called_stablehlo / f'{name}.stablehlo').read_bytes()
  exported = export.deserialize(bytearray(program))
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  (image,) = exported.in_avals
  assert image.dtype == jnp.float32 and image.shape[1:] == CASES[name][2]
  assert not isinstance(image.shape[0], int)
  # JAX takes this one out as it compiles; see the next test.
  assert exporting.custom_calls(exported) == {'shape_assertion'}


@pytest.mark.parametrize('name', ['images', 'volumes'])
def test_stablehlo_for_a_fixed_number_of_tiles_has_no_custom_calls(name):
  predict_fn, variables, tile = case(name)
  program = exporting.to_stablehlo(predict_fn, variables, tile, batch_size=2)
  exported = export.deserialize(bytearray(program))
  assert exported.in_avals[0].shape == (2, *tile)
  text = exported.mlir_module()
  assert 'stablehlo.custom_call' not in text
  assert 'stablehlo.convolution' in text
  assert '?x' not in text  # no unknown size either


@pytest.mark.parametrize('batch_size', [None, 1])
def test_custom_calls_are_named(batch_size):

  def predict(variables, image):
    del variables
    return jax.lax.top_k(image, 1)[0] + jnp.linalg.eigh(image[0, :, :, 0])[0][0]

  with pytest.raises(ValueError, match='custom calls .*lapack_ssyevd'):
    exporting.to_stablehlo(predict, {}, (4, 4, 1), batch_size=batch_size)


@pytest.mark.parametrize('name', list(CASES)[:-1])
def test_onnx_is_the_network_to_a_program_without_jax(called_onnx, name):
  check(called_onnx, name, 'onnx')


def test_onnx_computes_in_float32(called_onnx):
  check(called_onnx, 'bfloat16', 'onnx', dtype='float32')


def test_onnx_holds_the_weights_of_a_mirrored_network_once(called_onnx):
  _, variables, _ = case('images')
  num_bytes = sum(x.nbytes for x in jax.tree.leaves(variables))
  # 'images' has four copies of the network, and the graph is large itself.
  import onnx

  graph = onnx.load(called_onnx / 'images.onnx').graph
  assert sum(len(x.raw_data) for x in graph.initializer) < 2 * num_bytes


def test_onnx_names_the_operation_that_it_has_not():
  skip_without_onnx()

  def predict(variables, image):
    del variables
    return jax.pure_callback(np.cos, image, image)

  with pytest.raises(InputError, match="'pure_callback'") as caught:
    exporting.to_onnx(predict, {}, (4, 4, 1))
  assert '\n' not in str(caught.value)


def test_onnx_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  predict_fn, variables, tile = case('images')
  with pytest.raises(InputError, match=r"pip install 'medseg_jax\[export\]'"):
    exporting.to_onnx(predict_fn, variables, tile)


def test_onnx_leaves_no_trace_in_jax():
  skip_without_onnx()
  predict_fn, variables, tile = case('volumes')
  image = np.random.default_rng(1).normal(size=(1, *tile)).astype(np.float32)
  want = jax.jit(predict_fn)(variables, image)
  exporting.to_onnx(predict_fn, variables, tile)
  jax.clear_caches()
  np.testing.assert_array_equal(jax.jit(predict_fn)(variables, image), want)


def test_how_to_call_names_what_the_tests_do():
  for word in ('jax.export.deserialize', '[N, *tile, C]', 'six months'):
    assert word in exporting.HOW_TO_CALL
