"""Tiled prediction: exact where all tiles agree, one compile for all sizes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medseg_jax.inference import (
  by_case,
  sliding_slabs,
  sliding_window,
  stitching,
  stream_slabs,
)
from medseg_jax.inference.tiles import (
  axis_starts,
  axis_weights,
  gaussian_weight,
  lay_out,
)

ON_HOST, ON_DEVICE = 0, 2**40  # bytes that the sums may take on the device


def affine(tiles):
  """Two classes; each voxel's logits depend on that voxel alone."""
  return jnp.concatenate([2 * tiles[..., :1] + 1, -tiles[..., :1]], -1)


def uneven(tiles):
  """Two classes; the logits depend on the place in the tile too."""
  place = sum(
    (10.0**a) * jnp.arange(n).reshape([-1] + [1] * (tiles.ndim - 2 - a))
    for a, n in enumerate(tiles.shape[1:-1])
  )
  return affine(tiles) * jnp.cos(place)


def random_image(*size, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((*size, channels)).astype(np.float32)


def weighted_mean(fn, image, patch, overlap):
  """Returns the recipe's result in float64, tile after tile."""
  rank = image.ndim - 1
  weight = functools.reduce(np.multiply.outer, map(gaussian_weight, patch))
  axes = [
    axis_starts(n, p, overlap=overlap)
    for n, p in zip(image.shape, patch, strict=False)
  ]
  total = norm = 0
  for corner in itertools.product(*axes):
    inside = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
    logits = np.asarray(fn(image[inside][None])[0], np.float64)
    pads = [
      (c, n - c - p)
      for c, n, p in zip(corner, image.shape[:rank], patch, strict=True)
    ]
    total = total + np.pad(logits * weight[..., None], [*pads, (0, 0)])
    norm = norm + np.pad(weight, pads)
  return total / norm[..., None]


@pytest.mark.parametrize(
  ('size', 'patch'),
  [
    ((32, 32), (32, 32)),
    ((50, 37), (16, 24)),
    ((9, 70), (16, 16)),
    ((5, 5), (16, 16)),
    ((6,), (4,)),
    ((11, 20, 13), (8, 8, 8)),
    ((5, 20, 13), (8, 8)),
  ],
)
@pytest.mark.parametrize('batch_size', [1, 3])
def test_a_local_function_comes_back_unchanged(size, patch, batch_size):
  image = random_image(*size)
  got = sliding_window(affine, image, patch, batch_size=batch_size)
  np.testing.assert_allclose(got, affine(image), rtol=1e-5, atol=1e-5)
  assert got.dtype == jnp.float32


@pytest.mark.parametrize('where', [ON_HOST, ON_DEVICE])
@pytest.mark.parametrize('batch_size', [1, 4])
@pytest.mark.parametrize(
  ('size', 'patch', 'overlap'),
  [
    ((11, 20, 13), (8, 8, 8), 0.5),
    ((30, 41), (16, 12), 0.7),
    ((16, 21), (8, 8), 0.0),
  ],
)
def test_slabs_add_up_to_the_weighted_mean_of_all_tiles(
  size, patch, overlap, batch_size, where, monkeypatch
):
  monkeypatch.setattr(stitching, 'SLAB_VALUES', 3 * 20 * 13 * 2)  # three planes
  image = random_image(*size)
  slabs = list(
    sliding_slabs(
      uneven,
      image,
      patch,
      overlap=overlap,
      batch_size=batch_size,
      buffer_bytes=where,
    )
  )
  expected = weighted_mean(uneven, image, patch, overlap)
  np.testing.assert_allclose(np.concatenate(slabs), expected, atol=1e-5)
  assert all(type(slab) is np.ndarray for slab in slabs)
  if len(size) == 3:
    assert max(map(len, slabs)) <= 3 < len(slabs)


def test_under_jit_it_gives_the_same():
  for size, patch in [((21, 30), (16, 16)), ((9, 21, 30), (16, 16))]:
    call = functools.partial(
      sliding_window, uneven, patch_size=patch, batch_size=4
    )
    image = random_image(*size)
    np.testing.assert_allclose(jax.jit(call)(image), call(image), atol=1e-5)


def test_half_precision_in_and_out():
  """A float16 image goes in as float32; bfloat16 logits come out as float32."""

  def predict(tiles):
    assert tiles.dtype == np.float32
    return affine(jnp.asarray(tiles)).astype(jnp.bfloat16)

  image = random_image(20, 20).astype(np.float16)
  for where in (ON_HOST, ON_DEVICE):
    [got] = sliding_slabs(predict, image, (20, 20), buffer_bytes=where)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(
      got, affine(image.astype(np.float32)).astype(jnp.bfloat16)
    )


def test_overlapping_tiles_are_averaged_with_gaussian_weights():
  counter = iter([1.0, 5.0])

  def constant(tiles):
    return jnp.full((*tiles.shape[:-1], 1), next(counter))

  got = sliding_window(constant, np.zeros((6, 1)), (4,), overlap=0.5)
  w = np.exp(-0.5 * ((np.arange(4) - 1.5) / 0.5) ** 2)
  middle = (w[2:] * 1 + w[:2] * 5) / (w[2:] + w[:2])
  np.testing.assert_allclose(got[:, 0], [1, 1, *middle, 5, 5], rtol=1e-6)


def test_tiles_cover_the_image_evenly():
  np.testing.assert_array_equal(axis_starts(100, 64, overlap=0.5), [0, 18, 36])
  np.testing.assert_array_equal(axis_starts(64, 64, overlap=0.5), [0])
  np.testing.assert_array_equal(axis_starts(20, 8, overlap=0.0), [0, 6, 12])


@pytest.mark.parametrize('patch', [1, 7, 15, 33])
def test_the_weight_is_a_filtered_impulse(patch):
  impulse = np.zeros(patch)
  impulse[patch // 2] = 1
  filtered = ndimage.gaussian_filter1d(impulse, patch / 8, mode='constant')
  np.testing.assert_allclose(
    gaussian_weight(patch), filtered / filtered.max(), atol=1e-12
  )


def test_even_tiles_are_weighted_symmetrically_and_vanish_nowhere():
  for patch in (2, 8, 192):
    weight = gaussian_weight(patch)
    np.testing.assert_allclose(weight, weight[::-1])
    assert weight.max() == 1 and weight.min() > 1e-4


def test_the_shares_of_every_voxel_add_up_to_one():
  starts = axis_starts(50, 16, overlap=0.5)
  total = np.zeros(50)
  for start, share in zip(starts, axis_weights(starts, 50, 16), strict=True):
    total[start : start + 16] += share
  np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize('where', [ON_HOST, ON_DEVICE])
def test_images_of_one_stream_share_batches(where):
  images = [
    random_image(*s, seed=i)
    for i, s in enumerate(
      [(8, 8), (5, 8), (8, 20), (30, 5), (8, 8), (40, 40), (3, 3)]
    )
  ]
  asked, shapes = [], []

  def taken():
    for i, image in enumerate(images):
      asked.append(i)
      yield f'image {i}', image

  def predict(tiles):
    shapes.append(tiles.shape)
    return uneven(tiles)

  got, numbers = [], []
  shares: list[float] = []
  stream = stream_slabs(
    predict, taken(), (8, 8), batch_size=3, buffer_bytes=where,
    watch=shares.append,
  )  # fmt: skip
  for i, (case, slabs) in enumerate(by_case(stream)):
    assert case == f'image {i}'
    got.append(np.concatenate(list(slabs)))
    numbers.append(len(asked))
  for found, image in zip(got, images, strict=True):
    alone = sliding_window(uneven, image, (8, 8))
    np.testing.assert_allclose(found, alone, atol=1e-5)
  num_tiles = [lay_out(x.shape[:-1], (8, 8), overlap=0.5) for x in images]
  num_tiles = [grid.num_tiles for grid in num_tiles]
  # The sixth has more tiles than 8 batches and fills up its last one.
  calls = -(-sum(num_tiles[:6]) // 3) + 1
  assert shapes == [(3, 8, 8, 1)] * calls
  # All that came before is read before the image after it is asked for.
  assert numbers[-2:] == [6, 7]
  # Of that image alone it is told how far it is: 81 tiles, the first of them
  # in a batch with others.
  told = 81 * np.array(shares)
  assert 1 <= told[0] <= 3 and told[-1] == pytest.approx(81)
  np.testing.assert_allclose(np.diff(told)[:-1], 3)


def test_two_dimensional_tiles_of_several_slices_share_a_batch():
  shapes = []

  def predict(tiles):
    shapes.append(tiles.shape)
    return uneven(tiles)

  image = random_image(7, 8, 8, channels=2)
  got = sliding_window(predict, image, (8, 8), batch_size=4)
  assert shapes == [(4, 8, 8, 2)] * 2
  np.testing.assert_allclose(got, uneven(image), atol=1e-5)


def test_every_image_size_shares_a_few_compiled_programs():
  traces = []

  @jax.jit
  def predict(tiles):
    traces.append(tiles.shape)
    return affine(tiles)

  small = [stitching._add, stitching._take, stitching._shift]
  before = [program._cache_size() for program in small]
  sizes = [
    (8, 30, 33),
    (9, 16, 16),
    (40, 17, 20),
    (23, 20, 17),
    (16, 32, 32),
    (17, 29, 31),
    (30, 25, 18),
    (12, 22, 24),
    (19, 18, 30),
    (25, 24, 24),
  ]
  for size in sizes:
    image = random_image(*size)
    slabs = sliding_slabs(
      predict, image, (8, 16, 16), batch_size=2, buffer_bytes=ON_DEVICE
    )
    np.testing.assert_allclose(
      np.concatenate(list(slabs)), affine(image), atol=1e-5
    )
  assert traces == [(2, 8, 16, 16, 1)]
  compiled = [
    program._cache_size() - b for program, b in zip(small, before, strict=True)
  ]
  assert max(compiled) <= 4, compiled


def test_a_budget_too_small_for_the_sums_keeps_them_on_the_host(monkeypatch):
  added = []

  def add(*args):
    added.append(args)
    return original(*args)

  original = stitching._add
  monkeypatch.setattr(stitching, '_add', add)
  image = random_image(16, 8)
  bytes_of_sums = 2 * 4 * 8 * 8 * 2
  for budget, calls in [(bytes_of_sums - 1, 0), (bytes_of_sums, 3)]:
    list(sliding_slabs(affine, image, (8, 8), buffer_bytes=budget))
    assert len(added) == calls


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    (dict(patch_size=(8, 8, 8)), 'the image has 2 axes'),
    (dict(patch_size=()), 'the image has 2 axes'),
    (dict(patch_size=(8, 8), overlap=1.0), 'overlap is 1.0'),
    (dict(patch_size=(8, 8), batch_size=0), 'batch_size is 0'),
  ],
)
def test_misuse_is_told(kwargs, words):
  for call in (sliding_window, sliding_slabs):
    with pytest.raises(ValueError, match=words):
      call(affine, np.zeros((16, 16, 1)), **kwargs)


def test_sums_are_where_the_logits_are(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')  # of the process
  for logits in (jnp.zeros((1, 8, 8, 2)), np.zeros((1, 8, 8, 2))):
    assert stitching.free_bytes(logits) == 0  # on a CPU
