"""create_loss: ignored voxels, options, regions and deep supervision."""

import jax
import numpy as np
import pytest

from medseg_jax import losses

CLASSES = 3


def _example(shape=(5, 4)):
  """Returns logits [2, *shape, 3], labels and where [2, *shape]."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (2, *shape, CLASSES)).astype(np.float32)
  labels = rng.integers(0, CLASSES, (2, *shape))
  return logits, labels, rng.random((2, *shape)) < 0.6


def test_create_loss_is_the_weighted_sum_over_counted_voxels():
  logits, labels, where = _example()
  labels = np.where(where, labels, -1)
  loss_fn = losses.create_loss(
    {'dice_loss': 0.5, 'focal_loss': 0.0, 'cross_entropy': 2}
  )
  np.testing.assert_allclose(
    loss_fn(logits, labels),
    0.5 * losses.dice_loss(logits, labels, where=where)
    + 2 * losses.cross_entropy(logits, labels, where=where),
    rtol=1e-6,
  )


def test_create_loss_turns_labels_into_foreground_regions():
  logits, _, where = _example()
  labels = np.random.default_rng(0).integers(0, CLASSES + 1, where.shape)
  ignored = np.where(where, labels, -1)
  found = losses.create_loss({'sigmoid_dice_loss': 1})(logits, ignored)
  regions = np.eye(CLASSES + 1)[labels][..., 1:]
  np.testing.assert_allclose(
    found, losses.sigmoid_dice_loss(logits, regions, where=where), rtol=1e-6
  )


@pytest.mark.parametrize(
  'shares', [(1,), (1, 0), (2 / 3, 1 / 3, 0), (4 / 7, 2 / 7, 1 / 7, 0)]
)
def test_deep_supervision_weighs_levels_by_halves_but_the_lowest(shares):
  logits, labels, _ = _example((8, 6))
  # The voxel nearest to the centre of 2 is the first, of 3 and 4 the second.
  nearest = (
    labels,
    labels[:, ::2, ::2],
    labels[:, 1::4, 1::3],
    labels[:, 3::8, 2::6],
  )
  levels = [logits[:, : y.shape[1], : y.shape[2]] for y in nearest]
  levels[-1] = levels[-1] + 7
  found = losses.create_loss({'cross_entropy': 1})(
    tuple(levels[: len(shares)]), labels
  )
  expected = sum(
    share * losses.cross_entropy(x, y)
    for share, x, y in zip(shares, levels, nearest, strict=False)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_lowest_level_has_no_gradient():
  logits, labels, _ = _example((8, 6))
  loss_fn = losses.create_loss({'dice_loss': 1, 'cross_entropy': 1})
  first, second, last = jax.jit(
    jax.grad(lambda levels: loss_fn(levels, labels).sum())
  )((logits, logits[:, ::2, ::2], logits[:, ::4, ::3]))
  assert np.abs(first).min() > 0 and np.abs(second).min() > 0
  assert not np.any(last)


def test_levels_that_do_not_divide_the_labels_raise():
  _, labels, _ = _example((8, 6))
  for shape in ((2, 3, 6, 3), (2, 16, 6, 3), (2, 8, 3)):
    with pytest.raises(ValueError, match='do not divide'):
      losses.create_loss({'cross_entropy': 1})(np.zeros(shape), labels)


SOFTMAX_OVERLAP = (
  'dice_loss',
  'jaccard_loss',
  'tversky_loss',
  'generalized_dice_loss',
)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_options_reach_the_losses_that_know_them(name):
  logits, labels, where = _example()
  ignored = np.where(where, labels, -1)
  targets = labels
  sigmoid = name.startswith('sigmoid_')
  if sigmoid:
    targets = labels[..., None] == np.arange(1, CLASSES + 1)
  options = {}
  if name.removeprefix('sigmoid_') in SOFTMAX_OVERLAP:
    options = {'batch': True}
    if not sigmoid:
      options['include_background'] = False
  found = losses.create_loss({name: 2}, include_background=False, batch=True)(
    logits, ignored
  )
  np.testing.assert_allclose(
    found,
    2 * losses.LOSSES[name](logits, targets, where=where, **options),
    rtol=1e-6,
  )
  # The options change the value, so that this test would notice.
  plain = losses.create_loss({name: 2})(logits, ignored)
  assert np.allclose(found, plain) == (not options)
  if options:
    assert found[0] == found[1] and plain[0] != plain[1]


REGIONS = ((1, 2, 3), (2, 3), (3,))


def test_regions_are_the_union_of_their_classes():
  rng = np.random.default_rng(0)
  labels = rng.integers(-1, 4, (2, 5, 4, 3))
  logits = rng.normal(0, 2, (*labels.shape, 3)).astype(np.float32)
  weights = {'sigmoid_dice_loss': 1, 'sigmoid_cross_entropy': 0.5}
  found = jax.jit(losses.create_loss(weights, regions=REGIONS))(logits, labels)
  # These nest, so a voxel of class c is in the first c of them.
  targets = np.arange(3) < labels[..., None]
  expected = losses.sigmoid_dice_loss(
    logits, targets, where=labels >= 0
  ) + 0.5 * losses.sigmoid_cross_entropy(logits, targets, where=labels >= 0)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # As regions, the foreground classes are what they are without any.
  np.testing.assert_allclose(
    losses.create_loss(weights, regions=((1,), (2,), (3,)))(logits, labels),
    losses.create_loss(weights)(logits, labels),
    rtol=1e-6,
  )


def test_regions_by_hand():
  labels = np.array([[0, 1, 2, -1]])
  logits = np.zeros((1, 4, 2), np.float32)
  # Three voxels count: p = 1/2 everywhere, volumes 2 and 1.
  expected = 1 - ((2 * 1) / (1.5 + 2) + (2 * 0.5) / (1.5 + 1)) / 2
  found = losses.create_loss({'sigmoid_dice_loss': 1}, regions=[[1, 2], [2]])(
    logits, labels
  )
  np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_regions_at_every_level_of_deep_supervision():
  logits, labels, _ = _example((8, 6))
  loss_fn = losses.create_loss(
    {'sigmoid_cross_entropy': 1}, regions=((1, 2), (2,), (1,))
  )
  found = loss_fn((logits, logits[:, ::2, ::2], logits[:, ::4, ::3]), labels)
  np.testing.assert_allclose(
    found,
    (
      2 * loss_fn(logits, labels)
      + loss_fn(logits[:, ::2, ::2], labels[:, ::2, ::2])
    )
    / 3,
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  'weights, regions, message',
  [
    ({'dice_loss': 1}, REGIONS, 'takes sigmoid losses, found dice_loss'),
    ({'sigmoid_dice_loss': 1}, ((1,), ()), r'foreground classes.*found \(\)'),
    ({'sigmoid_dice_loss': 1}, ((0, 1),), r'from 1, found \(0, 1\)'),
    ({'sigmoid_dice_loss': 1}, ((1.5,),), r'whole numbers'),
  ],
)
def test_bad_regions_raise(weights, regions, message):
  with pytest.raises(ValueError, match=message):
    losses.create_loss(weights, regions=regions)


def test_a_channel_for_each_region_is_compulsory():
  logits, labels, _ = _example()
  loss_fn = losses.create_loss({'sigmoid_dice_loss': 1}, regions=((1,), (2,)))
  with pytest.raises(ValueError, match='labels must have shape'):
    loss_fn(logits, labels)


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'dice': 1}, r"'dice'; did you mean dice_loss\?"),
    ({'sigmoid_crossentropy': 0}, 'did you mean sigmoid_cross_entropy'),
    ({'hinge': 1}, r"'hinge' \(known: cross_entropy, "),
    ({'dice_loss': -1, 'cross_entropy': 1}, "'dice_loss'.*found -1"),
    ({'dice_loss': float('nan')}, 'finite'),
    ({'dice_loss': '1'}, "found '1'"),
    ({'dice_loss': 0}, 'no loss has a positive weight'),
    ({}, 'no loss has a positive weight'),
    ({'dice_loss': 1, 'sigmoid_dice_loss': 1}, 'all sigmoid or all softmax'),
  ],
)
def test_bad_weights_raise(weights, message):
  for fn in (losses.create_loss, losses.uses_sigmoid):
    with pytest.raises(ValueError, match=message):
      fn(weights)


def test_uses_sigmoid_looks_at_active_losses():
  assert losses.uses_sigmoid({'sigmoid_dice_loss': 1, 'dice_loss': 0})
  assert not losses.uses_sigmoid({'sigmoid_dice_loss': 0, 'dice_loss': 1})


@pytest.mark.parametrize('batch', [False, True])
@pytest.mark.parametrize(
  ('prefix', 'regions'),
  [('', ()), ('sigmoid_', ()), ('sigmoid_', REGIONS)],
)
def test_a_patch_that_nobody_looked_at_moves_nothing(prefix, regions, batch):
  logits, labels, _ = _example((8, 6))
  # Also where the network is out of its mind there.
  logits[0, :2, :, 0], logits[0, 2:4] = 1e30, -1e30
  logits[0, 4] = np.nan
  labels[0] = -1
  weights = {
    name: 1
    for name in losses.LOSSES
    if name.startswith('sigmoid_') == bool(prefix)
  }
  loss_fn = losses.create_loss(weights, batch=batch, regions=regions)
  levels = logits, logits[:, ::2, ::2], logits[:, ::4, ::3]

  @jax.jit
  def value_and_grad(labels):
    grads = jax.grad(lambda x: loss_fn(x, labels).sum())(levels)
    return loss_fn(levels, labels), grads

  loss, grads = value_and_grad(labels)
  assert np.isfinite(loss).all()
  for level in grads[:2]:
    assert np.isfinite(level).all()
    assert not level[0].any() and level[1].any()
  if not batch:
    np.testing.assert_allclose(loss[0], 0, atol=1e-6)
  # And where it is so of the whole batch.
  loss, grads = value_and_grad(np.full_like(labels, -1))
  np.testing.assert_allclose(loss, 0, atol=1e-6)
  assert not any(level.any() for level in grads)
