"""Who computes the convolutions: by platform, said, and the same in the end."""

import os
import re
import subprocess
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HANG_S, ROOT
from model_cases import image_of, one_cpu, random_variables

from medseg_jax.experiment import build
from medseg_jax.models import convolution, cpu, create_model
from medseg_jax.models.cpu import onednn
from medseg_jax.runtime import process
from medseg_jax.runtime.sharding import create_mesh


def text_for(platform, fn, *arguments):
  """Returns the StableHLO that this CPU makes for another platform."""
  with process.not_kept(one_cpu()):
    traced = jax.jit(fn).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_programs_for_accelerators_have_the_dtype_that_was_asked_for(platform):
  model = create_model(
    'unet',
    2,
    features=4,
    depth=2,
    norm='instance',
    dtype='bfloat16',
    convolutions='onednn',
  )
  image = image_of(2, 8, 8, 8, 1)
  weights = random_variables(model, image)

  def loss(weights, image):
    return model.apply(weights, image).sum()

  text = text_for(platform, jax.value_and_grad(loss), weights, image)
  assert '__onednn' not in text and 'custom_call' not in text
  products = re.findall(
    r'stablehlo\.(?:convolution|dot_general).*?: \((.*?)\) ->', text
  )
  # Six convolutions, the upsampling and the head, each with two gradients, but
  # for the image's own.
  assert len(products) == 3 * 8 - 1
  narrow = [types.count('bf16') == 2 for types in products]
  # In float32 is the head alone: bfloat16 has too few digits for logits.
  assert narrow.count(False) == 3


def test_the_same_program_for_a_cpu_calls_onednn():
  model = create_model('unet', 2, features=4, depth=2, convolutions='onednn')
  image = image_of(1, 8, 8, 1)
  weights = random_variables(model, image)
  assert '__onednn' in text_for('cpu', model.apply, weights, image)


def test_a_network_by_itself_is_plain_xla():
  code = """
import os, sys
import jax
before = dict(os.environ), dict(jax.config.values)
import medseg_jax.models as models
assert before == (dict(os.environ), dict(jax.config.values))
import jax.numpy as jnp
model = models.create_model('unet', 2, features=4, depth=2)
image = jnp.zeros((1, 8, 8, 1))
weights = jax.eval_shape(model.init, jax.random.key(0), image)
text = jax.jit(model.apply).lower(weights, image).as_text()
assert 'custom_call' not in text and 'stablehlo.convolution' in text
# Plain operations have derivatives of every kind.
jax.eval_shape(
  lambda w: jax.jvp(lambda x: model.apply(w, x), (image,), (image,)), weights
)
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stderr


def mesh_on(platform, size=1):
  devices = np.array([types.SimpleNamespace(platform=platform)] * size)
  return types.SimpleNamespace(devices=devices, size=size)


def test_the_choice_follows_the_mesh_and_tells_why(monkeypatch):
  assert cpu.choose(mesh_on('cpu')) == ('onednn', '')
  assert cpu.choose(mesh_on('gpu')) == cpu.choose(mesh_on('tpu', 8))
  assert cpu.choose(mesh_on('gpu')) == ('xla', '')
  assert cpu.choose(mesh_on('cpu', 4)) == (
    'xla',
    'several devices share them',
  )
  monkeypatch.setattr(onednn, 'why_not', onednn.why_not.__wrapped__)
  monkeypatch.setattr(onednn, '_BEFORE', (0, 5))
  convolutions, reason = cpu.choose(mesh_on('cpu'))
  assert convolutions == 'xla'
  assert reason.endswith(f'not with {jax.__version__}')
  config = types.SimpleNamespace(
    model=types.SimpleNamespace(name='unet'),
    inference=types.SimpleNamespace(mirror=False),
  )
  line = build.describe_network(config, mesh_on('cpu'))
  assert line == f'network   unet, convolutions by XLA ({reason})'
  assert build.describe_network(config, mesh_on('gpu')) == (
    'network   unet, convolutions by XLA'
  )
  several = build.describe_network(config, create_mesh())
  assert several.endswith('XLA (several devices share them)')


def test_the_trial_is_not_kept():
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  assert jax.config.jax_compilation_cache_dir
  try:
    jax.config.update(name, 0.0)
    with warnings.catch_warnings():
      warnings.simplefilter('error')  # of a program that cannot be written
      assert onednn.why_not.__wrapped__() == ''
  finally:
    jax.config.update(name, before)


@pytest.mark.parametrize(
  'settings', [{'kernel_dilation': (2, 1)}, {'feature_group_count': 2}]
)
def test_what_onednn_is_not_asked_for_is_xlas_own(settings):
  x = image_of(1, 8, 8, 2)
  results = []
  for convolutions in ('xla', 'onednn'):
    module = convolution.conv(
      4, (3, 3), (1, 1), convolutions=convolutions, **settings
    )
    weights = random_variables(module, x)
    assert '__onednn' not in text_for('cpu', module.apply, weights, x)
    results.append(module.apply(weights, x))
  np.testing.assert_array_equal(*results)


def test_an_unknown_choice_is_refused():
  with pytest.raises(ValueError, match="convolutions='mkl' is not allowed"):
    create_model('unet', 2, convolutions='mkl')


# The loop itself, on one device and without a cache of compiled programs, once
# as it is and once with XLA's own convolutions.
LOOP = """
import json, os, pathlib, sys
sys.path[:0] = [{root!r}, {tests!r}]
import jax
from small import load, shrink
for name, value in {{  # conftest's are for the other tests
  'jax_num_cpu_devices': 1,
  'jax_enable_compilation_cache': False,
  'jax_disable_most_optimizations': False,
}}.items():
  jax.config.update(name, value)
os.environ.pop('XLA_FLAGS', None)
from medseg_jax.programs import train
from medseg_jax.models.cpu import onednn
for name in ('onednn', 'xla'):
  if name == 'xla':
    onednn.why_not = lambda: 'for comparison'
  config = shrink(load('unet'), size=32, num_steps=100)
  config.seed, config.model.features = 1, 8  # four features may all die
  config.data.phantom.num_train = 40
  config.data.phantom.num_test = 4
  config.log_every = 100
  config.eval_every = 0
  summary = train.run(config, pathlib.Path(sys.argv[1]) / name)
  print('Dice', json.dumps(summary['mean']['dice']))
"""


@pytest.fixture(scope='module')
def loops(tmp_path_factory):
  """Returns the output and the mean Dice of each of the two runs."""
  code = LOOP.format(root=str(ROOT), tests=str(ROOT / 'tests'))
  environment = {
    k: v for k, v in os.environ.items() if not k.startswith('JAX_')
  }
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path_factory.mktemp('loops'))],
    env=environment,
    capture_output=True,
    text=True,
    timeout=HANG_S,
  )
  assert done.returncode == 0, done.stderr
  first, second = re.findall('(.*?)^Dice (.*?)$', done.stdout, re.S | re.M)
  return {
    name: (output, float(dice))
    for name, (output, dice) in (('onednn', first), ('xla', second))
  }


def test_the_loop_learns_on_the_cpus_own_path(loops):
  output, dice = loops['onednn']
  assert 'network   unet, convolutions by oneDNN' in output
  assert dice > 0.3  # background alone has 0
  own, other = loops['xla']
  assert 'convolutions by XLA (for comparison)' in own
  # Rounding grows in 120 steps, but what is learnt is the same.
  assert abs(dice - other) < 0.05


def test_rounding_of_the_two_is_alike():
  image = image_of(2, 8, 8, 8, 2)
  outputs = []
  for convolutions in ('xla', 'onednn'):
    model = create_model(
      'unet', 3, features=4, depth=2, attention=True, convolutions=convolutions
    )
    weights = random_variables(model, image)
    with process.not_kept(one_cpu()):
      outputs.append(jax.jit(model.apply)(weights, image))
  np.testing.assert_allclose(*outputs, atol=1e-5)
  assert outputs[0].dtype == jnp.float32
