"""Losses against optax, loops in NumPy and hand-computed numbers."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medseg_jax import losses

SOFTMAX = [n for n in losses.LOSSES if not n.startswith('sigmoid_')]
SIGMOID = [n for n in losses.LOSSES if n.startswith('sigmoid_')]
SHAPES = [(5, 4), (3, 4, 2)]
CLASSES = 3


def _example(name, shape, seed=0, batch=2):
  """Returns logits, labels that fit the loss, and where."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (batch, *shape, CLASSES)).astype(np.float32)
  if name in SIGMOID:
    labels = rng.integers(0, 2, logits.shape)
  else:
    labels = rng.integers(0, CLASSES, logits.shape[:-1])
  return logits, labels, rng.random((batch, *shape)) < 0.6


@functools.cache
def _value_and_grad(name):
  """Returns fn(logits, labels, where) -> (sum over examples, gradient)."""
  return jax.jit(
    jax.value_and_grad(lambda x, y, w: losses.LOSSES[name](x, y, where=w).sum())
  )


def _voxels(name, logits, labels, where):
  """Yields for each example probs [V, C], targets [V, C] in float64."""
  logits = np.asarray(logits, np.float64)
  for x, y, keep in zip(logits, labels, where, strict=True):
    x, y = x[keep], y[keep]
    if name in SIGMOID:
      yield 1 / (1 + np.exp(-x)), y.astype(float)
    else:
      exp = np.exp(x - x.max(-1, keepdims=True))
      yield exp / exp.sum(-1, keepdims=True), np.eye(CLASSES)[y]


def _overlap_oracle(
  name,
  examples,
  *,
  include_background=True,
  squared=False,
  batch=False,
  smooth=1e-5,
  alpha=0.5,
  beta=0.5,
):
  """Returns the loss of each example from the textbook formula, by loops."""
  examples = list(examples)
  if batch:
    merged = [np.concatenate(parts) for parts in zip(*examples, strict=True)]
    examples = [merged] * len(examples)
  kind = name.removeprefix('sigmoid_')
  values = []
  for probs, target in examples:
    terms, above, below = [], smooth, smooth
    volumes = target.sum(0)[0 if include_background else 1 :]
    rarest = min((v for v in volumes if v > 0), default=1)
    for c in range(0 if include_background else 1, CLASSES):
      p, g = probs[:, c], target[:, c]
      both = (p * g).sum()
      size = (p**2).sum() + (g**2).sum() if squared else p.sum() + g.sum()
      if kind == 'dice_loss':
        terms.append((2 * both + smooth) / (size + smooth))
      elif kind == 'jaccard_loss':
        terms.append((both + smooth) / (size - both + smooth))
      elif kind == 'tversky_loss':
        power = 2 if squared else 1
        false_positive = ((p * (1 - g)) ** power).sum()
        false_negative = (((1 - p) * g) ** power).sum()
        terms.append(
          (both + smooth)
          / (both + alpha * false_positive + beta * false_negative + smooth)
        )
      else:
        weight = (rarest / (g.sum() or rarest)) ** 2
        above, below = above + 2 * weight * both, below + weight * size
    values.append(1 - (np.mean(terms) if terms else above / below))
  return np.array(values)


def _options(name, options):
  """Returns the options that the loss knows."""
  return {
    k: v
    for k, v in options.items()
    if not (k == 'include_background' and name in SIGMOID)
    and not (k in ('alpha', 'beta') and 'tversky' not in name)
  }


@pytest.mark.parametrize('shape', SHAPES)
def test_cross_entropy_matches_optax(shape):
  logits, labels, where = _example('cross_entropy', shape)
  expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  axes = tuple(range(1, labels.ndim))
  np.testing.assert_allclose(
    losses.cross_entropy(logits, labels), np.mean(expected, axes), rtol=1e-5
  )
  np.testing.assert_allclose(
    losses.cross_entropy(logits, labels, where=where),
    np.mean(expected, axes, where=where),
    rtol=1e-5,
  )
  weights = np.array([1.0, 0.5, 3.0])
  np.testing.assert_allclose(
    losses.cross_entropy(logits, labels, class_weights=weights),
    [
      np.average(e, weights=weights[y])
      for e, y in zip(expected, labels, strict=True)
    ],
    rtol=1e-5,
  )


@pytest.mark.parametrize('shape', SHAPES)
def test_focal_loss_matches_the_formula(shape):
  logits, labels, where = _example('focal_loss', shape)
  weights = np.array([1.0, 0.5, 3.0])
  for gamma in (0.5, 2.0):
    found = losses.focal_loss(
      logits, labels, gamma=gamma, class_weights=weights, where=where
    )
    for value, (probs, target) in zip(
      found, _voxels('focal_loss', logits, labels, where), strict=True
    ):
      p, w = (probs * target).sum(-1), (weights * target).sum(-1)
      expected = (w * (1 - p) ** gamma * -np.log(p)).sum() / w.sum()
      np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(
    losses.focal_loss(logits, labels, gamma=0.0, where=where),
    losses.cross_entropy(logits, labels, where=where),
    rtol=1e-6,
  )


@pytest.mark.parametrize('shape', SHAPES)
def test_sigmoid_losses_match_optax(shape):
  logits, labels, where = _example('sigmoid_focal_loss', shape)
  axes = tuple(range(1, labels.ndim))
  weights = np.array([1.0, 0.5, 3.0])
  spread = np.broadcast_to(weights, labels.shape) * where[..., None]
  for found, expected in (
    (
      losses.sigmoid_cross_entropy,
      optax.sigmoid_binary_cross_entropy(logits, labels),
    ),
    (losses.sigmoid_focal_loss, optax.sigmoid_focal_loss(logits, labels)),
  ):
    np.testing.assert_allclose(
      found(logits, labels), np.mean(expected, axes), rtol=1e-5
    )
    np.testing.assert_allclose(
      found(logits, labels, class_weights=weights, where=where),
      np.average(expected, axes, weights=spread),
      rtol=1e-5,
    )


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
  'name', [n for n in losses.LOSSES if 'entropy' not in n and 'focal' not in n]
)
def test_overlap_losses_match_loops(name, shape):
  logits, labels, where = _example(name, shape)
  everywhere = np.ones_like(where)
  for options, mask in (
    ({}, None),
    ({'smooth': 1.0, 'include_background': False}, where),
    ({'squared': True, 'alpha': 0.7, 'beta': 0.4}, where),
    ({'batch': True, 'smooth': 0.0}, where),
  ):
    options = _options(name, options)
    found = losses.LOSSES[name](logits, labels, where=mask, **options)
    examples = _voxels(
      name, logits, labels, everywhere if mask is None else mask
    )
    np.testing.assert_allclose(
      found, _overlap_oracle(name, examples, **options), rtol=1e-4, atol=1e-6
    )


def test_overlap_losses_by_hand():
  # Four voxels, two classes, probabilities of class 1: 1/2, 1/2, 3/4, 1/4.
  probs = np.array([0.5, 0.5, 0.75, 0.25])
  logits = np.stack([np.log(1 - probs), np.log(probs)], -1)[None]
  labels = np.array([[0, 1, 1, 0]])
  kwargs = {'include_background': False, 'smooth': 0.0}
  # TP = 1/2 + 3/4, sum(p) = 2, sum(g) = 2, so FP = FN = 3/4.
  for name, expected in (
    ('dice_loss', 1 - 2.5 / 4),
    ('jaccard_loss', 1 - 1.25 / 2.75),
    ('tversky_loss', 1 - 1.25 / 2),
    ('generalized_dice_loss', 1 - 2.5 / 4),
  ):
    np.testing.assert_allclose(
      losses.LOSSES[name](logits, labels, **kwargs), [expected], rtol=1e-6
    )
  squared = losses.dice_loss(logits, labels, squared=True, **kwargs)
  # sum(p^2) = 1/4 + 1/4 + 9/16 + 1/16.
  np.testing.assert_allclose(squared, [1 - 2.5 / (1.125 + 2)], rtol=1e-6)


def test_tversky_alpha_weighs_false_positives_and_beta_false_negatives():
  logits = np.full((1, 4, 2), [0.0, 1e4], np.float32)  # class 1 everywhere
  labels = np.array([[1, 0, 0, 0]])
  kwargs = {'include_background': False, 'smooth': 0.0}
  value = losses.tversky_loss(logits, labels, alpha=0.9, beta=0.1, **kwargs)
  np.testing.assert_allclose(value, [1 - 1 / (1 + 0.9 * 3)], rtol=1e-6)
  value = losses.tversky_loss(
    -logits, 1 - labels, alpha=0.9, beta=0.1, **kwargs
  )
  np.testing.assert_allclose(value, [1.0])  # no true positive at all


def test_generalized_dice_sees_errors_of_small_weights():
  # 1 / volume^2 is far below the smoothing here; the loss must not drown in it.
  labels = np.zeros((1, 200, 200), int)
  labels[:, :100] = 1
  logits = np.eye(2)[1 - labels] * 100
  np.testing.assert_allclose(
    losses.generalized_dice_loss(logits, labels), [1.0], atol=1e-4
  )


@pytest.mark.parametrize('name', losses.LOSSES)
def test_value_under_jit_and_vmap_and_in_bfloat16(name):
  loss_fn = losses.LOSSES[name]
  logits, labels, where = _example(name, SHAPES[1])
  value = loss_fn(logits, labels, where=where)
  assert value.shape == (2,) and value.dtype == jnp.float32
  np.testing.assert_allclose(
    jax.jit(loss_fn)(logits, labels, where=where), value, rtol=1e-5
  )
  mapped = jax.vmap(lambda x, y, w: loss_fn(x[None], y[None], where=w[None]))
  np.testing.assert_allclose(
    mapped(logits, labels, where)[:, 0], value, rtol=1e-5
  )
  coarse = jnp.asarray(logits, jnp.bfloat16)
  value = loss_fn(coarse, labels, where=where)
  assert value.dtype == jnp.float32
  np.testing.assert_array_equal(
    value, loss_fn(coarse.astype(jnp.float32), labels, where=where)
  )


@pytest.mark.parametrize('name', losses.LOSSES)
def test_gradient_matches_finite_differences(name):
  logits, labels, where = _example(name, SHAPES[0])
  total = _value_and_grad(name)
  grad = np.asarray(total(logits, labels, where)[1])
  np.testing.assert_array_equal(grad[~where], 0)
  step = 1e-2 * np.sign(grad)  # along the gradient, so that no terms cancel
  change = (
    total(logits + step, labels, where)[0]
    - total(logits - step, labels, where)[0]
  )
  np.testing.assert_allclose(2 * (grad * step).sum(), change, rtol=1e-2)


@pytest.mark.parametrize('name', losses.LOSSES)
def test_finite_for_any_finite_input(name):
  logits, labels, where = _example(name, SHAPES[0])
  options = {} if 'entropy' in name or 'focal' in name else {'smooth': 0.0}
  if 'focal' in name:
    options = {'gamma': 0.5}
  both = jax.jit(
    jax.value_and_grad(
      lambda x, y, w: losses.LOSSES[name](x, y, where=w, **options).sum()
    )
  )
  nowhere = np.zeros_like(where)
  largest = np.finfo(np.float32).max
  absent = np.zeros_like(labels)
  for x in (
    logits,
    logits * 0,
    np.sign(logits) * 1e4,
    np.sign(logits) * largest,
    np.where(logits > 2, largest, -largest),
  ):
    for y in (labels, absent):
      for w in (where, nowhere):
        value, grad = both(x.astype(np.float32), y, w)
        assert np.isfinite(value) and np.isfinite(grad).all()
        if not w.any():
          assert not grad.any()


@pytest.mark.parametrize('name', losses.LOSSES)
def test_left_out_voxels_do_not_matter(name):
  loss_fn = _value_and_grad(name)
  logits, labels, where = _example(name, SHAPES[0])
  spoiled = np.where(where[..., None], logits, np.nan)
  bad = np.where(where if name in SOFTMAX else where[..., None], labels, -1)
  value, grad = loss_fn(logits, labels, where)
  spoiled_value, spoiled_grad = loss_fn(spoiled, bad, where)
  assert value == spoiled_value
  np.testing.assert_array_equal(grad, spoiled_grad)
  if name in SOFTMAX:  # a label outside [0, C) leaves its voxel out by itself
    everywhere = np.ones_like(where)
    assert loss_fn(logits, bad, everywhere)[0] == value
    bad = np.where(where, labels, 255)
    assert loss_fn(logits, bad, everywhere)[0] == value


def test_labels_may_be_of_any_integer_type():
  logits, labels, _ = _example('dice_loss', SHAPES[0])
  for dtype in (np.uint8, np.int8, np.int64):
    np.testing.assert_array_equal(
      losses.dice_loss(logits, labels.astype(dtype)),
      losses.dice_loss(logits, labels),
    )


@pytest.mark.parametrize('name', losses.LOSSES)
def test_nothing_left_is_no_loss(name):
  logits, labels, where = _example(name, SHAPES[0])
  assert _value_and_grad(name)(logits, labels, np.zeros_like(where))[0] == 0


@pytest.mark.parametrize('name', losses.LOSSES)
def test_perfect_logits_have_no_loss_and_wrong_ones_much(name):
  _, labels, where = _example(name, SHAPES[0])
  target = labels if name in SIGMOID else np.eye(CLASSES)[labels]
  logits = (100 * (2 * target - 1)).astype(np.float32)
  loss_fn = _value_and_grad(name)
  np.testing.assert_allclose(loss_fn(logits, labels, where)[0], 0, atol=1e-5)
  assert loss_fn(-logits, labels, where)[0] / len(labels) > 0.7


@pytest.mark.parametrize('name', losses.LOSSES)
def test_no_gather_and_no_scatter_in_the_gradient(name):
  logits, labels, where = _example(name, (2, 2))
  grad = jax.grad(lambda x: losses.LOSSES[name](x, labels, where=where).sum())
  jaxpr = str(jax.make_jaxpr(grad)(logits))
  assert 'gather' not in jaxpr and 'scatter' not in jaxpr


def test_bad_shapes_raise():
  logits, labels, where = _example('dice_loss', SHAPES[0])
  with pytest.raises(ValueError, match='labels must have shape'):
    losses.dice_loss(logits, labels[:, :1])
  with pytest.raises(ValueError, match='where must have shape'):
    losses.dice_loss(logits, labels, where=where[:1])
  with pytest.raises(ValueError, match='class_weights must have shape'):
    losses.cross_entropy(logits, labels, class_weights=[1, 2])
  with pytest.raises(ValueError, match='labels must have shape'):
    losses.sigmoid_dice_loss(logits, labels)
  with pytest.raises(ValueError, match='2 classes'):
    losses.dice_loss(logits[..., :1], labels, include_background=False)


def test_import_is_light_and_free_of_tensorflow():
  """It loads little of its own, and nothing of others that JAX does not."""
  statement = (
    'import sys, jax, flax\n'
    'before = set(sys.modules)\n'
    'import medseg_jax.losses\n'
    'print(*(set(sys.modules) - before))'
  )
  loaded = subprocess.run(
    [sys.executable, '-c', statement],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  ).stdout.split()
  ours = {name for name in loaded if name.split('.')[0] == 'medseg_jax'}
  assert 'medseg_jax.losses' in ours and len(ours) < 10
  others = {name.split('.')[0] for name in loaded} - {'medseg_jax'}
  assert others <= sys.stdlib_module_names
