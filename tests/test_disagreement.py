"""How far the members of an ensemble are apart."""

import functools

import numpy as np
import predict_cases
import pytest
from data_cases import assert_one_line
from ensemble_cases import member, write, write_untrained_models
from PIL import Image
from predict_cases import write_images
from scipy import special, stats

import medseg_jax
from medseg_jax.experiment import members, trained_model
from medseg_jax.inference import decoding
from medseg_jax.programs import predict
from medseg_jax.runtime.errors import InputError

# Logits of four classes.
A, B, C = (-9.0, 2.0, 0.0, 0.0), (-9.0, -1.5, 0.4, -9.0), (1.0, 1.0, 1.0, 1.0)


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
  return write_untrained_models(tmp_path_factory.mktemp('untrained'))


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  predict_cases.compile_once(monkeypatch)


def apart(probs):
  """Returns 1 - sum over classes of the geometric mean, `[M, ..., K]`."""
  return 1 - stats.gmean(probs, axis=0).sum(-1)


def written(model, images, output):
  config = trained_model.read_config(None, model, '')
  config.inference.disagreement = True
  predict.run(config, None, model=model, input_path=images, output_dir=output)
  return np.asarray(Image.open(output / 'a_disagreement.png')) / 255


def test_known_members_are_as_far_apart_as_their_distributions(
  untrained, tmp_path
):
  images = write_images(tmp_path / 'in', 'a')
  small, large = untrained['small'], untrained['large']
  a, b, c = (
    member(small, tmp_path / name, bias=bias, fold=i)
    for i, (name, bias) in enumerate(zip('abc', (A, B, C), strict=True))
  )
  wide = member(large, tmp_path / 'wide', bias=B)
  for i, (models, logits) in enumerate(
    [
      ({'2d': [a, b]}, [A, B]),
      ({'2d': [a, b, c]}, [A, B, C]),
      ({'2d': [a, a]}, [A, A]),
      ({'2d': [a], 'wide': [wide]}, [A, B]),
    ]
  ):
    whole = write(tmp_path / f'whole{i}', models)
    expected = apart(special.softmax(logits, -1))
    found = written(whole, images, tmp_path / f'out{i}')
    np.testing.assert_allclose(found, expected, atol=0.003)


@pytest.mark.parametrize('fit', [True, False])
def test_random_members_voxel_by_voxel(untrained, tmp_path, monkeypatch, fit):
  """Stacked or one after the other; the masks do not change."""
  monkeypatch.setattr(members, 'fit', lambda *_: fit)
  images = write_images(tmp_path / 'in', 'a')
  own = [
    member(untrained['large'], tmp_path / str(i), fold=i, seed=i)
    for i in range(3)
  ]
  whole = write(tmp_path / 'whole', {'2d': own})
  config = trained_model.read_config(None, whole, '')
  predict.run(
    config, None, model=whole, input_path=images, output_dir=tmp_path / 'plain'
  )
  found = written(whole, images, tmp_path / 'out')
  plain = (tmp_path / 'plain' / 'a.png').read_bytes()
  assert (tmp_path / 'out' / 'a.png').read_bytes() == plain
  probs = [
    medseg_jax.load_model(path).predict(images / 'a.tif').probs for path in own
  ]
  expected = apart(np.array(probs, np.float64))
  assert expected.max() > 0.1
  # Overlapping tiles disagree a little themselves.
  assert (found > expected - 0.01).all()
  np.testing.assert_allclose(found, expected, atol=0.05)
  assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_regions_have_the_product_of_their_affinities():
  logits = np.random.default_rng(0).normal(0, 3, (4, 5, 6, 3))
  normaliser = np.logaddexp(0, logits).sum(-1)
  probs = special.expit(logits)
  affinity = stats.gmean(probs, axis=0) + stats.gmean(1 - probs, axis=0)
  found = decoding.disagreement(
    logits.mean(0), normaliser.mean(0), exclusive=False, has_background=False
  )
  np.testing.assert_allclose(found, 1 - affinity.prod(-1), atol=1e-12)
  # A background that is what the others leave has no part in it.
  padded = np.pad(logits.mean(0), [(0, 0)] * 2 + [(1, 0)])
  again = decoding.disagreement(
    padded, normaliser.mean(0), exclusive=False, has_background=True
  )
  np.testing.assert_allclose(again, found, atol=1e-12)


def test_a_single_model_has_nobody_to_disagree_with(untrained, tmp_path):
  images = write_images(tmp_path / 'in', 'a')
  run = functools.partial(written, untrained['small'], images)
  with pytest.raises(InputError, match='is a single model') as error:
    run(tmp_path / 'out')
  assert_one_line(error)
