"""From cases to masks: each on its own grid, few held, order kept."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HANG_S
from data_cases import assert_one_line
from scipy import ndimage

from medseg_jax import inference
from medseg_jax.data.case import Case
from medseg_jax.data.precision import compact
from medseg_jax.data.preprocess import Channel, Preprocessing, preprocess
from medseg_jax.inference import cases as inference_cases
from medseg_jax.inference.cases import predict_cases, predict_each
from medseg_jax.runtime import stop_signal
from medseg_jax.runtime.errors import InputError, Stopped

SETTINGS = dict(
  preprocessing=Preprocessing('zscore'),
  channels=1,
  patch_size=(16, 16),
  overlap=0.5,
  batch_size=1,
)
RAW = (Channel('none'),)


def affine(tiles):
  """Two classes; each voxel's logits depend on that voxel alone."""
  return jnp.concatenate([2 * tiles[..., :1] + 1, -tiles[..., :1]], -1)


def thirds(tiles):
  """Three classes with their peaks at 0, 1 and 2."""
  return -((tiles - jnp.arange(3.0)) ** 2)


def nearest_peak(case):
  """Returns what `thirds` says of the case's own voxels."""
  return np.ceil(case.image[..., 0] - 0.5).astype(int)


def run(predict_fn, cases, **changed):
  return list(predict_cases(predict_fn, cases, **(SETTINGS | changed)))


def smooth_case(size, seed=0, *, spacing, crop=(), name='scan'):
  """Returns a case of smooth values, uniform from 0 to 2, 0 outside `crop`."""
  noise = np.random.default_rng(seed).standard_normal(size)
  smooth = ndimage.gaussian_filter(noise, 2)
  rank = smooth.ravel().argsort().argsort().reshape(size)
  smooth = (2 * rank / rank.max()).astype(np.float16)
  image = np.zeros(size, np.float32)
  image[crop] = smooth[crop]
  return Case(name, image[..., None], None, spacing)


@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_cases_keep_order_and_grid_whatever_the_batch(batch_size):
  rng = np.random.default_rng(1)
  sizes = [(16, 16), (12, 9), (40, 20), (16, 16), (3, 16)]
  cases = [
    Case(f'{i}', rng.integers(0, 256, (*s, 1), np.uint8), None, (1.0, 1.0))
    for i, s in enumerate(sizes)
  ]
  got = run(affine, cases, batch_size=batch_size)
  assert [case.name for case, *_ in got] == ['0', '1', '2', '3', '4']
  for case, pred, probs, *_ in got:
    image = case.image[..., 0].astype(np.float64)
    z = (image - image.mean()) / image.std()
    np.testing.assert_array_equal(pred, (-z > 2 * z + 1).astype(int))
    assert pred.dtype == np.int16 and probs is None


def test_a_resized_image_is_labelled_on_its_own_grid():
  image = np.zeros((30, 50, 1), np.uint8)
  image[:, 25:] = 255
  [(_, pred, *_)] = run(
    lambda x: jnp.concatenate([0.5 - x, x - 0.5], -1),
    [Case('half', image, None, (1.0, 1.0))],
    preprocessing=Preprocessing('scale', resize=(16, 16)),
    batch_size=2,
  )
  np.testing.assert_array_equal(pred, image[..., 0] > 0)


def test_a_grey_image_serves_a_colour_model_and_not_the_reverse():
  def go(image_channels, model_channels):
    def count(tiles):
      assert tiles.shape[-1] == model_channels
      return tiles[..., :2]

    image = np.zeros((16, 16, image_channels), np.uint8)
    return run(
      count,
      [Case('a case', image, None, (1.0, 1.0))],
      preprocessing=Preprocessing('scale'),
      channels=model_channels,
    )

  assert len(go(1, 3)) == 1
  with pytest.raises(InputError) as error:
    go(3, 1)
  assert_one_line(error, 'a case has 3 channels', 'with 1')


@pytest.mark.parametrize('axes', [(), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize('crop', [False, True])
def test_axes_and_crop_are_undone_on_the_way_back(axes, crop):
  inside = (slice(2, 11), slice(3, 20), slice(5, 14))
  case = smooth_case((13, 22, 18), spacing=(1.0,) * 3, crop=inside)
  [(_, pred, probs, *_)] = run(
    lambda tiles: thirds(tiles) * 30,
    [case],
    preprocessing=Preprocessing(channels=RAW, axes=axes, crop=crop),
    patch_size=(8, 8, 8),
    probabilities=True,
  )
  logits = -30 * (case.image - np.arange(3.0)) ** 2
  np.testing.assert_array_equal(pred, logits.argmax(-1))
  powers = np.exp(logits)
  np.testing.assert_allclose(
    probs, powers / powers.sum(-1, keepdims=True), atol=2e-3
  )
  assert probs.dtype == np.float16
  if crop:
    outside = np.ones(pred.shape, bool)
    outside[inside] = False
    assert (probs[outside] == [1, 0, 0]).all()


def test_a_resampled_volume_comes_back_to_its_grid():
  inside = (slice(1, 19), slice(4, 30), slice(0, 25))
  case = smooth_case((20, 31, 25), spacing=(1.5, 0.8, 1.0), crop=inside)
  settings = Preprocessing(
    channels=RAW, axes=(1, 0, 2), crop=True, spacing=(1.0, 1.2, 1.3)
  )
  prepared = preprocess(case, settings)
  image = compact(prepared.image, prepared.slack)
  [(_, pred, *_)] = run(
    thirds, [case], preprocessing=settings, patch_size=(8, 8, 8), batch_size=2
  )
  logits = np.asarray(thirds(image.astype(np.float32)))
  own = (26, 18, 25)
  zoomed = np.stack(
    [
      ndimage.zoom(
        logits[..., k],
        np.divide(own, image.shape[:-1]),
        order=1,
        mode='nearest',
        grid_mode=True,
      )
      for k in range(3)
    ],
    -1,
  )
  expected = np.zeros((20, 31, 25), int)
  expected[inside] = zoomed.argmax(-1).transpose(1, 0, 2)
  assert (pred == expected).mean() > 0.9999
  assert len(np.unique(pred)) == 3


def test_regions_have_their_own_decoder_and_are_0_outside():
  image = np.zeros((12, 10, 8, 1), np.float32)
  image[2:9, 1:8, 2:7] = 1
  image[4:6, 3:6, 3:5] = 2

  def regions(tiles):
    return jnp.concatenate([tiles - 0.5, tiles - 1.5], -1) * 20

  def decode(logits):
    return np.where(logits[..., 1] > 0, 7, np.where(logits[..., 0] > 0, 4, 0))

  [(_, pred, probs, *_)] = run(
    regions,
    [Case('nested', image, None, (1.0,) * 3)],
    preprocessing=Preprocessing(channels=RAW, crop=True),
    patch_size=(8, 8, 8),
    decode=decode,
    probabilities=True,
    activate=lambda logits: 1 / (1 + np.exp(-logits)),
  )
  expected = np.array([0, 4, 7])[image[..., 0].astype(int)]
  np.testing.assert_array_equal(pred, expected)
  np.testing.assert_allclose(
    probs, np.concatenate([image > 0, image > 1], -1), atol=1e-3
  )


def test_a_two_dimensional_network_segments_a_volume_slice_by_slice():
  case = smooth_case((5, 30, 20), spacing=(5.0, 1.0, 1.0))
  settings = Preprocessing(channels=RAW, spacing=(1.3, 1.3))
  shapes = set()

  def predict(tiles):
    shapes.add(tiles.shape)
    return thirds(tiles)

  [(_, pred, *_)] = run(predict, [case], preprocessing=settings, batch_size=3)
  assert shapes == {(3, 16, 16, 1)}
  truth = nearest_peak(case)
  assert pred.shape == truth.shape and (pred == truth).mean() > 0.95


def test_many_small_volumes_share_batches():
  calls = []

  def predict(tiles):
    calls.append(tiles.shape)
    return thirds(tiles)

  sizes = [(8, 8, 8), (7, 8, 5), (12, 8, 8), (8, 8, 8), (8, 13, 11), (3, 3, 3)]
  cases = [
    smooth_case(s, seed=i, spacing=(1.0,) * 3, name=f'{i}')
    for i, s in enumerate(sizes)
  ]
  got = run(
    predict,
    cases,
    preprocessing=Preprocessing(channels=RAW),
    patch_size=(8, 8, 8),
    batch_size=4,
  )
  assert calls == [(4, 8, 8, 8, 1)] * 3  # 1 + 1 + 2 + 1 + 4 + 1 tiles
  for case, pred, *_ in got:
    np.testing.assert_array_equal(pred, nearest_peak(case))


def test_the_next_case_is_prepared_meanwhile_unless_the_image_is_large(
  monkeypatch,
):
  def read_before_first_slab(large):
    monkeypatch.setattr(inference_cases, 'LARGE_IMAGE', large)
    read, second = [], threading.Event()

    def cases():
      for i in range(3):
        read.append(threading.current_thread())
        if i == 1:
          second.set()
        yield smooth_case((8, 8), seed=i, spacing=(1.0, 1.0), name=f'{i}')

    def predict(tiles):
      ahead.append(second.wait(HANG_S if large else 0.2))
      return affine(tiles)

    ahead = []
    got = run(predict, cases(), patch_size=(8, 8))
    assert [case.name for case, *_ in got] == ['0', '1', '2']
    assert threading.main_thread() not in read
    return ahead[0]

  assert read_before_first_slab(large=2**27)
  assert not read_before_first_slab(large=0)


def test_a_large_image_is_done_before_the_next_is_asked_for(monkeypatch):
  monkeypatch.setattr(inference_cases, 'LARGE_IMAGE', 0)
  monkeypatch.setattr(inference, 'FLUSH_BATCHES', 1)
  read = []

  def cases():
    for i in range(3):
      read.append(i)
      yield smooth_case((30, 20), seed=i, spacing=(1.0, 1.0), name=f'{i}')

  predicted = predict_cases(affine, cases(), **SETTINGS)
  for i, prediction in enumerate(predicted):
    assert prediction.case.name == f'{i}' and read == list(range(i + 1))


def test_a_bad_case_is_named():
  image = np.zeros((16, 16, 1), np.float32)
  image[3, 3] = np.nan
  good = smooth_case((16, 16), spacing=(1.0, 1.0))
  with pytest.raises(InputError) as error:
    run(affine, [good, Case('broken', image, None, (1.0, 1.0))])
  assert_one_line(error, 'broken', 'NaN')


def test_no_case_gives_no_prediction():
  assert run(affine, []) == []


def run_each(predict_fn, cases, read=lambda case: case, **changed):
  """Returns names predicted, and the failures as (name, error's text)."""
  failures = []
  predicted = predict_each(
    predict_fn,
    cases,
    read=read,
    failed=lambda case, error: failures.append((case.name, repr(error))),
    **(SETTINGS | changed),
  )
  return [(case.name, p) for case, p in predicted], failures


def named_cases(count, size=(16, 16)):
  return [
    smooth_case(size, seed=i, spacing=(1.0, 1.0), name=f'{i}')
    for i in range(count)
  ]


@pytest.mark.parametrize('batch_size', [1, 3])
def test_a_case_that_fails_costs_none_of_the_others(batch_size):
  cases = named_cases(6)
  bad = np.full((16, 16, 1), np.nan, np.float32)
  cases[2] = cases[2]._replace(image=bad)  # in preprocessing

  def read(case):
    if case.name in '14':
      raise {'1': MemoryError, '4': ValueError}[case.name](case.name)
    return case

  got, failures = run_each(affine, cases, read, batch_size=batch_size)
  assert [name for name, _ in got] == ['0', '3', '5']
  assert [name for name, _ in failures] == ['1', '2', '4']
  assert 'MemoryError' in failures[0][1] and 'NaN' in failures[1][1]
  alone = run(affine, [cases[i] for i in (0, 3, 5)])
  for (_, there), here in zip(got, alone, strict=True):
    np.testing.assert_array_equal(there.label, here.label)


@pytest.mark.parametrize('batch_size', [1, 4])
def test_where_the_network_fails_the_case_is_found(batch_size):
  cases = named_cases(7)
  marked = cases[3].image.copy()
  marked[0, 0] = 1e4  # stands out after the z-score, too
  cases[3] = cases[3]._replace(image=marked)

  def predict(tiles):
    if tiles.max() > 10:
      raise RuntimeError('RESOURCE_EXHAUSTED')
    return affine(tiles)

  got, failures = run_each(predict, cases, batch_size=batch_size)
  assert failures == [('3', "RuntimeError('RESOURCE_EXHAUSTED')")]
  assert sorted(name for name, _ in got) == list('012456')
  for name, prediction in got:
    [alone] = run(affine, [cases[int(name)]])
    np.testing.assert_array_equal(prediction.label, alone.label)


def test_what_only_fails_beside_others_is_predicted_alone():
  cases = named_cases(5)

  def predict(tiles):
    if (tiles != 0).any((1, 2, 3)).sum() > 1:
      raise MemoryError
    return affine(tiles)

  got, failures = run_each(predict, cases, batch_size=2)
  assert failures == [] and sorted(n for n, _ in got) == list('01234')


def test_an_interruption_is_no_failure():
  def read(case):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run_each(affine, named_cases(2), read)


def test_errors_of_whoever_takes_the_predictions_are_theirs():
  predicted = predict_each(
    affine, named_cases(3), read=lambda c: c, failed=None, **SETTINGS
  )
  with pytest.raises(ZeroDivisionError):
    for _ in predicted:
      1 / 0  # noqa: B018


def test_a_signal_waits_for_no_case_that_is_read():
  begun, may_end, read = threading.Event(), threading.Event(), []

  def cases():
    begun.set()
    may_end.wait(60)
    read.append(None)
    yield from ()

  def ask():
    begun.wait()
    stop_signal.ask()

  with stop_signal.noted(), pytest.raises(Stopped):
    threading.Thread(target=ask).start()
    run(affine, cases())
  assert not read
  may_end.set()
