"""Batches arrive whole, in the order of `sampling`, whatever the threads do."""

import itertools

import jax
import numpy as np
import pytest

from medseg_jax.data import sampling
from medseg_jax.data.cache import Cache
from medseg_jax.runtime import sharding

pytest.importorskip('tensorflow')


def cache():
  """Returns a cache of five volumes that lie in memory."""
  rng = np.random.default_rng(0)
  labels = [
    np.where(rng.random(size) < 0.01, 2, 0).astype(np.uint8)
    for size in (
      (9, 20, 18),
      (12, 16, 16),
      (7, 25, 14),
      (8, 18, 22),
      (9, 9, 30),
    )
  ]
  images = [
    rng.normal(size=(*label.shape, 1)).astype(np.float16) for label in labels
  ]
  return Cache(
    folder='',
    names=tuple('abcde'),
    images=images,
    labels=labels,
    shapes=tuple(label.shape for label in labels),
    dtypes=tuple(image.dtype for image in images),
    voxels=[sampling.sample_voxels(label, name='x') for label in labels],
  )


@pytest.mark.parametrize(
  ('patch_size', 'read_size', 'share'),
  [
    ((8, 16, 16), None, 0.0),
    ((8, 16, 16), (12, 24, 24), 1 / 3),
    ((16, 16), (24, 24), 1 / 3),
  ],
)
def test_the_batches_are_those_of_their_steps(patch_size, read_size, share):
  from medseg_jax.training.input_pipeline import create_batches

  data = cache()
  batches = create_batches(
    data,
    seed=4,
    first_step=3,
    num_steps=30,
    batch_size=8,
    patch_size=patch_size,
    read_size=read_size,
    foreground_share=share,
    mesh=sharding.create_mesh(),
  )
  count = 0
  for step, batch in zip(itertools.count(3), batches, strict=False):
    chosen = sampling.choose_patches(
      seed=4,
      step=step,
      batch_size=8,
      shapes=data.shapes,
      patch_size=patch_size,
      voxels=data.voxels,
      foreground_share=share,
    )
    image, label = sampling.read_batch(
      data.images, data.labels, chosen, patch_size, read_size
    )
    assert image.shape == (8, *(read_size or patch_size), 1)
    np.testing.assert_array_equal(jax.device_get(batch['image']), image)
    np.testing.assert_array_equal(jax.device_get(batch['label']), label)
    assert batch['image'].dtype == np.float16
    count += 1
  assert count == 27
