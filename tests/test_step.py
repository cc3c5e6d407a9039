"""The train step: what it computes, and what it keeps when a loss explodes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medseg_jax.augment import create_augment
from medseg_jax.inference.network import create_predict, flip_sets
from medseg_jax.losses import create_loss
from medseg_jax.models import create_model
from medseg_jax.runtime import sharding
from medseg_jax.runtime.errors import InputError
from medseg_jax.runtime.sharding import check_batch_size, create_mesh
from medseg_jax.state import create_state
from medseg_jax.step import TrainStep, check_batch_splits


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


def setup(mesh, *, ema=False, learning_rate=0.5, ema_decay=0.0, splits=1):
  tx = optax.sgd(learning_rate)
  state = create_state(
    model=Linear(),
    tx=tx,
    key=jax.random.key(0),
    image_shape=(1, 4, 4, 3),
    mesh=mesh,
    ema=ema,
  )
  step = TrainStep(
    model=Linear(),
    tx=tx,
    loss_fn=create_loss({'cross_entropy': 1.0}),
    augment_fn=unchanged,
    schedule=optax.constant_schedule(learning_rate),
    seed=0,
    ema_decay=ema_decay,
    batch_splits=splits,
  )
  return state, jax.jit(step)


def batch(seed=0, value=None, count=2):
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((count, 4, 4, 3)).astype(np.float16)
  if value is not None:
    image[0, 0, 0, 0] = value
  label = rng.integers(0, 2, (count, 4, 4)).astype(np.int16)
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


def test_the_parts_of_a_step_are_the_step(mesh):
  state, step = setup(mesh)
  parts = step.__wrapped__
  data = batch()
  whole = step(state, data)
  augmented = jax.jit(parts.augment)(state.step, data)
  assert augmented['image'].dtype == jnp.float32
  assert augmented['label'].dtype == jnp.int32
  gradient = jax.jit(parts.gradient)(state, augmented)
  loss, batch_stats = jax.jit(parts.forward)(state, augmented)
  np.testing.assert_allclose(loss, gradient.loss, rtol=1e-6)
  assert batch_stats == gradient.batch_stats == {}
  again = jax.jit(parts.update)(state, gradient)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, again
  )


@pytest.mark.parametrize('splits', [2, 3, 6])
def test_a_split_batch_has_the_gradient_of_the_whole(mesh, splits):
  # One step of plain descent, by which weights and loss are compared with
  # those of test_one_step_is_theta_minus_alpha_times_the_gradient's step.
  data = batch(count=6)
  data['label'][1] = -1
  state, whole = setup(mesh)
  _, split = setup(mesh, splits=splits)
  expected, metrics = whole(state, data)
  got, split_metrics = split(state, data)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    (expected, metrics),
    (got, split_metrics),
  )


def small_unet(norm):
  return create_model('unet', num_classes=2, features=4, depth=2, norm=norm)


def unet_step(mesh, norm, splits, **augment):
  model, tx = small_unet(norm), optax.sgd(0.1)
  state = create_state(
    model=model,
    tx=tx,
    key=jax.random.key(0),
    image_shape=(1, 8, 8, 1),
    mesh=mesh,
  )
  step = TrainStep(
    model=model,
    tx=tx,
    loss_fn=create_loss({'cross_entropy': 1.0, 'dice_loss': 1.0}),
    augment_fn=create_augment(**augment),
    batch_splits=splits,
    schedule=optax.constant_schedule(0.1),
    seed=0,
  )
  return state, step


def unet_batch(count):
  rng = np.random.default_rng(0)
  return {
    'image': rng.standard_normal((count, 8, 8, 1)).astype(np.float16),
    'label': rng.integers(0, 2, (count, 8, 8)).astype(np.int16),
  }


def test_batch_norm_sees_one_part_after_the_other(mesh):
  state, step = unet_step(mesh, 'batch', splits=2)
  data = unet_batch(4)
  got = jax.jit(step.gradient)(state, step.augment(state.step, data))
  _, single = unet_step(mesh, 'batch', splits=1)
  gradient = jax.jit(single.gradient)
  stats, grads = state.batch_stats, []
  for part in range(2):
    one = single.augment(
      state.step, {name: x[part::2] for name, x in data.items()}
    )
    result = gradient(state.replace(batch_stats=stats), one)
    stats = result.batch_stats
    grads.append(result.grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    (got.batch_stats, got.grads),
    (stats, jax.tree.map(lambda *x: sum(x) / 2, *grads)),
  )


def test_a_batch_spread_over_devices_is_split_where_it_lies():
  # Augmentation and all: the whole batch on one device is the oracle.
  mesh = create_mesh(data=4, spatial=2)
  data = unet_batch(16)
  fields = dict(flip_prob=0.5, noise_prob=0.5, noise_std=0.1)
  state, whole = unet_step(mesh, 'instance', splits=1, **fields)
  local = jax.device_put(state, jax.devices()[0])
  expected = jax.jit(whole)(local, data)
  _, step = unet_step(mesh, 'instance', splits=2, **fields)
  layout = sharding.patches(mesh)
  with jax.set_mesh(mesh):
    spread = jax.tree.map(lambda x: jax.device_put(x, layout), data)
    compiled = jax.jit(step).lower(state, spread).compile()
    got = compiled(state, spread)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    expected,
    got,
  )
  # Images cross over only as the rows at the borders of the spatial axis: a
  # device sees 2 of the 16 examples at a time, and only half of their rows.
  text = compiled.as_text()
  assert 'all-to-all' not in text
  assert 'f32[2,4,8,4]' in text and 'f32[4,4,8,4]' not in text


def test_devices_of_the_spatial_axis_share_what_follows_the_augmentation():
  def cost(spatial):
    mesh = jax.make_mesh(
      (1, spatial),
      ('data', 'spatial'),
      axis_types=(jax.sharding.AxisType.Auto,) * 2,
      devices=jax.devices()[:spatial],
    )
    state, step = unet_step(
      mesh, 'instance', splits=1, warp_prob=1.0, rotation_degrees=30.0
    )
    layout, shape = sharding.patches(mesh), (1, 256, 64)
    batch = {
      'image': jax.ShapeDtypeStruct((*shape, 1), jnp.float16, sharding=layout),
      'label': jax.ShapeDtypeStruct(shape, jnp.int16, sharding=layout),
    }
    with jax.set_mesh(mesh):
      compiled = jax.jit(step).lower(state, batch).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes
    return np.array([memory, compiled.cost_analysis()['flops']])

  assert (cost(4) <= 0.3 * cost(1)).all()


@pytest.mark.parametrize(
  ('size', 'splits', 'words'),
  [(16, 0, '1 or more'), (16, 3, '3 parts x 4'), (16, 8, '8 parts x 4')],
)
def test_splits_that_do_not_fit(size, splits, words):
  mesh = create_mesh(data=4, spatial=2)
  check_batch_splits(size, 4, mesh)
  with pytest.raises(InputError, match=f'config.batch_splits is.*{words}'):
    check_batch_splits(size, splits, mesh)


def test_a_batch_that_cannot_be_split(mesh):
  state, step = setup(mesh, splits=4)
  with pytest.raises(ValueError, match='batch of 6 .* 4 equal parts'):
    step(state, batch(count=6))


def test_prediction_averages_over_all_mirrorings():
  class Ramp(nn.Module):
    """A prediction that depends on the direction of each axis."""

    def __call__(self, image, train=False):
      y, x = jnp.mgrid[: image.shape[1], : image.shape[2]]
      return (image + (y + 10.0 * x)[None, :, :, None]).repeat(2, -1)

  image = np.random.default_rng(0).standard_normal((2, 5, 7, 1))
  got = create_predict(model=Ramp(), mirror_axes=(0, 1))({}, image)
  expected = image.astype(np.float32) + 2.0 + 10.0 * 3.0  # centres of the ramps
  np.testing.assert_allclose(got, expected.repeat(2, -1), rtol=1e-5)
  assert sorted(flip_sets((0, 1, 2))) == [
    (),
    (0,),
    (0, 1),
    (0, 1, 2),
    (0, 2),
    (1,),
    (1, 2),
    (2,),
  ]


def test_mirroring_compiles_the_network_once():
  model = Linear()
  image = jnp.zeros((1, 4, 6, 4, 3))
  variables = model.init(jax.random.key(0), image)
  text = [
    jax.jit(create_predict(model=model, mirror_axes=axes))
    .lower(variables, image)
    .as_text()
    for axes in ((), (0, 1, 2))
  ]
  assert [t.count('dot_general') for t in text] == [1, 1]


def test_mirroring_a_volume_averages_over_eight():
  class Corner(nn.Module):
    """Says 1 in the first voxel alone."""

    def __call__(self, image, train=False):
      return jnp.zeros_like(image).at[:, 0, 0, 0].set(1)

  predict = create_predict(model=Corner(), mirror_axes=(0, 1, 2))
  got = predict({}, np.zeros((1, 3, 4, 5, 1)))
  expected = np.zeros((3, 4, 5))
  expected[::2, ::3, ::4] = 1 / 8
  np.testing.assert_array_equal(got[0, ..., 0], expected)


def test_logits_are_single_precision_whatever_the_model_computes_in():
  class Half(nn.Module):
    def __call__(self, image, train=False):
      return image.astype(jnp.bfloat16)

  for axes in ((), (0, 1)):
    predict = create_predict(model=Half(), mirror_axes=axes)
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
