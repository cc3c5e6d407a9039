"""How training spoils the mask that a coarser stage hands to a cascade."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from medseg_jax.augment import morphology, previous_stage
from medseg_jax.data import masking
from medseg_jax.data import previous_stage as folding
from medseg_jax.step import TrainStep

SHAPE = (11, 9, 13)
FULL = np.ones((3, 3, 3), bool)


def blobs(seed, num_labels=3, shape=SHAPE):
  """Returns a label map with components of many sizes."""
  rng = np.random.default_rng(seed)
  smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
  cuts = np.quantile(smooth, np.linspace(0.4, 1, num_labels + 1))
  return np.clip(np.searchsorted(cuts, smooth), 0, num_labels).astype(np.int32)


def ball(radius):
  reach = int(radius)
  grid = np.mgrid[[slice(-reach, reach + 1)] * 3]
  return (grid**2).sum(0) <= np.float32(radius) ** 2


def by_scipy(mask, operation, radius):
  """Returns what SciPy makes of a mask: nothing shrinks from the edge."""
  structure = ball(radius)

  def dilate(x):
    return ndimage.binary_dilation(x, structure)

  def erode(x):
    return ndimage.binary_erosion(x, structure, border_value=1)

  return {
    morphology.DILATION: dilate,
    morphology.EROSION: erode,
    morphology.OPENING: lambda x: dilate(erode(x)),
    morphology.CLOSING: lambda x: erode(dilate(x)),
  }[operation](mask)


def changes(num_labels=3, **fields):
  """Returns changes that change nothing but for what is given."""
  none = previous_stage.Changes(
    morphs=jnp.array(False),
    order=1 + jnp.arange(num_labels),
    morphed=jnp.zeros(num_labels, bool),
    operations=jnp.zeros(num_labels, jnp.int32),
    radii=jnp.ones(num_labels),
    removes=jnp.array(False),
    reduced=jnp.zeros(num_labels, bool),
    choices=jnp.zeros(num_labels),
  )
  return none._replace(**{k: jnp.array(v) for k, v in fields.items()})


apply = jax.jit(previous_stage.apply_changes)


@pytest.mark.parametrize('operation', range(4))
def test_morphology_is_that_of_scipy_with_a_ball(operation):
  morphed = jax.jit(morphology.morphed)
  for seed, radius in enumerate((1.0, 1.41, 1.42, 2.5, 3.999, 8.0)):
    mask = blobs(seed, shape=(21, 18, 19)) > (operation % 2)
    result = morphed(mask, operation, jnp.float32(radius))
    np.testing.assert_array_equal(result, by_scipy(mask, operation, radius))


def test_components_are_those_of_scipy_also_where_they_wind():
  components = jax.jit(morphology.components)
  snake = np.zeros(SHAPE, bool)
  snake[::2] = True
  for i in range(1, SHAPE[0], 2):
    snake[i, 0 if i % 4 == 1 else -1, :1] = True
  snake[:, :, 5] = False
  for mask in (blobs(0) == 1, blobs(1) > 1, snake, snake & False):
    numbers = np.asarray(components(mask))
    expected, count = ndimage.label(mask, FULL)
    pairs = {*zip(numbers.ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == count + (not mask.all())
    for number, other in pairs:
      flat = np.flatnonzero(expected == other)
      assert number == (flat.max() + 1 if other else 0)


def test_what_a_label_gains_is_taken_from_the_others_in_the_order_drawn():
  mask = blobs(4)
  for order in ((1, 2, 3), (3, 1, 2)):
    operations, radii = (0, 3, 1), (2.2, 3.0, 1.5)
    expected = mask.copy()
    for label, operation, radius in zip(order, operations, radii, strict=True):
      after = by_scipy(expected == label, operation, radius)
      expected[(expected == label) & ~after] = 0
      expected[after] = label
    drawn = changes(
      morphs=True,
      order=order,
      morphed=(True,) * 3,
      operations=operations,
      radii=radii,
    )
    np.testing.assert_array_equal(apply(drawn, mask), expected)
    assert (expected != mask).any()
    # One whose turn was not drawn stays, and all do without morphology.
    for less in ({'morphs': False}, {'morphed': (False,) * 3}):
      less = {key: jnp.array(value) for key, value in less.items()}
      np.testing.assert_array_equal(apply(drawn._replace(**less), mask), mask)


def test_one_small_component_is_removed_and_each_alike():
  mask = np.zeros(SHAPE, np.int32)
  mask[:2, :2, :2] = mask[5, 5, 5] = mask[6, 6, 6] = 1  # touch by a corner
  mask[9:, 0, 0] = 1
  mask[:, :, -2:] = 1  # 198 voxels of 1287: more than 15 %
  mask[3, 3, 3] = 2
  gone = set()
  for choice in np.linspace(0, 1, 13):
    drawn = changes(
      removes=True, reduced=(True, False, False), choices=(choice,) * 3
    )
    result = np.asarray(apply(drawn, mask))
    lost = result != mask
    assert (result[lost] == 0).all() and (mask[lost] == 1).all()
    gone.add(tuple(np.flatnonzero(lost)))
  numbers, _ = ndimage.label(mask == 1, FULL)
  small = [np.flatnonzero(numbers == i) for i in np.unique(numbers[mask == 1])]
  small = {tuple(where) for where in small if len(where) < 0.15 * mask.size}
  assert gone == small and len(small) == 3


@pytest.mark.parametrize('planes', [2, 3])
def test_nothing_of_15_percent_or_more_is_removed(planes):
  mask = np.zeros((20, 10, 10), np.int32)
  mask[:planes] = 2
  mask[planes, :, :] = 2 * (planes == 2)
  mask.ravel()[300 - 1] = 0 if planes == 2 else 2  # 299 of 2000, or 300
  drawn = changes(removes=True, reduced=(True,) * 3, choices=(0.5,) * 3)
  left = int((np.asarray(apply(drawn, mask)) == 2).sum())
  assert left == (0 if planes == 2 else 300)


def test_the_shares_are_those_of_the_rules_over_10000_draws():
  keys = jax.random.split(jax.random.key(0), 10_000)
  drawn = jax.jit(jax.vmap(lambda key: previous_stage.draw_changes(key, 4)))(
    keys
  )
  drawn = jax.tree.map(np.asarray, drawn)
  assert abs(drawn.morphs.mean() - 0.4) <= 0.02
  assert abs(drawn.removes.mean() - 0.2) <= 0.02
  for each in (drawn.morphed, drawn.reduced):
    np.testing.assert_allclose(each.mean(0), 0.5, atol=0.02)
  assert drawn.radii.min() >= 1 and drawn.radii.max() <= 8
  assert drawn.radii.min() < 1.01 and drawn.radii.max() > 7.99
  np.testing.assert_allclose(drawn.radii.mean(0), 4.5, atol=0.1)
  for operation in range(4):
    share = (drawn.operations == operation).mean(0)
    np.testing.assert_allclose(share, 0.25, atol=0.02)
  orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
  assert len(orders) == 24 and counts.min() > 300  # 417 each
  np.testing.assert_array_equal(np.sort(drawn.order, 1)[0], [1, 2, 3, 4])
  # No two of them go together.
  flags = [drawn.morphs, drawn.removes, *drawn.morphed.T, *drawn.reduced.T]
  together = np.corrcoef(np.stack(flags).astype(float)) - np.eye(len(flags))
  assert np.abs(together).max() < 0.05


def test_a_batch_is_changed_one_by_one_on_one_device_and_on_eight():
  masks = np.stack([blobs(i, 2, (8, 8, 8)) for i in range(8)])
  key = jax.random.key(3)
  fn = jax.jit(lambda key, x: previous_stage.random_changes(key, x, 2))
  result = np.asarray(fn(key, masks))
  for i, each in enumerate(jax.random.split(key, 8)):
    drawn = previous_stage.draw_changes(each, 2)
    np.testing.assert_array_equal(result[i], apply(drawn, masks[i]))
  assert 0 < (result != masks).any((1, 2, 3)).sum() < 8
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('data', 'spatial'), axis_types=auto)
  spread = jax.NamedSharding(mesh, jax.P('data', 'spatial'))
  with jax.set_mesh(mesh):
    shared = fn(key, jax.device_put(masks, spread))
  np.testing.assert_array_equal(shared, result)


@pytest.mark.parametrize('xp', [np, jnp])
def test_a_mask_in_the_label_comes_out_again(xp):
  label, mask = np.meshgrid(np.arange(-1, 180), np.arange(180))
  folded = folding.fold(label, mask.astype(np.uint8), num_classes=180)
  assert folded.dtype == np.int16 and folded.min() == -1
  assert masking.fold(folded, np.zeros(mask.shape, bool)).max() < -1
  np.testing.assert_array_equal(folded[mask == 0], label[mask == 0])
  again = folding.unfold(xp.asarray(folded), num_classes=180)
  np.testing.assert_array_equal(again[0], label)
  np.testing.assert_array_equal(again[1], mask)
  assert folding.MAX_CLASSES == 180


def test_the_step_moves_the_mask_spoils_it_and_leaves_the_label(monkeypatch):
  masks = np.stack([blobs(seed, 2) for seed in range(8)])
  labels = np.stack([blobs(seed, 2) for seed in range(8, 16)])
  labels[:, 0] = -1
  image = np.random.default_rng(0).normal(size=(*labels.shape, 1))
  batch = {
    'image': jnp.asarray(image, jnp.float16),
    'label': jnp.asarray(folding.fold(labels, masks, num_classes=3)),
  }

  def flip(key, batch):
    return jax.tree.map(lambda x: x[:, ::-1], batch)

  step = TrainStep(
    model=None, tx=optax.sgd(1.0), loss_fn=None, augment_fn=flip,
    schedule=lambda step: 1.0, seed=0, num_labels=2,
  )  # fmt: skip
  augmented = jax.jit(step.augment)
  spoilt = np.zeros(len(masks))
  for number in range(12):
    got = augmented(jnp.int32(number), batch)
    np.testing.assert_array_equal(got['label'], labels[:, ::-1])
    assert got['image'].shape == (*labels.shape, 3)
    seen = np.asarray(got['image'][..., 1:])
    assert set(np.unique(seen)) == {0, 1} and seen.sum(-1).max() == 1
    moved = (masks[:, ::-1, ..., None] == [1, 2]).astype(np.float32)
    spoilt += (seen != moved).any((1, 2, 3, 4))
  # 1 - (1 - .4 * .75) * (1 - .2 * .75) = .41 are drawn; a few change nothing.
  assert 0.25 < spoilt.sum() / (12 * len(masks)) < 0.5
