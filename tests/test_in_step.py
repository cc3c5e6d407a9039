"""Several networks on one case: whose mean counts, and that all is streamed."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from medseg_jax import inference
from medseg_jax.data import resample
from medseg_jax.data.case import Case
from medseg_jax.data.preprocess import Channel, Preprocessing
from medseg_jax.inference import cases as inference_cases
from medseg_jax.inference import decoding, in_step, stitching
from medseg_jax.inference.cases import Network, predict_cases, predict_each
from medseg_jax.inference.network import create_predict

RAW = (Channel('none'),)
PLAIN = Preprocessing(channels=RAW)
CROPPED = Preprocessing(channels=RAW, axes=(1, 0, 2), crop=True)
# Whose logits add up to (0.5, 0.4, -9) and whose probabilities are on average
# (0.46, 0.49, 0.05): the first class by the one, the second by the other.
A, B = (2.0, 0.0, 0.0), (-1.5, 0.4, -9.0)


def constant(logits):
  return lambda tiles: jnp.broadcast_to(
    jnp.array(logits), (*tiles.shape[:-1], len(logits))
  )


def case_of(*size, name='scan', seed=0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(0.1, 2, (*size, 1)).astype(np.float32)
  return Case(name, image, None, (1.0,) * len(size))


def run(predict_fn, cases, also=(), preprocessing=PLAIN, **changed):
  settings = dict(
    preprocessing=preprocessing,
    channels=1,
    patch_size=(8, 8, 8),
    overlap=0.5,
    batch_size=2,
    also=also,
  )
  return list(predict_cases(predict_fn, cases, **settings | changed))


def other(predict_fn, preprocessing=PLAIN, patch_size=(4, 8, 8), batch_size=3):
  return Network(predict_fn, preprocessing, patch_size, 0.25, batch_size)


class Weights:
  """A network whose logits are its weights, wherever it looks."""

  def apply(self, variables, image, train):
    return constant(variables)(image)


def test_members_average_logits_and_networks_average_probabilities():
  stacked = jnp.array([A, B])
  tiles = jnp.zeros((2, 8, 8, 8, 1))
  predict = create_predict(model=Weights(), num_members=2)
  for mirror_axes in ((), (0, 2)):
    predict = create_predict(
      model=Weights(), num_members=2, mirror_axes=mirror_axes
    )
    logits = predict(stacked, tiles)
    np.testing.assert_allclose(logits[1, 2, 3, 4], (0.25, 0.2, -4.5), rtol=1e-6)
  [folds] = run(lambda tiles: predict(stacked, tiles), [case_of(9, 8, 8)])
  assert (folds.label == 0).all()
  [pair] = run(
    constant(A),
    [case_of(9, 8, 8)],
    also=[other(constant(B))],
    probabilities=True,
  )
  assert (pair.label == 1).all()
  expected = (special.softmax(A) + special.softmax(B)) / 2
  np.testing.assert_allclose(pair.probs[4, 3, 2], expected, atol=5e-4)


def test_regions_average_sigmoids_and_are_0_outside_the_crop():
  # Margins of one region by three networks: their sum is positive, but the mean
  # of the probabilities is 0.41.
  margins = (10.0, -2.0, -2.0)
  case = case_of(9, 10, 8)
  case.image[:2] = case.image[:, 8:] = 0
  inside = case.image[..., 0] > 0

  def go(**changed):
    first, *rest = ((m, 3.0) for m in margins)
    return run(
      constant(first),
      [case],
      also=[other(constant(logits), CROPPED) for logits in rest],
      preprocessing=CROPPED,
      probabilities=True,
      **changed,
    )[0]

  def decode(logits):
    return decoding.labels_from_regions(logits, (5, 7))

  found = go(decode=decode, activate=decoding.sigmoid)
  # The second region alone is there.
  np.testing.assert_array_equal(found.label, np.where(inside, 7, 0))
  expected = special.expit(margins).mean(), special.expit(3)
  np.testing.assert_allclose(found.probs[inside][0], expected, atol=5e-4)
  assert (found.probs[~inside] == 0).all()
  # Classes that exclude each other: background outside.
  found = go()
  assert (found.label[~inside] == 0).all()
  assert (found.probs[~inside] == [1, 0]).all()
  expected = np.mean([special.softmax((m, 3.0)) for m in margins], 0)
  np.testing.assert_allclose(found.probs[inside][0], expected, atol=5e-4)


def test_sigmoid_classes_have_what_their_mean_leaves_as_background():
  found = run(
    constant((0.0, 3.0, -4.0)),
    [case_of(8, 8, 8)],
    also=[other(constant((0.0, -4.0, 3.0)))],
    probabilities=True,
    activate=decoding.sigmoid_of_classes,
    has_background=True,
  )[0]
  mean = special.expit([3, -4]).mean()  # 0.485 for either: neither wins
  np.testing.assert_allclose(found.probs[0, 0, 0], (1 - mean, mean, mean), 1e-3)
  assert (found.label == 0).all()


@pytest.mark.parametrize('sigmoid', [False, True])
def test_pooled_logits_have_the_mean_probabilities(sigmoid):
  rng = np.random.default_rng(0)
  logits = [rng.normal(0, 8, (50, 4)).astype(np.float32) for _ in range(3)]
  logits[0][0] = (500, -500, 0, 1)  # where float32 has no more digits
  activate = special.expit if sigmoid else special.softmax
  axis = {} if sigmoid else {'axis': -1}
  expected = np.mean(
    [activate(x.astype(np.float64), **axis) for x in logits], 0
  )
  pooled = decoding.pooled_logits(logits, sigmoid=sigmoid)
  assert pooled.dtype == np.float32
  found = activate(pooled.astype(np.float64), **axis)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-30)
  alone = decoding.pooled_logits(logits[:1], sigmoid=sigmoid)
  np.testing.assert_array_equal(alone.argmax(-1), logits[0].argmax(-1))


def test_slabs_of_any_height_meet_in_common_planes():
  whole = np.arange(36.0).reshape(12, 3)
  ahead = []

  def slabs(heights):
    begin = 0
    for height in heights:
      ahead.append(begin)
      yield whole[begin : begin + height]
      begin += height

  heights = ([12], [5, 1, 6], [1] * 12, [4, 8])
  done = 0
  for planes in in_step.common_planes([slabs(h) for h in heights]):
    assert all(begin <= done for begin in ahead)  # one slab of each at most
    for each in planes:
      np.testing.assert_array_equal(each, whole[done : done + len(each)])
    assert len({len(each) for each in planes}) == 1
    done += len(planes[0])
  assert done == 12
  for uneven in ([5, 6], [6, 6]), ([2], [1]):
    with pytest.raises(ValueError, match='not of as many planes'):
      list(in_step.common_planes([slabs(h) for h in uneven]))


def linear(slope):
  """Three classes whose logits are linear in the voxel's value."""
  return lambda tiles: tiles * jnp.array(slope) + jnp.array([1.0, 0, -1])


def test_networks_on_grids_of_their_own_agree_with_whole_arrays(monkeypatch):
  monkeypatch.setattr(stitching, 'SLAB_VALUES', 500)
  monkeypatch.setattr(resample, '_SLAB', 900)
  slopes = (0.5, 1.0, 2.0), (-2.0, 1.0, 1.5), (0.0, 3.0, 1.0)
  grids = [
    CROPPED._replace(spacing=spacing)
    for spacing in ((1.0, 1.5, 1.25), (1.6, 1.4), ())
  ]
  patches = (8, 8, 8), (8, 8), (4, 8, 16)
  cases = [case_of(*s, name=f'{s}', seed=i) for i, s in enumerate(SIZES)]
  alone = [
    run(
      linear(slope), cases, preprocessing=p, patch_size=size, probabilities=True
    )
    for slope, p, size in zip(slopes, grids, patches, strict=True)
  ]
  first, *also = [
    Network(linear(slope), p, size, 0.5, 2)
    for slope, p, size in zip(slopes, grids, patches, strict=True)
  ]
  got = run(
    first.predict_fn,
    cases,
    also=also,
    preprocessing=first.preprocessing,
    patch_size=first.patch_size,
    probabilities=True,
  )
  assert [p.case.name for p in got] == [case.name for case in cases]
  for found, *singles in zip(got, *alone, strict=True):
    mean = np.mean([s.probs.astype(np.float64) for s in singles], 0)
    np.testing.assert_allclose(found.probs, mean, atol=2e-3)
    best = np.sort(mean, -1)
    sure = best[..., -1] - best[..., -2] > 5e-3
    np.testing.assert_array_equal(found.label[sure], mean.argmax(-1)[sure])
    assert sure.mean() > 0.9 and len(np.unique(found.label)) > 1


SIZES = [(20, 9, 11), (5, 30, 8), (8, 8, 8), (3, 4, 40)]


def test_equal_networks_are_one_network():
  cases = [case_of(*s, seed=i) for i, s in enumerate(SIZES)]
  slope = (0.5, 1.0, 2.0)
  alone = run(linear(slope), cases)
  twin = Network(linear(slope), PLAIN, (8, 8, 8), 0.5, 2)
  for one, two in zip(alone, run(linear(slope), cases, [twin]), strict=True):
    np.testing.assert_array_equal(one.label, two.label)


def test_a_case_that_fails_in_one_network_costs_none_of_the_others():
  cases = [case_of(8, 8, 8, name=f'{i}', seed=i) for i in range(5)]
  cases[1].image[0, 0, 0] = np.nan
  cases[3].image[0, 0, 0] = 99.0

  def fails(tiles):
    if tiles.max() > 50:
      raise MemoryError
    return constant(B)(tiles)

  failures = []
  got = predict_each(
    constant(A),
    cases,
    read=lambda case: case,
    failed=lambda case, error: failures.append(case.name),
    preprocessing=PLAIN,
    channels=1,
    patch_size=(8, 8, 8),
    overlap=0.5,
    batch_size=2,
    also=[other(fails, patch_size=(8, 8, 8))],
  )
  got = list(got)
  assert sorted(case.name for case, _ in got) == ['0', '2', '4']
  assert sorted(failures) == ['1', '3']
  assert all((prediction.label == 1).all() for _, prediction in got)


def test_a_large_case_is_done_before_the_next_is_read(monkeypatch):
  monkeypatch.setattr(inference_cases, 'LARGE_IMAGE', 0)
  read = []

  def cases():
    for i in range(3):
      read.append(i)
      yield case_of(30, 8, 8, name=f'{i}', seed=i)

  predicted = predict_cases(
    constant(A),
    cases(),
    preprocessing=PLAIN,
    channels=1,
    patch_size=(8, 8, 8),
    overlap=0.5,
    batch_size=64,  # room for more cases
    also=[other(constant(B))],
  )
  for i, prediction in enumerate(predicted):
    assert prediction.case.name == f'{i}' and read == list(range(i + 1))
  assert read == [0, 1, 2]


def test_probabilities_never_exist_as_a_whole(monkeypatch):
  monkeypatch.setattr(stitching, 'SLAB_VALUES', 2**16)
  monkeypatch.setattr(resample, '_SLAB', 2**16)
  monkeypatch.setattr(inference, 'FLUSH_BATCHES', 1)
  size, classes = (160, 48, 48), 20
  base = CROPPED._replace(axes=(0, 2, 1))
  weights = np.linspace(-1, 1, classes, dtype=np.float32)

  def network(tiles):
    return np.asarray(tiles, np.float32) * weights

  also = [
    Network(network, base._replace(spacing=(1.5,) * 3), (8, 16, 16), 0.5, 1),
    Network(network, base._replace(spacing=(2.0, 2.0)), (16, 16), 0.5, 1),
  ]
  cases = [case_of(*size)]
  tracemalloc.start()
  try:
    run(
      network,
      cases,
      also=also,
      preprocessing=base,
      patch_size=(8, 16, 16),
      batch_size=1,
    )
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 4 * np.prod(size) * classes / 3


def test_networks_of_other_axes_are_refused():
  with pytest.raises(ValueError, match='other axes'):
    run(constant(A), [case_of(8, 8, 8)], also=[other(constant(B), CROPPED)])
