"""A data set that several devices hold together gives the same batches."""

import os
import subprocess
import sys

import jax
import many
import numpy as np
import pytest
from conftest import ROOT
from data_cases import assert_one_line
from test_device_cache import (
  SHAPES_2D,
  SHAPES_3D,
  cache_of,
  compile_read,
  host_batch,
)

from medseg_jax.hardware import collectives, hlo
from medseg_jax.runtime import multihost, sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.training import device_cache

PATCH = (8, 16, 16)


def shared_by(members, cache, mesh, monkeypatch, *, mode='auto'):
  """Returns the data set on devices with just the room for such a part."""
  room = device_cache.measure(cache).num_bytes(members)
  monkeypatch.setattr(device_cache, '_room', lambda mode, mesh: room)
  return device_cache.place(cache, mode=mode, mesh=mesh)


def settings_of(**changed):
  return {
    'seed': 1,
    'batch_size': 8,
    'patch_size': PATCH,
    'read_size': PATCH,
    'foreground_share': 1 / 3,
  } | changed


def bits(array):
  array = np.ascontiguousarray(array)
  return array.view(f'uint{8 * array.dtype.itemsize}')


@pytest.mark.parametrize(
  ('shapes', 'channels', 'lowest', 'dtype', 'members', 'spatial', 'sizes'),
  [
    (SHAPES_2D, 3, 0, np.float16, 2, 1, ((16, 16), (16, 16))),
    (SHAPES_2D, 1, -1, np.float32, 8, 2, ((16, 24), (22, 35))),
    (SHAPES_3D, 1, -1, np.float16, 4, 1, (PATCH, (10, 20, 20))),
    (SHAPES_3D, 2, 0, np.float32, 2, 4, (PATCH, (12, 17, 16))),
    (SHAPES_3D, 2, -1, np.float16, 4, 2, ((16, 16), (24, 20))),  # slices
    (SHAPES_3D[:1], 1, 0, np.float16, 8, 4, (PATCH, PATCH)),
  ],
)
def test_the_batches_are_those_of_the_host(
  shapes, channels, lowest, dtype, members, spatial, sizes, monkeypatch
):
  cache = cache_of(shapes, channels=channels, lowest=lowest)
  for i, image in enumerate(cache.images):
    image[::2] = -0.0  # its sign is a bit like others
    cache.images[i] = image.astype(dtype)
  cache = cache._replace(dtypes=(np.dtype(dtype),) * len(shapes))
  mesh = sharding.create_mesh(spatial=spatial)
  data = shared_by(members, cache, mesh, monkeypatch)
  assert data.members == members
  count = sum(map(np.prod, shapes))
  for shard in data.label.addressable_shards:
    assert shard.data.size == -(-count // members)
  patch_size, read_size = sizes
  settings = settings_of(patch_size=patch_size, read_size=read_size)
  with jax.set_mesh(mesh):
    read = compile_read(mesh, **settings)
    for step in [*range(6), 2**31 - 2]:
      batch = read(data, np.int32(step))
      for key, expected in zip(
        ('image', 'label'), host_batch(cache, step, **settings), strict=True
      ):
        assert batch[key].dtype == expected.dtype
        layout = sharding.patches(mesh)
        assert batch[key].sharding.is_equivalent_to(layout, expected.ndim)
        np.testing.assert_array_equal(
          bits(jax.device_get(batch[key])), bits(expected)
        )


def test_one_collective_hands_the_patches_out(monkeypatch):
  cache, mesh = cache_of(SHAPES_3D), sharding.create_mesh(data=4, spatial=2)
  data = shared_by(4, cache, mesh, monkeypatch)
  with jax.set_mesh(mesh):
    read = compile_read(mesh, **settings_of())
    text = read.lower(data, np.int32(0)).compile().as_text()
  found = [
    instruction
    for computation in hlo.parse(text).computations.values()
    for instruction in computation.values()
    if collectives.name_of(instruction)
  ]
  [one] = found
  assert one.opcode == 'reduce-scatter'
  assert collectives.groups_of(one.attributes) == ((0, 1, 2, 3), (4, 5, 6, 7))
  # Image and label in 32 bits, 2 patches of 8 cut into 2 slabs for each.
  assert [shape.num_bytes for shape in one.shapes] == [4 * 2 * 4 * 16 * 16]


def test_as_few_devices_as_it_takes_share_a_copy(monkeypatch, capsys):
  cache, mesh = cache_of(SHAPES_3D), sharding.create_mesh()
  for members in (1, 2, 4, 8):
    assert shared_by(members, cache, mesh, monkeypatch).members == members
  words = capsys.readouterr().out.splitlines()
  assert 'from the data set on the device: ' in words[0]
  assert 'on the devices, 8 of which share a copy: ' in words[3]
  # Only what is shared grows smaller; what is not has to fit besides.
  points = device_cache.measure(cache).num_bytes(10**9)
  monkeypatch.setattr(device_cache, '_room', lambda mode, mesh: points)
  assert device_cache.place(cache, mode='auto', mesh=mesh) is None
  words = capsys.readouterr().out
  assert 'on each device, shared by 8 devices, and there are' in words
  # The host reads sooner than that many devices cut for each other.
  monkeypatch.setattr(device_cache, 'MOST_MEMBERS', 4)
  assert shared_by(8, cache, mesh, monkeypatch) is None
  assert shared_by(8, cache, mesh, monkeypatch, mode='on').members == 8


def test_more_voxels_than_an_index_counts_are_shared(monkeypatch):
  cache = cache_of(SHAPES_3D)._replace(voxels=None)
  mesh = sharding.create_mesh()
  largest = max(map(np.prod, SHAPES_3D))
  monkeypatch.setattr(device_cache, 'MAX_VOXELS', largest)
  assert shared_by(1, cache, mesh, monkeypatch).members == 4
  monkeypatch.setattr(device_cache, 'MAX_VOXELS', largest - 1)
  with pytest.raises(InputError) as error:
    shared_by(1, cache, mesh, monkeypatch, mode='on')
  assert_one_line(error, f'a case has {largest} voxels', f'{largest - 1}')


def one_of_two_processes():
  """Reads shared batches, in a process of its own, and compares them."""
  multihost.start()
  cache, opened = cache_of(SHAPES_3D), []

  class Seen(list):
    def __getitem__(self, index):
      opened.append(index)
      return super().__getitem__(index)

  cache = cache._replace(images=Seen(cache.images))
  mesh = sharding.create_mesh(data=2, spatial=2)
  with pytest.MonkeyPatch.context() as patch:
    data = shared_by(4, cache, mesh, patch)
  assert data.members == 4
  # The second half of the voxels begins in the second case.
  assert set(opened) == ({0, 1} if multihost.is_primary() else {0, 1, 2, 3, 4})
  settings = settings_of(batch_size=4)
  with jax.set_mesh(mesh):
    read = compile_read(mesh, **settings)
    for step in range(4):
      batch = read(data, step)
      for key, expected in zip(
        ('image', 'label'), host_batch(cache, step, **settings), strict=True
      ):
        for shard in batch[key].addressable_shards:
          np.testing.assert_array_equal(shard.data, expected[shard.index])
  multihost.finish()
  multihost.leave(0)


def test_processes_read_for_their_own_devices(tmp_path):
  port, started = many.free_port(), []
  for i in range(2):
    told = {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': str(i),
      'PYTHONPATH': os.pathsep.join([str(ROOT / 'tests'), str(ROOT)]),
    }
    code = (
      'import test_shared_data as t, jax; '
      "jax.config.update('jax_num_cpu_devices', 2); t.one_of_two_processes()"
    )
    with open(many.output(tmp_path / 'run', i), 'w') as file:
      process = subprocess.Popen(
        [sys.executable, '-c', code],
        env=os.environ | told,
        stdout=file,
        stderr=subprocess.STDOUT,
      )
    started.append(process)
  statuses = many.wait(started)
  assert statuses == [0, 0], many.printed(tmp_path / 'run', 2)
