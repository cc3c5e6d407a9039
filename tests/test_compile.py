"""`--mode=compile`: what is told of programs for hardware that is not there."""

import importlib.util
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_cases import assert_one_line
from small import load, shrink

from medseg_jax.benchmarking.flops import count_flops
from medseg_jax.experiment import build, opening
from medseg_jax.hardware import chips, costs, hlo, roofline, topologies
from medseg_jax.hardware.costs import COLLECTIVE, CONVOLUTION, OTHER, Kernel
from medseg_jax.models import create_model
from medseg_jax.programs import compile as compile_program
from medseg_jax.programs.compile import needed
from medseg_jax.programs.prepare import prepare
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.state import abstract_state
from medseg_jax.training import device_cache

# Names and sizes.


@pytest.mark.parametrize(
  ('name', 'sizes', 'num_devices'),
  [
    ('v5e:4x4', (4, 4), 16),
    ('v5p:8x8x16', (8, 8, 16), 1024),
    ('v5e:16x16:4', (16, 16), 1024),
    ('h100:8', (1, 8), 8),
    ('h100:32x8', (32, 8), 256),
  ],
)
def test_names_of_topologies(name, sizes, num_devices):
  topology = topologies.parse(name)
  assert (topology.sizes, topology.num_devices) == (sizes, num_devices)
  linked = 8 if name.startswith('h100') else num_devices // topology.slices
  assert topology.linked_devices == linked


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('v9:2x2', 'no such chip; there are v5e, v5p'),
    ('v5e', 'behind v5e: stand sizes'),
    ('v5e:4x', 'behind v5e: stand sizes'),
    ('v5e:0x4', 'behind v5e: stand sizes'),
    ('v5e:4', 'v5e takes 2 numbers'),
    ('v5p:4x4', 'v5p takes 3 numbers'),
    ('h100:1x2x8', 'h100 takes GPUs or hosts x GPUs'),
    ('v5e:4x4:0', 'behind the second colon stands the number of slices'),
    ('v5e:4x4:', 'behind the second colon stands the number of slices'),
    ('h100:32x8:2', 'number of slices of TPUs, as in v5e:4x4'),
    ('v5e:16x16:100', 'has 25600 devices'),
    ('v5p:100x100x100', 'has 1000000 devices; at most 16384'),
  ],
)
def test_what_is_no_topology(name, words):
  with pytest.raises(InputError) as error:
    topologies.parse(name)
  assert_one_line(error, '--topology=', words)


def test_a_missing_compiler_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  before = dict(os.environ)
  for name, extra in (('v5e:2x2', 'jax[tpu]'), ('a100:8', 'jax[cuda12]')):
    with pytest.raises(InputError) as error:
      topologies.prepare_process(topologies.parse(name))
    assert_one_line(error, f"pip install '{extra}'")
  assert dict(os.environ) == before


def test_the_process_is_set_up_and_keeps_what_it_was_given(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  for name in ('JAX_PLATFORMS', 'TPU_SKIP_MDS_QUERY', 'TPU_ACCELERATOR_TYPE'):
    monkeypatch.setenv(name, 'mine')
  assert topologies.prepare_process(topologies.parse('v5e:2x2')) == {}
  assert os.environ['TPU_ACCELERATOR_TYPE'] == 'mine'
  assert os.environ['JAX_PLATFORMS'] == 'cpu'  # never the accelerator itself


def test_the_description_of_a_card_has_its_numbers():
  text = chips.target_config(chips.CHIPS['h200'].card)
  numbers = dict(re.findall(r'(\w+): (\S+)', text))
  assert numbers['device_memory_size'] == '151397597184'
  assert numbers['memory_bandwidth'] == '4800000000000'
  assert numbers['core_count'] == '132'
  assert 'cuda_compute_capability { major: 9 minor: 0 }' in text
  assert text.count('{') == text.count('}')


# The least time.


def kernel(kind=OTHER, num_bytes=0, flops=None, **fields):
  flops = flops or {}
  return Kernel('k', kind, 2, num_bytes, 1, flops, flops, **fields)


def test_least_time_by_hand():
  chip = chips.CHIPS['v5e']
  found = [
    kernel(num_bytes=819_000_000),  # a millisecond, twice
    kernel(CONVOLUTION, 819_000, {'bf16': 3 * 197 * 10**9}),  # 3 ms, twice
  ]
  least = roofline.least_time(found, chip, linked_devices=16)
  assert least.seconds == pytest.approx(8e-3)
  assert least.bandwidth_share == pytest.approx(0.25)
  assert least.shares['convolutions'] == pytest.approx(0.75)
  assert sum(least.shares.values()) == pytest.approx(1)


def test_collectives_take_the_slowest_link_of_their_group():
  chip = chips.CHIPS['h100']
  inside = ((0, 1, 2, 3, 4, 5, 6, 7), (8, 9, 10, 11, 12, 13, 14, 15))
  across = ((0, 8), (1, 9))
  everybody = (inside[0] + inside[1],)
  for name, groups, seconds in [
    ('all-reduce', inside, 2 * 7 / 8 / 450),
    ('all-gather', inside, 7 / 8 / 450),
    ('all-reduce', across, 2 * 1 / 2 / 50),
    # Within each host, then each GPU its eighth to the other host, and back.
    ('all-reduce', everybody, 2 * (7 / 8 / 450 + 1 / 2 / 8 / 50)),
    ('all-gather', everybody, 7 / 8 / 450 + 1 / 2 / 8 / 50),
    ('all-to-all', everybody, 7 / 8 / 450 + 1 / 2 / 50),
    ('all-reduce', (), 2 / 450),
    ('collective-permute', ((0, 1), (1, 2)), 1 / 450),
    ('collective-permute', ((7, 8), (8, 7)), 1 / 50),
  ]:
    one = kernel(COLLECTIVE, 10**9, collective=name, groups=groups)
    found = roofline.collective_seconds(one, chip, linked_devices=8)
    assert found == pytest.approx(seconds, rel=1e-5), (name, groups)


def test_what_slices_send_each_other_is_a_collective():
  attributes = (
    'channel_id=4, is_host_transfer=true, frontend_attributes={'
    '_xla_megascale_target="{1,2}x{0:1}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  [one] = costs.kernels(
    hlo.parse(f"""
ENTRY %main (x: f32[25000000]) -> f32[25000000] {{
  %x = f32[25000000]{{0}} parameter(0)
  %t = token[] after-all()
  %s = (f32[25000000]{{0}}, u32[], token[]) send(%x, %t), {attributes}
  %d = token[] send-done(%s), channel_id=4
  %r = (f32[25000000]{{0}}, u32[], token[]) recv(%t), {attributes}
  %e = (f32[25000000]{{0}}, token[]) recv-done(%r), channel_id=4
  ROOT %y = f32[25000000]{{0}} get-tuple-element(%e), index=0
}}
""")
  )
  assert (one.collective, one.groups) == ('all-reduce', ((0, 2), (1, 3)))
  # Each chip sends all that it has to its like, at 3.125 GB/s, and back.
  seconds = roofline.collective_seconds(one, chips.CHIPS['v5e'], 2)
  assert seconds == pytest.approx(2 * 1 / 2 * 1e8 / 3.125e9, rel=1e-6)


@pytest.mark.parametrize(
  ('message', 'gib'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (360.00G) exceeds available HBM (15.75G).',
      360,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G '
      'of 15.75G hbm. Exceeded hbm capacity by 4.75G.',
      20.5,
    ),
    ('RESOURCE_EXHAUSTED: whatever', None),
  ],
)
def test_what_the_compiler_says_it_needs(message, gib):
  assert needed(message) == (gib and gib * 2**30)


# The program, on four CPU devices in the place of a topology's.


@pytest.fixture
def cpu_topology(monkeypatch):
  """Returns the topology v5e:2x2, made of CPU devices."""
  monkeypatch.setattr(topologies, 'devices', lambda _: jax.devices()[:4])
  return topologies.parse('v5e:2x2')


def small():
  return shrink(load('unet'))


def with_memory(monkeypatch, num_bytes):
  small = chips.CHIPS['v5e']._replace(memory=num_bytes)
  monkeypatch.setitem(chips.CHIPS, 'v5e', small)


def test_both_programs_are_told(cpu_topology, tmp_path, capsys):
  before = jax.config.jax_optimization_level
  result = compile_program.run(small(), tmp_path, topology=cpu_topology)
  assert json.loads((tmp_path / 'compile.json').read_text()) == result
  words = capsys.readouterr().out
  assert json.loads(words.splitlines()[-1]) == result
  assert max(map(len, words.splitlines()[:-1])) <= 80
  assert result['fits'] and result['mesh'] == {'data': 4, 'spatial': 1}
  # On each device: 12 images, half precision and labels of a byte, and where
  # they begin and their sizes.
  assert result['data_bytes'] == 12 * (16 * 16 * (2 + 1) + 4 + 8)
  step = result['train_step']
  assert step['memory_bytes'] == sum(step['memory_bytes_of'].values())
  assert step['collectives']['all-reduce']['count'] >= 1
  assert step['collectives_along'] == {'data': step['collectives']}
  assert step['least_ms'] > 0 and step['kernels'] > 50
  assert set(step['convolutions']) == {'float32'}
  part = step['augmentation']  # nothing but the cutting out of the patches
  assert part['flops'] == 0 and 0 < part['bytes'] < step['bytes'] / 10
  assert result['predict']['augmentation']['kernels'] == 0
  # The work is that of the step as it was written, divided by the devices.
  config, *_ = opening.open_run(small(), tmp_path)
  mesh = build.mesh_of(config)
  model = build.model_of(config, mesh)
  tx, schedule = build.optimizer_of(config)
  state = abstract_state(**build.state_arguments(config, model, tx, mesh))
  batch = {
    'image': jax.ShapeDtypeStruct((8, 16, 16, 1), jnp.float16),
    'label': jax.ShapeDtypeStruct((8, 16, 16), jnp.int16),
  }
  train_step = build.train_step_of(config, model, tx, schedule)
  work = count_flops(train_step, state, batch) / 4
  assert step['flops'] == pytest.approx(work, rel=0.02)
  assert jax.config.jax_optimization_level == before


def test_what_does_not_fit_is_told_with_what_would_help(
  cpu_topology, tmp_path, monkeypatch
):
  with_memory(monkeypatch, 100_000)  # a third is for the data set, if need be
  with pytest.raises(InputError) as error:
    compile_program.run(small(), tmp_path, topology=cpu_topology)
  assert_one_line(
    error,
    'the training step needs',
    'each device has 0.0954 MiB',
    'config.batch_splits=2',
    'config.model.remat=true',
    'config.mesh.spatial=2',
    'a smaller config.patch_size',
    'config.data.device_cache=off',
  )
  written = json.loads((tmp_path / 'compile.json').read_text())
  assert not written['fits'] and written['train_step']['flops'] > 0


def test_the_largest_batch(cpu_topology, tmp_path, monkeypatch, capsys):
  config = small()
  config.benchmark.sweep_batch = True
  asked = {}

  def memory_of(step_of, config, batch_size):
    asked[batch_size] = 1_000_000 + 10_000 * batch_size
    return asked[batch_size]

  monkeypatch.setattr(compile_program, '_memory_of', memory_of)
  monkeypatch.setattr(
    compile_program,
    '_examine',
    lambda *_: {'fits': True, 'memory_bytes': 1_080_000},  # of a batch of 8
  )
  with_memory(monkeypatch, 2_000_000)
  result = compile_program.run(config, tmp_path, topology=cpu_topology)
  assert (result['largest_batch_size'], result['largest_batch_is_limit']) == (
    100,
    True,
  )
  assert 8 not in asked  # known already
  assert 'fit: 100\n' in capsys.readouterr().out


def test_a_data_set_lies_on_the_devices_where_training_puts_it(tmp_path):
  config, sources, _ = opening.open_run(small(), tmp_path)
  cache = prepare(config, {'train': sources['train']})

  def shapes(mode, memory, mesh):
    return device_cache.abstract(cache, mode=mode, mesh=mesh, memory=memory)

  mesh = build.mesh_of(config)
  assert shapes('on', 1e9, mesh) == jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    device_cache.place(cache, mode='on', mesh=mesh),
  )
  assert shapes('auto', 1e9, mesh) == shapes('on', 1e9, mesh)
  assert shapes('off', 1e9, mesh) is None
  assert shapes('auto', 1e4, mesh).members == 8
  assert shapes('auto', 1e3, mesh) is None
  with pytest.raises(InputError) as error:
    shapes('on', 1e3, mesh)
  assert_one_line(error, 'config.data.device_cache is on', '0.8 kB at the most')


# The compiler of TPUs itself.


@pytest.fixture
def tpu(monkeypatch):
  """Returns a function from a topology's name to the topology's devices."""
  pytest.importorskip('libtpu', reason='the compiler of TPUs is not installed')
  for name in ('JAX_PLATFORMS', *topologies._ENVIRONMENT['tpu']):
    monkeypatch.delenv(name, raising=False)  # to be as before, afterwards

  def devices(name):
    topology = topologies.parse(name)
    topologies.prepare_process(topology)
    return topologies.devices(topology)

  return devices


@pytest.mark.parametrize(
  ('name', 'spatial', 'shape'),
  [
    ('v5p:8x8x16', 4, (256, 4)),
    ('v6e:16x16', 8, (32, 8)),
    ('v5e:2x1', 1, (2, 1)),
    ('v5p:3x4x5', 1, (60, 1)),
    ('v5e:4x4:2', 4, (8, 4)),
  ],
)
def test_meshes_of_a_torus(tpu, name, spatial, shape):
  devices = tpu(name)
  mesh = sharding.create_mesh(spatial=spatial, devices=devices)
  assert mesh.devices.shape == shape
  assert {d.id for d in mesh.devices.flat} == {d.id for d in devices}
  # Those that share an image are neighbours, on a line of that length at most.
  for row in mesh.devices[:8]:
    assert len({getattr(d, 'slice_index', 0) for d in row}) == 1
    corners = np.array([device.coords for device in row])
    assert np.ptp(corners, axis=0).sum() < 2 * spatial


def test_an_image_stays_in_a_slice(tpu):
  with pytest.raises(InputError) as error:
    sharding.create_mesh(spatial=32, devices=tpu('v5e:4x4:2'))
  assert_one_line(error, 'config.mesh is 1 x 32', 'for 2 slices')


def test_a_torus_that_is_none_is_told(tpu, monkeypatch):
  monkeypatch.setattr(topologies, '_host_bounds', lambda _: (2, 2, 1))
  with pytest.raises(InputError) as error:
    tpu('v5e:3x3')
  assert_one_line(error, '--topology=v5e:3x3: the compiler refuses it')


@pytest.mark.parametrize(
  ('name', 'wheel'), [('v5e:1x1', 'libtpu'), ('h100:1', 'jax_cuda12_plugin')]
)
def test_a_program_for_an_accelerator_is_made_by_a_cpu(
  name, wheel, monkeypatch
):
  pytest.importorskip(wheel, reason=f'the compiler for {name} is not installed')
  topology = topologies.parse(name)
  platform = topology.chip.platform
  for variable in ('JAX_PLATFORMS', *topologies._ENVIRONMENT[platform]):
    monkeypatch.delenv(variable, raising=False)  # to be as before, afterwards
  flags = topologies.prepare_process(topology)
  mesh = build.mesh_of(load('unet'), topologies.devices(topology))
  # Even a network that has been made for a CPU has XLA's own convolutions.
  model = create_model(
    'unet', 2, features=8, depth=2, dtype='bfloat16', convolutions='onednn'
  )
  image = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
  weights = jax.eval_shape(model.init, jax.random.key(0), image)
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  with compile_program._compiler_settings(topology), jax.set_mesh(mesh):
    text = (
      jax.jit(model.apply, in_shardings=place)
      .lower(weights, image)
      .compile(compiler_options=flags)  # too late for the environment
      .as_text()
    )
  found = costs.total(costs.kernels(hlo.parse(text)))
  # Six convolutions and the upsampling; in float32 is the head alone.
  assert found.products['bf16']['count'] == 7
  assert found.products['f32']['count'] == 1
  assert '__onednn' not in text
