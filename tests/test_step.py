"""The train step: what it computes, and what it keeps when a loss explodes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medseg_jax.losses import create_loss
from medseg_jax.sharding import check_batch_size, create_mesh
from medseg_jax.state import create_state
from medseg_jax.step import create_predict, create_train_step, flip_sets


class Linear(nn.Module):
  """One logit of each class, linear in the voxel."""

  @nn.compact
  def __call__(self, image, train=False):
    return nn.Dense(2, name='dense')(image)


def unchanged(key, batch):
  return batch


@pytest.fixture
def mesh(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  return create_mesh()


def setup(mesh, *, ema=False, learning_rate=0.5, ema_decay=0.0):
  tx = optax.sgd(learning_rate)
  state = create_state(
    model=Linear(), tx=tx, key=jax.random.key(0),
    image_shape=(1, 4, 4, 3), mesh=mesh, ema=ema,
  )
  step = create_train_step(
    model=Linear(), tx=tx, loss_fn=create_loss({'cross_entropy': 1.0}),
    augment_fn=unchanged, schedule=optax.constant_schedule(learning_rate),
    seed=0, ema_decay=ema_decay,
  )
  return state, jax.jit(step)


def batch(seed=0, value=None):
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((2, 4, 4, 3)).astype(np.float16)
  if value is not None:
    image[0, 0, 0, 0] = value
  label = rng.integers(0, 2, (2, 4, 4)).astype(np.int16)
  return {'image': image, 'label': label}


def test_one_step_is_theta_minus_alpha_times_the_gradient(mesh):
  state, step = setup(mesh)
  data = batch()
  x = data['image'].astype(np.float64).reshape(-1, 3)
  y = np.eye(2)[data['label'].reshape(-1)]
  w = np.asarray(state.params['dense']['kernel'], np.float64)
  b = np.asarray(state.params['dense']['bias'], np.float64)
  logits = x @ w + b
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  new, metrics = step(state, data)
  np.testing.assert_allclose(
    metrics['loss'], -np.mean(np.sum(y * np.log(p), 1)), rtol=1e-5
  )
  gradient = x.T @ (p - y) / len(x)
  np.testing.assert_allclose(
    new.params['dense']['kernel'], w - 0.5 * gradient, rtol=1e-4, atol=1e-6
  )
  norm = np.sqrt(np.sum(gradient**2) + np.sum((p - y).mean(0) ** 2))
  np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-4)
  assert int(new.step) == 1 and float(metrics['learning_rate']) == 0.5


def test_ignored_labels_do_not_count(mesh):
  state, step = setup(mesh)
  data = batch()
  data['label'][:, 2:] = -1
  cut = {'image': data['image'][:, :2], 'label': data['label'][:, :2]}
  np.testing.assert_allclose(
    step(state, data)[1]['loss'], step(state, cut)[1]['loss'], rtol=1e-6
  )


def test_after_a_loss_that_is_not_finite_the_state_stands_still(mesh):
  state, step = setup(mesh)
  good, _ = step(state, batch(0))
  bad, metrics = step(good, batch(1, value=np.nan))
  later, _ = step(bad, batch(2))
  assert not np.isfinite(metrics['loss'])
  assert bool(later.halted) and int(later.step) == 1
  for a, b in zip(
    jax.tree.leaves(good.replace(halted=None)),
    jax.tree.leaves(later.replace(halted=None)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_the_moving_average_follows_its_formula(mesh):
  state, step = setup(mesh, ema=True, ema_decay=0.15)
  average = np.asarray(state.params['dense']['kernel'])
  for i in range(3):
    state, _ = step(state, batch(i))
    decay = min(0.15, (1 + i) / (10 + i))
    new = np.asarray(state.params['dense']['kernel'])
    average = decay * average + (1 - decay) * new
  np.testing.assert_allclose(
    state.ema_params['dense']['kernel'], average, rtol=1e-5
  )
  assert state.eval_variables['params'] is state.ema_params


def test_prediction_averages_over_all_mirrorings():
  class Ramp(nn.Module):
    """A prediction that depends on the direction of each axis."""

    def __call__(self, image, train=False):
      y, x = jnp.mgrid[: image.shape[1], : image.shape[2]]
      return (image + (y + 10.0 * x)[None, :, :, None]).repeat(2, -1)

  image = np.random.default_rng(0).standard_normal((2, 5, 7, 1))
  got = create_predict(model=Ramp(), mirror=True)({}, image)
  expected = image.astype(np.float32) + 2.0 + 10.0 * 3.0  # centres of the ramps
  np.testing.assert_allclose(got, expected.repeat(2, -1), rtol=1e-5)
  assert sorted(flip_sets(3)) == [
    (), (1,), (1, 2), (1, 2, 3), (1, 3), (2,), (2, 3), (3,)
  ]


def test_mirroring_compiles_the_network_once():
  model = Linear()
  image = jnp.zeros((1, 4, 6, 4, 3))
  variables = model.init(jax.random.key(0), image)
  text = [
    jax.jit(create_predict(model=model, mirror=mirror)).lower(
      variables, image
    ).as_text()
    for mirror in (False, True)
  ]
  assert [t.count('dot_general') for t in text] == [1, 1]


def test_mirroring_a_volume_averages_over_eight():
  class Corner(nn.Module):
    """Says 1 in the first voxel alone."""

    def __call__(self, image, train=False):
      return jnp.zeros_like(image).at[:, 0, 0, 0].set(1)

  predict = create_predict(model=Corner(), mirror=True)
  got = predict({}, np.zeros((1, 3, 4, 5, 1)))
  expected = np.zeros((3, 4, 5))
  expected[::2, ::3, ::4] = 1 / 8
  np.testing.assert_array_equal(got[0, ..., 0], expected)


def test_logits_are_single_precision_whatever_the_model_computes_in():
  class Half(nn.Module):
    def __call__(self, image, train=False):
      return image.astype(jnp.bfloat16)

  for mirror in (False, True):
    predict = create_predict(model=Half(), mirror=mirror)
    assert predict({}, np.zeros((1, 2, 2, 1))).dtype == jnp.float32


def test_a_sigmoid_model_gets_a_background_of_zero():
  class One(nn.Module):
    def __call__(self, image, train=False):
      return image

  image = np.array([-2.0, 3.0]).reshape(1, 1, 2, 1)
  got = create_predict(model=One(), sigmoid=True)({}, image)
  np.testing.assert_array_equal(got, [[[[0, -2], [0, 3]]]])
  softmax = jax.nn.softmax(got)[..., 1]
  np.testing.assert_allclose(softmax, jax.nn.sigmoid(image[..., 0]), rtol=1e-6)


@pytest.mark.parametrize('batch_size', [0, 6, 12])
def test_a_batch_that_devices_cannot_share(batch_size):
  mesh = create_mesh(data=4, spatial=2)
  if batch_size == 12:
    check_batch_size(batch_size, mesh)
    return
  with pytest.raises(ValueError, match='config.batch_size'):
    check_batch_size(batch_size, mesh)
