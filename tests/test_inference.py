"""Tiled prediction: exact where all tiles agree, one compile for all sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Preprocessing
from medseg_jax.inference import gaussian_weight, sliding_window, tile_starts
from medseg_jax.segment import predict_cases


def affine(tiles):
  """Two classes; each voxel's logits depend on that voxel alone."""
  return jnp.concatenate([2 * tiles[..., :1] + 1, -tiles[..., :1]], -1)


@pytest.mark.parametrize(
  ('size', 'patch'),
  [
    ((32, 32), (32, 32)),
    ((50, 37), (16, 24)),
    ((9, 70), (16, 16)),
    ((5, 5), (16, 16)),
    ((11, 20, 13), (8, 8, 8)),
  ],
)
@pytest.mark.parametrize('batch_size', [1, 3])
def test_a_local_function_comes_back_unchanged(size, patch, batch_size):
  image = np.random.default_rng(0).standard_normal((*size, 1), np.float32)
  got = sliding_window(affine, image, patch, batch_size=batch_size)
  np.testing.assert_allclose(got, affine(image), rtol=1e-5, atol=1e-5)
  assert got.dtype == jnp.float32


def test_under_jit_it_gives_the_same():
  image = np.random.default_rng(0).standard_normal((21, 30, 1), np.float32)
  call = lambda x: sliding_window(affine, x, (16, 16), batch_size=4)  # noqa: E731
  np.testing.assert_allclose(jax.jit(call)(image), call(image), rtol=1e-5)


def test_overlapping_tiles_are_averaged_with_gaussian_weights():
  counter = iter([1.0, 5.0])

  def constant(tiles):
    return jnp.full((*tiles.shape[:-1], 1), next(counter))

  got = sliding_window(constant, np.zeros((6, 1)), (4,), overlap=0.5)
  w = np.exp(-0.5 * ((np.arange(4) - 1.5) / 0.5) ** 2)
  w = np.maximum(w / w.max(), 1e-3)
  middle = (w[2:] * 1 + w[:2] * 5) / (w[2:] + w[:2])
  np.testing.assert_allclose(
    got[:, 0], [1, 1, *middle, 5, 5], rtol=1e-6
  )


def test_tiles_cover_the_image_evenly():
  starts = tile_starts((100, 64), (64, 64), overlap=0.5)
  np.testing.assert_array_equal(starts, [[0, 0], [18, 0], [36, 0]])


def test_weights_peak_in_the_middle_and_vanish_nowhere():
  weight = gaussian_weight((8, 12, 6))
  assert weight.max() == 1 and weight.min() == np.float32(1e-3)
  np.testing.assert_allclose(weight, weight[::-1, ::-1, ::-1])


def test_every_image_size_shares_one_compiled_prediction():
  traces = []

  @jax.jit
  def predict(tiles):
    traces.append(tiles.shape)
    return affine(tiles)

  for size in [(40, 30), (17, 64), (8, 8)]:
    sliding_window(predict, np.zeros((*size, 1)), (16, 16), batch_size=2)
  assert traces == [(2, 16, 16, 1)]


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    (dict(patch_size=(8, 8, 8)), 'the image has 2 axes'),
    (dict(patch_size=(8, 8), overlap=1.0), 'overlap is 1.0'),
    (dict(patch_size=(8, 8), batch_size=0), 'batch_size is 0'),
  ],
)
def test_misuse_is_told(kwargs, words):
  with pytest.raises(ValueError, match=words):
    sliding_window(affine, np.zeros((16, 16, 1)), **kwargs)


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_cases_keep_order_and_grid_whatever_the_batch(batch_size):
  rng = np.random.default_rng(1)
  sizes = [(16, 16), (12, 9), (40, 20), (16, 16), (3, 16)]
  cases = [
    Case(f'{i}', rng.integers(0, 256, (*s, 1), np.uint8), None, (1.0, 1.0))
    for i, s in enumerate(sizes)
  ]
  got = list(
    predict_cases(
      affine,
      cases,
      preprocessing=Preprocessing('zscore'),
      channels=1,
      patch_size=(16, 16),
      overlap=0.5,
      batch_size=batch_size,
    )
  )
  assert [case.name for case, _ in got] == ['0', '1', '2', '3', '4']
  for case, pred in got:
    image = case.image[..., 0].astype(np.float64)
    z = (image - image.mean()) / image.std()
    np.testing.assert_array_equal(pred, (-z > 2 * z + 1).astype(int))


def test_a_resized_image_is_labelled_on_its_own_grid():
  image = np.zeros((30, 50, 1), np.uint8)
  image[:, 25:] = 255
  [(_, pred)] = predict_cases(
    lambda x: jnp.concatenate([0.5 - x, x - 0.5], -1),
    [Case('half', image, None, (1.0, 1.0))],
    preprocessing=Preprocessing('scale', resize=(16, 16)),
    channels=1,
    patch_size=(16, 16),
    overlap=0.5,
    batch_size=2,
  )
  np.testing.assert_array_equal(pred, image[..., 0] > 0)


def test_a_grey_image_serves_a_colour_model_and_not_the_reverse():
  def run(image_channels, model_channels):
    def count(tiles):
      assert tiles.shape[-1] == model_channels
      return tiles[..., :2]

    image = np.zeros((16, 16, image_channels), np.uint8)
    return list(
      predict_cases(
        count,
        [Case('a case', image, None, (1.0, 1.0))],
        preprocessing=Preprocessing('scale'),
        channels=model_channels,
        patch_size=(16, 16),
        overlap=0.5,
        batch_size=1,
      )
    )

  assert len(run(1, 3)) == 1
  with pytest.raises(ValueError, match='a case has 3 channels; .* on 1'):
    run(3, 1)
