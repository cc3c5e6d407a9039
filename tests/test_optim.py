"""Optimizers and schedules against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medseg_jax.optim import (
  SMALL,
  create_optimizer,
  create_schedule,
  global_norm,
)


def updates(tx, params, grads):
  """Returns the parameters after each of the gradients."""
  state, trace = tx.init(params), []
  for g in grads:
    change, state = tx.update(jnp.asarray(g), state, params)
    params = params + change
    trace.append(params)
  return np.asarray(trace)


def test_sgd_with_nesterov_momentum():
  tx = create_optimizer(name='sgd', learning_rate=0.1, momentum=0.9)
  theta, v, expected = 1.0, 0.0, []
  for g in [1.0, 2.0, -1.0]:
    v = 0.9 * v + g
    theta -= 0.1 * (g + 0.9 * v)
    expected.append(theta)
  got = updates(tx, jnp.asarray(1.0), [1.0, 2.0, -1.0])
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_adam_and_its_weight_decay(name):
  tx = create_optimizer(name=name, learning_rate=0.1, weight_decay=0.01)
  theta, m, v, expected = 1.0, 0.0, 0.0, []
  for t, g in enumerate([1.0, 2.0, -1.0], 1):
    if name == 'adam':
      g = g + 0.01 * theta  # L2 regularisation goes through the moments
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    decay = 0.01 * theta if name == 'adamw' else 0.0
    theta -= 0.1 * (step + decay)
    expected.append(theta)
  got = updates(tx, jnp.asarray(1.0), [1.0, 2.0, -1.0])
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
  tx = create_optimizer(
    name='sgd', learning_rate=1.0, momentum=0.0, grad_clip_norm=1.0
  )
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  change, _ = tx.update(grads, tx.init(params), params)
  assert jax.tree.map(lambda x: round(float(x[0]), 6), change) == {
    'a': -0.6,
    'b': -0.8,
  }


def arrays_of_many_sizes():
  rng = np.random.default_rng(0)
  shapes = [(), (3,), (2, SMALL), (SMALL + 1,), (3, 3, 3, 16, 16), (4, 2)]
  return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def test_norm_of_arrays_small_and_large():
  arrays = arrays_of_many_sizes()
  squares = [np.sum(np.asarray(x, np.float64) ** 2) for x in arrays]
  assert global_norm({}) == 0
  norm = jax.jit(global_norm)(arrays)
  np.testing.assert_allclose(norm, np.sqrt(np.sum(squares)), rtol=1e-6)
  assert norm.shape == () and norm.dtype == jnp.float32


@pytest.mark.parametrize('most', [1.0, 1e6])
def test_clipping_and_its_state_are_optax_s(most):
  arrays = arrays_of_many_sizes()
  ours = create_optimizer(
    name='sgd', learning_rate=1.0, momentum=0.5, grad_clip_norm=most
  )
  theirs = optax.chain(
    optax.clip_by_global_norm(most), optax.sgd(1.0, 0.5, nesterov=True)
  )
  state = ours.init(arrays)
  # Checkpoints hold it.
  assert jax.tree.structure(state) == jax.tree.structure(theirs.init(arrays))
  for a, b in zip(
    ours.update(arrays, state)[0],
    theirs.update(arrays, theirs.init(arrays))[0],
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
  ('name', 'formula'),
  [
    ('constant', lambda t: 1.0),
    ('cosine', lambda t: 0.5 * (1 + np.cos(np.pi * t))),
    ('poly', lambda t: (1 - t) ** 0.9),
  ],
)
def test_schedules(name, formula):
  schedule = create_schedule(name=name, learning_rate=0.5, num_steps=100)
  for step in [0, 1, 50, 99]:
    np.testing.assert_allclose(
      schedule(step), 0.5 * formula(step / 100), rtol=1e-5, atol=1e-7
    )


def test_warm_up_rises_from_zero_and_then_hands_over():
  schedule = create_schedule(
    name='cosine', learning_rate=1.0, num_steps=100, warmup_fraction=0.1
  )
  got = [float(schedule(step)) for step in [0, 5, 10, 55, 100]]
  np.testing.assert_allclose(got, [0, 0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize(
  ('make', 'kwargs', 'words'),
  [
    (create_optimizer, dict(name='lion', learning_rate=1), "name is 'lion'"),
    (
      create_optimizer,
      dict(name='sgd', learning_rate=1, momentum=1.5),
      'momentum is 1.5',
    ),
    (
      create_optimizer,
      dict(name='sgd', learning_rate=1, weight_decay=-1),
      'weight_decay is -1',
    ),
    (
      create_schedule,
      dict(name='step', learning_rate=1, num_steps=5),
      'constant, cosine, poly',
    ),
    (
      create_schedule,
      dict(learning_rate=-1, num_steps=5),
      'learning_rate is -1',
    ),
    (
      create_schedule,
      dict(learning_rate=1, num_steps=5, warmup_fraction=1),
      'warmup_fraction is 1',
    ),
  ],
)
def test_wrong_settings_are_named(make, kwargs, words):
  with pytest.raises(ValueError, match=words):
    make(**kwargs)
