"""The weak-scaling tables, against sums made by hand."""

import pytest
from conftest import ROOT

MIB = 2**20


@pytest.fixture
def scaling(monkeypatch):
  """Returns the module of `scaling.py`."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import scaling

  return scaling


def compiled(topology, spatial, along):
  """Returns a `compile.json` of a step whose kernels take 30 ms."""
  return {
    'topology': topology,
    'mesh': {'data': 8 // spatial, 'spatial': spatial},
    'batch_size': 8,
    'num_devices': 8,
    'jax_version': '1.2',
    'train_step': {
      'least_ms': 40.0,
      'least_share': {'collectives': 0.25},
      'collectives_along': along,
    },
  }


def test_a_gradient_crosses_hosts_in_parts(scaling):
  along = {'data': {'all-reduce': {'count': 2, 'bytes': 450e6}}}
  found = compiled('h100:8', 1, along)
  inside = 2 * 7 / 8 / 1000  # of 450 MB at 450 GB/s
  start = 4.4e-6 + 2 * 7 * 0.52e-6
  alone = scaling.collective_seconds(found, 8)['data']
  assert alone == pytest.approx(inside + 2 * start)
  # Each GPU sends its eighth to the 31 other hosts, at 50 GB/s, and back.
  between = 2 * 31 / 32 * 450e6 / 8 / 50e9
  many = scaling.collective_seconds(found, 256)['data']
  assert many == pytest.approx(inside + between + 2 * (start + 2 * 5 * 5e-6))


def test_an_image_is_shared_by_neighbours_on_a_line(scaling):
  along = {
    'spatial': {'collective-permute': {'count': 3, 'bytes': 50e6}},
    'data': {'all-reduce': {'count': 1, 'bytes': 200e6}},
  }
  found = compiled('v5e:2x4', 4, along)
  # One of four links, 200 GB/s together; a microsecond a hop.
  halo = 1e-3 + 3 * 1e-6
  for chips in (8, 256, 1024):
    seconds = scaling.collective_seconds(found, chips)
    assert seconds['spatial'] == pytest.approx(halo)
  # Eight chips have no rings, so half of the bandwidth; two share a gradient.
  seconds = scaling.collective_seconds(found, 8)['data']
  assert seconds == pytest.approx(2 * 1 / 2 * 200e6 / 100e9 + 2e-6)


def test_a_table_has_a_line_for_each_number_of_chips(scaling):
  along = {'data': {'all-reduce': {'count': 2, 'bytes': 64 * MIB}}}
  *head, _, _, first, second, third, fourth = scaling.lines(
    compiled('v5p:2x2x2', 1, along)
  )
  rows = (first, second, third, fourth)
  assert ' '.join(head).strip() == (
    'Compiled: `v5p:2x2x2`, spatial 1, jax 1.2, 1 patch a chip; along data: '
    '2 all-reduce (64 MiB)'
  )
  assert [row.split('|')[1].strip() for row in rows] == [
    '8',
    '64',
    '256',
    '1024',
  ]
  for row in rows:
    _, chips, _, alone, gradient, inside, step, rate, share, _ = row.split('|')
    assert float(alone) == 30
    assert float(inside) == 0
    assert float(step) == pytest.approx(30 + float(gradient), abs=0.006)
    rate = float(rate.replace(',', ''))
    assert rate == pytest.approx(1e3 * float(chips) / float(step), rel=1e-3)
    assert float(share.strip().rstrip('%')) == pytest.approx(
      100 * 30 / float(step), abs=0.06
    )
